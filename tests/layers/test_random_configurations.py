"""Random configurations of modules and calls, each computed by torch.nn and by fastrnn in float64 and compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from fastrnn.backends.triton.interpreter import INTERPRETED
from tests.devices import why_not
from tests.torch_parity import (
    CELLS,
    LAYERS,
    PROJECTED,
    assert_close,
    gradients,
    initial_state,
    numba_first,
    pair,
    random,
    tensors,
)

EXAMPLES = 500
INTERPRETED_EXAMPLES = 100
"""By Triton's interpreter, which takes 20 times as long: here it is what lies around kernels that is tested."""

repeatable = settings(derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@dataclass(frozen=True)
class Configuration:
    """A module and a call of it; the defaults of what only layers have suit cells."""

    kind: str
    input_size: int
    hidden_size: int
    options: dict[str, Any]
    batch: int | None
    with_state: bool
    input_grad: bool
    state_grad: bool
    frozen: list[int]
    seed: int
    steps: int = 1
    presentation: str = "padded"
    lengths: list[int] = field(default_factory=list)


Check = Callable[[str, Configuration], None]


@st.composite
def layer_configurations(draw: st.DrawFn) -> Configuration:
    kind = draw(st.sampled_from(list(LAYERS)))
    hidden = draw(st.integers(1, 9))
    options = {
        "num_layers": draw(st.integers(1, 3)),
        "bias": draw(st.booleans()),
        "batch_first": draw(st.booleans()),
        "bidirectional": draw(st.booleans()),
    }
    if kind == "LSTM" and hidden > 1:
        options["proj_size"] = draw(st.integers(0, hidden - 1))
    steps, batch = draw(st.integers(1, 6)), draw(st.one_of(st.none(), st.integers(1, 5)))
    presentation = "padded" if batch is None else draw(st.sampled_from(["padded", "packed", "lengths"]))
    lengths = draw(st.lists(st.integers(1, steps), min_size=batch or 1, max_size=batch or 1))
    rest = draw(call_parts())
    return Configuration(kind, draw(st.integers(1, 9)), hidden, options, batch, *rest, steps, presentation, lengths)


@st.composite
def cell_configurations(draw: st.DrawFn) -> Configuration:
    return Configuration(
        draw(st.sampled_from(list(CELLS))),
        draw(st.integers(1, 9)),
        draw(st.integers(1, 9)),
        {"bias": draw(st.booleans())},
        draw(st.one_of(st.none(), st.integers(0, 5))),
        *draw(call_parts()),
    )


def call_parts() -> st.SearchStrategy[tuple[bool, bool, bool, list[int], int]]:
    """Whether hx is given, whether x and hx require grad, which parameters do not, and the seed of the values."""
    frozen = st.lists(st.integers(0, 3), max_size=2)
    return st.tuples(st.booleans(), st.booleans(), st.booleans(), frozen, st.integers(0, 2**16))


def build(configuration: Configuration, backend: str) -> tuple[nn.Module, nn.Module]:
    sizes = (configuration.input_size, configuration.hidden_size)
    modules = pair(configuration.kind, *sizes, backend=backend, **configuration.options)
    for module in modules:
        parameters = list(module.parameters())
        for index in configuration.frozen:
            parameters[index % len(parameters)].requires_grad_(False)
    return modules


def state_of(configuration: Configuration, module: nn.Module) -> list[Any]:
    if not configuration.with_state:
        return []
    return [initial_state(configuration.kind, module, configuration.batch, grad=configuration.state_grad)]


def wanted_of(module: nn.Module, *arguments: Any) -> list[Tensor]:
    return [tensor for tensor in (*tensors(arguments), *module.parameters()) if tensor.requires_grad]


def assert_same_gradients(ours: Any, theirs: Any, our_wanted: list[Tensor], their_wanted: list[Tensor]) -> None:
    assert [y.requires_grad for y in tensors(ours)] == [y.requires_grad for y in tensors(theirs)]
    if our_wanted:
        assert_close(gradients(ours, our_wanted), gradients(theirs, their_wanted))


def for_many(configurations: st.SearchStrategy[Configuration], backend: str, check: Check) -> None:
    interpreted = backend == "triton" and INTERPRETED

    @settings(repeatable, max_examples=INTERPRETED_EXAMPLES if interpreted else EXAMPLES)
    @given(configuration=configurations)
    def each(configuration: Configuration) -> None:
        check(backend, configuration)

    each()


@numba_first
def test_layers_are_torchs(backend: str) -> None:
    for_many(layer_configurations(), backend, check_layer)


@numba_first
def test_cells_are_torchs(backend: str) -> None:
    for_many(cell_configurations(), backend, check_cell)


def check_layer(backend: str, configuration: Configuration) -> None:
    assume(not configuration.options.get("proj_size") or why_not(backend, PROJECTED) is None)
    torch.manual_seed(configuration.seed)
    ours, theirs = build(configuration, backend)
    batch_first = configuration.options["batch_first"]
    sizes = [configuration.steps] if configuration.batch is None else [configuration.steps, configuration.batch]
    x = random(*(reversed(sizes) if batch_first else sizes), configuration.input_size)
    x.requires_grad_(configuration.input_grad)
    state, lengths = state_of(configuration, ours), torch.tensor(configuration.lengths)

    def pack() -> Any:
        return pack_padded_sequence(x, lengths.cpu(), batch_first=batch_first, enforce_sorted=False)

    def unpack(results: Any) -> Any:
        padded = pad_packed_sequence(results[0], batch_first=batch_first, total_length=configuration.steps)[0]
        return padded, results[1]

    if configuration.presentation == "padded":
        our_results, their_results = ours(x, *state), theirs(x, *state)
    else:
        their_results = unpack(theirs(pack(), *state))
        packed = configuration.presentation == "packed"
        our_results = unpack(ours(pack(), *state)) if packed else ours(x, *state, lengths=lengths)
    assert_close(tensors(our_results), tensors(their_results))
    assert_same_gradients(our_results, their_results, wanted_of(ours, x, *state), wanted_of(theirs, x, *state))


def check_cell(backend: str, configuration: Configuration) -> None:
    torch.manual_seed(configuration.seed)
    ours, theirs = build(configuration, backend)
    rows = [] if configuration.batch is None else [configuration.batch]
    x = random(*rows, configuration.input_size, grad=configuration.input_grad)
    state = state_of(configuration, ours)
    our_results, their_results = ours(x, *state), theirs(x, *state)
    assert_close(tensors(our_results), tensors(their_results))
    assert_same_gradients(our_results, their_results, wanted_of(ours, x, *state), wanted_of(theirs, x, *state))
