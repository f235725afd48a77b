"""The probability-flow ODE with steps of the size that a tolerance asks for, in both directions."""

import math
from typing import Any

import torch
from torch import Tensor

from diffgen.core.errors import require
from diffgen.diffusion.samplers.steps import SAMPLERS, Denoise, Level, Noise, level, steps
from diffgen.diffusion.schedules import Schedule


@SAMPLERS.register("ode", order=None, calls=None)
def ode(
    denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise, *, rtol: float, atol: float
) -> Tensor:
    """Dormand and Prince's method of order 5 (4), `RK45` of SciPy, between the nodes of the grid.

    Two nodes, t_max and t_min, are enough. The last step, to data, is x0_hat. Step sizes are chosen for the batch as a
    whole, so an image depends on the others by as much as the tolerance lets it.

    Args:
        rtol: Relative tolerance of a step.
        atol: Absolute tolerance, where x/std(x) is about 1.
    """
    require(
        rtol >= 1e-13 and atol > 0,
        f"sampler.rtol={rtol} and sampler.atol={atol} must be positive (rtol >= 1e-13)",
    )
    for _, now, then in steps(schedule, ts):
        x = denoise(x, now.t) if then.sigma == 0 else flow(denoise, schedule, x, now, then, rtol=rtol, atol=atol)
    return x


def encode(denoise: Denoise, schedule: Schedule, x0: Tensor, *, t_end: float, rtol: float, atol: float) -> Tensor:
    """The other way: the x at t_end from which `ode` finds x0 again (Song et al. 2021, sec. 4.3).

    Args:
        denoise: (x [B, ...], t []) -> x0_hat.
        schedule: Its clock.
        x0: Data; it enters at t_min, where the noise is imperceptible.
        t_end: Where to stop; t_max for noise alone.
        rtol: As for `ode`.
        atol: As for `ode`.

    Returns:
        x shaped like x0; at t_max distributed as sigma(t_max) z if the denoiser is right.
    """
    low, high = (level(schedule, torch.tensor(t, dtype=torch.float64)) for t in (schedule.t_min, t_end))
    return flow(denoise, schedule, low.alpha * x0, low, high, rtol=rtol, atol=atol)


def level_at(schedule: Schedule, angle: float) -> Level:
    """The level at which atan2(sigma, alpha) is `angle`, kept inside [t_min, t_max]."""
    nsr = torch.tensor(math.tan(angle), dtype=torch.float64)
    return level(schedule, schedule.time_at(nsr).clamp(schedule.t_min, schedule.t_max))


def flow(
    denoise: Denoise, schedule: Schedule, x: Tensor, start: Level, end: Level, *, rtol: float, atol: float
) -> Tensor:
    """Carry x along the ODE from one level to another.

    In the angle a = atan2(sigma, alpha) and y = x / |(alpha, sigma)| it is dy/da = cos(a) z_hat - sin(a) x0_hat:
    finite from data to pure noise, for every schedule.
    """
    from scipy.integrate import solve_ivp

    def slope(angle: float, y: Any) -> Any:
        cos, sin = math.cos(angle), math.sin(angle)
        at = level_at(schedule, angle)
        state = torch.as_tensor(y).to(x.dtype).to(x.device).reshape(x.shape)
        x0_hat = denoise(math.hypot(at.alpha, at.sigma) * state, at.t)
        return (cos * (state - cos * x0_hat) / sin - sin * x0_hat).cpu().double().reshape(-1).numpy()

    angles = [math.atan2(at.sigma, at.alpha) for at in (start, end)]
    y = (x / math.hypot(start.alpha, start.sigma)).cpu().double().reshape(-1).numpy()
    solution = solve_ivp(slope, angles, y, method="RK45", rtol=rtol, atol=atol, t_eval=angles[1:])
    require(
        solution.success,
        f"sampler=ode stopped: {solution.message}; give sampler.rtol and sampler.atol more room",
    )
    return torch.as_tensor(solution.y[:, -1]).to(x.dtype).to(x.device).reshape(x.shape) * math.hypot(
        end.alpha, end.sigma
    )
