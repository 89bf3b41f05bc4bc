"""What a stream is made and called with, and what is wrong with it: told before anything has changed."""

from __future__ import annotations

import array
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn.cells import library
from tests.streaming.streams import bits, same

INPUT, HIDDEN, BATCH, STEPS = 5, 9, 3, 4


@pytest.fixture(params=[False, True], ids=["", "batch_first"])
def stream(request: pytest.FixtureRequest) -> Any:
    module = fastrnn.LSTM(INPUT, HIDDEN, batch_first=request.param)
    with fastrnn.stream(module, batch=BATCH, steps=STEPS) as made:
        made(torch.randn(BATCH, INPUT))
        yield made


def freed(*sizes: int) -> Tensor:
    tensor = torch.ones(sizes)
    tensor.untyped_storage().resize_(0)
    return tensor


def unchanged(stream: fastrnn.Stream, error: type[Exception], text: str, *arguments: Any, **options: Any) -> None:
    y = stream._output.clone()
    before = bits(stream.state)
    with pytest.raises(error, match=text):
        stream(*arguments, **options)
    assert all(torch.equal(*pair) for pair in zip(before, bits(stream.state), strict=True))
    assert same(stream._output, y)


X = torch.ones(BATCH, INPUT)
WRONG_INPUTS: list[tuple[Any, type[Exception], str]] = [
    (X.double(), ValueError, "x must be float32, got float64"),
    (X.half(), ValueError, "x must be float32, got float16"),
    (X.long(), ValueError, "x must be float32, got int64"),
    (X.bool(), ValueError, "x must be float32, got bool"),
    (X.to(torch.complex64), ValueError, "x must be float32, got complex64"),
    (X.to("meta"), ValueError, "x must be on the CPU, got meta"),
    (X.to_sparse(), RuntimeError, "x must be dense"),
    (X.to_mkldnn(), RuntimeError, "x must be dense"),
    (freed(BATCH, INPUT), RuntimeError, "freed"),
    (X[0], ValueError, "2D or 3D, got 1D"),
    (X[0, 0], ValueError, "2D or 3D, got 0D"),
    (X[None, None], ValueError, "2D or 3D, got 4D"),
    (X[:, :4], RuntimeError, "Expected 5, got 4"),
    (X.new_ones(BATCH, 0), RuntimeError, "Expected 5, got 0"),
    (X[:2], RuntimeError, "a batch of 3, got 2"),
    (X[:0], RuntimeError, "a batch of 3, got 0"),
    ("abc", TypeError, "buffer protocol, got str"),
    (None, TypeError, "buffer protocol, got NoneType"),
    (1.5, TypeError, "buffer protocol, got float"),
    (X.tolist(), TypeError, "buffer protocol, got list"),
    (b"abcd", ValueError, "float32, got uint8"),
    (X.double().numpy(), ValueError, "float32, got float64"),
    (X.numpy().astype(">f4"), ValueError, "float32, got >f4"),
    (X.numpy().astype(np.complex64), ValueError, "float32, got complex64"),
    (np.array([[None]]), ValueError, "float32, got object"),
    (np.array("2020", dtype="datetime64[D]"), TypeError, "buffer protocol, got ndarray"),
    (array.array("f", [1.0] * 15), ValueError, "2D or 3D, got 1D"),
]


@pytest.mark.parametrize("case", range(len(WRONG_INPUTS)), ids=lambda i: WRONG_INPUTS[i][2])
def test_wrong_inputs(stream: fastrnn.Stream, case: int) -> None:
    x, error, text = WRONG_INPUTS[case]
    unchanged(stream, error, text, x)


def test_wrong_numbers_of_steps(stream: fastrnn.Stream) -> None:
    def laid_out(steps: int, batch: int) -> Tensor:
        return torch.ones((batch, steps, INPUT) if stream.module.batch_first else (steps, batch, INPUT))

    unchanged(stream, RuntimeError, "larger than 0", laid_out(0, BATCH))
    unchanged(stream, RuntimeError, "at most 4 steps, got 5", laid_out(5, BATCH))
    unchanged(stream, RuntimeError, "a batch of 3, got 4", laid_out(STEPS, 4))


Y = torch.ones(BATCH, HIDDEN)


def read_only() -> Any:
    made = np.zeros((BATCH, HIDDEN), np.float32)
    made.flags.writeable = False
    return made


WRONG_OUTPUTS: list[tuple[Any, type[Exception], str]] = [
    (Y.double(), ValueError, "out must be float32, got float64"),
    (Y.to("meta"), ValueError, "out must be on the CPU"),
    (Y.to_sparse(), RuntimeError, "out must be dense"),
    (freed(BATCH, HIDDEN), RuntimeError, "freed"),
    (Y[:, :8], ValueError, r"shape \(3, 9\), got \(3, 8\)"),
    (Y[None], ValueError, r"shape \(3, 9\), got \(1, 3, 9\)"),
    (Y.T, ValueError, "shape"),
    (Y.clone().requires_grad_(), RuntimeError, "require gradients"),
    (torch.ones(1, HIDDEN).expand(BATCH, HIDDEN), RuntimeError, "expanded"),
    (torch.ones(BATCH, 1).expand(BATCH, HIDDEN), RuntimeError, "expanded"),
    (read_only(), ValueError, "writable"),
    (b"a" * 108, ValueError, "float32, got uint8"),
    (np.ones((HIDDEN, BATCH), np.float32), ValueError, "shape"),
    (np.ones((BATCH, HIDDEN), np.float64), ValueError, "float32"),
    (np.ones((BATCH, HIDDEN), np.float32)[::-1], ValueError, "strides"),
    ("abc", TypeError, "buffer protocol"),
    ([0.0], TypeError, "buffer protocol"),
]


@pytest.mark.parametrize("case", range(len(WRONG_OUTPUTS)), ids=lambda i: WRONG_OUTPUTS[i][2])
def test_wrong_outputs(stream: fastrnn.Stream, case: int) -> None:
    out, error, text = WRONG_OUTPUTS[case]
    unchanged(stream, error, text, X, out=out)


def test_wrong_keywords(stream: fastrnn.Stream) -> None:
    for arguments, options in (((), {}), ((X, X), {}), ((X,), {"hx": X}), ((X,), {"x": X})):
        unchanged(stream, TypeError, "argument", *arguments, **options)
    assert same(stream(x=X), stream._output[: BATCH * HIDDEN].view(BATCH, HIDDEN))


def inputs(x: Tensor) -> dict[str, Any]:
    """The same numbers in other memory."""
    read_only = x.numpy().copy()
    read_only.flags.writeable = False
    spaced = torch.zeros(*x.shape[:-1], 2 * x.shape[-1])
    spaced[..., ::2] = x
    bytes_off = bytearray(x.numel() * 4 + 1)
    unaligned = np.ndarray(tuple(x.shape), np.float32, bytes_off, offset=1)
    unaligned[...] = x.numpy()
    return {
        "tensor": x,
        "parameter": nn.Parameter(x.clone()),
        "requires grad": x.clone().requires_grad_(),
        "of a graph": x.clone().requires_grad_() * 1,
        "strided": spaced[..., ::2],
        "transposed": x.transpose(0, 1).contiguous().transpose(0, 1),
        "negative": torch.complex(torch.zeros_like(x), -x).conj().imag,
        "numpy": x.numpy(),
        "read-only": read_only,
        "reversed": x.flip(0).numpy()[::-1],
        "Fortran's": np.asfortranarray(x.numpy()),
        "strided numpy": spaced.numpy()[..., ::2],
        "unaligned": unaligned,
        "memoryview": memoryview(x.numpy()),
        "of a class": x.clone().as_subclass(type("Mine", (Tensor,), {})),
    }


@pytest.mark.parametrize("name", inputs(X))
@pytest.mark.parametrize("steps", [0, STEPS])
def test_inputs_in_any_memory(stream: fastrnn.Stream, name: str, steps: int) -> None:
    x = torch.randn(BATCH, INPUT)
    if steps:
        x = torch.randn((BATCH, steps, INPUT) if stream.module.batch_first else (steps, BATCH, INPUT))
    stream.reset()
    expected = stream(x).clone()
    stream.reset()
    given = inputs(x)[name]
    y = stream(given)
    assert type(y) is Tensor
    assert not y.requires_grad
    assert same(y, expected)
    assert np.array_equal(
        np.asarray(given.detach().resolve_neg() if isinstance(given, Tensor) else given), x
    )  # as it was


def test_one_unaligned_number() -> None:
    """Where a contiguous view has no stride to tell by."""
    with fastrnn.stream(fastrnn.LSTM(1, 4)) as stream:
        x = torch.randn(1, 1)
        expected = stream(x).clone()
        for name, given in inputs(x).items():
            stream.reset()
            assert same(stream(given), expected), name


@pytest.mark.parametrize(
    "made",
    [
        lambda *sizes: torch.full(sizes, 7.0),
        lambda *sizes: np.full(sizes, 7.0, np.float32),
        lambda *sizes: memoryview(np.full(sizes, 7.0, np.float32)),
        lambda *sizes: torch.full((*sizes, 2), 7.0)[..., 0],
        lambda *sizes: torch.full(sizes[::-1], 7.0).permute(*range(len(sizes))[::-1]),
        lambda *sizes: torch.zeros(sizes, dtype=torch.complex64).conj().imag,
        lambda *sizes: np.full((*sizes, 2), 7.0, np.float32)[..., 0],
        lambda *sizes: np.ndarray(sizes, np.float32, bytearray(np.prod(sizes).item() * 4 + 1), offset=1),
        lambda *sizes: torch.full(sizes, 7.0).requires_grad_().detach(),
    ],
)
@pytest.mark.parametrize("steps", [0, 3])
def test_outputs_in_any_memory(stream: fastrnn.Stream, made: Callable[..., Any], steps: int) -> None:
    first = (BATCH, steps) if stream.module.batch_first else (steps, BATCH)
    x = torch.randn(*(first if steps else (BATCH,)), INPUT)
    stream.reset()
    expected, states = stream(x).clone(), stream.state
    out = made(*expected.shape)
    stream.reset()
    assert stream(x, out=out) is out
    assert torch.equal(torch.as_tensor(np.asarray(out) if not isinstance(out, Tensor) else out), expected)
    assert same(stream.state, states)


def test_an_output_as_the_next_input() -> None:
    module = fastrnn.LSTM(INPUT, INPUT, 2)
    with fastrnn.stream(module, batch=2, steps=40) as stream:
        x = torch.randn(40, 2, INPUT)
        y = x.clone()
        for _ in range(4):
            y = stream(y)
        output, states = y.clone(), stream.state
        stream.reset()
        z = x.clone()
        for _ in range(4):
            z = stream(z.clone()).clone()
        assert same(output, z)
        assert same(stream.state, states)
        stream.reset()
        w = x.clone()
        for _ in range(4):
            assert stream(w, out=w) is w
        assert same(w, z)


def test_outputs_that_share_memory() -> None:
    """With the input, some numbers further, or with the stream's own output; of more steps than are read at a time."""
    module = fastrnn.GRU(INPUT, INPUT)
    with fastrnn.stream(module, batch=2, steps=40) as stream:
        x = torch.randn(40, 2, INPUT)
        expected = stream(x).clone()
        memory = torch.zeros(x.numel() + 40)
        for offset in (0, 1, 16, 39):
            stream.reset()
            given = memory[: x.numel()].view_as(x)
            given.copy_(x)
            out = memory[offset : offset + x.numel()].view_as(x)
            assert same(stream(given, out=out), expected), offset
        stream.reset()
        assert same(stream(x, out=stream._output.view(40, 2, INPUT)), expected)
        stream.reset()
        spread = stream._output.view(2, 40, INPUT).transpose(0, 1)  # the same memory in another order
        assert same(stream(x, out=spread), expected)


def test_wrong_arguments_of_streams() -> None:
    module = fastrnn.LSTM(INPUT, HIDDEN)
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"batch": 0}, ValueError, "batch must be at least 1, got 0"),
        ({"batch": -3}, ValueError, "batch must be at least 1"),
        ({"batch": 1.0}, TypeError, "batch should be of type int"),
        ({"batch": None}, TypeError, "batch should be of type int"),
        ({"batch": True}, TypeError, "batch should be of type int"),
        ({"steps": 0}, ValueError, "steps must be at least 1"),
        ({"steps": "2"}, TypeError, "steps should be of type int"),
        ({"threads": 0}, ValueError, "threads must be at least 1"),
        ({"slots": 0}, ValueError, "slots must be at least 1"),
        ({"slots": [1]}, TypeError, "slots should be of type int"),
        ({"weights": "float64"}, ValueError, "'float32', 'float16', 'int8', got 'float64'"),
        ({"weights": torch.int8}, ValueError, "weights must be one of"),
        ({"weights": None}, ValueError, "weights must be one of"),
        ({"weight": "int8"}, TypeError, "unexpected keyword"),
    ]
    for options, error, text in wrong:
        with pytest.raises(error, match=text):
            fastrnn.stream(module, **options)
    with pytest.raises(TypeError, match="positional"):
        fastrnn.stream(module, 2)  # type: ignore[misc]


def sparse(module: Any) -> Any:
    """With a parameter that is."""
    module.weight_hh_l0 = nn.Parameter(module.weight_hh_l0.detach().to_sparse())
    return module


@pytest.mark.parametrize(
    ("made", "error", "text"),
    [
        (lambda: fastrnn.LSTM(3, 4, bidirectional=True), ValueError, "unidirectional"),
        (lambda: nn.GRU(3, 4, bidirectional=True), ValueError, "unidirectional"),
        (lambda: nn.Linear(3, 4), TypeError, "recurrent layer or cell, got Linear"),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.LSTM(4, 4)), TypeError, "it holds '1': make a stream of each"),
        (lambda: nn.Sequential(fastrnn.GRU(3, 4)), TypeError, "it holds '0'"),
        (lambda: torch.ones(3), TypeError, "got Tensor"),
        (lambda: None, TypeError, "got NoneType"),
        (lambda: fastrnn.LSTM, TypeError, "got type"),
        (lambda: fastrnn.LSTM(3, 4).double(), ValueError, "float32 on the CPU, got float64 on cpu"),
        (lambda: fastrnn.LSTM(3, 4).bfloat16(), ValueError, "got bfloat16"),
        (lambda: nn.LSTM(3, 4, device="meta"), ValueError, "float32 on meta"),
        (lambda: fastrnn.Recurrent(library.zoneout_lstm, 3, 4), ValueError, "takes keep_h, keep_c in every step"),
        (lambda: torch.compile(nn.LSTM(3, 4), backend="eager"), TypeError, "must be a recurrent layer"),
        (lambda: sparse(fastrnn.LSTM(3, 4)), RuntimeError, "dense"),
    ],
)
def test_modules_that_cannot_be_streamed(made: Callable[[], Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        fastrnn.stream(made())
