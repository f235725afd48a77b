"""Time grids that were found for a checkpoint: `<run>/grids/<sampler>-<steps>.json`, plain data."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffgen.core.errors import UsageError, require
from diffgen.core.files import write_json
from diffgen.core.paths import setting
from diffgen.storage.run_directory import run_of
from diffgen.storage.tensor_file import size_of, unique_keys

FORMAT = 1
MAX_BYTES = 2**20

KEPT = "tuned"
"""`sampler.spacing=tuned` is the grid that the checkpoint's run keeps for this sampler and number of steps."""

NO_GRID = {"sigmas": None, "skip_to": None, "first_step": "network", "weights": None}
"""Keys of a sampler that a file gives, as they are without one; few samplers take weights."""


def place(ckpt: Path, sampler: str, steps: int) -> Path:
    """Where the run that a checkpoint lies in keeps a grid; beside a checkpoint that stands alone."""
    return (run_of(ckpt) or ckpt.resolve().parent) / "grids" / f"{sampler}-{steps}.json"


def names_file(spacing: object) -> bool:
    """Whether a sampler's spacing is that of a file."""
    return isinstance(spacing, str) and (spacing == KEPT or spacing.endswith(".json"))


def without_grid(sampler: Mapping[str, Any]) -> dict[str, Any]:
    """A sampler's config with its keys of `NO_GRID` as they are without a file."""
    return {key: NO_GRID.get(key, value) for key, value in sampler.items()}


def laid_out(sampler: Mapping[str, Any]) -> list[str]:
    """Settings of a config that lay out its steps, and so have no place beside a whole grid."""
    return [f"sampler.{key}" for key in NO_GRID if key != "first_step" and sampler.get(key) is not None]


def save(path: Path, schedule: Mapping[str, Any], grid: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write a grid.

    Args:
        path: The file.
        schedule: Config of the schedule whose clock it is for.
        grid: Values of the keys of `NO_GRID`.
        about: What else there is to say of it.
    """
    write_json(path, {"format": FORMAT, "schedule": schedule, **{key: grid.get(key) for key in NO_GRID}, **about})


def with_grid(sampler: Mapping[str, Any], ckpt: Path, schedule: Mapping[str, Any]) -> dict[str, Any]:
    """A sampler's config with the grid of the file that its spacing names, if it names one.

    Args:
        sampler: The config.
        ckpt: The checkpoint's file, whose run may keep the grid.
        schedule: Config of its schedule.

    Raises:
        UsageError: There is no such file, it is none of ours, or it is for another schedule.
    """
    spacing = sampler.get("spacing")
    if not names_file(spacing):
        return dict(sampler)
    name, steps = str(sampler.get("name")), sampler.get("steps")
    if not isinstance(steps, int):
        raise UsageError(f"sampler.steps={steps} must be a whole number")
    path = place(ckpt, name, steps) if spacing == KEPT else Path(str(spacing))
    run = setting("ckpt", str(run_of(ckpt) or ckpt))
    makes = f"diffgen-tune {run} sampler={name} sampler.steps={steps} makes {'it' if spacing == KEPT else 'one'}"
    require(path.is_file(), f"sampler.spacing={spacing}: there is no file {path}; {makes}")
    given = laid_out(sampler)
    require(not given, f"sampler.spacing={spacing} is a whole grid: leave out {', '.join(given)}")
    found = _read(path)
    told = (
        f"sampler.spacing={spacing}: {path} was found for another schedule, {_shown(found['schedule'])}, and ckpt has "
    )
    require(found["schedule"] == dict(schedule), told + _shown(schedule))
    told = f"sampler.spacing={spacing}: the first call of {path} is the network's: leave out sampler.first_step"
    require(sampler.get("first_step") != "analytic" or found["first_step"] == "analytic", told)
    whose = found.get("sampler")
    told = f"sampler.spacing={spacing}: {path} holds weights of sampler={whose}, and this is {name}"
    require(found["weights"] is None or whose == name, told)
    grid = {key: found[key] for key in NO_GRID if key in sampler}
    return {**sampler, **grid, "steps": len(found["sigmas"]), "spacing": str(path)}


def caution(sampler: Mapping[str, Any], guidance: float, images_seen: int) -> str:
    """What a grid was found for, where it is drawn by otherwise: it may be worth less; nothing without a grid file.

    Args:
        sampler: As `with_grid` gives it.
        guidance: The scale.
        images_seen: By the weights.
    """
    if not names_file(sampler.get("spacing")):
        return ""
    found = _read(Path(sampler["spacing"]))
    facts = {"sampler": sampler["name"], "guidance": guidance, "images_seen": images_seen}
    differ = [key for key in facts if found.get(key, facts[key]) != facts[key]]
    if not differ:
        return ""
    then, now = (", ".join(f"{key}={each[key]!s:.40}" for key in differ) for each in (found, facts))
    return f"sampler.spacing={sampler['spacing']} was found for {then}, and this is {now}: it may be worth less here"


def _shown(schedule: object) -> str:
    values = dict(schedule) if isinstance(schedule, Mapping) else {}
    return " ".join([str(values.pop("name", "?")), *(f"{key}={value}" for key, value in values.items())])


def _read(path: Path) -> dict[str, Any]:
    """A grid file, bounded and checked; whether its levels suit a clock is for the clock to say.

    Raises:
        UsageError: It is none.
    """
    try:
        found = json.loads(path.read_text(), object_pairs_hook=unique_keys) if size_of(path) <= MAX_BYTES else {}
    except (OSError, ValueError, RecursionError):
        found = {}
    sigmas = found.get("sigmas") if isinstance(found, dict) and found.get("format") == FORMAT else None
    levels = [*sigmas] if isinstance(sigmas, list) else []
    skip_to = found.get("skip_to") if levels else None
    sound = all(_level(level) for level in levels) and (skip_to is None or _level(skip_to))
    sound = sound and isinstance(found.get("schedule"), dict) if levels else False
    sound = sound and _weights(found.get("weights"), len(levels))
    if not (sound and found.get("first_step") in ("network", "analytic")):
        raise UsageError(f"sampler.spacing: {path} is no grid that diffgen-tune wrote")
    return {
        **found,
        "weights": found.get("weights"),
        "sigmas": [float(level) for level in levels],
        "skip_to": None if skip_to is None else float(skip_to),
    }


def _weights(rows: object, steps: int) -> bool:
    """Whether these are a weight for every network call so far in each step, or none."""
    if not isinstance(rows, list):
        return rows is None
    sound = len(rows) == steps and all(isinstance(row, list) for row in rows)
    return sound and all(
        len(row) == at and all(_between(-1e6, weight, 1e6) for weight in row) for at, row in enumerate(rows, 1)
    )


def _level(value: object) -> bool:
    return _between(0, value, 1e100)


def _between(low: float, value: object, high: float) -> bool:
    """Whether this is a number inside."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low < value < high
