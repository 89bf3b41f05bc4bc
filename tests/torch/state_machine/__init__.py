"""Random operations on fastrnn's modules, and the same on torch.nn's, compared after each; public names only.

What a module remembers of its calls must never show. `machine` has the rules, `calls` every kind of call, `oracle` what
torch.nn gives for those that it does not take, `changes` and `visits` what happens to modules between calls, `mistakes`
what both must refuse. `python -m tests.torch.state_machine --minutes 10` runs it for as long as is asked for.
"""
