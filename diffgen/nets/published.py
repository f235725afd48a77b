"""Autoencoders of diffusers, as they were published: encoded with, decoded with, and never trained here."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diffgen.core.errors import UsageError, first_line, require, unknown
from diffgen.nets.autoencoder import AUTOENCODERS, Posterior
from diffgen.nets.base import DataShape

CLASSES = ("AutoencoderKL", "AutoencoderDC", "VQModel")
"""Of diffusers; a checkpoint can name no other."""

LEVELS, LAYERS, WIDEST = 16, 64, 65_536
"""Most items of a list of settings, layers of a level, and any other whole number."""

ABSENT = "pip install diffusers"

UNFIT = (TypeError, ValueError, KeyError, IndexError, AttributeError, ZeroDivisionError, RuntimeError)
"""What diffusers raises of settings that make no network."""


@AUTOENCODERS.register("diffusers")
class Published(nn.Module):
    """One of diffusers' autoencoders.

    Its own scaling factor is of no use here: latents are scaled by their deviations over the training pictures.

    Attributes:
        config: From which this is made again.
        latent_size: (c, h, w).
    """

    def __init__(self, shape: DataShape, *, kind: str, settings: Any, licence: str) -> None:
        """Build the network for a size of pictures.

        Args:
            shape: Of the pictures.
            kind: One of `CLASSES`.
            settings: What its config says.
            licence: What its folder said of how it may be used.

        Raises:
            UsageError: diffusers is not there, or makes no such network.
        """
        super().__init__()
        require(kind in CLASSES, unknown(f"kind={kind!r}", CLASSES))
        require(isinstance(settings, Mapping), "settings must be a group of settings")
        _check_bounds(settings)
        self.kind, self.config = kind, _config(kind, settings, licence)
        try:
            self.network: nn.Module = _class(kind).from_config(dict(settings))
        except UNFIT as error:
            raise UsageError(f"kind={kind} cannot be made of its config: {first_line(error)[:200]}") from None
        self.shape_for(shape)

    def shape_for(self, shape: DataShape) -> None:
        """Find the size of the latents of pictures, without computing any.

        Raises:
            UsageError: It is for other pictures.
        """
        settings = self.config["settings"]
        channels = settings.get("in_channels", 3)
        told = f"kind={self.kind} takes pictures of {channels} channels, and these have {shape.channels}"
        require(channels == shape.channels, f"{told}: dataset.channels={channels}, where the data set has that")
        twin = _class(self.kind).from_config(dict(settings)).to("meta")
        try:
            with torch.no_grad():
                z = _latents(twin, torch.zeros(1, *shape.size, device="meta")).mean
                back = twin.decode(z).sample
        except UNFIT as error:
            raise UsageError(f"kind={self.kind} cannot encode {shape}: {first_line(error)[:200]}") from None
        told = f"kind={self.kind} gives back {tuple(back.shape[2:])} of pictures of {shape}: choose another size"
        require(tuple(back.shape[1:]) == tuple(shape.size), told)
        self.latent_size: tuple[int, ...] = tuple(z.shape[1:])

    @classmethod
    def read(cls, folder: Path, kind: str, settings: Mapping[str, Any], licence: str) -> "Published":
        """A folder that diffusers wrote, its weights in float32; `settings` are what its config says.

        Raises:
            UsageError: diffusers cannot read it.
        """
        _check_bounds(settings)
        try:
            network = _class(kind).from_pretrained(
                str(folder), use_safetensors=True, local_files_only=True, torch_dtype=torch.float32
            )
        except (OSError, *UNFIT) as error:
            raise UsageError(f"diffusers cannot read it: {first_line(error)[:200]}") from None
        plain = {key: _plain(value) for key, value in settings.items() if not key.startswith("_")}
        made = cls.__new__(cls)
        nn.Module.__init__(made)
        made.network = network.eval()
        made.kind, made.config = kind, _config(kind, plain, licence)
        return made

    def encode(self, x: Tensor) -> Posterior:
        """Pictures [B, C, H, W] in [-1, 1] -> their latents, as diffusers gives them before any scaling."""
        return _latents(self.network, x)

    def decode(self, z: Tensor) -> Tensor:
        """Such latents -> pictures."""
        decoded: Tensor = self.network.decode(z).sample  # type: ignore[operator]
        return decoded


def _latents(network: Any, x: Tensor) -> Posterior:
    out = network.encode(x)
    if hasattr(out, "latent_dist"):
        return Posterior(out.latent_dist.mean, out.latent_dist.logvar)
    return Posterior(out.latent if hasattr(out, "latent") else out.latents, None)


def _config(kind: str, settings: Mapping[str, Any], licence: str) -> dict[str, Any]:
    return {"name": "diffusers", "kind": kind, "settings": dict(settings), "licence": licence}


def _check_bounds(settings: Mapping[str, Any]) -> None:
    """Require a network of a sane size before a list is made of its layers: a stranger may have written the settings.

    Raises:
        UsageError: It has too many levels, layers or channels.
    """
    for key, value in settings.items():
        items = _flat(value)
        require(len(items) <= LEVELS, f"settings.{key} has {len(items)} items, and {LEVELS} are the most")
        most = LAYERS if "layers" in key else WIDEST
        large = next((n for n in items if isinstance(n, int) and n > most), None)
        require(large is None, f"settings.{key} has {large}, and {most} is the most")


def _flat(value: Any) -> list[Any]:
    """The items of lists in lists; one that is none is alone."""
    return [item for each in value for item in _flat(each)] if isinstance(value, list | tuple) else [value]


def _class(kind: str) -> Any:
    try:
        import diffusers
    except ImportError:
        raise UsageError(f"kind={kind} needs the library diffusers: {ABSENT}") from None
    known = {
        "AutoencoderKL": diffusers.AutoencoderKL,
        "AutoencoderDC": diffusers.AutoencoderDC,
        "VQModel": diffusers.VQModel,
    }
    return known[kind]


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
