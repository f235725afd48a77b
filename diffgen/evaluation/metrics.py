"""Metrics of generated images: pure functions on features [n, d] (or logits), in float64.

`real` and `fake` are features of real and of generated images from the same extractor. Distances between all pairs are
formed in blocks, so that 50,000 against 50,000 fit into memory. Features may lie on the CPU or on a CUDA device.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from diffgen.core.errors import require
from diffgen.core.randomness import generator

BLOCK = 2**24
"""Distances held at a time: 128 MiB of float64."""

COPY = 1 / 3
"""Ratio of the first two distances below which a sample counts as a copy (Yoon et al. 2023)."""


class PrecisionRecall(NamedTuple):
    """Shares in [0, 1]: of fakes near the real ones, of real ones near the fakes."""

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Density >= 0, about 1 for equal distributions, and coverage in [0, 1]."""

    density: float
    coverage: float


# --- kernels and classes ------------------------------------------------------------------------------------------


DRAWS = 20
"""Subsets from which the error of the kernel distance is told."""


def kernel_distance(real: Tensor, fake: Tensor, *, subsets: int, size: int, seed: int) -> tuple[float, float]:
    """Unbiased squared MMD with the kernel (x.y / d + 1)^3, the KID (Binkowski et al. 2018, sec. 4).

    Args:
        real: [n, d].
        fake: [m, d].
        subsets: Pairs of random subsets; at least 2.
        size: Of each subset, drawn without replacement; at most n and m.
        seed: Of the draws.

    Returns:
        The mean over the subsets, which may be a little below 0, and its standard error: that of the draws, and those
        of having these images and no others, real and fake, by the jackknife that leaves out all but `size` of them
        (Shao & Wu 1989). It is infinite where a subset is all images, and up to 1.7 times too large where the two
        sets are nearly alike. (The literature's +- is mostly the standard deviation over subsets, which says neither.)

    Raises:
        UsageError: `subsets` or `size` does not fit.
    """
    _check(real, fake)
    smaller = min(len(real), len(fake))
    require(subsets >= 2, f"subsets={subsets} must be at least 2")
    require(2 <= size <= smaller, f"size={size} must be in [2, {smaller}], the number of images")

    def pick(x: Tensor, kind: str, i: int) -> Tensor:
        return x[torch.randperm(len(x), generator=generator("cpu", seed, kind, i))[:size].to(x.device)]

    def values(count: int, *, real_varies: bool = True, fake_varies: bool = True) -> Tensor:
        found = [
            squared_mmd(pick(real, "real", i * real_varies), pick(fake, "fake", i * fake_varies)) for i in range(count)
        ]
        return torch.tensor(found, dtype=torch.float64)

    each = values(subsets)
    if size == smaller:
        return float(each.mean()), math.inf
    variance = float(each.var()) / subsets
    variance += float(values(DRAWS, fake_varies=False).var()) * size / (len(real) - size)
    variance += float(values(DRAWS, real_varies=False).var()) * size / (len(fake) - size)
    return float(each.mean()), math.sqrt(variance)


def squared_mmd(x: Tensor, y: Tensor) -> float:
    """The unbiased estimate for x, y [n, d] (Gretton et al. 2012, eq. 3), with the KID's kernel."""
    x, y = x.double(), y.double()
    n, d = x.shape

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a @ b.T / d + 1) ** 3

    def within(a: Tensor) -> Tensor:
        k = kernel(a, a)
        return (k.sum() - k.trace()) / (n * (n - 1))

    return float(within(x) + within(y) - 2 * kernel(x, y).mean())


def inception_score(logits: Tensor, *, splits: int, seed: int) -> tuple[float, float]:
    """exp of the mean KL(p(y | x) || p(y)), the inception score (Salimans et al. 2016, sec. 4).

    Args:
        logits: [n, k].
        splits: Parts, each with its own p(y); 10 in the literature.
        seed: Of the shuffle before splitting: images in the order of their classes would make all parts alike.

    Returns:
        Mean and standard deviation over the parts, as the literature gives them.

    Raises:
        UsageError: There are more parts than images.
    """
    require(1 <= splits <= len(logits), f"splits={splits} must be in [1, {len(logits)}], the number of images")
    order = torch.randperm(len(logits), generator=generator("cpu", seed, "splits"))
    log_p = logits.double()[order.to(logits.device)].log_softmax(1)
    scores = torch.stack([_information(part).exp() for part in log_p.tensor_split(splits)])
    return float(scores.mean()), float(scores.std(correction=0))


def _information(log_p: Tensor) -> Tensor:
    """Mutual information of image and class, []."""
    p = log_p.exp()
    marginal = p.mean(0).clamp(min=torch.finfo(p.dtype).tiny)
    return (p * (log_p - marginal.log())).sum(1).mean()


# --- neighbours ---------------------------------------------------------------------------------------------------


def precision_recall(real: Tensor, fake: Tensor, *, k: int) -> PrecisionRecall:
    """Improved precision and recall (Kynkaanniemi et al. 2019, eq. 1-2; k = 3 there).

    Precision is the share of fakes inside the ball of some real image, whose radius is the distance to its k-th
    neighbour among the real ones; recall swaps the two.

    Raises:
        UsageError: k does not fit the number of images.
    """
    inside_real, _ = _balls(real, fake, k)
    inside_fake, _ = _balls(fake, real, k)
    return PrecisionRecall(_share(inside_real > 0), _share(inside_fake > 0))


def density_coverage(real: Tensor, fake: Tensor, *, k: int) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020, sec. 3; k = 5 there), which an outlier cannot inflate.

    Density is the mean number of real balls around a fake, over k; coverage the share of real balls with a fake inside.

    Raises:
        UsageError: k does not fit the number of images.
    """
    inside, hit = _balls(real, fake, k)
    return DensityCoverage(float(inside.double().mean()) / k, _share(hit))


def _balls(centres: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """How many balls hold each point, int64 [m], and whether each ball holds one, bool [n].

    A ball reaches to its centre's k-th neighbour among the centres and is open, as in the code of Naeem et al. The last
    digits of its radius are given away, so that rounding cannot decide whether a point on the rim is inside.
    """
    _check(centres, points)
    require(1 <= k < len(centres), f"k={k} must be in [1, {len(centres) - 1}]: a ball needs k other images")
    radii, _ = nearest_neighbours(centres, centres, k=k + 1)  # the nearest is the centre itself
    limit = radii[:, -1] * (1 - 1e-6)
    hit = torch.zeros(len(centres), dtype=torch.bool, device=centres.device)
    counts = []
    for distances in _distances(points, centres):
        inside = distances < limit
        hit |= inside.any(0)
        counts.append(inside.sum(1))
    return torch.cat(counts), hit


def nearest_neighbours(query: Tensor, reference: Tensor, *, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest references of each query, nearest first.

    Args:
        query: [n, d].
        reference: [m, d] with m >= k; the query itself counts if it is in there.
        k: How many.

    Returns:
        Distances float64 [n, k] and entries of `reference` int64 [n, k].

    Raises:
        UsageError: There are fewer than k references.
    """
    _check(query, reference)
    require(1 <= k <= len(reference), f"k={k} must be in [1, {len(reference)}], the number of images to look among")
    found = [block.topk(k, largest=False) for block in _distances(query, reference)]
    return torch.cat([each.values for each in found]), torch.cat([each.indices for each in found])


def memorisation_ratio(samples: Tensor, train: Tensor) -> Tensor:
    """Distance to the nearest training image over that to the second nearest (Yoon et al. 2023), in [0, 1].

    Near 1 for an image that is new, 0 for a copy. The share below `COPY` is the usual summary; held-out images give its
    floor, since a training set may hold near-duplicates itself.

    Args:
        samples: Features or pixels [n, d].
        train: Of the training set, [m, d] with m >= 2.

    Returns:
        float64 [n].
    """
    nearest, _ = nearest_neighbours(samples, train, k=2)
    tiny = torch.finfo(torch.float64).tiny
    return nearest[:, 0] / nearest[:, 1].clamp(min=tiny)


def _distances(query: Tensor, reference: Tensor) -> Iterator[Tensor]:
    """Blocks of rows of the distances float64 [n, m], by |x|^2 + |y|^2 - 2 x.y around a common centre.

    What rounding may have left of a distance of 0 is made 0, so that equal images are at the same place.
    """
    centre = reference.double().mean(0)
    y = reference.double() - centre
    for rows in query.split(max(1, BLOCK // len(reference))):
        x = rows.double() - centre
        sizes = x.square().sum(1)[:, None] + y.square().sum(1)
        square = sizes - 2 * x @ y.T
        yield square.masked_fill(square < 1e-12 * sizes, 0).sqrt()


def _check(a: Tensor, b: Tensor) -> None:
    fits = a.ndim == b.ndim == 2 and a.shape[1] == b.shape[1] and len(a) > 0 and len(b) > 0
    require(fits, f"features must be [n, d] and [m, d] and are {list(a.shape)} and {list(b.shape)}")


def _share(mask: Tensor) -> float:
    return float(mask.double().mean())
