"""examples/accelerate.py: its data, that both models stay together, what it prints, and the answers to mistakes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import fastrnn
from tests.examples.programs import FOLDER, load_script

SCRIPT = FOLDER / "accelerate.py"
SMALL = ["--hidden", "8", "--batch", "3", "--length", "11", "--steps", "4", "--threads", "1"]


accelerate = load_script(SCRIPT)


@pytest.fixture(autouse=True)
def same_threads_afterwards() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def little_source(monkeypatch: pytest.MonkeyPatch) -> None:
    """Less of the standard library to read."""
    monkeypatch.setattr(accelerate, "CHARACTERS", 2000)


def test_kinds_of_tokens() -> None:
    source = 'if x1 >= 2.5:  # ü\n\tf("a\\"b", \f y)\n'
    expected = 'kk nn oo nnno  ###  no""""""o   no '
    letters = {" ": "space", "k": "keyword", "o": "op", '"': "string", "#": "comment"}
    got = [accelerate.KINDS[kind] for kind in accelerate.kinds_of(source)]
    assert len(source) == len(expected)
    assert [letters.get(letter, "name") for letter in expected[:9]] == got[:9]
    assert got[9:12] == ["number"] * 3
    assert [letters.get(letter, "name") for letter in expected[12:]] == got[12:]


@pytest.mark.usefixtures("little_source")
def test_the_library_is_read_with_its_kinds() -> None:
    codes, kinds = accelerate.read_library()
    assert len(codes) == len(kinds) == accelerate.CHARACTERS
    assert codes.min() >= 0
    assert codes.max() <= 127
    source = "".join(map(chr, codes.tolist()))
    comments = {letter for letter, kind in zip(source, kinds.tolist(), strict=True) if kind == 6}
    assert accelerate.KINDS[6] == "comment"
    assert "#" in comments
    assert "\n" not in comments


SEGMENTS = ("abcdef", "bc", "abdeg", "abcdg", "bcfg", "acdfg", "acdefg", "abc", "abcdefg", "abcdfg")
"""Those of a seven-segment display that each digit lights: a on top, then clockwise, g in the middle."""


def lit(image: torch.Tensor, box: tuple[int, int, int, int]) -> str:
    """The segments of an image (HEIGHT, WIDTH) that are bright halfway along, within a digit's box."""
    top, bottom, left, right = box
    middle, half = (top + bottom + 1) // 2, (left + right) // 2
    upper, lower = (top + middle) // 2, (middle + bottom) // 2
    places = {
        "a": (top, half),
        "b": (upper, right),
        "c": (lower, right),
        "d": (bottom, half),
        "e": (lower, left),
        "f": (upper, left),
        "g": (middle, half),
    }
    return "".join(name for name, place in places.items() if image[place] > 0.5)


@pytest.mark.parametrize("seed", range(3))
def test_images_show_their_digits(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerate, "NOISE", 0.0)

    def draw(*digits: int) -> torch.Tensor:
        image = accelerate.draw(list(digits), torch.Generator().manual_seed(seed))
        assert image.shape == (1, accelerate.HEIGHT, accelerate.WIDTH)
        return image[0]

    rows, columns = draw(8).nonzero().T
    box = int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())
    assert tuple(lit(draw(digit), box) for digit in range(10)) == SEGMENTS
    for digit in range(10):
        assert torch.equal(draw(digit, 8)[:, : box[3] + 1], draw(digit)[:, : box[3] + 1])
    assert draw(*[8] * accelerate.DIGITS[1])[:, -1].sum() == 0  # the longest number fits


@pytest.mark.parametrize("name", ["tagger", "reader"])
@pytest.mark.usefixtures("little_source")
def test_batches_are_of_the_sizes_asked_for_and_drawn_from_the_generator(name: str) -> None:
    args = accelerate.parse(SMALL)
    task = accelerate.TASKS[name](args)
    first, again, other = (task.batch(torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    if name == "tagger":
        assert first[0].shape == first[1].shape == (3, 11)
        assert task.model(first[0]).shape == (3, 11, len(accelerate.KINDS))
    else:
        assert first[0].shape == (3, 1, accelerate.HEIGHT, accelerate.WIDTH)
        assert len(first[1]) == first[2].sum()
        assert task.model(first[0]).shape == (accelerate.WIDTH // 2, 3, 11)


@pytest.mark.parametrize("name", ["tagger", "reader"])
@pytest.mark.usefixtures("little_source")
def test_a_step_learns(name: str) -> None:
    task = accelerate.TASKS[name](accelerate.parse(SMALL))
    optimizer, batch = torch.optim.Adam(task.model.parameters(), 0.01), task.batch(torch.Generator())
    losses = [accelerate.train_step(task.model, optimizer, task, batch) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.usefixtures("little_source")
def test_both_models_are_converted_agree_and_learn_alike(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[dict[str, Any]] = []
    step = accelerate.train_step

    def noted(model: nn.Module, *rest: Any) -> float:
        loss: float = step(model, *rest)
        trained.append({"layer": type(model.rnn), "loss": loss, "dropout": torch.get_rng_state()})
        return loss

    monkeypatch.setattr(accelerate, "train_step", noted)
    accelerate.main([*SMALL, "--steps", "12"])
    written = capsys.readouterr().out
    for layer in ("LSTM", "GRU"):
        assert f"rnn: torch.nn.{layer} -> fastrnn.{layer}\n" in written
    tables = [block.split("\n") for block in written.split("\n\n")]
    for lines, (theirs, ours) in zip(tables, ((nn.LSTM, fastrnn.LSTM), (nn.GRU, fastrnn.GRU)), strict=True):
        calls, trained[:24] = trained[:24], []
        pairs = [{call["layer"]: call for call in calls[first : first + 2]} for first in range(0, 24, 2)]
        assert all(pair.keys() == {theirs, ours} for pair in pairs)
        assert {calls[0]["layer"], calls[2]["layer"]} == {theirs, ours}  # each goes first in its turn
        assert all(torch.equal(pair[theirs]["dropout"], pair[ours]["dropout"]) for pair in pairs)
        assert not torch.equal(calls[0]["dropout"], calls[2]["dropout"])
        losses = [(pair[theirs]["loss"], pair[ours]["loss"]) for pair in pairs]
        assert all(a == pytest.approx(b, rel=1e-4) for a, b in losses)
        shown = [line.split() for line in lines if line[:6].strip().isdigit()]
        assert [int(step) for step, *_ in shown] == list(range(1, 13))
        assert [(float(a), float(b)) for _, a, b in shown] == [(round(a, 5), round(b, 5)) for a, b in losses]
        assert any(line.startswith("largest difference of the losses: ") for line in lines)
        assert any("times torch.nn's speed" in line for line in lines)
        (difference,) = [line for line in lines if line.startswith("largest difference of the outputs: ")]
        assert float(difference.rsplit(maxsplit=1)[1]) <= 1e-6
    assert not trained


@pytest.mark.usefixtures("little_source")
@pytest.mark.parametrize("wrong", [1e-3, float("nan")])
def test_outputs_that_differ_end_the_program_before_training(wrong: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoilt(model: Any, report: Any) -> Any:
        with torch.no_grad():
            model.head.bias += wrong
        return model

    monkeypatch.setattr(fastrnn, "accelerate", spoilt)
    monkeypatch.delattr(accelerate, "train_step")
    with pytest.raises(SystemExit, match=r"accelerate: tagger: outputs differ by .*, where 1e-06 is allowed"):
        accelerate.main(SMALL)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--hidden", "-1"], "--hidden must be at least 1, got -1"),
        (["--batch", "0"], "--batch must be at least 1, got 0"),
        (["--length", "200001"], "--length must be from 1 to 200000, got 200001"),
        (["--threads", "0"], "--threads must be from 1 to 1024, got 0"),
        (["--seed", "-1"], f"--seed must be from 0 to {2**63 - 1}, got -1"),
        (["--model", "parrot"], "invalid choice: 'parrot'"),
    ],
)
def test_mistakes_in_the_command_line(more: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as leaving:
        accelerate.main([*SMALL, *more])
    assert leaving.value.code == 2
    assert message in capsys.readouterr().err


def test_a_python_without_the_source_of_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerate.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(SystemExit, match="accelerate: this Python comes without the source of its library"):
        accelerate.main(SMALL)


@pytest.mark.usefixtures("little_source")
def test_interruption_leaves_without_a_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(accelerate, "train_step", interrupted)
    with pytest.raises(SystemExit) as leaving:
        accelerate.main(SMALL)
    assert leaving.value.code == 130


@pytest.mark.exhaustive
def test_the_script_runs_by_itself() -> None:
    command = [sys.executable, str(SCRIPT), *SMALL, "--model", "reader"]
    # the package that these tests import, whether it is installed or found in the checkout
    environment = {**os.environ, "PYTHONPATH": str(Path(fastrnn.__file__).parents[1])}
    for _ in range(2):  # the first run may tell of kernels that it compiles
        result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)
        assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert "rnn: torch.nn.GRU -> fastrnn.GRU\n" in result.stdout
    assert result.stdout.endswith(" times torch.nn's speed\n")
