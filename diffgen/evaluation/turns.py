"""Pictures in four turns, labelled by their turn: what a network can be trained on where there are no labels."""

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from diffgen.data import Source
from diffgen.data.base import Stored
from diffgen.data.splits import Splits
from diffgen.evaluation.classifier import identity

TURNS = ("upright", "a quarter", "half", "three quarters")


class InFourTurns(Source):
    """A data set of pictures, each four times: as it is, and turned by one to three quarters.

    Pictures that are no squares are cropped to their middle.
    """

    classes = TURNS

    def __init__(self, upright: Source) -> None:
        """Of the pictures of a data set; entry i of them becomes the entries 4 i to 4 i + 3."""
        channels, *sides = upright.shape.size
        self.upright, self.side = upright, min(sides)
        self.kind, self.home = upright.kind, upright.home
        self.shape = replace(upright.shape, size=(channels, self.side, self.side), num_classes=len(TURNS))

    @cached_property
    def digest(self) -> str:
        """That of the pictures: nobody else's are turned."""
        return identity(self.upright)

    def __len__(self) -> int:
        return len(TURNS) * len(self.upright)

    def batches(self, entries: Iterator[Tensor], device: torch.device) -> Iterator[Stored]:
        """See `Source`."""
        asked: list[Tensor] = []  # sources read ahead, but keep the order

        def pictures() -> Iterator[Tensor]:
            for some in entries:
                asked.append(some)
                yield some // len(TURNS)

        for pixels, _ in self.upright.batches(pictures(), device):
            turn = (asked.pop(0) % len(TURNS)).to(device)
            yield Stored(turned(self._middle(pixels), turn), turn)

    def _middle(self, pixels: Tensor) -> Tensor:
        top, left = ((length - self.side) // 2 for length in pixels.shape[-2:])
        return pixels[..., top : top + self.side, left : left + self.side]


def turned(pixels: Tensor, turn: Tensor) -> Tensor:
    """Squares [B, C, S, S], each turned by so many quarters, int64 [B]."""
    ways = torch.stack([pixels.rot90(k, (-2, -1)) for k in range(len(TURNS))])
    return ways[turn, torch.arange(len(pixels), device=pixels.device)]


def splits_of(splits: Splits) -> Splits:
    """Both splits in four turns."""
    return Splits(InFourTurns(splits.train), lambda: None if splits.test is None else InFourTurns(splits.test))
