"""From a checkpoint and settings to what draws: its network on the device, a sampler, guidance, and a task's plan."""

import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffgen.build import Config, Trained, restore
from diffgen.core import compilation
from diffgen.core.compilation import Compiled
from diffgen.core.errors import CheckpointError, UsageError, require
from diffgen.core.registry import build, convert
from diffgen.core.settings import DrawSettings, SampleSettings
from diffgen.data.kinds import Kind
from diffgen.data.latents import Latents
from diffgen.diffusion import masking
from diffgen.diffusion.denoiser import Denoiser
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.tasks import TASKS, Finish, Plan, Run, Start, Wrap
from diffgen.sampling.drawing import Sampling
from diffgen.sampling.walk import check_sampler
from diffgen.storage import checkpoint
from diffgen.storage.autoencoder_file import supplied
from diffgen.storage.checkpoint import Checkpoint
from diffgen.storage.grid_file import caution, names_file, with_grid, without_grid

WORTH_COMPILING = 2000  # images, below which the compiler takes longer than it saves

MOST_TOLD = 2.0
"""Known frames tell more than a label: what guidance by a label wants makes other shapes of them (docs/results.md)."""


def make_sampling(
    settings: SampleSettings, sampler: Config, saved: Checkpoint, trained: Trained, device: torch.device
) -> Sampling:
    """What was trained, with the sampler and guidance that were asked for, on the device.

    Args:
        settings: How to draw.
        sampler: As `resolve_sampler` gives it.
        saved: The checkpoint.
        trained: What it holds.
        device: Where to draw.

    Raises:
        UsageError: A setting of the sampler is wrong.
        CheckpointError: It is the checkpoint's own.
    """
    denoiser = trained.denoiser
    denoiser.model.to(device)
    trained.kind.put(device)
    told = "compile=true is for a network that is called many times, and this model is an autoencoder: leave it out"
    require(settings.compile is not True or not trained.objective.codes, told)
    if not trained.objective.codes and compilation.wanted(
        settings.compile, pays=device.type == "cuda" and settings.n >= WORTH_COMPILING
    ):
        required = settings.compile is True
        denoiser.model = Compiled(denoiser.model, key="compile", required=required)
    guidance = make_guidance(settings, saved, trained, device)
    if found_for_others := caution(sampler, guidance.scale, saved.images):
        warnings.warn(found_for_others, stacklevel=2)
    try:
        return Sampling.from_config(trained, sampler, guidance=guidance, seed=settings.seed, device=device)
    except UsageError:
        check_sampler(saved, trained)  # is it the checkpoint's own that is at fault?
        raise


def resolve_sampler(config: Config, saved: Checkpoint, kind: Kind) -> dict[str, Any]:
    """The sampler's config; `auto` is the checkpoint's own with the keys that are given replaced.

    A file that its spacing names gives the grid. What has no range is not clipped to it.

    Raises:
        UsageError: The file cannot be used.
    """
    given = {key: value for key, value in config.items() if value is not None and key != "name"}
    own = saved.config["sampler"]
    if names_file(given.get("spacing")):  # which is a whole grid
        own = without_grid(own)
    chosen = {**own, **given} if config["name"] == "auto" else dict(config)
    chosen = with_grid(chosen, saved.path, saved.config["schedule"])
    return {**chosen, "clip": False} if "clip" in chosen and not kind.bounded else chosen


def make_plan(settings: SampleSettings, task: Config, sampling: Sampling) -> Plan:
    """The task's plan for this run.

    Raises:
        UsageError: The task is not for examples of this kind, or a setting is wrong.
    """
    kind, size, objective = sampling.trained.kind, sampling.trained.shape.size, sampling.trained.objective
    _check_task(str(task.get("name")), sampling.trained)

    def noise(indices: list[int], seed: int | None) -> Tensor:
        return sampling.state(sampling.noise(indices, settings.seed if seed is None else seed))

    def placed(x0: Tensor) -> Tensor:
        return x0.to(sampling.device) if objective.discrete else sampling.state(x0)

    def pictured(path: str) -> Tensor:
        return placed(kind.read(path, size))

    def start(indices: list[int], window: int = 0) -> Tensor:
        return sampling.start(sampling.noise(indices, sampling.seed_of(window)))

    def keep(x0: Tensor, free: Tensor, window: int = 0) -> tuple[Start, Wrap]:
        return objective.keep(x0, free, partial(start, window=window))

    def template(text: str, mark: str) -> tuple[Tensor, Tensor]:
        x0, free = kind.template(text, mark, size)
        return placed(x0), free.to(sampling.device)

    def noise_of(x0: Tensor, rtol: float) -> Tensor:
        return objective.noise_of(x0, sampling.denoiser, sampling.ts[0], rtol)

    def kept(image: str, mask: str) -> Finish | None:
        if not isinstance(kind, Latents):
            return None
        original, shade = kind.original(image, size), kind.shade_of_pixels(mask)
        if bool((shade > 127.5).all()):
            return None
        return lambda examples, numbers: torch.where(shade > 127.5, examples, original)

    run = Run(
        schedule=sampling.denoiser.schedule,
        ts=sampling.ts,
        noise=noise,
        picture=pictured,
        shade=lambda path: kind.shade(path, size).to(sampling.device),
        film=lambda path, first, stride: placed(kind.film(path, size, first, stride)),
        size=size,
        state=lambda noise: objective.start(noise, sampling.denoiser, sampling.ts[0]),
        noise_of=noise_of,
        original=lambda path: kind.original(path, size),
        kept=kept,
        n=settings.n,
        start=start,
        keep=keep,
        template=template,
    )
    plan: Plan = build(TASKS, task, run)
    _check_start(str(task.get("name")), plan, sampling)
    require(
        kind.tiled or kind.textual or not (plan.frames or plan.path),
        f"task={task.get('name')} is for pictures, and this model makes {kind.unit}: task=generate",
    )
    return plan


def _check_start(name: str, plan: Plan, sampling: Sampling) -> None:
    """Require new examples from noise where the first part of their way, or how to walk, is known of these alone.

    Raises:
        UsageError: They begin with something of the user's, or between others.
    """
    walk = sampling.walk
    asked = ["sampler.skip_to"] * walk.skips + ["sampler.first_step=analytic"] * (walk.first_step == "analytic")
    asked += ["sampler.weights"] * walk.weighted
    told = f"task={name} begins with others than noise, and {' and '.join(asked)} would begin from noise: leave out"
    told += " what says so, or sampler.spacing of a found grid, which does"
    require((plan.new and plan.then is None) or not asked, told)  # later windows begin with known frames


def _check_task(name: str, trained: Trained) -> None:
    """Require a task that examples of this kind, and this objective, are for; an unknown name is told elsewhere.

    Raises:
        UsageError: It is not.
    """
    facts, kind = TASKS.facts.get(name), trained.kind
    makes = f"and this model makes {kind.unit}"
    if facts is None:
        return
    require(not (facts.pictures and kind.textual), f"task={name} is for pictures, {makes}: task=infill fills in text")
    require(not facts.text or kind.textual, f"task={name} is for text, {makes}: task=inpaint fills in pictures")
    require(not facts.clips or kind.moving, f"task={name} is for clips, {makes}")
    objective = trained.objective
    require(
        not (facts.noise and objective.discrete),
        f"task={name} needs a path of Gaussian noise, {makes} by unmasking tokens: task=generate, trajectory, infill "
        "or inpaint",
    )
    told = f"task={name} needs a way from noise to pictures, and this model {objective.makes}: task=generate, "
    require(not facts.way or not objective.codes, f"{told}reconstruct or interpolate")
    told = f"task={name} is for an autoencoder, and this model {objective.makes}: give the ckpt of a run of method=vae"
    require(not facts.codes or objective.codes, told)


def make_guidance(settings: DrawSettings, saved: Checkpoint, trained: Trained, device: torch.device) -> Guidance:
    """The guidance that the settings ask for.

    `auto` is the scale of the checkpoint's previews, and where the network is told of known frames at most `MOST_TOLD`.

    Raises:
        UsageError: It is one that this objective has not, or the guide does not go with the checkpoint.
        CheckpointError: The checkpoint's own is none.
    """
    if trained.objective.codes:
        plain = settings.guidance in ("auto", 1) and not settings.guide
        given = f"guidance={settings.guidance} and guide={settings.guide}"
        require(plain, f"{given} lead a sampler on its way, and this model is an autoencoder: leave them out")
    scale, told = settings.guidance, None
    if scale == "auto":
        try:
            scale = convert("guidance", saved.config.get("guidance", 1.0), float)
        except UsageError as error:
            raise CheckpointError(f"{saved.path} is refused: its config says {error}") from None
        told = None if settings.guide else min(scale, MOST_TOLD)
    guide = make_guide(settings.guide, trained, settings.latent) if settings.guide else None
    if guide is not None:
        guide.model.to(device)  # type: ignore[attr-defined]
    low_high = settings.guidance_interval
    interval = (low_high[0], low_high[1]) if low_high else None
    guidance = Guidance(scale=scale, interval=interval, rescale=settings.guidance_rescale, guide=guide, told=told)
    if trained.objective.discrete:
        masking.check_guidance(guidance)  # before anything is drawn
    return guidance


def check_guidance(settings: DrawSettings, labels: Sequence[int], unit: str, *, tells: bool = False) -> None:
    """Require something to guide towards, or away from, where guidance is asked for.

    Args:
        settings: How to draw.
        labels: Of what is drawn, -1 for none.
        unit: What that is called.
        tells: Whether the network is told of known frames.

    Raises:
        UsageError: There is none.
    """
    require(
        settings.guidance in ("auto", 1) or possible(settings.guide, labels, tells=tells),
        f"guidance={settings.guidance} needs labels or guide=CKPT, and these {unit} have no label: guidance=1",
    )


def check_pairs(task: Config, sampling: Sampling) -> None:
    """Require what makes x0 a function of its noise, where `save=[pairs]` asks for both.

    Raises:
        UsageError: It is none.
    """
    trained, drawn = sampling.trained, []
    told = f"save=[pairs] needs a way from Gaussian noise, and this model {trained.objective.makes}: leave it out"
    require(trained.objective.path, told)
    told = (
        "save=[pairs] keeps pictures, and this model makes latents, whose autoencoder is not in that file: leave it out"
    )
    require(not isinstance(trained.kind, Latents), told)
    plain = task.get("name") == "generate" and not (sampling.plan and sampling.plan.then)
    require(plain, f"save=[pairs] keeps what noise alone becomes: task=generate, and not task={task.get('name')}")
    trial = trained.objective.trial(trained.shape.size)

    def noise(step: int) -> Tensor:
        drawn.append(step)
        return trial.noise(step)

    sampling.walk.sampler(trial.denoise, sampling.denoiser.schedule, trial.x, sampling.ts, noise)
    told = "save=[pairs] keeps the noise of the start, and this sampler adds more: sampler=heun, euler or another"
    require(not drawn, f"{told} of the ODE, with sampler.eta=0 or sampler.s_churn=0 where it has these")


def make_guide(path: str, trained: Trained, latent: str | None = None) -> Denoiser:
    """The denoiser to guide away from; `latent` is where an autoencoder is that both keep apart.

    Raises:
        UsageError: It was trained on other examples, for another objective, or by another schedule.
    """
    saved = checkpoint.load(Path(path), "guide")
    weaker = restore(saved if saved.autoencoder else supplied(saved, latent))
    told = f"guide={path!r} was trained in the latents of another autoencoder than ckpt, or scaled otherwise"
    require(_latents_of(weaker.kind) == _latents_of(trained.kind), told)
    theirs, ours = ((each.kind, replace(each.shape, augment_labels=0), each.classes) for each in (weaker, trained))
    require(
        theirs == ours,
        f"guide={path!r} was trained on {trained.kind.unit} of another shape or with other classes than ckpt",
    )
    require(weaker.objective == trained.objective, f"guide={path!r} has another objective than ckpt")
    require(
        weaker.denoiser.schedule == trained.denoiser.schedule,
        f"guide={path!r} has another noise schedule than ckpt: they cannot be combined",
    )
    return weaker.denoiser


def _latents_of(kind: Kind) -> tuple[Any, ...]:
    """What tells latents from others; empty of what are none."""
    return (kind.hash, kind.mean, kind.std) if isinstance(kind, Latents) else ()


def guides(sampling: Sampling, labels: list[int]) -> bool:
    """Whether a network call stands for two evaluations."""
    guidance = sampling.guidance
    return guidance.scale != 1 and possible(guidance.guide, labels, tells=sampling.tells)


def possible(guide: object, labels: Sequence[int], *, tells: bool) -> bool:
    """Whether there is something to guide by: a guide, a label, or known frames that the network is told of."""
    return guide is not None or any(label >= 0 for label in labels) or tells
