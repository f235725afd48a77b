"""From plain data to objects: where all tables meet."""

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diffgen.core.errors import CheckpointError, UsageError
from diffgen.core.registry import Table, bind, build, conform, parameters
from diffgen.data import DATASETS, ImageSource
from diffgen.diffusion.denoiser import Denoiser, Model
from diffgen.diffusion.parameterizations import PARAMETERIZATIONS
from diffgen.diffusion.samplers import SAMPLERS, time_grid
from diffgen.diffusion.schedules import SCHEDULES, Schedule
from diffgen.diffusion.tasks import TASKS
from diffgen.diffusion.times import TIMES
from diffgen.diffusion.weightings import WEIGHTINGS, Weighting
from diffgen.nets import MODELS, DataShape
from diffgen.nets.optimizers import OPTIMIZERS
from diffgen.storage.checkpoint import Checkpoint, assign

Config = Mapping[str, Any]

TABLES: dict[str, Table] = {
    table.group: table
    for table in (DATASETS, MODELS, OPTIMIZERS, PARAMETERIZATIONS, SAMPLERS, SCHEDULES, TASKS, TIMES, WEIGHTINGS)
}

MODEL_SIDE = ("data", "model", "schedule", "parameterization", "denoiser")
"""The parts of a config that a checkpoint carries and that decide what its weights mean."""

MAX_VALUES = 2**22
"""Of one image; a network of a few kilobytes runs on images of any size, so its weights bound no memory."""

Clip = bool | Literal["auto"]

GRID = {"steps": int, **{k: v for k, v in parameters(time_grid).items() if k != "steps"}}
"""Keys of a sampler's config that lay out its time grid; `clip` and the sampler's own options are the others."""


def make_dataset(config: Config) -> ImageSource:
    """The data set of `config["dataset"]`."""
    return build(DATASETS, config["dataset"])


def make_model(config: Config) -> nn.Module:
    """The network of `config["model"]` for the data shape of `config["data"]`."""
    keys = {**DataShape.__annotations__, "classes": tuple[str, ...]}
    data = conform("data", keys, config["data"])
    classes = data.pop("classes")
    shape = DataShape(**data)
    sides = shape.size
    sane = all(1 <= side <= 4096 for side in sides) and math.prod(sides) <= MAX_VALUES
    sane = sane and 0 <= shape.num_classes <= 100_000
    if not (sane and 0 <= shape.augment_labels <= 64):
        raise UsageError(
            f"data of {'x'.join(map(str, sides))} and {shape.num_classes} classes is out of range: dataset.size must "
            f"give at most {MAX_VALUES:,} values and sides of 4096, and there may be 100,000 classes"
        )
    if len(classes) not in (0, shape.num_classes):
        raise UsageError(f"data has {shape.num_classes} classes but {len(classes)} names")
    return build(MODELS, config["model"], shape)


def make_denoiser(config: Config, model: Model) -> Denoiser:
    """The denoiser around a network."""
    return Denoiser(
        model,
        build(SCHEDULES, config["schedule"]),
        bind(PARAMETERIZATIONS, config["parameterization"]),
        **conform("denoiser", {"sigma_data": float, "scale_input": bool}, config["denoiser"]),
    )


def make_weighting(config: Config) -> Weighting:
    """The weighting of `config["weighting"]`: a function, or a module whose parameters are to be trained."""
    row = bind(WEIGHTINGS, config["weighting"])
    return build(WEIGHTINGS, config["weighting"]) if inspect.isclass(row.func) else row


def restore(checkpoint: Checkpoint) -> Denoiser:
    """The denoiser of a checkpoint, in evaluation mode on the CPU.

    The network is built on the meta device, so a config cannot make it take memory: the weights in the file must match
    it first.

    Raises:
        CheckpointError: The config lacks a part, names something unknown, or does not match the weights.
    """
    config = checkpoint.config
    try:
        missing = [part for part in (*MODEL_SIDE, "sampler") if not isinstance(config.get(part), Mapping)]
        if missing:
            raise UsageError(f"{missing[0]} is missing")
        with torch.device("meta"):
            model = make_model(config)
        denoiser = make_denoiser(config, model)
        make_sampler(config["sampler"], denoiser.schedule)
    except UsageError as error:
        hint = "; a part of a plugin needs plugins=[...]" if "is unknown" in str(error) else ""
        raise CheckpointError(f"{checkpoint.path} is refused: its config says {str(error)[:500]}{hint}") from None
    assign(model, checkpoint.weights, checkpoint.path)
    model.eval().requires_grad_(False)
    return denoiser


def make_sampler(config: Config, schedule: Schedule) -> tuple[Callable[..., Tensor], Tensor, Clip]:
    """The sampler of a sampler's config, its time grid, and whether to clip x0_hat to [-1, 1] (or `auto`).

    Samplers check their options when they run, so this takes one step with a small image: nobody should learn of a bad
    option from the first preview of a long run.

    Raises:
        UsageError: A key or value is wrong.
    """
    own, grid, clip = sampler_settings(config)
    sampler = bind(SAMPLERS, own)
    ts = time_grid(schedule, **grid)
    zero = torch.zeros(1, 1, 8, 8, dtype=torch.float64)
    sampler(lambda x, t: x, schedule, zero, ts[[0, -1]], lambda step: zero)
    return sampler, ts, clip


def sampler_settings(config: Config) -> tuple[Config, dict[str, Any], Clip]:
    """Split a sampler's config.

    Returns:
        The sampler's own config for `bind`, the keywords of `time_grid`, and whether to clip x0_hat to [-1, 1]; `auto`
        leaves that to the denoiser.
    """
    own = {key: value for key, value in config.items() if key not in GRID and key != "clip"}
    grid = {key: config[key] for key in (*GRID, "clip") if key in config}
    values = conform("sampler", {**GRID, "clip": Clip}, grid)
    return own, values, values.pop("clip")
