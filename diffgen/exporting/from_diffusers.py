"""A folder of diffusers as a checkpoint: UNet2DModel with DDPMScheduler or DDIMScheduler.

Every value of its configs is held exactly or refused. What a config does not say has diffusers' default.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffgen.build import Config, make_model, restore
from diffgen.core.errors import CheckpointError, require, typed, unknown
from diffgen.core.registry import named
from diffgen.data.kinds import KINDS, Pixels
from diffgen.exporting.foreign import CONFIG, SCHEDULER, WEIGHTS, Keys, find_unet, read_config, read_weights, refusing
from diffgen.exporting.names import layers_of, to_ours
from diffgen.exporting.to_diffusers import ENTRIES, PREDICTIONS
from diffgen.sampling.walk import check_sampler
from diffgen.storage.checkpoint import Checkpoint
from diffgen.storage.tensor_file import Tensors

UNET = Keys(
    classes=("UNet2DModel",),
    read={
        "sample_size": (int | tuple[int, ...] | None, None),
        "in_channels": (int, 3),
        "out_channels": (int, 3),
        "freq_shift": (float, 0.0),
        "flip_sin_to_cos": (bool, True),
        "down_block_types": (tuple[str, ...], ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"]),
        "up_block_types": (tuple[str, ...], ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"]),
        "block_out_channels": (tuple[int, ...], [224, 448, 672, 896]),
        "layers_per_block": (int, 2),
        "downsample_padding": (int, 1),
        "dropout": (float, 0.0),
        "attention_head_dim": (int | None, 8),
        "norm_num_groups": (int, 32),
        "norm_eps": (float, 1e-5),
        "time_embedding_dim": (int | None, None),
        "attn_norm_num_groups": (int | None, None),
    },
    fixed={
        "center_input_sample": (False,),
        "time_embedding_type": ("positional",),
        "mid_block_type": ("UNetMidBlock2D",),
        "mid_block_scale_factor": (1,),
        "downsample_type": ("conv",),
        "upsample_type": ("conv",),
        "act_fn": ("silu", "swish"),
        "resnet_time_scale_shift": ("default",),
        "add_attention": (True,),
        "class_embed_type": (None,),
        "num_class_embeds": (None,),
        "num_train_timesteps": (None,),
    },
)

SCHEDULE = Keys(
    classes=("DDPMScheduler", "DDIMScheduler"),
    read={
        "beta_start": (float, 1e-4),
        "beta_end": (float, 0.02),
        "variance_type": (str, "fixed_small"),
        "clip_sample": (bool, True),
        "clip_sample_range": (float, 1.0),
        "prediction_type": (str, "epsilon"),
        "rescale_betas_zero_snr": (bool, False),
    },
    fixed={
        "num_train_timesteps": (ENTRIES,),
        "beta_schedule": ("linear",),
        "trained_betas": (None,),
        "thresholding": (False,),
    },
    unread=(
        *("timestep_spacing", "steps_offset", "set_alpha_to_one"),  # where the steps are: sampler.* says it here
        *("dynamic_thresholding_ratio", "sample_max_value"),  # of thresholding=true
    ),
)

VARIANCES = {"fixed_small": "small", "fixed_small_log": "small", "fixed_large": "large"}
"""Of a DDPMScheduler, by diffgen's names."""

CLIPPED = (
    "DDIMScheduler keeps the direction of the network's own noise where it clips, and sampler=ddim that of the clipped "
    "image: from the same noise the two draw images that differ a little"
)

PADDINGS = {0: "after", 1: "both"}


@dataclass(frozen=True)
class Found(Checkpoint):
    """The checkpoint of a folder, and what to tell of how it was read."""

    notes: list[str]


def read(folder: Path, samplers: Mapping[str, Config]) -> Found:
    """A folder of diffusers as a checkpoint: a pipeline's, or that of its network alone.

    Args:
        folder: The folder; without a scheduler's config it is taken for DDPM's.
        samplers: Configs of `ancestral` and `ddim`, which stand for DDPM's scheduler and DDIM's.

    Raises:
        CheckpointError: It is missing, damaged, foreign or hostile, or holds what diffgen's networks and schedules do
            not; the sentence names key, value and what is held.
    """
    home = find_unet(folder)
    try:
        _, unet = read_config(home / CONFIG, UNET)
        with refusing(home / CONFIG):
            parts = {"data": data_config(unet), "model": model_config(unet)}
            with torch.device("meta"):
                make_model(parts)  # which bounds its layers, before a list is made of them
        diffusion, notes = read_scheduler(folder, home, samplers)
        weights = to_ours(read_weights(home / WEIGHTS), layers_of(parts["model"]))
    except OSError as error:
        raise CheckpointError(f"ckpt={str(folder)!r} cannot be read: {error.strerror}") from None
    if not unet["flip_sin_to_cos"]:
        weights = cosines_first(weights)
    found = Found(home / WEIGHTS, {**parts, **diffusion}, 0, weights, notes)
    check_sampler(found, restore(found))
    return found


def cosines_first(weights: Tensors) -> Tensors:
    """The time embedding's first layer for cos and sin in diffgen's order, where the file's is the other."""
    name = "embedding.layer0.weight"
    return weights | {name: torch.cat(weights[name].chunk(2, dim=1)[::-1], dim=1)} if name in weights else weights


# --- the network --------------------------------------------------------------------------------------------------


def data_config(unet: Config) -> dict[str, Any]:
    """What the examples are: pictures without labels."""
    size, channels = unet["sample_size"], unet["in_channels"]
    sides = [size, size] if isinstance(size, int) else list(size or ())
    require(len(sides) == 2, f"sample_size={typed(size)} must be a side or [height, width]")
    require(unet["out_channels"] == channels, f"out_channels={unet['out_channels']} must be in_channels={channels}")
    shape = {"size": [channels, *sides], "num_classes": 0, "augment_labels": 0}
    return {"kind": named(KINDS, Pixels()), **shape, "classes": []}


def model_config(unet: Config) -> dict[str, Any]:
    """The settings of `unet2d`.

    Raises:
        UsageError: It has no such settings.
    """
    widths, groups = unet["block_out_channels"], unet["norm_num_groups"]
    require(bool(widths) and widths[0] > 0, f"block_out_channels={list(widths)} must be numbers above 0")
    require(
        all(width % widths[0] == 0 for width in widths),
        f"block_out_channels={list(widths)} must be multiples of the first: diffgen's widths are",
    )
    for key, held in {"time_embedding_dim": 4 * widths[0], "attn_norm_num_groups": groups}.items():
        require(unet[key] in (None, held), f"{key}={unet[key]} has no place in diffgen, which does {held}")
    padding = unet["downsample_padding"]
    require(padding in PADDINGS, f"downsample_padding={padding} must be one of {list(PADDINGS)}")
    return {
        "name": "unet2d",
        "channels": widths[0],
        "channel_mult": [width // widths[0] for width in widths],
        "blocks": unet["layers_per_block"],
        "attention_resolutions": attention_resolutions(unet),
        "head_channels": unet["attention_head_dim"],
        "dropout": unet["dropout"],
        "groups": groups,
        "eps": unet["norm_eps"],
        "padding": PADDINGS[padding],
        "frequency_shift": unet["freq_shift"],
    }


def attention_resolutions(unet: Config) -> list[int]:
    """The heights of the levels that attend, which must be the same going down and up.

    Raises:
        UsageError: They differ, or a block is of another type.
    """
    down, up = unet["down_block_types"], unet["up_block_types"]
    for key, kind in (("down_block_types", "DownBlock2D"), ("up_block_types", "UpBlock2D")):
        for name in unet[key]:
            require(name in (kind, f"Attn{kind}"), unknown(f"{key}={name!r}", (kind, f"Attn{kind}")))
    require(
        len(down) == len(up) == len(unet["block_out_channels"]),
        f"down_block_types, up_block_types and block_out_channels are of {len(down)}, {len(up)} and "
        f"{len(unet['block_out_channels'])} levels",
    )
    attends = [name.startswith("Attn") for name in down]
    require(
        attends == [name.startswith("Attn") for name in reversed(up)],
        f"up_block_types={list(up)} must attend on the levels of down_block_types={list(down)}: diffgen's decoder does",
    )
    size = unet["sample_size"]
    height = size[0] if isinstance(size, tuple) and size else size
    return [int(height or 0) // 2**level for level, attending in enumerate(attends) if attending]


# --- the schedule -------------------------------------------------------------------------------------------------


def read_scheduler(folder: Path, home: Path, samplers: Mapping[str, Config]) -> tuple[dict[str, Any], list[str]]:
    """What a scheduler's config says, and what to tell of it; where there is none, it is DDPM's by default."""
    places = (folder / "scheduler" / SCHEDULER, home / SCHEDULER, home.parent / "scheduler" / SCHEDULER)
    path = next((path for path in places if path.exists()), None)
    if path is None:
        note = f"no {SCHEDULER} is there: the network is taken to predict noise, by the linear betas of DDPM"
        return diffusion_config("DDPMScheduler", SCHEDULE.defaults, samplers), [note]
    name, scheduler = read_config(path, SCHEDULE)
    notes = [CLIPPED] if name == "DDIMScheduler" and scheduler["clip_sample"] else []
    with refusing(path):
        return diffusion_config(name, scheduler, samplers), notes


def diffusion_config(name: str, scheduler: Config, samplers: Mapping[str, Config]) -> dict[str, Any]:
    """Schedule, parameterization and sampler.

    Raises:
        UsageError: diffgen has none such.
    """
    targets = {theirs: ours for ours, theirs in PREDICTIONS.items()}
    prediction, variance, clip = (scheduler[key] for key in ("prediction_type", "variance_type", "clip_sample"))
    require(prediction in targets, unknown(f"prediction_type={prediction!r}", targets))
    require(variance in VARIANCES, unknown(f"variance_type={variance!r}", VARIANCES))
    reach = scheduler["clip_sample_range"]
    require(not clip or reach == 1, f"clip_sample_range={reach:g} has no place in diffgen, which clips at 1")
    sampler = {**samplers["ddim"], "clip": clip}
    if name == "DDPMScheduler":
        sampler = {**samplers["ancestral"], "clip": clip, "variance": VARIANCES[variance]}
    betas = {key: scheduler[key] for key in ("beta_start", "beta_end")}
    noise = {"steps": ENTRIES, **betas, "zero_terminal_snr": scheduler["rescale_betas_zero_snr"]}
    return {
        "objective": {"name": "denoise"},
        "schedule": {"name": "ddpm_linear", **noise},
        "parameterization": {"name": targets[prediction]},
        "denoiser": {"sigma_data": 0.5, "scale_input": False},
        "sampler": sampler,
        "guidance": 1.0,
    }
