"""Data that are vectors of real numbers: points of the plane, and a Gaussian mixture whose answers are known.

Both data sets know their own distribution, so they can draw fresh data and say how far samples are from it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffgen.core.files import write_atomically
from diffgen.data.base import Drawer, InMemory
from diffgen.data.kinds import Vectors

SHARES = (0.9, 0.7, 0.5, 0.3, 0.1)
"""Where reports look along the path: sigma / (alpha + sigma), which is t itself for rectified flow."""

REPEATS = 8  # fresh sets that a distance is averaged over


class VectorSet(InMemory):
    """Vectors in memory, from a distribution that can be drawn from again.

    Attributes:
        fresh: (n, number) -> [n, D], n further independent draws from the same distribution, set `number`.
    """

    def __init__(
        self, values: Tensor, labels: Tensor, classes: tuple[str, ...], fresh: Callable[[int, int], Tensor]
    ) -> None:
        """See `InMemory`; values are float32 [N, D]."""
        super().__init__(values, labels, classes, Vectors())
        self.fresh = fresh

    @property
    def values(self) -> Tensor:
        """float32 [N, D]."""
        return self.stored

    def preview(self, drawer: Drawer, labels: list[int], columns: int | None, path: Path) -> str:
        """Draw one sample for each label, compare them with data, and plot both.

        Args:
            drawer: The model and its sampler.
            labels: Of the samples, -1 for none; samples 0, 1, ...
            columns: Not used.
            path: The PNG to write; further ones have its name and a suffix.

        Returns:
            What to print.
        """
        from diffgen.core.plots import scatter

        samples = drawer.draw(list(range(len(labels))), labels).cpu()
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
        fresh: As in `VectorSet`; sets of n are drawn.

    Returns:
        Root mean squares over fresh sets of the distance to the samples, and to one more set each.
    """
    n = len(samples)
    sets = [fresh(n, number) for number in range(2 * REPEATS)]
    to_samples = torch.tensor([energy_distance(samples, data) for data in sets[:REPEATS]])
    to_data = torch.tensor([energy_distance(a, b) for a, b in zip(sets[:REPEATS], sets[REPEATS:], strict=True)])
    return float(to_samples.square().mean().sqrt()), float(to_data.square().mean().sqrt())


@torch.inference_mode()
def denoise(drawer: Drawer, x: Tensor, t: Tensor) -> Tensor:
    """The network's x0_hat, float64 [n, D], of unlabelled vectors x [n, D] at one time t []."""
    time, label = (torch.full((len(x),), value, device=drawer.device) for value in (float(t), -1))
    return drawer.denoiser(x.float().to(drawer.device), time, label).cpu().double()


def report_times(schedule: Any) -> Tensor:
    """The times, float64, at which sigma / (alpha + sigma) is each of `SHARES`."""
    shares = torch.tensor(SHARES, dtype=torch.float64)
    return schedule.time_at(shares / (1 - shares)).clamp(schedule.t_min, schedule.t_max)
