"""Faults that a GPU can have and a test on a CPU cannot: a full card, and signals to a run that compiles."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from programme import commands
from programme.work import Piece, Row, Work, needs_gpu

LINES = 5  # of the log, after which a run is well on its way
PATIENCE = 300.0  # seconds in which they must come, compiling included


def signals(work: Work) -> Row:
    """The speed-run's first steps, stopped by SIGTERM, gone on with, and stopped by SIGUSR1."""
    folder, log = work.folder / "signals", work.folder / "signals.log"
    shutil.rmtree(folder, ignore_errors=True)
    log.unlink(missing_ok=True)
    few = ["train.batch_size=8", "train.log_every=8", "preview.n=4"] if work.tiny else ["train.log_every=512"]
    run = commands.command(
        "train", "experiment=cifar10_fast", *work.dataset(), *work.network(), *few, f"run_dir={folder}"
    )
    rows, wrong = [], []
    for code, signum in commands.SIGNALS.items():
        done = commands.run_until(work, run, grown(folder, len(commands.logged(folder)) + LINES), signum, log)
        rows.append({"name": signum.name, "exit_code": done.code, "seconds_to_exit": done.seconds})
        if done.code != code:
            wrong.append(f"{signum.name} gives exit code {done.code}, not {code}: {done.text.strip()[-300:]}")
    if "resumed at" not in log.read_text(errors="replace"):
        wrong.append("the second run did not resume the first")
    return {"data": work.pictures, "rows": rows, "first": commands.first_rows(folder, LINES), "wrong": wrong}


def grown(folder: Path, lines: int) -> Callable[[], bool]:
    """Whether a run has logged so many lines, or was given enough time to."""
    until = time.monotonic() + PATIENCE
    return lambda: len(commands.logged(folder)) >= lines or time.monotonic() > until


@contextmanager
def full_card(work: Work, gib: float) -> Iterator[str]:
    """A GPU whose memory is taken but for so many GiB; yields what was taken, in words."""
    holder = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("hog.py")), str(gib)],
        env=commands.environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert holder.stdout
        said = holder.stdout.readline().strip()
        if not said:
            raise RuntimeError("the GPU's memory could not be taken")
        yield said
    finally:
        holder.communicate()


def small_card(work: Work) -> Row:
    """512 images at once do not fit into 8 GiB: the micro-batch must be halved until they do."""
    code, text, told = crowded(work, 8.0)
    wrong = [] if code == 0 else [f"exit code {code}, not 0: {text.strip()[-300:]}"]
    if "going on with micro-batches" not in text:
        wrong.append("no micro-batch was halved")
    return {**told, "wrong": wrong + tracebacks(text)}


def no_room(work: Work) -> Row:
    """Not even the network fits: one sentence, exit code 75."""
    code, text, told = crowded(work, 0.8)
    wrong = [] if code == 75 else [f"exit code {code}, not 75: {text.strip()[-300:]}"]
    return {**told, "wrong": wrong + tracebacks(text)}


def crowded(work: Work, gib: float) -> tuple[int, str, Row]:
    """Train the DDPM network for two steps of 512 images on a card with so many GiB left: exit code, text, figures."""
    needs_gpu(work)
    folder = work.folder / "crowded"
    shutil.rmtree(folder, ignore_errors=True)
    short = ["train.batch_size=512", "train.images=1024", "train.compile=false", "preview.n=4", "sampler.steps=4"]
    run = commands.command("train", "experiment=cifar10_ddpm", *work.dataset(), *short, f"run_dir={folder}")
    with full_card(work, gib) as said:
        done = commands.run(work, run, codes=tuple(range(256)))
    sentences = [line for line in done.text.splitlines() if "memory" in line]
    return done.code, done.text, {"exit_code": done.code, "held": said, "said": sentences[-3:]}


def tracebacks(text: str) -> list[str]:
    """What is wrong about a text with a traceback in it."""
    return ["there was a traceback"] if "Traceback" in text else []


PIECES = {
    "signals": Piece(4, signals),
    "8 GiB left": Piece(2, small_card),
    "0.8 GiB left": Piece(1, no_room),
}
