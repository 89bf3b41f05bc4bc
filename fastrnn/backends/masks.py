"""What lengths and resets mean for step t, in plain PyTorch: docs/design.md, "Semantics".

Arguments are numbers or tensors that broadcast; "before" is meant in the order of the forward.
"""

from __future__ import annotations

from torch import Tensor

Number = Tensor | int


def live(t: Number, length: Tensor) -> Tensor:
    """Whether step t belongs to the sequence.

    One that does not leaves the states as they are, gives zero, and hands their gradients on unchanged.
    """
    return t < length


def cut(reset: Tensor, k: Number, length: Tensor | None) -> Tensor:
    """Whether `reset`, what lies at k, cuts: the states that pass k are zero then, and no gradient passes it.

    One at k lies between steps k - 1 and k, whichever comes first. One that lies at a step which is not live does not;
    without lengths (None) all are.
    """
    return reset if length is None else reset & live(k, length)


def starts(t: Number, length: Tensor) -> Tensor:
    """Whether, in reverse, no live step comes before step t, so that, cuts aside, the initial states enter it.

    Forward that is step 0, whatever the length.
    """
    return ~live(t + 1, length)
