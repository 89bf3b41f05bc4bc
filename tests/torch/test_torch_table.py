"""docs/torch.md: torch.nn is asked again what the page says it answers, and every test that the page names is there.

A page that is out of date is corrected, not this file: it holds questions and no answers. Answers change with torch's
version, so that they are compared with that of the page alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jvp, stack_module_state, vmap
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.checkout import ROOT
from tests.torch_parity import tensors

PAGE = ROOT / "docs" / "torch.md"

LAYERS, CELLS = ["RNN", "GRU", "LSTM"], ["RNNCell", "GRUCell", "LSTMCell"]
SIZES = 4, 6
"""I, H"""


def rows() -> dict[str, list[str]]:
    """The cells of the page's tables, without the first, by that."""
    found: dict[str, list[str]] = {}
    for line in PAGE.read_text().splitlines():
        if line.startswith("| ") and not line.startswith("| | "):
            title, *cells = (cell.strip() for cell in line.strip("|").split(" | "))
            assert title not in found, f"two rows for {title}"
            found[title] = [cell.rstrip("|").strip() for cell in cells]
    return found


def make(name: str, **options: Any) -> nn.Module:
    return getattr(nn, name)(*SIZES, **options)


def sample(name: str, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*([5, 3] if name in LAYERS else [3]), SIZES[0], dtype=dtype)


def first(results: Any) -> Tensor:
    return tensors(results)[0]


def loss(module: nn.Module, x: Tensor) -> Tensor:
    return first(module(x)).square().sum()


def in_one_graph(name: str) -> None:
    torch.compile(make(name), backend="eager", fullgraph=True)(sample(name))


def packed_in_one_graph(name: str) -> None:
    given = pack_padded_sequence(sample(name), torch.tensor([2, 5, 1]), enforce_sorted=False)
    torch.compile(make(name), backend="eager", fullgraph=True)(given)


def one_graph_for_all_sizes(name: str) -> str:
    graphs: list[Any] = []

    def compiler(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch.compiler.reset()
    compiled = torch.compile(make(name), backend=compiler, dynamic=True)
    for size in (5, 7, 9):
        compiled(torch.randn(size, *([size - 2] if name in LAYERS else []), SIZES[0]))
    return "yes" if len(graphs) == 1 else "no"


def exported(name: str) -> None:
    torch.export.export(make(name), (sample(name),))


def of_core_operators(name: str) -> None:
    program = torch.export.export(make(name), (sample(name),)).run_decompositions()
    assert all(str(n.target).startswith(("aten.", "<built-in")) for n in program.graph.nodes if n.op == "call_function")


def exported_for_all_sizes(name: str) -> None:
    time, batch = (torch.export.Dim(one, min=2, max=100) for one in "TB")
    sizes = {0: time, 1: batch} if name in LAYERS else {0: batch}
    torch.export.export(make(name), (sample(name),), dynamic_shapes=(sizes,))


def scripted(name: str) -> None:
    torch.jit.script(make(name))


def traced(name: str) -> None:
    module = make(name)
    other = torch.randn(*([7, 2] if name in LAYERS else [2]), SIZES[0])
    torch.testing.assert_close(torch.jit.trace(module, (sample(name),))(other), module(other))


def symbolically_traced(name: str) -> None:
    torch.fx.symbolic_trace(nn.Sequential(make(name)))


def quantized(name: str) -> str:
    module = torch.ao.quantization.quantize_dynamic(nn.Sequential(make(name)))
    return "no" if isinstance(module[0], nn.RNNBase) else "yes"


def twice_differentiated(name: str) -> None:
    x = sample(name).requires_grad_()
    torch.autograd.grad(loss(make(name), x), x, create_graph=True)[0].square().sum().backward()


def vectorised_jacobian(name: str) -> None:
    module = make(name)
    torch.autograd.functional.jacobian(lambda x: first(module(x)), sample(name), vectorize=True)


def forward_mode(name: str) -> None:
    module, x = make(name), sample(name)
    jvp(lambda x: first(module(x)), (x,), (x,))


def hessians(name: str) -> None:
    module = make(name)
    hessian(lambda x: loss(module, x))(sample(name))


def mapped_over_inputs(name: str) -> None:
    module = make(name)
    vmap(lambda x: first(module(x)))(torch.stack([sample(name)] * 2))


def mapped_over_weights(name: str) -> None:
    members = [make(name) for _ in range(2)]
    x = sample(name)
    vmap(lambda *state: first(functional_call(members[0], state, (x,))))(*stack_module_state(members))


def gradients_of_each_sample(name: str) -> None:
    module = make(name)
    parameters = {key: parameter.detach() for key, parameter in module.named_parameters()}

    def one(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return first(functional_call(module, parameters, (x,))).square().sum()

    vmap(grad(one), in_dims=(None, 0))(parameters, torch.stack([sample(name)] * 2))


def with_other_parameters(name: str) -> None:
    module = make(name)
    functional_call(module, {key: 2 * parameter for key, parameter in module.named_parameters()}, (sample(name),))


def checkpointed(name: str) -> None:
    for use_reentrant in (True, False):
        x = sample(name).requires_grad_()
        first(checkpoint(make(name), x, use_reentrant=use_reentrant)).sum().backward()


def saved_through_hooks(name: str) -> str:
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: kept.append(one) or one, lambda one: one):
        loss(make(name), sample(name)).backward()
    return "yes" if kept else "no"


def backward_in_evaluation(name: str) -> None:
    loss(make(name).eval(), sample(name)).backward()


def changed_output(name: str) -> None:
    output = first(make(name)(sample(name)))
    output.mul_(2)
    output.sum().backward()


def option(option: str) -> Callable[[str], None]:
    return lambda name: first(make(name, **{option: True})(sample(name))).sum().backward()


def argument(name_of_argument: str, value: Any) -> Callable[[str], None]:
    return lambda name: make(name)(sample(name), **{name_of_argument: value}) and None


def autocast(name: str) -> str:
    with torch.autocast("cpu", torch.bfloat16):
        return str(first(make(name)(sample(name))).dtype).removeprefix("torch.")


def in_16_bits(name: str) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        loss(make(name, dtype=dtype), sample(name, dtype)).backward()


def scaled(name: str) -> None:
    module, scaler = make(name), torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD(module.parameters())
    scaler.scale(loss(module, sample(name))).backward()
    scaler.step(optimizer)
    scaler.update()


def packed(name: str) -> None:
    make(name)(pack_padded_sequence(sample(name), [2, 5, 1], enforce_sorted=False))


def nothing_in(*sizes: int) -> Callable[[str], None]:
    return lambda name: make(name)(torch.randn(*sizes, SIZES[0])) and None


def weight(name: str) -> str:
    return "weight_hh_l0" if name in LAYERS else "weight_hh"


def parametrized(name: str) -> None:
    for change in (parametrizations.weight_norm, parametrizations.orthogonal, parametrizations.spectral_norm):
        module = make(name)
        change(module, weight(name))
        loss(module, sample(name)).backward()


def pruned(name: str) -> None:
    module = make(name)
    prune.l1_unstructured(module, weight(name), amount=0.5)
    loss(module, sample(name)).backward()


def optimized(name: str) -> None:
    for how in ("foreach", "fused"):
        module = make(name)
        loss(module, sample(name)).backward()
        torch.optim.AdamW(module.parameters(), **{how: True}).step()


def deterministic(name: str) -> None:
    torch.use_deterministic_algorithms(True)
    try:
        loss(make(name), sample(name)).backward()
    finally:
        torch.use_deterministic_algorithms(False)


def counted(name: str) -> None:
    with FlopCounterMode(display=False) as counter:
        make(name)(sample(name))
    assert counter.get_total_flops() > 0


def skipped_initialisation(name: str) -> None:
    nn.utils.skip_init(getattr(nn, name), *SIZES)


def distributed(name: str) -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        loss(nn.parallel.DistributedDataParallel(make(name)), sample(name)).backward()
    finally:
        dist.destroy_process_group()


QUESTIONS: dict[str, Callable[[str], Any]] = {
    "`torch.compile(fullgraph=True)`": in_one_graph,
    "one compiled graph for every T and B": one_graph_for_all_sizes,
    "one graph of a packed sequence": packed_in_one_graph,
    "`torch.export`": exported,
    "exported for every T and B": exported_for_all_sizes,
    "core operators alone (`run_decompositions`)": of_core_operators,
    "`torch.jit.script`": scripted,
    "`torch.jit.trace`": traced,
    "`torch.fx.symbolic_trace` of a model": symbolically_traced,
    "`quantize_dynamic`": quantized,
    "double backward": twice_differentiated,
    "vectorised Jacobian": vectorised_jacobian,
    "forward-mode derivative (`jvp`)": forward_mode,
    "`torch.func.hessian`": hessians,
    "`vmap` over inputs": mapped_over_inputs,
    "`vmap` over weights": mapped_over_weights,
    "gradients of each sample": gradients_of_each_sample,
    "`functional_call`": with_other_parameters,
    "checkpointing, reentrant and not": checkpointed,
    "hooks on saved tensors": saved_through_hooks,
    "backward in evaluation mode": backward_in_evaluation,
    "output changed in place before backward": changed_output,
    "`recompute`": option("recompute"),
    "recurrent dropout": option("recurrent_dropout"),
    "autocast to bfloat16": autocast,
    "bfloat16 and float16 modules, trained": in_16_bits,
    "`GradScaler`": scaled,
    "lengths in any order, zero allowed": argument("lengths", torch.tensor([5, 0, 2])),
    "resets inside a sequence": argument("resets", torch.zeros(5, 3, dtype=torch.bool)),
    "`return_states`": argument("return_states", True),
    "packed sequences": packed,
    "T = 0": nothing_in(0, 3),
    "B = 0": nothing_in(5, 0),
    "parametrizations": parametrized,
    "pruning": pruned,
    "foreach and fused optimizers": optimized,
    "`use_deterministic_algorithms`": deterministic,
    "`FlopCounterMode` counts the products": counted,
    "`skip_init`": skipped_initialisation,
    "`DistributedDataParallel`": distributed,
}
"""What shows torch.nn's answer for each row of the page: works, answers, or raises."""

FOR_LAYERS = {
    "lengths in any order, zero allowed",
    "resets inside a sequence",
    "`return_states`",
    "`recompute`",
    "recurrent dropout",
    "one graph of a packed sequence",
    "packed sequences",
    "T = 0",
    "B = 0",
}
"""Rows about layers alone."""

NOT_ASKED = {
    "AOTInductor": "compiles C++ for minutes",
    "ONNX export": "is asked in tests/tools/test_onnx.py's own way, by what the file holds",
    "weights to and from Keras": "torch.nn has none",
    "`accelerate`, `to_torch`": "is about both",
    "`probe`": "torch.nn has none",
    "zoneout": "torch.nn has none",
    "recurrent weights dropped for a call": "is a parametrization",
    "same bits from run to run": "cannot be shown by a run",
    "same bits with any number of threads": "cannot be shown by a run",
    "dropout": "is what fastrnn's is compared with",
    "`DataLoader` workers by fork": "depends on sizes and threads",
    "Lightning": "is what fastrnn's is compared with",
    "FSDP2 (`fully_shard`)": "starts processes",
    "non-contiguous input and states": "is what fastrnn's is compared with",
    "weights laid out once (`prepack`)": "torch.nn has none",
}
"""The other rows, and why torch is not asked."""


def names_of(title: str) -> list[str]:
    return LAYERS if title in FOR_LAYERS else LAYERS + CELLS


def summary(answers: dict[str, str]) -> str:
    """yes, or RNN, GRU: yes; LSTM: no"""
    groups: dict[str, list[str]] = {}
    for name, answer in answers.items():
        groups.setdefault(answer, []).append(name)
    if len(groups) == 1:
        return next(iter(groups))

    def short(names: list[str]) -> str:
        for whole, plural in ((LAYERS, "layers"), (CELLS, "cells")):
            if set(whole) <= set(names):
                names = [plural if name == whole[0] else name for name in names if name not in whole[1:]]
        return ", ".join(names)

    return "; ".join(f"{short(names)}: {answer}" for answer, names in groups.items())


def answer(question: Callable[[str], Any], name: str) -> str:
    try:
        return question(name) or "yes"
    except Exception:  # whatever torch raises is a no
        return "no"


def is_the_pages_version() -> bool:
    found = re.search(r"torch (\d+\.\d+)", PAGE.read_text())
    return found is not None and torch.__version__.startswith(found[1])


pages_version = pytest.mark.skipif(not is_the_pages_version(), reason="the page is about another version of torch")


@pages_version
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore")  # what torch remarks about its own layers is no answer
@pytest.mark.parametrize("title", QUESTIONS)
def test_torch_answers_what_the_page_says(title: str) -> None:
    if title == "autocast to bfloat16" and torch.backends.cpu.get_cpu_capability() == "AVX2":
        pytest.skip("torch's LSTM, by oneDNN, raises there")
    said = rows()[title][0]
    found = summary({name: answer(QUESTIONS[title], name) for name in names_of(title)})
    assert said.split(" (")[0] == found, f"docs/torch.md is out of date: torch.nn's answer to {title} is {found}"


def test_every_row_is_asked_or_says_why_not() -> None:
    assert set(rows()) == set(QUESTIONS) | set(NOT_ASKED)


LINK = re.compile(r"\[[^\]]*\]\((?P<path>\.\./[^)#]+)(#(?P<anchor>[^)]*))?\)")
TEST = re.compile(r"`(?P<file>test_\w+)::(?P<name>test_\w+)`")


def test_every_file_and_test_that_the_page_names_is_there() -> None:
    text = PAGE.read_text()
    tests = {path.stem: path.read_text() for path in (ROOT / "tests").glob("*/test_*.py")}
    files = [match["path"] for match in LINK.finditer(text)]
    named = [(match["file"], match["name"]) for match in TEST.finditer(text)]
    assert named
    assert [path for path in files if not (PAGE.parent / path).exists()] == []
    missing = [
        f"{file}::{name}" for file, name in named if not re.search(rf"^def {name}\(", tests.get(file, ""), re.MULTILINE)
    ]
    assert missing == []


def test_every_row_of_fastrnn_names_a_test() -> None:
    assert [title for title, cells in rows().items() if not TEST.search(cells[-1])] == []


@pages_version
def test_what_cudnns_operator_says_without_a_gpu() -> None:
    """Its rules are in every build of torch; only its kernel needs a GPU."""
    steps, batch, (inputs, hidden) = 5, 3, SIZES
    with torch.device("meta"):
        weights = [torch.empty(4 * hidden, width) for width in (inputs, hidden)]
        x, state = torch.empty(steps, batch, inputs, requires_grad=True), torch.empty(1, batch, hidden)

    def call(x: Tensor) -> Tensor:
        lstm, empty = 2, (None, state, state)
        return torch._cudnn_rnn(x, weights, 2, *empty, lstm, hidden, 0, 1, False, 0.0, True, False, [], None)[0]

    with pytest.raises(NotImplementedError, match="forward AD with _cudnn_rnn"):
        jvp(call, (x.detach(),), (x.detach(),))
    with pytest.raises(RuntimeError, match="Batching rule not implemented for aten::_cudnn_rnn"):
        vmap(call)(torch.stack([x, x]).detach())
    output = call(x)
    kept: Any = output.grad_fn
    output.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        _ = kept._saved_result0
