"""Loss curves of several runs in one picture.

python scripts/compare_runs.py --out docs/images/precision.png float32=outputs/a bf16=outputs/b [--smooth 20]
"""

import argparse
import json
from pathlib import Path

from diffgen.core.files import write_atomically
from diffgen.core.plots import curves


def smoothed(run: Path, window: int) -> list[tuple[float, float]]:
    """(images, mean loss of so many lines of the log)."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if row["loss"] is not None]
    parts = [rows[i : i + window] for i in range(0, len(rows) - window + 1, window)]
    return [(part[-1]["images"], sum(row["loss"] for row in part) / window) for part in parts]


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="NAME=RUN")
    parser.add_argument("--smooth", type=int, default=1, help="lines of the log that make one point")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    named = dict(run.split("=", 1) for run in given.runs)
    points = {name: smoothed(Path(run), given.smooth) for name, run in named.items()}
    write_atomically(given.out, curves(points, "training images seen", "loss"))
    for name, curve in points.items():
        print(f"{name}: {curve[-1][1]:.4f} at {curve[-1][0]:,} images")


if __name__ == "__main__":
    main()
