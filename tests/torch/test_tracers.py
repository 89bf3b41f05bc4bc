"""Those who take models apart: TorchScript, torch.fx and dynamic quantization."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrnn
from tests.tools.test_ecosystem import First, arguments, features, models
from tests.torch_parity import BATCH, INPUT, TIME, assert_close, gradients, modules, pair, random, tensors

scripting = pytest.mark.filterwarnings(
    "ignore:`torch.jit.(script|trace|trace_method|save|load)` is deprecated:DeprecationWarning"
)


@modules
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
def test_dynamic_quantization_leaves_them_as_they_are(kind: str) -> None:
    """It goes by torch.nn's own classes; `fastrnn.to_torch` gives it those."""
    ours, _ = models(kind, dtype=torch.float32)
    quantized = torch.ao.quantization.quantize_dynamic(ours, {nn.Linear, nn.RNN, nn.GRU, nn.LSTM, nn.LSTMCell})
    x = torch.randn(*([BATCH, INPUT] if kind.endswith("CELL") else [TIME, BATCH, INPUT]))
    assert type(quantized[0]) is not nn.Linear
    assert type(quantized[1]) is type(ours[1])
    assert_close(tensors(quantized[1](x)), tensors(ours[1](x)), tolerance=0)
    assert quantized(features(kind, torch.float32)).isfinite().all()


class Leaves(torch.fx.Tracer):
    """Takes fastrnn's modules as they are, as torch.fx does torch.nn's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (nn.RNNBase, nn.RNNCellBase, First)) or super().is_leaf_module(m, module_qualified_name)


@modules
def test_symbolic_traces(kind: str) -> None:
    """Refused, unless the tracer takes the modules for leaves."""
    ours, theirs = models(kind)
    with pytest.raises((TypeError, torch.fx.proxy.TraceError), match=r"got Proxy|symbolically traced variables"):
        torch.fx.symbolic_trace(ours)
    traced = torch.fx.GraphModule(ours, Leaves().trace(ours))
    x = features(kind)
    assert [node.op for node in traced.graph.nodes].count("call_module") >= 3
    assert_close(traced(x), theirs(x))


@modules
@scripting
def test_torchscript_is_refused_by_name(kind: str) -> None:
    ours, _ = models(kind)
    for given in (ours, ours[1]):
        with pytest.raises(
            NotImplementedError, match=rf"fastrnn\.{type(ours[1]).__name__}: use torch\.compile or torch"
        ):
            torch.jit.script(given)
    ours[1].backend = None
    assert isinstance(torch.jit.script(fastrnn.to_torch(ours)[1]), torch.jit.ScriptModule)


@modules
@scripting
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # checks of sizes are traced as constants
def test_traces_serve_other_sizes_and_weights(kind: str) -> None:
    """Saved and loaded, too; the sizes of the traced call are not in it."""
    ours, theirs = pair(kind, backend="numba")
    traced = torch.jit.trace(ours, arguments(kind, ours)[:1])
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for rows in ([2], [9]) if kind.endswith("CELL") else ([TIME, 2], [9, BATCH], [1, 1]):
        other = random(*rows, INPUT, grad=True)
        for one in (traced, loaded):
            results, expected = one(other), theirs(other)
            assert_close(tensors(results), tensors(expected))
            wanted = [*one.parameters()], [dict(theirs.named_parameters())[name] for name, _ in one.named_parameters()]
            assert_close(gradients(results, wanted[0]), gradients(expected, wanted[1]))


@modules
@scripting
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("steps", [1, TIME])
def test_a_trace_is_of_torchs_kernels_unless_one_is_named(kind: str, steps: int) -> None:
    """So that who reads it needs no fastrnn; of one step, too, it serves others."""
    ours, theirs = pair(kind, backend="auto")
    cell = kind.endswith("CELL")
    traced = torch.jit.trace(ours, (random(*([BATCH] if cell else [steps, BATCH]), INPUT),))
    assert "fastrnn::" not in str(traced.inlined_graph)
    x = random(*([2] if cell else [9, 2]), INPUT)
    assert_close(tensors(traced(x)), tensors(theirs(x)))


@scripting
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_with_lengths_keeps_the_operators() -> None:
    class Ragged(fastrnn.GRU):
        def forward(self, x: Tensor, lengths: Tensor) -> Any:  # type: ignore[override]
            return super().forward(x, lengths=lengths)

    traced = torch.jit.trace(Ragged(INPUT, 6), (torch.randn(5, 3, INPUT), torch.tensor([2, 0, 1])))
    assert "fastrnn::gru_forward" in str(traced.inlined_graph)


@scripting
@pytest.mark.filterwarnings("ignore")  # what OpenVINO imports and traces
@pytest.mark.parametrize("name", ["LSTM", "GRU", "RNN"])
def test_openvino_converts_models_as_they_are(name: str) -> None:
    """For other sizes than the example's."""
    openvino = pytest.importorskip("openvino")
    model = getattr(fastrnn, name)(INPUT, 6, num_layers=2, bidirectional=True, batch_first=True).eval()
    converted = openvino.convert_model(model, example_input=torch.randn(2, 5, INPUT))
    compiled, x = (
        openvino.compile_model(converted, "CPU", {"INFERENCE_PRECISION_HINT": "f32"}),
        torch.randn(3, 9, INPUT),
    )
    with torch.no_grad():
        assert_close([torch.from_numpy(compiled(x.numpy())[0])], [model(x)[0]], 1e-6)


@scripting
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_has_second_derivatives() -> None:
    """Of an LSTM, of which a trace keeps no c."""
    ours, theirs = pair("LSTM", backend="numba")
    traced, x = torch.jit.trace(ours, (random(TIME, BATCH, INPUT),)), random(TIME, BATCH, INPUT, grad=True)

    def penalty(module: Any) -> Tensor:
        (d_x,) = torch.autograd.grad(tensors(module(x))[0].square().sum(), x, create_graph=True)
        return torch.autograd.grad(d_x.square().sum(), x)[0]

    assert_close(penalty(traced), penalty(theirs))
