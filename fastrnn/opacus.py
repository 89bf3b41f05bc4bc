"""Layers for Opacus, which trains with differential privacy: the gradients of each sample, from one backward of all.

Opacus hooks every module that has parameters and shows a hook its first output's gradient and its positional tensors.
Of a recurrent layer that is too little: lengths are an option, states come in tuples, and what reaches the final states
would be lost without a word. So the layer is taken apart: each parameter lives in a module of its own that gives it to
every sample once, and the layer returns each sample's gradient to it. Opacus sees those modules.

Importing this registers with Opacus: `ModuleValidator.validate` then objects to fastrnn's layers and cells, and
`ModuleValidator.fix` replaces the layers.

Source: Yousefpour et al., "Opacus: User-Friendly Differential Privacy Library in PyTorch" (2021); its documentation.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from opacus.grad_sample import register_grad_sampler
from opacus.validators import register_module_fixer, register_module_validator
from opacus.validators.errors import UnsupportedModuleError
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.nn.utils.rnn import PackedSequence

from fastrnn import hints
from fastrnn.binding.bind import results
from fastrnn.binding.configuration import Configuration
from fastrnn.module import opacus_objection
from fastrnn.nn import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from fastrnn.nn_layers import Layers

__all__ = ["PerSample"]


class _Weight(nn.Module):
    """A parameter, given to each of B samples: (1, B, ...), so that Opacus finds the batch first or second."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, samples: Tensor) -> Tensor:
        return self.weight.expand(1, len(samples), *self.weight.shape)


class PerSample(nn.Module):
    """A fastrnn `RNN`, `GRU` or `LSTM` whose parameters get the gradient of each sample under Opacus.

    Args:
        layer: whose options and parameters, the same objects, it takes over. They are then named `weight_ih_l0.weight`.

    `forward(input, hx=None, *, lengths=None, resets=None)` is the layer's, for batches; gradients reach the parameters
    through the output and through the final states. Backward computes the layer's forward once more.

    Raises:
        ValueError: the layer has `recurrent_dropout`, or parameters that are parametrized.
        TypeError: for a PackedSequence (give padded input and `lengths`), or something that is no layer of fastrnn's.
        ValueError, RuntimeError: as the layer.

    Example::

        >>> import torch, fastrnn.opacus
        >>> from opacus import GradSampleModule
        >>> gru = GradSampleModule(fastrnn.opacus.PerSample(fastrnn.GRU(3, 4, batch_first=True)), loss_reduction="sum")
        >>> output, hn = gru(torch.randn(2, 5, 3), lengths=torch.tensor([5, 1]))
        >>> hn.sum().backward()
        >>> gru.weight_ih_l0.weight.grad_sample.shape
        torch.Size([2, 12, 3])
    """

    def __init__(self, layer: Layers) -> None:
        if not isinstance(layer, Layers):
            raise TypeError(f"PerSample: layer must be a fastrnn RNN, GRU or LSTM, got {type(layer).__name__}")
        if layer.recurrent_dropout:
            raise ValueError(
                f"PerSample: recurrent_dropout must be 0, got {layer.recurrent_dropout}: backward computes the forward "
                "again, for which another mask would be drawn"
            )
        if is_parametrized(layer):
            raise ValueError(
                "PerSample: the layer has parametrized parameters, as by weight_drop: they must be its own"
            )
        super().__init__()
        self.options = layer._configuration()
        self.names = layer._names()
        for names in self.names:
            for name in names:
                self.add_module(name, _Weight(getattr(layer, name)))
        self.train(layer.training)

    def forward(
        self, input: Tensor, hx: Any = None, *, lengths: Tensor | None = None, resets: Tensor | None = None
    ) -> tuple[Tensor, Any]:
        if isinstance(input, PackedSequence) or input.dim() != 3:
            raise TypeError("PerSample: input must be a tensor of 3 dimensions, padded, with lengths= if need be")
        options = replace(self.options, training=self.training, batch_first=False)
        single = len(options.cell.states) == 1
        x = input
        if self.options.batch_first:
            x, resets = x.transpose(0, 1), None if resets is None else resets.transpose(0, 1)
        states = hx if hx is None or not single else (hx,)
        directions, finals = 1 + options.bidirectional, []
        for first in range(0, len(self.names), directions):
            if first and options.dropout and self.training:
                x = F.dropout(x, options.dropout)
            rows = slice(first, first + directions)
            before = () if states is None else tuple(state[rows] for state in states)
            x, *after = self._layer(options, self.names[rows], x, before, lengths, resets)
            finals.append(after)
        hn = tuple(torch.cat(parts) for parts in zip(*finals, strict=True))
        return x.transpose(0, 1) if self.options.batch_first else x, hn[0] if single else hn

    def _layer(self, options: Configuration, names: Any, x: Tensor, states: Any, lengths: Any, resets: Any) -> Any:
        modules: list[Any] = [self.get_submodule(name) for each in names for name in each]
        call = _Call(options, [len(each) for each in names], len(states))
        if not (self.training and torch.is_grad_enabled()):
            return call(x, lengths, resets, *states, *(module.weight for module in modules))
        samples = x.detach().new_empty(()).expand(x.shape[1], x.shape[1])
        weights = [module(samples).squeeze(0) for module in modules]
        return _Recurrence.apply(call, x, lengths, resets, *states, *weights)  # type: ignore[no-untyped-call]


class _Call:
    """One layer as a function of its tensors: x, lengths, resets, the initial states if any, the weights."""

    def __init__(self, options: Configuration, sizes: list[int], states: int) -> None:
        self.options, self.sizes, self.states = options, sizes, states

    def __call__(self, x: Tensor, lengths: Any, resets: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        """For a batch, or for one sample without one."""
        hx: Any = tensors[: self.states] or None
        if hx is not None and len(self.options.cell.states) == 1:
            (hx,) = hx
        each = iter(tensors[self.states :])
        weights = [[next(each) for _ in range(size)] for size in self.sizes]
        output, finals = results(self.options, weights, x, hx, lengths, resets)
        return (output, *finals)


class _Recurrence(torch.autograd.Function):
    """A layer whose weights (B, ...) are one weight for each of B samples, all the same."""

    @staticmethod
    def forward(ctx: Any, call: _Call, x: Tensor, lengths: Any, resets: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        states, weights = tensors[: call.states], [weight.detach() for weight in tensors[call.states :]]
        shared = [weight[0] if len(weight) else weight.new_zeros(weight.shape[1:]) for weight in weights]
        ctx.call = call
        ctx.save_for_backward(x, lengths, resets, *states, *shared)
        return call(x, lengths, resets, *states, *shared)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        call: _Call = ctx.call
        x, lengths, resets, *tensors = hints.saved_tensors(ctx)
        if not x.shape[1]:
            weights = [weight.new_zeros(0, *weight.shape) for weight in tensors[call.states :]]
            return None, torch.zeros_like(x), None, None, *map(torch.zeros_like, tensors[: call.states]), *weights

        def of_one(x: Tensor, lengths: Any, resets: Any, tensors: Any, grads: Any) -> Any:
            return torch.func.vjp(lambda x, *tensors: call(x, lengths, resets, *tensors), x, *tensors)[1](grads)

        places = [1] * call.states + [None] * (len(tensors) - call.states)
        options = (None if lengths is None else 0, None if resets is None else 1)
        found = torch.func.vmap(of_one, (1, *options, places, 1), (1, *[1] * call.states, *[0] * places.count(None)))
        d_x, *others = found(x, lengths, resets, list(tensors), grads)
        return None, d_x, None, None, *others


@register_grad_sampler(_Weight)
def _of_each(module: _Weight, activations: Any, backprops: Tensor) -> dict[nn.Parameter, Tensor]:
    return {module.weight: backprops.flatten(0, 1)}


_LAYERS = [RNN, GRU, LSTM]


@register_module_validator([*_LAYERS, RNNCell, GRUCell, LSTMCell])
def _validate(module: nn.Module) -> list[UnsupportedModuleError]:
    return [UnsupportedModuleError(opacus_objection(module))]


@register_module_fixer(_LAYERS)
def _fix(module: Layers, **_: Any) -> PerSample:
    return PerSample(module)
