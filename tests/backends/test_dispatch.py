"""How a backend is chosen: by argument, context, environment or `auto`; and what is said when one cannot serve."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest
import torch

import fastrnn
from fastrnn import backends
from fastrnn.backends import cost
from fastrnn.backends.layer import Layer

GRU_INPUT = torch.zeros(5, 2, 3)


def served_by(module: torch.nn.Module, **arguments: torch.Tensor) -> list[str]:
    return fastrnn.explain(module, GRU_INPUT, **arguments).layers


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env={**_base_environment(), **environment}, capture_output=True, text=True)


def _base_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name != "FASTRNN_BACKEND"}


def test_the_argument_wins_over_the_context() -> None:
    with fastrnn.use_backend("aten"):
        assert served_by(fastrnn.GRU(3, 4, backend="reference")) == ["reference"]
        assert served_by(fastrnn.GRU(3, 4, num_layers=2)) == ["aten", "aten"]


def test_contexts_nest_and_end() -> None:
    gru = fastrnn.GRU(3, 4)
    outside = served_by(gru)
    with fastrnn.use_backend("reference"):
        with fastrnn.use_backend("aten"):
            assert served_by(gru) == ["aten"]
        assert served_by(gru) == ["reference"]
    assert served_by(gru) == outside


def test_a_context_ends_when_its_body_raises() -> None:
    with pytest.raises(KeyError), fastrnn.use_backend("reference"):
        raise KeyError
    assert backends.requested(None) == "auto"


def test_a_context_belongs_to_its_thread() -> None:
    seen: list[str] = []
    with fastrnn.use_backend("reference"):
        thread = threading.Thread(target=lambda: seen.append(backends.requested(None)))
        thread.start()
        thread.join()
    assert seen == ["auto"]


def test_the_environment_names_the_default() -> None:
    code = "import fastrnn; from fastrnn import backends; print(backends.requested(None), backends.requested('aten'))"
    assert python(code, FASTRNN_BACKEND="reference").stdout.split() == ["reference", "aten"]


def test_an_unknown_backend_in_the_environment_is_named() -> None:
    result = python("import fastrnn", FASTRNN_BACKEND="cudnn")
    assert result.returncode != 0
    assert "FASTRNN_BACKEND: unknown backend 'cudnn'; expected one of 'auto', 'numba'" in result.stderr


@pytest.mark.parametrize("where", ["layer", "cell", "context", "function"])
def test_an_unknown_backend_raises(where: str) -> None:
    def context() -> None:
        with fastrnn.use_backend("cudnn"):
            pass

    gru = fastrnn.GRU(3, 4)
    uses = {
        "layer": lambda: fastrnn.LSTM(3, 4, backend="cudnn"),
        "cell": lambda: fastrnn.LSTMCell(3, 4, backend="cudnn"),
        "context": context,
        "function": lambda: fastrnn.functional.gru(GRU_INPUT, None, gru.all_weights, backend="cudnn"),
    }
    with pytest.raises(ValueError, match="backend: unknown backend 'cudnn'; expected one of"):
        uses[where]()


def test_a_named_backend_that_cannot_serve_raises_with_the_reason() -> None:
    gru = fastrnn.GRU(3, 4, backend="aten")
    message = r"gru: backend 'aten' cannot serve this call: torch's kernels take no lengths"
    with pytest.raises(RuntimeError, match=message):
        gru(GRU_INPUT, lengths=torch.tensor([1, 2]))


def test_auto_falls_back_when_numba_cannot_serve(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends.module("numba"), "supports", lambda layer: "numba is not installed")
    gru = fastrnn.GRU(3, 4)
    assert served_by(gru) == ["aten"]
    assert served_by(gru, lengths=torch.tensor([1, 2])) == ["reference"]
    assert gru(GRU_INPUT)[0].shape == (5, 2, 4)
    assert "cannot: numba is not installed" in str(fastrnn.explain(gru, GRU_INPUT))


def test_auto_takes_what_is_predicted_to_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"numba": 2.0, "aten": 1.0}
    monkeypatch.setattr(cost, "predicted", lambda sizes: seconds)
    assert served_by(fastrnn.GRU(3, 4)) == ["aten"]
    seconds["aten"] = 3.0
    assert served_by(fastrnn.GRU(3, 4)) == ["numba"]


def test_auto_keeps_to_the_operators_where_torch_cannot_serve() -> None:
    assert served_by(fastrnn.GRU(3, 4), resets=torch.zeros(5, 2).bool()) == ["numba"]


def test_every_way_to_choose_runs_the_backend_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """`explain` is no promise on paper: the operator calls the backend that it names."""
    called: list[str] = []
    reference = backends.module("reference")
    original = reference.forward

    def spy(layer: Layer, **options: bool) -> object:
        called.append("reference")
        return original(layer, **options)

    monkeypatch.setattr(reference, "forward", spy)
    fastrnn.GRU(3, 4, num_layers=2, backend="reference")(GRU_INPUT)
    assert called == ["reference"] * 2


def test_explain_is_for_people_and_programs() -> None:
    explanation = fastrnn.explain(fastrnn.GRU(3, 4, backend="reference"), GRU_INPUT)
    assert explanation.asked == "reference"
    assert explanation.layers == ["reference"]
    assert explanation.reasons.keys() == set(backends.BACKENDS)
    assert str(explanation).startswith("asked for: reference\nserves the call: reference\n")


def test_explain_says_when_nothing_can_serve() -> None:
    explanation = fastrnn.explain(fastrnn.GRU(3, 4, backend="aten"), GRU_INPUT, resets=torch.zeros(5, 2).bool())
    assert explanation.layers == []
    assert "the call would raise" in str(explanation)
    assert explanation.reasons["aten"] == "cannot: torch's kernels take no resets"


def test_explain_refuses_what_is_no_layer() -> None:
    with pytest.raises(ValueError, match=r"explain: Linear holds none of fastrnn's recurrent layers$"):
        fastrnn.explain(torch.nn.Linear(3, 4), GRU_INPUT)
    with pytest.raises(ValueError, match=r"fastrnn\.accelerate makes torch\.nn's so: GRU$"):
        fastrnn.explain(torch.nn.GRU(3, 4), GRU_INPUT)
    with pytest.raises(TypeError, match=r"explain: module must be a torch\.nn\.Module, got function"):
        fastrnn.explain(served_by, GRU_INPUT)


def test_explain_raises_what_the_call_would_raise() -> None:
    with pytest.raises(RuntimeError, match=r"input\.size"):
        fastrnn.explain(fastrnn.GRU(4, 4), GRU_INPUT)


def test_importing_fastrnn_imports_no_kernel_compiler() -> None:
    loaded = "print(sorted({'numba', 'llvmlite', 'triton', 'matplotlib', 'rich'} & set(sys.modules)))"
    with_fastrnn, torch_alone = python(f"import sys, torch, fastrnn; {loaded}"), python(f"import sys, torch; {loaded}")
    assert with_fastrnn.returncode == 0
    assert with_fastrnn.stdout == torch_alone.stdout
