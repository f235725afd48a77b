"""Gaussian data: the best denoiser, and the solution of the probability-flow ODE, in closed form.

Far up the path noise hides all of a data set but its mean and covariance, so the first part of the way is that of
Gaussian data, for any network (Wang & Vastola 2024, arXiv 2412.09726). For x0 ~ N(mean, U diag(variances) U^T) the
state is Gaussian at every level, and the ODE keeps the coordinates of

    U^T (x_t - alpha_t mean) / sqrt(alpha_t^2 variances + sigma_t^2)

as they are: from one level to another is one matrix product. Where examples have classes each class has a mean of its
own, and they share the covariance within a class: a network that is told of labels follows that much further.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from diffgen.core.errors import require
from diffgen.diffusion.samplers.steps import Denoise, Level, level
from diffgen.diffusion.schedules import Schedule

LARGEST = 4096
"""Values of an example up to which a covariance is kept: 64 MiB."""


class Moments(NamedTuple):
    """What is kept of a data set of D values an example, in K classes; float32 in a checkpoint.

    Attributes:
        counts: Examples of each class, and last those without a label, [K + 1].
        means: Their means, [K + 1, D]; 0 where there are none.
        covariance: Within them, [D, D].
    """

    counts: Tensor
    means: Tensor
    covariance: Tensor

    @classmethod
    def of(cls, examples: Iterable[tuple[Tensor, Tensor]], classes: int) -> "Moments":
        """The moments of all examples, summed in float64 on the CPU.

        Args:
            examples: x0 [B, *size] and int64 labels [B] at a time, -1 for none.
            classes: K.

        Raises:
            UsageError: An example has more than `LARGEST` values.
        """
        counts, sums, products = torch.zeros(classes + 1).double(), torch.zeros(()), torch.zeros(())
        for x0, labels in examples:
            x = x0.cpu().double().flatten(1)
            told = f"the covariance of examples of {x.shape[1]} values is too large to keep: at most {LARGEST}"
            require(x.shape[1] <= LARGEST, told)
            labels = labels.cpu()
            labels = torch.where((labels >= 0) & (labels < classes), labels, classes)  # the last row is of no label
            belongs = torch.nn.functional.one_hot(labels, classes + 1).double()
            counts, sums, products = counts + belongs.sum(0), sums + belongs.T @ x, products + x.T @ x
        means = sums / counts.clamp(min=1)[:, None]
        covariance = products / counts.sum() - (means.T * (counts / counts.sum())) @ means
        return cls(counts.float(), means.float(), covariance.float())

    @staticmethod
    def shapes(values: int, classes: int) -> dict[str, tuple[int, ...]]:
        """Of the tensors, by name."""
        rows = classes + 1
        return {"counts": (rows,), "means": (rows, values), "covariance": (values, values)}


class Spread:
    """A covariance [D, D], or one variance [] of values that are independent; decomposed once, when it is needed."""

    def __init__(self, covariance: Tensor) -> None:
        self.covariance = covariance.cpu().double()

    @cached_property
    def axes(self) -> tuple[Tensor, Tensor | None]:
        """Variances and directions U; independent values have no directions of their own."""
        if self.covariance.ndim == 0:
            return self.covariance, None
        variances, directions = torch.linalg.eigh(self.covariance)
        return variances.clamp(min=0), directions  # rounding may leave some below 0

    def times(self, x: Tensor, gain: Callable[[Tensor], Tensor]) -> Tensor:
        """U diag(gain(variances)) U^T x, of each row of x [B, D]."""
        variances, directions = self.axes
        gains = gain(variances).to(x)
        if directions is None:
            return x * gains
        along = directions.to(x)
        return x @ along * gains @ along.T


@dataclass(frozen=True)
class Gaussian:
    """What is known of examples x0 [*size], seen as vectors of D values, and of int64 labels.

    Attributes:
        means: Of the classes, [K, D].
        within: Covariance within each of them.
        mean: Of all examples, [D] or [1], for those without a label.
        whole: Their covariance.
    """

    means: Tensor
    within: Spread
    mean: Tensor
    whole: Spread

    @classmethod
    def of(cls, moments: Moments) -> "Gaussian":
        """The Gaussians with these moments."""
        shares, means = moments.counts.double() / moments.counts.sum(), moments.means.double()
        mean = shares @ means
        apart = means - mean
        whole = moments.covariance.double() + (apart.T * shares) @ apart
        known = torch.where(moments.counts[:, None] > 0, means, mean)
        return cls(known[:-1], Spread(moments.covariance), mean, Spread(whole))

    @classmethod
    def isotropic(cls, deviation: float) -> "Gaussian":
        """N(0, deviation^2 I): what is known of data where nothing else is."""
        spread = Spread(torch.tensor(deviation**2))
        return cls(torch.zeros(0, 1), spread, torch.zeros(1), spread)

    def denoise(self, x: Tensor, label: Tensor, at: Level) -> Tensor:
        """E[x0 | x_t = x] of x [B, *size], a Wiener filter in each direction."""
        return self._moved(x, label, at, 1.0, lambda v: at.alpha * v / (at.alpha**2 * v + at.sigma**2))

    def carried(self, x: Tensor, label: Tensor, start: Level, end: Level) -> Tensor:
        """The ODE's solution through x [B, *size] at one level, at another; alpha may be 0 at either."""

        def gain(variances: Tensor) -> Tensor:
            here, there = (at.alpha**2 * variances + at.sigma**2 for at in (start, end))
            return torch.sqrt(there / here)

        return self._moved(x, label, start, end.alpha, gain)

    def mean_step(self, x: Tensor, label: Tensor, at: Level, end: Level) -> Tensor:
        """The x0_hat with which Euler's step to another level ends where the ODE's solution does."""
        keep = end.sigma / at.sigma
        return (self.carried(x, label, at, end) - keep * x) / (end.alpha - keep * at.alpha)

    def _moved(self, x: Tensor, label: Tensor, at: Level, alpha: float, gain: Callable[[Tensor], Tensor]) -> Tensor:
        """alpha mean + U diag(gain(variances)) U^T (x - alpha_t mean)."""
        flat, told = x.flatten(1), (label >= 0) & (label < len(self.means))
        moved = torch.empty_like(flat)
        for labelled, whose, spread in ((True, told, self.within), (False, ~told, self.whole)):
            if bool(whose.any()):
                mean = (self.means[label[whose].cpu()] if labelled else self.mean).to(flat)
                moved[whose] = alpha * mean + spread.times(flat[whose] - at.alpha * mean, gain)
        return moved.reshape(x.shape)


def answered_first(denoise: Denoise, gaussian: Gaussian, label: Tensor, schedule: Schedule) -> Denoise:
    """A denoiser whose first call is answered in closed form, and does not reach the network.

    The analytical first step of GENIE (Dockhorn et al. 2022), for any sampler and any Gaussian. A sampler that says
    where its step ends is answered for the whole of it.
    """
    first = True

    def answered(x: Tensor, t: Tensor, *end: Tensor) -> Tensor:
        nonlocal first
        if not first:
            return denoise(x, t, *end)
        first, at = False, level(schedule, t)
        return gaussian.mean_step(x, label, at, level(schedule, end[0])) if end else gaussian.denoise(x, label, at)

    return answered
