"""What a contender makes of a task: calls with carried states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from benchmarks.peers.buffers import Engine, aligned
from benchmarks.peers.task import Array
from benchmarks.serving.task import ServingTask

Call = Callable[[], Any]


class Session:
    """Calls that go on where the one before stopped, the first one from zero states.

    They are made in turn, from the first to the last and from there to the first again; all that can be is made before.
    """

    calls: Sequence[Call]

    def reset(self) -> None:
        """Makes all states zero."""
        raise NotImplementedError

    def output(self, index: int, returned: Any) -> Array:
        """The output (T, B, H), or (1, B, H), of the call of that index, which has just returned this."""
        raise NotImplementedError

    def context(self) -> AbstractContextManager[Any]:
        """What calls run under."""
        return nullcontext()


class Bound(Session):
    """Calls of an engine of `benchmarks.peers`, each bound to its input and in turn to two places of the states."""

    def __init__(self, engine: Engine, task: ServingTask) -> None:
        peer = task.of_peers
        x = aligned(task.x.shape)
        x[...] = task.x
        _, T, B, _ = x.shape
        self.last = task.layers - 1
        self.places = [[aligned(peer.state_shape) for _ in peer.state_inputs] for _ in range(2)]
        self.ys = {"ys": aligned((T, B, task.hidden_size))} if peer.has_history else {}
        self.x = x  # an engine keeps addresses alone
        self.calls = []
        for index in range(len(x)):
            before, after = self.places[index % 2], self.places[(index + 1) % 2]
            inputs = {"x": x[index], **dict(zip(peer.state_inputs, before, strict=True))}
            self.calls.append(engine.bind(inputs, self.ys | dict(zip(peer.state_outputs, after, strict=True))))

    def reset(self) -> None:
        """As `Session.reset`."""
        for state in self.places[0]:
            state.fill(0)

    def output(self, index: int, returned: Any) -> Array:
        """As `Session.output`; a single step's is the last layer's h."""
        written = self.ys["ys"] if self.ys else self.places[(index + 1) % 2][self.last]
        return written.copy()
