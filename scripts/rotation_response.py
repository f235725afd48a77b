"""How the distance over features that need no labels answers to known damage: of digits, or of a folder of pictures.

    python scripts/rotation_response.py [FOLDER]

A fifth of the folder is held out, and damaged; the reference is the rest, on which `extractor=rotation` is trained.
Writes benchmarks/results/rotation-NAME.json, which `metric_response.py` puts into docs/metrics.md.
"""

import sys
import tempfile
from pathlib import Path
from typing import Literal

import torch
from benchmark.facts import ROOT, machine
from metric_response import blurred, noisy, shuffled
from torch import Tensor

from diffgen.build import make_splits
from diffgen.cli.configs import compose_group
from diffgen.core.files import write_json
from diffgen.data import Images
from diffgen.data.splits import Splits
from diffgen.evaluation.extractors import rotation
from diffgen.evaluation.statistics import Moments, frechet_distance


def damaged(pixels: Tensor) -> dict[str, Tensor]:
    """Sets of as many pictures, uint8 [N, C, H, W], by what was done to them."""
    n, rng = len(pixels), torch.Generator().manual_seed(3)
    torn = pixels.clone()
    torn[: n // 10] = torn[: n // 10, :, torch.randperm(pixels.shape[2], generator=rng)]
    return {
        "held-out images": pixels,
        "noise, 2 %": noisy(pixels, 0.02),
        "noise, 5 %": noisy(pixels, 0.05),
        "noise, 20 %": noisy(pixels, 0.2),
        "blur, light": blurred(pixels),
        "blur, twice": blurred(blurred(pixels)),
        "a tenth with shuffled rows": torn,
        "a tenth of the images, 10 times": pixels[: n // 10].repeat(11, 1, 1, 1)[:n],
        "10 images, repeated": pixels[:10].repeat(n // 10 + 1, 1, 1, 1)[:n],
    }


def response(train: Images, held_out: Images, epochs: int | Literal["auto"] = "auto") -> dict[str, float]:
    """Frechet distance to the training images of each damaged set, of training images, and of halves of them."""
    splits = Splits.of(train, held_out)
    with tempfile.TemporaryDirectory() as cache:
        extract = rotation(splits, Path(cache), torch.device("cpu"), width=32, epochs=epochs, seed=0)

    def moments(pixels: Tensor) -> Moments:
        return Moments.of(torch.cat([extract(some)[0] for some in pixels.split(256)]))

    first, second = map(moments, shuffled(train).pixels.tensor_split(2))
    real, others = (first + second).gaussian(), shuffled(held_out).pixels
    sets = {**damaged(others), "as many training images": shuffled(train).pixels[: len(others)]}
    found = {name: frechet_distance(real, moments(pixels).gaussian()) for name, pixels in sets.items()}
    return {**found, "halves of the training images": frechet_distance(first.gaussian(), second.gaussian())}


def main(folder: str = "") -> None:
    """Write the file."""
    name = Path(folder).name if folder else "digits"
    own = {"root": folder, "held_out": 0.2} if folder else {}
    splits = make_splits({"dataset": {**compose_group("dataset", "image_folder" if folder else "digits"), **own}})
    train, held_out = splits.train, splits.test
    assert isinstance(train, Images) and isinstance(held_out, Images), f"{folder} is too large to keep in memory"
    facts = {"machine": machine(), "size": list(train.shape.size), "images": len(train), "held_out": len(held_out)}
    result = {**facts, "frechet_distance": response(train, held_out)}
    write_json(ROOT / "benchmarks" / "results" / f"rotation-{name}.json", result)


if __name__ == "__main__":
    main(*sys.argv[1:])
