"""torch's own samples of its recurrent modules, given to fastrnn's.

They are what torch's tests construct and call each module with (`torch.testing._internal.common_modules`), and which
mistakes they expect which errors for. The checks are those that torch runs over them. Three of these torch expects to
fail for cuDNN's layers (gradients under `vmap`, second gradients, non-contiguous states): none is left out here, on a
GPU by Triton's kernels, since `auto` takes cuDNN's there.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.rnn import PackedSequence

import fastrnn
from tests.selection import exhaustive
from tests.tolerances import assert_accurate
from tests.torch_parity import assert_close, assert_same_error, clone, error_of, gradients, tensors

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
modules = pytest.mark.parametrize("name", ["RNN", "GRU", "LSTM", "RNNCell", "GRUCell", "LSTMCell"])
lstm_first = pytest.mark.parametrize("name", [*exhaustive("RNN", "GRU", "RNNCell", "GRUCell"), "LSTM", "LSTMCell"])
places = pytest.mark.parametrize(
    ("device", "backend"),
    [
        pytest.param(CPU, "auto", id="cpu-auto"),
        pytest.param(CPU, "numba", id="cpu-numba"),
        pytest.param(GPU, "auto", id="gpu-auto", marks=needs_gpu),
        pytest.param(GPU, "triton", id="gpu-triton", marks=needs_gpu),
    ],
)

own_kernels = pytest.mark.parametrize(
    ("device", "backend"),
    [pytest.param(CPU, "numba", id="cpu-numba"), pytest.param(GPU, "triton", id="gpu-triton", marks=needs_gpu)],
)


@cache
def torchs_table() -> dict[str, Any]:
    """torch's entry for each module. Importing it takes seconds, which those who only collect tests need not wait."""
    # It forbids the whole process to set global flags, which is torch's rule for torch's tests.
    with mock.patch("torch.backends.disable_global_flags"):
        from torch.testing._internal.common_modules import module_db

    return {info.module_cls.__name__: info for info in module_db if info.module_cls.__module__ == nn.RNN.__module__}


def samples(
    name: str,
    device: torch.device = CPU,
    dtype: torch.dtype = torch.float64,
    grad: bool = False,
    training: bool = True,
    backend: str = "auto",
) -> list[Any]:
    """What torch constructs and calls the module with, its packed sequences included, as far as the backend goes."""
    info = torchs_table()[name]
    found = list(info.module_inputs_func(info, device, dtype, grad, training))
    if name in ("RNN", "GRU"):
        every = info.module_inputs_func(info, device, dtype, grad, training, with_packed_sequence=True)
        found += [sample for sample in every if isinstance(sample.forward_input.args[0], PackedSequence)]
    if backend == "triton":
        found = [sample for sample in found if not sample.constructor_input.kwargs.get("proj_size")]
    assert found
    return found


@contextmanager
def naming(sample: Any) -> Iterator[None]:
    """Says in a failure which of many samples it is about."""
    try:
        yield
    except Exception as error:
        given, called = sample.constructor_input, sample.forward_input
        shapes = [tuple(tensor.shape) for tensor in tensors(called.args)] if called else None
        raise AssertionError(f"constructed with {given.args} {given.kwargs}, called with {shapes}: {error}") from error


def build(source: Any, name: str, sample: Any, **options: Any) -> nn.Module:
    given = sample.constructor_input
    return getattr(source, name)(*given.args, **{**given.kwargs, **options})


def pair(
    name: str, sample: Any, device: torch.device, dtype: torch.dtype, backend: str, training: bool = True
) -> tuple[nn.Module, nn.Module]:
    """fastrnn's module and torch's of one sample, with equal weights."""
    theirs = build(nn, name, sample, device=device, dtype=dtype).train(training)
    ours = build(fastrnn, name, sample, device=device, dtype=dtype, backend=backend).train(training)
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def call(module: nn.Module, sample: Any) -> Any:
    return module(*sample.forward_input.args, **sample.forward_input.kwargs)


def widened(value: Any) -> Any:
    """Tensors, tuples and packed sequences in float64."""
    if isinstance(value, PackedSequence):
        return PackedSequence(value.data.double(), *value[1:])
    return tuple(map(widened, value)) if isinstance(value, tuple) else value.double()


def moved(value: Any, device: torch.device) -> Any:
    """Tensors, tuples and packed sequences on a device."""
    return tuple(moved(part, device) for part in value) if type(value) is tuple else value.to(device)


@modules
@places
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")  # torch's, of its own kernel
@pytest.mark.parametrize(
    ("dtype", "training"),
    [
        (torch.float64, True),
        (torch.float32, True),
        (torch.float32, False),
        (torch.bfloat16, True),
        (torch.float16, True),
    ],
    ids=["float64", "float32", "float32-eval", "bfloat16", "float16"],
)
def test_forward(name: str, device: torch.device, backend: str, dtype: torch.dtype, training: bool) -> None:
    for sample in samples(name, device, dtype, training=training, backend=backend):
        with naming(sample), torch.no_grad():
            ours, theirs = pair(name, sample, device, dtype, backend, training)
            results, expected = call(ours, sample), call(theirs, sample)
            truth = theirs.double()(*widened(sample.forward_input.args))
            for result, one, other in zip(*map(tensors, (results, truth, expected)), strict=True):
                assert_accurate(name, result, one, other)
            if sample.reference_fn is not None and not isinstance(sample.forward_input.args[0], PackedSequence):
                alone = sample.reference_fn(ours, *sample.forward_input.args)
                for result, one, other in zip(*map(tensors, (alone, truth, expected)), strict=True):
                    assert_accurate(f"{name} in a batch of one", result, one, other)


@modules
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("device", [CPU, pytest.param(GPU, marks=needs_gpu)], ids=str)
def test_mistakes(name: str, device: torch.device, dtype: torch.dtype) -> None:
    info = torchs_table()[name]
    mistakes = list(info.module_error_inputs_func(info, device, dtype, False, True))
    assert mistakes
    for mistake in mistakes:
        with naming(mistake.module_error_input):
            if mistake.error_on.name == "CONSTRUCTION_ERROR":
                ours, theirs = (lambda s=s, m=mistake: build(s, name, m.module_error_input) for s in (fastrnn, nn))
            else:
                made = [build(source, name, mistake.module_error_input).to(device) for source in (fastrnn, nn)]
                ours, theirs = (lambda made=made, m=mistake: call(made, m.module_error_input) for made in made)
            with pytest.raises(mistake.error_type, match=mistake.error_regex):
                ours()
            assert type(error_of(ours)) is mistake.error_type
            assert_same_error(ours, theirs)


def scattered(value: Any) -> Any:
    """The same values with every other place in memory between them; tuples and packed sequences of such."""
    if isinstance(value, PackedSequence):
        return PackedSequence(scattered(value.data), *value[1:])
    if isinstance(value, tuple):
        return tuple(map(scattered, value))
    spread = torch.stack([value.detach(), torch.full_like(value, float("nan"))], -1)[..., 0]
    assert value.numel() < 2 or not spread.is_contiguous()
    return spread.requires_grad_(value.requires_grad)


@modules
@own_kernels
def test_non_contiguous_input_and_states(name: str, device: torch.device, backend: str) -> None:
    for sample in samples(name, device, grad=True, backend=backend):
        with naming(sample):
            ours, _ = pair(name, sample, device, torch.float64, backend)
            outcomes = []
            for arguments in (clone(sample.forward_input.args), scattered(sample.forward_input.args)):
                results = ours(*arguments)
                wanted = [*tensors(arguments), *ours.parameters()]
                outcomes.append([*tensors(results), *gradients(results, wanted)])
            assert_close(*outcomes)


def as_function(module: nn.Module, sample: Any) -> tuple[Callable[..., tuple[Tensor, ...]], list[Tensor]]:
    """A function of tensors alone, as gradcheck wants it, and the tensors: the sample's own, and every parameter."""
    given = sample.forward_input.args
    own, names = tensors(given), [name for name, _ in module.named_parameters()]

    def refilled(value: Any, each: Iterator[Tensor]) -> Any:
        if isinstance(value, PackedSequence):
            return PackedSequence(next(each), *value[1:])
        return tuple(refilled(part, each) for part in value) if isinstance(value, tuple) else next(each)

    def function(*flat: Tensor) -> tuple[Tensor, ...]:
        values = dict(zip(names, flat[len(own) :], strict=True))
        return tuple(tensors(functional_call(module, values, refilled(given, iter(flat)))))

    leaves = [tensor.detach().clone().requires_grad_() for tensor in (*own, *module.parameters())]
    return function, leaves


def is_typical(sample: Any) -> bool:
    """Whether it has biases, time first and both directions: the other samples tell the costly checks nothing new."""
    options = sample.constructor_input.kwargs
    return bool(
        options.get("bias", True) and not options.get("batch_first", False) and options.get("bidirectional", True)
    )


@modules
@own_kernels
@pytest.mark.filterwarnings(
    "ignore:`torch.jit.script` is deprecated"
)  # torch's own rules for forward mode are scripted
def test_gradients(name: str, device: torch.device, backend: str) -> None:
    """Against differences; of typical samples also many gradients at once, by `vmap`, and forward mode."""
    for sample in samples(name, device, backend=backend):
        with naming(sample):
            function, leaves = as_function(pair(name, sample, device, torch.float64, backend)[0], sample)
            more = is_typical(sample) and not isinstance(sample.forward_input.args[0], PackedSequence)
            assert torch.autograd.gradcheck(
                function, leaves, fast_mode=True, check_batched_grad=more, check_forward_ad=more
            )


@lstm_first
@own_kernels
def test_second_gradients(name: str, device: torch.device, backend: str) -> None:
    for sample in filter(is_typical, samples(name, device, backend=backend)):
        with naming(sample):
            function, leaves = as_function(pair(name, sample, device, torch.float64, backend)[0], sample)
            assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


@modules
def test_pickled_modules_compute_the_same(name: str) -> None:
    for sample in samples(name, training=False):
        with naming(sample):
            ours, _ = pair(name, sample, CPU, torch.float64, "numba", training=False)
            other = pickle.loads(pickle.dumps(ours))
            assert not other.training
            assert_close(tensors(call(other, sample)), tensors(call(ours, sample)), tolerance=0)


@modules
def test_names_itself_as_torchs(name: str) -> None:
    for sample in samples(name):
        ours, theirs = build(fastrnn, name, sample), build(nn, name, sample)
        assert (repr(ours), str(ours)) == (repr(theirs), str(theirs))


@modules
@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize("swap", [False, True], ids=["data", "swapped"])
@pytest.mark.parametrize("device", [CPU, pytest.param(GPU, marks=needs_gpu)], ids=str)
def test_to_another_dtype_and_device_and_back(name: str, swap: bool, device: torch.device) -> None:
    """As `nn.Module.to` does it: with new data in the old parameters, or with the parameters' contents exchanged."""

    def convert(module: nn.Module, *target: Any) -> None:
        with mock.patch.object(torch.__future__, "get_swap_module_params_on_conversion", return_value=swap):
            module.to(*target)

    for sample in samples(name, dtype=torch.float32):
        with naming(sample):
            ours, theirs = pair(name, sample, CPU, torch.float32, "auto")
            arguments = sample.forward_input.args
            ours(*arguments)
            before = [id(parameter) for parameter in ours.parameters()]
            for module in (ours, theirs):
                convert(module, device, torch.float64)
            assert {(p.device, p.dtype) for p in ours.parameters()} == {(device, torch.float64)}
            assert [id(parameter) for parameter in ours.parameters()] == before
            wide = moved(widened(arguments), device)
            assert_close(tensors(ours(*wide)), tensors(theirs(*wide)))
            for module in (ours, theirs):
                convert(module, CPU, torch.float32)
            assert_close(tensors(ours(*arguments)), tensors(theirs(*arguments)), tolerance=1e-6)


@modules
def test_device_and_dtype_arguments_reach_every_parameter(name: str) -> None:
    for sample in samples(name):
        for options in ({"device": "meta", "dtype": torch.float64}, {"dtype": torch.bfloat16}, {"device": "meta"}):
            ours, theirs = (build(source, name, sample, **options) for source in (fastrnn, nn))
            described = [
                [(n, p.shape, p.dtype, p.device, p.requires_grad) for n, p in module.named_parameters()]
                for module in (ours, theirs)
            ]
            assert described[0] == described[1]


@modules
def test_state_dicts_and_their_hooks(name: str) -> None:
    """Every kind of hook around `state_dict` and `load_state_dict` is called, and may change what is saved."""
    for sample in samples(name):
        with naming(sample):
            ours, theirs = pair(name, sample, CPU, torch.float64, "numba")
            called: list[str] = []
            ours.register_state_dict_pre_hook(lambda *_, called=called: called.append("before saving"))

            def doubled(module: nn.Module, state: dict[str, Tensor], *_: Any, called: list[str] = called) -> None:
                called.append("after saving")
                state.update({key: 2 * value for key, value in state.items()})

            ours.register_state_dict_post_hook(doubled)
            ours.register_load_state_dict_pre_hook(lambda *_, called=called: called.append("before loading"))
            ours.register_load_state_dict_post_hook(lambda *_, called=called: called.append("after loading"))
            theirs.load_state_dict(ours.state_dict())
            ours.load_state_dict(theirs.state_dict())
            assert called == ["before saving", "after saving", "before loading", "after loading"]
            assert_close(tensors(call(ours, sample)), tensors(call(theirs, sample)))


@modules
@needs_gpu
@pytest.mark.gpu
def test_cpu_and_gpu_agree(name: str) -> None:
    for sample in samples(name, grad=True):
        with naming(sample):
            on_cpu, _ = pair(name, sample, CPU, torch.float64, "auto")
            on_gpu, _ = pair(name, sample, GPU, torch.float64, "auto")
            on_gpu.load_state_dict(on_cpu.state_dict())
            outcomes = []
            for module, device in ((on_cpu, CPU), (on_gpu, GPU)):
                arguments = clone(moved(sample.forward_input.args, device))
                results = module(*arguments)
                loss = sum(tensor.square().sum() for tensor in tensors(results))
                wanted = [*tensors(arguments), *module.parameters()]
                outcomes.append([t.cpu() for t in (*tensors(results), *torch.autograd.grad(loss, wanted))])
            assert_close(*outcomes)


@modules
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_moves_between_gpus(name: str) -> None:
    for sample in samples(name, GPU):
        with naming(sample):
            ours, theirs = pair(name, sample, GPU, torch.float64, "auto")
            expected = tensors(call(theirs, sample))
            second = torch.device("cuda", 1)
            results = tensors(ours.to(second)(*moved(sample.forward_input.args, second)))
            assert {result.device for result in results} == {second}
            assert_close([result.to(GPU) for result in results], expected)


def test_torch_expects_cudnn_to_fail_where_the_page_says() -> None:
    """docs/torch.md, note c."""
    for name in ("RNN", "GRU", "LSTM"):
        expected = {mark.test_name for mark in torchs_table()[name].decorators if mark.device_type == "cuda"}
        assert {"test_grad", "test_gradgrad", "test_non_contiguous_tensors"} <= expected
