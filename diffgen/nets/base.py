"""The model table and what a model is told of its data."""

from dataclasses import dataclass

from diffgen.core.registry import Table

MODELS = Table("model")
"""Rows are called as row(shape, **settings) and give an nn.Module: (x [B, ...], noise_cond [B], label [B]) -> F.

A row with `takes_tokens` is built for tokens as they are; others are given their one-hot vectors (`one_hot`).
"""


@dataclass(frozen=True)
class DataShape:
    """The shape of x0, all that a model knows of its data.

    Attributes:
        size: Without the batch: (C, H, W) of pictures, (D,) of vectors, (L,) of tokens, (C, L) of sequences,
            (C, T, H, W) of clips.
        num_classes: Number of labels; 0 where the data has none.
        augment_labels: Numbers that describe each training example's augmentation; 0 where there is none.
        vocabulary: Where x0 is tokens, whole numbers from 0, how many there are; 0 where it is real numbers. The
            network is given int64 [B, *size], one number more for a hidden token, and gives logits
            [B, *size, vocabulary].
        given: Channels beside x that tell the network what is known of x0, see `diffusion.knowing`; 0 for a network
            that is told of nothing.
        spans: Whether the network is also told how far a step goes, as a difference of noise conditions: by `span` [B],
            the last of its optional inputs `augment`, `estimate` and `span`.
    """

    size: tuple[int, ...]
    num_classes: int = 0
    augment_labels: int = 0
    vocabulary: int = 0
    given: int = 0
    spans: bool = False

    def __str__(self) -> str:
        """`3x32x32`."""
        return "x".join(map(str, self.size))

    @property
    def seen(self) -> tuple[int, ...]:
        """The size of what a network sees: x0's, with the channels that tell it what is known."""
        return (self.size[0] + self.given, *self.size[1:])

    @property
    def channels(self) -> int:
        """C."""
        return self.size[0]

    @property
    def height(self) -> int:
        """H of pictures."""
        return self.size[-2]

    @property
    def width(self) -> int:
        """W of pictures."""
        return self.size[-1]
