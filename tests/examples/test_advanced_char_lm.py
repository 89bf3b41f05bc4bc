"""examples/advanced/char_lm.py: exact resumption, carried state, the answers to mistakes, and what it prints."""

from __future__ import annotations

import argparse
import io
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.text import Text

import fastrnn
from tests.examples.programs import FOLDER, load_script

SCRIPT = FOLDER / "char_lm.py"
SMALL = ["--hidden", "12", "--embedding", "6", "--batch", "3", "--chunk", "7", "--length", "20", "--device", "cpu"]
# 3 streams of 42 characters, 5 chunks each: the tests' 14 steps enter their third epoch.
TEXT = "The quick brown fox jumps over the lazy dog. " * 3 + "Pack my box!"


char_lm = load_script(SCRIPT)
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., list[str]]:
    """Makes a command line of a tiny run in an empty folder, on `TEXT`."""
    (tmp_path / "text.txt").write_text(TEXT)

    def make(*more: str, checkpoint: str = "model.pt") -> list[str]:
        return [*SMALL, "--text", str(tmp_path / "text.txt"), "--checkpoint", str(tmp_path / checkpoint), *more]

    return make


def trained(command: list[str]) -> tuple[Any, Any, argparse.Namespace]:
    args = char_lm.parse(command)
    corpus = char_lm.Corpus(char_lm.read_text(args.text), args)
    trainer = char_lm.Trainer(corpus, args)
    for _ in range(args.steps):
        trainer.step()
    return trainer, corpus, args


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Every leaf of a checkpoint by its path."""
    if isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {path: leaf for key, part in items for path, leaf in flat(part, f"{name}/{key}").items()}
    return {name: value}


def test_builtin_text_is_prose_without_repetitions() -> None:
    paragraphs = char_lm.builtin_text().split("\n")
    assert sum(map(len, paragraphs)) > 100_000
    assert len(set(paragraphs)) == len(paragraphs)
    assert all(paragraph[-1] in ".:" and ">>>" not in paragraph for paragraph in paragraphs)


@pytest.mark.parametrize(("cell", "layers"), [("rnn", 1), ("gru", 1), ("lstm", 1), ("lstm", 2)])
def test_interrupted_and_resumed_is_bitwise_the_uninterrupted_run(
    cell: str, layers: int, arguments: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = ("--cell", cell, "--layers", str(layers), "--steps", "14")
    handler = signal.getsignal(signal.SIGINT)
    char_lm.main(arguments(*shape, checkpoint="whole.pt"))
    assert signal.getsignal(signal.SIGINT) is handler

    step = char_lm.Trainer.step

    def step_with_interruption(trainer: Any) -> tuple[float, float]:
        if trainer.done == 7:
            signal.raise_signal(signal.SIGINT)
        result: tuple[float, float] = step(trainer)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(char_lm.Trainer, "step", step_with_interruption)
        char_lm.main(arguments(*shape, checkpoint="parts.pt"))
    assert signal.getsignal(signal.SIGINT) is handler
    assert torch.load(tmp_path / "parts.pt")["place"][0] == 8
    torch.manual_seed(99)  # the generators' states must come from the checkpoint
    char_lm.main(arguments(*shape, "--resume", checkpoint="parts.pt"))

    whole, parts = (flat(torch.load(tmp_path / name)) for name in ("whole.pt", "parts.pt"))
    assert whole.keys() == parts.keys()
    different = [
        path
        for path, leaf in whole.items()
        if not (torch.equal(leaf, parts[path]) if isinstance(leaf, torch.Tensor) else leaf == parts[path])
    ]
    assert not different
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.pt", "text.txt", "whole.pt"]


def test_resuming_a_finished_run_only_samples(
    arguments: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    char_lm.main(arguments("--steps", "2"))
    first = capsys.readouterr().out
    char_lm.main(arguments("--steps", "2", "--resume"))
    second = capsys.readouterr().out
    assert "resuming after 2 of 2 steps" in second
    assert "step 2/2" not in second
    assert first.split(" s:\n")[1] == second.split(" s:\n")[1]


@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_training_carries_the_state_of_one_chunk_into_the_next(cell: str, arguments: Callable[..., list[str]]) -> None:
    trainer, _, args = trained(arguments("--cell", cell, "--steps", "3", "--learning-rate", "1e-30"))
    assert trainer.position == 3 * args.chunk
    _, state = trainer.model(trainer.streams[:, : trainer.position])
    torch.testing.assert_close(trainer.state, char_lm.each(state, torch.Tensor.detach))
    assert not any(part.requires_grad for part in trainer.state)


def test_learns_and_carries_state_across_chunks(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abcd" * 100)
    trainer, corpus, args = trained(arguments("--steps", "80", "--learning-rate", "0.03"))
    assert trainer.evaluate() < 0.05 < math.log(len(corpus.vocabulary))
    rows = char_lm.streams(corpus.held_out, args.batch)
    with torch.inference_mode():
        logits, _ = trainer.model(rows[:, :-1])
    whole = F.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten()).item()
    assert trainer.evaluate() == pytest.approx(whole, rel=1e-4)
    # the cycle is learnt, so that a sample goes on from its prompt
    args.prompt, args.temperature = "abc", 0.1
    assert char_lm.sample(trainer.model, corpus, args) == "abcd" * 5 + "abc"


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_sample_with_carried_state_is_that_of_reading_all_again(cell: str, arguments: Callable[..., list[str]]) -> None:
    trainer, corpus, args = trained(
        arguments("--cell", cell, "--steps", "20", "--prompt", "The ", "--temperature", "1e-4")
    )
    text = char_lm.sample(trainer.model, corpus, args)
    assert len(text) == len("The ") + args.length
    with torch.inference_mode():
        logits, _ = trainer.model(corpus.encode(text)[None, :-1])
    greedy = logits[0, len("The ") - 1 :].argmax(-1)
    assert text == "The " + "".join(corpus.vocabulary[int(code)] for code in greedy)


def test_sample_depends_on_seed_and_temperature(arguments: Callable[..., list[str]]) -> None:
    trainer, corpus, args = trained(arguments("--steps", "1", "--length", "200"))
    text = char_lm.sample(trainer.model, corpus, args)
    assert text == char_lm.sample(trainer.model, corpus, args)
    args.seed = 1
    assert text != char_lm.sample(trainer.model, corpus, args)
    args.temperature = 1e-320  # its inverse overflows
    assert len(set(char_lm.sample(trainer.model, corpus, args)[100:])) <= len(set(text))


@pytest.mark.parametrize("cell", ["rnn", "gru", "lstm"])
def test_compare_prints_both_and_the_difference_of_their_curves(
    cell: str, arguments: Callable[..., list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    char_lm.main(arguments("--compare", "--cell", cell, "--layers", "2", "--steps", "30"))
    ours, theirs, ratio, difference = capsys.readouterr().out.splitlines()[-4:]
    assert ours.startswith("fastrnn ")
    assert theirs.startswith("torch.nn ")
    assert ours.endswith(" characters/s")
    assert theirs.endswith(" characters/s")
    assert "times torch.nn's speed" in ratio
    assert "over 30 steps: " in difference
    assert float(difference.rsplit(maxsplit=1)[1]) < 1e-3
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--temperature", "0"], "--temperature must be above 0"),
        (["--temperature", "-1"], "--temperature must be above 0"),
        (["--temperature", "nan"], "--temperature must be above 0"),
        (["--hidden", "0"], "--hidden must be at least 1, got 0"),
        (["--steps", "0"], "--steps must be at least 1, got 0"),
        (["--dropout", "1"], "--dropout must be at least 0 and below 1"),
        (["--learning-rate", "inf"], "--learning-rate must be above 0"),
        (["--cell", "qrnn"], "invalid choice: 'qrnn'"),
        (["--text", "missing.txt"], "cannot read missing.txt"),
        (["--text", "."], "cannot read ."),
        (["--batch", "100"], "the text is too short: 147 characters, where --batch 100 and --chunk 7 need 814"),
        (["--prompt", "The 7"], "has no '7'"),
        (["--checkpoint", "nowhere/model.pt"], "there is no directory"),
        (["--resume"], "there is no checkpoint"),
    ],
)
def test_mistakes_are_answered_before_training(
    more: list[str],
    message: str,
    arguments: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as leaving:
        char_lm.main(arguments(*more))
    # argparse prints and leaves with 2; Python prints what SystemExit holds and leaves with 1
    assert message in (capsys.readouterr().err if leaving.value.code == 2 else str(leaving.value.code))
    assert [path.name for path in tmp_path.iterdir()] == ["text.txt"]


@pytest.mark.parametrize(
    ("content", "message"), [(b"", "too short: 0 characters"), (b"\xff\xfe bytes", "as UTF-8 text")]
)
def test_unusable_text_files(content: bytes, message: str, arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(SystemExit, match=message):
        char_lm.main(arguments())


def test_unusable_checkpoints(arguments: Callable[..., list[str]], tmp_path: Path) -> None:
    char_lm.main(arguments("--steps", "1"))
    with pytest.raises(SystemExit, match=r"another configuration: cell lstm, not gru; hidden 12, not 8"):
        char_lm.main(arguments("--resume", "--cell", "gru", "--hidden", "8"))
    (tmp_path / "text.txt").write_text(TEXT.upper())
    with pytest.raises(SystemExit, match="another configuration: another text"):
        char_lm.main(arguments("--resume"))
    whole = (tmp_path / "model.pt").read_bytes()
    for content in (b"", b"no checkpoint", whole[: len(whole) // 2]):
        (tmp_path / "model.pt").write_bytes(content)
        with pytest.raises(SystemExit, match="is not a checkpoint of this program"):
            char_lm.main(arguments("--resume"))
    things: tuple[Any, ...] = (torch.zeros(2), {"model": {}}, [1])
    for thing in things:
        torch.save(thing, tmp_path / "model.pt")
        with pytest.raises(SystemExit, match="is not a checkpoint of this program"):
            char_lm.main(arguments("--resume"))


def test_divergence_is_named(arguments: Callable[..., list[str]]) -> None:
    with pytest.raises(SystemExit, match="try a smaller --learning-rate"):
        char_lm.main(arguments("--steps", "200", "--learning-rate", "1e38"))


def test_terminal_shows_a_bar_of_at_most_80_columns(arguments: Callable[..., list[str]]) -> None:
    written = io.StringIO()
    console = Console(file=written, force_terminal=True, width=80, markup=False, emoji=False, highlight=False)
    char_lm.run(char_lm.parse(arguments("--steps", "12")), console)
    report = char_lm.Report(console, 0, char_lm.STEPS)
    with report.bar:
        report.update(char_lm.STEPS, f"{char_lm.rates(10.0)}  10,000,000 chars/s")
    lines = [Text.from_ansi(line).plain for line in written.getvalue().replace("\r", "\n").split("\n")]
    assert max(map(len, lines)) <= 80
    assert any("12/12" in line and "bits/char" in line and "chars/s" in line for line in lines)
    assert any("3000/3000" in line and "10,000,000 chars/s" in line for line in lines)


def test_sample_is_shown_where_the_output_lacks_its_characters(
    arguments: Callable[..., list[str]], tmp_path: Path
) -> None:
    (tmp_path / "text.txt").write_text("é" * 200, encoding="utf-8")
    written = io.BytesIO()
    console = Console(file=io.TextIOWrapper(written, encoding="ascii"), markup=False, highlight=False)
    char_lm.run(char_lm.parse(arguments("--steps", "1")), console)
    assert written.getvalue().decode("ascii").endswith("\n\n" + "?" * 20 + "\n")


def run_script(*command: str) -> subprocess.CompletedProcess[str]:
    # the package that these tests import, whether it is installed or found in the checkout
    environment = {**os.environ, "PYTHONPATH": str(Path(fastrnn.__file__).parents[1])}
    result = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=300, check=False, env=environment
    )
    assert result.returncode == 0, result.stderr
    return result


@pytest.mark.exhaustive
def test_script_prints_plain_lines_where_there_is_no_terminal(arguments: Callable[..., list[str]]) -> None:
    run_script(str(SCRIPT), *arguments("--steps", "3"))  # which may tell of kernels that it compiles
    result = run_script(str(SCRIPT), *arguments("--steps", "3"))
    assert result.stderr == ""
    assert all(character.isprintable() or character == "\n" for character in result.stdout)
    for step in (1, 2, 3):
        assert f"step {step}/3  loss" in result.stdout
    assert "after 3 steps, held-out text: loss" in result.stdout
    assert "20 characters at temperature 0.7" in result.stdout


@pytest.mark.exhaustive
def test_two_processes_of_torchrun_compute_what_one_does(
    arguments: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On from a checkpoint of one process, into other epochs, and from theirs again in one process."""

    def command(name: str, steps: int, *more: str) -> list[str]:
        return arguments("--batch", "4", "--dropout", "0", "--steps", str(steps), *more, checkpoint=name)

    char_lm.main(command("one.pt", 3))
    shutil.copy(tmp_path / "one.pt", tmp_path / "two.pt")
    capsys.readouterr()
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    printed = run_script(*torchrun, str(SCRIPT), *command("two.pt", 10, "--resume")).stdout
    char_lm.main(command("one.pt", 10, "--resume"))
    for (what, loss), expected in zip(reported(printed), reported(capsys.readouterr().out), strict=True):
        assert (what, pytest.approx(loss, abs=2e-3)) == expected  # of three printed decimals
    assert printed.count("characters at temperature") == 1
    assert_near(tmp_path / "two.pt", tmp_path / "one.pt")
    for name in ("one.pt", "two.pt"):
        char_lm.main(command(name, 12, "--resume"))
    assert_near(tmp_path / "two.pt", tmp_path / "one.pt")


def assert_near(path: Path, expected: Path) -> None:
    """The same checkpoint up to rounding, which grows where Adam divides by the size of a small gradient."""
    got, wanted = flat(torch.load(path)), flat(torch.load(expected))
    assert got.keys() == wanted.keys()
    for name, leaf in wanted.items():
        if isinstance(leaf, torch.Tensor):
            torch.testing.assert_close(got[name], leaf, rtol=1e-4, atol=1e-5)
        else:
            assert got[name] == leaf


def reported(printed: str) -> list[tuple[str, float]]:
    """What has a loss, and the loss."""
    return [(what, float(loss)) for what, loss in re.findall(r"(.*)  ?loss ([\d.]+)", printed)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--batch", "3"], "--batch must be a multiple of 2, the number of processes, got 3"),
        (["--batch", "4", "--compare"], "2 processes need --device cpu, and no --compare"),
    ],
)
def test_what_processes_cannot_share_is_named(
    more: list[str], message: str, arguments: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(char_lm, "process", lambda: (0, 2))
    with pytest.raises(SystemExit, match=message):
        char_lm.main(arguments(*more))
