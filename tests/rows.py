"""Parts as their YAML files have them, with changes."""

from pathlib import Path
from typing import Any

import yaml

from diffgen.core.registry import build
from diffgen.data import DATASETS
from diffgen.data.opening import dataset_settings
from diffgen.diffusion.schedules import SCHEDULES, Schedule

CONFIGS = Path(__file__).parents[1] / "configs"


def row(group: str, name: str, **changes: Any) -> dict[str, Any]:
    """`configs/<group>/<name>.yaml` as plain data."""
    return {**yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text()), **changes}


def schedule(name: str, **changes: Any) -> Schedule:
    """A noise schedule."""
    return build(SCHEDULES, row("schedule", name, **changes))


def dataset(name: str, **changes: Any) -> Any:
    """A data set, without the recipe that its file includes."""
    settings = row("dataset", name, **changes)
    own, *_ = dataset_settings({key: value for key, value in settings.items() if key != "defaults"})
    return build(DATASETS, own)
