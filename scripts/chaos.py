"""Kill a training run again and again with SIGKILL, and compare its end with that of a run left alone.

    python scripts/chaos.py                                    ten kills of a digits run
    python scripts/chaos.py --processes 2
    python scripts/chaos.py --kills 50 train.precision=bf16    further arguments are settings of the run

Every second kill comes at a random moment, at start-up or in a step; the others right when a checkpoint begins to be
written. The last line compares the SHA-256 of both files of the last checkpoint; the exit code is 1 if they differ.
"""

import argparse
import hashlib
import random
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

SETTINGS = ["dataset=digits", "train.checkpoint_every=1280", "train.preview_every=12800", "preview.n=10"]
STEADY = ["sampler.steps=4", "train.threads=1", "train.micro_batch=32"]


def train(run_dir: Path, processes: int, settings: list[str]) -> subprocess.Popen[bytes]:
    """Start a run, its output in `<run>.log`."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    start = [sys.executable, *(launcher if processes > 1 else []), "-m", "diffgen.cli.train"]
    with run_dir.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [*start, *SETTINGS, *STEADY, *settings, f"run_dir={run_dir}"],
            stdout=log, stderr=log,
        )  # fmt: skip


def being_written(run_dir: Path) -> set[str]:
    """Checkpoints that are half done."""
    return {path.name for path in run_dir.glob("checkpoints/.tmp_*")}


def newest(run_dir: Path) -> int:
    """Images of the newest checkpoint, 0 without one."""
    return max((int(p.parent.name) for p in run_dir.glob("checkpoints/[0-9]*/state.json")), default=0)


def wait_for_the_moment(run: subprocess.Popen[bytes], run_dir: Path, chance: random.Random, number: int) -> str:
    """Sleep until it is time for kill `number`; says which moment that is."""
    if number % 4 == 0:  # also while Python, torch and the run itself start
        time.sleep(chance.uniform(0.2, 6.0))
        return "at any time"
    stale, before = being_written(run_dir), newest(run_dir)
    while run.poll() is None and newest(run_dir) == before and not being_written(run_dir) - stale:
        time.sleep(0.001)
    if number % 2 == 0:
        time.sleep(chance.uniform(0.0, 0.5))
        return "in training"
    time.sleep(chance.uniform(0.0, 0.02))
    return "in a checkpoint"


def kill(run: subprocess.Popen[bytes]) -> None:
    """SIGKILL to every process of the run, the launcher first, which would tell the others."""
    processes = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    run.wait()
    psutil.wait_procs(processes, timeout=10)


def sums(run_dir: Path) -> dict[str, str]:
    """SHA-256 of the files of the newest checkpoint, without the wall time in state.json."""
    folder = run_dir / "checkpoints" / f"{newest(run_dir):08d}"
    return {
        f"{folder.name}/{file}": hashlib.sha256((folder / file).read_bytes()).hexdigest()
        for file in ("model.safetensors", "state.safetensors")
    }


def finish(run_dir: Path, processes: int, settings: list[str]) -> None:
    """Run to the end."""
    if train(run_dir, processes, settings).wait():
        sys.exit(f"the run failed:\n{run_dir.with_suffix('.log').read_text()[-3000:]}")


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--images", type=int, help="length of the run; by default it leaves room for the kills")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--folder", type=Path, help="an empty folder; by default a temporary one that is deleted")
    arguments, settings = parser.parse_known_args()
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="chaos-"))
    settings.append(f"train.images={arguments.images or 1280 * (arguments.kills + 4)}")
    chance, killed, quiet = random.Random(arguments.seed), folder / "killed", folder / "alone"
    done = 0
    while done < arguments.kills:
        run = train(killed, arguments.processes, settings)
        moment = wait_for_the_moment(run, killed, chance, done)
        if run.poll() is not None:
            sys.exit(f"the run ended before the kill:\n{killed.with_suffix('.log').read_text()[-3000:]}")
        kill(run)
        done += 1
        print(f"kill {done:>2} {moment:<16} newest checkpoint: {newest(killed):,} images", flush=True)
    finish(killed, arguments.processes, settings)
    finish(quiet, arguments.processes, settings)
    for name, run_dir in ((f"{done} kills", killed), ("no kill", quiet)):
        for file, digest in sums(run_dir).items():
            print(f"{name:>9}  {digest}  {file}")
    same = sums(killed) == sums(quiet)
    print("the same, byte for byte" if same else "DIFFERENT")
    if same and arguments.folder is None:
        shutil.rmtree(folder)
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
