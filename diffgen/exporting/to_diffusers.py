"""A checkpoint as a folder of diffusers: UNet2DModel, the matching scheduler, and what makes a pipeline of them.

Only what UNet2DModel and a scheduler hold exactly is written; diffusers itself is not needed.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from diffgen.build import Config, Trained
from diffgen.core.errors import UsageError
from diffgen.core.files import write_atomically, write_json, writing
from diffgen.data.kinds import Pixels
from diffgen.diffusion.denoiser import name_of
from diffgen.diffusion.schedules import DDPMLinear
from diffgen.exporting.names import layers_of, to_theirs
from diffgen.nets import DataShape, UNet, UNet2D
from diffgen.nets.unet import Attention
from diffgen.nets.unet2d import DownsamplePaddedAfter
from diffgen.sampling.drawing import amplifies_errors
from diffgen.sampling.walk import check_sampler, sampler_settings
from diffgen.storage.checkpoint import Checkpoint
from diffgen.storage.tensor_file import on_cpu, save_tensors

PREDICTIONS = {"eps": "epsilon", "x0": "sample", "v": "v_prediction"}
"""Parameterizations by diffusers' names."""

ENTRIES = 1000
"""Of a table of betas: for this number the two count the steps of the time embedding alike."""

FULL = 0.9999
"""The size of noise that passes for 1, where a pipeline starts."""

HELD = {"patch": 1, "resample": "conv", "skip_scale": 1.0, "decoder_attention": "all"}
"""The settings of `unet` that UNet2DModel has one value of."""

VERSION = "0.35.0"
"""Of diffusers, whose words the configs are in."""

README = """# For diffusers

Written by diffgen-export from {path}, {images:,} images seen.

    from diffusers import DDPMPipeline
    pipeline = DDPMPipeline.from_pretrained("THIS FOLDER")
    images = pipeline(batch_size=16, num_inference_steps={steps}).images

{alike}
"""

ALIKE = (
    "From the same noise these are the images of diffgen-sample with {sampler} sampler.clip={clip} "
    "sampler.spacing=uniform and {steps}."
)
ANY_STEPS, ALL_STEPS = "the same sampler.steps, where that divides 1000", "sampler.steps=1000"


def write(folder: Path, saved: Checkpoint, trained: Trained) -> list[str]:
    """Write the pipeline's folder.

    Args:
        folder: Empty.
        saved: The checkpoint.
        trained: What it holds.

    Returns:
        What to tell the user.

    Raises:
        UsageError: diffusers has no place for a part of it; the sentence names each.
    """
    wrong = list(misfits(saved.config, trained))
    if wrong:
        raise UsageError(f"format=diffusers cannot hold {saved.path}: {'; '.join(wrong)}. format=onnx or torch can")
    settings = saved.config["model"]
    scheduler, alike = scheduler_config(saved, trained)
    with writing(folder):
        for part in ("unet", "scheduler"):
            (folder / part).mkdir()
        renamed = to_theirs(saved.weights, layers_of(settings))
        path = folder / "unet" / "diffusion_pytorch_model.safetensors"
        save_tensors(on_cpu(renamed), path, {"format": "pt"})
    write_json(folder / "unet" / "config.json", unet_config(settings, trained))
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(folder / "model_index.json", index(scheduler["_class_name"]))
    steps = saved.config["sampler"]["steps"]
    steps = steps if ENTRIES % steps == 0 and ALL_STEPS not in alike else ENTRIES
    about = {"path": saved.path, "images": saved.images, "steps": steps}
    write_atomically(folder / "README.md", README.format(**about, alike=alike))
    return [alike]


def index(scheduler: str) -> dict[str, Any]:
    """What DDPMPipeline is made of."""
    parts = {"scheduler": ["diffusers", scheduler], "unet": ["diffusers", "UNet2DModel"]}
    return {"_class_name": "DDPMPipeline", "_diffusers_version": VERSION, **parts}


# --- what fits ----------------------------------------------------------------------------------------------------


def misfits(config: Config, trained: Trained) -> Iterator[str]:
    """What neither UNet2DModel nor a scheduler of betas can hold."""
    denoiser, network = trained.denoiser, trained.denoiser.model
    schedule, target = denoiser.schedule, name_of(denoiser.parameterization)
    if not (isinstance(schedule, DDPMLinear) and schedule.steps == ENTRIES):
        yield f"its schedule is no table of {ENTRIES} linear betas (schedule=ddpm_linear)"
    elif (end := float(schedule.sigma(torch.tensor(1.0, dtype=torch.float64)))) < FULL:
        yield f"its schedule ends at sigma={end:.4f}, and a pipeline starts from noise of size 1 (schedule.beta_end)"
    if target not in PREDICTIONS:
        yield f"parameterization={target} is none of [{', '.join(PREDICTIONS)}]"
    if denoiser.scale_input:
        yield "its network sees scaled inputs (denoiser.scale_input=true)"
    if config["objective"]["name"] != "denoise":
        yield f"objective={config['objective']['name']} is no denoiser's"
    if type(trained.kind) is not Pixels:
        yield f"it makes {trained.kind.unit}, not pictures"
    if trained.shape.num_classes:
        yield "its labels enter before the layers of the time embedding, UNet2DModel's after them (conditional=false)"
    if trained.shape.augment_labels:
        yield "it is told of augmentation (train.augment)"
    if trained.shape.given:
        yield "it is told of known frames (train.known_frames)"
    if isinstance(network, UNet) and type(network) in (UNet, UNet2D):
        yield from _misfits_of_unet(network, config["model"], trained.shape)
    else:
        yield f"its network is a {type(network).__name__}, not a UNet"


def _misfits_of_unet(network: UNet, settings: Config, shape: DataShape) -> Iterator[str]:
    for key, held in HELD.items():
        if settings.get(key, held) != held:
            yield f"UNet2DModel has model.{key}={held} alone, and this is {settings[key]}"
    halvings = len(settings["channel_mult"]) - 1
    if shape.height % 2**halvings or shape.width % 2**halvings:
        yield f"UNet2DModel cannot halve {shape.height}x{shape.width} images {halvings} times"
    groups = sorted({norm.num_groups for norm in norms(network)})
    if len(groups) > 1:
        yield f"its norms have {groups} groups, and UNet2DModel one number for all (model=unet2d, or channels of 128)"
    if len(head_widths(network)) > 1:
        yield f"its attention heads differ in width from level to level (model.heads={settings['heads']})"


def norms(network: nn.Module) -> list[nn.GroupNorm]:
    """All group norms."""
    return [module for module in network.modules() if isinstance(module, nn.GroupNorm)]


def head_widths(network: nn.Module) -> set[int | None]:
    """Channels of the attention heads; None where each is one head of all."""
    attention = [module for module in network.modules() if isinstance(module, Attention)]
    return {None if each.heads == 1 else each.norm.num_channels // each.heads for each in attention}


# --- configs ------------------------------------------------------------------------------------------------------


def unet_config(settings: dict[str, Any], trained: Trained) -> dict[str, Any]:
    """config.json of a network without misfits."""
    network: Any = trained.denoiser.model
    shape, norm = trained.shape, norms(network)[0]
    heights = [shape.height // 2**level for level in range(len(settings["channel_mult"]))]
    kinds = ["Attn" if height in settings["attention_resolutions"] else "" for height in heights]
    padded_after = any(isinstance(layer, DownsamplePaddedAfter) for layer in network.encoder)
    square = shape.height == shape.width
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": VERSION,
        "sample_size": shape.height if square else [shape.height, shape.width],
        "in_channels": shape.channels,
        "out_channels": shape.channels,
        "flip_sin_to_cos": True,
        "freq_shift": network.embedding.sinusoidal.shift,
        "down_block_types": [f"{kind}DownBlock2D" for kind in kinds],
        "up_block_types": [f"{kind}UpBlock2D" for kind in reversed(kinds)],
        "block_out_channels": [settings["channels"] * mult for mult in settings["channel_mult"]],
        "layers_per_block": settings["blocks"],
        "downsample_padding": 0 if padded_after else 1,
        "dropout": settings["dropout"],
        "act_fn": "silu",
        "attention_head_dim": next(iter(head_widths(network))),
        "norm_num_groups": norm.num_groups,
        "norm_eps": norm.eps,
    }


def scheduler_config(saved: Checkpoint, trained: Trained) -> tuple[dict[str, Any], str]:
    """scheduler_config.json, and by which sampler of diffgen's it draws.

    A DDIMScheduler keeps the direction of the network's own noise where it clips, and diffgen that of the clipped
    image; so it stands for `ddim` where nothing is clipped, and DDPM's scheduler for all else.
    """
    own, schedule = saved.config["sampler"], trained.denoiser.schedule
    assert isinstance(schedule, DDPMLinear)
    check_sampler(saved, trained)
    clip = sampler_settings(own)[2]["clip"]
    clip = amplifies_errors(trained.denoiser) if clip == "auto" else clip
    config = {
        "_diffusers_version": VERSION,
        "num_train_timesteps": ENTRIES,
        "beta_start": schedule.beta_start,
        "beta_end": schedule.beta_end,
        "beta_schedule": "linear",
        "rescale_betas_zero_snr": schedule.zero_terminal_snr,
        "prediction_type": PREDICTIONS[name_of(trained.denoiser.parameterization)],
        "clip_sample": clip,
        "timestep_spacing": "trailing",
    }
    if own["name"] == "ddim" and own["eta"] == 0 and not clip:
        alike = ALIKE.format(sampler="sampler=ddim", clip="false", steps=ANY_STEPS)
        return {"_class_name": "DDIMScheduler", **config}, alike
    variance = own["variance"] if own["name"] == "ancestral" else "small"
    steps = ANY_STEPS if variance == "small" else ALL_STEPS  # with fewer, theirs adds noise to the image itself
    sampler = f"sampler=ancestral sampler.variance={variance}"
    alike = ALIKE.format(sampler=sampler, clip=str(clip).lower(), steps=steps)
    return {"_class_name": "DDPMScheduler", **config, "variance_type": f"fixed_{variance}"}, alike
