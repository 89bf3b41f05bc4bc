"""examples/advanced/wgan_gp.py: what it learns, its penalty against finite differences, and what it prints."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastrnn
from tests.examples.programs import FOLDER, load_script

SCRIPT = FOLDER / "wgan_gp.py"
SMALL = ["--hidden", "8", "--length", "6", "--batch", "8"]


wgan_gp = load_script(SCRIPT)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_gradients_of_the_penalty(cell: str) -> None:
    """Against differences, with respect to every parameter that has a part in the critic's slope."""
    critic = wgan_gp.Critic(cell, 4).double()
    real, fake = (wgan_gp.real_waves(3, 5).double() for _ in range(2))

    def penalty(*_: torch.Tensor) -> torch.Tensor:
        torch.manual_seed(1)
        return wgan_gp.gradient_penalty(critic, real, fake)

    *most, last = critic.parameters()
    assert torch.autograd.gradcheck(penalty, most, fast_mode=True)
    assert torch.autograd.grad(penalty(), last, allow_unused=True) == (None,)  # a bias is no slope


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_a_step_changes_both_models(cell: str) -> None:
    trainer = wgan_gp.Trainer(wgan_gp.parse([*SMALL, "--cell", cell]))
    before = [p.detach().clone() for m in (trainer.critic, trainer.generator) for p in m.parameters()]
    trainer.step()
    after = [p for m in (trainer.critic, trainer.generator) for p in m.parameters()]
    same = [torch.equal(one, other) for one, other in zip(before, after, strict=True)]
    biases_that_cancel = [name for name, _ in trainer.critic.named_parameters()].index("head.bias")
    assert [index for index, equal in enumerate(same) if equal] == [biases_that_cancel]


def test_it_learns(capsys: pytest.CaptureFixture[str]) -> None:
    """Generated waves come nearer to real ones, also by a measure that the critic has no part in."""
    wgan_gp.main(["--hidden", "16", "--length", "6", "--batch", "32", "--steps", "60", "--learning-rate", "0.01"])
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines[1:12]]
    assert [row[0] for row in rows] == [str(6 * index) for index in range(11)]
    estimates, distances = ([float(row[column]) for row in rows] for column in (1, 2))
    floor = float(lines[12].split()[-1])
    # With 12 seeds, the last was at most 0.47 of the highest estimate and 0.67 of the largest distance.
    assert max(estimates) > 0.5
    assert estimates[-1] < 0.95 * max(estimates)
    assert floor < distances[-1] < 0.8 * max(distances)


def test_distances() -> None:
    waves = wgan_gp.real_waves(64, 10)
    assert waves.shape == (64, 10, 1)
    assert waves.abs().max() <= 1
    assert wgan_gp.distance(waves, waves.flip(0)) == 0
    torch.manual_seed(1)
    near = wgan_gp.distance(waves, waves + 0.1)
    torch.manual_seed(1)
    assert wgan_gp.distance(waves, waves + 0.2) == pytest.approx(2 * near, rel=1e-4)


def test_a_wave_is_drawn() -> None:
    assert wgan_gp.drawn(torch.tensor([[-2.0], [-1.0], [0.1], [1.0], [5.0]])) == "  =##"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--hidden", "-1"], "--hidden must be at least 1, got -1"),
        (["--cell", "qrnn"], "invalid choice: 'qrnn'"),
        (["--learning-rate", "0"], "--learning-rate must be above 0 and finite, got 0"),
        (["--learning-rate", "inf"], "--learning-rate must be above 0 and finite, got inf"),
    ],
)
def test_mistakes_are_answered(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        wgan_gp.main([*SMALL, *more])
    assert message in capsys.readouterr().err


@pytest.mark.exhaustive
def test_the_script_prints_plain_lines() -> None:
    command = [sys.executable, str(SCRIPT), *SMALL, "--steps", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(fastrnn.__file__).parents[1])}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.isascii()
    lines = result.stdout.splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["0", "1", "2"]
    assert [len(line) for line in lines[-8:]] == [2 + 1 + 6 + 1] * 8
