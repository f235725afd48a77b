"""Data that are vectors of real numbers: points of the plane, and a Gaussian mixture whose answers are known.

A vector of D values passes for an image of D channels and one pixel, [D, 1, 1]; so everything else is shared.
Both data sets know their own distribution, so they can draw fresh data and say how far samples are from it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from diffgen.core.files import write_atomically
from diffgen.data.base import Batch, gather
from diffgen.nets.base import DataShape

SHARES = (0.9, 0.7, 0.5, 0.3, 0.1)
"""Where reports look along the path: sigma / (alpha + sigma), which is t itself for rectified flow."""

REPEATS = 8  # fresh sets that a distance is averaged over


class Sampling(Protocol):
    """What a report asks of `diffgen.sampling.drawing.Sampling`."""

    denoiser: Any
    device: torch.device

    def draw(
        self,
        shape: tuple[int, ...],
        indices: list[int],
        labels: list[int],
        watch: Callable[[Tensor, Tensor], None] | None = None,
    ) -> Tensor:
        """Samples float [B, *shape]; `watch` sees each (x, t) that the sampler visits."""


@dataclass
class Vectors:
    """Vectors in memory.

    Attributes:
        values: float32 [N, D].
        labels: int64 [N]; -1 where a vector has none.
        classes: Names of the labels, empty for unlabelled data.
        fresh: (n, number) -> [n, D], n further independent draws from the same distribution, set `number`.
    """

    values: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    fresh: Callable[[int, int], Tensor]

    def __post_init__(self) -> None:
        self.home = "kept on the device"
        self.shape = DataShape(self.values.shape[1], 1, 1, len(self.classes), pixels=False)

    def __len__(self) -> int:
        return len(self.values)

    def batches(self, entries: Iterator[Tensor], device: torch.device) -> Iterator[Batch]:
        """float32 [B, D, 1, 1] and labels int64 [B]; see `ImageSource`."""
        return gather(self.values[:, :, None, None], self.labels, entries, device)

    def report(self, sampling: Sampling, labels: list[int], path: Path) -> str:
        """Draw one sample for each label, compare them with data, and plot both (see `diffgen.training.trainer`).

        Args:
            sampling: The model and its sampler.
            labels: Of the samples, -1 for none; samples 0, 1, ...
            path: The PNG to write; further ones have its name and a suffix.

        Returns:
            What to print.
        """
        from diffgen.core.plots import scatter

        indices = list(range(len(labels)))
        samples = sampling.draw((self.shape.channels, 1, 1), indices, labels).flatten(1).cpu()
        count = min(len(self), len(samples))
        panels = {
            "data": (self.values[:count], self.labels[:count]),
            "samples": (samples, torch.tensor(labels)),
        }
        write_atomically(path, scatter(panels))
        distance, floor = distance_to_data(samples, self.fresh)
        return (
            f"energy distance of {len(samples):,} samples to data {distance:.4f}, "
            f"of data to data {floor:.4f}: {distance / floor:.2f} times"
        )


def energy_distance(x: Tensor, y: Tensor) -> float:
    """sqrt(2 E|x - y| - E|x - x'| - E|y - y'|) of two sets, 0 for equal ones (Szekely & Rizzo 2013, eq. 2.1).

    Args:
        x: [n, D].
        y: [m, D].
    """

    def mean_distance(a: Tensor, b: Tensor) -> Tensor:
        return torch.cdist(a.double(), b.double(), compute_mode="donot_use_mm_for_euclid_dist").mean()

    return float((2 * mean_distance(x, y) - mean_distance(x, x) - mean_distance(y, y)).clamp(min=0).sqrt())


def distance_to_data(samples: Tensor, fresh: Callable[[int, int], Tensor]) -> tuple[float, float]:
    """Energy distance of samples to data, and its floor: that of data to data, not 0 for finite sets.

    Args:
        samples: [n, D].
        fresh: As in `Vectors`; sets of n are drawn.

    Returns:
        Root mean squares over fresh sets of the distance to the samples, and to one more set each.
    """
    n = len(samples)
    sets = [fresh(n, number) for number in range(2 * REPEATS)]
    to_samples = torch.tensor([energy_distance(samples, data) for data in sets[:REPEATS]])
    to_data = torch.tensor([energy_distance(a, b) for a, b in zip(sets[:REPEATS], sets[REPEATS:], strict=True)])
    return float(to_samples.square().mean().sqrt()), float(to_data.square().mean().sqrt())


@torch.inference_mode()
def denoise(sampling: Sampling, x: Tensor, t: Tensor) -> Tensor:
    """The network's x0_hat, float64 [n, D], of unlabelled vectors x [n, D] at one time t []."""
    images = x.float().to(sampling.device)[:, :, None, None]
    time, label = (torch.full((len(x),), value, device=sampling.device) for value in (float(t), -1))
    return sampling.denoiser(images, time, label).flatten(1).cpu().double()


def report_times(schedule: Any) -> Tensor:
    """The times, float64, at which sigma / (alpha + sigma) is each of `SHARES`."""
    shares = torch.tensor(SHARES, dtype=torch.float64)
    return schedule.time_at(shares / (1 - shares)).clamp(schedule.t_min, schedule.t_max)
