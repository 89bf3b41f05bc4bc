"""A recurrent cell of one's own in ten lines, trained as kernels, beside the same cell as a loop in plain torch.

    python examples/own_cell.py                          about a minute on two cores
    python examples/own_cell.py --steps 1000 --hidden 128
    python examples/own_cell.py --threads 1 --batch 1

The cell is an LSTM whose gates see its memory (Gers and Schmidhuber, "Recurrent nets that time and count", 2000). Both
models begin with the same weights and learn to add: each sequence has a random number in every step, two of which are
marked, and the sum of these is asked for at the end (Hochreiter and Schmidhuber, "Long short-term memory", 1997). The
first call compiles the cell's kernels, which are kept on disk.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastrnn
from fastrnn.cells import sigmoid, tanh

STEPS = 300
ROWS = 10  # of the table of losses
SAME = 1e-4  # how far losses in float32 may lie apart
LEARNING_RATE = 2e-3
MAX_GRAD_NORM = 1.0


@fastrnn.cell(gates="ifgo")
def peephole(x, u, h, c, *, p_i, p_f, p_o):
    """x.i is the input's share of the gate i, u.i that of the state h; p_i, p_f and p_o are parameters of each unit."""
    i = sigmoid(x.i + u.i + p_i * c)
    f = sigmoid(x.f + u.f + p_f * c)
    g = tanh(x.g + u.g)
    c = f * c + i * g
    o = sigmoid(x.o + u.o + p_o * c)
    return o * tanh(c), c


class Loop(nn.Module):
    """The same in plain torch, with the parameters of a `fastrnn.Recurrent` layer of one direction."""

    def __init__(self, layer: fastrnn.Recurrent) -> None:
        super().__init__()
        for name, value in layer.named_parameters():
            self.register_parameter(name.removesuffix("_l0"), nn.Parameter(value.detach().clone()))

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        h = c = x.new_zeros(x.shape[1], self.p_i.shape[0])
        output = []
        for gx in F.linear(x, self.weight_ih, self.bias_ih):
            i, f, g, o = (gx + F.linear(h, self.weight_hh, self.bias_hh)).chunk(4, -1)
            i = torch.sigmoid(i + self.p_i * c)
            f = torch.sigmoid(f + self.p_f * c)
            c = f * c + i * torch.tanh(g)
            h = torch.sigmoid(o + self.p_o * c) * torch.tanh(c)
            output.append(h)
        return torch.stack(output), (h, c)


class Adder(nn.Module):
    """Sequences (T, B, 2) to the sum that is asked for, (B,)."""

    def __init__(self, rnn: nn.Module, hidden: int) -> None:
        super().__init__()
        self.rnn, self.head = rnn, nn.Linear(hidden, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][-1]).squeeze(-1)


def batch(length: int, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Sequences (T, B, 2), a number and a mark in each step, and their sums (B,)."""
    numbers = torch.rand(length, size, generator=generator)
    marks = torch.zeros(length, size)
    for column in marks.t():
        column[torch.randperm(length, generator=generator)[:2]] = 1.0
    return torch.stack([numbers, marks], -1), (numbers * marks).sum(0)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, sums: Tensor) -> float:
    optimizer.zero_grad()
    loss = F.mse_loss(model(x), sums)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
    optimizer.step()
    return loss.item()


def compare(args: argparse.Namespace) -> None:
    """Train both, a step in turn."""
    torch.manual_seed(args.seed)
    data = torch.Generator().manual_seed(args.seed)
    layer = fastrnn.Recurrent(peephole, 2, args.hidden, init={"p_i": 0.0, "p_f": 0.0, "p_o": 0.0})
    with torch.no_grad():
        layer.gate("bias_ih_l0", "f").fill_(1.0)  # remember, to begin with
    models = {"loop": Adder(Loop(layer), args.hidden), "fastrnn": Adder(layer, args.hidden)}
    models["fastrnn"].head.load_state_dict(models["loop"].head.state_dict())
    optimizers = {name: torch.optim.Adam(model.parameters(), LEARNING_RATE) for name, model in models.items()}
    threads = torch.get_num_threads()
    print(f"{args.batch} sequences of {args.length} steps at a time, {args.hidden} units, {threads} threads")
    first = batch(args.length, args.batch, data)
    start = time.perf_counter()
    F.mse_loss(models["fastrnn"](first[0]), first[1]).backward()  # kernels are compiled, or read from the disk
    print(f"the first call took {time.perf_counter() - start:.2f} s")

    losses: dict[str, list[float]] = {name: [] for name in models}
    seconds: dict[str, list[float]] = {name: [] for name in models}
    print(f"{'step':>6}{'loss: loop':>14}{'fastrnn':>12}")
    for step in range(1, args.steps + 1):
        x, sums = batch(args.length, args.batch, data)
        # in turn, and each first as often as the other: what the machine does beside meets both alike
        for name in sorted(models, reverse=step % 2 == 0):
            start = time.perf_counter()
            losses[name].append(train_step(models[name], optimizers[name], x, sums))
            seconds[name].append(time.perf_counter() - start)
        if step in (1, args.steps) or step % max(1, args.steps // ROWS) == 0:
            print(f"{step:6}{losses['loop'][-1]:14.5f}{losses['fastrnn'][-1]:12.5f}", flush=True)
    apart = max(abs(a - b) for a, b in zip(*losses.values(), strict=True))
    loops, ours = (1e3 * statistics.median(times) for times in seconds.values())
    print(f"largest difference of the losses: {apart:.1e}")
    if not apart <= SAME:
        raise SystemExit(f"own_cell: the losses differ by {apart:.1e}, where {SAME:.0e} is allowed")
    print(f"a step of training, median: loop {loops:.1f} ms, fastrnn {ours:.1f} ms")
    print(f"fastrnn trains this cell at {loops / ours:.1f} times the loop's speed")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--steps", type=int, default=STEPS, help=f"of training ({STEPS})")
    add("--hidden", type=int, default=64, help="units (64)")
    add("--batch", type=int, default=32, help="sequences in a step (32)")
    add("--length", type=int, default=50, help="steps of a sequence (50)")
    add("--threads", type=int, help="that torch and fastrnn compute with (as torch has chosen)")
    add("--seed", type=int, default=0, help="of weights and data (0)")
    args = parser.parse_args(arguments)
    for name, low in (("steps", 1), ("hidden", 1), ("batch", 1), ("length", 2), ("threads", 1), ("seed", 0)):
        value = getattr(args, name)
        if value is not None and value < low:
            parser.error(f"--{name} must be at least {low}, got {value}")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    try:
        compare(args)
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None


if __name__ == "__main__":
    main()
