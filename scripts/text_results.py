"""What text models learn in minutes on this machine, by the commands that a user types.

    python scripts/text_results.py [NAME ...] [--out FOLDER]

Each is trained, sampled and judged by `diffgen-eval`; what it says goes to benchmarks/results/text.json, piece by
piece, with the commands and the machine. The figures depend on how many steps fit into the minutes.
"""

import argparse
import json
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

from benchmark.facts import ROOT, commit, environment, machine, versions

from diffgen.core.files import write_json

RESULT = ROOT / "benchmarks" / "results" / "text.json"
LINES = 8

RUNS = {
    "numbers, words": "dataset=numbers",
    "numbers, characters": "dataset=numbers dataset.unit=character train.batch_size=32 train.images=80_000",
    "numbers, bits of words": "dataset=numbers method=bits",
    "python_docs": "dataset=python_docs train.minutes=8",
}
"""What is trained, as it is typed."""


def made(name: str, folder: Path) -> dict[str, object]:
    """Train, sample and judge one of them; its row."""
    run = folder / name.replace(", ", "-").replace(" ", "-")
    metrics = ["metrics=ngrams,runs,entropy,right"] if "bits" in name else []
    commands = [
        ["train", *RUNS[name].split(), f"run_dir={run}"],
        ["sample", f"ckpt={run}", "n=400" if "numbers" in name else "n=64", f"out={run}/text", "overwrite=true"],
        ["eval", f"ckpt={run}", "n=400", *metrics],
    ]
    seconds = []
    for command, *settings in commands:
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", f"diffgen.cli.{command}", *settings], check=True, env=environment())
        seconds.append(round(time.monotonic() - began, 1))
    typed = [" ".join([f"diffgen-{command}", *settings]).replace(str(run), "RUN") for command, *settings in commands]
    figures = json.loads((run / "eval" / "results.jsonl").read_text().splitlines()[-1])
    lines = (run / "text" / "samples.txt").read_text(encoding="utf-8").split("\n")[:LINES]
    kept = {"commands": typed, "seconds": seconds, "figures": figures | {"ckpt": "RUN"}, "lines": lines}
    return kept | {"machine": machine(), "versions": versions(), "commit": commit(), "date": f"{date.today()}"}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {list(RUNS)}; by default all")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs" / "text-results", help="where the runs go")
    args = parser.parse_args()
    for name in args.names:
        if name not in RUNS:
            parser.error(f"{name!r} is none of {list(RUNS)}")
    for name in args.names or RUNS:
        row = made(name, args.out.resolve())
        rows = json.loads(RESULT.read_text()) if RESULT.exists() else {}
        write_json(RESULT, {**rows, name: row})


if __name__ == "__main__":
    main()
