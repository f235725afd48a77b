"""The facts about a run that its header tells."""

from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from diffgen.build import Config
from diffgen.core.console import clock, count
from diffgen.core.settings import TrainSettings
from diffgen.nets import DataShape


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


def optimizer(config: Config, groups: list[dict[str, Any]], base_lrs: list[float]) -> str:
    """Name and learning rates; with several, how many weight tensors and numbers each has."""
    sizes = [f" for {len(g['params'])} weights ({count(sum(p.numel() for p in g['params']))})" for g in groups]
    rates = [f"lr {lr:g}{size if len(groups) > 1 else ''}" for lr, size in zip(base_lrs, sizes, strict=True)]
    return ", ".join([config["optimizer"]["name"], *rates, config["lr_schedule"]["decay"]])


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


def gflop(network: torch.nn.Module, shape: DataShape, device: torch.device) -> float:
    """Floating-point operations of one forward pass of one image, in 1e9, two to a multiply-add."""
    x = torch.zeros(1, *shape.size, device=device)
    # the fused attention of some devices has no formula, that of plain products has: the same number everywhere
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Flops() as counter:
        network(x, torch.zeros(1, device=device), torch.zeros(1, dtype=torch.long, device=device))
    return counter.total / 1e9


class Flops(TorchDispatchMode):
    """Counts the operations in `total`, by torch's formulas.

    Its own FlopCounterMode imports the compiler first, to be left alone by it, and that takes a second.
    """

    total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils.flop_counter import flop_registry

        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result
