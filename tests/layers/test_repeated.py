"""Repeated calls in inference: what is remembered of a call never outlives what was checked."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from fastrnn import backends
from fastrnn.backends import module
from fastrnn.binding import memory
from fastrnn.binding.plans import Torch
from tests.plans import plans_of
from tests.torch_parity import assert_close

pytestmark = [
    pytest.mark.skipif(bool(module("numba").ready()), reason="no Numba"),
    pytest.mark.usefixtures("without_gradients"),
]

KINDS = ("LSTM", "GRU", "RNN")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"num_layers": 3},
    {"batch_first": True, "num_layers": 2},
    {"bias": False, "dtype": torch.float64},
]
INPUT, HIDDEN = 5, 19
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}


@pytest.fixture
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def like_torch(kind: str, backend: str | None = None, **options: Any) -> tuple[nn.Module, nn.Module]:
    ours = getattr(fastrnn, kind)(INPUT, HIDDEN, backend=backend, **options).eval()
    theirs = getattr(nn, kind)(INPUT, HIDDEN, **options).eval()
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def inputs(batch: int | None, count: int, options: dict[str, Any], steps: int = 1) -> list[Tensor]:
    shape = (steps,) if batch is None else (batch, steps) if options.get("batch_first") else (steps, batch)
    return [torch.randn(*shape, INPUT, dtype=options.get("dtype")) for _ in range(count)]


def carry(ours: nn.Module, theirs: nn.Module, sequences: list[Tensor]) -> None:
    """Both get the sequences one after the other, and the state that they gave before."""
    state = expected_state = None
    for x in sequences:
        output, state = ours(x, state)
        expected, expected_state = theirs(x, expected_state)
        assert_close((output, state), (expected, expected_state), TOLERANCE[x.dtype])
        assert output.shape == expected.shape
        assert output.stride() == expected.stride()
        assert output.data_ptr() != (state[0] if isinstance(state, tuple) else state).data_ptr()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("batch", [None, 1, 3])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_layers(kind: str, options: dict[str, Any], batch: int | None, mode: Any, usual_way: list[str]) -> None:
    ours, theirs = like_torch(kind, **options)
    with mode():
        carry(ours, theirs, inputs(batch, 4, options))
    assert len(usual_way) == 1


@pytest.mark.parametrize("batch", [None, 1, 3])
@pytest.mark.parametrize("steps", [2, 7])
@pytest.mark.parametrize("options", [*OPTIONS, {"bidirectional": True, "num_layers": 2, "batch_first": True}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_sequences(kind: str, options: dict[str, Any], steps: int, batch: int | None, usual_way: list[str]) -> None:
    ours, theirs = like_torch(kind, **options, backend="numba")
    carry(ours, theirs, inputs(batch, 3, options, steps))
    assert len(usual_way) == 1


@pytest.mark.parametrize("batch", [None, 3])
@pytest.mark.parametrize("options", [*OPTIONS, {"bidirectional": True, "batch_first": True}], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_torch_is_still_preferred(
    kind: str, options: dict[str, Any], batch: int | None, monkeypatch: pytest.MonkeyPatch, usual_way: list[str]
) -> None:
    monkeypatch.setattr(backends, "why_torch", lambda *_, **__: "it is faster")
    ours, theirs = like_torch(kind, **options)
    carry(ours, theirs, inputs(batch, 3, options, steps=40))
    assert isinstance(plans_of(ours)[0], Torch)
    assert len(usual_way) == 1


@pytest.mark.parametrize("batch", [None, 1, 3])
@pytest.mark.parametrize("options", [{}, {"bias": False}, {"dtype": torch.float64}], ids=str)
@pytest.mark.parametrize("kind", ["LSTMCell", "GRUCell", "RNNCell"])
def test_cells(kind: str, options: dict[str, Any], batch: int | None, usual_way: list[str]) -> None:
    ours, theirs = like_torch(kind, **options)
    state = expected = None
    for _ in range(4):
        x = torch.randn(*(() if batch is None else (batch,)), INPUT, dtype=options.get("dtype"))
        state, expected = ours(x, state), theirs(x, expected)
        assert_close(state, expected, TOLERANCE[x.dtype])
    assert len(usual_way) == 1


def test_relu() -> None:
    ours, theirs = like_torch("RNN", nonlinearity="relu")
    for x in inputs(2, 3, {}):
        assert_close(ours(x), theirs(x), 2e-6)


def warm(kind: str = "LSTM", **options: Any) -> tuple[nn.Module, nn.Module, Tensor]:
    """A pair of modules, and an input of the shape that ours remembers a step of."""
    ours, theirs = like_torch(kind, **options)
    x = inputs(2, 1, options)[0]
    ours(x)
    assert plans_of(ours)
    return ours, theirs, x


def change_in_place(ours: nn.Module) -> None:
    ours.weight_ih_l0.mul_(0.5)


def change_data(ours: nn.Module) -> None:
    ours.weight_hh_l0.data.mul_(0.5)


def swap_data(ours: nn.Module) -> None:
    ours.bias_ih_l0.data = ours.bias_ih_l0.data * 0.5


def swap_parameter(ours: nn.Module) -> None:
    ours.weight_hh_l0 = nn.Parameter(ours.weight_hh_l0 * 0.5)


def swap_strides(ours: nn.Module) -> None:
    ours.weight_hh_l0.data = (ours.weight_hh_l0.data * 0.5).t().contiguous().t()


@pytest.mark.parametrize("change", [change_in_place, change_data, swap_data, swap_parameter, swap_strides])
def test_changed_parameters_take_effect(change: Any) -> None:
    ours, theirs, x = warm()
    change(ours)
    theirs.load_state_dict(ours.state_dict())
    for _ in range(2):
        assert_close(ours(x), theirs(x), 2e-6)


def test_another_dtype_takes_effect() -> None:
    ours, theirs, x = warm()
    ours.double()
    with pytest.raises(ValueError, match="does not match weight dtype"):
        ours(x)
    assert_close(ours(x.double()), theirs.double()(x.double()), 1e-6)


def test_other_values_by_functional_call_and_parametrization() -> None:
    ours, theirs, x = warm()
    halved = {name: parameter * 0.5 for name, parameter in ours.named_parameters()}
    expected = torch.func.functional_call(theirs, halved, (x,))
    assert_close(torch.func.functional_call(ours, halved, (x,)), expected, 2e-6)

    class Halved(nn.Module):
        def forward(self, w: Tensor) -> Tensor:
            return w * 0.5

    for lstm in (ours, theirs):
        nn.utils.parametrize.register_parametrization(lstm, "weight_hh_l0", Halved())
    assert_close(ours(x), theirs(x), 2e-6)


def test_the_argument_is_looked_at_every_time(usual_way: list[str]) -> None:
    ours, theirs, x = warm()
    h, c = torch.randn(1, 2, HIDDEN), torch.randn(1, 2, HIDDEN)
    strided = torch.randn(1, 2, 2 * HIDDEN)[..., ::2]
    negative = torch.randn(1, 2, HIDDEN, dtype=torch.complex64).conj().imag
    assert negative.is_neg()
    unusual = (
        (torch.randn(1, 2, 2 * INPUT)[..., ::2], (h, c)),
        (x, (strided, c)),
        (x, (h, negative)),
        (x, [h, c]),
        (torch.randn(1, 3, INPUT), None),
        (torch.randn(2, 2, INPUT), (h, c)),
    )
    for arguments in unusual:
        assert_close(ours(*arguments), theirs(*arguments), 2e-6)
    assert len(usual_way) == 1 + len(unusual)


@pytest.mark.parametrize(
    "arguments",
    [
        lambda x, h: (x, (h, h[:, :1])),
        lambda x, h: (x, (h,)),
        lambda x, h: (x, h),
        lambda x, h: (x.double(), (h, h)),
        lambda x, h: (x[..., :4], (h, h)),
        lambda x, h: (x, (h.double(), h)),
        lambda x, h: (x[0], (h, h)),
        lambda x, h: (x.to_sparse(), (h, h)),
        lambda x, h: (x[0, 0, 0], (h, h)),
    ],
)
def test_mistakes_are_still_mistakes(arguments: Any) -> None:
    ours, _, x = warm()
    cold = copy.deepcopy(ours)
    given = arguments(x, torch.zeros(1, 2, HIDDEN))
    with pytest.raises(Exception) as expected:  # noqa: PT011
        cold(*given)
    with pytest.raises(type(expected.value)) as got:
        ours(*given)
    assert str(got.value) == str(expected.value)


def test_options_are_looked_at_every_time(usual_way: list[str]) -> None:
    ours, theirs, x = warm(num_layers=2)
    with fastrnn.use_backend("reference"):
        assert_close(ours(x), theirs(x), 2e-6)
    ours.batch_first = theirs.batch_first = True
    assert_close(ours(x), theirs(x), 2e-6)
    assert len(usual_way) == 3


def test_another_nonlinearity_takes_effect() -> None:
    ours, theirs = like_torch("RNNCell")
    x = torch.randn(2, INPUT)
    for nonlinearity in ("tanh", "relu", "tanh"):
        ours.nonlinearity = theirs.nonlinearity = nonlinearity
        for _ in range(2):
            assert_close(ours(x), theirs(x), 2e-6)


def test_dropout_between_layers_is_not_forgotten() -> None:
    ours, _, x = warm(num_layers=2, dropout=0.5)
    ours.train()
    assert not torch.equal(ours(x)[0], ours(x)[0])


def test_gradients_are_not_forgotten() -> None:
    ours, _, x = warm()
    with torch.enable_grad():
        output, _ = ours(x)
        output.sum().backward()
    assert ours.weight_ih_l0.grad is not None


def test_autocast_and_the_profiler_are_seen() -> None:
    ours, _, x = warm()
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(x)[0].dtype == torch.bfloat16
    with torch.profiler.profile() as profile:
        ours(x)
    assert any("fastrnn" in event.key or "lstm" in event.key for event in profile.key_averages())


def test_another_number_of_threads_is_seen(usual_way: list[str]) -> None:
    ours, theirs, x = warm()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(before + 1)
        assert_close(ours(x), theirs(x), 2e-6)
    finally:
        torch.set_num_threads(before)
    assert len(usual_way) == 2


def test_modules_are_copied_and_saved_without_what_is_remembered() -> None:
    ours, theirs, x = warm()
    assert vars(ours).keys() == vars(like_torch("LSTM")[0]).keys()
    for other in (copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        other.weight_ih_l0.mul_(0.5)
        assert not torch.equal(other(x)[0], ours(x)[0])
        assert_close(ours(x), theirs(x), 2e-6)
    assert b"binding" not in pickle.dumps(ours)


def test_another_backend_takes_effect(usual_way: list[str]) -> None:
    """Torch's kernels may have been chosen for what is remembered."""
    module, x = fastrnn.LSTM(INPUT, HIDDEN, bidirectional=True), torch.randn(3, 2, INPUT)
    for backend, calls in (("auto", 1), ("auto", 1), ("numba", 2), ("numba", 3), ("numba", 3), ("reference", 4)):
        with fastrnn.use_backend(backend):
            module(x)
        assert len(usual_way) == calls


def test_another_shape_is_kept_when_it_comes_twice(usual_way: list[str]) -> None:
    ours, theirs, _ = warm()
    for steps, calls in ((3, 2), (4, 3), (5, 4), (5, 5), (5, 5), (1, 5), (3, 6), (3, 6)):
        x = inputs(2, 1, {}, steps)[0]
        assert_close(ours(x), theirs(x), 2e-6)
        assert len(usual_way) == calls


def test_what_is_remembered_goes_with_the_module() -> None:
    ours, _, _ = warm()
    count = len(memory._kept)
    del ours
    assert len(memory._kept) == count - 1


def test_hooks_run() -> None:
    ours, _, x = warm()
    seen = []
    ours.register_forward_hook(lambda *_: seen.append("called"))
    ours(x)
    assert seen == ["called"]


def test_a_step_in_a_compiled_graph() -> None:
    ours, theirs, x = warm()
    assert_close(torch.compile(ours, fullgraph=True, backend="eager")(x), theirs(x), 2e-6)


@pytest.mark.parametrize("kind", ["LSTM", "LSTMCell"])
def test_what_a_transform_left_behind_is_what_it_holds(kind: str) -> None:
    ours, theirs = like_torch(kind, backend="numba")
    x, left = torch.randn(2, INPUT) if kind == "LSTMCell" else inputs(2, 1, {}, 4)[0], []
    torch.func.grad(lambda x: (left.append(x), x.sum())[1])(x)
    for gradients in (True, False):
        with torch.set_grad_enabled(gradients):
            for argument in (left[0], x, left[0]):
                assert_close(ours(argument), theirs(argument), 2e-6)
