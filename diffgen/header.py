"""The facts about a run that its header tells."""

from typing import Any

import torch

from diffgen.build import Config, make_model
from diffgen.console import clock, count
from diffgen.settings import TrainSettings


def data(config: Config, images: int, home: str) -> str:
    """Number, size and classes of the training images, and where they are kept."""
    shape = config["data"]
    labels = f"{shape['num_classes']} classes" if shape["num_classes"] else "no labels"
    kind = "images" if shape["pixels"] else "vectors"
    return f"{images:,} {kind} {shape['channels']}x{shape['height']}x{shape['width']}, {labels}, {home}"


def model(config: Config, network: torch.nn.Module, gflop: float) -> str:
    """Name, parameters and cost of the network; `gflop` is that of an image in training."""
    parameters = sum(p.numel() for p in network.parameters())
    cost = f"{gflop / 3:.3g} GFLOP per image, {gflop:.3g} in training"
    return f"{config['model']['name']}, {count(parameters)} parameters, {cost}"


def method(config: Config) -> str:
    """Schedule, parameterization, weighting, times and sampler."""
    parts = [config[part]["name"] for part in ("schedule", "parameterization", "weighting", "time")]
    sampler: dict[str, Any] = config["sampler"]
    return f"{' + '.join(parts)}, sampled by {sampler['name']} in {sampler['steps']} steps"


def duration(settings: TrainSettings, images: int) -> str:
    """The limits of the run."""
    limits = []
    if settings.images:
        limits.append(f"{settings.images:,} images ({settings.images / images:.3g} epochs)")
    if settings.minutes:
        limits.append(f"{clock(60 * settings.minutes)} of wall time")
    return " or ".join(limits)


def judged(settings: TrainSettings, config: Config) -> str:
    """How the run is evaluated on the way; empty if it is not."""
    if settings.eval_every is None:
        return ""
    how = f"{count(settings.eval_n)} images by {config['extractor']['name']}, the best by {settings.best_by} kept"
    return f"every {settings.eval_every:,} images: {how}"


def gflop(config: Config) -> float:
    """Floating-point operations of one forward pass of one image, in 1e9, two to a multiply-add."""
    from torch.utils.flop_counter import FlopCounterMode

    shape = config["data"]
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = make_model(config)
        x = torch.zeros(1, shape["channels"], shape["height"], shape["width"])
        network(x, torch.zeros(1), torch.zeros(1, dtype=torch.long))
    return counter.get_total_flops() / 1e9
