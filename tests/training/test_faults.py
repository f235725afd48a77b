"""What can go wrong while a run goes on, each made to happen: nothing is lost, and one sentence says what to do.

Every test here is a row of docs/reliability.md (`scripts/fault_table.py` writes it), and so are those elsewhere that
carry the mark `fault(what happens, what diffgen does)`.
"""

import errno
import hashlib
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from threading import Timer
from typing import Any

import pytest
import torch
from torch import Tensor

from diffgen.core import files, processes, signals
from diffgen.core.console import Reporter
from diffgen.core.errors import EnvironmentFault, NonFiniteError
from diffgen.core.lock import RunLock
from diffgen.core.signals import Stopped
from diffgen.diffusion.denoiser import Denoiser
from diffgen.evaluation import examiner
from diffgen.objectives import Denoise
from diffgen.storage import checkpoint, run_directory, tensor_file
from diffgen.training import parts, trainer

Fit = Callable[..., Path]
Metrics = Callable[[Path], list[dict[str, Any]]]
Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
fault = pytest.mark.fault

ROOT = Path(__file__).parents[2]
TIMING = {"images_per_second", "seconds"}


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def same_run(first: Path, second: Path, metrics: Metrics, images: int = 128) -> None:
    """Files of the checkpoint are equal byte for byte, and rows of the log but for their times."""
    for file in ("model.safetensors", "state.safetensors"):
        one, two = (run / "checkpoints" / f"{images:08d}" / file for run in (first, second))
        assert one.read_bytes() == two.read_bytes(), file
    rows = [[{k: v for k, v in row.items() if k not in TIMING} for row in metrics(run)] for run in (first, second)]
    assert rows[0] == rows[1]


def at_step(monkeypatch: Patch, number: int, act: Callable[[Tensor], Tensor | None], *, until: int = 0) -> None:
    """Before the losses of step `number` (to `until` - 1) are handed on, `act` sees and may change them."""
    loss = Denoise.loss
    calls = iter(range(1000))

    def changed(*arguments: Any) -> Tensor:
        values = loss(*arguments)
        if number <= next(calls) < (until or number + 1):
            other = act(values)
            return values if other is None else other
        return values

    monkeypatch.setattr(Denoise, "loss", changed)


# --- signals ------------------------------------------------------------------------------------------------


@fault(
    "Ctrl-C, SIGTERM or the cluster's signal", "the step is finished and saved, exit 128 + signal; resuming is exact"
)
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_in_a_step(
    fit: Fit, metrics: Metrics, tmp_path: Path, tiny_run: Path, monkeypatch: Patch, signum: signal.Signals
) -> None:
    before = signal.getsignal(signum)
    with monkeypatch.context() as patch:
        at_step(patch, 2, lambda _: signal.raise_signal(signum))
        with pytest.raises(Stopped) as caught:
            fit(tmp_path / "run")
    assert signal.getsignal(signum) is before
    assert caught.value.exit_code == 128 + signum
    assert str(caught.value).startswith(f"stopped by {signum.name} at 48 images; go on with the same command")
    assert names(tmp_path / "run" / "checkpoints") == ["00000048", "latest"]
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"], status["images"]) == ("stopped", 128 + signum, 48)
    same_run(fit(tmp_path / "run"), tiny_run, metrics)


@fault("a signal between two lines of the log", "the lines of the run that goes on are those of one left alone")
def test_the_log_of_a_stopped_run(fit: Fit, metrics: Metrics, tmp_path: Path, monkeypatch: Patch) -> None:
    alone = fit(tmp_path / "alone", "train.log_every=48")
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda _: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Stopped, match="at 64 images"):
            fit(tmp_path / "run", "train.log_every=48")
    same_run(fit(tmp_path / "run", "train.log_every=48"), alone, metrics)


@fault("a pre-emption signal other than SIGUSR1", "`train.preemption_signal` names it")
def test_the_preemption_signal_can_be_chosen(fit: Fit, tmp_path: Path, monkeypatch: Patch) -> None:
    at_step(monkeypatch, 2, lambda _: signal.raise_signal(signal.SIGUSR2))
    with pytest.raises(Stopped) as caught:
        fit(tmp_path / "run", "train.preemption_signal=SIGUSR2")
    assert caught.value.exit_code == 128 + signal.SIGUSR2


@fault("a signal, and a step that does not end", "status.json says so, before the launcher kills the process")
def test_a_step_that_does_not_end(fit: Fit, tmp_path: Path, monkeypatch: Patch) -> None:
    """As where a GPU waits for another process that has died: Python handles no signal before the call returns."""
    monkeypatch.setattr(signals, "LATE", 0.05)
    seen: list[Any] = []

    def block(_: Tensor) -> None:
        Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)).start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 1_500_000)  # one call into C, about a second
        seen.append(json.loads((tmp_path / "run" / "status.json").read_text()))

    at_step(monkeypatch, 2, block)
    with pytest.raises(Stopped):
        fit(tmp_path / "run")
    assert seen[0]["state"] == "stopping" and "the run has not ended since" in seen[0]["reason"]
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "stopped"


def test_only_signals_that_end_a_run_are_heard(fit: Fit, tmp_path: Path, monkeypatch: Patch) -> None:
    """Others are libraries', of processes that decode pictures; and what has ended stays as it was told."""
    monkeypatch.setattr(signals, "LATE", 0.05)
    told: list[str] = []
    tell = trainer.Trainer._tell_status

    def telling(self: trainer.Trainer, state: str, *rest: Any, **more: Any) -> None:
        told.append(state)
        tell(self, state, *rest, **more)

    monkeypatch.setattr(trainer.Trainer, "_tell_status", telling)
    before = signal.signal(signal.SIGCHLD, lambda *_: None)
    try:
        with monkeypatch.context() as patch:
            at_step(patch, 2, lambda _: (signal.raise_signal(signal.SIGCHLD), time.sleep(0.3))[1])
            fit(tmp_path / "run")
        assert "stopping" not in told
        free = processes.Accelerator.end_training
        monkeypatch.setattr(processes.Accelerator, "end_training", lambda self: (time.sleep(0.3), free(self))[1])
        monkeypatch.setattr(signals, "LATE", 0.2)
        at_step(monkeypatch, 7, lambda _: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Stopped):
            fit(tmp_path / "other", "train.preview_every=999")
        assert told[-1] == "stopped"
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_child_that_holds_the_pipe_open_holds_nothing_up(fit: Fit, tmp_path: Path, monkeypatch: Patch) -> None:
    """As processes that decode pictures do, which are forked while the run listens for signals."""
    children: list[subprocess.Popen[bytes]] = []

    def fork(_: Tensor) -> None:
        pipes = [int(fd.name) for fd in Path("/proc/self/fd").iterdir() if pipe(fd)]
        children.append(subprocess.Popen(["sleep", "60"], pass_fds=pipes))

    at_step(monkeypatch, 2, fork)
    began = time.monotonic()
    try:
        fit(tmp_path / "run")
        assert time.monotonic() - began < 30
    finally:
        children[0].kill()
        children[0].wait()


def pipe(fd: Path) -> bool:
    """Whether a file descriptor is a pipe's."""
    return fd.is_symlink() and str(fd.readlink()).startswith("pipe:")


@fault("a signal while the run starts", "it ends before its first step; the same command begins again")
def test_a_signal_before_the_first_step(
    fit: Fit, metrics: Metrics, tmp_path: Path, tiny_run: Path, monkeypatch: Patch
) -> None:
    make = parts.make_splits
    with monkeypatch.context() as patch:
        patch.setattr(parts, "make_splits", lambda config: (signal.raise_signal(signal.SIGTERM), make(config))[1])
        with pytest.raises(Stopped, match="at 0 images"):
            fit(tmp_path / "run")
    assert names(tmp_path / "run" / "checkpoints") == []
    same_run(fit(tmp_path / "run"), tiny_run, metrics)


@fault("a signal while a preview is drawn", "the preview is left out; the checkpoint is written within the step")
def test_a_signal_in_a_preview(fit: Fit, tmp_path: Path, monkeypatch: Patch, capsys: Capture) -> None:
    draw, calls = Denoiser.preconditioning, iter(range(99))

    def third(self: Denoiser, t: Tensor) -> Any:
        if next(calls) == 3:
            signal.raise_signal(signal.SIGTERM)
        return draw(self, t)

    monkeypatch.setattr(Denoiser, "preconditioning", third)
    with pytest.raises(Stopped, match="at 48 images"):
        fit(tmp_path / "run", "train.preview_every=32")
    assert names(tmp_path / "run" / "samples") == []
    assert "the preview is left out" in capsys.readouterr().out


@fault("a signal while a checkpoint is written", "it is finished first")
def test_a_signal_in_a_checkpoint(
    fit: Fit, metrics: Metrics, tmp_path: Path, tiny_run: Path, monkeypatch: Patch
) -> None:
    save_file = tensor_file.save_file
    with monkeypatch.context() as patch:

        def slow(*arguments: Any, **options: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.2)
            save_file(*arguments, **options)

        patch.setattr(tensor_file, "save_file", slow)
        with pytest.raises(Stopped):
            fit(tmp_path / "run")
    made = names(tmp_path / "run" / "checkpoints")
    assert made[0] == "00000064"
    assert not any(name.startswith(".") for name in made)
    assert all(checkpoint.damage(tmp_path / "run" / "checkpoints" / name) is None for name in made[:-1])
    same_run(fit(tmp_path / "run"), tiny_run, metrics)


TWICE = """
import os, signal, sys, time
from diffgen.objectives import Denoise
from diffgen.cli import train
loss, calls = Denoise.loss, iter(range(99))
def impatient(*arguments):
    if next(calls) == 5:
        while not os.path.exists("run/checkpoints/00000064"):  # it is written in the background
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    return loss(*arguments)
Denoise.loss = impatient
sys.exit(train.main())
"""


@fault("a second Ctrl-C", "exit 130 at once; the newest checkpoint is whole")
def test_a_second_ctrl_c(
    fit: Fit, metrics: Metrics, tmp_path: Path, tiny: list[str], tiny_run: Path, python: Callable[..., Any]
) -> None:
    done = python("-c", TWICE, *tiny, "run_dir=run")
    assert done.returncode == 130, done.stderr
    assert "stopped at once by a second Ctrl-C" in done.stderr
    assert checkpoint.find_newest(tmp_path / "run") == tmp_path / "run" / "checkpoints" / "00000064"
    same_run(fit(tmp_path / "run"), tiny_run, metrics)


# --- kills --------------------------------------------------------------------------------------------------


def state_after_kill(folder: Path, number: int) -> bool:
    """In a child process: write checkpoint 20 over 10, and die at file-system call `number`; whether it died."""
    child = os.fork()
    if child == 0:
        left = iter(range(number))

        def kill(event: str, arguments: object) -> None:
            changes = event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "shutil.rmtree")
            if changes and next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)

        weights = {"w": torch.full((3,), 2.0)}
        sys.addaudithook(kill)
        checkpoint.save(folder / "checkpoints" / "00000020", {}, 20, weights, weights, {"config": {}, "images": 20})
        checkpoint.rotate(folder / "checkpoints", keep=1)
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@fault("SIGKILL at any file-system call of a checkpoint", "the old or the new checkpoint is there, whole; leftovers go")
@pytest.mark.parametrize("again", [False, True], ids=["new", "replaced"])
def test_a_kill_at_every_call_of_a_checkpoint(tmp_path: Path, again: bool) -> None:
    weights = {"w": torch.ones(3)}
    for number in range(1000):
        run = tmp_path / str(number)
        checkpoint.save(run / "checkpoints" / "00000010", {}, 10, weights, weights, {"config": {}, "images": 10})
        if again:
            checkpoint.save(run / "checkpoints" / "00000020", {}, 20, weights, weights, {"config": {}, "images": 20})
        died = state_after_kill(run, number)
        with RunLock() as lock:
            place = run_directory.choose_run(str(run), "auto", "", lock)
        assert place.resumed_from and place.notes == ()
        held = checkpoint.load(place.resumed_from).weights["w"][0]
        assert held == (2 if place.resumed_from.name == "00000020" else 1) or again
        assert not [p for p in run.rglob(".*") if p.name != ".lock"]
        if not died:
            break
    assert number > 20, "the audit hook saw the calls"
    assert place.resumed_from.name == "00000020"
    assert held == 2


@fault("power failure: data reaches the disk before names do", "fsync of files, folder, then rename, then fsync")
def test_the_order_of_a_checkpoint(tmp_path: Path, monkeypatch: Patch) -> None:
    events: list[str] = []
    fsync, replace = files._fsync, files._replace_folder
    monkeypatch.setattr(files, "_fsync", lambda path: (events.append(f"fsync {path.name[:5]}"), fsync(path)))
    monkeypatch.setattr(files, "_replace_folder", lambda a, b: (events.append("rename"), replace(a, b)))
    weights = {"w": torch.ones(3)}
    checkpoint.save(tmp_path / "checkpoints" / "00000010", {}, 10, weights, weights, {"config": {}})
    assert sorted(events[:3]) == ["fsync model", "fsync state", "fsync state"]
    assert events[3:] == ["fsync .tmp_", "rename", "fsync check"]


HOLD = "import sys, time; from pathlib import Path; from diffgen.core.lock import RunLock; lock = RunLock(); lock.take(Path(sys.argv[1])); print('held', flush=True); {then}; time.sleep(60)"


@contextmanager
def another_run(run_dir: Path, then: str = "") -> Iterator[subprocess.Popen[str]]:
    """A process that holds a run directory."""
    code = HOLD.format(then=then or "pass")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(run_dir)], stdout=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert other.stdout and other.stdout.readline() == "held\n"
        yield other
    finally:
        other.kill()
        other.wait()


@fault("two runs in one directory", "the second refuses, exit 75, and names the first's process")
def test_a_second_run_refuses(fit: Fit, tmp_path: Path, tiny_run: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"}
    with another_run(run) as other, pytest.raises(EnvironmentFault) as caught:
        fit(run, "train.images=256")
    assert caught.value.exit_code == 75
    assert f"is in use by process {other.pid} on " in str(caught.value)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file() and p.name != ".lock"} == before


@fault("the lock of a run that was killed", "it is recognised as nobody's, also while a worker of that run lingers")
def test_a_dead_runs_lock_is_taken(fit: Fit, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with another_run(run, then="import os; os.fork() or time.sleep(5)") as other:
        other.kill()
        other.wait()
        assert json.loads((run / ".lock").read_text())["pid"] == other.pid
        fit(run)
    assert checkpoint.load(run).images == 128


@pytest.mark.slow
@fault(
    "SIGKILL at 50 random moments of a run",
    "it resumes each time; the last checkpoint has the SHA-256 of a run left alone",
)
@pytest.mark.parametrize(
    ("processes", "kills", "settings"),
    [(1, 50, []), (1, 10, ["train.precision=bf16"]), (2, 10, [])],
    ids=["one process", "bf16", "two processes"],
)
@pytest.mark.timeout(1500)
def test_a_run_survives_kills(tmp_path: Path, processes: int, kills: int, settings: list[str]) -> None:
    script = [sys.executable, str(ROOT / "scripts" / "chaos.py"), f"--kills={kills}", f"--processes={processes}"]
    done = subprocess.run(
        [*script, f"--folder={tmp_path}", *settings],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kills} kills" in done.stdout
    assert done.stdout.strip().splitlines()[-1].startswith("the same")


# --- disks --------------------------------------------------------------------------------------------------


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A real limit of this process, as a quota sets it: writing beyond it fails with `File too large`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 640 kB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=640k", "none", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system is not allowed here")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


@fault(
    "a checkpoint that a quota forbids",
    "training goes on with a warning; exit 75 if the last one fails; earlier ones whole",
)
def test_a_quota_on_checkpoints(fit: Fit, metrics: Metrics, tmp_path: Path, tiny_run: Path, capsys: Capture) -> None:
    run = fit(tmp_path / "run", "train.images=64")
    with largest_file(50_000), pytest.raises(EnvironmentFault) as caught:
        fit(run, "train.checkpoint_every=32")
    assert caught.value.exit_code == 75
    assert "cannot write" in str(caught.value) and "File too large" in str(caught.value)
    assert "00000096" in capsys.readouterr().out, "a warning for the one that was not the last"
    assert names(run / "checkpoints") == ["00000064", "latest"]
    assert [row["images"] for row in metrics(run)][-1] == 128, "the run went on to its end"
    fit(run)
    assert checkpoint.load(run).images == 128


@fault("a disk that is full", "nothing is torn: old checkpoint whole, log without gaps, the same command goes on")
def test_a_full_disk(
    fit: Fit, metrics: Metrics, tiny_run: Path, small_disk: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    """From step 5 on another file takes all the space; previews, log and checkpoints find no room."""
    run, filler = small_disk / "run", small_disk / "filler"

    def fill(_: Tensor) -> None:
        while not (run / "checkpoints" / "00000064").exists():  # it is written in the background
            time.sleep(0.01)
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(4096)):
                    pass
            except OSError:
                return

    with monkeypatch.context() as patch:
        at_step(patch, 4, fill)
        with pytest.raises(EnvironmentFault, match=r"cannot write .*No space left on device"):
            fit(run, "train.preview_every=96")
    said = capsys.readouterr().out
    assert "samples/00000096.png: No space left on device; training goes on" in said
    assert checkpoint.find_newest(run) == run / "checkpoints" / "00000064"
    assert checkpoint.damage(run / "checkpoints" / "00000064") is None
    filler.unlink()
    fit(run)
    same_run(run, tiny_run, metrics)


@fault("a disk with room for one checkpoint of two", "the older one goes first; the run goes on")
def test_room_for_one_checkpoint(fit: Fit, small_disk: Path, monkeypatch: Patch) -> None:
    """The tiny run's checkpoints have 211 kB; two of them and a filler leave no room for a third."""

    def fill(_: Tensor) -> None:
        while not (small_disk / "run" / "checkpoints" / "00000064").exists():
            time.sleep(0.01)
        (small_disk / "filler").write_bytes(bytes(640 * 1024 - 211_000 * 2 - 80_000))

    at_step(monkeypatch, 4, fill)
    run = fit(small_disk / "run", "train.checkpoint_every=32", "train.keep_checkpoints=2", "train.preview_every=100000")
    assert checkpoint.load(run).images == 128


@fault("a log on a full disk, or any other that fails", "a warning; rows are kept and written when there is room")
def test_a_log_that_cannot_be_written(
    fit: Fit, metrics: Metrics, tmp_path: Path, tiny_run: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    """For three steps the log is /dev/full, where every write fails as on a full disk."""
    log = tmp_path / "run" / "metrics.jsonl"

    def full(_: Tensor) -> None:
        log.rename(tmp_path / "aside")
        log.symlink_to("/dev/full")

    def mended(_: Tensor) -> None:
        log.unlink()
        (tmp_path / "aside").rename(log)

    at_step(monkeypatch, 2, full)
    at_step(monkeypatch, 5, mended)
    same_run(fit(tmp_path / "run"), tiny_run, metrics)
    assert capsys.readouterr().out.count("metrics.jsonl: No space left on device; training goes on") == 1


@fault("a terminal or redirected output on a full disk", "silence; training goes on")
def test_output_that_cannot_be_written() -> None:
    reporter = Reporter(speaks=True)
    stdout, full = sys.stdout, Path("/dev/full").open("w")  # noqa: SIM115
    try:
        reporter.console.file = full
        reporter.say("hello" * 10_000)
        assert reporter.console.quiet
        reporter.say("again")
    finally:
        sys.stdout = stdout
        with suppress(OSError):
            full.close()


@fault("a run directory that cannot be written", "one sentence with the path and the reason, exit 75, before training")
@pytest.mark.parametrize("path", ["/proc/nothing", "/dev/null/run"])
def test_an_unwritable_run_directory(fit: Fit, path: str) -> None:
    with pytest.raises(EnvironmentFault, match=f"cannot write {path}: "):
        fit(Path(path))


# --- numbers ------------------------------------------------------------------------------------------------


class Poison(torch.autograd.Function):
    """Zero forwards, NaN backwards."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.zeros_like(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        return torch.full_like(grad, math.nan)


BAD: dict[str, Callable[[Tensor], Tensor]] = {
    "NaN loss": lambda values: values * math.nan,
    "infinite loss": lambda values: values * math.inf,
    "NaN gradient": lambda values: values + Poison.apply(values),
}


@fault("a loss or gradient that is NaN or infinite", "the step is skipped and counted; weights stay as they were")
@pytest.mark.parametrize("how", BAD)
@pytest.mark.parametrize("optimizer", ["adamw", "plain"])
def test_a_step_that_is_not_finite_is_skipped(
    fit: Fit, metrics: Metrics, tmp_path: Path, monkeypatch: Patch, how: str, optimizer: str
) -> None:
    """Both with a fused optimizer, which finds out on the device, and with one that cannot."""
    if optimizer == "plain":
        monkeypatch.setattr(torch.optim.AdamW, "_step_supports_amp_scaling", False, raising=False)
    seen: list[Tensor] = []
    step = trainer.Trainer._step

    def watched(self: trainer.Trainer, *batch: Tensor) -> Any:
        result = step(self, *batch)
        seen.append(torch.cat([p.detach().flatten() for p in self.parts.network.parameters()]))
        return result

    monkeypatch.setattr(trainer.Trainer, "_step", watched)
    at_step(monkeypatch, 3, BAD[how], until=5)
    run = fit(tmp_path / "run")
    changed = [not torch.equal(a, b) for a, b in pairwise(seen)]
    assert changed == [True, True, False, False, True, True, True]
    rows = metrics(run)
    assert [row["skipped"] for row in rows] == [0, 0, 0, 1, 2, 2, 2, 2]
    assert [row["loss"] is None for row in rows] == [row["step"] in (4, 5) for row in rows]
    assert all(weight.isfinite().all() for weight in checkpoint.load(run).weights.values())


@fault("NaN or Inf in more than train.max_skipped steps in a row", "exit 5 with advice; the last good checkpoint stays")
@pytest.mark.parametrize("how", BAD)
def test_divergence_ends_the_run(fit: Fit, tmp_path: Path, monkeypatch: Patch, how: str) -> None:
    at_step(monkeypatch, 5, BAD[how], until=99)
    with pytest.raises(NonFiniteError) as caught:
        fit(tmp_path / "run", "train.max_skipped=2")
    assert caught.value.exit_code == 5
    assert "3 steps in a row" in str(caught.value)
    assert "optimizer.lr" in str(caught.value)
    assert names(tmp_path / "run" / "checkpoints") == ["00000064", "latest"]
    assert checkpoint.load(tmp_path / "run").images == 64


@fault("weights that overflow", "they are never saved; exit 5")
def test_weights_that_are_not_finite_are_not_saved(fit: Fit, tmp_path: Path, monkeypatch: Patch) -> None:
    lerp = torch._foreach_lerp_
    calls = iter(range(99))

    def overflow(averages: list[Tensor], *rest: Any) -> None:
        lerp(averages, *rest)
        if next(calls) == 6:
            averages[0].fill_(math.inf)

    monkeypatch.setattr(torch, "_foreach_lerp_", overflow)
    with pytest.raises(NonFiniteError, match="the averaged weights are not finite, at 128 images"):
        fit(tmp_path / "run")
    assert checkpoint.load(tmp_path / "run").images == 64


# --- memory and processes -----------------------------------------------------------------------------------


def needs_memory(monkeypatch: Patch, most: int) -> None:
    """Beyond `most` images the CPU's allocator really fails."""
    loss = Denoise.loss

    def hungry(*arguments: Any) -> Tensor:
        values = loss(*arguments)
        if len(values) > most:
            torch.empty(2**50)
        return values

    monkeypatch.setattr(Denoise, "loss", hungry)


@fault("out of memory", "the micro-batch is halved until it fits, and this is told; the batch is the same")
def test_out_of_memory(
    fit: Fit, metrics: Metrics, tmp_path: Path, monkeypatch: Patch, capsys: Capture, tiny_run: Path
) -> None:
    small = fit(tmp_path / "small", "train.micro_batch=4")
    needs_memory(monkeypatch, 5)
    capsys.readouterr()
    run = fit(tmp_path / "run", "train.images=64")
    said = capsys.readouterr().out
    assert "out of memory with 16 images at once: going on with micro-batches of 8" in said
    assert "out of memory with 8 images at once: going on with micro-batches of 4" in said
    fit(run)
    assert "out of memory" not in capsys.readouterr().out, "a resumed run knows the size that fits"
    for mine, theirs, full in zip(metrics(run), metrics(small), metrics(tiny_run), strict=True):
        if mine["images"] > 64:  # before, the decay of the shorter run differed
            continue
        assert mine["loss"] == theirs["loss"] or mine["images"] > 16
        assert math.isclose(mine["loss"], full["loss"], rel_tol=1e-3) or mine["images"] > 16


@fault("out of memory with one image", "one sentence, exit 75")
def test_no_memory_at_all(fit: Fit, tmp_path: Path, monkeypatch: Patch) -> None:
    needs_memory(monkeypatch, 0)
    with pytest.raises(EnvironmentFault, match="out of memory with a single image at a time"):
        fit(tmp_path / "run")


NO_MEMORY = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("could not create a primitive"),
    RuntimeError("GET was unable to find an engine to execute this computation"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory: you tried to allocate"
    ),
    MemoryError(),
    OSError(errno.ENOMEM, "Cannot allocate memory"),
]


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@fault("out of memory while the network is built", "one sentence, exit 75; nothing is written")
@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: str(error)[:20])
def test_no_memory_to_build(
    command: Any, tiny: list[str], tmp_path: Path, monkeypatch: Patch, error: Exception
) -> None:
    monkeypatch.setattr(parts, "make_model", raising(error))
    answer = command("train", *tiny, "run_dir=run")
    assert answer.code == 75
    assert answer.err.startswith("error: out of memory (") and answer.err.count("\n") == 1
    assert "choose a smaller model, image size or batch" in answer.err
    assert not (tmp_path / "run").exists()


@fault("out of memory in a step's other parts", "one sentence, exit 75, and the last checkpoint stays")
def test_no_memory_for_the_average(
    command: Any, tiny: list[str], tmp_path: Path, monkeypatch: Patch, metrics: Metrics
) -> None:
    lerp, calls = torch._foreach_lerp_, iter(range(99))
    monkeypatch.setattr(torch, "_foreach_lerp_", lambda *a: raising(NO_MEMORY[0])() if next(calls) == 5 else lerp(*a))
    answer = command("train", *tiny, "run_dir=run")
    assert (answer.code, answer.err.count("\n")) == (75, 1)
    assert json.loads((tmp_path / "run" / "status.json").read_text())["exit_code"] == 75
    assert checkpoint.load(tmp_path / "run").images == 64
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert command("train", *tiny, "run_dir=run").code == 0


@fault("out of memory in a preview", "it is left out with a warning, and training goes on")
def test_no_memory_for_a_preview(
    fit: Fit, metrics: Metrics, tmp_path: Path, tiny_run: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setattr(Denoiser, "__call__", raising(NO_MEMORY[0]))
    run = fit(tmp_path / "run", "train.preview_every=64")
    same_run(run, tiny_run, metrics)
    assert names(run / "samples") == []
    said = capsys.readouterr().out
    assert "warning: out of memory with a single image at a time" in said and "; training goes on" in said


@fault("out of memory in an evaluation on the way", "it is left out with a warning, and training goes on")
@pytest.mark.parametrize("part", ["draw_share", "measured"])
def test_no_memory_for_an_evaluation(
    fit: Fit, metrics: Metrics, tmp_path: Path, monkeypatch: Patch, capsys: Capture, part: str
) -> None:
    real, calls = getattr(examiner, part), iter(range(99))
    monkeypatch.setattr(examiner, part, lambda *a: raising(NO_MEMORY[1])() if next(calls) == 1 else real(*a))
    judged = ["train.eval_every=32", "train.eval_n=20", "extractor.epochs=1"]
    run = fit(tmp_path / "run", *judged)
    rows = [json.loads(line) for line in (run / "eval" / "training.jsonl").read_text().splitlines()]
    assert [row["images_seen"] for row in rows] == [32, 96, 128]
    assert "warning: out of memory" in capsys.readouterr().out


@fault("out of memory in sampling", "smaller batches; with a single image one sentence, exit 75")
def test_no_memory_for_samples(command: Any, tiny_model: Path, monkeypatch: Patch) -> None:
    real, sizes = Denoiser.__call__, list[int]()

    def hungry(most: int) -> Callable[..., Tensor]:
        def call(self: Denoiser, x: Tensor, *rest: Any) -> Tensor:
            sizes.append(len(x))
            return raising(NO_MEMORY[0])() if len(x) > most else real(self, x, *rest)

        return call

    sample = ["sample", f"ckpt={tiny_model}", "n=13", "guidance=1", "sampler=ddim", "sampler.steps=2"]
    monkeypatch.setattr(Denoiser, "__call__", hungry(4))
    assert command(*sample, "out=some").code == 0
    assert sizes == [13, 7, 4, 4, 4, 4, 4, 4, 4, 4], "four even batches of two calls"
    monkeypatch.setattr(Denoiser, "__call__", hungry(0))
    answer = command(*sample, "out=none")
    assert (answer.code, answer.err.count("\n")) == (75, 1)
    assert "out of memory with a single image at a time" in answer.err


@fault("a warning of Python's or of a library's", "one line on standard error, once")
def test_warnings_are_told_in_one_line(command: Any, tiny_model: Path, monkeypatch: Patch) -> None:
    real = Denoiser.__call__

    def warning(self: Denoiser, *arguments: Any) -> Tensor:
        warnings.warn("the first line\n  and the second (Triggered internally at ../c10/x.cpp:11.)", stacklevel=1)
        return real(self, *arguments)

    monkeypatch.setattr(Denoiser, "__call__", warning)
    answer = command("sample", f"ckpt={tiny_model}", "n=2", "out=out")
    assert (answer.code, answer.err) == (0, "warning: the first line and the second\n")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert command("sample", f"ckpt={tiny_model}", "n=2", "out=other").err == ""


@fault("an NVIDIA driver that torch cannot use", "this is told before anything runs on the CPU")
def test_a_driver_that_torch_cannot_use(command: Any, tiny_model: Path, tmp_path: Path, monkeypatch: Patch) -> None:
    if torch.cuda.is_available():
        pytest.skip("torch can use it")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(processes, "DRIVER", (tmp_path / "other", tmp_path / "version"))
    sample = ["sample", f"ckpt={tiny_model}", "n=2", "overwrite=true", "out=out"]
    assert command(*sample).err == ""
    (tmp_path / "version").touch()
    answer = command(*sample)
    assert answer.err.startswith("warning: this machine has an NVIDIA driver, but torch ")
    assert answer.err.count("\n") == 1
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert command(*sample).err == "", "the CPU is meant"


@fault("the clock going backwards", "nothing depends on it: order is by images, durations by the monotonic clock")
def test_a_clock_that_goes_backwards(
    fit: Fit, metrics: Metrics, tmp_path: Path, tiny_run: Path, monkeypatch: Patch
) -> None:
    now = iter(range(2_000_000_000, 0, -10_000))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))
    run = fit(tmp_path / "run", "train.images=96", "train.checkpoint_every=48", "lr_schedule.decay=constant")
    assert names(run / "checkpoints") == ["00000048", "00000096", "latest"]
    os.utime(run / "checkpoints" / "00000048", (2e9, 2e9))
    os.utime(run / "checkpoints" / "00000096", (1e9, 1e9))
    fit(run, "lr_schedule.decay=constant", "train.minutes=60")
    seconds = [row["seconds"] for row in metrics(run)]
    assert [row["images"] for row in metrics(run)] == list(range(16, 129, 16))
    assert seconds == sorted(seconds)
    assert seconds[-1] < 60


DYING = """
import os, signal, sys, time
from diffgen.objectives import Denoise
from diffgen.cli import train
loss, calls = Denoise.loss, iter(range(99))
def dying(*arguments):
    if next(calls) == 6 and os.environ["RANK"] == "{rank}":
        while not os.path.exists("run/checkpoints/00000064"):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)
    return loss(*arguments)
Denoise.loss = dying
sys.exit(train.main())
"""


@fault("one process of two dying", "the other leaves within seconds, says why, exit 75; the checkpoint is whole")
@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 0])
def test_a_process_that_dies(tmp_path: Path, tiny: list[str], python: Callable[..., Any], rank: int) -> None:
    (tmp_path / "dying.py").write_text(DYING.format(rank=rank))
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    started = time.monotonic()
    done = python(*torchrun, "dying.py", *tiny, "run_dir=run")
    assert time.monotonic() - started < 60
    assert done.returncode != 0
    assert "cpu x 2" in done.stdout
    assert f"process {1 - rank} lost another process of this run" in done.stderr
    assert checkpoint.damage(tmp_path / "run" / "checkpoints" / "00000064") is None


CROWDED = """
import os, sys
from diffgen.objectives import Denoise
import torch
from diffgen.cli import train
loss = Denoise.loss
def hungry(*arguments):
    values = loss(*arguments)
    if os.environ["RANK"] == "1" and len(values) > 2:
        torch.empty(2**50)
    return values
Denoise.loss = hungry
sys.exit(train.main())
"""


ASKED = """
import os, signal, sys
from diffgen.objectives import Denoise
from diffgen.cli import train
loss, calls = Denoise.loss, iter(range(99))
def asked(*arguments):
    if next(calls) == 4 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGUSR1)
    return loss(*arguments)
Denoise.loss = asked
sys.exit(train.main())
"""


@pytest.mark.slow
@fault("a signal to one of several processes", "all stop after the same step; status.json holds the exit code")
def test_one_process_is_asked_to_stop(
    tmp_path: Path, tiny: list[str], python: Callable[..., Any], metrics: Metrics
) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    (tmp_path / "asked.py").write_text(ASKED)
    done = python(*torchrun, "asked.py", *tiny, "run_dir=run")
    assert "stopped by SIGUSR1 at 64 images" in done.stderr
    status = json.loads((tmp_path / "run" / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", 138)
    assert checkpoint.damage(tmp_path / "run" / "checkpoints" / "00000064") is None
    for run in ("run", "alone"):
        done = python(*torchrun, "-m", "diffgen.cli.train", *tiny, f"run_dir={run}")
        assert done.returncode == 0, done.stderr
    same_run(tmp_path / "run", tmp_path / "alone", metrics)


@pytest.mark.slow
@fault("out of memory on one of several processes", "all of them halve the micro-batch before the first step")
def test_out_of_memory_on_one_process(tmp_path: Path, tiny: list[str], python: Callable[..., Any]) -> None:
    (tmp_path / "crowded.py").write_text(CROWDED)
    done = python(
        "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "crowded.py", *tiny, "run_dir=run"
    )
    assert done.returncode == 0, done.stderr
    assert "out of memory with 8 images at once: going on with micro-batches of 4" in done.stdout
    assert "out of memory with 4 images at once: going on with micro-batches of 2" in done.stdout
    assert checkpoint.load(tmp_path / "run").images == 128


@fault("a process that decodes pictures being killed", "one sentence, exit 75; the checkpoint is whole")
def test_a_worker_that_dies(fit: Fit, tmp_path: Path, monkeypatch: Patch) -> None:
    import multiprocessing

    from PIL import Image

    from diffgen.data import pictures

    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
    monkeypatch.setattr(pictures, "RESIDENT_BYTES", 0)
    at_step(monkeypatch, 5, lambda _: [child.kill() for child in multiprocessing.active_children()] and None)
    folder = ["dataset=image_folder", f"dataset.root={tmp_path}", "dataset.workers=2"]
    with pytest.raises(EnvironmentFault, match="a process that decodes pictures was killed"):
        fit(tmp_path / "run", *folder, "train.images=1280")
    assert checkpoint.damage(tmp_path / "run" / "checkpoints" / "00000064") is None


@fault("a launcher that signals every process twice", "a repeated SIGTERM is no news: the save is not cut short")
def test_a_repeated_sigterm(fit: Fit, tmp_path: Path, monkeypatch: Patch) -> None:
    def twice(_: Tensor) -> None:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)

    at_step(monkeypatch, 2, twice)
    with pytest.raises(Stopped, match="at 48 images"):
        fit(tmp_path / "run")
    assert checkpoint.load(tmp_path / "run").images == 48
