"""The way from Python to a kernel, in C and in Python: which calls it serves itself, and which it leaves to Python."""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from fastrnn.streaming import plain_door
from fastrnn.streaming.plain_door import BUSY, INPUT, OUTPUT, ROWS, SLOTS, STEPS
from tests.streaming.doors import BATCH, MOST_STEPS, I, O, expected, make, usual


def values(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def memory_of_array(x: np.ndarray) -> memoryview:
    return memoryview(array("f", x.ravel())).cast("B").cast("f", x.shape)


GIVEN: dict[str, Callable[[np.ndarray], Any]] = {
    "tensor": torch.tensor,
    "parameter": lambda x: torch.nn.Parameter(torch.tensor(x)),
    "with gradient": lambda x: torch.tensor(x, requires_grad=True) * 1,
    "inference": lambda x: torch.inference_mode()(torch.tensor)(x),
    "numpy": lambda x: x,
    "read-only": lambda x: np.frombuffer(x.tobytes(), np.float32).reshape(x.shape),
    "memoryview": memoryview,
    "array": memory_of_array,
}


def served(stream: Any, kind: str, slowly: bool) -> bool:
    """Whether `_slowly` was called as it should: in Python always."""
    return bool(stream.slow) == (slowly or kind == "plain")


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("shape", [(BATCH, I), (MOST_STEPS, BATCH, I), (2, BATCH, I), (1, BATCH, I)])
@pytest.mark.parametrize("given", GIVEN)
def test_what_is_as_usual(base: Any, kind: str, given: str, shape: tuple[int, ...], batch_first: bool) -> None:
    stream = make(base, batch_first=batch_first)
    x = values(*shape)
    if batch_first and len(shape) == 3:
        x = np.ascontiguousarray(x.swapaxes(0, 1))
    result = stream(GIVEN[given](x))
    assert isinstance(result, torch.Tensor)
    np.testing.assert_array_equal(result, expected(x))
    (numbers,) = stream.kernel.calls
    steps = 1 if len(shape) == 2 else shape[0]
    assert [numbers[key] for key in (STEPS, ROWS, SLOTS, BUSY)] == [steps, BATCH, 0, 1]
    assert numbers[OUTPUT] == stream.memory.data_ptr()
    assert served(stream, kind, slowly=False)
    assert stream.block[BUSY] == 0


def test_x_is_not_copied(base: Any, kind: str) -> None:
    stream = make(base)
    x = torch.tensor(values(BATCH, I))
    stream(x)
    assert (stream.kernel.calls[0][INPUT] == x.data_ptr()) == (kind != "plain")


def test_the_output_is_made_once(base: Any, kind: str) -> None:
    stream = make(base)
    shapes = [(BATCH,), (BATCH,), (1, BATCH), (2, BATCH), (2, BATCH), (3, BATCH), (BATCH,)]
    results = [stream(values(*shape, I)) for shape in shapes]
    assert [result.shape for result in results] == [(*shape, O) for shape in shapes]
    if kind != "plain":
        assert [one is other for one, other in pairwise(results)] == [one == other for one, other in pairwise(shapes)]


def test_the_output_has_as_many_rows_as_slots(base: Any) -> None:
    stream = make(base, slots=9)
    for rows in (1, 1, 3):
        assert stream(values(rows, I), slots=np.arange(rows)).shape == (rows, O)


@pytest.mark.parametrize("shape", [(BATCH,), (3, BATCH)])
@pytest.mark.parametrize("given", ["tensor", "numpy", "array"])
def test_an_output_of_the_caller(base: Any, kind: str, given: str, shape: tuple[int, ...]) -> None:
    stream = make(base)
    x, out = values(*shape, I), GIVEN[given](values(*shape, O))
    assert stream(torch.tensor(x), out=out) is out
    np.testing.assert_array_equal(np.asarray(out), expected(x))
    assert not stream.memory.any()
    assert served(stream, kind, slowly=False)


@pytest.mark.parametrize("slots", [torch.tensor([7, 1, 3]), np.array([7, 1]), array("q", [7])], ids=type)
def test_slots(base: Any, kind: str, slots: Any) -> None:
    stream = make(base, slots=9)
    x = values(2, len(slots), I)
    np.testing.assert_array_equal(stream(x, slots=slots), expected(x, slots))
    assert stream.kernel.calls[0][ROWS] == len(slots)
    assert served(stream, kind, slowly=False)


class Subclass(torch.Tensor):
    pass


def out(*shape: int, **options: Any) -> dict[str, Any]:
    return {"out": torch.full(shape or (BATCH, O), 7.0, **options)}


READ_ONLY = np.frombuffer(bytes(4 * BATCH * O), np.float32).reshape(BATCH, O)
UNALIGNED = memoryview(bytearray(4 * BATCH * I + 1))[1:].cast("f", (BATCH, I))
UNUSUAL: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "double": lambda: (usual().double(), {}),
    "integers": lambda: (usual().int(), {}),
    "rows": lambda: (torch.zeros(BATCH + 1, I), {}),
    "fewer rows": lambda: (torch.zeros(BATCH - 1, I), {}),
    "rows of steps": lambda: (torch.zeros(2, BATCH - 1, I), {}),
    "features": lambda: (torch.zeros(BATCH, I + 1), {}),
    "steps": lambda: (torch.zeros(MOST_STEPS + 1, BATCH, I), {}),
    "no steps": lambda: (torch.zeros(0, BATCH, I), {}),
    "1 dimension": lambda: (torch.zeros(I), {}),
    "4 dimensions": lambda: (torch.zeros(1, 1, BATCH, I), {}),
    "strides": lambda: (torch.zeros(I, BATCH).t(), {}),
    "expanded": lambda: (torch.zeros(1, I).expand(BATCH, I), {}),
    "meta": lambda: (usual().to("meta"), {}),
    "sparse": lambda: (usual().to_sparse(), {}),
    "subclass": lambda: (usual().as_subclass(Subclass), {}),
    "functional": lambda: (torch._to_functional_tensor(usual()), {}),
    "no storage": lambda: (torch._efficientzerotensor((BATCH, I)), {}),
    "numpy without steps": lambda: (np.zeros((0, BATCH, I), np.float32), {}),
    "numpy double": lambda: (np.zeros((BATCH, I)), {}),
    "numpy strides": lambda: (np.zeros((I, BATCH), np.float32).T, {}),
    "other byte order": lambda: (np.zeros((BATCH, I), ">f4"), {}),
    "unaligned": lambda: (UNALIGNED, {}),
    "array": lambda: (array("f", [0] * BATCH * I), {}),
    "list": lambda: ([[0.0] * I] * BATCH, {}),
    "nothing": lambda: (None, {}),
    "slots without slots": lambda: (usual(), {"slots": torch.arange(BATCH)}),
    "out double": lambda: (usual(), out(dtype=torch.float64)),
    "out rows": lambda: (usual(), out(BATCH + 1, O)),
    "out features": lambda: (usual(), out(BATCH, O + 1)),
    "out dimensions": lambda: (usual(), out(1, BATCH, O)),
    "out more dimensions": lambda: (usual(), out(BATCH, O, 2)),
    "out steps": lambda: (torch.zeros(2, BATCH, I), out(3, BATCH, O)),
    "out strides": lambda: (usual(), {"out": torch.full((O, BATCH), 7.0).t()}),
    "out with gradient": lambda: (usual(), out(requires_grad=True)),
    "out read-only": lambda: (usual(), {"out": READ_ONLY}),
    "out list": lambda: (usual(), {"out": [[0.0] * O] * BATCH}),
}


@pytest.mark.parametrize("name", UNUSUAL)
def test_what_is_unusual_is_left_to_python(base: Any, name: str) -> None:
    stream = make(base)
    stream.refused = ValueError("unusual")
    x, options = UNUSUAL[name]()
    with pytest.raises(ValueError, match="unusual"):
        stream(x, **options)
    ((given, result, slots),) = stream.slow
    assert given is x
    assert result is options.get("out")
    assert slots is options.get("slots")
    assert not any(stream.block)
    assert not stream.memory.any()
    if isinstance(result, torch.Tensor):
        assert bool((result == 7).all())


UNUSUAL_SLOTS: dict[str, Any] = {
    "none": None,
    "int32": torch.zeros(2, dtype=torch.int32),
    "floats": np.zeros(2),
    "another number": torch.zeros(3, dtype=torch.int64),
    "dimensions": torch.zeros(1, 2, dtype=torch.int64),
    "a column": torch.zeros(2, 1, dtype=torch.int64),
    "strides": torch.zeros(4, dtype=torch.int64)[::2],
    "list": [0, 1],
}


@pytest.mark.parametrize("name", UNUSUAL_SLOTS)
def test_unusual_slots_are_left_to_python(base: Any, name: str) -> None:
    stream = make(base, slots=9)
    stream.refused = ValueError("unusual")
    with pytest.raises(ValueError, match="unusual"):
        stream(torch.zeros(2, I), slots=UNUSUAL_SLOTS[name])
    assert not any(stream.block)
    with pytest.raises(ValueError, match="unusual"):
        stream(torch.zeros(BATCH + 1, I), slots=torch.arange(BATCH + 1))


@pytest.mark.parametrize("transform", [torch.vmap, torch.func.functionalize, lambda f: torch.func.grad(f)])
def test_tensors_of_transforms_are_left_to_python(base: Any, transform: Callable[..., Any]) -> None:
    stream = make(base)
    stream.refused = ValueError("a transform's")

    def call(x: torch.Tensor) -> torch.Tensor:
        with pytest.raises(ValueError, match="a transform's"):
            stream(x)
        return x.sum()

    transform(call)(torch.zeros(2, BATCH, I))
    assert not any(stream.block)


def test_a_negative_bit_is_seen(base: Any) -> None:
    """Of one element: other imaginary parts are not contiguous."""

    class Plain(base):
        def _slowly(self, x: Any, out: Any, slots: Any) -> str:
            return "slowly"

        def _view(self, rows: int, steps: int, dims: int) -> tuple[str, int]:
            return "itself", ctypes.addressof(memory)

    memory, block = (ctypes.c_float * 1)(), (ctypes.c_int64 * (BUSY + 1))()
    kernel = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda block: None)
    sizes = {"features": 1, "outputs": 1, "steps": 1, "batch": 1, "batch_first": False, "slots": 0, "work": 1}
    stream = Plain(kernel=ctypes.cast(kernel, ctypes.c_void_p).value, block=ctypes.addressof(block), **sizes)
    negative = torch.tensor(1j).conj().imag.reshape(1, 1)
    assert negative.is_neg()
    assert negative.stride() == (1, 1)
    assert stream(negative) == "slowly"
    assert stream(negative.clone()) == ("slowly" if base is plain_door.Door else "itself")


@pytest.mark.parametrize("gap", [-1, 0, 1])
def test_memory_that_overlaps(base: Any, kind: str, gap: int) -> None:
    stream = make(base)
    begin, long, out_long = 30, BATCH * I, BATCH * O
    for out_begin in (begin - gap - out_long, begin + long + gap):  # before x and after it
        memory = torch.tensor(values(100))
        x = memory[begin:][:long].view(BATCH, I)
        right = expected(x.clone())
        stream.slow.clear()
        result = stream(x, out=memory[out_begin:][:out_long].view(BATCH, O))
        np.testing.assert_array_equal(result, right)
        assert served(stream, kind, slowly=gap < 0)


def test_the_output_may_be_the_next_input(base: Any, kind: str) -> None:
    stream = make(base)
    first = values(BATCH, I)
    stream.memory = torch.zeros(BATCH * I)
    x = stream.memory.view(BATCH, I).copy_(torch.tensor(first))
    np.testing.assert_array_equal(stream(x), expected(first))
    assert served(stream, kind, slowly=True)


@pytest.mark.parametrize("derived", [True, False])
def test_how_it_may_be_called(base: Any, derived: bool) -> None:
    stream = make(base)
    x, result = usual(), torch.zeros(BATCH, O)
    call = stream
    if not derived:  # the class itself, which Python calls another way
        if base is plain_door.Door:
            pytest.skip("one way in Python")
        sizes = stream.sizes | {"features": I, "outputs": O}
        call = base(kernel=stream.kernel.address, block=ctypes.addressof(stream.block), **sizes)
    name = "".join(["o", "ut"])  # not the same string
    assert call(x=x, out=result, slots=None) is result
    assert call(x, **{name: result}) is result
    for arguments, options, message in (
        ((), {}, "missing 1 required positional argument: 'x'"),
        ((), {"out": x}, "missing 1 required positional argument: 'x'"),
        ((x, x), {}, "positional argument"),
        ((x,), {"x": x}, "multiple values for argument 'x'"),
        ((x,), {"other": x}, "unexpected keyword argument 'other'"),
    ):
        with pytest.raises(TypeError, match=message):
            call(*arguments, **options)
    assert len(stream.kernel.calls) == 2


GOOD = {
    "kernel": 8,
    "block": 8,
    "features": 1,
    "outputs": 1,
    "steps": 1,
    "batch": 1,
    "batch_first": False,
    "slots": 0,
    "work": 0,
}


@pytest.mark.parametrize("name", [name for name in GOOD if name != "batch_first"])
def test_wrong_sizes_are_refused(base: Any, name: str) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        base(**GOOD | {name: -1 if name in ("slots", "work") else 0})
    with pytest.raises(TypeError):
        base(**{key: value for key, value in GOOD.items() if key != name})
    with pytest.raises(TypeError):
        base(*GOOD.values())
