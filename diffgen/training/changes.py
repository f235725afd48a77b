"""What differs between a run and the checkpoint that it goes on from, and what of it stands in the way."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diffgen.build import MODEL_SIDE, Config
from diffgen.core.errors import CheckpointError, typed
from diffgen.core.paths import setting
from diffgen.core.settings import LrSchedule, TrainSettings, section
from diffgen.evaluation import held_out
from diffgen.storage.run_directory import begin_from

FREE = ("run_dir", "train.resume", "plugins", "logger")
"""Keys that say where a run is kept and who is told of it; a difference is not worth telling."""

AVERAGES = ("ema.profile", "ema.sigma_rel")
"""Keys that say which averages there are: one that is new would know nothing of the run so far."""

HELD_OUT = tuple(f"dataset.{key}" for key in held_out.NOTHING)
"""Keys that say what a run has never seen."""

TYPED = {
    "data": ("dataset", "conditional", "train.augment", "train.known_frames"),
    **dict.fromkeys(("schedule", "parameterization", "denoiser"), ("method",)),
}
"""What people type that changes a part on which weights depend."""

ABSENT, SHOWN, LONGEST = "absent", 5, 60


def compare(here: Config, there: Config, folder: Path) -> list[str]:
    """What differs between this run's config and that of the checkpoint it goes on from, in words.

    Raises:
        CheckpointError: The parts that give the weights their meaning differ; the sentence lists the keys.
    """
    now, then = flatten(here), flatten(there)
    free = FREE if now.get("train.eval_every") else (*FREE, "extractor")  # whose features would be compared
    differ = [key for key in sorted({*now, *then}) if now.get(key) != then.get(key) and not _under(key, free)]
    held = (*MODEL_SIDE, *AVERAGES) if "power" in (now.get(AVERAGES[0]), then.get(AVERAGES[0])) else MODEL_SIDE
    _check_latents(now, then, folder)
    if any(_under(key, held) for key in differ):
        keys = differences(here, there, held)
        raise CheckpointError(
            f"cannot go on from {folder}: it was trained with another {keys}; {begin_from(folder)}, in another run_dir"
        )
    if _apart(here) != _apart(there):
        keys = differences(here, there, HELD_OUT)
        raise CheckpointError(
            f"cannot go on from {folder}: it was trained with another {keys}, and what it has seen cannot be held out; "
            f"{begin_from(folder)}, in another run_dir"
        )
    return [_told(key, then, now) for key in differ if key != "train.init" or now[key]]


def _check_latents(now: Mapping[str, Any], then: Mapping[str, Any], folder: Path) -> None:
    """Say in a word that the run was in latents and this is not; all that follows from it would be a list.

    The reverse is told before pictures are encoded.
    """
    name, place = "data.kind.name", str(then.get("latent.path"))
    if then.get(name) == "latents" and now.get(name) != "latents":
        told = f"cannot go on from {folder}: it was trained in latents: add {setting('latent', place)}"
        raise CheckpointError(f"{told}, or {begin_from(folder)}, in another run_dir")


def _apart(config: Config) -> Config:
    """What a config says of what its run has never seen; a data set with splits is not one that has none."""
    dataset = config.get("dataset", {})
    return {**held_out.kept_apart(dataset), "split": dataset.get("split")}


def _told(key: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    unread = " (not read: the run goes on)" if key == "train.init" else ""
    return f"{key}: {shown(then.get(key, ABSENT))} -> {shown(now.get(key, ABSENT))}{unread}"


def differences(here: Config, there: Config, parts: Iterable[str]) -> str:
    """The keys of some parts that differ, with their values; what people type comes first, then the names."""
    now, then = flatten(here), flatten(there)
    differ = [key for key in sorted({*now, *then}) if now.get(key) != then.get(key)]
    found = [key for key in differ if _under(key, parts)]
    likely = tuple(cause for part, causes in TYPED.items() if _any_under(found, part) for cause in causes)
    causes = [key for key in differ if key in now and key in then and _under(key, likely) and not _under(key, parts)]
    keys = sorted(causes, key=_rank) + sorted(found, key=_rank)
    return few(f"{key} ({shown(then.get(key, ABSENT))} there, {shown(now.get(key, ABSENT))} here)" for key in keys)


def few(words: Iterable[str]) -> str:
    """The first words of a list, and how many more there are."""
    every = list(words)
    return ", ".join(every[:SHOWN] + ([f"{len(every) - SHOWN} more"] if len(every) > SHOWN else []))


def _rank(key: str) -> tuple[bool, str]:
    return not (key == "method" or key.endswith(".name")), key


def _under(key: str, parts: Iterable[str]) -> bool:
    return any(f"{key}.".startswith(f"{part}.") for part in parts)


def _any_under(keys: Iterable[str], part: str) -> bool:
    return any(_under(key, (part,)) for key in keys)


def shown(value: object) -> str:
    """A value as YAML has it, and no longer than a sentence can bear."""
    if isinstance(value, list | tuple):
        text = f"[{', '.join(map(shown, value))}]"
    else:
        text = value if isinstance(value, str) else typed(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def flatten(config: Any, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(config, Mapping):
        return {prefix: config}
    parts = (flatten(value, f"{prefix}.{key}" if prefix else key) for key, value in config.items())
    return {key: value for part in parts for key, value in part.items()}


def check_optimizer(error: CheckpointError, here: Config, there: Config, folder: Path) -> None:
    """Say instead of a state that does not fit that the optimizer is another, if it is.

    Raises:
        CheckpointError: It is; the sentence names its keys.
    """
    keys = differences(here, there, ["optimizer.name"]) or differences(here, there, ["optimizer"])
    if keys:
        raise CheckpointError(
            f"cannot go on from {folder}: its optimizer keeps another state, {keys}; "
            f"{begin_from(folder)}, in another run_dir"
        ) from error


# --- the learning rate -----------------------------------------------------------------------------------------------


def learning_rate(here: Config, there: Config, base_lr: float, images: int, seconds: float) -> list[str]:
    """The jump of the learning rate that a changed config makes; empty if it makes none, or nothing is left to do.

    Args:
        here: Of this run.
        there: Of the checkpoint.
        base_lr: The first learning rate of this run's optimizer.
        images: Seen at the checkpoint.
        seconds: Of training, up to there.
    """
    settings: TrainSettings = section(here, "train")
    schedule: LrSchedule = section(here, "lr_schedule")
    before = replace(settings, **_known(here, there, "train", ("images", "minutes", "batch_size")))
    schedule_before = replace(schedule, **_known(here, there, "lr_schedule", ("warmup", "decay", "flat")))
    given: Any = _known(here, there, "optimizer", ("lr",)).get("lr")
    base_before = base_lr if given == here["optimizer"].get("lr") else float(given)
    last = max(images - before.batch_size, 0)
    was = base_before * schedule_before.factor(last, before.share(last, seconds))
    would_be = base_before * schedule_before.factor(images, before.share(images, seconds))
    now = base_lr * schedule.factor(images, settings.share(images, seconds))
    if settings.share(images, seconds) >= 1 or f"{now:.2g}" in (f"{would_be:.2g}", f"{was:.2g}"):
        return []
    return [f"learning rate: {was:.2g} at the last step -> {now:.2g} at the next"]


def _known(here: Config, there: Config, part: str, keys: Iterable[str]) -> dict[str, Any]:
    """Values of a part of the earlier config; what it did not say yet is as it is here."""
    then = there.get(part)
    merged = {**here[part], **(then if isinstance(then, Mapping) else {})}
    return {key: merged[key] for key in keys if key in merged}
