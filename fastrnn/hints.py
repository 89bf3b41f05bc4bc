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
_DETACH = "Detach it after each backward: h = h.detach(), of an LSTM h, c = h.detach(), c.detach()"
_AFTER_AUTOGRADS = {
    "backward through the graph a second time": (
        f"A state that is carried to the next call brings the graph of the call before. {_DETACH}. retain_graph=True "
        "does not help there"
    ),
    "modified by an inplace operation": (
        "Where an output was changed before backward, write output = output * 2, not output.mul_(2). Where a state was "
        f"carried on, an optimizer has changed the weights of the call before. {_DETACH}"
    ),
}


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
        RuntimeError: as autograd: a backward went through the node before, or what it saved has changed. What that
            mostly comes of is said after autograd's message.
    """
    try:
        return ctx.saved_tensors  # type: ignore[no-any-return]
    except RuntimeError as error:
        message = str(error)
        for words, hint in _AFTER_AUTOGRADS.items():
            if words in message:
                error.args = (f"{message} {hint}",)
        raise
