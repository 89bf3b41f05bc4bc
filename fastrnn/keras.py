"""Weights of Keras 3's LSTM, GRU and SimpleRNN into fastrnn's modules, and back.

Weights travel as NumPy arrays, so that Keras may run on any of its backends. Keras itself is imported only to build its
layers. What is the same on both sides:

====================================  ==========================================================================
Keras                                 fastrnn, `output, hn = module(x)`
====================================  ==========================================================================
`SimpleRNN`, activation tanh or relu  `RNN`
`GRU(reset_after=True)`, the default  `GRU`
`LSTM`                                `LSTM`, `output, (hn, cn) = module(x)`
`Bidirectional(layer)`                `bidirectional=True`; merged by concatenation, the default
a sequence of layers of one size      `num_layers`
`return_sequences=True`               `output`
`return_sequences=False`              `hn[-1]`, of `Bidirectional` `torch.cat((hn[-2], hn[-1]), -1)`
`return_state=True`                   `hn` and `cn`, a direction after the other
`initial_state=[h, c]`                `hx=(h[None], c[None])`
a mask that ends each sequence        `lengths=`; output is zero at masked steps, where Keras may repeat the one
                                      before
====================================  ==========================================================================

What acts in training only is not carried over: initializers, regularizers, constraints, and dropout, of which a warning
tells. `recurrent_dropout` has the same place on both sides, but where modules draw one mask for all gates, as Keras'
SimpleRNN does, Keras' LSTM and GRU draw one for each. Keras' LSTM and SimpleRNN have one bias where torch has two, of
which only the sum matters.

Source: the documentation of keras.layers.LSTM, GRU, SimpleRNN and Bidirectional, https://keras.io/api/layers/.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from fastrnn.dropping import raw
from fastrnn.nn import GRU, LSTM, RNN

__all__ = ["from_keras", "get_weights", "load_weights", "to_keras"]

Array = npt.NDArray[Any]

_GATES = {"LSTM": (0, 1, 2, 3), "GRU": (1, 0, 2), "SimpleRNN": (0,)}
"""torch's gates in the order of each of Keras' classes: i f c o, z r h. It is its own inverse."""
_MODULES: dict[str, type[RNN | GRU | LSTM]] = {"LSTM": LSTM, "GRU": GRU, "SimpleRNN": RNN}
_KERAS_CLASSES = {"LSTM": "LSTM", "GRU": "GRU", "RNN_TANH": "SimpleRNN", "RNN_RELU": "SimpleRNN"}
"""By `nn.RNNBase.mode`."""


class _Kind(NamedTuple):
    """What a Keras layer computes; the layers of a stack are of one kind."""

    name: str
    units: int
    bias: bool
    bidirectional: bool
    activation: str


def from_keras(layers: Any, *, backend: str | None = None) -> RNN | GRU | LSTM:
    """A module that computes what a Keras layer does, or a sequence of layers that feed one another.

    Args:
        layers: a built `LSTM`, `GRU`, `SimpleRNN`, or `Bidirectional` around one, or a sequence of them, which becomes
            one module of as many layers. In a sequence, all have the same class and units, and all but the last
            `return_sequences`.
        backend: see `fastrnn.LSTM`.

    Returns:
        The module, with `batch_first=True` as Keras has it, in the dtype of the layer's weights. It returns
        every step's output and the final states, whatever the layer returns: see this module's documentation.

    Raises:
        ValueError: for a layer that is not built, and for what has no equivalent: `reset_after=False`, another
            activation than tanh, or relu for `SimpleRNN`, another recurrent activation than sigmoid, `go_backwards`
            outside `Bidirectional`, `stateful`, another `merge_mode` than "concat", different kinds of layers.
        TypeError: for anything else than such layers.

    Warns:
        UserWarning: the layer has `dropout` or `recurrent_dropout`, which the module does not get.

    Example::

        >>> import os
        >>> os.environ["KERAS_BACKEND"] = "torch"  # or another; before Keras is imported
        >>> import keras, torch, fastrnn.keras
        >>> layer = keras.layers.GRU(20, return_sequences=True)
        >>> layer.build((None, None, 10))
        >>> gru = fastrnn.keras.from_keras(layer)
        >>> x = torch.randn(3, 5, 10)
        >>> torch.allclose(gru(x)[0], torch.tensor(keras.ops.convert_to_numpy(layer(x))), atol=1e-5)
        True
    """
    layers = _as_sequence(layers)
    kinds = [_kind(layer) for layer in layers]
    _require_one_kind(layers, kinds)
    kind, kernel = kinds[0], layers[0].get_weights()[0]
    options: dict[str, Any] = {"nonlinearity": kind.activation} if kind.name == "SimpleRNN" else {}
    _warn_of_dropout(layers)
    module: RNN | GRU | LSTM = _MODULES[kind.name](
        kernel.shape[0],
        kind.units,
        num_layers=len(layers),
        bias=kind.bias,
        batch_first=True,
        bidirectional=kind.bidirectional,
        dtype=getattr(torch, kernel.dtype.name),
        backend=backend,
        **options,
    )
    load_weights(module, layers)
    return module


def load_weights(module: nn.RNNBase, layers: Any) -> None:
    """Copies the weights of a Keras layer, or of a sequence of layers, into a module.

    Args:
        module: `RNN`, `GRU` or `LSTM` of fastrnn or of torch.nn, without projections and heads, on any device, in any
            dtype.
        layers: as for `from_keras`.

    Raises:
        ValueError: as `from_keras`; for another kind, size or number of layers than the module's; for a parameter of
            the module that is computed from others. The module is then unchanged.
        TypeError: as `from_keras`.

    Example::

        >>> import os
        >>> os.environ["KERAS_BACKEND"] = "torch"
        >>> import keras, fastrnn, fastrnn.keras
        >>> layer = keras.layers.LSTM(20)
        >>> layer.build((None, None, 10))
        >>> fastrnn.keras.load_weights(fastrnn.LSTM(10, 20), layer)
    """
    layers = _as_sequence(layers)
    own = _own_kind(module)
    if len(layers) != module.num_layers:
        raise ValueError(f"load_weights: there must be as many layers as the module has, {module.num_layers}")
    sources: list[tuple[Tensor, Tensor]] = []
    for index, layer in enumerate(layers):
        kind = _kind(layer)
        if kind != own:
            raise ValueError(f"{layer.name}: the layer is {_described(kind)}, the module {_described(own)}")
        arrays = layer.get_weights()
        count = len(arrays) // (1 + kind.bidirectional)
        for direction in range(1 + kind.bidirectional):
            values = _as_parameters(kind, arrays[direction * count : (direction + 1) * count])
            for name, value in zip(_names(index, direction, kind.bias), values, strict=True):
                parameter: Tensor | None = module._parameters.get(name)
                if parameter is None:
                    raise ValueError(f"load_weights: the module's {name} is not a parameter but computed from others")
                if parameter.shape != value.shape:
                    raise ValueError(
                        f"{layer.name}: the module's {name} must be {tuple(value.shape)}, got {tuple(parameter.shape)}"
                    )
                if any(parameter is other and not torch.equal(value, earlier) for other, earlier in sources):
                    raise ValueError(f"{layer.name}: the module's {name} is tied to another, whose weights differ")
                sources.append((parameter, value))
    with torch.no_grad():
        for target, value in sources:
            target.copy_(value)


def get_weights(module: nn.RNNBase) -> list[list[Array]]:
    """A module's weights in Keras' layout: for each of its layers what `set_weights` takes.

    Args:
        module: `RNN`, `GRU` or `LSTM` of fastrnn or of torch.nn.

    Returns:
        For each layer and, within it, each direction: kernel (I, G·H), recurrent_kernel (H, G·H) and, with biases, bias
        (G·H,), for GRU (2, G·H). bfloat16 becomes float32.

    Raises:
        ValueError: the module has projections or heads, which Keras has not.
        TypeError: it is not such a module.

    Example::

        >>> import fastrnn
        >>> [arrays] = fastrnn.keras.get_weights(fastrnn.LSTM(10, 20))
        >>> [array.shape for array in arrays]
        [(10, 80), (20, 80), (80,)]
    """
    kind = _own_kind(module)
    return [
        [
            array
            for direction in range(1 + kind.bidirectional)
            for array in _as_arrays(kind, [raw(module, name) for name in _names(index, direction, kind.bias)])
        ]
        for index in range(module.num_layers)
    ]


def to_keras(module: nn.RNNBase, *, return_sequences: bool = True) -> list[Any]:
    """Keras layers that compute what a module does, one for each of its layers; `keras.Sequential` takes them.

    Args:
        module: `RNN`, `GRU` or `LSTM` of fastrnn or of torch.nn.
        return_sequences: whether the last layer returns every step's output, as all others do.

    Returns:
        Built layers, `Bidirectional` ones for a bidirectional module, with the module's weights in its dtype.

    Raises:
        ValueError: the module has projections or heads, which Keras has not.
        TypeError: it is not such a module.
        ImportError: Keras 3 is missing: `pip install "fastrnn[keras]"`.

    Warns:
        UserWarning: the module has dropout between its layers, which the layers have not, or recurrent dropout, which
            they do not get.

    Example::

        >>> import os
        >>> os.environ["KERAS_BACKEND"] = "torch"
        >>> import fastrnn, fastrnn.keras
        >>> [layer] = fastrnn.keras.to_keras(fastrnn.LSTM(10, 20, bidirectional=True))
        >>> type(layer).__name__, layer.compute_output_shape((3, 5, 10))
        ('Bidirectional', (3, 5, 40))
    """
    kind, weights = _own_kind(module), get_weights(module)
    try:
        keras: Any = importlib.import_module("keras")
    except ImportError as error:
        raise ImportError(f'to_keras needs Keras 3, pip install "fastrnn[keras]": {error}') from error
    if module.dropout and module.num_layers > 1:
        warnings.warn(f"dropout={module.dropout} between layers is not carried over to Keras", stacklevel=2)
    if rate := getattr(module, "recurrent_dropout", 0.0):
        warnings.warn(f"recurrent_dropout={rate} acts in training only and is not carried over to Keras", stacklevel=2)
    dtype = str(module.weight_ih_l0.dtype).removeprefix("torch.")
    # The default for recurrent weights is a decomposition that torch does not compute in 16 bits.
    initial = {} if dtype in ("float32", "float64") else {"recurrent_initializer": "glorot_uniform"}
    layers = []
    for index, arrays in enumerate(weights):
        layer = getattr(keras.layers, kind.name)(
            kind.units,
            activation=kind.activation,
            use_bias=kind.bias,
            return_sequences=return_sequences or index < module.num_layers - 1,
            dtype=dtype,
            **initial,
        )
        if kind.bidirectional:
            layer = keras.layers.Bidirectional(layer, dtype=dtype)
        layer.build((None, None, arrays[0].shape[0]))
        layer.set_weights(arrays)
        layers.append(layer)
    return layers


def _as_sequence(layers: Any) -> list[Any]:
    found = list(layers) if isinstance(layers, Sequence) else [layers]
    if not found:
        raise ValueError("there must be at least one layer, got none")
    return found


def _kind(layer: Any) -> _Kind:
    """What a Keras layer is, after a check that a module can be the same."""
    if _keras_name(layer) == "Bidirectional":
        return _kind_of_both(layer)
    kind = _kind_of_one(layer)
    if layer.go_backwards:
        raise ValueError(
            f"{layer.name}: go_backwards must be False, no module runs from the end alone: "
            "convert a layer without it, and give the module input.flip(1)"
        )
    return kind


def _keras_name(layer: Any) -> str:
    """The name of one of Keras' own classes; empty for others, which may compute something else under the same name."""
    cls = type(layer)
    return cls.__name__ if cls.__module__.split(".")[0] == "keras" else ""


def _kind_of_both(layer: Any) -> _Kind:
    if layer.merge_mode != "concat":
        raise ValueError(
            f"{layer.name}: merge_mode must be 'concat', as modules have it, got {layer.merge_mode!r}: "
            "convert a layer with it, and merge output.chunk(2, -1)"
        )
    forward, backward = _kind(layer.forward_layer), _kind_of_one(layer.backward_layer)
    if forward != backward:
        raise ValueError(
            f"{layer.name}: both directions must be of one kind, got {_described(forward)} and {_described(backward)}"
        )
    return forward._replace(bidirectional=True)


def _kind_of_one(layer: Any) -> _Kind:
    name = _keras_name(layer)
    if name not in _GATES:
        raise TypeError(
            f"expected one of Keras' LSTM, GRU, SimpleRNN or Bidirectional of one, got {_type_name(layer)}; "
            "of a model, give its recurrent layers, which model.layers has"
        )
    if not layer.built:
        raise ValueError(f"{layer.name}: the layer must be built: call layer.build((None, None, input_size))")
    activation = _activation(layer.activation)
    expected = ("tanh", "relu") if name == "SimpleRNN" else ("tanh",)
    if activation not in expected:
        raise ValueError(f"{layer.name}: activation must be {' or '.join(expected)}, got {activation}")
    if name != "SimpleRNN" and _activation(layer.recurrent_activation) != "sigmoid":
        got = _activation(layer.recurrent_activation)
        raise ValueError(f"{layer.name}: recurrent_activation must be sigmoid, got {got}")
    if name == "GRU" and not layer.reset_after:
        raise ValueError(f"{layer.name}: reset_after must be True: modules apply the reset gate after the product")
    if layer.stateful:
        raise ValueError(f"{layer.name}: stateful must be False: modules take the states of the call before as hx")
    return _Kind(name, layer.units, layer.use_bias, False, activation)


def _warn_of_dropout(layers: Sequence[Any]) -> None:
    for layer in layers:
        for one in (layer.forward_layer, layer.backward_layer) if hasattr(layer, "backward_layer") else (layer,):
            if one.dropout or one.recurrent_dropout:
                rates = f"dropout={one.dropout} and recurrent_dropout={one.recurrent_dropout}"
                warnings.warn(f"{one.name}: {rates} act in training only and are not carried over", stacklevel=3)


def _activation(function: Any) -> str:
    """The name of one of Keras' own activations, another function with where it is from."""
    name, module = getattr(function, "__name__", repr(function)), getattr(function, "__module__", "")
    return name if module.split(".")[0] == "keras" else f"{module}.{name}"


def _type_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def _require_one_kind(layers: Sequence[Any], kinds: Sequence[_Kind]) -> None:
    for layer, kind in zip(layers, kinds, strict=True):
        if kind != kinds[0]:
            raise ValueError(
                f"{layer.name}: all layers must be of one kind, got {_described(kinds[0])} and {_described(kind)}"
            )
    for layer in layers[:-1]:
        recurrent = layer.forward_layer if kinds[0].bidirectional else layer
        if not recurrent.return_sequences:
            raise ValueError(f"{layer.name}: return_sequences must be True for all layers but the last")


def _described(kind: _Kind) -> str:
    directions = "bidirectional " if kind.bidirectional else ""
    bias = "" if kind.bias else " without bias"
    return f"{directions}{kind.name} ({kind.activation}) of {kind.units} units{bias}"


def _own_kind(module: Any) -> _Kind:
    if not isinstance(module, nn.RNNBase):
        raise TypeError(f"expected RNN, GRU or LSTM of fastrnn or torch.nn, got {_type_name(module)}")
    if module.proj_size:
        raise ValueError(f"Keras' LSTM has no projection, proj_size must be 0, got {module.proj_size}")
    if getattr(module, "num_heads", 1) != 1:
        hint = "fastrnn.heads.dense(module) computes the same with one"
        raise ValueError(f"Keras has no heads, num_heads must be 1, got {module.num_heads}: {hint}")
    activation = "relu" if module.mode == "RNN_RELU" else "tanh"
    return _Kind(
        _KERAS_CLASSES[module.mode], module.hidden_size, bool(module.bias), bool(module.bidirectional), activation
    )


def _names(layer: int, direction: int, bias: bool) -> list[str]:
    suffix = f"_l{layer}{'_reverse' if direction else ''}"
    kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    return [kind + suffix for kind in kinds[: 4 if bias else 2]]


def _as_parameters(kind: _Kind, arrays: Sequence[Array]) -> list[Tensor]:
    """kernel (I, G·H), recurrent_kernel (H, G·H) and bias, if any -> weight_ih, weight_hh and biases, if any."""
    kernel, recurrent, *bias = (_reordered(kind, _as_tensor(array)) for array in arrays)
    biases = [] if not bias else list(bias[0]) if kind.name == "GRU" else [bias[0], torch.zeros_like(bias[0])]
    return [kernel.t(), recurrent.t(), *biases]


def _as_arrays(kind: _Kind, parameters: Sequence[Tensor]) -> list[Array]:
    """The other way round."""
    w_ih, w_hh, *biases = (p.float() if p.dtype == torch.bfloat16 else p for p in parameters)
    bias = [] if not biases else [torch.stack(biases) if kind.name == "GRU" else biases[0] + biases[1]]
    return [_as_array(_reordered(kind, tensor)) for tensor in (w_ih.t(), w_hh.t(), *bias)]


def _reordered(kind: _Kind, tensor: Tensor) -> Tensor:
    """The gates along the last axis (…, G·H) in the other order."""
    gates = tensor.unflatten(-1, (len(_GATES[kind.name]), kind.units)).unbind(-2)
    return torch.cat([gates[gate] for gate in _GATES[kind.name]], -1)


def _as_tensor(array: Array) -> Tensor:
    # torch does not know NumPy's bfloat16, which is a type of another package.
    return torch.from_numpy(array.astype(np.float32) if array.dtype.name == "bfloat16" else array)


def _as_array(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().contiguous().numpy()
    return array
