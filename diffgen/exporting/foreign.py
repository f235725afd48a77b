"""A folder of diffusers as a stranger may give it: configs are JSON and weights safetensors, opened with bounds."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from diffgen.core.errors import CheckpointError, UsageError, unknown
from diffgen.core.registry import conform
from diffgen.storage.tensor_file import (
    MAX_CONFIG,
    Tensors,
    check_finite,
    check_plain,
    load_tensors,
    parse,
    read_any_header,
    size_of,
)

CONFIG, SCHEDULER = "config.json", "scheduler_config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"

UNTOLD = ("_class_name", "_diffusers_version", "_name_or_path")
"""Keys of every config that are none of its settings."""

HALVES = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Keys:
    """What is read of a config.

    Attributes:
        classes: Whose it may be; the first where it does not say.
        read: Type and diffusers' default of each setting that diffgen has one for.
        fixed: Values of the settings that diffgen has not, diffusers' default first: it does the same.
        unread: Settings that do not change what the weights mean.
    """

    classes: tuple[str, ...]
    read: Mapping[str, tuple[Any, Any]]
    fixed: Mapping[str, tuple[Any, ...]]
    unread: tuple[str, ...] = ()

    @property
    def defaults(self) -> dict[str, Any]:
        """What holds where a config does not say."""
        return {key: default for key, (_, default) in self.read.items()}


def find_unet(folder: Path) -> Path:
    """The folder of config.json and weights: `unet` in a pipeline's folder, or the folder itself.

    Raises:
        CheckpointError: There is none, or its weights are no safetensors file.
    """
    if not folder.is_dir():
        raise CheckpointError(f"ckpt={str(folder)!r} is no folder; format=diffgen reads a folder of diffusers")
    home = next((home for home in (folder / "unet", folder) if (home / CONFIG).exists()), None)
    if home is None:
        raise CheckpointError(
            f"ckpt={str(folder)!r} is no folder of diffusers: it holds neither unet/{CONFIG} nor {CONFIG}"
        )
    if not (home / WEIGHTS).exists():
        others = ", ".join(sorted(path.name for path in home.iterdir() if path.name != CONFIG)[:3]) or "no other file"
        raise CheckpointError(
            f"{home} holds no {WEIGHTS} but {others}: nothing else is read, since other files can run code; where you "
            "trust them, UNet2DModel.from_pretrained(A).save_pretrained(B) of diffusers writes it"
        )
    return home


def read_config(path: Path, keys: Keys) -> tuple[str, dict[str, Any]]:
    """The class and the settings of a config, with diffusers' defaults where it does not say.

    Raises:
        CheckpointError: It is too large, no plain data, of another class, or has a key or value that is not held.
        OSError: It cannot be opened.
    """
    if size_of(path) > MAX_CONFIG:
        raise CheckpointError(f"{path} is refused: it is far larger than any config")
    config = parse(path.read_text("utf-8", "replace"), path)
    name = config.get("_class_name", keys.classes[0])
    config = {key: value for key, value in config.items() if key not in UNTOLD}
    check_plain(config, str(path))
    if name not in keys.classes:
        raise CheckpointError(f"{path}: _class_name={str(name)[:80]!r} is none of [{', '.join(keys.classes)}]")
    return name, _settings(path, config, keys)


def _settings(path: Path, config: dict[str, Any], keys: Keys) -> dict[str, Any]:
    known = (*keys.read, *keys.fixed, *keys.unread)
    for key, value in config.items():
        if key not in known:
            raise CheckpointError(f"{path}: {unknown(key, known)}")
        if key in keys.fixed and value not in keys.fixed[key]:
            held = " or ".join(json.dumps(one) for one in keys.fixed[key])
            raise CheckpointError(f"{path}: {key}={json.dumps(value)} has no place in diffgen, which does {held}")
    given = {key: value for key, value in config.items() if key in keys.read}
    with refusing(path):
        return conform(path.stem, {key: hint for key, (hint, _) in keys.read.items()}, keys.defaults | given)


def read_weights(path: Path) -> Tensors:
    """float32 weights; halves are widened, which is exact.

    Raises:
        CheckpointError: It is damaged, foreign or hostile, or a weight is not finite.
        OSError: It cannot be opened.
    """
    read_any_header(path)
    weights = {name: w.float() if w.dtype in HALVES else w for name, w in load_tensors(path).items()}
    check_finite(weights, path)
    return weights


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn what is wrong with a setting into what is wrong with a file."""
    try:
        yield
    except UsageError as error:
        raise CheckpointError(f"{path} is refused: {error}") from None
