"""How the metrics of clips answer to known damage, on moving digits.

    python scripts/clip_response.py

As many clips as `diffgen-eval` takes are made with held-out digits and damaged. Writes
benchmarks/results/clips-moving_digits.json, which `metric_response.py` puts into docs/metrics.md.
"""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from benchmark.facts import ROOT, machine
from torch import Tensor

from diffgen.build import make_splits
from diffgen.core.eval_settings import UNASKED
from diffgen.core.files import write_json
from diffgen.data.base import Stored
from diffgen.evaluation import clips
from diffgen.evaluation.clip_metrics import shuffled
from diffgen.evaluation.clips import Films
from diffgen.evaluation.extractors import auto

N = 500


def damaged(real: Stored, training: Stored) -> Iterator[tuple[str, Stored]]:
    """Sets of clips by what was done to held-out ones."""
    found, labels = real
    noise = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    yield "held-out clips", real
    yield "training clips", training
    yield "frames shuffled", Stored(shuffled(found, 0), labels)
    yield "frames backwards", Stored(found.flip(1), labels)
    yield "first frame frozen", Stored(found[:, :1].expand_as(found).clone(), labels)
    yield "one frame is the one before", Stored(_repeated(found), labels)
    yield "another digit from the middle on", Stored(torch.cat([found[:, :3], found.roll(1, 0)[:, 3:]], 1), labels)
    yield "noise, 5 %", Stored((found + 12.75 * noise).clamp(0, 255).round().to(torch.uint8), labels)
    yield "noise, 20 %", Stored((found + 51 * noise).clamp(0, 255).round().to(torch.uint8), labels)
    yield "labels mixed up", Stored(found, labels.roll(1))


def _repeated(found: Tensor) -> Tensor:
    """The fourth frame is the third."""
    return torch.cat([found[:, :3], found[:, 2:3], found[:, 4:]], 1)


def response(films: Films) -> dict[str, dict[str, float]]:
    """The figures of each set."""
    assert films.splits.test is not None
    real, training = (joined(clips.some(source, N)) for source in (films.splits.test, films.splits.train))
    return {name: figures(made, films) for name, made in damaged(real, training)}


def joined(parts: Iterator[Stored]) -> Stored:
    """Clips that come a few at a time."""
    return Stored(*map(torch.cat, zip(*parts, strict=True)))


def figures(made: Stored, films: Films) -> dict[str, float]:
    """All metrics of one set."""
    return clips.figures(UNASKED["clips"], films.look(clips.in_batches(*made)), films.real)


if __name__ == "__main__":
    settings = {"name": "moving_digits", "frames": 6, "digits": 1, "n": 50_000, "seed": 0, "split": "train"}
    splits = make_splits({"dataset": settings})
    with TemporaryDirectory() as cache:
        judge = auto(clips.in_frames(splits), Path(cache), torch.device("cpu"), width=32, epochs="auto", seed=0)
    result = {"machine": machine(), "clips": N, "figures": response(Films(splits, judge, N))}
    write_json(ROOT / "benchmarks" / "results" / "clips-moving_digits.json", result)
