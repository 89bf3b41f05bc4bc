"""Calls whose gradients are asked for later, when other calls and changes of parameters have come between."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.torch.state_machine import calls
from tests.torch.state_machine.calls import Form
from tests.torch.state_machine.twins import Twins
from tests.torch_parity import tensors


class Held:
    """A call of fastrnn's module, with the gradients that torch.nn's gave for it at once."""

    def __init__(self, twins: Twins, form: Form, seed: int) -> None:
        shown = form.shown if form.shown == "packed" else "padded"
        form = replace(form, mode="grad", backward="once", context="none", where="here", shown=shown)
        self.form = form = calls.possible(twins, calls.savable(form))
        mine, theirs = (calls.given(twins, form, seed, own) for own in (True, False))
        self.expected = calls.outcome(twins, form, [theirs], seed, calls.oracle_of)
        self.parameters = list(twins.ours.parameters())
        self.wanted = [tensor for tensor in (*mine.leaves, *self.parameters) if tensor.requires_grad]
        self.versions = [parameter._version for parameter in self.parameters]
        self.results: list[Any] = []
        if self.expected.error is None:
            self.results = tensors(calls.called(twins, form, calls.ours_of, mine, seed))

    def finish(self) -> None:
        """The gradients are those; or, where a parameter was changed in place, autograd may have noticed."""
        try:
            gradients = calls.gradients_of(self.form, self.results, self.wanted)
        except RuntimeError:
            assert self.versions != [parameter._version for parameter in self.parameters]
            return
        if self.results:
            calls.compare(gradients, self.expected.gradients, calls.TOLERANCE[self.results[0].dtype])
