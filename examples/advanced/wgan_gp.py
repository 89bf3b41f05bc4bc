"""Train a recurrent WGAN-GP: a generator that learns to draw sine waves, and a critic whose slope is kept near one.

    python examples/advanced/wgan_gp.py                       train (under a minute on two cores), then show some waves
    python examples/advanced/wgan_gp.py --cell lstm --hidden 48 --steps 600

The critic looks for the largest difference between its mean scores of real and of generated waves. Held to a slope of
one, that difference is the Wasserstein distance between the two, and the generator learns to make it small (Arjovsky et
al., 2017). What holds the slope is a penalty on the norm of the critic's gradient with respect to its input (Gulrajani
et al., 2017): learning takes the gradient of a gradient, by double backward through every step of a recurrent layer.

torch.nn's recurrent layers can do that on the CPU. On a GPU they run cuDNN's kernels, whose double backward PyTorch's
message says is not supported: there one turns cuDNN off for the forward pass. fastrnn's layers take the gradient of a
gradient on every device. Where `create_graph=True` asks for a gradient that can be differentiated again, it is computed
step by step, by the differentiable reference; every other pass below, forward and backward, is computed by kernels.
"""

from __future__ import annotations

import argparse
import math
import time

import torch
from torch import Tensor, nn

import fastrnn

STEPS = 250
NUMBERS = 4  # random ones, that a wave is made of
CRITIC_STEPS = 5  # for each of the generator's, as Gulrajani et al.
PENALTY = 10.0  # its weight, likewise
LEARNING_RATE = 4e-3
BETAS = (0.0, 0.9)  # Adam's, likewise: without momentum, since the two chase each other
HELD_OUT = 512  # real and generated waves to measure by
DIRECTIONS = 100  # along which they are compared
REPORTS = 10
SHADES = " .:-=+*#"


def real_waves(count: int, length: int) -> Tensor:
    """(count, length, 1): a sine of one to two periods, of any phase."""
    periods, phase = 1 + torch.rand(count, 1), 2 * math.pi * torch.rand(count, 1)
    return torch.sin(periods * torch.linspace(0, 2 * math.pi, length) + phase).unsqueeze(-1)


class Generator(nn.Module):
    """Random numbers (B, NUMBERS), read anew at every step, to waves (B, T, 1)."""

    def __init__(self, cell: str, hidden: int) -> None:
        super().__init__()
        self.rnn = getattr(fastrnn, cell.upper())(NUMBERS, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, numbers: Tensor, length: int) -> Tensor:
        return self.head(self.rnn(numbers.unsqueeze(1).repeat(1, length, 1))[0]).tanh()


class Critic(nn.Module):
    """Waves (B, T, 1) to a score each (B,), the higher the more real they look."""

    def __init__(self, cell: str, hidden: int) -> None:
        super().__init__()
        self.rnn = getattr(fastrnn, cell.upper())(1, hidden, batch_first=True)
        self.head = nn.Linear(hidden, 1)

    def forward(self, waves: Tensor) -> Tensor:
        return self.head(self.rnn(waves)[0]).mean((1, 2))


def gradient_penalty(critic: Critic, real: Tensor, fake: Tensor) -> Tensor:
    """How far the norm of the critic's gradient is from one, somewhere between each real and a generated wave."""
    share = torch.rand(len(real), 1, 1)
    between = (share * real + (1 - share) * fake).requires_grad_()
    (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    return (slope.flatten(1).norm(dim=1) - 1).square().mean()


def distance(some: Tensor, others: Tensor) -> float:
    """The sliced Wasserstein distance of as many waves, without a critic: sorted along directions, and compared."""
    directions = nn.functional.normalize(torch.randn(some.shape[1], DIRECTIONS), dim=0)
    one, other = ((waves.squeeze(-1) @ directions).sort(0).values for waves in (some, others))
    return (one - other).abs().mean().item()


def descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


class Trainer:
    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args = args
        self.generator, self.critic = Generator(args.cell, args.hidden), Critic(args.cell, args.hidden)
        self.of_generator, self.of_critic = (
            torch.optim.Adam(model.parameters(), args.learning_rate, BETAS) for model in (self.generator, self.critic)
        )

    def generated(self, count: int) -> Tensor:
        return self.generator(torch.randn(count, NUMBERS), self.args.length)

    def step(self) -> None:
        for _ in range(CRITIC_STEPS):
            self.critic_step()
        descend(self.of_generator, -self.critic(self.generated(self.args.batch)).mean())

    def critic_step(self) -> None:
        real = real_waves(self.args.batch, self.args.length)
        with torch.no_grad():
            fake = self.generated(self.args.batch)
        difference = self.critic(real).mean() - self.critic(fake).mean()
        descend(self.of_critic, PENALTY * gradient_penalty(self.critic, real, fake) - difference)

    def measure(self) -> tuple[float, float]:
        """The critic's estimate of the Wasserstein distance, and the sliced distance, both on waves it never saw."""
        with torch.no_grad():
            real, fake = real_waves(HELD_OUT, self.args.length), self.generated(HELD_OUT)
            return (self.critic(real).mean() - self.critic(fake).mean()).item(), distance(real, fake)


def drawn(wave: Tensor) -> str:
    """(T, 1) as a line of text, from a blank for -1 to the last of `SHADES` for 1."""
    levels = ((wave.squeeze(-1).clamp(-1, 1) + 1) / 2 * (len(SHADES) - 1)).round().int()
    return "".join(SHADES[level] for level in levels.tolist())


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--cell", choices=("rnn", "gru", "lstm"), default="gru", help="(gru)")
    add("--hidden", type=int, default=32, help="units of the generator and of the critic (32)")
    add("--length", type=int, default=16, help="steps of a wave (16)")
    add("--batch", type=int, default=64, help="waves in a step, of either kind (64)")
    add("--steps", type=int, default=STEPS, help=f"of the generator ({STEPS})")
    add("--learning-rate", type=float, default=LEARNING_RATE, help=f"of Adam ({LEARNING_RATE:g})")
    add("--seed", type=int, default=0, help="of weights and waves (0)")
    args = parser.parse_args(arguments)
    for name in ("hidden", "length", "batch", "steps"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(args, name)}")
    if not 0 < args.learning_rate < math.inf:
        parser.error(f"--learning-rate must be above 0 and finite, got {args.learning_rate:g}")
    return args


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    trainer, start = Trainer(args), time.perf_counter()
    print("step  Wasserstein estimate  sliced distance")
    for step in range(args.steps + 1):
        if step % max(1, args.steps // REPORTS) == 0 or step == args.steps:
            estimate, sliced = trainer.measure()
            print(f"{step:4}  {estimate:20.3f}  {sliced:15.3f}", flush=True)
        if step < args.steps:
            trainer.step()
    floor = distance(real_waves(HELD_OUT, args.length), real_waves(HELD_OUT, args.length))
    print(f"real waves from other real ones       {floor:.3f}")
    print(f"{args.steps} steps in {time.perf_counter() - start:.1f} s\n\nreal, then generated:")
    with torch.no_grad():
        for wave in (*real_waves(4, args.length), *trainer.generated(4)):
            print(f"  |{drawn(wave)}|")


if __name__ == "__main__":
    main()
