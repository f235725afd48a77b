"""Where the steps of a sampler end."""

import torch
from torch import Tensor

from diffgen.core.errors import require
from diffgen.diffusion.samplers.steps import PURE_NOISE
from diffgen.diffusion.schedules import Schedule


def time_grid(
    schedule: Schedule,
    *,
    steps: int,
    spacing: str,
    rho: float,
    sigma_max: float,
    sigmas: tuple[float, ...] | None,
    skip_to: float | None,
) -> Tensor:
    """The times at which a sampler stops, from t_max, or from `skip_to`, down to 0 (data).

    Args:
        schedule: Whose clock to use.
        steps: Number of steps, >= 1.
        spacing: `uniform` in t; `quadratic`, uniform in sqrt(t) (Song et al. 2021, DDIM); `karras`, uniform in
            (sigma/alpha)^(1/rho) from t_max to t_min, then 0 (Karras et al. 2022, eq. 5); `logsnr`, uniform in
            log(sigma/alpha), then 0; `inner`, as `karras` with one step more but for the node at t_min, for samplers
            that go to data from every node; `auto`, the one that suits the schedule's clock.
        rho: Exponent of `karras` and `inner`.
        sigma_max: Largest sigma/alpha that `karras`, `inner` and `logsnr` place nodes at; the first is t_max anyhow.
        sigmas: Falling values of sigma/alpha instead of all that (1e9 for pure noise); the step to 0 is added.
        skip_to: sigma/alpha of the first node, below that of t_max; who asks for it knows how to get there
            (`diffusion.gaussian`). With `sigmas`, the first of these.

    Returns:
        Falling times [steps + 1] in float64; the last is exactly 0.

    Raises:
        UsageError: An argument is out of range, or `sigmas` leaves the range that the network was trained in.
    """
    start = schedule.t_max if skip_to is None else _time_of(schedule, skip_to)
    if sigmas is not None:
        told = f"sampler.skip_to={skip_to} is not where sampler.sigmas={list(sigmas)} begin: leave one of them out"
        require(skip_to is None or sigmas[:1] == (skip_to,), told)
        return _sound(schedule, _listed(schedule, sigmas))
    kinds = ("uniform", "quadratic", "karras", "logsnr", "inner")
    spacing = schedule.spacing if spacing == "auto" else spacing
    require(1 <= steps <= 100_000, f"sampler.steps={steps} must be in [1, 100000]")
    require(rho > 0, f"sampler.rho={rho} must be positive")
    told = f"sampler.spacing={spacing!r} is unknown; choose one of [auto, {', '.join(kinds)}]"
    require(spacing in kinds, f"{told}, or a grid that diffgen-tune found: tuned, or PATH.json")
    if spacing in ("uniform", "quadratic"):
        ts = _clock_nodes(schedule, start, steps, power=2 if spacing == "quadratic" else 1)
    else:
        ts = schedule.time_at(_nsr_nodes(schedule, start, steps, spacing, rho, sigma_max))
    ts = ts.clamp(min=schedule.t_min)
    ts[0] = start  # also where sigma/alpha is infinite there
    return _sound(schedule, torch.cat([ts, torch.zeros_like(ts[:1])]))


def _sound(schedule: Schedule, ts: Tensor) -> Tensor:
    """Refuse what extreme settings make of a grid: NaN, and nodes after the first where x is noise or data alone."""
    require(bool((ts.diff() <= 0).all()), "sampler.rho, sampler.sigma_max or the schedule leave no falling times")
    nsr = schedule.sigma(ts[1:-1]) / schedule.alpha(ts[1:-1])
    inside = bool(((nsr > 1 / PURE_NOISE) & (nsr < PURE_NOISE)).all())
    require(inside, f"sampler or schedule put nodes outside sigma/alpha = [{1 / PURE_NOISE:g}, {PURE_NOISE:g}]")
    return ts


def _listed(schedule: Schedule, sigmas: tuple[float, ...]) -> Tensor:
    nsr = torch.tensor(sigmas, dtype=torch.float64)
    falls = len(nsr) > 0 and bool((nsr.diff() < 0).all()) and bool(nsr[-1] > 0)
    require(falls, f"sampler.sigmas={list(sigmas)} must fall and stay above 0; the step to 0 is added")
    ts = schedule.time_at(nsr)
    low, high = schedule.t_min, schedule.t_max
    inside = bool(ts[-1] > low * (1 - 1e-6)) and bool(ts[0] < high * (1 + 1e-6))
    require(inside, f"sampler.sigmas={list(sigmas)} must lie in {_range(schedule)}, where the network was trained")
    return torch.cat([ts.clamp(low, high), torch.zeros_like(ts[:1])])


def _time_of(schedule: Schedule, skip_to: float) -> float:
    """The time of a level between the ends of the clock."""
    t = float(schedule.time_at(torch.tensor(skip_to, dtype=torch.float64))) if skip_to > 0 else 0.0
    inside = schedule.t_min < t < schedule.t_max
    require(inside, f"sampler.skip_to={skip_to:g} must be inside {_range(schedule)}, where the network was trained")
    return t


def _range(schedule: Schedule) -> str:
    ends = torch.tensor([schedule.t_min, schedule.t_max], dtype=torch.float64)
    low, high = (schedule.sigma(ends) / schedule.alpha(ends)).tolist()
    return f"[{low:.4g}, {high:.4g}]"


def _clock_nodes(schedule: Schedule, start: float, steps: int, power: int) -> Tensor:
    """Uniform in t^(1/power) from the start to 0, exclusive; to t_min where the last node would fall below it."""
    high, low = start ** (1 / power), schedule.t_min ** (1 / power)
    nodes = torch.linspace(high, 0, steps + 1, dtype=torch.float64)[:-1]
    if nodes[-1] < low * (1 - 1e-9):
        nodes = torch.linspace(high, low, steps, dtype=torch.float64)
    return nodes**power


def _nsr_nodes(schedule: Schedule, start: float, steps: int, spacing: str, rho: float, sigma_max: float) -> Tensor:
    ends = torch.tensor([start, schedule.t_min], dtype=torch.float64)
    high, low = schedule.sigma(ends) / schedule.alpha(ends)
    high = high.clamp(max=sigma_max)
    require(bool(high > low), f"sampler.sigma_max={sigma_max} must be above sigma/alpha at t_min, {float(low):g}")
    inner = spacing == "inner"
    ramp = torch.linspace(0, 1, steps + inner, dtype=torch.float64)[:steps]
    if spacing == "logsnr":
        return torch.exp(torch.lerp(high.log(), low.log(), ramp))
    return torch.lerp(high ** (1 / rho), low ** (1 / rho), ramp) ** rho
