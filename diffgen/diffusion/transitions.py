"""The Gaussians of the forward path between two times: signal-to-noise ratio, transition and posterior."""

from torch import Tensor

from diffgen.diffusion.schedules import Schedule


def snr(schedule: Schedule, t: Tensor) -> Tensor:
    """Signal-to-noise ratio alpha^2 / sigma^2; infinite at t = 0."""
    return (schedule.alpha(t) / schedule.sigma(t)) ** 2


def transition(schedule: Schedule, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """q(x_t | x_s) = N(gain x_s, variance I) for s < t (Kingma et al. 2021, eq. 15-16).

    Returns:
        gain = alpha_t / alpha_s and variance = sigma_t^2 - gain^2 sigma_s^2, shaped like t.
    """
    gain = schedule.alpha(t) / schedule.alpha(s)
    return gain, schedule.sigma(t) ** 2 - (gain * schedule.sigma(s)) ** 2


def posterior(schedule: Schedule, s: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q(x_s | x_t, x0) = N(c_x x_t + c_0 x0, variance I) for s < t (Ho et al. 2020, eq. 6-7).

    Returns:
        c_x, c_0 and variance, shaped like t. Finite also where alpha(t) = 0: there x_t tells nothing and c_x = 0.
    """
    gain, forward = transition(schedule, s, t)
    shrink = (schedule.sigma(s) / schedule.sigma(t)) ** 2
    c_x = gain * shrink
    return c_x, schedule.alpha(s) - c_x * schedule.alpha(t), shrink * forward
