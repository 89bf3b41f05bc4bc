"""What is added to a message where the mistake behind it is a beginner's, and common: what to write instead."""

from __future__ import annotations

from typing import Any

import torch

_AS_VECTORS = (
    "Ids must become vectors first: torch.nn.Embedding(number_of_ids, input_size)(ids), "
    "or torch.nn.functional.one_hot(ids, input_size).float()"
)
_AS_NUMBERS = (
    "Integers that are measurements or one-hot vectors become floating point by input.{method}(); ids become vectors "
    "by torch.nn.Embedding(number_of_ids, input_size)(ids)"
)
_METHODS = {torch.float64: "double", torch.bfloat16: "bfloat16", torch.float16: "half"}
_CARRIED = (
    "Where a state is carried from one call to the next, its graph goes back through all calls before: detach it after "
    "each backward, h = h.detach(), of an LSTM h, c = h.detach(), c.detach(). retain_graph=True does not help there"
)
_OF_A_CARRIED_STATE = ("backward through the graph a second time", "modified by an inplace operation")


def integer_input(given: torch.dtype, wanted: torch.dtype = torch.float32, *, ids: bool = False) -> str:
    """Of an input of integers or bools, what makes it one of the dtype that is wanted; empty for any other.

    `ids` says that its shape, too, is not that of vectors (..., input_size).
    """
    if given.is_floating_point or given.is_complex:
        return ""
    if ids and given is not torch.bool:
        return f". {_AS_VECTORS}"
    return f". {_AS_NUMBERS.format(method=_METHODS.get(wanted, 'float'))}"


def saved_tensors(ctx: Any) -> tuple[Any, ...]:
    """What a node of autograd's graph saved.

    Raises:
        RuntimeError: as autograd: a backward went through the node before, or what it saved has changed. Mostly, the
            state that a sequence ended with was carried on with its graph, which is said after autograd's message.
    """
    try:
        return ctx.saved_tensors  # type: ignore[no-any-return]
    except RuntimeError as error:
        message = str(error)
        if any(words in message for words in _OF_A_CARRIED_STATE):
            error.args = (f"{message} {_CARRIED}",)
        raise
