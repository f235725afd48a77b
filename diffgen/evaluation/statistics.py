"""Mean and covariance of features, gathered batch by batch, and the distance between two such Gaussians."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from diffgen.core.errors import require


class Gaussian(NamedTuple):
    """A fitted Gaussian: mean float64 [d] and covariance float64 [d, d]."""

    mean: Tensor
    cov: Tensor


@dataclass(frozen=True)
class Moments:
    """Count, mean and scatter of a set of features; sets are joined with `+`.

    The scatter is that around the mean, and joining is exact (Chan et al. 1979), so nothing cancels: the split
    into batches and processes changes the result by rounding alone.

    Attributes:
        count: Number of features n.
        mean: float64 [d].
        scatter: Sum of (x - mean)(x - mean)^T, float64 [d, d].
    """

    count: int
    mean: Tensor
    scatter: Tensor

    @classmethod
    def of(cls, features: Tensor) -> "Moments":
        """Moments of one batch, [n, d] with n >= 1, in float64 on its device."""
        require(features.ndim == 2 and len(features) > 0, f"features must be [n, d] and are {list(features.shape)}")
        x = features.double()
        mean = x.mean(0)
        return cls(len(x), mean, (x - mean).T @ (x - mean))

    def __add__(self, other: "Moments") -> "Moments":
        """Moments of both sets together."""
        count = self.count + other.count
        shift = other.mean - self.mean
        between = self.count * other.count / count * torch.outer(shift, shift)
        return Moments(count, self.mean + other.count / count * shift, self.scatter + other.scatter + between)

    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance, divided by n - 1 as in the FID's reference code.

        Raises:
            UsageError: There are fewer than two features.
        """
        require(self.count >= 2, f"a covariance needs at least 2 images, and there is {self.count}")
        return Gaussian(self.mean, self.scatter / (self.count - 1))


def frechet_distance(a: Gaussian, b: Gaussian) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) (Dowson & Landau 1982; Heusel et al. 2017, eq. 6).

    tr (A B)^(1/2) is the sum of the singular values of A^(1/2) B^(1/2). Unlike the eigenvalues of A B, these keep their
    digits near 0, so covariances of fewer images than dimensions need no jitter.
    """
    cross = torch.linalg.svdvals(_root(a.cov) @ _root(b.cov)).sum()
    distance = (a.mean - b.mean).square().sum() + a.cov.trace() + b.cov.trace() - 2 * cross
    return float(distance.clamp(min=0))


def _root(cov: Tensor) -> Tensor:
    """The symmetric square root; eigenvalues that rounding made negative count as 0."""
    values, vectors = torch.linalg.eigh(cov)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T
