"""`fastrnn.probe`: what goes on in recurrent layers, step by step: gates, saturation, states, gradients."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastrnn import ops
from fastrnn.backends.layer import Forward, Layer
from fastrnn.binding.plans import Watch
from fastrnn.gradients import is_transformed
from fastrnn.module import eagerly, other_layers, recurrent_layers, watched
from fastrnn.probe_figures import Figures, Thresholds, joined, of_backward, of_forward

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Figures", "Record", "probe"]


class Record(Mapping[str, Figures]):
    """What `fastrnn.probe` records: `record["encoder.lstm"]` are the `Figures` of the layer of that name.

    They are those of its last call; of a cell, each of whose calls is one step, those of all calls side by side. It
    holds the names of the layers that were called, in the model's order.
    """

    def __init__(self, names: Sequence[str], left_out: Mapping[str, str]) -> None:
        self._calls: dict[str, list[_Call]] = {name: [] for name in names}
        self._cells: set[str] = set()
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self.left_out = dict(left_out)
        """the names and classes of other recurrent layers, such as torch.nn's, which are not recorded"""

    def __getitem__(self, name: str) -> Figures:
        calls = self._calls_of(name)
        if not calls:
            raise KeyError(f"{name!r} has not been called while it was probed")
        if name in self._cells:
            return joined([call.figures() for call in calls], 1)
        return calls[-1].figures()

    def __iter__(self) -> Iterator[str]:
        return (name for name, calls in self._calls.items() if calls)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def calls(self, name: str) -> list[Figures]:
        """The figures of every call of a layer, in order; no figures if it has not been called.

        Raises:
            KeyError: no layer has that name.
        """
        return [call.figures() for call in self._calls_of(name)]

    def _calls_of(self, name: str) -> list[_Call]:
        if name not in self._calls:
            raise KeyError(f"{name!r} is no recurrent layer of the probed module, which has {list(self._calls)}")
        return self._calls[name]

    def summary(self) -> str:
        """A table for people, and below it what stands out: vanishing or exploding gradients, saturated gates."""
        from fastrnn.probe_report import summary

        lines = [summary(self)]
        lines += [f"{name}: not called" for name, calls in self._calls.items() if not calls]
        lines += [
            f"{name}: not recorded, a {kind}; fastrnn.accelerate(model) makes torch.nn's layers fastrnn's"
            for name, kind in self.left_out.items()
        ]
        return "\n".join(line for line in lines if line)

    def plot(self, path: str | Path | None = None) -> Figure:
        """A matplotlib Figure: gate means, saturation and gradient norms by time step, a row for each layer and
        direction; written to `path` if given. It leaves pyplot alone.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: no layer has been called.
        """
        from fastrnn.probe_report import plot

        return plot(self, path)

    def _begin(self, name: str, module: nn.Module, thresholds: Thresholds) -> Watch:
        """What is told of the layers of a call that begins now."""
        if torch.compiler.is_compiling():
            raise RuntimeError("fastrnn.probe: cannot look into a call that is being compiled; compile before or after")
        if is_transformed():
            raise RuntimeError("fastrnn.probe: cannot look into torch.func's transforms or forward-mode derivatives")
        call, last = _Call(type(module).__name__, thresholds, self._hooks), getattr(module, "num_layers", 1) - 1

        def watch(index: int, layer: Layer, result: Forward) -> None:
            call.add(layer, result)
            if index == last:
                self._calls[name].append(call)

        return watch

    def _close(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


class _Call:
    """One call of a stack of layers: the figures of each, as they come."""

    def __init__(self, label: str, thresholds: Thresholds, hooks: list[torch.utils.hooks.RemovableHandle]) -> None:
        self._label, self._thresholds, self._hooks = label, thresholds, hooks
        self._layers: list[Figures] = []

    def figures(self) -> Figures:
        return joined(self._layers, 0)

    def add(self, layer: Layer, result: Forward) -> None:
        # Detached: what a hook holds must not hold the graph that holds the hook.
        layer, histories = layer.with_tensors(torch.detach), [state.detach() for state in result.states]
        with torch.no_grad(), ops.autocast_off(layer.x):
            self._layers.append(of_forward(self._label, layer, histories, self._thresholds))
        node = result.states[0].grad_fn
        if node is not None:
            hook = partial(self._backward, len(self._layers) - 1, layer, histories)
            self._hooks.append(node.register_prehook(hook))

    def _backward(self, index: int, layer: Layer, histories: list[Tensor], grads: Sequence[Tensor | None]) -> None:
        """Is told, before the layer's own backward, the gradients of all results of its operator."""
        if any(grad is not None and ops.is_batched(grad) for grad in grads):
            raise RuntimeError("fastrnn.probe: cannot look into a backward of many gradients at once")
        states, finals = len(histories), len(layer.states0)
        with torch.no_grad(), ops.autocast_off(layer.x):
            norms, gains = of_backward(layer, histories, grads[:states], grads[states : states + finals])
        self._layers[index] = replace(self._layers[index], gradient_norms=norms, gradient_gains=gains)


@contextmanager
def probe(module: nn.Module, *, sigmoid: tuple[float, float] = (0.05, 0.95), tanh: float = 0.95) -> Iterator[Record]:
    """Records, within the `with` block, what every recurrent layer of fastrnn in `module` does, step by step.

    Of each layer, direction and step: the mean of each gate's activation, the fraction that is saturated, the norms of
    the states; and once `backward` has run within the block, the norm of the loss's whole gradient with respect to the
    state, which shows where gradients vanish or explode, and by what factor the step scales it. `Figures` says exactly
    what each is. They stay in the `Record` after the block, of which nothing stays in the module.

    Results and gradients are those of the kernels that the layers use, up to rounding where these would be torch's
    ("aten"): such calls go to another backend meanwhile. What a layer kept for backward is held until backward has run,
    and the figures take a slow loop over the steps: it is meant for a few passes. Compiled models run eagerly within
    the block. Calls of several threads are recorded alike.

    Args:
        module: any module; its layers are recorded by their names in `named_modules`, `module` itself by its class's
            name. Every call counts, see `Record`.
        sigmoid: gates i, f, o, r and z count as saturated below the first or above the second.
        tanh: g, n and the h of a tanh RNN count as saturated above this absolute value. The h of a relu RNN does where
            it is zero.

    Returns:
        A context manager that gives the `Record`, which `fastrnn.probing` has beside `Figures`.

    Raises:
        TypeError: `module` is no module.
        ValueError: it holds none of fastrnn's recurrent layers (torch.nn's are not recorded: `fastrnn.accelerate` makes
            them fastrnn's), or a threshold is out of range.
        RuntimeError: one of the layers is being probed already; within the block, a call comes from a compiler, from a
            transform of torch.func or with forward-mode derivatives, or a backward takes many gradients at once.

    Example::

        >>> import torch, fastrnn
        >>> model = torch.nn.Sequential(fastrnn.GRU(3, 4, num_layers=2))
        >>> with fastrnn.probe(model) as record:
        ...     output, hn = model(torch.randn(5, 2, 3))
        ...     output[-1].sum().backward()
        >>> list(record), list(record["0"].gate_means), record["0"].gate_means["z"].shape
        (['0'], ['r', 'z', 'n'], torch.Size([2, 5]))
        >>> record["0"].gradient_norms["h"].shape
        torch.Size([2, 5])
    """
    thresholds = _checked(sigmoid, tanh)
    found = recurrent_layers("probe", module)
    for name, layer in found.items():
        if layer in watched:
            raise RuntimeError(f"probe: {name!r} is being probed already")
    record = Record(list(found), other_layers(module))
    record._cells.update(name for name, layer in found.items() if hasattr(layer, "_step"))
    with eagerly():
        watched.update({m: partial(record._begin, name, m, thresholds) for name, m in found.items()})
        try:
            yield record
        finally:
            for layer in found.values():
                watched.pop(layer, None)
            record._close()


def _checked(sigmoid: Any, tanh: float) -> Thresholds:
    low, high = sigmoid
    if not 0 <= low < high <= 1:
        raise ValueError(f"probe: sigmoid must be two numbers in [0, 1], the smaller first, got {sigmoid}")
    if not 0 <= tanh <= 1:
        raise ValueError(f"probe: tanh must lie in [0, 1], got {tanh}")
    return Thresholds((low, high), tanh)
