"""Random configurations of modules, streams and calls, each beside the module's loop."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import fastrnn
from tests.streaming.streams import assert_computes, make, make_cell, same

repeatable = settings(derandomize=True, database=None, deadline=None, suppress_health_check=[HealthCheck.too_slow])
KINDS = ("lstm", "gru", "minlstm")


@settings(repeatable, max_examples=80)
@given(st.data())
def test_random_modules(data: st.DataObject) -> None:
    draw: Any = data.draw
    kind, inputs, hidden = draw(st.sampled_from(KINDS)), draw(st.integers(1, 70)), draw(st.integers(1, 70))
    batch, steps = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    options: dict[str, Any] = {"bias": draw(st.booleans())}
    torch.manual_seed(draw(st.integers(0, 99)))
    if draw(st.booleans()):
        module = make_cell(kind, inputs, hidden, **options)
    else:
        options |= {"num_layers": draw(st.integers(1, 3)), "batch_first": draw(st.booleans())}
        if kind == "lstm" and hidden > 1 and draw(st.booleans()):
            options["proj_size"] = draw(st.integers(1, hidden - 1))
        elif kind != "minlstm":
            options["num_heads"] = draw(st.sampled_from([n for n in range(1, hidden + 1) if hidden % n == 0]))
        module = make(kind, inputs, hidden, **options)
    x = torch.randn((batch, steps, inputs) if options.get("batch_first") else (steps, batch, inputs))
    sizes = draw(st.lists(st.integers(1, steps), max_size=4))
    assert_computes(module, x, sizes, threads=draw(st.sampled_from([1, 1, 1, 2])))


@settings(repeatable, max_examples=60)
@given(st.data())
def test_random_operations(data: st.DataObject) -> None:
    """Calls of some slots, resets, states that are written, updates: beside streams of one sequence each, bitwise."""
    draw: Any = data.draw
    kind, weights = draw(st.sampled_from([("lstm", w) for w in ("float32", "float16", "int8")] + [("gru", "float32")]))
    hidden, count, batch, steps = (draw(st.integers(1, top)) for top in (40, 7, 5, 3))
    batch = min(batch, count)
    torch.manual_seed(draw(st.integers(0, 99)))
    module = make(kind, 3, hidden, 2)
    stream = fastrnn.stream(module, batch=batch, steps=steps, slots=count, weights=weights)
    alone = [fastrnn.stream(module, steps=steps, weights=weights) for _ in range(count)]
    two = kind == "lstm"

    def states_of_all() -> tuple[Tensor, ...]:
        each = [one.state if two else (one.state,) for one in alone]
        return tuple(torch.cat(states, 1) for states in zip(*each, strict=True))

    for _ in range(draw(st.integers(1, 8))):
        action = draw(st.sampled_from(["call", "call", "call", "reset", "write", "update", "wrong"]))
        rows = draw(st.lists(st.integers(0, count - 1), unique=True, max_size=batch))
        if action == "call":
            now = draw(st.integers(1, steps))
            x = torch.randn(now, len(rows), 3)
            out = draw(st.sampled_from([None, torch.empty(now, len(rows), hidden)]))
            y = stream(x, slots=rows, out=out)
            for row, slot in enumerate(rows):
                assert same(y[:, row : row + 1], alone[slot](x[:, row : row + 1]))
        elif action == "reset":
            stream.reset(rows)
            for slot in rows:
                alone[slot].reset()
        elif action == "write":
            states = tuple(torch.randn(2, count, hidden) for _ in range(1 + two))
            stream.state = states if two else states[0]
            for slot, one in enumerate(alone):
                own = tuple(state[:, slot : slot + 1] for state in states)
                one.state = own if two else own[0]
        elif action == "update":
            with torch.no_grad():
                module.weight_ih_l1.mul_(1.1)
            for one in (stream, *alone):
                one.update()
        elif rows:
            try:
                stream(torch.randn(1, len(rows) + 1, 3), slots=[*rows, rows[0]])
            except (ValueError, RuntimeError):
                pass
            else:
                raise AssertionError("a slot came twice")
        found = stream.state
        assert same(found, states_of_all() if two else states_of_all()[0])
