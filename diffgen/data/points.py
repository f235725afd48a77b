"""Point sets of the plane: small enough to see everything that a diffusion model does."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from diffgen.core.errors import require
from diffgen.core.files import write_atomically
from diffgen.core.randomness import generator, mix
from diffgen.data.base import DATASETS, Drawer
from diffgen.data.vectors import VectorSet, denoise, report_times

Shape = Literal["moons", "circles", "swiss_roll", "s_curve", "checkerboard", "gaussian_mixture"]

Labelled = tuple[np.ndarray, np.ndarray | None]  # [n, 2] in [-1, 1], int [n]


class Points(VectorSet):
    """Points of the plane."""

    def preview(self, drawer: Drawer, labels: list[int], columns: int | None, path: Path) -> str:
        """See `VectorSet.preview`; also plots the vector field and the trajectories from noise to data."""
        from diffgen.core.plots import trajectories, vector_field

        field, paths = (path.with_stem(f"{path.stem}-{name}") for name in ("field", "paths"))
        write_atomically(field, vector_field(*ode_field(drawer, self.values[:2000])))
        write_atomically(paths, trajectories(sampler_paths(drawer, labels[:200])))
        return super().preview(drawer, labels, columns, path)


@DATASETS.register("points")
def points(*, kind: Shape, n: int, noise: float, seed: int) -> Points:
    """One of the point sets.

    Args:
        kind: Which.
        n: How many points.
        noise: Standard deviation of the noise added to each coordinate; the sets without it lie in [-1, 1]^2.
        seed: Of the points.
    """
    require(1 <= n <= 100_000_000, f"n={n} must be in [1, 100000000]")
    require(0 <= noise < 1, f"noise={noise} must be in [0, 1)")
    require(0 <= seed < 2**63, f"seed={seed} must be in [0, 2^63)")
    xy, labels = draw(kind, n, noise, mix(seed, "points"))

    def fresh(count: int, number: int) -> Tensor:
        # some generators space their points evenly, so an independent sample is a part of a much larger set
        return draw(kind, 20 * count, noise, mix(seed, "fresh", number))[0][:count]

    return Points(xy, labels, CLASSES.get(kind, ()), fresh)


def draw(kind: Shape, n: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """n noisy points: float32 [n, 2], and labels int64 [n], -1 where the set has no classes."""
    clean, labels = SETS[kind](n, seed % 2**32)  # scikit-learn's seeds are 32-bit
    xy = torch.from_numpy(clean)
    xy = xy + noise * torch.randn(xy.shape, dtype=xy.dtype, generator=generator("cpu", seed, "noise"))
    return xy.float(), torch.full((n,), -1) if labels is None else torch.from_numpy(labels).long()


# --- the sets, without noise ----------------------------------------------------------------------


def moons(n: int, seed: int) -> Labelled:
    """Two half circles that reach into each other."""
    from sklearn.datasets import make_moons

    xy, labels = make_moons(n, random_state=seed)
    return (xy - [0.5, 0.25]) / 1.5, labels


def circles(n: int, seed: int) -> Labelled:
    """A circle in a circle."""
    from sklearn.datasets import make_circles

    return make_circles(n, factor=0.5, random_state=seed)


def swiss_roll(n: int, seed: int) -> Labelled:
    """A spiral: the Swiss roll seen from its end."""
    from sklearn.datasets import make_swiss_roll

    return make_swiss_roll(n, random_state=seed)[0][:, [0, 2]] / (4.5 * np.pi), None


def s_curve(n: int, seed: int) -> Labelled:
    """The letter S."""
    from sklearn.datasets import make_s_curve

    return make_s_curve(n, random_state=seed)[0][:, [0, 2]] / 2, None


def checkerboard(n: int, seed: int) -> Labelled:
    """The dark squares of a board of 4 x 4."""
    rng = np.random.default_rng(seed)
    column = rng.integers(4, size=n)
    row = 2 * rng.integers(2, size=n) + column % 2
    return (np.stack([column, row], 1) + rng.random((n, 2))) / 2 - 1, None


def gaussian_mixture(n: int, seed: int) -> Labelled:
    """Eight points on a circle, which the noise makes Gaussian."""
    from sklearn.datasets import make_blobs

    angles = np.arange(8) * np.pi / 4
    centers = 0.8 * np.stack([np.cos(angles), np.sin(angles)], 1)
    return make_blobs(n, centers=centers, cluster_std=0, random_state=seed)


SETS: dict[str, Callable[[int, int], Labelled]] = {
    row.__name__: row for row in (moons, circles, swiss_roll, s_curve, checkerboard, gaussian_mixture)
}
assert set(SETS) == set(get_args(Shape))

CLASSES = {"moons": ("upper", "lower"), "circles": ("outer", "inner"), "gaussian_mixture": tuple("01234567")}


# --- what the model does --------------------------------------------------------------------------


def ode_field(drawer: Drawer, x0: Tensor, side: int = 21) -> tuple[list[float], Tensor, Tensor, Tensor]:
    """Where the probability-flow ODE moves unlabelled points at several times, on a grid of places.

    The direction is that of a short step towards data, x0_hat d(alpha) + z_hat d(sigma), without derivatives.

    Args:
        drawer: The model.
        x0: Data [n, 2].
        side: Places along each axis.

    Returns:
        T times from noise to data; the data at these, [T, n, 2]; places [T, side^2, 2]; directions there.
    """
    schedule = drawer.denoiser.schedule
    ts = report_times(schedule)
    z = torch.randn(x0.shape, generator=generator("cpu", 0, "cloud"))
    line = torch.linspace(-1.5, 1.5, side, dtype=torch.float64)
    square = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).reshape(-1, 2)
    clouds, places, directions = [], [], []
    for t in ts:
        s = t * 0.999
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x = square * (alpha**2 + 2 * sigma**2).sqrt()  # the cloud grows where alpha stays 1
        x0_hat = denoise(drawer, x, t)
        z_hat = (x - alpha * x0_hat) / sigma
        clouds.append(alpha * x0 + sigma * z)
        places.append(x)
        directions.append((schedule.alpha(s) - alpha) * x0_hat + (schedule.sigma(s) - sigma) * z_hat)
    return ts.tolist(), torch.stack(clouds), torch.stack(places), torch.stack(directions)


def sampler_paths(drawer: Drawer, labels: list[int]) -> Tensor:
    """The states that the sampler passes through, from noise to data: [steps + 1, len(labels), 2].

    Of several calls at one t (Heun's trial, and the step that corrects it), the last counts. Where sigma > 1,
    as in EDM, states are in units of sigma, or the data would be a dot in the middle.
    """
    states: dict[float, Tensor] = {}

    def watch(x: Tensor, t: Tensor) -> None:
        unit = max(float(drawer.denoiser.schedule.sigma(t)), 1.0)
        states[float(t)] = x.float().cpu() / unit

    end = drawer.draw(list(range(len(labels))), labels, watch)
    return torch.stack([*states.values(), end.cpu()])
