"""`fastrnn.stream`: layers that are called step by step, with states of their own, within microseconds."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from fastrnn import checks
from fastrnn.backends import numba
from fastrnn.backends.numba.helpers import Helpers
from fastrnn.backends.numba.stream_weights import StreamWeights
from fastrnn.backends.numba.streams import StreamMemory
from fastrnn.cells.weights import Parted
from fastrnn.prepacking import FORMATS
from fastrnn.streaming import arguments
from fastrnn.streaming.door import Door
from fastrnn.streaming.source import Source, source_of


class Difference(NamedTuple):
    """How far a stream's outputs are from those of float32 weights. `str()` of it is for people."""

    relative: float
    """‖y - y₃₂‖ / ‖y₃₂‖ over all steps, rows and units"""
    late: float
    """the same over the last tenth of the steps, where differences have added up"""
    largest: float
    """of all `|y - y₃₂|`"""
    steps: int

    def __str__(self) -> str:
        return (
            f"relative {self.relative:.1e}, in the last tenth of {self.steps} steps {self.late:.1e}, "
            f"largest {self.largest:.1e}"
        )


def _relative(apart: Tensor, exactly: Tensor) -> float:
    """‖apart‖ / ‖exactly‖; 0 where both are zeros."""
    difference, size = float(apart.norm()), float(exactly.norm())
    return difference / size if size else difference


class Stream(Door):
    """What `fastrnn.stream` returns."""

    module: nn.Module
    """whose weights it has"""
    batch: int
    steps: int
    slots: int | None
    weights: str
    threads: int

    def __init__(
        self, module: nn.Module, batch: int, steps: int, threads: int, weights: str, slots: int | None
    ) -> None:
        """See `fastrnn.stream`."""
        source = source_of(module)
        reason = numba.ready()
        if reason is not None:
            raise RuntimeError(f"stream: {reason}")
        with _plain_tensors():
            layers = source.layers()
            laid_out = StreamWeights(source.cell, layers, source.step_inputs(), weights)
            memory = StreamMemory(laid_out, steps, batch, slots or batch, source.batch_first)
            output = torch.zeros(batch * steps * laid_out.sizes[-1].outputs, dtype=torch.float32)
            helpers = Helpers(memory.kernel.address, memory.blocks, threads - 1)
            self._end = weakref.finalize(self, _end, helpers, memory)
        self.module, self.batch, self.steps, self.slots = module, batch, steps, slots
        self.weights, self.threads = weights, threads
        self._source: Source = source
        self._memory: StreamMemory | None = memory
        self._block = memory.blocks  # as long as the door, which marks there that it is in use, closed or not
        self._inputs, self._outputs = laid_out.sizes[0].inputs, laid_out.sizes[-1].outputs
        self._output = output
        self._views: dict[tuple[int, int, int], Tensor] = {}
        super().__init__(
            kernel=memory.kernel.address,
            block=memory.blocks.buffer_info()[0],
            features=self._inputs,
            outputs=self._outputs,
            steps=steps,
            batch=batch,
            batch_first=source.batch_first,
            slots=slots or 0,
            work=sum(w.numel() for layer in layers for w in (layer.w_ih, layer.w_hh, *layer.extras)),
        )

    def _slowly(self, x: Any, out: Any, slots: Any) -> Any:
        """Every call that is not as usual; and what is wrong with it."""
        self._open()
        with torch.no_grad():
            given = arguments.tensor("x", x)
            rows, steps = arguments.rows_and_steps(given, self._inputs, self._source.batch_first)
            index = arguments.slots(slots, rows, self.slots)
            self._check_sizes(rows, steps)
            given = arguments.in_memory(given)
            self._enter()
            try:
                self._open()  # still: another thread may have closed it
                result, address = self._view(rows, steps, given.dim())
                written, asked = result, None
                if out is not None:
                    result, asked = out, arguments.output(out, result.shape)
                    written = asked if arguments.is_memory(asked) else asked.new_empty(asked.shape)
                    address = written.data_ptr()
                if arguments.overlap(given, written):
                    given = given.clone()
                if index is not None and arguments.overlap(index, written):
                    index = index.clone()
                places = 0 if index is None else index.data_ptr()
                if rows and self._start(given.data_ptr(), address, steps, rows, places) and index is not None:
                    raise arguments.wrong_slots(index, self.slots or 0)
                if asked is not None and asked is not written:
                    with torch.inference_mode():  # in which tensors of that mode and others may be written to
                        asked.copy_(written)
            finally:
                self._leave()
            return result

    def _check_sizes(self, rows: int, steps: int) -> None:
        if self.slots is None and rows != self.batch:
            raise RuntimeError(f"stream: x must have a batch of {self.batch}, got {rows}")
        if rows > self.batch:
            raise RuntimeError(f"stream: x must have at most {self.batch} rows, got {rows}")
        if steps < 1:
            raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
        if steps > self.steps:
            raise RuntimeError(f"stream: x must have at most {self.steps} steps, got {steps}")

    def _view(self, rows: int, steps: int, dims: int) -> tuple[Tensor, int]:
        """The output of a call of so many rows, steps and dimensions, and its memory's address."""
        key = rows, steps, dims
        if key not in self._views:
            outer = (rows, steps) if self._source.batch_first else (steps, rows)
            shape = (*(outer if dims == 3 else (rows,) * (dims - 1)), self._outputs)
            self._views[key] = self._output[: prod(shape)].view(shape)
        return self._views[key], self._output.data_ptr()

    @property
    def state(self) -> Any:
        """The states in the module's form, a copy: h, or (h, c, ...) of a cell with several, (layers, B, H) each, of a
        cell's module (B, H); with slots B is their number. It may be set.

        Raises:
            RuntimeError: another number of states, or one of another shape, as torch.nn; one has no memory.
            TypeError: no tensor, or of a cell with several states no tuple or list of them.
            ValueError: a state is not float32, or not on the CPU.
        """
        self._enter()
        try:
            states = tuple(state.clone(memory_format=torch.contiguous_format) for state in self._states())
        finally:
            self._leave()
        return states if len(states) > 1 else states[0]

    @state.setter
    def state(self, value: Any) -> None:
        names = self._source.cell.states
        checks.count_of_states("stream", value, names)
        given = (value,) if len(names) == 1 else value
        self._enter()
        try:
            states = self._states()
            checks.state_sizes(given, [tuple(state.shape) for state in states])
            new = [arguments.tensor("state", state) for state in given]
            with torch.no_grad():
                for state, value in zip(states, new, strict=True):
                    state.copy_(value)
        finally:
            self._leave()

    def _states(self) -> list[Tensor]:
        """Views of all states, in the module's form."""
        states = self._open().states
        return [state[0] for state in states] if self._source.is_cell else states

    def reset(self, rows: Any = None) -> None:
        """Sets states to zero: all, or those of these rows, with slots of these slots.

        `rows` is an int, several of them, an int64 tensor or buffer (n,), or of booleans one for each state there is.

        Raises:
            IndexError: there is no such row; nothing has changed then.
            TypeError, ValueError: no integers or booleans, or of another shape.
        """
        index = None if rows is None else arguments.states_of(rows, self.slots or self.batch)
        self._enter()
        try:
            home = self._open().home
            with torch.no_grad():
                home.zero_() if index is None else home.index_fill_(0, index, 0.0)
        finally:
            self._leave()

    def update(self) -> None:
        """Takes the module's weights anew; states stay. Until then a change of a parameter is not seen.

        Weights that a hook of the module computes before each call, as that of pruning does, are those of its last one.

        Raises:
            ValueError: the cell, the sizes or the layout are not those of before, or weights do not go into the format;
                nothing has changed then.
            RuntimeError: parameters are of no layer's shapes, or have no memory.
        """
        self._enter()
        try:
            memory = self._open()
            with _plain_tensors():
                now = source_of(self.module)
                layers, given = now.layers(), now.step_inputs()
                if not self._fits(now, layers):
                    raise ValueError("stream: the module has become another one: make another stream of it")
                memory.weights.lay_out(layers, given)
        finally:
            self._leave()

    def _fits(self, now: Source, layers: Sequence[Parted]) -> bool:
        """Whether this stream could take these weights."""
        before = self._source
        same = (now.cell, now.batch_first, now.is_cell) == (before.cell, before.batch_first, before.is_cell)
        return same and self._open().weights.fits(layers)

    @property
    def stale(self) -> bool:
        """Whether `update` would change anything, or raise. All weights are looked at: not for every step."""
        memory = self._open()
        with _plain_tensors():
            try:
                now = source_of(self.module)
                layers, given = now.layers(), now.step_inputs()
                return not self._fits(now, layers) or not memory.weights.has(layers, given)
            except (TypeError, ValueError, RuntimeError):
                return True

    def error(self, x: Any) -> Difference:
        """How far the outputs are from those with float32 weights, both of the module's weights as they are now.

        x is (steps, batch, I), or as the module lays it out, of any number of steps and sequences. Both begin with
        zeros; this stream's states stay as they are.

        Raises:
            ValueError, RuntimeError, TypeError: as a call.
        """
        self._open()
        given = arguments.tensor("x", x)
        batch_first = self._source.batch_first
        rows, steps = arguments.rows_and_steps(given, self._inputs, batch_first)
        if given.dim() < 3 or rows < 1 or steps < 1:
            raise ValueError(f"stream: error takes x of 3 dimensions, none empty, got {tuple(given.shape)}")
        kept, exact = (Stream(self.module, rows, steps, 1, weights, None) for weights in (self.weights, "float32"))
        with kept, exact:
            y, y32 = kept(given), exact(given)
            if batch_first:
                y, y32 = y.transpose(0, 1), y32.transpose(0, 1)
            apart, exactly, late = (y - y32).double(), y32.double(), -max(1, steps // 10)
            return Difference(
                _relative(apart, exactly), _relative(apart[late:], exactly[late:]), float(apart.abs().max()), steps
            )

    def close(self) -> None:
        """Gives memory and threads back; calls raise from now on. Outputs that were returned stay as they are."""
        self._enter()
        try:
            self._shut()
            self._memory = None
            self._views.clear()
            self._end()
        finally:
            self._leave()

    def _open(self) -> StreamMemory:
        if self._memory is None:
            raise RuntimeError("stream: it is closed")
        return self._memory

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a Stream is neither copied nor pickled: pickle its module, and make a stream of that")

    def __repr__(self) -> str:
        sizes = f"batch={self.batch}, steps={self.steps}" + f", slots={self.slots}" * (self.slots is not None)
        return f"Stream({type(self.module).__name__}, {sizes}, weights={self.weights!r}, threads={self.threads})"


@contextmanager
def _plain_tensors() -> Iterator[None]:
    """What is made within is on the CPU and may be written to later on, whatever mode the caller is in."""
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        yield


def _end(helpers: Helpers, memory: StreamMemory) -> None:
    """What a stream leaves behind: threads end before what they read."""
    helpers.stop()


def stream(
    module: nn.Module,
    *,
    batch: int = 1,
    steps: int = 1,
    threads: int = 1,
    weights: str = "float32",
    slots: int | None = None,
) -> Stream:
    """A recurrent layer to be called step by step, on the CPU, in inference, with states that it keeps.

    `y = stream(x)` takes x (batch, I), one step, or (steps, batch, I), of a `batch_first` module (batch, steps, I): a
    tensor or anything with the buffer protocol, float32. Fewer steps than `steps` may be given. It returns the outputs,
    (batch, H), or as x is laid out: **the same memory in every call**, which the next one overwrites; `out=` gives it
    the caller's to write to, which it returns. States begin with zeros.

    A stream computes as the module does in evaluation, without dropout, and without gradients. Its weights are those
    that the module had when it was made: `update` takes them anew, `stale` tells whether that would change anything.

    Args:
        module: an RNN, GRU, LSTM or `Recurrent` of any number of layers, or a cell, of fastrnn or torch.nn, in one
            direction, with float32 parameters on the CPU.
        batch: how many sequences there are, or with `slots` the most of a call.
        steps: the most of a call.
        threads: with 2 or more, others help where they are awake: on Linux, from some 128 units on. They look
            for work for a while after each call, which takes a processor, and then sleep.
        weights: how the matrices are kept: "float32"; "float16", half the memory; "int8", a quarter, with a scale for
            each row, multiplied with x and h in 16 bits. `Stream.error` tells what that does to the outputs.
        slots: how many sequences there are, of which each call steps some: `stream(x, slots=index)`, with index int64
            (rows,) and x (rows, I) or (steps, rows, I).

    A stream is for one thread at a time: a second one that calls it meanwhile gets a RuntimeError. In a forked child
    it works on, alone. `with` or `close` gives its memory and threads back.

    Raises:
        TypeError: `module` is no recurrent layer or cell; an argument is not of its type.
        ValueError: it is bidirectional, its cell takes inputs of the steps, or its parameters are not float32 on the
            CPU; `weights` is no format, or they do not go into it; a number is below 1.
        RuntimeError: Numba cannot be used here.

    Example::

        >>> import torch, fastrnn
        >>> lstm = fastrnn.LSTM(3, 4)
        >>> stream = fastrnn.stream(lstm)
        >>> for x in torch.randn(5, 1, 3):
        ...     y = stream(x)
        >>> y.shape, stream.state[0].shape
        (torch.Size([1, 4]), torch.Size([1, 1, 4]))
        >>> many = fastrnn.stream(lstm, batch=2, slots=1000, weights="int8")
        >>> many(torch.randn(2, 3), slots=torch.tensor([7, 999])).shape
        torch.Size([2, 4])
    """
    checks.types(int, batch=batch, steps=steps, threads=threads, **({} if slots is None else {"slots": slots}))
    for name, value in (("batch", batch), ("steps", steps), ("threads", threads), ("slots", slots)):
        if isinstance(value, bool):
            raise TypeError(f"{name} should be of type int, got: bool")
        if value is not None and value < 1:
            raise ValueError(f"stream: {name} must be at least 1, got {value}")
    if weights not in FORMATS:
        raise ValueError(f"stream: weights must be one of {', '.join(map(repr, FORMATS))}, got {weights!r}")
    return Stream(module, batch, steps, threads, weights, slots)
