"""Whole commands in processes of their own: start-up, a checkpoint's pause, and the job of diffusers' script."""

import importlib.util
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from bench_checkpoint import measure

from benchmark import clock
from benchmark.clock import Row
from benchmark.facts import environment
from benchmark.layouts import MNIST, PLAIN, pictures

TRAIN = [sys.executable, "-m", "diffgen.cli.train"]
JOB_IMAGES = 500


def spent(command: list[str], folder: Path) -> tuple[float, float, str]:
    """Wall and CPU seconds of a command with all its processes, run in a folder, and what it printed.

    Raises:
        SystemExit: It failed.
    """
    known = environment(OMP_NUM_THREADS=str(torch.get_num_threads()))
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, env=known, cwd=folder, capture_output=True, text=True)
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def in_turns(commands: dict[str, list[str]], rounds: int, folder: Path) -> list[Row]:
    """Median seconds of each command; A B A B ..., without a warm-up."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(rounds):
        for name, command in commands.items():
            taken[name].append(spent(command, folder)[:2])
    return [{"name": name, **clock.medians(times)} for name, times in taken.items()]


def startup(rounds: int, folder: Path) -> Row:
    """Seconds of commands that do next to nothing, and from `import torch` to the first step of a digits run."""
    python = [sys.executable, "-c"]
    commands = {
        "diffgen-train --help": [*TRAIN, "--help"],
        "diffgen-train --cfg job": [*TRAIN, "--cfg", "job"],
        "diffgen-train with a wrong key": [*python, _wrong_key()],
        "import torch": [*python, "import torch"],
    }
    if peer := _diffusers():
        imports = (
            "import torch, accelerate, torchvision; from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel"
        )
        commands["the imports of diffusers' script"] = [*python, imports]
    rows = in_turns(commands, rounds, folder)
    missing = [] if peer else ["diffusers: not installed"]
    return {"rows": rows, "first_step": first_step(rounds, folder), "missing": missing}


def _diffusers() -> bool:
    return importlib.util.find_spec("diffusers") is not None


def _wrong_key() -> str:
    """A program that gives diffgen-train a key that does not exist, and is content with the refusal."""
    return "import sys; sys.argv[1:] = ['train.imagse=1']; from diffgen.cli.train import main; sys.exit(main() != 2)"


def first_step(rounds: int, folder: Path) -> Row:
    """Medians of what first_step.py tells, in wall seconds."""
    program = str(Path(__file__).with_name("first_step.py"))
    told = []
    for _ in range(rounds):
        printed = spent([sys.executable, program, "dataset=digits"], folder)[2]
        told.append(json.loads(printed.splitlines()[-1]))
    return {key: sorted(row[key] for row in told)[rounds // 2] for key in told[0]}


def checkpoint(rounds: int, folder: Path) -> Row:
    """Seconds that training stands still for a checkpoint of 100 MB; see scripts/bench_checkpoint.py."""
    return {"megabytes": 100, "seconds": measure(folder, 100, 2 * rounds), "missing": []}


def job(rounds: int, folder: Path, *, quick: bool) -> Row:
    """The whole of train_unconditional.py: 500 pictures of 32x32, one epoch, average, one grid with 50 steps."""
    images, steps = (64, 2) if quick else (JOB_IMAGES, 50)
    root = pictures(folder / "pictures", (3, 32, 32), images)
    batches = -(-images // 16)
    ours = [
        *TRAIN,
        *PLAIN,
        *MNIST.ours,
        f"dataset.root={root}",
        "model.attention_resolutions=[8]",
        "train.batch_size=16",
        f"train.images={16 * batches}",
        f"train.preview_every={16 * batches}",
        "train.log_every=16",
        "preview.n=16",
        "sampler=ddim",
        f"sampler.steps={steps}",
        f"train.threads={torch.get_num_threads()}",
    ]
    commands = {"diffgen": [*ours, "train.precision=no"], "diffgen, bfloat16": [*ours, "train.precision=bf16"]}
    if peer := _diffusers():
        theirs = [sys.executable, "-m", "benchmark.diffusers_job", str(root), str(folder / "saved"), str(steps)]
        commands["diffusers' script"] = theirs
    missing = [] if peer else ["diffusers: not installed"]
    return {"images": images, "steps": batches, "rows": in_turns(commands, rounds, folder), "missing": missing}
