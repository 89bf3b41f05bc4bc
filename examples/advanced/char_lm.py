"""Train a character language model on the text that ships inside Python, and let it write.

    python examples/advanced/char_lm.py                    train (minutes on two cores), then sample
    python examples/advanced/char_lm.py --resume           go on from char_lm.pt; of a finished run, only sample
    python examples/advanced/char_lm.py --text book.txt --cell gru --layers 2
    python examples/advanced/char_lm.py --compare          the same seed through fastrnn and torch.nn, side by side
    torchrun --nproc-per-node 2 examples/advanced/char_lm.py
                                                           two processes on the CPU, each with half of the streams

Training is truncated back-propagation through time: the text is laid out as `batch` parallel streams, a step reads the
next `chunk` characters of each, and the state at the end of a chunk, detached, enters the next one. Ctrl-C saves the
checkpoint and samples; a resumed run is bit for bit the run that was never interrupted, on the same machine. Two
processes compute what one does, up to rounding, but draw other dropout; either goes on from the other's checkpoint.

fastrnn's RNN, GRU and LSTM take the arguments of their namesakes in torch.nn, so the model below is built from either.
The idea alone, to read in one sitting, is `examples/char_lm.py`.
"""

from __future__ import annotations

import argparse
import hashlib
import math
import pickle
import re
import signal
import statistics
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fastrnn

STEPS = 3000
COMPARE_STEPS = 300  # few, for rounding differences grow with training: any two float32 programs part in the end
HELD_OUT = 0.1  # the share of the text, at its end, that training never sees
WARM_UP_STEPS = 50
FINAL_RATE = 0.05  # of the learning rate, where the cosine ends
MAX_GRAD_NORM = 1.0
WINDOW = 50  # steps whose mean loss and median speed are on display
PLAIN_LINES = 20  # lines in a whole run where the output is not a terminal
EVALUATIONS = 5  # in a whole run; each also saves the checkpoint

State = Tensor | tuple[Tensor, ...] | None


class Mistake(Exception):
    """What the person at the keyboard can put right; shown without a traceback."""


def builtin_text() -> str:
    """The prose of Python's own language reference, a paragraph a line: code, tables and repetitions are left out."""
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise Mistake("this Python comes without pydoc_data; name a text of your own with --text FILE") from error
    blocks = (re.sub(r"\s+", " ", block).strip() for topic in topics.values() for block in re.split(r"\n\s*\n", topic))
    markup = re.compile(r"\*\*\*|===|---|>>>|::=|\+-")
    prose = [block for block in blocks if re.match(r"\W*[A-Z].{40,}[.:]$", block) and not markup.search(block)]
    return "\n".join(dict.fromkeys(prose))


def read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Mistake(f"cannot read {path} as UTF-8 text: {error}") from error


class Corpus:
    """A text as numbers: its vocabulary, the part to train on, and the held-out part."""

    def __init__(self, text: str, args: argparse.Namespace) -> None:
        held_out = max(2, int(len(text) * HELD_OUT))
        needed = args.batch * (args.chunk + 1) + held_out
        if len(text) < needed:
            sizes = f"--batch {args.batch} and --chunk {args.chunk}"
            raise Mistake(f"the text is too short: {len(text)} characters, where {sizes} need {needed}")
        self.digest = hashlib.sha256(text.encode()).hexdigest()
        self.vocabulary = sorted(set(text))
        self.index = {character: i for i, character in enumerate(self.vocabulary)}
        codes = self.encode(text).to(args.device)
        self.train, self.held_out = codes[:-held_out], codes[-held_out:]

    def encode(self, text: str) -> Tensor:
        """(len(text),) int64"""
        unknown = sorted(set(text) - self.index.keys())
        if unknown:
            raise Mistake(f"the text that the model knows has no {', '.join(map(repr, unknown))}")
        return torch.tensor([self.index[character] for character in text])


def streams(codes: Tensor, count: int) -> Tensor:
    """(L,) -> (count, L // count): consecutive pieces, one a row; what is left over at the end is dropped."""
    return codes[: len(codes) // count * count].view(count, -1)


def process() -> tuple[int, int]:
    """This process's number and how many there are: several under torchrun, each with its share of the streams."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share(rows: Tensor) -> Tensor:
    """(…, B, N) -> (…, B / processes, N): this process's rows."""
    number, count = process()
    return rows[..., number::count, :]


def whole(rows: Tensor) -> Tensor:
    """The opposite of `share`: the rows of all processes."""
    if not dist.is_initialized():
        return rows
    shares = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(dist.get_world_size())]
    dist.all_gather(shares, rows.contiguous())
    return torch.stack(shares, -2).flatten(-3, -2)


def mean(value: float) -> float:
    """Over all processes."""
    values = torch.tensor(value, dtype=torch.float64)
    if dist.is_initialized():
        dist.all_reduce(values)
    return values.item() / process()[1]


class CharLM(nn.Module):
    """Characters in, logits of the next character out. `library` gives the recurrent layer: fastrnn or torch.nn."""

    def __init__(self, vocabulary: int, args: argparse.Namespace, library: ModuleType = fastrnn) -> None:
        super().__init__()
        layer = getattr(library, args.cell.upper())
        self.embedding = nn.Embedding(vocabulary, args.embedding)
        between = args.dropout if args.layers > 1 else 0.0
        self.rnn = layer(args.embedding, args.hidden, args.layers, batch_first=True, dropout=between)
        self.dropout = nn.Dropout(args.dropout)
        self.head = nn.Linear(args.hidden, vocabulary)

    def forward(self, x: Tensor, state: State = None) -> tuple[Tensor, State]:
        """x (B, T) -> logits (B, T, vocabulary), and the state with which to go on."""
        y, state = self.rnn(self.embedding(x), state)
        return self.head(self.dropout(y)), state


def each(state: State, change: Callable[[Tensor], Tensor]) -> State:
    """`change` done to the state's tensor, or to each where it has several: an LSTM's state is (h, c)."""
    if isinstance(state, Tensor):
        return change(state)
    return state and tuple(map(change, state))


class Trainer:
    """A model, and all that its next step depends on: optimizer, state, position in the text, random generators."""

    def __init__(self, corpus: Corpus, args: argparse.Namespace, library: ModuleType = fastrnn) -> None:
        torch.manual_seed(args.seed)
        self.corpus, self.args = corpus, args
        self.model = CharLM(len(corpus.vocabulary), args, library).to(args.device)
        # Averages gradients over the processes. Their random generators are alike, and stay so.
        self.parallel = DistributedDataParallel(self.model) if dist.is_initialized() else self.model
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=args.learning_rate)
        self.done = 0
        self.new_epoch()

    def new_epoch(self) -> None:
        """Back to the start of the streams, which are cut at other places each time: the text turns by `shift`."""
        self.state: State = None
        self.go_to(int(torch.randint(len(self.corpus.train), ())), 0)

    def go_to(self, shift: int, position: int) -> None:
        self.shift, self.position = shift, position
        self.streams = share(streams(self.corpus.train.roll(-self.shift), self.args.batch))

    def learning_rate(self) -> float:
        """A linear warm-up, then half a cosine down to `FINAL_RATE`."""
        warm_up = min(1.0, (self.done + 1) / WARM_UP_STEPS)
        cosine = 0.5 + 0.5 * math.cos(math.pi * min(1.0, self.done / self.args.steps))
        return float(self.args.learning_rate * warm_up * (FINAL_RATE + (1 - FINAL_RATE) * cosine))

    def step(self) -> tuple[float, float]:
        """Learn from the next chunk of every stream; its loss, in nats per character, and the seconds it took."""
        start = time.perf_counter()
        if self.position + self.args.chunk >= self.streams.shape[1]:
            self.new_epoch()
        window = self.streams[:, self.position : self.position + self.args.chunk + 1]
        self.model.train()
        logits, state = self.parallel(window[:, :-1], self.state)
        loss = F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten())
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), MAX_GRAD_NORM)
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        self.optimizer.step()
        self.state = each(state, Tensor.detach)
        self.position += self.args.chunk
        self.done += 1
        value = mean(loss.item())  # waits for the device
        if not math.isfinite(value):
            raise Mistake(f"the loss is {value} after {self.done} steps; try a smaller --learning-rate")
        return value, time.perf_counter() - start

    @torch.inference_mode()
    def evaluate(self) -> float:
        """The loss on the held-out text, in nats per character, the state carried from chunk to chunk."""
        self.model.eval()
        rows = streams(self.corpus.held_out, min(self.args.batch, len(self.corpus.held_out) // 2))
        state, total = None, 0.0
        for start in range(0, rows.shape[1] - 1, self.args.chunk):
            window = rows[:, start : start + self.args.chunk + 1]
            logits, state = self.model(window[:, :-1], state)
            total += F.cross_entropy(logits.flatten(0, 1), window[:, 1:].flatten(), reduction="sum").item()
        return total / (rows.numel() - len(rows))

    def configuration(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be gone on with. More `--steps` may be asked for."""
        shape = ("cell", "hidden", "layers", "embedding", "dropout", "batch", "chunk", "learning_rate", "seed")
        return {name: getattr(self.args, name) for name in shape} | {"text": self.corpus.digest}

    def save(self, path: Path) -> None:
        """Write the checkpoint whole or not at all: an old file is replaced only once the new one is complete."""
        checkpoint = {
            "configuration": self.configuration(),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "state": each(self.state, whole),
            "place": (self.done, self.shift, self.position),
            "random": (torch.get_rng_state(), torch.cuda.get_rng_state_all()),
        }
        if process()[0] > 0:
            return
        partial = path.with_name(path.name + ".partial")
        try:
            torch.save(checkpoint, partial)
            partial.replace(path)
        except (OSError, RuntimeError) as error:
            raise Mistake(f"cannot write the checkpoint {path}: {error}") from error

    def load(self, path: Path) -> None:
        try:
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
            there, here = checkpoint["configuration"], self.configuration()
        except FileNotFoundError as error:
            raise Mistake(f"there is no checkpoint {path} to resume from") from error
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, LookupError, TypeError) as error:
            raise Mistake(f"{path} is not a checkpoint of this program") from error
        other = [name for name in here if there.get(name) != here[name]]
        if other:
            differences = ("another text" if n == "text" else f"{n} {there.get(n)}, not {here[n]}" for n in other)
            raise Mistake(f"the checkpoint {path} is of another configuration: {'; '.join(differences)}")
        self.model.load_state_dict(checkpoint["model"])
        self.optimizer.load_state_dict(checkpoint["optimizer"])
        self.state = each(checkpoint["state"], lambda s: share(s.to(self.args.device)))
        self.done, shift, position = checkpoint["place"]
        self.go_to(shift, position)
        torch.set_rng_state(checkpoint["random"][0])
        torch.cuda.set_rng_state_all(checkpoint["random"][1][: torch.cuda.device_count()])


@torch.inference_mode()
def sample(model: CharLM, corpus: Corpus, args: argparse.Namespace) -> str:
    """Read the prompt in one call, then write character by character: each a call of one step, the state carried."""
    model.eval()
    generator = torch.Generator().manual_seed(args.seed)
    prompt = args.prompt or ("\n" if "\n" in corpus.index else corpus.vocabulary[0])
    logits, state = model(corpus.encode(prompt).to(args.device)[None])
    written = []
    for _ in range(args.length):
        scores = logits[0, -1].double().cpu()
        probabilities = torch.softmax((scores - scores.max()) / args.temperature, 0)
        code = torch.multinomial(probabilities, 1, generator=generator)
        written.append(corpus.vocabulary[int(code)])
        logits, state = model(code.to(args.device)[None], state)
    return "".join([args.prompt or "", *written])


class Report:
    """A progress bar on a terminal; elsewhere a plain line now and then."""

    def __init__(self, console: Console, done: int, steps: int) -> None:
        self.steps, self.every = steps, max(1, steps // PLAIN_LINES)
        columns = (BarColumn(12), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn(True))
        live = console.is_terminal and not console.is_dumb_terminal
        self.bar = Progress(*columns, console=console, disable=not live)
        self.task = self.bar.add_task("the first step may compile kernels", total=steps, completed=done)

    def update(self, done: int, figures: str) -> None:
        self.bar.update(self.task, completed=done, description=figures)
        if self.bar.disable and (done % self.every == 0 or done == self.steps):
            self.bar.console.print(f"step {done}/{self.steps}  {figures}")


def rates(loss: float) -> str:
    return f"loss {loss:.3f}  {loss / math.log(2):.3f} bits/char"


@contextmanager
def interruptions() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether Ctrl-C was pressed; a second Ctrl-C ends the program as usual."""
    pressed = []

    def note(signum: int, frame: object) -> None:
        pressed.append(signum)
        if not dist.is_initialized():  # torchrun passes on what the terminal has sent already
            signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def train(trainer: Trainer, args: argparse.Namespace, console: Console) -> None:
    recent: list[tuple[float, float]] = []
    evaluate_every = max(1, args.steps // EVALUATIONS)
    report = Report(console, trainer.done, args.steps)
    with interruptions() as interrupted, report.bar:
        while trainer.done < args.steps and not mean(interrupted()):
            recent = [*recent[1 - WINDOW :], trainer.step()]
            losses, seconds = zip(*recent, strict=True)
            speed = args.batch * args.chunk / statistics.median(seconds)
            report.update(trainer.done, f"{rates(statistics.fmean(losses))}  {speed:,.0f} chars/s")
            if trainer.done % evaluate_every == 0 or trainer.done == args.steps:
                console.print(f"after {trainer.done} steps, held-out text: {rates(trainer.evaluate())}")
                trainer.save(args.checkpoint)
    if trainer.done < args.steps:
        trainer.save(args.checkpoint)
        console.print(f"interrupted after {trainer.done} steps; --resume goes on from {args.checkpoint}")


def compare(corpus: Corpus, args: argparse.Namespace, console: Console) -> None:
    """Train with fastrnn and with torch.nn, a step in turn, from the same weights, on the same text and dropout."""
    trainers = Trainer(corpus, args, fastrnn), Trainer(corpus, args, nn)
    trainers[1].model.load_state_dict(trainers[0].model.state_dict())
    ours: list[tuple[float, float]] = []
    theirs: list[tuple[float, float]] = []
    report = Report(console, 0, args.steps)
    with interruptions() as interrupted, report.bar:
        while len(theirs) < args.steps and not (theirs and interrupted()):
            with torch.random.fork_rng(devices=[0] if args.device == "cuda" else []):
                ours.append(trainers[0].step())
            theirs.append(trainers[1].step())
            report.update(len(theirs), f"loss: fastrnn {ours[-1][0]:.5f}, torch.nn {theirs[-1][0]:.5f}")
    speeds = []
    for name, curve in (("fastrnn", ours), ("torch.nn", theirs)):
        speeds.append(args.batch * args.chunk / statistics.median(seconds for _, seconds in curve))
        console.print(f"{name:8}  final loss {curve[-1][0]:.5f}  {speeds[-1]:>11,.0f} characters/s")
    console.print(f"fastrnn trains at {speeds[0] / speeds[1]:.2f} times torch.nn's speed")
    difference = max(abs(a - b) for (a, _), (b, _) in zip(ours, theirs, strict=True))
    console.print(f"largest difference of the two loss curves over {len(ours)} steps: {difference:.1e}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--text", type=Path, metavar="FILE", help="train on this UTF-8 file")
    add("--cell", choices=("rnn", "gru", "lstm"), default="lstm", help="(lstm)")
    add("--hidden", type=int, default=256, help="units in a layer (256)")
    add("--layers", type=int, default=1, help="(1)")
    add("--embedding", type=int, default=64, help="numbers for each character (64)")
    add("--dropout", type=float, default=0.2, help="after each layer (0.2)")
    add("--batch", type=int, default=32, help="parallel streams (32)")
    add("--chunk", type=int, default=64, help="characters that gradients reach back (64)")
    add("--steps", type=int, help=f"in all, those before a resumption too ({STEPS}; {COMPARE_STEPS} to compare)")
    add("--learning-rate", type=float, default=4e-3, help="of Adam, at its highest (0.004)")
    add("--seed", type=int, default=0, help="of weights, dropout, order and samples (0)")
    # Several processes compute on the CPU.
    devices = ("cuda", "cpu") if torch.cuda.is_available() and not dist.is_torchelastic_launched() else ("cpu",)
    add("--device", choices=devices, default=devices[0], help=f"({devices[0]})")
    add("--checkpoint", type=Path, default=Path("char_lm.pt"), help="written while training (char_lm.pt)")
    add("--resume", action="store_true", help="go on from the checkpoint; without it a new run replaces it")
    add("--compare", action="store_true", help="time fastrnn against torch.nn; writes no checkpoint")
    add("--prompt", help="how the sample begins")
    add("--length", type=int, default=600, help="of the sample (600)")
    add("--temperature", type=float, default=0.7, help="below 1 it plays safe, above 1 it invents (0.7)")
    args = parser.parse_args(arguments)
    args.steps = (COMPARE_STEPS if args.compare else STEPS) if args.steps is None else args.steps
    limits: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
        ("hidden layers embedding batch chunk steps length", "at least 1", lambda value: value >= 1),
        ("learning_rate temperature", "above 0 and finite", lambda value: 0 < value < math.inf),
        ("dropout", "at least 0 and below 1", lambda value: 0 <= value < 1),
        ("seed", "at least 0 and below 2**63", lambda value: 0 <= value < 2**63),
    )
    for names, allowed, within in limits:
        for name in names.split():
            if not within(getattr(args, name)):
                parser.error(f"--{name.replace('_', '-')} must be {allowed}, got {getattr(args, name)}")
    return args


def run(args: argparse.Namespace, console: Console) -> None:
    folder = args.checkpoint.absolute().parent
    if not folder.is_dir():
        raise Mistake(f"there is no directory {folder} for the checkpoint")
    corpus = Corpus(read_text(args.text) if args.text else builtin_text(), args)
    corpus.encode(args.prompt or "")
    number, count = process()
    if args.batch % count:
        raise Mistake(f"--batch must be a multiple of {count}, the number of processes, got {args.batch}")
    if count > 1 and (args.compare or args.device != "cpu"):
        raise Mistake(f"{count} processes need --device cpu, and no --compare")
    console.print(f"fastrnn.{args.cell.upper()}, {args.layers} x {args.hidden} units, on {args.device}")
    console.print(f"{len(corpus.train):,} characters to train on, {len(corpus.held_out):,} held out")
    if args.compare:
        compare(corpus, args, console)
        return
    trainer = Trainer(corpus, args)
    if args.resume:
        trainer.load(args.checkpoint)
        console.print(f"resuming after {trainer.done} of {args.steps} steps")
    if trainer.done < args.steps:
        train(trainer, args, console)
    if number > 0:
        return
    start = time.perf_counter()
    text = sample(trainer.model, corpus, args)
    seconds = time.perf_counter() - start
    console.print(f"\n{args.length} characters at temperature {args.temperature:g}, one by one, in {seconds:.2f} s:\n")
    for paragraph in text.encode(console.encoding, "replace").decode(console.encoding).split("\n"):
        console.print(textwrap.fill(paragraph, console.width))


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    if dist.is_torchelastic_launched():  # by torchrun
        dist.init_process_group("gloo")
    number, _ = process()
    try:
        run(args, Console(markup=False, emoji=False, highlight=False, soft_wrap=True, quiet=number > 0))
    except Mistake as mistake:
        raise SystemExit(1 if number > 0 else f"char_lm: {mistake}") from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


if __name__ == "__main__":
    main()
