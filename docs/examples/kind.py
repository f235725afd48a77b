"""A kind of your own, signals [C, L] in [-1, 1], and a data set of them: sine waves of any phase and height.

diffgen-train plugins=[docs/examples/kind.py] dataset=waves model=mlp run_dir=outputs/waves
diffgen-sample plugins=[docs/examples/kind.py] ckpt=outputs/waves n=16
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from diffgen.data.base import DATASETS, InMemory
from diffgen.data.images import grid
from diffgen.data.kinds import KINDS, Kind

HEIGHT = 32  # pixels of a drawn signal


@KINDS.register("signals")
@dataclass(frozen=True, kw_only=True)
class Signals(Kind):
    """Float32 [C, L], x0 itself."""

    unit = "signals"
    bounded = True  # so that a sampler may clip x0_hat

    def show(self, examples: Tensor, labels: Sequence[int], columns: int | None = None) -> Image.Image:
        """Each signal as a curve in a picture of its own."""
        rows = ((1 - examples.clamp(-1, 1)) / 2 * (HEIGHT - 1)).round().long()  # [n, C, L]
        paper = torch.full((*rows.shape[:2], HEIGHT, rows.shape[2]), 255, dtype=torch.uint8)
        return grid(paper.scatter_(2, rows[:, :, None], 0), columns)


@DATASETS.register("waves")
def waves(*, n: int = 10_000, length: int = 32, seed: int = 0) -> InMemory:
    """Sine waves of one period.

    Args:
        n: How many.
        length: L.
        seed: Of phases and heights.
    """
    phase, height = torch.rand(2, n, 1, 1, generator=torch.Generator().manual_seed(seed))
    time = torch.arange(length) / length
    signals = (0.2 + 0.7 * height) * torch.sin(2 * math.pi * (time + phase))  # [n, 1, L]
    return InMemory(signals, torch.full((n,), -1), (), Signals())
