"""The denoiser: a network, a schedule and a parameterization, seen as one function x, t -> x0_hat.

The network knows nothing of schedules; samplers know nothing of what the network predicts. Everything between is here.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diffgen.errors import require
from diffgen.schedules import Schedule

Model = Callable[..., Tensor]
Parameterization = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]

NO_LABEL = -1
"""The label of an image whose class is unknown or withheld."""


class Denoiser:
    """x0_hat(x, t, label), the estimate of E[x0 | x_t = x]."""

    def __init__(
        self,
        model: Model,
        schedule: Schedule,
        parameterization: Parameterization,
        *,
        sigma_data: float,
        scale_input: bool,
    ) -> None:
        """Join the parts and refuse those that do not fit.

        Args:
            model: (x [B, C, H, W], noise_cond [B], label int64 [B], augment [B, 9] where images
                are augmented) -> F [B, C, H, W].
            schedule: alpha and sigma.
            parameterization: (alpha, sigma, sigma_data) -> (a, b).
            sigma_data: Standard deviation of the data, in the units of x0 in [-1, 1].
            scale_input: Whether the network sees x / std(x) (EDM's c_in) or x itself (DDPM, rectified flow).

        Raises:
            UsageError: The parameterization cannot be inverted at t_max, or the network would see huge inputs.
        """
        require(0 < sigma_data < 100, f"denoiser.sigma_data={sigma_data} must be in (0, 100)")
        self.model, self.schedule, self.parameterization = model, schedule, parameterization
        self.sigma_data, self.scale_input = sigma_data, scale_input
        self._check_end()

    def _check_end(self) -> None:
        end = torch.tensor(self.schedule.t_max, dtype=torch.float64, device="cpu")
        alpha, sigma, a, b = self.coefficients(end)
        require(
            bool((b * alpha - a * sigma).abs() > 1e-6),
            f"parameterization={name_of(self.parameterization)} is singular at t_max={self.schedule.t_max:g}, "
            "where alpha reaches 0: choose parameterization=v or flow, or a "
            "schedule that ends before (cosine with schedule.t_max=0.999)",
        )
        require(
            self.scale_input or bool(sigma < 2),
            f"this schedule's noise reaches sigma={float(sigma):g}: set denoiser.scale_input=true",
        )

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """alpha, sigma and the pair (a, b) at t, shaped like t."""
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        return alpha, sigma, *self.parameterization(alpha, sigma, self.sigma_data)

    def c_out(self, t: Tensor) -> Tensor:
        """d x0_hat / d F, shaped like t."""
        alpha, sigma, a, b = self.coefficients(t)
        return -sigma / (b * alpha - a * sigma)

    def predict(self, x: Tensor, t: Tensor, label: Tensor, augment: Tensor | None = None) -> Tensor:
        """The network's F at x_t = x.

        Args:
            x: [B, C, H, W].
            t: [B].
            label: int64 [B], `NO_LABEL` for none.
            augment: What was done to the training images, [B, 9]; None for untouched ones, and in sampling.
        """
        c_in = torch.ones_like(t)
        if self.scale_input:
            c_in = torch.rsqrt((self.schedule.alpha(t) * self.sigma_data) ** 2 + self.schedule.sigma(t) ** 2)
        inputs = [(like(c_in, x) * x).float(), self.schedule.noise_cond(t).float(), label]
        if augment is not None:
            inputs.append(augment)
        return self.model(*inputs).to(x.dtype)

    def __call__(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """x0_hat = (b x - sigma F) / (b alpha - a sigma), in the dtype of x; arguments as for `predict`."""
        alpha, sigma, a, b = (like(c, x) for c in self.coefficients(t))
        return (b * x - sigma * self.predict(x, t, label)) / (b * alpha - a * sigma)


def name_of(row: Parameterization) -> str:
    """The name of a function, also behind a partial."""
    return getattr(getattr(row, "func", row), "__name__", "this")


def like(coefficient: Tensor, x: Tensor) -> Tensor:
    """A coefficient [B] as [B, 1, ...] in the dtype of x, ready to multiply it."""
    return coefficient.to(x).reshape(-1, *[1] * (x.ndim - 1))
