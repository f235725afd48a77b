"""diffgen beside its peers on this machine: training, sampling, noise, launches, data, start-up, a whole job.

    python scripts/bench.py [--threads 1] [--only training-mnist sampling] [--rounds 5] [--out FOLDER] [--quick]

Whatever is compared takes turns, A B C A B C, in one process or in one each; figures are medians. Ratios are of CPU
time on one thread, which other work on the machine hardly changes, and of wall time otherwise. Each section is written
to the result file as soon as it is done, so a long measurement can be made in parts; `scripts/bench_table.py` turns the
file into docs/performance.md. The peers come with `pip install -e '.[peers]'`; one that is not there is said to be
missing. `--quick` only shows that everything runs: its figures mean nothing and are written only where `--out` says.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
from benchmark import clock, commands
from benchmark.facts import ROOT, add, commit, machine, slug, versions
from benchmark.launches import launches
from benchmark.layouts import DDPM, EDM, MNIST
from benchmark.noise import noise
from benchmark.pipeline import pipeline
from benchmark.sampling import overhead, sampling
from benchmark.training import around_the_network, training

RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "torchvision", "accelerate", "diffusers", "denoising-diffusion-pytorch", "k-diffusion", "numpy")

SECTIONS: dict[str, Callable[[int, Path, bool], clock.Row]] = {
    "training-mnist": lambda rounds, folder, quick: training(MNIST, 2 * rounds, folder, quick=quick),
    "training-ddpm": lambda rounds, folder, quick: training(DDPM, rounds, folder, quick=quick),
    "training-edm": lambda rounds, folder, quick: training(EDM, rounds, folder, quick=quick),
    "around-the-network": lambda rounds, folder, quick: around_the_network(4 * rounds, folder, quick=quick),
    "sampling": lambda rounds, folder, quick: sampling(rounds, quick=quick),
    "overhead": lambda rounds, folder, quick: overhead(rounds, quick=quick),
    "noise": lambda rounds, folder, quick: noise(rounds, quick=quick),
    "launches": lambda rounds, folder, quick: launches(quick=quick),
    "data": lambda rounds, folder, quick: pipeline(rounds, quick=quick),
    "checkpoint": lambda rounds, folder, quick: commands.checkpoint(rounds, folder),
    "start-up": lambda rounds, folder, quick: commands.startup(rounds, folder),
    "job": lambda rounds, folder, quick: commands.job((rounds + 1) // 2, folder, quick=quick),
}
"""(rounds, an empty folder, quick) -> figures."""

GPU_ONLY = ("training-edm",)


def facts(rounds: int) -> dict[str, Any]:
    """What figures of a section depend on; read when it begins."""
    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    return {
        "machine": machine(),
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "threads": torch.get_num_threads(),
        "ratios_of": clock.basis(device),
        "rounds": rounds,
        "load": round(os.getloadavg()[0], 1),
        "commit": commit(),
        "versions": versions(*PACKAGES),
    }


def result_file(folder: Path) -> Path:
    """One file a machine, number of threads and day."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else machine()
    return folder / f"{slug(f'{name} {torch.get_num_threads()} threads')}-{date.today()}.json"


def show(section: dict[str, Any]) -> None:
    """The rows of a section, as they were measured."""
    for row in section.get("rows", []):
        figures = [f"{key} {value:.4g}" for key, value in row.items() if key != "name"]
        print(f"  {row['name']:40} {'  '.join(figures)}")
    rest = {key: value for key, value in section.items() if key not in ("rows", "facts", "missing")}
    print(f"  {json.dumps(rest)}")
    for sentence in section["missing"]:
        print(f"  {sentence}")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, help="of the CPU; by default torch's own choice")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="sections; by default all that suit")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="folder of the result file; by default benchmarks/results")
    parser.add_argument("--quick", action="store_true", help="a smoke test: few and small steps")
    return parser.parse_args()


def main() -> None:
    """Measure, print and write section by section."""
    args = arguments()
    if args.threads:
        torch.set_num_threads(args.threads)
    rounds = 1 if args.quick else args.rounds
    chosen = args.only or [name for name in SECTIONS if torch.cuda.is_available() or name not in GPU_ONLY]
    path = None if args.quick and args.out is None else result_file(args.out or RESULTS)
    for name in chosen:
        start, known = time.perf_counter(), facts(rounds)
        print(f"{name}: {known['device']}, {known['threads']} threads, load {known['load']}", flush=True)
        with tempfile.TemporaryDirectory(prefix="bench-") as folder:
            section = {"facts": known, **SECTIONS[name](rounds, Path(folder), args.quick)}
        show(section)
        print(f"  took {time.perf_counter() - start:.0f} s", flush=True)
        if path:
            add(path, name, section)
    if path:
        print(f"written to {path}")


if __name__ == "__main__":
    main()
