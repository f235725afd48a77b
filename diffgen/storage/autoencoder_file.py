"""Autoencoders whose latents diffusion learns: of a run, in a checkpoint trained on them, or of diffusers."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from diffgen.core.errors import CheckpointError, UsageError, require
from diffgen.core.registry import convert
from diffgen.nets.published import CLASSES, Published
from diffgen.storage import checkpoint
from diffgen.storage.checkpoint import Checkpoint
from diffgen.storage.tensor_file import Tensors, config_text, digest, on_cpu, read_any_header

CONFIG, WEIGHTS = "config.json", "diffusion_pytorch_model.safetensors"

LICENCE = re.compile(r"^license(?:_name)?:\s*([\w.+ -]{1,60})\s*$", re.MULTILINE | re.IGNORECASE)
"""In the front matter of a model card."""


@dataclass(frozen=True)
class Found:
    """An autoencoder.

    Attributes:
        config: Plain data for `build.make_autoencoder`.
        weights: By name, on the CPU.
        size: (C, H, W) of the pictures that it is for; None: any.
        likelihood: p(x | z), a key of `codec.LIKELIHOODS`; None where it was trained by another loss.
        read_as: How its pictures were read, `background` and `range` of `Pixels`, where that is known.
        said: Config of the checkpoint that it was found in; empty of a folder.
    """

    config: dict[str, Any]
    weights: Tensors
    size: tuple[int, ...] | None = None
    likelihood: Any = None
    read_as: Mapping[str, Any] = field(default_factory=dict)
    said: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the weights and of the config without what is said of the licence: a card may be edited."""
        return digest(self.weights, config_text({k: v for k, v in self.config.items() if k != "licence"}))


def find(path: str, key: str) -> Found:
    """The autoencoder that a path means.

    Args:
        path: A run or file of diffgen's, of an autoencoder or of a model that was trained on one's latents, or a folder
            of diffusers.
        key: The setting that it stands at, for sentences.

    Raises:
        CheckpointError: It is none, or cannot be read.
    """
    folder = Path(path)
    if (folder / CONFIG).is_file():
        return _of_diffusers(folder, f"{key}={path!r}")
    if (folder / "vae" / CONFIG).is_file():
        raise CheckpointError(f"{key}={path!r} is a pipeline of diffusers: give its autoencoder, {folder / 'vae'}")
    saved = checkpoint.load(folder, key)
    data, objective, trained = (group(saved.config.get(part)) for part in ("data", "objective", "trained"))
    kind = group(data.get("kind"))
    if objective.get("name") == "autoencode":
        likelihood = objective.get("likelihood")
        return _found(saved, saved.config.get("model"), saved.weights, data.get("size"), likelihood, kind)
    if saved.autoencoder:
        autoencoder, likelihood = kind.get("autoencoder"), kind.get("likelihood")
        return _found(saved, autoencoder, saved.autoencoder, kind.get("size"), likelihood, kind)
    if kind.get("name") == "latents":
        told = f"{key}={path!r} keeps its autoencoder, {str(kind.get('hash'))[:12]}, apart (latent.embed=false)"
        raise CheckpointError(f"{told}: give that")
    raise CheckpointError(
        f"{key}={path!r} is no autoencoder: it was trained by method={trained.get('method')}; "
        "diffgen-train method=vae makes one, or give a folder of diffusers"
    )


def group(value: Any) -> Mapping[str, Any]:
    """A part of a checkpoint's config, which may be anything; empty if it is no group of settings."""
    return value if isinstance(value, Mapping) else {}


def _found(
    saved: Checkpoint, config: Any, weights: Tensors, size: Any, likelihood: Any, kind: Mapping[str, Any]
) -> Found:
    """What a checkpoint says of an autoencoder, and of the kind of its pictures.

    Raises:
        CheckpointError: It is none.
    """
    try:
        require(isinstance(config, Mapping), "its autoencoder must be a group of settings")
        size = convert("size", size, tuple[int, ...])
        likelihood = convert("likelihood", likelihood, Literal["logistic", "gaussian"] | None)
        read_as = {
            "background": convert("background", kind.get("background"), str | None),
            "range": convert("range", kind.get("range"), tuple[float, ...] | None),
        }
    except UsageError as error:
        raise CheckpointError(f"{saved.path} is refused: its config says {error}") from None
    return Found(dict(config), weights, size, likelihood, read_as, saved.config)


def supplied(saved: Checkpoint, path: str | None) -> Checkpoint:
    """A checkpoint with the autoencoder that it keeps apart, from the place that the user names.

    Raises:
        CheckpointError: It is another one.
        UsageError: The checkpoint needs none.
    """
    if path is None:
        return saved
    wanted = group(group(saved.config.get("data")).get("kind")).get("hash")
    require(wanted is not None, f"latent={path!r}: {saved.path} was not trained on latents, and needs no autoencoder")
    found = find(path, "latent")
    if found.hash != wanted:
        told = f"latent={path!r} is another autoencoder than {saved.path} was trained with"
        raise CheckpointError(f"{told}: {found.hash[:12]}, and not {str(wanted)[:12]}")
    return replace(saved, autoencoder=found.weights)


def _of_diffusers(folder: Path, what: str) -> Found:
    """A folder that diffusers wrote.

    Raises:
        CheckpointError: It holds another model, or weights that are no safetensors, or diffusers cannot read it.
    """
    try:
        told = json.loads((folder / CONFIG).read_text())
        name = told.get("_class_name")
    except (OSError, ValueError, AttributeError, RecursionError):
        raise CheckpointError(f"{what}: {CONFIG} is damaged, or is no config of diffusers") from None
    if name not in CLASSES:
        held = f"{what} holds {str(name)[:40]!r}, and is to hold one of [{', '.join(CLASSES)}]"
        raise CheckpointError(f"{held}: of a whole pipeline give its folder vae")
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise CheckpointError(f"{what} has no {WEIGHTS}; pickles (.bin, .pt) are not read")
    read_any_header(weights)
    try:
        network = Published.read(folder, name, told, licence(folder))
    except UsageError as error:
        raise CheckpointError(f"{what}: {error}") from None
    return Found(network.config, on_cpu(network.state_dict()))


def licence(folder: Path) -> str:
    """What a model card calls its licence, or the first line of a licence file; empty if there is neither."""
    for place in (folder, folder.parent):
        card, text = place / "README.md", next(iter(sorted(place.glob("LICEN[SC]E*"))), None)
        if card.is_file() and (found := LICENCE.search(card.read_text(errors="replace")[:20_000])):
            return found[1].strip()
        if text is not None and text.is_file():
            lines = [line.strip() for line in text.read_text(errors="replace")[:2000].splitlines() if line.strip()]
            return "".join(c for c in (lines or [""])[0] if c.isprintable() and c not in "${}")[:60]
    return ""
