"""Which of the ways computes a layer's recurrence: the table decides, and of a user's cell what was compiled."""

from __future__ import annotations

from fastrnn.backends.layer import Layer
from fastrnn.backends.recurrence.buffers import BackwardBuffers, ForwardBuffers
from fastrnn.backends.triton import persistent, pointwise, steps
from fastrnn.backends.triton.configurations import backward_tile, forward_tile


def forward(layer: Layer, buffers: ForwardBuffers) -> None:
    """Fills histories, gates and finals."""
    tile = forward_tile(layer)
    if not layer.cell.u_gates:
        pointwise.forward(layer, buffers)
    elif tile is None or not persistent.forward(layer, buffers, tile):
        steps.forward(layer, buffers)


def backward(layer: Layer, buffers: BackwardBuffers) -> None:
    """Fills dgates and d_states0.

    Recomputed preactivations make room for their gradients. No program reads what another one writes. Within a program
    of `persistent`, all threads wait for each other between reading a step's values and storing what replaces them:
    w_hh's product, whose operand they share, lies between (`kernels/backward.py`). In `steps` they wait because of this
    alone, even those of one warp: a thread may store where another one has read. In `pointwise` waiting would keep
    Triton from fetching ahead; there nothing is replaced but by programs of one warp, which ask for all that a step
    reads before its threads exchange anything. What is fetched ahead belongs to steps whose gradients are stored later.
    """
    buffers.replaces_preactivations = True
    tile = backward_tile(layer)
    if not layer.cell.u_gates:
        pointwise.backward(layer, buffers)
    elif tile is None or not persistent.backward(layer, buffers, tile):
        steps.backward(layer, buffers)
