"""Noise schedules: alpha(t) and sigma(t) of the one forward path x_t = alpha(t) x0 + sigma(t) z, z ~ N(0, I).

For every schedule t = 0 is data, alpha(0) = 1 and sigma(0) = 0, and sigma/alpha rises with t. Training and network
calls stay in [t_min, t_max]; samplers start at t_max and take their last step to t = 0. All methods are elementwise,
return the shape and dtype they are given, and are pure. Formulas are written so that nothing cancels near either end.

The 1000 tabulated betas of DDPM are not the continuous VP process: alpha^2 differs by up to 7 % at the end, so
`ddpm_linear` and `vp_linear` are two schedules, never aliases.
"""

import math
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from diffgen.core.errors import require
from diffgen.core.registry import Table

SCHEDULES = Table("schedule")


class Schedule(Protocol):
    """What a noise schedule must offer; add one with `@SCHEDULES.register(name)`."""

    spacing: str
    """The time grid that suits this clock when a sampler asks for `auto`."""

    @property
    def t_min(self) -> float:
        """The least noisy time at which the network is trained or called."""

    @property
    def t_max(self) -> float:
        """The time at which sampling starts, from sigma(t_max) z."""

    def alpha(self, t: Tensor) -> Tensor:
        """Gain of the signal at time t."""

    def sigma(self, t: Tensor) -> Tensor:
        """Standard deviation of the noise at time t."""

    def time_at(self, nsr: Tensor) -> Tensor:
        """The time at which sigma/alpha equals `nsr` (>= 0, infinity allowed); may lie outside [t_min, t_max]."""

    def noise_cond(self, t: Tensor) -> Tensor:
        """What the network's time embedding sees."""

    def snap(self, t: Tensor) -> Tensor:
        """The nearest time that training may draw: t itself, unless the schedule is a table."""


class Continuous:
    """Defaults that most schedules share: any t may be drawn, and the embedding sees 1000 t."""

    spacing = "uniform"

    def noise_cond(self, t: Tensor) -> Tensor:
        """1000 t, the range for which sinusoidal embeddings were designed (Ho et al. 2020)."""
        return 1000 * t

    def snap(self, t: Tensor) -> Tensor:
        """Any time may be drawn."""
        return t


@SCHEDULES.register("ddpm_linear")
@dataclass(frozen=True, kw_only=True)
class DDPMLinear:
    """The tabulated linear betas of DDPM (Ho et al. 2020, sec. 4), t = i / steps for entry i = 1 .. steps.

    Between entries log alpha^2 is interpolated linearly, that is, beta is constant there. For a table of another
    length the ends are scaled by 1000 / steps, as in improved DDPM (Nichol & Dhariwal 2021). `zero_terminal_snr`
    shifts and scales alpha so that the last entry is pure noise and the first stays (Lin et al. 2024, algorithm 1).
    """

    steps: int
    beta_start: float
    beta_end: float
    zero_terminal_snr: bool
    log_alpha_bar: Tensor = field(init=False, repr=False, compare=False)  # [steps + 1], entry 0 is data
    _tables: dict[Any, Tensor] = field(init=False, repr=False, compare=False, default_factory=dict)
    spacing = "uniform"
    t_max = 1.0

    def __post_init__(self) -> None:
        require(1 <= self.steps <= 1_000_000, f"steps={self.steps} must be in [1, 1000000]")
        require(
            self.steps > 1 or not self.zero_terminal_snr,
            "steps=1 leaves zero_terminal_snr=true no entry to keep",
        )
        scale = 1000 / self.steps
        require(
            0 < self.beta_start <= self.beta_end < 1 / scale,
            f"beta_start={self.beta_start} and beta_end={self.beta_end} must satisfy 0 < start <= end < {1 / scale:g}",
        )
        # not the meta device that a caller may have set: these are numbers, not weights
        ends = (scale * self.beta_start, scale * self.beta_end)
        beta = torch.linspace(*ends, self.steps, dtype=torch.float64, device="cpu")
        log_alpha_bar = torch.log1p(-beta).cumsum(0)
        if self.zero_terminal_snr:
            log_alpha_bar = _end_in_noise(log_alpha_bar)
        table = torch.cat([torch.zeros_like(beta[:1]), log_alpha_bar])
        object.__setattr__(self, "log_alpha_bar", table)

    @property
    def t_min(self) -> float:
        """The first entry of the table."""
        return 1 / self.steps

    def _table(self, like: Tensor) -> Tensor:
        """The table where and as precise as `like` is; copied there once, since each copy makes a GPU wait."""
        key = (like.device, like.dtype)
        if key not in self._tables:
            self._tables[key] = self.log_alpha_bar.to(like)
        return self._tables[key]

    def _log_alpha_bar(self, t: Tensor) -> Tensor:
        table = self._table(t)
        position = t * self.steps
        left = position.floor().clamp(0, self.steps - 1).long()
        return torch.lerp(table[left], table[left + 1], position - left)

    def alpha(self, t: Tensor) -> Tensor:
        """sqrt(alpha_bar)."""
        return torch.exp(self._log_alpha_bar(t) / 2)

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - alpha_bar)."""
        return torch.sqrt(-torch.expm1(self._log_alpha_bar(t)))

    def time_at(self, nsr: Tensor) -> Tensor:
        """Inverse interpolation in log alpha_bar = -log(1 + nsr^2); beyond the table, t_max."""
        falling = self._table(nsr)
        wanted = -torch.log1p(nsr**2)
        right = torch.searchsorted(-falling, -wanted.contiguous()).clamp(1, self.steps)
        share = (wanted - falling[right - 1]) / (falling[right] - falling[right - 1])
        return (right - 1 + share.clamp(0, 1)) / self.steps

    def noise_cond(self, t: Tensor) -> Tensor:
        """The index of the table entry counted from 0, stretched to 1000 entries."""
        return (t * self.steps - 1) * (1000 / self.steps)

    def snap(self, t: Tensor) -> Tensor:
        """Cut [t_min, t_max] into `steps` equal parts, one for each entry: uniform t gives uniform entries."""
        share = (t - self.t_min) / max(1 - self.t_min, torch.finfo(t.dtype).tiny)
        return ((share * self.steps).floor().clamp(0, self.steps - 1) + 1) / self.steps


def _end_in_noise(log_alpha_bar: Tensor) -> Tensor:
    """Lin et al. 2024, algorithm 1: sqrt(alpha_bar) shifted to end at 0 and scaled to keep its first entry.

    The last entry is exp(-80), which is nothing beside sigma = 1 in float64, but has a logarithm to interpolate.
    """
    root = torch.exp(log_alpha_bar / 2)
    rescaled = (root - root[-1]) * root[0] / (root[0] - root[-1])
    return 2 * torch.log(rescaled).clamp(min=-40)


@SCHEDULES.register("vp_linear")
@dataclass(frozen=True, kw_only=True)
class VPLinear(Continuous):
    """The continuous variance-preserving process with beta(t) linear (Song et al. 2021, eq. 32-33)."""

    beta_min: float
    beta_max: float
    t_min: float
    t_max: float

    def __post_init__(self) -> None:
        require(
            0 < self.beta_min < self.beta_max,
            f"beta_min={self.beta_min} and beta_max={self.beta_max} must satisfy 0 < min < max",
        )
        check_interval(self.t_min, self.t_max, 1.0)

    def _log_variance(self, t: Tensor) -> Tensor:
        return 0.5 * (self.beta_max - self.beta_min) * t**2 + self.beta_min * t  # -log alpha^2

    def alpha(self, t: Tensor) -> Tensor:
        """exp(-integral of beta / 2)."""
        return torch.exp(-self._log_variance(t) / 2)

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - alpha^2)."""
        return torch.sqrt(-torch.expm1(-self._log_variance(t)))

    def time_at(self, nsr: Tensor) -> Tensor:
        """Solve the quadratic integral of beta = log(1 + nsr^2), in the form without cancellation."""
        target = torch.log1p(nsr**2)
        root = torch.sqrt(self.beta_min**2 + 2 * (self.beta_max - self.beta_min) * target)
        return torch.where(nsr.isinf(), self.t_max, 2 * target / (self.beta_min + root))


@SCHEDULES.register("cosine")
@dataclass(frozen=True, kw_only=True)
class Cosine(Continuous):
    """alpha = cos((t + s)/(1 + s) pi/2), normalised to alpha(0) = 1 (Nichol & Dhariwal 2021, eq. 17).

    With A = pi/2/(1 + s) and B = (1 - t) A this is sin(B)/sin(A), exactly 0 at t = 1. There eps-prediction is
    singular: it needs t_max < 1. The discrete table of the paper clips beta at 0.999, which ends near t_max = 0.999.
    `shift` multiplies sigma/alpha: side / reference side keeps what noise hides in larger images (log SNR is lowered by
    2 ln shift; Hoogeboom et al. 2023, sec. 3.1).
    """

    s: float
    shift: float
    t_min: float
    t_max: float

    def __post_init__(self) -> None:
        require(0 < self.s < 1, f"s={self.s} must be in (0, 1)")
        check_shift(self.shift)
        check_interval(self.t_min, self.t_max, 1.0)

    @property
    def _angle(self) -> float:
        return math.pi / 2 / (1 + self.s)

    def _legs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma up to a common factor; sin^2 A - sin^2 B = sin(A + B) sin(A - B)."""
        product = torch.sin((2 - t) * self._angle) * torch.sin(t * self._angle)
        return torch.sin((1 - t) * self._angle), self.shift * torch.sqrt(product.clamp(min=0))

    def alpha(self, t: Tensor) -> Tensor:
        """sin(B) / sin(A) at shift 1."""
        signal, noise = self._legs(t)
        return signal / torch.hypot(signal, noise)

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - alpha^2)."""
        signal, noise = self._legs(t)
        return noise / torch.hypot(signal, noise)

    def time_at(self, nsr: Tensor) -> Tensor:
        """t A = A - B from its sine and cosine, with sin B = sin A / sqrt(1 + nsr^2) after the shift is undone.

        With nsr = s / c on the unit circle, h = sqrt(1 + nsr^2) cos B c and the sine multiplied out of its difference,
        nothing cancels near t = 0, where arcsin would keep three digits of a float.
        """
        noise_angle = torch.atan(nsr / self.shift)
        s, c = torch.sin(noise_angle), torch.cos(noise_angle)
        sin_a, cos_a = math.sin(self._angle), math.cos(self._angle)
        h = torch.hypot(cos_a * c, s)
        return torch.atan2(sin_a * s**2 / (h + cos_a * c), cos_a * h + sin_a**2 * c) / self._angle


@SCHEDULES.register("sigmoid")
@dataclass(frozen=True, kw_only=True)
class Sigmoid(Continuous):
    """alpha^2 falls as a sigmoid of -t, normalised to 1 and 0 at the ends (Jabri et al. 2023; Chen 2023).

    With u(t) = (start + t (end - start)) / tau and w = u(1) - u(0), their difference quotient of sigmoids is, by
    sigmoid(a) - sigmoid(b) = sinh((a - b)/2) / (2 cosh(a/2) cosh(b/2)), the two products below. alpha(1) is exactly 0.
    """

    start: float
    end: float
    tau: float
    t_min: float
    t_max: float

    def __post_init__(self) -> None:
        require(self.tau > 0, f"tau={self.tau} must be positive")
        width = (self.end - self.start) / self.tau
        require(
            0 < width < 100,
            f"start={self.start} and end={self.end} must satisfy 0 < (end - start) / tau < 100",
        )
        require(abs(self.start / self.tau) < 1000, f"start={self.start} must be below 1000 tau in size")
        check_interval(self.t_min, self.t_max, 1.0)

    def _legs(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha^2 and sigma^2 up to a common factor."""
        half = (self.end - self.start) / self.tau / 2
        signal = torch.sinh((1 - t) * half) * math.cosh(self.start / self.tau / 2)
        return signal, torch.sinh(t * half) * math.cosh(self.end / self.tau / 2)

    def alpha(self, t: Tensor) -> Tensor:
        """sqrt of (sigmoid(u(1)) - sigmoid(u(t))) / (sigmoid(u(1)) - sigmoid(u(0)))."""
        signal, noise = self._legs(t)
        return torch.sqrt(signal / (signal + noise))

    def sigma(self, t: Tensor) -> Tensor:
        """sqrt(1 - alpha^2)."""
        signal, noise = self._legs(t)
        return torch.sqrt(noise / (signal + noise))

    def time_at(self, nsr: Tensor) -> Tensor:
        """Solve sinh(t w/2) = r sinh((1 - t) w/2) for t, with r = nsr^2 cosh(u(0)/2) / cosh(u(1)/2)."""
        half = (self.end - self.start) / self.tau / 2
        r = nsr**2 * (math.cosh(self.start / self.tau / 2) / math.cosh(self.end / self.tau / 2))
        return torch.atanh(math.sinh(half) / (1 / r + math.cosh(half))) / half


@SCHEDULES.register("ve")
@dataclass(frozen=True, kw_only=True)
class VE:
    """Variance exploding, with t = sigma (Karras et al. 2022, table 1, column EDM): alpha = 1."""

    sigma_min: float
    sigma_max: float
    spacing = "karras"

    def __post_init__(self) -> None:
        require(
            0 < self.sigma_min < self.sigma_max,
            f"sigma_min={self.sigma_min} and sigma_max={self.sigma_max} must satisfy 0 < min < max",
        )

    @property
    def t_min(self) -> float:
        """sigma_min."""
        return self.sigma_min

    @property
    def t_max(self) -> float:
        """sigma_max."""
        return self.sigma_max

    def alpha(self, t: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(t)

    def sigma(self, t: Tensor) -> Tensor:
        """The time itself."""
        return t

    def time_at(self, nsr: Tensor) -> Tensor:
        """The ratio itself."""
        return nsr

    def noise_cond(self, t: Tensor) -> Tensor:
        """c_noise = ln(sigma) / 4 (Karras et al. 2022, table 1)."""
        return torch.log(t) / 4

    def snap(self, t: Tensor) -> Tensor:
        """Any time may be drawn."""
        return t


@SCHEDULES.register("rectified_flow")
@dataclass(frozen=True, kw_only=True)
class RectifiedFlow(Continuous):
    """The straight path x_t = (1 - t) x0 + t z (Liu et al. 2023; Lipman et al. 2023 with the clock reversed).

    `shift` multiplies sigma/alpha: it runs through the same path by another clock, later in the noise (Esser et al.
    2024, eq. 23, where it is the square root of the ratio of pixels). The network sees sigma, not the clock.
    """

    shift: float
    t_min: float
    t_max: float

    def __post_init__(self) -> None:
        check_shift(self.shift)
        check_interval(self.t_min, self.t_max, 1.0)

    def alpha(self, t: Tensor) -> Tensor:
        """1 - t at shift 1."""
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: Tensor) -> Tensor:
        """The time itself at shift 1."""
        return self.shift * t / (1 + (self.shift - 1) * t)

    def time_at(self, nsr: Tensor) -> Tensor:
        """t = nsr / (shift + nsr)."""
        return torch.where(nsr.isinf(), 1.0, nsr / (self.shift + nsr))

    def noise_cond(self, t: Tensor) -> Tensor:
        """1000 sigma."""
        return 1000 * self.sigma(t)


def check_interval(t_min: float, t_max: float, end: float) -> None:
    """Require 0 < t_min < t_max <= end."""
    require(0 < t_min < t_max <= end, f"t_min={t_min} and t_max={t_max} must satisfy 0 < t_min < t_max <= {end:g}")


def check_shift(shift: float) -> None:
    """Require 0 < shift <= 1000."""
    require(0 < shift <= 1000, f"shift={shift} must be in (0, 1000]")
