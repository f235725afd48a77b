"""Latents of pictures: what diffusion learns instead of pixels, made by a frozen autoencoder (Rombach et al. 2022).

The kind holds the autoencoder, so everything that is drawn is decoded, and every picture that a task names is encoded.
For training all pictures are encoded once, before the first step.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from diffgen.core.errors import require
from diffgen.data import images
from diffgen.data.base import Source, Stored, gather
from diffgen.data.kinds import KINDS, Kind, Pixels
from diffgen.diffusion.codec import exactly
from diffgen.nets.autoencoder import Posterior
from diffgen.nets.base import DataShape

AT_ONCE = 2**22
"""Values of pictures that are encoded or decoded at a time: the widest layers hold a hundred times as many."""


class AutoencoderNetwork(Protocol):
    """What encodes and decodes; an nn.Module."""

    latent_size: tuple[int, ...]

    def encode(self, x: Tensor) -> Posterior:
        """Pictures [B, C, H, W] in [-1, 1] -> their latents [B, c, h, w]."""

    def decode(self, z: Tensor) -> Tensor:
        """The inverse, about."""


@KINDS.register("latents")
@dataclass(frozen=True, kw_only=True)
class Latents(Pixels):
    """Pictures uint8 [C, H, W], whose x0 are their latents [c, h, w], each channel with mean 0 and deviation 1.

    Attributes:
        size: (C, H, W) of the pictures.
        autoencoder: Its config, plain data; see `diffgen.build.make_autoencoder`.
        hash: SHA-256 of that and of its weights.
        likelihood: p(x | z) of the autoencoder, a key of `codec.LIKELIHOODS`; null where it has none.
        mean: Of each channel over the training pictures, (c,).
        std: Standard deviations alike.
        network: The autoencoder itself, which is put in by `with_network`.
    """

    size: tuple[int, ...]
    autoencoder: Any = field(hash=False)
    hash: str
    likelihood: Literal["logistic", "gaussian"] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    network: AutoencoderNetwork | None = field(init=False, default=None, compare=False, repr=False)
    _tables: dict[Any, Tensor] = field(init=False, repr=False, compare=False, default_factory=dict)

    bounded = False
    augment_labels = 0

    def __post_init__(self) -> None:
        require(isinstance(self.autoencoder, Mapping), "data.kind.autoencoder must be a group of settings")
        same = 0 < len(self.mean) == len(self.std) and all(each > 0 for each in self.std)
        require(same, f"data.kind.mean={list(self.mean)} and std={list(self.std)} must be one of each, std above 0")

    def with_network(self, network: AutoencoderNetwork) -> "Latents":
        """Put the autoencoder in."""
        object.__setattr__(self, "network", network)
        return self

    def put(self, device: torch.device) -> None:
        """See `Kind`."""
        self._network.to(device)  # type: ignore[attr-defined]

    @property
    def pictures(self) -> Pixels:
        """The kind of the pictures themselves."""
        return Pixels(background=self.background, range=self.range)

    def sized(self, size: tuple[int, ...]) -> str:
        """`3x256x256 in latents of 4x32x32`."""
        return f"{super().sized(self.size)} in latents of {super().sized(size)}"

    def check(self, size: tuple[int, ...]) -> None:
        """See `Kind`; a checkpoint may say anything of its latents, too."""
        super().check(size)
        told = f"data.size={list(size)} has {size[0]} channels, and data.kind.mean {len(self.mean)}"
        require(size[0] == len(self.mean), told)

    def encode(self, stored: Tensor) -> Tensor:
        """The mean of q(z | x), scaled."""
        device = self._device
        with torch.inference_mode(), exactly(device):
            parts = [self._network.encode(images.to_float(some.to(device))).mean for some in self._parts(stored)]
        return self.scaled(torch.cat(parts)).to(stored.device)

    def decode(self, x0: Tensor) -> Tensor:
        """The pictures of latents."""
        device = self._device
        with torch.inference_mode(), exactly(device):
            z = x0.to(device, torch.float32)
            z = z * self._of(self.std, z) + self._of(self.mean, z)
            return torch.cat([images.to_uint8(self._network.decode(some)) for some in self._parts(z)]).to(x0.device)

    def scaled(self, z: Tensor) -> Tensor:
        """Latents [..., c, h, w] -> x0."""
        return (z - self._of(self.mean, z)) / self._of(self.std, z)

    def _of(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        key = (values, like.device)
        if key not in self._tables:  # a copy to the device is waited for, and each step would make one
            with torch.inference_mode(False):
                self._tables[key] = torch.tensor(values, device=like.device, dtype=torch.float32).reshape(-1, 1, 1)
        return self._tables[key]

    @property
    def _network(self) -> AutoencoderNetwork:
        assert self.network is not None
        return self.network

    @property
    def _device(self) -> torch.device:
        """Where the autoencoder is."""
        weights: Tensor = next(self._network.parameters())  # type: ignore[attr-defined]
        return weights.device

    def _parts(self, values: Tensor) -> tuple[Tensor, ...]:
        most = max(1, AT_ONCE // math.prod(self.size))
        return values.split(most)

    def read(self, path: str, size: tuple[int, ...]) -> Tensor:
        """A picture as the training pictures were read, and encoded."""
        return self.encode(self.original(path, size)[None])[0].cpu()

    def original(self, path: str, size: tuple[int, ...]) -> Tensor:
        """See `Kind`."""
        return images.to_uint8(super().read(path, self.size))

    def shade(self, path: str, size: tuple[int, ...]) -> Tensor:
        """See `Kind`; a latent is as bright as the brightest of its pixels."""
        return F.adaptive_max_pool2d(self.shade_of_pixels(path), size[1:])

    def shade_of_pixels(self, path: str) -> Tensor:
        """Brightness of a picture, at the pictures' size, [1, H, W]."""
        return self.pictures.shade(path, self.size)

    def as_tokens(self, levels: int) -> Kind:
        """See `Kind`."""
        require(False, "objective=unmask is for tokens and pictures, and latents are real numbers: objective=denoise")
        return self

    def as_numbers(self) -> Kind:
        """Itself."""
        return self


class Encoded(Source):
    """The latents of a data set's pictures, all of them encoded.

    Attributes:
        whole: The pictures.
        latents: float32 [N, views, c, h, w]; the second view is of the mirrored picture.
    """

    def __init__(self, whole: Source, kind: Latents, latents: Tensor, labels: Tensor, home: str) -> None:
        """Put them together; `home` says where they come from, for the header."""
        self.whole, self.kind, self.latents, self.labels, self.home = whole, kind, latents, labels, home
        self.classes, self.found, self.notes, self.left_out = whole.classes, whole.found, whole.notes, whole.left_out
        self.shape = DataShape(tuple(latents.shape[2:]), len(self.classes))

    def __len__(self) -> int:
        return len(self.latents)

    @property
    def once(self) -> int:
        """See `Source`."""
        return self.whole.once

    def batches(self, entries: Iterator[Tensor], device: torch.device) -> Iterator[Stored]:
        """See `Source`; examples are latents [B, views, c, h, w]."""
        return gather(self.latents, self.labels, entries, device)

    def x0(self, examples: Tensor, mirrored: Tensor | None) -> Tensor:
        """See `Source`."""
        assert isinstance(self.kind, Latents)
        if mirrored is None:
            return self.kind.scaled(examples[:, 0])
        return self.kind.scaled(torch.where(mirrored[:, None, None, None], examples[:, 1], examples[:, 0]))
