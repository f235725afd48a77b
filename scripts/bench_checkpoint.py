"""How long training stands still for a checkpoint, beside what the disk would take.

    python scripts/bench_checkpoint.py [--megabytes 100] [--times 7] [--folder DIR] [--out FILE.json]

Three medians, interleaved in one run: the pause with the background writer, the same checkpoint written while training
waits, and a plain write and fsync of as many bytes.
"""

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

import torch
from benchmark.facts import machine

from diffgen.training.writer import Snapshot, Writer


def tensors(megabytes: float, parts: int) -> dict[str, torch.Tensor]:
    """Weights of a network in float32, in 64 tensors."""
    size = int(megabytes * 1e6 / 4 / 64)
    return {f"layer{i}": torch.randn(size) for i in range(64 * parts)}


def plain_write(path: Path, size: int) -> None:
    """The same number of bytes, written and flushed to the disk."""
    with path.open("wb") as file:
        file.write(bytes(size))
        file.flush()
        os.fsync(file.fileno())


def measure(folder: Path, megabytes: float, times: int) -> dict[str, float]:
    """Medians in seconds; a fourth of the bytes are averaged weights, as with Adam."""
    model, state = tensors(megabytes / 4, 1), tensors(megabytes / 4, 3)
    taken: dict[str, list[float]] = {"pause": [], "written while waiting": [], "plain write": []}
    with Writer(folder / "checkpoints", 1, print) as writer:
        for number in range(times + 1):
            for name, wait in (("pause", False), ("written while waiting", True)):
                start = time.perf_counter()
                images = 2 * number + wait
                writer.submit(Snapshot(images, {}, model, state, {}), wait=wait)
                taken[name].append(time.perf_counter() - start)
                writer._finish(warn=False)
            start = time.perf_counter()
            plain_write(folder / "plain", int(megabytes * 1e6))
            taken["plain write"].append(time.perf_counter() - start)
    return {name: round(statistics.median(values[1:]), 4) for name, values in taken.items()}


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=100)
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="on the disk to measure; by default a temporary folder")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="checkpoints-", dir=arguments.folder))
    seconds = measure(folder, arguments.megabytes, arguments.times)
    shutil.rmtree(folder)
    for name, value in seconds.items():
        print(f"{name:>22}  {value:.3f} s")
    if arguments.out:
        result = {"machine": machine(), "megabytes": arguments.megabytes, "seconds": seconds}
        arguments.out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
