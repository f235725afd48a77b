"""Settings that a checkpoint brings: what gives its weights a meaning, as overrides of a run that goes on from them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, QuotedString

from diffgen.cli.configs import choice_of, groups
from diffgen.core.errors import require, typed
from diffgen.core.paths import at_home, quoted

GROUPS = ("model", "schedule", "parameterization")
"""What a checkpoint brings whole, beside `denoiser.*`."""


def settings_of(given: Mapping[str, str], method: str) -> dict[str, str]:
    """The settings of the checkpoint that a run goes on from, key -> value as overrides spell it.

    A run that has a checkpoint is what that says, wherever the first one may have gone.

    Args:
        given: Overrides, key -> value as typed.
        method: That asks for them.

    Raises:
        UsageError: None is named, or the jobs of a sweep name some that differ in these settings.
        CheckpointError: It cannot be read, or its model does not remove Gaussian noise.
    """
    texts = {key: values_of(key, given[key]) for key in ("train.init", "train.resume", "run_dir") if key in given}
    resumed = [text for text in texts.get("train.resume", []) if text not in ("auto", "none")]
    key, paths = ("train.resume", resumed) if resumed else ("train.init", texts.get("train.init", []))
    own = _newest(texts.get("run_dir", []))
    places = [("run_dir", own)] if own else [(key, Path(at_home(key, path))) for path in paths]
    found = [of_checkpoint(place, at, method) for at, place in places]
    require(bool(found), f"method={method} tunes a trained network: train.init=RUN says which, a run or a checkpoint")
    told = f"{key}={given.get(key)} names checkpoints of other settings, and method={method} brings those of one"
    require(all(settings == found[0] for settings in found), f"{told}: sweep each by itself")
    return found[0]


def of_checkpoint(path: Path, key: str, method: str) -> dict[str, str]:
    """The same of one; `key` is the setting that it stands at, for sentences.

    Raises:
        CheckpointError: See `settings_of`.
        UsageError: Its model does not remove Gaussian noise; or the path is a folder of several runs.
    """
    from diffgen.objectives import OBJECTIVES  # torch, which takes seconds to import
    from diffgen.storage import checkpoint

    config = checkpoint.describe(path, key).config
    objective: Any = OBJECTIVES.get(_named(config.get("objective")))  # of a plugin there is none yet
    told = f"{key}={str(path)!r} holds a model that {getattr(objective, 'makes', '')}"
    require(objective is None or objective.path, f"{told}, and method={method} tunes one that removes Gaussian noise")
    brought = {f"denoiser.{name}": spelled(value) for name, value in _items(config.get("denoiser"))}
    for group in GROUPS:
        row = _named(config.get(group))
        settings = {f"{group}.{name}": spelled(value) for name, value in _items(config.get(group)) if name != "name"}
        brought |= {group: choice_of(group, row), **settings}
    return brought


def _newest(run_dirs: list[str]) -> Path | None:
    """The newest checkpoint of a run directory; a sweep's jobs have folders below it."""
    from diffgen.storage import checkpoint

    places = [text for text in run_dirs if text not in ("", "null")]
    return checkpoint.find_newest(Path(at_home("run_dir", places[0]))) if len(places) == 1 else None


def values_of(key: str, value: str) -> list[str]:
    """What an override's value says, several of a sweep; nothing for null."""
    parsed = OverridesParser.create().parse_override(f"{key}={value}")
    swept = parsed.value()
    if isinstance(swept, Glob):
        return swept.filter(groups().get(key, []))
    values = [*parsed.sweep_iterator()] if parsed.is_sweep_override() else [swept]
    return [item.text if isinstance(item, QuotedString) else str(item) for item in values if item is not None]


def _items(part: object) -> list[tuple[str, Any]]:
    return [*part.items()] if isinstance(part, dict) else []


def _named(part: object) -> str:
    return str(part.get("name")) if isinstance(part, dict) else ""


def spelled(value: Any) -> str:
    """A value of plain data as an override has it."""
    if isinstance(value, list):
        return f"[{','.join(map(spelled, value))}]"
    return quoted(value) if isinstance(value, str) else typed(value)
