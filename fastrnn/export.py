"""Programs of `torch.export`: what their inputs are given as."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map_only

MERGES = "torch.export makes one input of inputs that are given the same tensor"


def distinct(examples: Any, weights: Iterable[Tensor]) -> Any:
    """`examples`, with aliases in place of tensors that come a second time or are among `weights`.

    torch.export goes by the tensor, not by the argument: of two inputs that were one tensor, the program reads the last
    for both, and for a weight, the input.
    """
    seen = set(map(id, weights))

    def fresh(tensor: Tensor) -> Tensor:
        if id(tensor) in seen:
            return tensor.detach()
        seen.add(id(tensor))
        return tensor

    return tree_map_only(Tensor, fresh, examples)


def refuse_merged(program: torch.export.ExportedProgram) -> None:
    """Raises ValueError where a program was captured with one tensor as several inputs, of which it reads one."""
    names, examples = program.graph_signature.user_inputs, tree_leaves(program.example_inputs)
    by_tensor: dict[int, list[str]] = {}
    for name, example in zip(names, examples, strict=False):
        if isinstance(example, Tensor) and isinstance(name, str):
            by_tensor.setdefault(id(example), []).append(name)
    read = {node.name for node in program.graph.nodes if node.op == "placeholder" and node.users}
    for inputs in by_tensor.values():
        if len(inputs) > 1 and read.intersection(inputs):
            raise ValueError(f"the program's inputs {', '.join(inputs)} are one: {MERGES}; give each a clone() of it")
