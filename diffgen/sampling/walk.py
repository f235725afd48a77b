"""How a sampler walks, from its config: its row, its time grid, and what stands beside them."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from diffgen.build import Config, Trained, refused
from diffgen.core.errors import require, unknown
from diffgen.core.registry import bind, conform, parameters
from diffgen.diffusion.samplers import time_grid
from diffgen.diffusion.schedules import Schedule
from diffgen.objectives import Objective
from diffgen.storage.checkpoint import Checkpoint

Clip = bool | Literal["auto"]
FirstStep = Literal["network", "analytic"]

GRID = {"steps": int, **{k: v for k, v in parameters(time_grid).items() if k != "steps"}}
"""Keys of a sampler's config that lay out its time grid."""

OF_WALK = {**GRID, "first_step": FirstStep, "clip": Clip}
"""Keys that all samplers of Gaussian noise have; a sampler's own options are the others."""


class Walk(NamedTuple):
    """How a sampler walks.

    Attributes:
        sampler: A row of the objective's table with its settings bound.
        ts: Its time grid.
        clip: Whether x0_hat is clipped to [-1, 1]; `auto` leaves that to the denoiser.
        skips: Whether the path down to ts[0] is that of Gaussian data.
        first_step: Who answers its first call.
        weighted: Whether its steps have weights that were fitted to the whole path.
    """

    sampler: Callable[..., Tensor]
    ts: Tensor
    clip: Clip = False
    skips: bool = False
    first_step: FirstStep = "network"
    weighted: bool = False


def make_sampler(config: Config, schedule: Schedule, objective: Objective) -> Walk:
    """What a sampler's config says.

    Samplers check their options when they run, so this takes one step without a network, or all that have weights:
    nobody should learn of a bad option from the first preview of a long run.

    Args:
        config: Of the sampler.
        schedule: Whose clock it walks by.
        objective: Whose samplers there are.

    Raises:
        UsageError: A key or value is wrong.
    """
    name = config.get("name")
    require(name in objective.samplers, unknown(f"sampler.name={name!r}", objective.samplers) + _whose(objective))
    if not objective.path:  # these lay out their own steps, which are of a chance and not of noise, or take one
        walk = Walk(bind(objective.samplers, config), torch.tensor([schedule.t_max, 0.0]).double())
    else:
        own, grid, rest = sampler_settings(config)
        ts = time_grid(schedule, **grid)
        skips, weighted = grid["skip_to"] is not None, own.get("weights") is not None
        walk = Walk(bind(objective.samplers, own), ts, skips=skips, weighted=weighted, **rest)
    trial = objective.trial((8,))
    told = "sampler.first_step=analytic leaves no network call in one step: sampler.steps must be 2 or more"
    require(walk.first_step == "network" or len(walk.ts) > 2, told)
    ts = walk.ts if walk.weighted else walk.ts[[0, -1]]
    walk.sampler(trial.denoise, schedule, trial.x, ts, trial.noise)
    return walk


def _whose(objective: Objective) -> str:
    return "" if objective.path else f"; this model {objective.makes}"


def sampler_settings(config: Config) -> tuple[Config, dict[str, Any], dict[str, Any]]:
    """Split a sampler's config.

    Returns:
        The sampler's own config for `bind`, the keywords of `time_grid`, and `clip` and `first_step`.
    """
    own = {key: value for key, value in config.items() if key not in OF_WALK}
    values = conform("sampler", OF_WALK, {key: config[key] for key in OF_WALK if key in config})
    return own, {key: values.pop(key) for key in GRID}, values


def check_sampler(checkpoint: Checkpoint, trained: Trained) -> None:
    """Require that a checkpoint's own sampler can be built; `restore` leaves that to who wants to use it.

    Raises:
        CheckpointError: It cannot.
    """
    with refused(checkpoint):
        make_sampler(checkpoint.config["sampler"], trained.denoiser.schedule, trained.objective)
