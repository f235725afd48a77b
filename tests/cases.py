"""Parts built from their YAML files, for tests that go over all of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from diffgen.build import Trained
from diffgen.core.registry import Table, bind, build
from diffgen.data.kinds import Kind, Pixels
from diffgen.diffusion.denoiser import Denoiser
from diffgen.diffusion.parameterizations import PARAMETERIZATIONS
from diffgen.diffusion.samplers import SAMPLERS, time_grid
from diffgen.diffusion.schedules import SCHEDULES, Schedule
from diffgen.nets import DataShape
from diffgen.objectives import Batch, Denoise

CONFIGS = Path(__file__).parents[1] / "configs"


def config(group: str, name: str) -> dict[str, Any]:
    """One YAML file as plain data."""
    values = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text())
    return {k: float(v) if isinstance(v, str) and v[0].isdigit() else v for k, v in values.items()}


def part(table: Table, name: str, **changes: Any) -> Any:
    """The object of one YAML file, with some keys replaced."""
    return build(table, {**config(table.group, name), **changes})


def schedule(name: str, **changes: Any) -> Schedule:
    """A schedule by the name of its YAML file."""
    return part(SCHEDULES, name, **changes)


def ends_in_noise(s: Schedule) -> bool:
    """Whether alpha is 0 at its end."""
    return float(s.alpha(torch.tensor(s.t_max, dtype=torch.float64))) < 1e-12


def finite(name: str, **changes: Any) -> Schedule:
    """The same, cut where sigma/alpha is still finite."""
    return schedule(name, **({"t_max": 0.98} if ends_in_noise(schedule(name)) else {}), **changes)


SCHEDULE_NAMES = sorted(path.stem for path in (CONFIGS / "schedule").glob("*.yaml"))

ENDS_IN_NOISE = [name for name in SCHEDULE_NAMES if ends_in_noise(schedule(name))]
"""Schedules whose alpha reaches 0."""


GRID = ("steps", "spacing", "rho", "sigma_max", "sigmas", "skip_to", "first_step", "clip")


def sampler(name: str, **changes: Any) -> Callable[..., Tensor]:
    """A sampler with the options of its YAML file, some replaced."""
    own = {key: value for key, value in config("sampler", name).items() if key not in GRID}
    return bind(SAMPLERS, {**own, **changes})


def grid(s: Schedule, steps: int, spacing: str = "logsnr", sigma_max: float = 80.0) -> Tensor:
    """A time grid."""
    return time_grid(s, steps=steps, spacing=spacing, rho=7.0, sigma_max=sigma_max, sigmas=None, skip_to=None)


def singular(target: str, s: Schedule) -> bool:
    """Whether the network's output says nothing of x0 at t_max: b alpha = a sigma."""
    t = torch.tensor(s.t_max, dtype=torch.float64)
    a, b = bind(PARAMETERIZATIONS, config("parameterization", target))(s.alpha(t), s.sigma(t), 0.5)
    return bool((b * s.alpha(t) - a * s.sigma(t)).abs() < 1e-6)


def trained(denoiser: Denoiser, size: tuple[int, ...] = (1, 8, 8), kind: Kind | None = None) -> Trained:
    """A denoiser of examples of a size, pictures unless it is said, as if it had been trained."""
    return Trained(kind or Pixels(), DataShape(size), (), Denoise(), denoiser, size)


def denoising_loss(denoiser: Denoiser, weighting: Any, *batch: Tensor) -> Tensor:
    """The loss of x0, label, t, z and what augmentation did."""
    return Denoise().loss(denoiser, weighting, Batch(*batch))
