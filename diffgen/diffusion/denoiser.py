"""The denoiser: a network, a schedule and a parameterization, seen as one function x, t -> x0_hat.

The network knows nothing of schedules; samplers know nothing of what the network predicts. Everything between is here.
"""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from diffgen.core.errors import require
from diffgen.diffusion.schedules import Schedule

Network = Callable[..., Tensor]
Parameterization = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]

NO_LABEL = -1
"""The label of an example whose class is unknown or withheld."""


class Denoiser:
    """x0_hat(x, t, label), the estimate of E[x0 | x_t = x]."""

    def __init__(
        self,
        model: Network,
        schedule: Schedule,
        parameterization: Parameterization,
        *,
        sigma_data: float,
        scale_input: bool,
        self_condition: bool = False,
        given: int = 0,
    ) -> None:
        """Join the parts and refuse those that do not fit.

        Args:
            model: (x [B, ...], noise_cond [B], label int64 [B], augment [B, 9] where examples are augmented) -> F
                like x. With `self_condition` the fifth is an earlier x0_hat, or None.
            schedule: alpha and sigma.
            parameterization: (alpha, sigma, sigma_data) -> (a, b).
            sigma_data: Standard deviation of the data, in the units of x0 in [-1, 1].
            scale_input: Whether the network sees x / std(x) (EDM's c_in) or x itself (DDPM, rectified flow).
            self_condition: Whether it sees its own earlier x0_hat, too (Chen et al. 2023, sec. 3.2).
            given: Channels behind those of x by which it is told of a part of x0; see `knowing`.

        Raises:
            UsageError: The parameterization cannot be inverted at t_max, or the network would see huge inputs.
        """
        require(0 < sigma_data < 100, f"denoiser.sigma_data={sigma_data} must be in (0, 100)")
        self.model, self.schedule, self.parameterization = model, schedule, parameterization
        self.sigma_data, self.scale_input, self.self_condition = sigma_data, scale_input, self_condition
        self.given = given
        self.told: Tensor | None = None
        self.plain: Network = model
        self._known: dict[float, Preconditioning] = {}
        self._check_end()

    def _check_end(self) -> None:
        end = torch.tensor(self.schedule.t_max, dtype=torch.float64, device="cpu")
        at = self.coefficients(end)
        require(
            bool((at.b * at.alpha - at.a * at.sigma).abs() > 1e-6),
            f"parameterization={name_of(self.parameterization)} is singular at t_max={self.schedule.t_max:g}, "
            "where alpha reaches 0: choose parameterization=v or flow, or a "
            "schedule that ends before (cosine with schedule.t_max=0.999)",
        )
        require(
            self.scale_input or bool(at.sigma < 2),
            f"this schedule's noise reaches sigma={float(at.sigma):g}: set denoiser.scale_input=true",
        )

    def coefficients(self, t: Tensor) -> "Coefficients":
        """What stands in the path and around the network at times t, each shaped like t."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        a, b = self.parameterization(alpha, sigma, self.sigma_data)
        return Coefficients(alpha, sigma, a, b, c_out=-sigma / (b * alpha - a * sigma))

    def predict(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor,
        augment: Tensor | None = None,
        estimate: Tensor | None = None,
        end: Tensor | None = None,
    ) -> Tensor:
        """The network's F at x_t = x.

        Args:
            x: [B, ...].
            t: [B].
            label: int64 [B], `NO_LABEL` for none.
            augment: What was done to the training examples, [B, 9]; None for untouched ones, and in sampling.
            estimate: An earlier x0_hat like x, of a network that sees it; None for none.
            end: Where the step ends, like t, of a network that is told; None is t itself.
        """
        x_in = like(self._c_in(t), x) * x if self.scale_input else x
        condition = self.schedule.noise_cond(t)
        span = None if end is None else condition - self.schedule.noise_cond(end)
        return self._asked(x_in, condition, label, augment, estimate, span).to(x.dtype)

    def _asked(
        self,
        x: Tensor,
        condition: Tensor,
        label: Tensor,
        augment: Tensor | None,
        estimate: Tensor | None,
        span: Tensor | None,
    ) -> Tensor:
        """The network's F; what there is none of is not named, since a network may not know of it."""
        x = torch.cat([x, self._told(x)], 1) if self.given else x
        more = [augment, None if estimate is None else estimate.float(), None if span is None else span.float()]
        while more and more[-1] is None:
            more.pop()
        return self.model(x.float(), condition.float(), label, *more)

    def knowing(self, told: Tensor | None) -> "Denoiser":
        """The same denoiser, whose network is told of a part of x0: see `diffusion.knowing`.

        Args:
            told: [B, given, *sides] for each example, or [1, given, *sides] for all of them; None tells nothing.
        """
        other = copy.copy(self)
        other.told = told
        return other

    def as_it_stands(self) -> "Denoiser":
        """The same denoiser with its network neither compiled, nor in low precision, nor exchanging gradients."""
        other = copy.copy(self)
        other.model = self.plain
        return other

    def _told(self, x: Tensor) -> Tensor:
        """What the network is told beside x [B, C, *sides], [B, given, *sides]; zeros tell nothing."""
        if self.told is None:
            return x.new_zeros(x.shape[0], self.given, *x.shape[2:])  # len(x) would fix the size of an export's batch
        return self.told.to(x).expand(len(x), *self.told.shape[1:])

    def _c_in(self, t: Tensor) -> Tensor:
        return torch.rsqrt((self.schedule.alpha(t) * self.sigma_data) ** 2 + self.schedule.sigma(t) ** 2)

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        label: Tensor,
        estimate: Tensor | None = None,
        augment: Tensor | None = None,
        end: Tensor | None = None,
    ) -> Tensor:
        """x0_hat = (b x - sigma F) / (b alpha - a sigma), in the dtype of x.

        Args:
            x: [B, ...].
            t: [B], or [] where all examples are at one time, as in sampling: then its coefficients are looked up.
            label: int64 [B], `NO_LABEL` for none.
            estimate: See `predict`.
            augment: See `predict`.
            end: See `predict`; x0_hat is then where the mean velocity of the step leads by t = 0.
        """
        if t.ndim == 0:
            c = self.preconditioning(t)
            x_in = c.c_in * x.float() if self.scale_input else x.float()
            condition = x_in.new_full((len(x),), c.c_noise)
            span = None if end is None else condition - self.schedule.noise_cond(end).to(condition)
            F = self._asked(x_in, condition, label, augment, estimate, span)
            return torch.add(c.c_skip * x, F, alpha=c.c_out)
        alpha, sigma, a, b, _ = (like(c, x) for c in self.coefficients(t))
        return (b * x - sigma * self.predict(x, t, label, augment, estimate, end)) / (b * alpha - a * sigma)

    def preconditioning(self, t: Tensor) -> "Preconditioning":
        """The coefficients of a time [], as Python floats from float64; computed once for each time.

        A sampler asks for the same few times batch after batch, and each evaluation is a dozen small operations.
        """
        key = float(t)
        if key not in self._known:
            t = torch.tensor(key, dtype=torch.float64, device="cpu")
            alpha, sigma, a, b, c_out = map(float, self.coefficients(t))
            c_skip = b / (b * alpha - a * sigma)
            nsr = sigma / alpha if alpha else math.inf
            c_in, c_noise = float(self._c_in(t)), float(self.schedule.noise_cond(t))
            self._known[key] = Preconditioning(c_in, c_noise, c_skip, c_out, nsr)
        return self._known[key]


class Coefficients(NamedTuple):
    """x_t = alpha x0 + sigma z and F = a x0 + b z at some times; c_out is d x0_hat / d F."""

    alpha: Tensor
    sigma: Tensor
    a: Tensor
    b: Tensor
    c_out: Tensor


class Preconditioning(NamedTuple):
    """What stands around the network at one time: x0_hat = c_skip x + c_out F(c_in x, c_noise).

    The names are those of Karras et al. 2022, table 1; `nsr` is sigma/alpha.
    """

    c_in: float
    c_noise: float
    c_skip: float
    c_out: float
    nsr: float


def name_of(row: Parameterization) -> str:
    """The name of a function, also behind a partial."""
    return getattr(getattr(row, "func", row), "__name__", "this")


def like(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient [B] as [B, 1, ...] in the dtype of x, ready to multiply it."""
    return coefficient.to(x).reshape(-1, *[1] * (x.ndim - 1))
