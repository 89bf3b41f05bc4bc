"""Calls of one step or a few with carried states, as real-time programs make them: `python -m benchmarks.serving`.

Each contender lives in a process of its own (`worker`), which `benchmarks.peers.process` stops between its turns, and
takes its own times, of every call by itself. It is the same process for all weights and numbers of threads: a turn
begins when the other sessions' threads sleep.

Everything that can be is made before a call: inputs, outputs and states are bound, feeds are NumPy's arrays that are
there. What a program would add, bringing its input to where it is read, is nobody's time.

torch.compile has no part in it: one step of an LSTM of 64 or 256 units took 120 to 180 µs, little less than torch.nn,
most of it the guards of a call, and 17 s to compile at first, 2 s for each further size.
"""
