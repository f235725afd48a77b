"""Densities of t in training, each written as its quantile function.

A density is a map from u in (0, 1) to t that does not fall: a larger u is a noisier t. Whoever draws u decides how:
independent, or one from each of n equal strata (Kingma et al. 2021, app. I), which every density here gets for free.
"""

import torch
from torch import Tensor

from diffgen.core.errors import require
from diffgen.core.registry import Table
from diffgen.diffusion.schedules import Schedule

TIMES = Table("time")


@TIMES.register("uniform")
def uniform(u: Tensor, schedule: Schedule) -> Tensor:
    """Uniform over [t_min, t_max]; over the entries where the schedule is a table."""
    return schedule.t_min + (schedule.t_max - schedule.t_min) * u


@TIMES.register("logit_normal")
def logit_normal(u: Tensor, schedule: Schedule, *, mean: float, std: float) -> Tensor:
    """logit(t / t_max) ~ N(mean, std^2) (Esser et al. 2024, eq. 19)."""
    require(std > 0, f"time.std={std} must be positive")
    return schedule.t_max * torch.sigmoid(mean + std * torch.special.ndtri(u))


@TIMES.register("edm_lognormal")
def edm_lognormal(u: Tensor, schedule: Schedule, *, P_mean: float, P_std: float) -> Tensor:
    """log(sigma/alpha) ~ N(P_mean, P_std^2) (Karras et al. 2022, table 1), on any schedule's clock."""
    require(P_std > 0, f"time.P_std={P_std} must be positive")
    return schedule.time_at(torch.exp(P_mean + P_std * torch.special.ndtri(u)))
