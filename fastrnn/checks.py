"""Every check of what users pass, and its message.

Where torch.nn raises, these raise the same type with the same message, to which `hints` may add; fastrnn's own
arguments follow the pattern "operator: argument must be what, got what". Shapes and dtypes are checked before anything
is computed, in eager mode and while tracing alike; the range of `lengths`, which is data, is checked inside the
operators. Whether there is memory behind a tensor is looked at in eager mode only, where there is any.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from fastrnn import hints
from fastrnn.cells import Cell
from fastrnn.cells.weights import heads, parted

INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
PLAIN = (Tensor, torch.nn.Parameter)
"""Classes whose memory is their own: those of wrappers and of tracers may have none."""


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


def memory(operator: str, tensors: Iterable[Any], named: Callable[[], dict[str, Iterable[Any]]]) -> None:
    """Behind every tensor, which is dense, the memory that its sizes need: it may have been freed, or cut short.

    Some of torch's operations look at that, others end the process. Of `tensors` only plain ones are looked at, and
    none while a graph is made. `named` gives them by their names, where one lacks memory.
    """
    if torch.compiler.is_compiling():
        return
    for tensor in tensors:
        if type(tensor) in PLAIN:
            try:
                # An expanded tensor has more bytes than its storage: to be exact costs more.
                if tensor.untyped_storage().nbytes() < tensor.nbytes:
                    _whole_storage(operator, tensor, _name_of(tensor, named()))
            except NotImplementedError:  # what a transform or a sparse layout keeps elsewhere
                if tensor.layout is not torch.strided:
                    name = _name_of(tensor, named())
                    raise RuntimeError(f"{operator}: {name} must be dense, got {tensor.layout}") from None


def _name_of(tensor: Tensor, named: dict[str, Iterable[Any]]) -> str:
    return next(name for name, group in named.items() if any(tensor is one for one in group))


def _whole_storage(operator: str, tensor: Tensor, name: str) -> None:
    """That the storage of a tensor reaches to its last element."""
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    needed = (tensor.storage_offset() + last + 1) * tensor.itemsize if tensor.numel() > 0 else 0
    present = tensor.untyped_storage().nbytes()
    if needed <= present:
        return
    if present == 0:
        raise not_allocated(f"{operator}: {name}")
    raise RuntimeError(
        f"{operator}: {name} reaches beyond its storage: sizes {list(tensor.shape)}, strides {list(tensor.stride())}, "
        f"storage offset {tensor.storage_offset()}, and itemsize {tensor.itemsize} require a storage size of {needed}, "
        f"it is of size {present}"
    )


def not_allocated(name: str) -> RuntimeError:
    """The error that torch's own operations raise, where they look."""
    return RuntimeError(
        f"{name} has a non-zero number of elements, but its data is not allocated: its storage has been freed"
    )


def types(kind: type, **values: object) -> None:
    """That arguments of a constructor are of a type, by their names: with torch.nn's words."""
    for name, value in values.items():
        if not isinstance(value, kind):
            raise TypeError(f"{name} should be of type {kind.__name__}, got: {type(value).__name__}")


def recurrent_dropout(rate: Any) -> None:
    """That it is a probability, with torch.nn's words."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate <= 1:
        raise ValueError(
            "recurrent_dropout should be a number in range [0, 1] representing the probability of an element being "
            "zeroed"
        )


def layer_input(label: str, input: Tensor) -> None:
    """input (T, B, I), (B, T, I) or (T, I) of the module called `label`."""
    if input.dim() not in (2, 3):
        noun = " tensor" if label == "RNN" else ""
        hint = hints.integer_input(input.dtype, ids=True) if input.dim() < 2 else ""
        raise ValueError(f"{label}: Expected input to be 2D or 3D, got {input.dim()}D{noun} instead{hint}")


def packed(operator: str, sequence: PackedSequence) -> None:
    """The fields of a PackedSequence, which may have been put together by hand: torch's functions read memory by them.

    data (rows, I); batch_sizes (T,) int64 on the CPU, none larger than the one before, with rows as their sum;
    sorted_indices and unsorted_indices (B,), if any, permutations on the device of data. The numbers are looked at in
    eager mode, those of indices on the CPU only.
    """
    data, batch_sizes = sequence.data, sequence.batch_sizes
    for field, value in zip(sequence._fields, sequence, strict=True):
        if not isinstance(value, Tensor) and not (value is None and field.endswith("indices")):
            raise TypeError(f"{operator}: {field} of a PackedSequence must be a tensor, got {type(value).__name__}")
    if data.dim() != 2:
        hint = hints.integer_input(data.dtype, ids=True) if data.dim() < 2 else ""
        raise RuntimeError(f"input must have 2 dimensions, got {data.dim()}{hint}")
    if batch_sizes.dim() != 1 or batch_sizes.dtype != torch.int64 or batch_sizes.device.type != "cpu":
        got = f"{batch_sizes.dim()}D {batch_sizes.device.type} {_name(batch_sizes.dtype)}"
        raise RuntimeError(f"{operator}: batch_sizes of a PackedSequence must be a 1D cpu int64 tensor, got {got}")
    if not has_numbers(batch_sizes):
        return
    sizes = batch_sizes.tolist()
    if not sizes:
        raise RuntimeError(f"{operator}: batch_sizes of a PackedSequence must hold a size for each step, got none")
    if sizes[-1] < 0 or sizes != sorted(sizes, reverse=True):
        step = next(t for t, size in enumerate(sizes) if size < 0 or (t > 0 and size > sizes[t - 1]))
        raise RuntimeError(
            f"{operator}: no size in batch_sizes of a PackedSequence may be negative or larger than the one before, "
            f"got {sizes[step]} at index {step}" + (f" after {sizes[step - 1]}" if step > 0 else "")
        )
    if sum(sizes) != data.shape[0]:
        raise RuntimeError(
            f"{operator}: batch_sizes of a PackedSequence must add up to the {data.shape[0]} rows of data, "
            f"got {sum(sizes)}"
        )
    for field in ("sorted_indices", "unsorted_indices"):
        _permutation(operator, field, getattr(sequence, field), sizes[0], data.device)


def _permutation(operator: str, field: str, indices: Tensor | None, batch: int, device: torch.device) -> None:
    if indices is None:
        return
    if indices.shape != (batch,) or indices.dtype not in (torch.int64, torch.int32) or indices.device != device:
        raise RuntimeError(
            f"{operator}: {field} of a PackedSequence must be int64 of shape (B={batch},) on {device}, "
            f"got {_name(indices.dtype)} of shape {tuple(indices.shape)} on {indices.device}"
        )
    if indices.is_cpu and has_numbers(indices) and sorted(indices.tolist()) != list(range(batch)):
        raise RuntimeError(f"{operator}: {field} of a PackedSequence must hold every number below B={batch} once")


def has_numbers(tensor: Tensor) -> bool:
    """Whether it is neither a tracer's nor a transform's."""
    return (
        not torch.compiler.is_compiling()
        and type(tensor) is Tensor
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
    )


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def state_dims(input: Tensor, hx: Sequence[Tensor]) -> None:
    """As many dimensions as the input: (L, B, H) for batched input, (L, H) for unbatched."""
    dim = input.dim()
    if any(state.dim() != dim for state in hx):
        kind = "batched 3-D" if dim == 3 else "unbatched 2-D"
        if len(hx) == 1:
            raise RuntimeError(f"For {kind} input, hx should also be {dim}-D but got {hx[0].dim()}-D tensor")
        got = ", ".join(f"{state.dim()}-D" for state in hx)
        every = "hx and cx" if len(hx) == 2 else "all states"
        raise RuntimeError(f"For {kind} input, {every} should also be {dim}-D but got ({got}) tensors")


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
        number = "two" if len(names) == 2 else len(names)
        raise RuntimeError(f"{label.lower().replace('cell', '_cell')} expects {number} hidden states")


def dtype_and_size(input: Tensor, weight_ih: Tensor) -> None:
    """The input's dtype (unless autocast converts it) and its last size against weight_ih (Gx·H, I)."""
    expected = weight_ih.shape[1]
    if input.dtype != weight_ih.dtype and autocast_dtype(input) is None:
        hint = hints.integer_input(input.dtype, weight_ih.dtype, ids=input.shape[-1] != expected)
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight_ih.dtype}). "
            f"Convert input: input.to({weight_ih.dtype}), or convert model: model.to({input.dtype}){hint}"
        )
    if input.shape[-1] != expected:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {expected}, got {input.shape[-1]}")


def state_shapes(cell: Cell, weights: Sequence[Sequence[Tensor]], batch: int) -> list[tuple[int, ...]]:
    """(layers·directions, B, P or H) for h, (layers·directions, B, H) for the others; weights as in `weight_shapes`."""
    first = parted(cell, weights[0])
    hidden = first.w_ih.shape[0] // len(cell.x_gates)
    output = first.extras[0].shape[0] if first.extras else hidden
    return [(len(weights), batch, output if index == 0 else hidden) for index in range(len(cell.states))]


def state_sizes(hx: Sequence[Tensor], expected: Sequence[tuple[int, ...]]) -> None:
    """Each state's shape against what the module expects, (layers·directions, B, width)."""
    for index, (state, shape) in enumerate(zip(hx, expected, strict=True)):
        if tuple(state.shape) != shape:
            name = "hidden" if len(hx) == 1 else f"hidden[{index}]"
            raise RuntimeError(f"Expected {name} size {shape}, got {list(state.shape)}")


def same_device_and_dtype(
    input: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor], converts: bool = True
) -> None:
    """Everything on the input's device and in its dtype, a real one, unless autocast, if it `converts`, does that."""
    device, dtype = input.device, input.dtype
    for tensor in (*hx, *weights):
        if tensor.device != device or tensor.dtype is not dtype:
            break
    else:
        if dtype in _FLOATING:
            return
    for what, tensors in (("parameter", weights), ("hidden", hx)):
        for tensor in tensors:
            if tensor.device != device:
                raise RuntimeError(
                    f"Input and {what} tensors are not at the same device, "
                    f"found input tensor at {device} and {what} tensor at {tensor.device}"
                )
    converted = converts and autocast_dtype(input) is not None
    for what, tensors in (("parameter", weights), ("hidden", hx)):
        for tensor in tensors:
            if tensor.dtype != dtype and not (converted and autocast_dtype(tensor) is not None):
                hint = hints.integer_input(dtype, tensor.dtype)
                raise RuntimeError(
                    f"input and {what} tensors must have the same dtype, but got {dtype} and {tensor.dtype}{hint}"
                )
    if dtype not in _FLOATING:
        raise TypeError(f"input must be floating point and real, got {dtype}{hints.integer_input(dtype)}")


def weight_counts(operator: str, weights: Sequence[Sequence[Tensor]], directions: int, projection: bool) -> None:
    """As many tensors for each layer and direction as the cell has parameters, biases and projection optional."""
    counts = (2, 3, 4, 5) if projection else (2, 4)
    got = [len(tensors) for tensors in weights]
    if not got or len(got) % directions or len(set(got)) != 1 or got[0] not in counts:
        raise ValueError(
            f"{operator}: weights must hold {' or '.join(map(str, counts))} tensors for each layer and direction, "
            f"got {got} for {directions} directions"
        )


def weight_shapes(operator: str, cell: Cell, directions: int, inputs: int, weights: Sequence[Sequence[Tensor]]) -> None:
    """Every parameter's shape, given I and the first parameters' sizes: a kernel computes addresses from them.

    weight_ih (Gx·H, I or directions·P or directions·H), weight_hh (Gu·H, P or H) or by heads (N, Gu·D, D), of a single
    one also (1, Gu·H, P), biases (Gx·H,) and (Gu·H,), weight_hr (P, H), and the cell's parameters (H,). All layers and
    directions have as many heads as the first.
    """
    first = parted(cell, weights[0])
    hidden, projected = first.w_ih.shape[0] // len(cell.x_gates), len(first.extras) > 0
    of_x, of_u = len(cell.x_gates) * hidden, len(cell.u_gates) * hidden
    outputs = first.extras[0].shape[0] if projected else hidden
    if hidden == 0 or outputs == 0:
        raise RuntimeError(f"{operator}: there must be at least one hidden unit and output, got {hidden} and {outputs}")
    N = heads(first.w_hh)
    wrong = N == 0 or hidden % N or (projected and N > 1)
    by_head = (N, of_u // max(1, N), outputs // max(1, N))
    for index, group in enumerate(weights):
        _, w_hh, biases, *_ = parted(cell, group)
        width = inputs if index < directions else directions * outputs
        of_state = (of_u, outputs) if N == 1 and w_hh.dim() != 3 else by_head
        expected = [(of_x, width), of_state, *[(of_x,), (of_u,)] * (len(biases) // 2)]
        expected += [(outputs, hidden)] * projected + [(hidden,)] * len(cell.parameters)
        if wrong or [tensor.shape for tensor in group] != expected:
            got = [tuple(tensor.shape) for tensor in group]
            raise RuntimeError(
                f"{operator}: the weights of layer {index // directions} must have shapes {expected}, got {got}"
            )


def lengths(operator: str, value: object, batch: int | None, device: torch.device) -> None:
    """(B,) of an integer dtype on the input's device; () for unbatched input, where `batch` is None."""
    shape = () if batch is None else (batch,)
    _own_argument(operator, "lengths", value, "integers", INTEGERS, shape, "B"[: len(shape)], device)


def wrong_lengths(kind: type[Exception], operator: str, batch: int | None, got: str) -> Exception:
    """The error for lengths that are not what `lengths` approves."""
    shape = "()" if batch is None else _named((batch,), "B")
    return kind(f"{operator}: lengths must be integers of shape {shape}, got {got}")


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
        got = f"{_name(value.dtype)} of shape {tuple(value.shape)}"
        raise ValueError(f"{operator}: {argument} must be {expected}, got {got}")
    if value.device != device:
        raise ValueError(f"{operator}: {argument} must be on the input's device {device}, got {value.device}")


def broadcastable(operator: str, name: str, value: Tensor, shape: tuple[int, ...], names: str) -> None:
    """That a tensor broadcasts to `shape`, whose sizes are called `names`; N are layers times directions."""
    sizes = value.shape
    fits = len(sizes) <= len(shape)
    # Not by `in`: a compiler that does not know the sizes finds them in no tuple.
    if not fits or any(size != of and size != 1 for size, of in zip(sizes[::-1], shape[::-1], strict=False)):
        expected = _named(shape, names).replace("N=", "layers·directions=")
        raise ValueError(f"{operator}: {name} must be broadcastable to {expected}, got {tuple(sizes)}")


def step_inputs(operator: str, cell: Cell, inputs: Sequence[Tensor], x: Tensor) -> None:
    """The inputs of the steps beside the input and in its dtype, unless autocast converts both."""
    converted = autocast_dtype(x) is not None
    for name, value in zip(cell.inputs, inputs, strict=True):
        if value.device != x.device:
            raise RuntimeError(f"{operator}: {name} must be on the input's device {x.device}, got {value.device}")
        if value.dtype != x.dtype and not (converted and autocast_dtype(value) is not None):
            raise RuntimeError(f"{operator}: {name} must have the input's dtype {x.dtype}, got {value.dtype}")


def _named(shape: tuple[int, ...], names: str) -> str:
    sizes = [f"{name}={size}" for name, size in zip(names, shape, strict=True)]
    return f"({', '.join(sizes)}{',' * (len(sizes) == 1)})"


def lengths_range(operator: str, value: Tensor, steps: int) -> None:
    """Every length within [0, T]. Reads the data: for CPU tensors only."""
    outside = (value < 0) | (value > steps)
    if bool(outside.any()):
        index = int(outside.nonzero()[0])
        raise out_of_range(operator, steps, int(value[index]), index)


def out_of_range(operator: str, steps: int, length: int, index: int) -> ValueError:
    """The error for a length that is not within [0, T]."""
    return ValueError(f"{operator}: lengths must lie within [0, T={steps}], got {length} at index {index}")


def cell_input(label: str, input: Tensor, hx: Sequence[Tensor] | None) -> None:
    """input (B, I) or (I,) and states (B, H) or (H,) of the cell module called `label`."""
    if input.dim() not in (1, 2):
        hint = hints.integer_input(input.dtype, ids=True) if input.dim() < 1 else ""
        raise ValueError(f"{label}: Expected input to be 1D or 2D, got {input.dim()}D instead{hint}")
    for index, state in enumerate(hx or ()):
        if state.dim() not in (1, 2):
            name = "hidden" if len(hx or ()) == 1 else f"hx[{index}]"
            raise ValueError(f"{label}: Expected {name} to be 1D or 2D, got {state.dim()}D instead")


def cell_sizes(input: Tensor, hx: Sequence[Tensor], input_size: int, hidden_size: int) -> None:
    """Sizes of batched input (B, I) and states (B, H)."""
    if input.shape[1] != input_size:
        hint = hints.integer_input(input.dtype, ids=True)
        raise RuntimeError(f"input has inconsistent input_size: got {input.shape[1]} expected {input_size}{hint}")
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
