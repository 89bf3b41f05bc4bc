"""The one door of modules: a call goes to a plan that is kept, or is bound."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastrnn.binding import bind, memory
from fastrnn.binding.plans import Results, Watch
from fastrnn.lengths import Lengths


def call(
    module: Any,
    input: Any,
    hx: Any,
    states: tuple[Any, ...] | None,
    lengths: Lengths | None,
    resets: Tensor | None,
    return_states: bool,
    watch: Watch | None,
    inputs: Sequence[Any] = (),
) -> Results:
    """What a module computes, which has `_attributes`, `_configuration`, `_names` and `_checked_weights`.

    `states` are the tensors of `hx`, if it is as it should be, and `inputs` those of the steps, of cells that have
    some.
    """
    signature = None
    if watch is None:
        signature = memory.signature(module, input, states, lengths, resets, return_states, inputs)
        if signature is not None:
            plan = memory.find(module, *signature)
            results = None if plan is None else plan.run(input, states, lengths, resets, inputs)
            if results is not None:
                return results
    configuration, weights = module._configuration(), module._checked_weights(input, hx)
    arguments = (configuration, weights, input, hx, lengths, resets, return_states, watch, inputs)
    if signature is None:
        return bind.results(*arguments)
    plan, stack = bind.bind(*arguments)
    results = plan.results(stack)
    memory.keep(module, *signature, plan, [name for names in module._names() for name in names], results[1])
    return results
