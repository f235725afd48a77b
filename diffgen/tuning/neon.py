"""Neon: a model is led away from what training on its own samples would make of it."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffgen.build import MODEL_SIDE
from diffgen.core.errors import require
from diffgen.core.files import cache_folder
from diffgen.core.paths import setting
from diffgen.core.randomness import mix
from diffgen.core.settings import FEWEST
from diffgen.data.latents import Latents
from diffgen.evaluation.drawing import draw
from diffgen.evaluation.extractors import shared_extractor
from diffgen.evaluation.held_out import inherit, lineage
from diffgen.evaluation.reference import Reference
from diffgen.evaluation.samples import Drawn, draw_share
from diffgen.evaluation.statistics import Moments, frechet_distance
from diffgen.sampling.drawing import Sampling
from diffgen.sampling.labels import cycle_labels
from diffgen.sampling.setup import make_sampling, resolve_sampler
from diffgen.sampling.words import shown, shown_guidance
from diffgen.storage import checkpoint
from diffgen.storage.checkpoint import Checkpoint
from diffgen.storage.tensor_file import Tensors
from diffgen.tuning.job import TUNES, Job


@TUNES.register("neon")
def neon(job: Job, *, tuned: str | None, scales: tuple[float, ...], n: int) -> None:
    """Write (1 + w) ckpt - w tuned with the scale w whose samples are nearest to the data (arXiv 2510.03597).

    The Frechet distance chooses w, so it flatters the result: that it is told of is that of other seeds.

    Args:
        job: With the sampler, and the extractor whose features are compared.
        tuned: A checkpoint of a short run from ckpt on its samples.
        scales: To try; 0, the checkpoint itself, is always tried.
        n: Samples for each.
    """
    require(n >= FEWEST, f"task.n={n} is too few: metrics of images need at least {FEWEST}")
    told = f"task.scales={list(scales)} must be numbers in (0, 10], one or more"
    require(bool(scales) and all(0 < scale <= 10 for scale in scales), told)
    told = "task=neon compares pictures, and this model makes"
    require(job.trained.kind.judged and not isinstance(job.trained.kind, Latents), f"{told} {job.trained.kind.unit}")
    worse, out = _tuned(job, tuned), job.place("neon")
    ours = {name: weight.clone() for name, weight in job.saved.weights.items()}  # the network holds those themselves
    judge = Judge(job, n)
    job.reporter.header(f"diffgen-tune: {job.saved.path}", {"task": f"neon, away from {worse.path}", **judge.facts()})
    seeds = {False: mix(job.settings.seed, "neon", 0), True: job.settings.seed}
    found = {}
    for scale in (0.0, *sorted(scales)):
        found[scale] = judge.distance(extrapolated(ours, worse.weights, scale), seeds[False])
        job.reporter.say(f"w = {scale:<5g} Frechet distance {found[scale]:.4g}")
    best = min(found, key=lambda scale: found[scale])
    if best == 0:
        job.reporter.say("no scale is better than the checkpoint itself: nothing is written")
        return
    weights = extrapolated(ours, worse.weights, best)
    before, after = (judge.distance(which, seeds[True]) for which in (ours, weights))
    job.reporter.say(f"by other seeds: {before:.4g} before, {after:.4g} with w = {best:g}")
    config = {**job.saved.config, "neon": {"scale": best, "images": worse.images}}
    inherit(config, [*lineage(job.saved.config), *lineage(worse.config)])
    parts = (job.saved.autoencoder, job.saved.moments)
    checkpoint.save_model(out, config, job.saved.images, checkpoint.whole(weights, *parts))
    job.reporter.say(f"weights: {out}\nnext:    diffgen-sample {setting('ckpt', str(out))}{job.guided()}")


def extrapolated(weights: Tensors, worse: Tensors, scale: float) -> Tensors:
    """(1 + w) weights - w worse, in float64 and back; whole numbers stay."""

    def away(name: str, weight: Tensor) -> Tensor:
        if not weight.is_floating_point():
            return weight
        return ((1 + scale) * weight.double() - scale * worse[name].double()).to(weight.dtype)

    return {name: away(name, weight) for name, weight in weights.items()}


def _tuned(job: Job, tuned: str | None) -> Checkpoint:
    """The checkpoint that was trained on samples.

    Raises:
        UsageError: None is given, or it is of another model.
        CheckpointError: It cannot be read.
    """
    how = "diffgen-sample 'save=[npz]', then diffgen-train dataset=arrays train.init=RUN"
    require(tuned is not None, f"task.tuned is missing: a run that was trained on samples of ckpt ({how})")
    worse = checkpoint.load(Path(str(tuned)), "task.tuned")
    ours, theirs = map(_meaning, (job.saved.config, worse.config))
    differ = [part for part in ours if ours[part] != theirs[part]]
    told = f"task.tuned={tuned!r} is not a tuned ckpt: it has another {', '.join(differ)}"
    require(not differ, told)
    shapes = [{name: weight.shape for name, weight in saved.weights.items()} for saved in (job.saved, worse)]
    require(shapes[0] == shapes[1], f"task.tuned={tuned!r} is not a tuned ckpt: its weights have other shapes")
    same = all(torch.equal(weight, worse.weights[name]) for name, weight in job.saved.weights.items())
    require(not same, f"task.tuned={tuned!r} is not a tuned ckpt: its weights are the same")
    return worse


def _meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides what weights mean; pictures that were read otherwise, or whose classes have no names, are alike."""
    data = config["data"]
    classes = data.get("classes") or [str(number) for number in range(data.get("num_classes", 0))]
    told = {"kind": data["kind"]["name"], "size": data["size"], "classes": classes}
    return {**{part: config.get(part) for part in MODEL_SIDE if part != "data"}, **told}


class Judge:
    """Distances of samples to the training data."""

    def __init__(self, job: Job, n: int) -> None:
        splits = job.splits()
        name = str(job.dataset[0]["name"])
        cache = (Path(job.settings.cache) if job.settings.cache else cache_folder() / "eval") / name
        self.job, self.network = job, shared_extractor(job.extractor, splits, cache, job.accelerator)
        self.real = Moments.of(Reference(splits, self.network, cache).train).gaussian()
        self.config = resolve_sampler(job.sampler, job.saved, job.trained.kind)
        self.sampling: Sampling = make_sampling(
            job.settings.sampling(n), self.config, job.saved, job.trained, job.accelerator.device
        )
        self.labels = cycle_labels(n, job.trained.shape.num_classes)

    def facts(self) -> Mapping[str, str]:
        """For the header."""
        return {
            "images": f"{len(self.labels)} for each scale",
            "sampler": shown(self.config),
            "guidance": shown_guidance(self.sampling.guidance, self.job.settings.guide),
            "extractor": f"{self.network.name} {self.network.hash[:12]}",
        }

    def distance(self, weights: Tensors, seed: int) -> float:
        """Frechet distance of samples by these weights to the training data."""
        network = self.sampling.denoiser.model
        network.load_state_dict({name: weight.to(self.sampling.device) for name, weight in weights.items()})
        sampling = replace(self.sampling, seed=seed)
        job = self.job

        def share(batch: int, progress: Callable[[int], None]) -> Drawn:
            return draw_share(sampling, self.labels, self.network, job.accelerator, batch, progress)

        drawn = draw(job.settings, sampling, share, job.accelerator, job.reporter, len(self.labels))
        return frechet_distance(self.real, Moments.of(drawn.features.to(torch.float64)).gaussian())
