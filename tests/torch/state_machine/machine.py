"""The rules by which operations follow one another, and how often each has run."""

from __future__ import annotations

import gc
from collections import Counter

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from tests.torch.state_machine import (
    calls,
    changes,
    mistakes,
    module_changes,  # noqa: F401  which enters its own among the changes
    visits,
)
from tests.torch.state_machine.calls import BACKWARD, CONTEXTS, GIVEN, LAYOUTS, SHOWN, Form
from tests.torch.state_machine.held import Held
from tests.torch.state_machine.twins import Kind, Twins

MOST = 3
"""Modules at a time, and forms of each."""

NAMES = (
    *(
        "call",
        "again",
        "in turn",
        "make",
        "make alike",
        "drop",
        "exchange",
        "tie",
        "threads of torch",
        "hold",
        "finish",
    ),
    *(f"call: {part}" for part in (*LAYOUTS, *SHOWN, *BACKWARD, *CONTEXTS, "grad", "no_grad", "here", "thread")),
    *(f"call: hx {layout}" for layout in GIVEN),
    *(f"change: {name}" for name in changes.CHANGES),
    *(f"visit: {name}" for name in visits.VISITS),
    *(f"mistake: {name}" for name in mistakes.NAMES),
)
"""Of all that can run."""
ran: Counter[str] = Counter()
"""How often a rule has run, and each of what it chooses from."""

flags = st.booleans()
seeds = st.integers(0, 1 << 20)
numbers = st.integers(0, MOST - 1)
few = ("none",) * 6
kinds = st.builds(
    Kind,
    name=st.sampled_from(("GRU", "RNN", "LSTM", "GRUCell", "RNNCell", "LSTMCell")),
    inputs=st.sampled_from((2, 1, 3, 5, 8, 16, 17)),
    hidden=st.sampled_from((3, 1, 2, 5, 8, 9, 16, 17)),
    double=flags,
    bias=st.sampled_from((True, True, False)),
    layers=st.sampled_from((1, 1, 2)),
    bidirectional=st.sampled_from((False, False, True)),
    batch_first=flags,
    projected=st.sampled_from((False, False, False, True)),
    dropout=st.sampled_from((False, False, False, True)),
    relu=flags,
    backend=st.sampled_from((None, None, "numba", "numba", "auto", "aten", "reference")),
)
forms = st.builds(
    Form,
    steps=st.integers(1, 6),
    batch=st.sampled_from((2, 1, 3, 4, None)),
    mode=st.sampled_from(("grad", "no_grad", "inference")),
    x=st.sampled_from(("plain",) * 8 + LAYOUTS[1:]),
    x_grad=flags,
    hx=st.sampled_from(("none", "plain") * 4 + GIVEN[2:]),
    hx_grad=flags,
    shown=st.sampled_from(("padded",) * 8 + SHOWN[1:]),
    backward=st.sampled_from(("once",) * 6 + BACKWARD[1:]),
    context=st.sampled_from(("none",) * 12 + CONTEXTS[1:]),
    where=st.sampled_from(("here",) * 12 + ("thread", "two threads")),
)


class Modules(RuleBasedStateMachine):
    """Up to `MOST` modules of fastrnn's, each with its twin of torch.nn's."""

    def __init__(self) -> None:
        super().__init__()
        self.twins: list[Twins] = []
        self.threads = torch.get_num_threads()

    def teardown(self) -> None:
        """torch's threads are as many as before."""
        torch.set_num_threads(self.threads)

    def _any(self, number: int) -> Twins:
        return self.twins[number % len(self.twins)]

    def _call(self, twins: Twins, form: Form, seed: int) -> None:
        for part in (form.mode, form.x, f"hx {form.hx}", form.shown, form.backward, form.context, form.where):
            ran[f"call: {part}"] += 1
        ran["calls"] += 1
        calls.check(twins, form, seed)

    @initialize(kind=kinds, seed=seeds, form=forms)
    def begin(self, kind: Kind, seed: int, form: Form) -> None:
        """A module, called twice."""
        self.twins.append(Twins(kind, seed))
        self.call(0, form, seed, 2)

    @precondition(lambda self: len(self.twins) < MOST)
    @rule(kind=kinds, seed=seeds)
    def make(self, kind: Kind, seed: int) -> None:
        """Another module."""
        ran["make"] += 1
        self.twins.append(Twins(kind, seed))

    @precondition(lambda self: len(self.twins) < MOST)
    @rule(number=numbers, seed=seeds)
    def make_alike(self, number: int, seed: int) -> None:
        """A module like one that there is, and called so."""
        ran["make alike"] += 1
        other = self._any(number)
        twins = Twins(other.kind, seed)
        self.twins.append(twins)
        for form in other.forms:
            twins.forms.append(form)
            self._call(twins, form, seed)

    @precondition(lambda self: len(self.twins) > 1)
    @rule(number=numbers)
    def drop(self, number: int) -> None:
        """A module is no more; others may come to lie where it was."""
        ran["drop"] += 1
        del self.twins[number % len(self.twins)]
        gc.collect(0)

    @rule(number=numbers, form=forms, seed=seeds, times=st.integers(1, 3))
    def call(self, number: int, form: Form, seed: int, times: int) -> None:
        """A call of a new kind, with other values every time."""
        ran["call"] += 1
        twins = self._any(number)
        twins.forms = [form, *twins.forms][:MOST]
        for time in range(times):
            self._call(twins, form, seed + 7 * time)

    @rule(number=numbers, which=numbers, seed=seeds, times=st.integers(1, 3))
    def again(self, number: int, which: int, seed: int, times: int) -> None:
        """A call of a kind that was made before, maybe in turn with another kind."""
        ran["again"] += 1
        twins = self._any(number)
        for time in range(times if twins.forms else 0):
            self._call(twins, twins.forms[which % len(twins.forms)], seed + 7 * time)

    @rule(number=numbers, seed=seeds)
    def in_turn(self, number: int, seed: int) -> None:
        """Calls of all kinds, twice."""
        ran["in turn"] += 1
        twins = self._any(number)
        for time in range(2):
            for form in twins.forms:
                self._call(twins, form, seed + time)

    @rule(number=numbers, name=st.sampled_from(sorted(changes.CHANGES)), seed=seeds)
    def change(self, number: int, name: str, seed: int) -> None:
        """Both modules are changed, and called as before."""
        self._change(number, name, seed, 0)

    @rule(number=numbers, name=st.sampled_from(sorted(changes.CHANGES)), seed=seeds, which=numbers)
    def change_what_is_known(self, number: int, name: str, seed: int, which: int) -> None:
        """The same after calls of one kind, which are remembered."""
        self._change(number, name, seed, which + 1)

    def _change(self, number: int, name: str, seed: int, which: int) -> None:
        twins = self._any(number)
        if not changes.APPLIES[name](twins) or not twins.forms:
            return
        ran[f"change: {name}"] += 1
        form = twins.forms[which % len(twins.forms)]
        for time in range(3 if which else 0):
            self._call(twins, form, seed + time)
        for other in self.twins:  # with which it may share parameters
            other.held = None if other.tied and name not in changes.COUNTED else other.held
        changes.apply(twins, name, seed)
        if which:
            self._call(twins, form, seed)
        else:
            self._after(twins, seed)

    def _after(self, twins: Twins, seed: int) -> None:
        for form in twins.forms[:2]:
            self._call(twins, form, seed)

    @precondition(lambda self: len(self.twins) > 1)
    @rule(seed=seeds, tie=flags)
    def exchange(self, seed: int, tie: bool) -> None:
        """Parameters between two modules, or one becomes that of both."""
        one, other = self.twins[:2]
        shared = [
            name
            for name in changes.names(one.theirs)
            if getattr(one.theirs, name).shape == getattr(getattr(other.theirs, name, None), "shape", None)
        ]
        if shared and changes.own(one) and changes.own(other) and one.dtype == other.dtype:
            ran["tie" if tie else "exchange"] += 1
            name = shared[seed % len(shared)]
            one.held = other.held = None
            for mine, others in zip(one.modules, other.modules, strict=True):
                first, second = getattr(mine, name), getattr(others, name)
                setattr(others, name, first)
                if not tie:
                    setattr(mine, name, second)
            one.tied = other.tied = tie
            self._after(one, seed)
            self._after(other, seed)

    @rule(number=numbers, name=st.sampled_from(sorted(visits.VISITS)), seed=seeds, known=flags)
    def visit(self, number: int, name: str, seed: int, known: bool) -> None:
        """Something is otherwise for a while."""
        twins = self._any(number)
        if visits.APPLIES[name](twins) and twins.forms:
            ran[f"visit: {name}"] += 1
            form = twins.forms[0]
            if known:
                for time in range(2):
                    self._call(twins, visits.simple(twins, form), seed + time)
            twins.held = None
            visits.VISITS[name](twins, form, seed)
            self._after(twins, seed)

    @rule(number=numbers, name=st.sampled_from(mistakes.NAMES), grad=flags, seed=seeds)
    def mistake(self, number: int, name: str, grad: bool, seed: int) -> None:
        """A call that must be refused, and nothing else is."""
        ran[f"mistake: {name}"] += 1
        twins = self._any(number)
        mistakes.check(twins, name, grad)
        self._after(twins, seed)

    @rule(count=st.integers(1, 2), number=numbers, seed=seeds)
    def threads_of_torch(self, count: int, number: int, seed: int) -> None:
        """As many from now on."""
        ran["threads of torch"] += 1
        torch.set_num_threads(count)
        self._after(self._any(number), seed)

    @rule(number=numbers, form=forms, seed=seeds)
    def hold(self, number: int, form: Form, seed: int) -> None:
        """A call whose gradients will be asked for after other calls and changes that autograd counts."""
        ran["hold"] += 1
        twins = self._any(number)
        twins.held = Held(twins, form, seed)

    @precondition(lambda self: any(twins.held is not None for twins in self.twins))
    @rule()
    def finish(self) -> None:
        """Backward of calls that were held."""
        for twins in self.twins:
            if twins.held is not None:
                ran["finish"] += 1
                held, twins.held = twins.held, None
                held.finish()
