"""The log-likelihood of data under a denoiser, by the change of variables along the probability-flow ODE."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffgen.core.errors import require
from diffgen.diffusion.samplers import Denoise
from diffgen.diffusion.samplers.adaptive import level_at
from diffgen.diffusion.samplers.steps import level
from diffgen.diffusion.schedules import Schedule

Trace = Callable[[Tensor, Tensor], Tensor]
"""(x0_hat [B, D], the x [B, D] it was computed from) -> trace of its Jacobian, [B]."""


def exact_trace(x0_hat: Tensor, x: Tensor) -> Tensor:
    """The trace itself, by D backward passes: for data of few dimensions."""
    columns = range(x.shape[1])
    rows = [torch.autograd.grad(x0_hat[:, d].sum(), x, retain_graph=True)[0][:, d] for d in columns]
    return torch.stack(rows).sum(0)


def hutchinson_trace(probe: Tensor) -> Trace:
    """v^T J v, whose mean over random signs v is the trace (Hutchinson 1990); one backward pass.

    Args:
        probe: v, [B, D]: fixed along a path, so that the ODE stays one (Grathwohl et al. 2019, sec. 3.1).
    """

    def trace(x0_hat: Tensor, x: Tensor) -> Tensor:
        v = probe.to(x0_hat)
        return (torch.autograd.grad((x0_hat * v).sum(), x)[0] * v).sum(1)

    return trace


def log_likelihood(
    denoise: Denoise, schedule: Schedule, x0: Tensor, *, rtol: float, atol: float, trace: Trace = exact_trace
) -> Tensor:
    """log p(x0) in nats (Song et al. 2021, eq. 39).

    In the angle a = atan2(sigma, alpha) and y = x / |(alpha, sigma)| the ODE is dy/da = y cot(a) - x0_hat / sin(a), and
    log p falls by the divergence of that along the path from t_min, where data enter, to t_max, where x is taken for
    pure noise.

    Args:
        denoise: (x [B, ...], t []) -> x0_hat, differentiable in x, each image by itself.
        schedule: Its clock.
        x0: Data [B, ...], in float64 for tight tolerances.
        rtol: Relative tolerance of a step.
        atol: Absolute tolerance.
        trace: How to find the trace of the Jacobian of x0_hat.

    Returns:
        [B], float64 on the CPU.

    Raises:
        UsageError: The tolerances are too small for the solver.
    """
    from scipy.integrate import solve_ivp

    low, high = (level(schedule, torch.tensor(t, dtype=torch.float64)) for t in (schedule.t_min, schedule.t_max))
    radius_low, radius_high = (math.hypot(at.alpha, at.sigma) for at in (low, high))
    batch, dims = len(x0), x0[0].numel()

    def slope(angle: float, state: Any) -> Any:
        sin, cos = math.sin(angle), math.cos(angle)
        at = level_at(schedule, angle)
        radius = math.hypot(at.alpha, at.sigma)
        y = torch.as_tensor(state[: batch * dims]).reshape(batch, dims)
        with torch.enable_grad():
            x = (radius * y).to(x0.dtype).to(x0.device).requires_grad_()
            x0_hat = denoise(x.reshape(x0.shape), at.t).reshape(batch, dims)
            found = trace(x0_hat, x)
        slopes = cos / sin * y - x0_hat.detach().cpu().double() / sin
        divergence = dims * cos / sin - radius / sin * found.cpu().double()
        return np.concatenate([slopes.reshape(-1).numpy(), divergence.numpy()])

    start = (low.alpha * x0 / radius_low).cpu().double().reshape(-1).numpy()
    angles = [math.atan2(at.sigma, at.alpha) for at in (low, high)]
    solution = solve_ivp(
        slope, angles, np.concatenate([start, np.zeros(batch)]), rtol=rtol, atol=atol, t_eval=angles[1:]
    )
    require(solution.success, f"the likelihood stopped: {solution.message}; give rtol={rtol} and atol={atol} more room")
    end = torch.as_tensor(solution.y[:, -1])
    y, gained = end[: batch * dims].reshape(batch, dims), end[batch * dims :]
    std = high.sigma / radius_high
    prior = -0.5 * (y / std).square().sum(1) - dims * math.log(std * math.sqrt(2 * math.pi))
    return prior + gained + dims * math.log(low.alpha / radius_low)
