"""Weights of xLSTM's sLSTM, as its authors' package `xlstm` keeps them, into a `Recurrent` layer with heads, and back.

What is converted is a state dict of the package's `sLSTMLayer` or `sLSTMCell`, whose N heads are `num_heads`, of
D = H / N units each. What a layer has around its recurrence stays outside: the convolution, the normalisation of h, the
dropout.

- `slstm_cell._recurrent_kernel_` is (N, D, 4, D), inputs before outputs: `weight_hh_l0` (N, 4·D, D). States of older
  versions have what the cell computes with, (N, 4·D, D) of the backend "vanilla" and (N, D, 4·D) of "cuda".
- `slstm_cell._bias_` is (N, 4, D): `bias_ih_l0` (4·H,), gate by gate; `bias_hh_l0` is 0. Older ones are (4·H,), gate by
  gate of "vanilla" and head by head of "cuda".
- `fgate.weight`, `igate.weight`, `zgate.weight` and `ogate.weight` are (N, D, D) each: blocks of `weight_ih_l0`, which
  is 0 beside them.
- Gates are i, f, z, o on both sides. A state (4, B, H) is h, c, n, m: `hx = tuple(state.unsqueeze(1))`.

The package's layer gives what `fgate` projects to the input gate, and what `igate` projects to the forget gate: the
conversion goes by what its `forward` computes, not by the names, by which its `step` goes in some versions. The forget
gate is a sigmoid, of which the logarithm is taken, log f = logsigmoid(·) + m; m begins with 0, and has no effect where
n is 0. So is `cells.library.slstm`. Where the package is told to clip values or gradients, or to cut these
(`forward_clipval`, `gradient_recurrent_clipval`, `gradient_recurrent_cut`), the layer does not. A cell that was made
with `function="lstm"` has weights of the same shapes, but is no sLSTM.

Source: Beck et al., "xLSTM: extended long short-term memory" (2024), arXiv 2405.04517; the package's repository,
https://github.com/NX-AI/xlstm, for names and layouts.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fastrnn.cells.library import slstm
from fastrnn.recurrent import Recurrent

__all__ = ["from_xlstm", "to_xlstm"]

_PROJECTIONS = ("fgate", "igate", "zgate", "ogate")
"""In the order of the gates that they feed, i, f, z, o."""
_OF_X = (2, 3)
"""Which of these gates, z and o, see x, where i and f see what was convolved."""
_KERNEL, _BIAS = "_recurrent_kernel_", "_bias_"


def from_xlstm(state: Mapping[str, Tensor], *, batch_first: bool = True, backend: str | None = None) -> Recurrent:
    """A layer that computes what the recurrence of an `sLSTMLayer` does, or an `sLSTMCell`.

    Args:
        state: the state dict of one of them, on any device. What belongs to neither projections nor cell is left out.
        batch_first, backend: see `fastrnn.LSTM`.

    Returns:
        The layer, in the dtype of the recurrent kernel. Its input is that of the four projections: x (..., H), or of a
        layer with a convolution `torch.cat((convolved, x), -1)` (..., 2·H), convolved being what the activation after
        it gives; of a cell's state dict the four gates' shares side by side (..., 4·H), which `weight_ih_l0`, the
        identity, leaves as they are. Its output is (..., H), with the heads side by side.

        `weight_ih_l0` is 0 outside the projections' blocks, and its gradient is not: to train on as the package would,
        multiply the gradient by `layer.weight_ih_l0 != 0`, as it was at first; else `to_xlstm` refuses the result.

    Raises:
        ValueError: `state` is of something else.

    Example::

        >>> import torch, fastrnn
        >>> state = {"_recurrent_kernel_": torch.randn(2, 3, 4, 3), "_bias_": torch.randn(2, 4, 3)}
        >>> layer = fastrnn.xlstm.from_xlstm(state)
        >>> layer
        Recurrent(slstm, 24, 6, batch_first=True, num_heads=2)
        >>> output, (hn, cn, nn, mn) = layer(torch.randn(5, 7, 24))
        >>> output.shape
        torch.Size([5, 7, 6])
        >>> all(torch.equal(back, state[name]) for name, back in fastrnn.xlstm.to_xlstm(layer, state).items())
        True
    """
    names = _names(state)
    kernel, bias = state[names[_KERNEL]], state[names[_BIAS]]
    w_hh = _to_rows(kernel)
    heads, _, width = w_hh.shape
    expected = (heads, 4, width) if kernel.dim() == 4 else (4 * heads * width,)
    if bias.shape != expected:
        raise ValueError(f"from_xlstm: {names[_BIAS]} must be {expected}, got {tuple(bias.shape)}")
    w_ih = _input_weights(state, names, heads, width)
    layer = Recurrent(
        slstm,
        w_ih.shape[1],
        heads * width,
        batch_first=batch_first,
        device=kernel.device,
        dtype=kernel.dtype,
        num_heads=heads,
        backend=backend,
    )
    if _is_by_head(kernel):
        bias = bias.reshape(heads, 4, width).transpose(0, 1).flatten()
    own = {"weight_ih_l0": w_ih, "weight_hh_l0": w_hh if heads > 1 else w_hh[0], "bias_ih_l0": bias}
    layer.load_state_dict(own | {"bias_hh_l0": torch.zeros_like(bias)})
    return layer


def to_xlstm(layer: Recurrent, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of an `sLSTMLayer` or `sLSTMCell` with a layer's weights.

    Args:
        layer: what `from_xlstm` gave, maybe trained since, or another of the cell `slstm` that is like it.
        like: a state dict of what is to have the weights, which says how they are laid out.

    Returns:
        `like` with other projections, recurrent kernel and bias, in its dtypes and on its devices; all else is the
        same. The bias is the sum of both of the layer's.

    Raises:
        TypeError: `layer` is no `Recurrent`.
        ValueError: it is of another cell, of several layers or directions, without biases, or of other sizes than
            `like`; `weight_ih_l0` is not 0 outside the projections' blocks, or of a cell not the identity.

    Example: see `from_xlstm`.
    """
    if not isinstance(layer, Recurrent):
        raise TypeError(f"to_xlstm: layer must be a fastrnn.Recurrent, got {type(layer).__name__}")
    if not layer.bias or layer.cell.key != slstm.key or layer.num_layers != 1 or layer.bidirectional:
        raise ValueError(f"to_xlstm: layer must be one layer of slstm in one direction, with biases, got {layer}")
    names = _names(like)
    kernel = like[names[_KERNEL]]
    heads, _, width = _to_rows(kernel).shape
    inputs = _input_weights(like, names, heads, width).shape[1]
    if (layer.num_heads, layer.hidden_size, layer.input_size) != (heads, heads * width, inputs):
        sizes = f"{heads} heads of {width} units, and of {inputs} inputs"
        raise ValueError(f"to_xlstm: the state dict is of {sizes}, got {layer}")
    w_ih, w_hh, b_ih, b_hh = (weight.detach() for weight in layer._weights()[0])
    found = {names[_BIAS]: (b_ih + b_hh).unflatten(0, (4, heads, width))}
    if _is_by_head(kernel):
        found[names[_BIAS]] = found[names[_BIAS]].transpose(0, 1)
    found[names[_KERNEL]] = _of_rows(w_hh.reshape(heads, 4 * width, width), kernel)
    if "fgate" in names:
        for gate, (name, rows) in enumerate(zip(_PROJECTIONS, w_ih.chunk(4), strict=True)):
            square = rows[:, -heads * width :] if gate in _OF_X else rows[:, : heads * width]
            blocks = square.unflatten(1, (heads, width)).unflatten(0, (heads, width))
            found[names[name]] = torch.stack([blocks[head, :, head] for head in range(heads)])
    if not torch.equal(_input_weights({**like, **found}, names, heads, width), w_ih):
        raise ValueError("to_xlstm: weight_ih_l0 must be 0 outside of the projections' blocks, of a cell the identity")
    as_there = {
        name: value.reshape(like[name].shape).contiguous().to(like[name], copy=True) for name, value in found.items()
    }
    return {**like, **as_there}


def _names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Of the kernel, the bias and the projections, if there are any, in a state dict."""
    prefix = "slstm_cell." if f"slstm_cell.{_KERNEL}" in state else ""
    names = {_KERNEL: prefix + _KERNEL, _BIAS: prefix + _BIAS}
    if prefix:
        names |= {name: f"{name}.weight" for name in _PROJECTIONS}
    missing = [name for name in names.values() if name not in state]
    if missing:
        got = ", ".join([*state][:9])  # that of a whole model has hundreds
        raise ValueError(f"a state dict of xlstm's sLSTMLayer or sLSTMCell has {missing[0]}, got {got}")
    return names


def _to_rows(kernel: Tensor) -> Tensor:
    """A recurrent kernel of any layout as `weight_hh` (N, 4·D, D)."""
    if kernel.dim() == 4 and kernel.shape[1:] == (kernel.shape[3], 4, kernel.shape[3]):
        return kernel.flatten(2).transpose(1, 2)
    if kernel.dim() == 3 and kernel.shape[2] == 4 * kernel.shape[1]:
        return kernel.transpose(1, 2)
    if kernel.dim() == 3 and kernel.shape[1] == 4 * kernel.shape[2]:
        return kernel
    got = tuple(kernel.shape)
    raise ValueError(f"{_KERNEL} must be (N, D, 4, D), (N, 4·D, D) or (N, D, 4·D) of an sLSTM, got {got}")


def _of_rows(w_hh: Tensor, like: Tensor) -> Tensor:
    """The other way round, (N, 4·D, D) as `like` is laid out."""
    return w_hh.transpose(1, 2) if _is_by_head(like) else w_hh


def _is_by_head(kernel: Tensor) -> bool:
    """Whether the bias beside it has head after head, and it itself inputs before outputs."""
    return kernel.dim() == 4 or kernel.shape[2] == 4 * kernel.shape[1]


def _input_weights(state: Mapping[str, Tensor], names: Mapping[str, str], heads: int, width: int) -> Tensor:
    """`weight_ih` (4·H, I): I is H, with a convolution 2·H, of a cell without projections 4·H."""
    if "fgate" not in names:
        kernel = state[names[_KERNEL]]
        return torch.eye(4 * heads * width, dtype=kernel.dtype, device=kernel.device)
    convolves, rows = any(name.startswith("conv1d.") for name in state), []
    for gate, name in enumerate(_PROJECTIONS):
        weight = state[names[name]]
        if weight.shape != (heads, width, width):
            raise ValueError(f"{names[name]} must be {(heads, width, width)}, got {tuple(weight.shape)}")
        dense = torch.block_diag(*weight)
        nothing = torch.zeros_like(dense)
        parts = (nothing, dense) if gate in _OF_X else (dense, nothing)
        rows.append(torch.cat(parts, 1) if convolves else dense)
    return torch.cat(rows)
