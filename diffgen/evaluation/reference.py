"""Features of real images, computed once and kept: by the images' own hash and the extractor's."""

from collections.abc import Callable
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from diffgen.core.files import write_atomically
from diffgen.core.settings import FEWEST
from diffgen.data import InMemory, Source
from diffgen.data.base import in_order
from diffgen.data.splits import Splits
from diffgen.evaluation.extractors import Extractor


class Reference:
    """What images are compared with: a data set's splits and their features, computed once.

    Attributes:
        splits: The data set.
        extractor: What makes the features.
        cache: Folder of features that are kept.
        through: Where images are made of latents, the way of pictures uint8 [B, C, H, W] to latents and back.
    """

    def __init__(
        self, splits: Splits, extractor: Extractor, cache: Path, through: Callable[[Tensor], Tensor] | None = None
    ) -> None:
        """Nothing is computed before it is asked for."""
        self.splits, self.extractor, self.cache, self.through = splits, extractor, cache, through

    @cached_property
    def train(self) -> Tensor:
        """Features of the training split."""
        return features_of(self.splits.train, self.extractor, self.cache)

    @property
    def floors(self) -> Source | None:
        """The held-out images, where there are enough of them to be judged like others."""
        held_out = self.splits.test
        return None if held_out is None or len(held_out) < FEWEST else held_out

    @cached_property
    def test(self) -> Tensor | None:
        """Features of `floors`."""
        return None if self.floors is None else features_of(self.floors, self.extractor, self.cache)

    def reconstructed(self, n: int) -> Tensor | None:
        """Features of n pictures, or all there are, through `through`: of `floors`, or training images without any."""
        if self.through is None:
            return None
        source = self.floors or self.splits.train
        examples = in_order(source, min(n, len(source)), torch.device("cpu"))
        return torch.cat([self.extractor(self.through(pixels))[0].cpu() for pixels, _ in examples])


def features_of(source: Source, extractor: Extractor, cache: Path) -> Tensor:
    """Features float32 [n, d] of all images of a data set, on the CPU, from `cache` if they are there.

    Args:
        source: The images; only those that are in memory are kept.
        extractor: Gives the features.
        cache: A folder.
    """
    if not isinstance(source, InMemory):
        return _computed(source, extractor)
    path = cache / f"features-{source.digest[:16]}-{extractor.hash[:16]}.safetensors"
    known = _read(path)
    if known is None:
        known = _computed(source, extractor)
        write_atomically(path, save({"features": known}))
        _read.cache_clear()  # it remembers that there was none
    return known


def _computed(source: Source, extractor: Extractor) -> Tensor:
    return torch.cat([extractor(pixels)[0].cpu() for pixels, _ in in_order(source, len(source), torch.device("cpu"))])


@lru_cache(maxsize=4)
def _read(path: Path) -> Tensor | None:
    """Kept features; those of a damaged file are computed again."""
    try:
        return load_file(path)["features"]
    except (OSError, SafetensorError, KeyError):
        return None
