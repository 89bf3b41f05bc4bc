"""Every kind of call, made of both modules with equal arguments, and everything that may show compared."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence
from torch.overrides import TorchFunctionMode

import fastrnn
from tests.default_dtype import default_dtype
from tests.tolerances import DROP_IN
from tests.torch.state_machine import oracle
from tests.torch.state_machine.twins import Twins, Values
from tests.torch_parity import tensors

TOLERANCE = {torch.float64: DROP_IN, torch.float32: 1e-4, torch.bfloat16: 0.08}
"""Far above rounding and far below any mistake, as `DROP_IN` is."""
SHARE = 0.01
"""Of the largest result's norm: what is smaller has lost digits to cancellation."""

LAYOUTS = ("plain", "transposed", "strided", "expanded", "negated", "imaginary", "offset", "inference")
SHOWN = ("padded", "packed", "lengths", "list", "int32", "array", "resets", "both", "states", "cut states")
BACKWARD = ("once", "twice", "double", "both later", "chained", "accumulated", "summed", "negated")
CONTEXTS = ("none", "autocast", "auto", "numba", "aten", "reference", "mode", "default dtype", "saved")
GIVEN = ("none", *LAYOUTS[:-1], "shared", "list", "returned")


@dataclass(frozen=True)
class Form:
    """A kind of call; the values are others every time."""

    steps: int = 3
    batch: int | None = 2
    mode: str = "grad"
    x: str = "plain"
    x_grad: bool = False
    hx: str = "none"
    hx_grad: bool = False
    shown: str = "padded"
    backward: str = "once"
    context: str = "none"
    where: str = "here"


class Given(NamedTuple):
    """The arguments of one call."""

    x: Any
    hx: Any
    options: dict[str, Any]
    leaves: list[Tensor]
    lengths: list[int]
    resets: list[list[bool]]


class Outcome(NamedTuple):
    """What came of some calls."""

    results: list[Tensor]
    gradients: list[Tensor | None]
    error: Exception | None


def possible(twins: Twins, form: Form) -> Form:
    """The form without what such modules do not have, what torch does not define, and differences that are documented.

    Backward twice is for float64, where oneDNN's LSTM, which has no second derivative, does not serve torch.nn.
    """
    changes: dict[str, Any] = {}
    if twins.kind.cell:
        changes |= {"shown": "padded", "steps": 1}
    elif form.batch is None and form.shown == "packed":
        changes["batch"] = 1
    shown = changes.get("shown", form.shown)
    if form.context == "aten" and (shown not in ("padded", "packed") or twins.ours.recompute):
        changes["context"] = "none"
    if form.hx in ("list", "shared") and (len(twins.widths) == 1 or len(set(twins.widths)) > 1):
        changes["hx"] = "plain"
    if form.backward == "double" and twins.dtype != torch.float64:
        changes["backward"] = "twice"
    if twins.wrapped == "pruned":  # the weight is computed by a hook, which `oracle.reference` does not call
        changes |= {"context": "none"} if form.context == "autocast" else {}
        changes |= {"shown": "padded"} if "states" in shown or twins.kind.dropout else {}
    # They share torch's generator, and the default dtype, which the later one would put back to the other's.
    if form.where == "two threads" and (twins.kind.dropout or form.context == "default dtype"):
        changes["where"] = "thread"
    if form.hx == "none" and form.backward == "chained" and shown not in ("padded", "packed"):
        changes["backward"] = "once"
    return replace(form, **changes) if changes else form


def savable(form: Form) -> Form:
    """The form without tensors of inference mode, which backward cannot read."""
    return replace(
        form, x="plain" if form.x == "inference" else form.x, hx="plain" if form.hx == "returned" else form.hx
    )


def served(twins: Twins, form: Form) -> bool:
    """Whether the backend that is asked for by name serves such calls: `aten` has no lengths."""
    asked = twins.ours.backend or form.context
    return asked != "aten" or form.shown in ("padded", "packed")


def check(twins: Twins, form: Form, seed: int) -> None:
    """Makes the call with both modules and compares them."""
    form = possible(twins, form)
    two = form.backward in ("both later", "chained") or form.where == "two threads"
    numbers = range(2 if two else 1)
    mine, theirs = ([given(twins, form, seed + number, own) for number in numbers] for own in (True, False))
    expected = outcome(twins, replace(form, where="here"), theirs, seed, oracle_of)
    got = outcome(twins, form, mine, seed, ours_of)
    if not served(twins, form):
        assert isinstance(got.error, (RuntimeError, ValueError)), got.error
        return
    if "Inference tensors cannot be saved" in str(got.error) and any(one.is_inference() for one in mine[0].leaves):
        return  # which torch.nn does not notice where it happens to copy them: transposed ones, and the oracle's
    if expected.error is not None or got.error is not None:
        if type(got.error) is not type(expected.error):
            raise AssertionError(f"{got.error!r} in place of {expected.error!r}") from got.error
        return
    tolerance = max(TOLERANCE[y.dtype] for y in got.results)
    compare(got.results, expected.results, tolerance)
    relu = tolerance > 0.01 and getattr(twins.theirs, "nonlinearity", "") == "relu"
    compare(got.gradients, expected.gradients, float("inf") if relu else tolerance if tolerance < 0.01 else 0.5)
    for one, other in zip(mine, theirs, strict=True):
        assert all(map(torch.equal, one.leaves, other.leaves)), "an argument was changed"
    apart(twins, got.results, [leaf for one in mine for leaf in one.leaves])
    remember_states(twins, form, got.results)


def given(twins: Twins, form: Form, seed: int, own: bool) -> Given:
    """Arguments with values that depend on the seed only; `own` for fastrnn's module, which may share memory."""
    values, dtype = Values(seed), twins.dtype
    shape = () if form.batch is None else (form.batch,)
    first = not twins.kind.cell and twins.theirs.batch_first and form.batch is not None
    if not twins.kind.cell:
        shape = (form.batch or 1, form.steps) if first else (form.steps, *shape)
    x = laid_out(values.tensor((*shape, twins.theirs.input_size), dtype), form.x)
    before = [_state(twins, form, number, width, values) for number, width in enumerate(twins.widths)]
    if form.hx == "returned" and [state.shape for state in before] == [state.shape for state in twins.states]:
        before = [state.detach().to(dtype) if own else _copy(state.detach(), dtype) for state in twins.states]
    if form.hx == "shared":
        before = [before[0]] * len(before)
    leaves = [x, *before] if form.hx != "none" else [x]
    for tensor, wanted in zip(leaves, (form.x_grad, form.hx_grad, form.hx_grad), strict=False):
        if not tensor.is_inference():
            tensor.requires_grad_(wanted)
    hx = None if form.hx == "none" else before if form.hx == "list" else tuple(before) if len(before) > 1 else before[0]
    batch = form.batch or 1
    least = 1 if form.shown == "packed" else 0
    lengths, resets, options = [form.steps] * batch, [[False] * batch] * form.steps, {}
    if form.shown in ("packed", "lengths", "list", "int32", "array", "both", "cut states"):
        lengths = [values.random.randint(least, form.steps) for _ in range(batch)]
        if form.shown == "packed":
            return Given(_packed(x, lengths, first), hx, {}, leaves, lengths, resets)
        options["lengths"] = _lengths(form, lengths)
    if form.shown in ("resets", "both", "cut states"):
        resets = [[values.random.random() < 0.3 for _ in range(batch)] for _ in range(form.steps)]
        flags = torch.tensor(resets)
        options["resets"] = flags[:, 0] if form.batch is None else flags.t() if first else flags
    if form.shown in ("states", "cut states"):
        options["return_states"] = True
    return Given(x, hx, options, leaves, lengths, resets)


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same numbers (for "expanded", their first row), elsewhere in memory or with another sign there."""
    if layout == "transposed":
        return values.transpose(0, -1).contiguous().transpose(0, -1)
    if layout == "strided":
        return torch.stack((values, values + 1), -1)[..., 0]
    if layout == "expanded":
        return values[:1].expand(values.shape)
    if layout == "negated":
        return torch._neg_view(-values)
    if layout == "imaginary":
        return torch.complex(values, -values).conj().imag
    if layout == "offset":
        return torch.cat((values.new_zeros(1), values.flatten()))[1:].view(values.shape)
    if layout == "inference":
        with torch.inference_mode():
            return values.clone()
    return values


def _state(twins: Twins, form: Form, number: int, width: int, values: Values) -> Tensor:
    shape = twins.state_shape(form.batch, width)
    return laid_out(values.tensor(shape, twins.dtype), "plain" if form.hx in ("none", "returned") else form.hx)


def _copy(state: Tensor, dtype: torch.dtype) -> Tensor:
    """Of other memory, as much of inference mode as the state itself."""
    with torch.inference_mode(state.is_inference()):
        return state.to(dtype, copy=True)


def _packed(x: Tensor, lengths: list[int], batch_first: bool) -> Any:
    """Whatever the modes are in which the module is called."""
    with torch.enable_grad():
        return pack_padded_sequence(x, lengths, batch_first, enforce_sorted=lengths == sorted(lengths, reverse=True))


def _lengths(form: Form, lengths: list[int]) -> Any:
    if form.batch is None:
        return lengths[0] if form.shown == "list" else torch.tensor(lengths[0])
    if form.shown == "list":
        return lengths
    tensor = torch.tensor(lengths, dtype=torch.int32 if form.shown == "int32" else torch.int64)
    return tensor.numpy() if form.shown == "array" else tensor


Compute = Callable[[Twins, Form, Given], Any]


def ours_of(twins: Twins, form: Form, given: Given) -> Any:
    if form.hx == "none":
        return twins.ours(given.x, **given.options)
    return twins.ours(given.x, given.hx, **given.options)


def oracle_of(twins: Twins, form: Form, given: Given) -> Any:
    dropout = twins.kind.dropout and given.options  # whose mask is of padded rows then
    if form.context == "autocast" or "return_states" in given.options or dropout:
        return oracle.reference(twins, given.x, tuple(given.hx) if form.hx == "list" else given.hx, **given.options)
    if given.options:
        return _cut_up(twins, form, given)
    return twins.theirs(given.x, given.hx)


def _cut_up(twins: Twins, form: Form, given: Given) -> Any:
    x, hx, first = given.x, given.hx, twins.theirs.batch_first
    if form.batch is None:
        hx = None if hx is None else [h.unsqueeze(1) for h in hx] if len(twins.widths) > 1 else hx.unsqueeze(1)
        y, after = oracle.cut_up(twins, x.unsqueeze(1), hx, given.lengths, given.resets)
        return y.squeeze(1), tuple(h.squeeze(1) for h in after) if isinstance(after, tuple) else after.squeeze(1)
    y, after = oracle.cut_up(twins, x.transpose(0, 1) if first else x, hx, given.lengths, given.resets)
    return (y.transpose(0, 1) if first else y), after


class Watching(TorchFunctionMode):
    """Sees every call, and changes nothing."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))


def _contexts(form: Form) -> list[AbstractContextManager[Any]]:
    modes = {"grad": torch.enable_grad, "no_grad": torch.no_grad, "inference": torch.inference_mode}
    contexts: list[AbstractContextManager[Any]] = [modes[form.mode]()]
    if form.context == "autocast":
        contexts.append(torch.autocast("cpu", torch.bfloat16))
    elif form.context in ("auto", "numba", "aten", "reference"):
        contexts.append(fastrnn.use_backend(form.context))
    elif form.context == "mode":
        contexts.append(Watching())
    elif form.context == "saved":
        contexts.append(torch.autograd.graph.saved_tensors_hooks(torch.clone, lambda tensor: tensor))
    elif form.context == "default dtype":
        contexts.append(default_dtype(torch.float64))
    return contexts


def called(twins: Twins, form: Form, compute: Compute, given: Given, seed: int) -> Any:
    """The module's results under the modes of the form, dropout's numbers determined by the seed."""
    if twins.kind.dropout:
        torch.manual_seed(seed)
    with ExitStack() as stack:
        for context in _contexts(form):
            stack.enter_context(context)
        return compute(twins, form, given)


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(2)


def outcome(twins: Twins, form: Form, givens: Sequence[Given], seed: int, compute: Compute) -> Outcome:
    """Results and gradients, or what was raised."""
    module = twins.ours if compute is ours_of else twins.theirs
    try:
        if form.backward == "chained":
            results = [_chained(twins, form, compute, givens, seed)]
        elif form.where == "here":
            results = [called(twins, form, compute, one, seed) for one in givens]
        elif form.where == "thread":
            results = [_threads().submit(called, twins, form, compute, one, seed).result() for one in givens]
        else:
            futures = [_threads().submit(called, twins, form, compute, one, seed) for one in givens]
            results = [future.result() for future in futures]
        flat = [tensors(result) for result in results]
        leaves = [leaf for one in givens for leaf in one.leaves]
        wanted = [tensor for tensor in (*leaves, *module.parameters()) if tensor.requires_grad]
        gradients = [] if form.mode != "grad" else [g for ys in flat for g in gradients_of(form, ys, wanted)]
    except Exception as error:
        return Outcome([], [], error)
    return Outcome([y for ys in flat for y in ys], gradients, None)


def _chained(twins: Twins, form: Form, compute: Compute, givens: Sequence[Given], seed: int) -> Any:
    """The second call begins with the states that the first returned; gradients go through both."""
    first, second = givens
    one = called(twins, form, compute, first, seed)
    states = one if twins.kind.cell else one[1]
    two = called(twins, replace(form, hx="chained"), compute, second._replace(hx=states), seed)
    return [one, two]


def gradients_of(form: Form, results: list[Tensor], wanted: list[Tensor]) -> list[Tensor | None]:
    """As the form wants them, for upstream gradients that depend on shapes alone."""
    outputs = [y for y in results if y.requires_grad]
    if not outputs or not wanted:
        return []
    grad, options = torch.autograd.grad, {"allow_unused": True}
    if form.backward == "summed":  # expanded gradients
        return list(grad(sum(y.sum() for y in outputs), wanted, **options))
    upstream = [Values(number).tensor(y.shape, y.dtype) for number, y in enumerate(outputs)]
    if form.backward == "negated":
        return list(grad(outputs, wanted, [laid_out(u, "negated") for u in upstream], **options))
    if form.backward == "accumulated":
        torch.autograd.backward(outputs, upstream)
        found = [tensor.grad for tensor in wanted]
        for tensor in wanted:
            tensor.grad = None
        return found
    if form.backward == "twice":
        return [
            *grad(outputs, wanted, upstream, retain_graph=True, **options),
            *grad(outputs, wanted, upstream, **options),
        ]
    if form.backward == "double":
        once = grad(outputs, wanted, upstream, create_graph=True, **options)
        again = [g.square().sum() for g in once if g is not None and g.requires_grad]
        return [*once, *(grad(sum(again), wanted, **options) if again else ())]
    return list(grad(outputs, wanted, upstream, **options))


def compare(got: Sequence[Tensor | None], expected: Sequence[Tensor | None], tolerance: float) -> None:
    """Same shapes, dtypes and values, and None where that is expected."""
    assert [None if y is None else (y.shape, y.dtype, y.requires_grad) for y in got] == [
        None if y is None else (y.shape, y.dtype, y.requires_grad) for y in expected
    ]
    with torch.no_grad():
        pairs = [(a, b) for a, b in zip(got, expected, strict=True) if a is not None and b is not None]
        if not pairs:
            return
        ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
        differences = [float(d) for d in torch._foreach_norm(torch._foreach_sub(ours, theirs))]
        sizes = [float(size) for size in torch._foreach_norm(theirs)]
    least = SHARE * max(sizes) or 1.0
    errors = [difference / max(size, least) for difference, size in zip(differences, sizes, strict=True)]
    assert all(error <= tolerance for error in errors), f"relative errors {errors}, allowed {tolerance}"


def apart(twins: Twins, results: Sequence[Tensor], arguments: Sequence[Tensor]) -> None:
    """No result shares memory with another, an argument or a parameter."""
    places = {tensor.untyped_storage().data_ptr() for tensor in (*arguments, *twins.ours.parameters())}
    for result in results:
        place = result.untyped_storage().data_ptr()
        assert place not in places, "a result shares memory"
        places.add(place)


def remember_states(twins: Twins, form: Form, results: list[Tensor]) -> None:
    """For calls that begin with them, by detached views of the same memory."""
    first = 0 if twins.kind.cell else 1
    count = len(twins.widths)
    if form.backward != "chained" and form.where != "two threads" and form.context != "autocast":
        twins.states = [state.detach() for state in results[first : first + count]]
