"""
A policy with a memory: episodes that end anywhere
==================================================

At the entrance of a corridor one of four signs is shown; steps later, at its end, the door with that sign must be
chosen. A policy without memory is right in a quarter of all cases. The task is made after Bakker's T-maze
("Reinforcement Learning with Long Short-Term Memory", 2001); an actor and a critic learn it. Many corridors are walked
at once, so that episodes begin anywhere in what is learnt from. ``resets=`` tells a layer where: no state passes on.
"""

import argparse
import sys
import time

import matplotlib.pyplot as plt
import torch
from rich.progress import track
from torch import Tensor, nn

import fastrnn

STEPS = 200
parser = argparse.ArgumentParser(description="A recurrent policy learns to remember a sign.")
parser.add_argument("--steps", type=int, default=STEPS, help=f"of training, each from 32 steps of 64 mazes ({STEPS})")
parser.add_argument("--picture", default="policy.png", help="where it goes (policy.png)")
args = parser.parse_args([] if "ipykernel" in sys.modules else None)  # a notebook has no command line
if args.steps < 1:
    parser.error(f"--steps must be at least 1, got {args.steps}")
torch.manual_seed(0)
MAZES, TIME, SIGNS, UNITS, DISCOUNT = 64, 32, 4, 32, 0.9


# %%
# The mazes, all at once.
class Mazes:
    def __init__(self) -> None:
        self.sign = self.left = torch.zeros(MAZES, dtype=torch.int64)  # what was shown; how many steps are left
        self.begin(torch.ones(MAZES, dtype=torch.bool))

    def begin(self, which: Tensor) -> None:
        self.starts = which  # (MAZES,)
        self.sign = torch.where(which, torch.randint(SIGNS, (MAZES,)), self.sign)
        self.left = torch.where(which, torch.randint(4, 12, (MAZES,)), self.left - 1)

    def seen(self) -> Tensor:  # (MAZES, SIGNS + 1): the sign, at the entrance only, and whether the doors are there
        shown = nn.functional.one_hot(self.sign, SIGNS) * self.starts[:, None]
        return torch.cat((shown, self.left[:, None] == 0), 1).float()

    def act(self, door: Tensor) -> tuple[Tensor, Tensor]:  # what was earned, and which episodes have ended
        ends, right = self.left == 0, door == self.sign
        self.begin(ends)
        return (ends & right).float(), ends


# %%
# To act, ``fastrnn.stream`` computes a step of the GRU for all mazes and keeps their states. It is told which episodes
# begin, and that weights are new. To learn, the GRU computes all steps in one call.
gru, actor, critic = fastrnn.GRU(SIGNS + 1, UNITS), nn.Linear(UNITS, SIGNS), nn.Linear(UNITS, 1)
optimizer = torch.optim.Adam(nn.ModuleList([gru, actor, critic]).parameters(), 1e-2)
stream, mazes, rates = fastrnn.stream(gru, batch=MAZES), Mazes(), []
for _ in track(range(args.steps), description="training"):
    before, steps = stream.state, []
    with torch.no_grad():
        for _ in range(TIME):
            seen, starts = mazes.seen(), mazes.starts
            stream.reset(starts)
            output = stream(seen).clone()  # a stream's next call overwrites its output
            door = torch.distributions.Categorical(logits=actor(output)).sample()
            steps.append((seen, starts, output, door, *mazes.act(door)))
    seen, starts, acted, doors, rewards, ends = (torch.stack(each) for each in zip(*steps, strict=True))
    rates.append(float(rewards.sum() / ends.sum()))
    output, _ = gru(seen, before, resets=starts)
    assert (output - acted).abs().max() <= 1e-5  # the stream has computed the same
    policy, values = torch.distributions.Categorical(logits=actor(output)), critic(output)[..., 0]
    returns = values.detach().clone()
    returns[-1] = torch.where(
        ends[-1], rewards[-1], returns[-1]
    )  # where it goes on, the critic's guess is all there is
    for t in reversed(range(TIME - 1)):
        returns[t] = rewards[t] + DISCOUNT * returns[t + 1] * ~ends[t]
    advantage = returns - values
    loss = advantage.square() / 2 - policy.log_prob(doors) * advantage.detach() - 0.01 * policy.entropy()
    optimizer.zero_grad()
    loss.mean().backward()
    optimizer.step()
    stream.update()


# %%
# Without ``resets=``, a loop makes states zero where episodes begin and calls the layer for each step.
def by_hand() -> Tensor:
    outputs, state = [], before
    for t in range(TIME):
        output, state = gru(seen[t : t + 1], state * ~starts[t, :, None])
        outputs.append(output)
    return torch.cat(outputs)


found, times = {}, {"resets=": [], "by hand": []}
for _ in range(20):  # in turns, on a machine that is equally busy for both
    for name, call in (("resets=", lambda: gru(seen, before, resets=starts)[0]), ("by hand", by_hand)):
        start = time.perf_counter()
        output = call()
        found[name] = output, *torch.autograd.grad(output.square().mean(), list(gru.parameters()))
        times[name].append(1e3 * (time.perf_counter() - start))
for one, other in zip(*found.values(), strict=True):
    assert (one - other).abs().max() <= 1e-5  # outputs and gradients
once, hand = map(min, times.values())
figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), width_ratios=(2, 1), layout="constrained")
left.plot([100 * rate for rate in rates], label="with memory")
left.axhline(100 / SIGNS, color="black", linestyle="--", label="chance")
left.set(title="episodes that end at the right door, %", xlabel="step of training", ylim=(0, 105))
left.legend(loc="lower right")
right.bar_label(right.bar(times.keys(), (once, hand)), fmt="%.1f")
right.set(title="outputs and gradients, ms", ylim=(0, 1.15 * hand))
figure.savefig(args.picture, dpi=100)
last = 100 * sum(rates[-10:]) / len(rates[-10:])
assert args.steps < STEPS or last > 80
told = f"a pass takes {once:.1f} ms by resets=, {hand:.1f} ms by hand"
print(f"The policy opens the right door in {last:.0f} % of episodes (chance 25 %); {told}.")
