"""What each setting of the two small recipes is worth, digits and MNIST, at about the same CPU time.

    python scripts/recipe_sweep.py digits|mnist [--root data] [--only NAME ...] [--seeds 0 1]
        [--guidance 1 1.5] [--samplers heun dpmpp_2m_sde]

A variant is another one with some settings changed, and its `train.images` spend what the CPU time allows. Each but the
experiments is trained on one thread, and 500 samples of it are judged as `check_samples.py` does. A machine that
does other work slows a run down and changes no figure: CPU seconds, user and system, are those of the whole command.
What is in benchmarks/results/recipes-digits.json or recipes-mnist.json is not run again.
"""

import argparse
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from benchmark.facts import ROOT, commit, environment, machine, timed, versions
from check_samples import Judge
from sweeps import VARIANTS

from diffgen.core.files import write_json
from diffgen.storage import checkpoint

N = 500
SEED = 0  # of the samples


def settings(data: str, name: str) -> dict[str, Any]:
    """All settings of a variant: its parent's, and its own instead."""
    parent, changes = VARIANTS[data][name]
    return {**(settings(data, parent) if parent else {}), **changes}


def train(data: str, name: str, seed: int, root: str, run: Path) -> dict[str, float]:
    """Train a variant; wall and CPU seconds of the command."""
    shutil.rmtree(run, ignore_errors=True)  # of a sweep that was interrupted
    chosen = {"dataset": data, **({} if data == "digits" else {"dataset.root": root}), **settings(data, name)}
    command = [f"{key}={value}" for key, value in {**chosen, "train.seed": seed, "run_dir": run}.items()]
    call = [sys.executable, "-m", "diffgen.cli.train", *command]
    return timed(lambda: subprocess.run(call, check=True, env=environment(), capture_output=True))


def row(data: str, variant: str, seed: int, args: argparse.Namespace, judge: Judge) -> dict[str, Any]:
    """Train a variant, and judge it."""
    run = args.runs / f"{data}-{variant}-{seed}"
    took = train(data, variant, seed, args.root, run)
    saved = checkpoint.load(run)
    return {
        "variant": variant,
        "of": VARIANTS[data][variant][0],
        "changes": VARIANTS[data][variant][1],
        "seed": seed,
        "images": saved.images,
        **took,
        "samples": [
            judge.of(run, N, guidance, SEED, sampler=name) for guidance in args.guidance for name in args.samplers
        ],
        "machine": machine(),
        "commit": commit(),
        "date": f"{date.today()}",
    }


def sweep(args: argparse.Namespace, names: Sequence[str]) -> None:
    """Every variant and seed that the result file does not have."""
    path = ROOT / "benchmarks" / "results" / f"recipes-{args.data}.json"
    known = json.loads(path.read_text())["runs"] if path.exists() else []
    done = {(each["variant"], each["seed"]) for each in known}
    wanted = [(name, seed) for name in names for seed in args.seeds if (name, seed) not in done]
    if not wanted:
        return
    judge = Judge(args.data, args.root)
    facts = {"n": N, "seed": SEED, "real": judge.real(N), "versions": versions("torch", "scikit-learn")}
    for name, seed in wanted:
        known.append(row(args.data, name, seed, args, judge))
        write_json(path, {**facts, "runs": known})
        print(json.dumps(known[-1]), flush=True)


def main() -> None:
    """Parse, train, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=list(VARIANTS))
    parser.add_argument("--root", default="data")
    parser.add_argument("--runs", type=Path, default=Path("outputs/recipe-sweep"))
    parser.add_argument("--only", nargs="+", help="names of variants; all, unless given")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--samplers", nargs="+", default=[None], help="instead of the variant's own")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0])
    args = parser.parse_args()
    sweep(args, args.only or list(VARIANTS[args.data]))


if __name__ == "__main__":
    main()
