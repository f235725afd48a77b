"""A command's config without its command line: composed, and checked by what checks the command's own."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from os import PathLike, fspath
from threading import RLock
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from diffgen.cli import app
from diffgen.cli.brought import with_brought
from diffgen.cli.configs import config_dir, defaults, groups
from diffgen.cli.explain import explain, unknown_choice
from diffgen.core.errors import UsageError, require, unknown
from diffgen.core.paths import at_home, walk

COMPOSING = RLock()
"""Hydra is one for a whole process."""

CHOICES = {"sampler": "auto", "task": "generate"}
"""The groups of `diffgen-sample`, and what is chosen where nothing is said."""

INSTEAD = "and diffgen.train takes settings of one run: call it once for each"

OF_COMMAND = ("ckpt", "save", "out", "overwrite", "plugins", "ema", *CHOICES)
"""Settings of `diffgen-sample` that say where it reads and writes, and groups; their settings have names."""


def train_config(overrides: list[str]) -> dict[str, Any]:
    """The config of `diffgen-train` with these overrides.

    Args:
        overrides: As they are typed after the command, `train.images=2048`.

    Raises:
        UsageError: Whatever the command would say of them; or they are a sweep, or hold a flag.
    """
    for override in overrides:
        require(isinstance(override, str), f"{override!r} must be text, as in ['dataset=digits', 'train.images=2048']")
        require(not override.startswith("-"), f"{override} is a flag of the command, {INSTEAD}")
    with _composing("train", overrides):
        given = app.plug(with_brought([app.as_path(override) for override in overrides]))
        app.check_overrides(given)
        for parsed in OverridesParser.create().parse_overrides(given):
            require(not parsed.is_sweep_override(), f"{parsed.input_line} gives several values, {INSTEAD}")
        return app.checked("train", hydra.compose("train", given), given)


def sample_config(given: Mapping[str, Any]) -> dict[str, Any]:
    """The config of `diffgen-sample` with values by name, as Python has them.

    Args:
        given: Settings, by their names or the last parts of these (`steps` for `sampler.steps`); `sampler` and `task`
            are rows' names.

    Raises:
        UsageError: Whatever the command would say of them.
    """
    chosen = {group: given.get(group, default) for group, default in CHOICES.items()}
    with _composing("sample", []):
        for group, choice in chosen.items():
            require(isinstance(choice, str) and choice in groups()[group], unknown_choice(group, str(choice)))
        base = _sample_defaults(tuple(f"{group}={choice}" for group, choice in chosen.items()))
    config, names = deepcopy(base), _names(base)
    for key, value in given.items():
        if key not in chosen:
            group, _, leaf = _meant(key, names, chosen).rpartition(".")
            (config[group] if group else config)[leaf] = _plain(value)
    app.compare(base, config)
    told: dict[str, Any] = walk(config, at_home)
    return told


@cache
def _sample_defaults(choices: tuple[str, ...]) -> dict[str, Any]:
    """Composed once: Hydra takes a tenth of a second, as long as a few images."""
    config: dict[str, Any] = defaults("sample", list(choices))
    return config


def plug(plugins: list[str]) -> None:
    """Import plugins.

    Raises:
        UsageError: One cannot be found, or fails.
    """
    with _composing("sample", []):
        app.PLUGGED.update(app.plugins.load([at_home("plugins", str(name)) for name in plugins]))


@contextmanager
def _composing(name: str, overrides: list[str]) -> Iterator[None]:
    """Hydra over our YAML files; one that the caller has begun is put back, and errors are sentences."""
    with COMPOSING:
        foreign = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
                try:
                    yield
                except (HydraException, OmegaConfBaseException) as error:
                    raise UsageError(explain(name, error, overrides)) from None
        finally:
            GlobalHydra.instance().hydra = foreign


def _names(config: Mapping[str, Any]) -> dict[str, list[str]]:
    """What a setting may be called -> the settings that this can be."""
    whole = [key for key in config if key not in OF_COMMAND]
    whole += [f"{group}.{key}" for group in ("ema", *CHOICES) for key in config[group] if key != "name"]
    names: dict[str, list[str]] = {}
    for full in whole:
        for called in {full, full.rpartition(".")[2]}:
            names.setdefault(called, []).append(full)
    return names


def _meant(key: str, names: Mapping[str, list[str]], chosen: Mapping[str, str]) -> str:
    """The full name of the setting that is called so."""
    known = [name for name in names if "." not in name]
    named = "; to change more of a sampler, name it too: sampler='heun', or 'unmask' for tokens"
    hint = named if chosen["sampler"] == "auto" else ""
    require(key in names, unknown(key, [*known, *chosen]) + hint)
    several = names[key]
    spelled = " or ".join(f"**{{{full!r}: ...}}" for full in several)
    require(len(several) == 1, f"{key} can be several settings: write {spelled}")
    return several[0]


def _plain(value: Any) -> Any:
    """A value of Python's, or of NumPy's or torch's, as YAML would give it."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, PathLike):
        return fspath(value)
    return [_plain(item) for item in value] if isinstance(value, list | tuple | range) else value
