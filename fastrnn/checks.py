"""Every check of what users pass, and its message.

Where torch.nn raises, these raise the same type with the same message; fastrnn's own arguments follow the pattern
"operator: argument must be what, got what". Shapes and dtypes are checked before anything is computed, in eager mode
and while tracing alike; the range of `lengths`, which is data, is checked inside the operators.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


_FLOATING = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def autocast_dtype(input: Tensor) -> torch.dtype | None:
    """The dtype that autocast converts the input to; None where it is off, or where it leaves it alone as float64."""
    kind = input.device.type
    if input.dtype == torch.float64 or not input.is_floating_point():
        return None
    # Compilers before torch 2.13 cannot trace is_autocast_available; of what they take, meta alone has no autocast.
    has_autocast = kind != "meta" if torch.compiler.is_compiling() else torch.amp.is_autocast_available(kind)
    if not has_autocast or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def layer_input(label: str, input: Tensor) -> None:
    """input (T, B, I), (B, T, I) or (T, I) of the module called `label`."""
    if input.dim() not in (2, 3):
        noun = " tensor" if label == "RNN" else ""
        raise ValueError(f"{label}: Expected input to be 2D or 3D, got {input.dim()}D{noun} instead")


def state_dims(input: Tensor, hx: Sequence[Tensor]) -> None:
    """As many dimensions as the input: (L, B, H) for batched input, (L, H) for unbatched."""
    dim = input.dim()
    if any(state.dim() != dim for state in hx):
        kind = "batched 3-D" if dim == 3 else "unbatched 2-D"
        if len(hx) == 1:
            raise RuntimeError(f"For {kind} input, hx should also be {dim}-D but got {hx[0].dim()}-D tensor")
        got = ", ".join(f"{state.dim()}-D" for state in hx)
        raise RuntimeError(f"For {kind} input, hx and cx should also be {dim}-D but got ({got}) tensors")


def count_of_states(label: str, hx: object, names: tuple[str, ...]) -> None:
    """A tensor for a cell with one state, a tuple or list of tensors for others."""
    if len(names) == 1:
        if not isinstance(hx, Tensor):
            raise TypeError(f"{label}: hx must be a tensor, got {type(hx).__name__}")
        return
    if not isinstance(hx, (tuple, list)) or not all(isinstance(state, Tensor) for state in hx):
        got = f"a {type(hx).__name__}" if not isinstance(hx, (tuple, list)) else "other elements"
        raise TypeError(f"{label}: hx must be a tuple of {len(names)} tensors ({', '.join(names)}), got {got}")
    if len(hx) != len(names):
        raise RuntimeError(f"{label.lower().replace('cell', '_cell')} expects two hidden states")


def dtype_and_size(input: Tensor, weight_ih: Tensor) -> None:
    """The input's dtype (unless autocast converts it) and its last size against weight_ih (G·H, I)."""
    if input.dtype != weight_ih.dtype and autocast_dtype(input) is None:
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight_ih.dtype}). "
            f"Convert input: input.to({weight_ih.dtype}), or convert model: model.to({input.dtype})"
        )
    expected = weight_ih.shape[1]
    if input.shape[-1] != expected:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {expected}, got {input.shape[-1]}")


def state_sizes(hx: Sequence[Tensor], expected: Sequence[tuple[int, ...]]) -> None:
    """Each state's shape against what the module expects, (layers·directions, B, width)."""
    for index, (state, shape) in enumerate(zip(hx, expected, strict=True)):
        if tuple(state.shape) != shape:
            name = "hidden" if len(hx) == 1 else f"hidden[{index}]"
            raise RuntimeError(f"Expected {name} size {shape}, got {list(state.shape)}")


def same_device_and_dtype(input: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Everything on the input's device and in its dtype, a real one, unless autocast converts it."""
    for what, tensors in (("parameter", weights), ("hidden", hx)):
        for tensor in tensors:
            if tensor.device != input.device:
                raise RuntimeError(
                    f"Input and {what} tensors are not at the same device, "
                    f"found input tensor at {input.device} and {what} tensor at {tensor.device}"
                )
    converted = autocast_dtype(input) is not None
    for what, tensors in (("parameter", weights), ("hidden", hx)):
        for tensor in tensors:
            if tensor.dtype != input.dtype and not (converted and autocast_dtype(tensor) is not None):
                raise RuntimeError(
                    f"input and {what} tensors must have the same dtype, but got {input.dtype} and {tensor.dtype}"
                )
    if input.dtype not in _FLOATING:
        raise TypeError(f"input must be floating point and real, got {input.dtype}")


def weight_counts(operator: str, weights: Sequence[Sequence[Tensor]], directions: int, projection: bool) -> None:
    """As many tensors for each layer and direction as the cell has parameters, biases and projection optional."""
    counts = (2, 3, 4, 5) if projection else (2, 4)
    got = [len(tensors) for tensors in weights]
    if not got or len(got) % directions or len(set(got)) != 1 or got[0] not in counts:
        raise ValueError(
            f"{operator}: weights must hold {' or '.join(map(str, counts))} tensors for each layer and direction, "
            f"got {got} for {directions} directions"
        )


def weight_shapes(operator: str, gates: int, directions: int, inputs: int, weights: Sequence[Sequence[Tensor]]) -> None:
    """Every parameter's shape, given I and the first parameters' sizes: a kernel computes addresses from them.

    weight_ih (G·H, I or directions·P or directions·H), weight_hh (G·H, P or H) or by heads (N, G·D, D), biases (G·H,),
    weight_hr (P, H).
    """
    first = weights[0]
    rows, projected = first[0].shape[0], len(first) % 2 == 1
    hidden = rows // gates
    outputs = first[-1].shape[0] if projected else hidden
    for index, (w_ih, w_hh, *rest) in enumerate(weights):
        width = inputs if index < directions else directions * outputs
        heads = w_hh.shape[0] if w_hh.dim() == 3 else 1
        by_head = (heads, rows // max(1, heads), hidden // max(1, heads)) if w_hh.dim() == 3 else (rows, outputs)
        expected = [(gates * hidden, width), by_head, *[(rows,)] * (len(rest) // 2 * 2)]
        if projected:
            expected.append((outputs, hidden))
        got = [tuple(tensor.shape) for tensor in (w_ih, w_hh, *rest)]
        if got != expected or heads == 0 or hidden % heads:
            raise RuntimeError(
                f"{operator}: the weights of layer {index // directions} must have shapes {expected}, got {got}"
            )


def lengths(operator: str, value: object, batch: int | None, device: torch.device) -> None:
    """(B,) of an integer dtype on the input's device; () for unbatched input, where `batch` is None."""
    shape = () if batch is None else (batch,)
    _own_argument(operator, "lengths", value, "an integer tensor", _INTEGERS, shape, "B"[: len(shape)], device)


def resets(operator: str, value: object, shape: tuple[int, ...], names: str, device: torch.device) -> None:
    """bool of `shape`, whose sizes are called `names` ("TB", "BT" or "T"), on the input's device."""
    _own_argument(operator, "resets", value, "bool", (torch.bool,), shape, names, device)


def _own_argument(
    operator: str,
    argument: str,
    value: object,
    kind: str,
    dtypes: tuple[torch.dtype, ...],
    shape: tuple[int, ...],
    names: str,
    device: torch.device,
) -> None:
    # Messages are put together only where they are raised: while tracing, a size in a string becomes a constant.
    if not isinstance(value, Tensor):
        expected = f"{kind} of shape {_named(shape, names)}"
        raise TypeError(f"{operator}: {argument} must be {expected}, got {type(value).__name__}")
    if value.dtype not in dtypes or value.shape != shape:
        expected = f"{kind} of shape {_named(shape, names)}"
        got = f"{str(value.dtype).removeprefix('torch.')} of shape {tuple(value.shape)}"
        raise ValueError(f"{operator}: {argument} must be {expected}, got {got}")
    if value.device != device:
        raise ValueError(f"{operator}: {argument} must be on the input's device {device}, got {value.device}")


def _named(shape: tuple[int, ...], names: str) -> str:
    sizes = [f"{name}={size}" for name, size in zip(names, shape, strict=True)]
    return f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"


def lengths_range(operator: str, value: Tensor, steps: int) -> None:
    """Every length within [0, T]. Reads the data: for CPU tensors only."""
    outside = (value < 0) | (value > steps)
    if bool(outside.any()):
        index = int(outside.nonzero()[0])
        raise ValueError(
            f"{operator}: lengths must lie within [0, T={steps}], got {int(value[index])} at index {index}"
        )


def cell_input(label: str, input: Tensor, hx: Sequence[Tensor] | None) -> None:
    """input (B, I) or (I,) and states (B, H) or (H,) of the cell module called `label`."""
    if input.dim() not in (1, 2):
        raise ValueError(f"{label}: Expected input to be 1D or 2D, got {input.dim()}D instead")
    for index, state in enumerate(hx or ()):
        if state.dim() not in (1, 2):
            name = "hidden" if len(hx or ()) == 1 else f"hx[{index}]"
            raise ValueError(f"{label}: Expected {name} to be 1D or 2D, got {state.dim()}D instead")


def cell_sizes(input: Tensor, hx: Sequence[Tensor], input_size: int, hidden_size: int) -> None:
    """Sizes of batched input (B, I) and states (B, H)."""
    if input.shape[1] != input_size:
        raise RuntimeError(f"input has inconsistent input_size: got {input.shape[1]} expected {input_size}")
    for index, state in enumerate(hx):
        if state.dim() != 2:
            raise RuntimeError(f"Expected 2D hidden{index} (batch x hidden_size), but got {state.dim()}D tensor")
        if input.shape[0] != state.shape[0]:
            raise RuntimeError(
                f"Input batch size {input.shape[0]} doesn't match hidden{index} batch size {state.shape[0]}"
            )
        if state.shape[1] != hidden_size:
            raise RuntimeError(
                f"hidden{index} has inconsistent hidden_size: got {state.shape[1]}, expected {hidden_size}"
            )
