"""`fastrnn.stream`: layers that are called step by step, with states of their own, within microseconds."""

from __future__ import annotations

import weakref
from math import prod
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn

from fastrnn import checks
from fastrnn.backends import numba
from fastrnn.backends.numba.helpers import Helpers
from fastrnn.backends.numba.streams import StreamMemory
from fastrnn.streaming import arguments
from fastrnn.streaming.door import Door
from fastrnn.streaming.source import Source, source_of

FORMATS = ("float32", "float16", "int8")


class Difference(NamedTuple):
    """How far a stream's outputs are from those of float32 weights. `str()` of it is for people."""

    relative: float
    """‖y - y₃₂‖ / ‖y₃₂‖ over all steps, rows and units"""
    late: float
    """the same over the last tenth of the steps, where differences have added up"""
    largest: float
    """of all |y - y₃₂|"""
    steps: int

    def __str__(self) -> str:
        return (
            f"relative {self.relative:.1e}, in the last tenth of {self.steps} steps {self.late:.1e}, "
            f"largest {self.largest:.1e}"
        )


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
        layers = source.layers()
        memory = StreamMemory(
            source.cell, layers, steps, batch, slots or batch, weights, source.batch_first, source.step_inputs()
        )
        self.module, self.batch, self.steps, self.slots = module, batch, steps, slots
        self.weights, self.threads = weights, threads
        self._source: Source = source
        self._memory: StreamMemory | None = memory
        self._inputs, self._outputs = memory.sizes[0].inputs, memory.sizes[-1].outputs
        self._output = torch.zeros(batch * steps * self._outputs)
        self._views: dict[tuple[int, int, int], Tensor] = {}
        helpers = Helpers(memory.kernel.address, memory.blocks, threads - 1)
        self._end = weakref.finalize(self, _end, helpers, memory)
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
        if self._memory is None:
            raise RuntimeError("stream: it is closed")
        with torch.no_grad():
            given = arguments.tensor("x", x)
            rows, steps = arguments.rows_and_steps(given, self._inputs, self._source.batch_first)
            index = arguments.slots(slots, rows, self.slots, self.batch)
            self._check_sizes(rows, steps)
            given = given.contiguous()
            self._enter()
            try:
                view, address = self._view(rows, steps, given.dim())
                target, result = view, view if out is None else out
                if out is not None:
                    target = arguments.output(out, view.shape)
                    direct = target.is_contiguous()
                    target, address = (target, target.data_ptr()) if direct else (view, address)
                if arguments.overlap(given, target):
                    given = given.clone()
                places = 0 if index is None else index.data_ptr()
                if rows and self._start(given.data_ptr(), address, steps, rows, places) and index is not None:
                    raise arguments.wrong_slots(index, self.slots or 0)
                if out is not None and target is view:
                    arguments.output(out, view.shape).copy_(view)
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
            RuntimeError: a state has another shape; as torch.nn.
            ValueError, TypeError: another number of states; they are not float32.
        """
        self._enter()
        try:
            states = tuple(state.clone() for state in self._states())
        finally:
            self._leave()
        return states if len(states) > 1 else states[0]

    @state.setter
    def state(self, value: Any) -> None:
        names = self._source.cell.states
        given = (value,) if len(names) == 1 and isinstance(value, Tensor) else value
        checks.count_of_states("stream", given, names)
        self._enter()
        try:
            states = self._states()
            checks.state_sizes(given, [tuple(state.shape) for state in states])
            checks.same_device_and_dtype(states[0], given, ())
            for state, new in zip(states, given, strict=True):
                state.copy_(new.detach())
        finally:
            self._leave()

    def _states(self) -> list[Tensor]:
        """Views of all states."""
        memory = self._open()
        states = []
        for number in range(len(self._source.cell.states)):
            places = [layer[number] for layer in memory.state_places]
            sizes = [layer.hidden if number else layer.outputs for layer in memory.sizes]
            apart = places[1] - places[0] if len(places) > 1 else 0
            shape = (len(places), memory.streams, sizes[0])
            view = memory.home.as_strided(shape, (apart, memory.home.stride(0), 1), places[0])
            states.append(view[0] if self._source.is_cell else view)
        return states

    def reset(self, rows: Any = None) -> None:
        """Sets states to zero: all, or those of these rows, with slots of these slots: an int, ints, or a tensor.

        Raises:
            IndexError: there is no such row; nothing has changed then.
            TypeError: as torch's indexing.
        """
        self._enter()
        try:
            home = self._open().home
            if rows is None:
                home.zero_()
            else:
                home[rows if isinstance(rows, (int, Tensor)) else torch.as_tensor(rows, dtype=torch.int64)] = 0
        finally:
            self._leave()

    def update(self) -> None:
        """Takes the module's weights anew; states stay. Until then a change of a parameter is not seen.

        Raises:
            ValueError: their shapes, or the cell, are not those of before, or they do not go into the format.
        """
        self._enter()
        try:
            memory, now = self._open(), source_of(self.module)
            layers = now.layers()
            if now.cell is not self._source.cell or not memory.fits(layers):
                raise ValueError("stream: the module has become another one: make another stream of it")
            memory.lay_out(layers)
        finally:
            self._leave()

    @property
    def stale(self) -> bool:
        """Whether `update` would change anything. All weights are looked at: not for every step."""
        memory, now = self._open(), source_of(self.module)
        layers = now.layers()
        return now.cell is not self._source.cell or not memory.fits(layers) or not memory.has(layers)

    def error(self, x: Any) -> Difference:
        """How far the outputs are from those with float32 weights.

        x is (steps, batch, I), or as the module lays it out, of any number of steps. Both begin with zeros; this
        stream's states stay as they are.

        Raises:
            ValueError, RuntimeError, TypeError: as a call.
        """
        given = arguments.tensor("x", x)
        batch_first = self._source.batch_first
        rows, steps = arguments.rows_and_steps(given, self._inputs, batch_first)
        if given.dim() < 3:
            raise ValueError(f"stream: error takes x of 3 dimensions, got {given.dim()}")
        kept, exact = (Stream(self.module, rows, steps, 1, weights, None) for weights in (self.weights, "float32"))
        with kept, exact:
            y, y32 = kept(given), exact(given)
            if batch_first:
                y, y32 = y.transpose(0, 1), y32.transpose(0, 1)
            apart, late = (y - y32).double(), -max(1, steps // 10)
            return Difference(
                float(apart.norm() / y32.double().norm()),
                float(apart[late:].norm() / y32[late:].double().norm()),
                float(apart.abs().max()),
                steps,
            )

    def close(self) -> None:
        """Gives memory and threads back; calls raise from now on."""
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
        threads: with 2 or more, others help where they are awake: on Linux, for layers of 256 units or more. They look
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
        if value is not None and value < 1:
            raise ValueError(f"stream: {name} must be at least 1, got {value}")
    if weights not in FORMATS:
        raise ValueError(f"stream: weights must be one of {', '.join(map(repr, FORMATS))}, got {weights!r}")
    return Stream(module, batch, steps, threads, weights, slots)
