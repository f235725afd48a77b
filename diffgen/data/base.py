"""The data set table, and pixels in memory. Pixels decoded when asked for are in `folder`, vectors in `vectors`."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from diffgen.core.errors import DataError
from diffgen.core.registry import Table
from diffgen.nets.base import DataShape

DATASETS = Table("dataset")
"""Rows are called as row(**settings) and give an `ImageSource`."""

Batch = tuple[Tensor, Tensor]  # uint8 [B, C, H, W] (vectors: float32 [B, D, 1, 1]), int64 [B]


class ImageSource(Protocol):
    """What the trainer asks of a data set."""

    shape: DataShape
    classes: tuple[str, ...]
    home: str
    """Where its images are, in words for the header of a run."""

    def __len__(self) -> int:
        """Number of images."""

    def batches(self, entries: Iterator[Tensor], device: torch.device) -> Iterator[Batch]:
        """For each int64 tensor of entries: uint8 pixels [B, C, H, W] and labels int64 [B] on the device."""


@dataclass
class Images:
    """A data set that fits into memory: one uint8 tensor, moved to the device once, batches gathered there.

    Attributes:
        pixels: uint8 [N, C, H, W].
        labels: int64 [N]; -1 where an image has none.
        classes: Names of the labels, empty for unlabelled data.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        self.home = "kept on the device"
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4 or not len(self.pixels):
            found = f"{self.pixels.dtype} {list(self.pixels.shape)}"
            raise DataError(f"pixels must be torch.uint8 [N, C, H, W] with N >= 1, and are {found}")
        named = not self.classes or -1 <= self.labels.min() <= self.labels.max() < len(self.classes)
        if len(self.labels) != len(self.pixels) or not named:
            raise DataError(f"labels must be one for each of {len(self.pixels)} images, -1 to {len(self.classes) - 1}")
        _, channels, height, width = self.pixels.shape
        self.shape = DataShape(channels, height, width, len(self.classes))

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(self, entries: Iterator[Tensor], device: torch.device) -> Iterator[Batch]:
        """See `ImageSource`."""
        return gather(self.pixels, self.labels, entries, device)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of shape, pixels and labels, in hex."""
        total = hashlib.sha256(str(list(self.pixels.shape)).encode())
        total.update(self.pixels.contiguous().numpy().data)
        total.update(self.labels.contiguous().numpy().data)
        return total.hexdigest()


def gather(values: Tensor, labels: Tensor, entries: Iterator[Tensor], device: torch.device) -> Iterator[Batch]:
    """Batches of tensors that are moved to the device once."""
    values, labels = values.to(device), labels.to(device)
    for chosen in entries:
        chosen = chosen.to(device, non_blocking=True)
        yield (
            values.index_select(0, chosen),
            labels.index_select(0, chosen),
        )  # on a CPU eight times faster than [chosen]


def in_order(source: ImageSource, count: int, device: torch.device) -> Iterator[Batch]:
    """The first `count` images and labels of a data set, in batches."""
    return source.batches(iter(torch.arange(count).split(256)), device)
