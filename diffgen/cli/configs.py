"""The YAML files: where they are, what they can choose from, and what they say."""

from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from diffgen.core.paths import literal, walk

PLUGGED: dict[str, list[str]] = {}
"""Choices that plugins added, by group."""


def config_dir() -> Path:
    """The folder of YAML files: inside an installed package, or at the top of a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def groups() -> dict[str, list[str]]:
    """Config groups and their choices, from the folder and from plugins."""
    folders = sorted(p for p in config_dir().iterdir() if p.is_dir())
    shipped = {folder.name: [p.stem for p in folder.glob("*.yaml")] for folder in folders}
    return {group: sorted({*names, *PLUGGED.get(group, [])}) for group, names in shipped.items()}


def defaults(name: str, overrides: list[str]) -> Any:
    """The config with the user's choices of groups, but none of the single values."""
    return composed(name, [o for o in overrides if o.lstrip("+").split("=")[0].split("@")[0] in groups()])


def composed(name: str, overrides: list[str]) -> Any:
    """A top-level config with overrides, as plain data."""
    if GlobalHydra.instance().is_initialized():
        return OmegaConf.to_container(hydra.compose(name, overrides))
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return OmegaConf.to_container(hydra.compose(name, overrides))


def compose_group(group: str, choice: str) -> dict[str, Any]:
    """One YAML file of a group as plain data, for scripts and tests."""
    return defaults("train", [f"{group}={choice}"])[group]


def as_it_stands(group: str, choice: str) -> dict[str, Any]:
    """What one YAML file says itself; nothing if there is none, as of a plugin's row or an unknown one."""
    path = config_dir() / group / f"{choice}.yaml"
    told: Any = OmegaConf.to_container(OmegaConf.create(path.read_text() if path.is_file() else ""))
    return dict(told)


def choice_of(group: str, row: str) -> str:
    """A choice of a group whose YAML names this row; the row's own name, by which a plugin adds it, where none does."""
    shipped = sorted((config_dir() / group).glob("*.yaml"))
    named = [path.stem for path in shipped if f"name: {row}" in path.read_text().splitlines()]
    return row if row in named or not named else named[0]


def as_yaml(config: dict[str, Any]) -> str:
    """A resolved config as text for OmegaConf, which would take a `${` in a path for its own."""
    return OmegaConf.to_yaml(OmegaConf.create(walk(config, lambda _, text: literal(text))))


def settings_text(name: str) -> str:
    """The commented settings of a top-level config, without the parts that are Hydra's."""
    text = (config_dir() / f"{name}.yaml").read_text()
    body = text.split("hydra/hydra_logging: disabled\n", 1)[1].split("\nhydra:", 1)[0]
    return body.strip()
