"""Learning from another run's weights beside learning from scratch: digits, then pictures of other classes.

    python scripts/warm_start.py [--images 12800]

The digits demo is trained, then a folder of pictures made of digits 5 to 9, turned by a quarter and under other names,
once from scratch and once with `train.init`. Both see the same pictures, noise and times at each step, so their losses
can be compared. Writes benchmarks/results/warm-start.json and docs/images/warm_start.png.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

import numpy as np
from benchmark.facts import ROOT, commit, environment, machine, versions
from PIL import Image
from sklearn.datasets import load_digits

from diffgen.core.files import read_rows, write_atomically, write_json
from diffgen.core.plots import lines

NAMES = {5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine"}


def turned_digits(folder: Path) -> None:
    """Digits 5 to 9, a quarter turned, in a folder for each class."""
    digits = load_digits()
    for number, (pixels, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        if name := NAMES.get(int(digit)):
            (folder / name).mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(np.rint(np.rot90(pixels) * 255 / 16).astype(np.uint8))
            picture.save(folder / name / f"{number}.png")


def train(run: Path, *settings: str) -> list[dict[str, float]]:
    """The rows of the log of a run."""
    command = [sys.executable, "-m", "diffgen.cli.train", f"run_dir={run}", *settings]
    subprocess.run(command, check=True, env=environment())
    return read_rows(run / "metrics.jsonl")


def compare(root: Path, images: int) -> dict[str, list[dict[str, float]]]:
    """Images seen and loss of both runs."""
    train(root / "digits", "experiment=quickstart")
    turned_digits(root / "pictures")
    data = ["dataset=image_folder", f"dataset.root={root / 'pictures'}", "dataset.size=8", "dataset.channels=1"]
    config = ["recipe@_global_=digits", "method=flow", f"train.images={images}", f"train.log_every={images // 16}"]
    kinds = {"from scratch": [], "train.init": [f"train.init={root / 'digits'}"]}
    logs = {kind: train(root / kind.replace(" ", "-"), *data, *config, *more) for kind, more in kinds.items()}
    return {kind: [{"images": row["images"], "loss": row["loss"]} for row in rows] for kind, rows in logs.items()}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=12_800, help="of each of the two runs")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        runs = compare(Path(root), arguments.images)
    facts = {"machine": machine(), "date": f"{date.today()}", "commit": commit(), "versions": versions("torch")}
    write_json(ROOT / "benchmarks" / "results" / "warm-start.json", {**facts, "runs": runs})
    seen = [row["images"] for row in runs["train.init"]]
    losses = {kind: [row["loss"] for row in rows] for kind, rows in runs.items()}
    write_atomically(ROOT / "docs" / "images" / "warm_start.png", lines(seen, losses, "images seen", "training loss"))
    print(json.dumps(losses, indent=2))


if __name__ == "__main__":
    main()
