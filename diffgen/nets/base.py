"""The model table and what a model is told of its data."""

from dataclasses import dataclass

from diffgen.core.registry import Table

MODELS = Table("model")
"""Rows are called as row(shape, **settings) and give an nn.Module (x [B, C, H, W], noise_cond [B], label [B]) -> F."""


@dataclass(frozen=True)
class DataShape:
    """The shape of the data, all that a model knows of it.

    Attributes:
        channels: C >= 1.
        height: H in pixels.
        width: W in pixels.
        num_classes: Number of labels; 0 where the data has none.
        pixels: Whether the values are 8-bit pixels, scaled to [-1, 1]; else they are real numbers without bounds.
        augment_labels: Numbers that describe each training image's augmentation; 0 where there is none.
    """

    channels: int
    height: int
    width: int
    num_classes: int
    pixels: bool = True
    augment_labels: int = 0

    @property
    def size(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.channels, self.height, self.width
