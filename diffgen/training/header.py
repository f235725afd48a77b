"""The facts about a run that its header tells, and the command that comes next."""

from pathlib import Path
from typing import Any

import torch

from diffgen.build import Config, Trained
from diffgen.core import processes, speed
from diffgen.core.console import clock, count, unit_of
from diffgen.core.paths import setting
from diffgen.core.settings import LatentSettings, TrainSettings, section
from diffgen.data import survey
from diffgen.data.latents import Latents
from diffgen.data.splits import Splits
from diffgen.training.parts import Parts


def rows(parts: Parts, forward: float, gflop: float, peak: float | None) -> dict[str, str]:
    """What will run.

    Args:
        parts: Of the run.
        forward: Cost of an example through the network, in GFLOP.
        gflop: In training.
        peak: TFLOP/s that a device can do at most, where that is known.
    """
    config, settings = parts.config, parts.settings
    world = parts.accelerator.num_processes
    batch = f"{settings.batch_size} = {world} x {parts.local_batch}" if world > 1 else f"{settings.batch_size}"
    told = {
        "data": data(parts.splits, parts.sampling.trained),
        "latents": latents(parts),
        "found": parts.dataset.found,
        "held out": parts.splits.test.found if parts.splits.by == "place" and parts.splits.test else "",
        "model": model(config, parts.network, forward, gflop, parts.dataset.kind.unit),
        "method": method(config, path=parts.objective.path, discrete=parts.objective.discrete),
        "device": processes.told(parts.accelerator),
        "batch": batch,
        "optimizer": optimizer(config, parts.optimizer.param_groups, parts.base_lrs),
        "duration": duration(settings, parts.dataset.once, parts.dataset.kind.unit),
        "cost": cost(settings, gflop, world * (peak or 0)),
        "memory": needed(parts),
        "judged": judged(settings, config),
    }
    return {name: row for name, row in told.items() if row}


def data(splits: Splits, trained: Trained) -> str:
    """Number, size and classes of the training examples, where they are kept, and how many are held out."""
    dataset, classes = splits.train, trained.shape.num_classes
    labels = f"{classes} class{'es' * (classes > 1)} ({survey.named(trained.classes)})" if classes else "no labels"
    size = ("of " if dataset.kind.textual else "") + trained.kind.sized(trained.shape.size)
    unit = unit_of(len(dataset), dataset.kind.unit)
    return f"{len(dataset):,} {unit} {size}, {labels}, {dataset.home}{held_out(splits)}"


def latents(parts: Parts) -> str:
    """Whose latents are learned from, and where they are; empty where pixels are."""
    kind = parts.dataset.kind
    if not isinstance(kind, Latents):
        return ""
    latent: LatentSettings = section(parts.config, "latent")
    apart = "" if latent.embed else "; checkpoints keep it apart"
    licence = f", licence {kind.autoencoder['licence']}" if kind.autoencoder.get("licence") else ""
    return f"of {latent.path} ({kind.hash[:12]}{licence}){apart}; {parts.dataset.home}"


def held_out(splits: Splits) -> str:
    """How many examples the data set keeps from training, if that was asked for."""
    return f", {len(splits.test):,} held out" if splits.by != "split" and splits.test else ""


def model(config: Config, network: torch.nn.Module, forward: float, gflop: float, unit: str) -> str:
    """Name, parameters and cost of the network, of one example and in training."""
    parameters = sum(p.numel() for p in network.parameters())
    cost = f"{forward:.3g} GFLOP per {unit.removesuffix('s')}, {gflop:.3g} in training"
    return f"{config['model']['name']}, {count(parameters)} parameters, {cost}"


def method(config: Config, *, path: bool, discrete: bool) -> str:
    """Schedule, parameterization, weighting, times and sampler, or what of them the objective leaves open."""
    of_noise = ("schedule", "parameterization", "weighting", "time")
    chosen = of_noise if path else ("objective", "schedule") if discrete else ("objective",)
    parts = [config[part]["name"] for part in chosen]
    sampler: dict[str, Any] = config["sampler"]
    steps = f" in {sampler['steps']} steps" if "steps" in sampler else ""
    return f"{' + '.join(parts)}, sampled by {sampler['name']}{steps}"


def optimizer(config: Config, groups: list[dict[str, Any]], base_lrs: list[float]) -> str:
    """Name and learning rates; with several, how many weight tensors and numbers each has."""
    sizes = [f" for {len(g['params'])} weights ({count(sum(p.numel() for p in g['params']))})" for g in groups]
    rates = [f"lr {lr:g}{size if len(groups) > 1 else ''}" for lr, size in zip(base_lrs, sizes, strict=True)]
    return ", ".join([config["optimizer"]["name"], *rates, config["lr_schedule"]["decay"]])


def duration(settings: TrainSettings, once: int, unit: str) -> str:
    """The limits of the run; `once` is how many examples, called `unit`, are a pass over the data."""
    limits = []
    if settings.images:
        limits.append(f"{settings.images:,} {unit_of(settings.images, unit)} ({settings.images / once:.3g} epochs)")
    if settings.minutes:
        limits.append(f"{clock(60 * settings.minutes)} of wall time")
    return " or ".join(limits)


def cost(settings: TrainSettings, gflop: float, peak: float) -> str:
    """The work of training, and the least time for it; where a clock ends the run it is not known."""
    if not settings.images or settings.minutes:
        return ""
    least = f", at least {clock(gflop * settings.images / peak / 1000)} at the peak of the hardware" if peak else ""
    return f"{speed.work(gflop * settings.images)} in all{least}"


def needed(parts: Parts) -> str:
    """Memory of what stays from step to step; what a step takes beside it is in the lines of progress."""
    kind = parts.dataset.kind
    frozen = {"the autoencoder": kind.network if isinstance(kind, Latents) else None, "LPIPS": parts.lpips}
    told = [f"{count(_bytes(parts.network) * (2 + len(parts.emas)))}B of weights, gradients and averages"]
    return ", ".join(told + [f"{count(_bytes(network))}B of {name}" for name, network in frozen.items() if network])


def _bytes(network: Any) -> int:
    return sum(p.numel() * p.element_size() for p in network.parameters())


def judged(settings: TrainSettings, config: Config) -> str:
    """How the run is evaluated on the way; empty if it is not."""
    if settings.eval_every is None:
        return ""
    how = f"{count(settings.eval_n)} images by {config['extractor']['name']}, the best by {settings.best_by} kept"
    return f"every {settings.eval_every:,} images: {how}"


def sampling(config: Config, run_dir: Path) -> str:
    """The command that samples a run, with what its checkpoints do not hold."""
    latent = config["latent"]
    needed = {
        "plugins": config["plugins"],
        "latent": None if latent["embed"] else latent["path"],
        "ckpt": run_dir,
    }
    return " ".join(["diffgen-sample", *(setting(key, value) for key, value in needed.items() if value)])
