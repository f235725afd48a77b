"""A network of your own: one convolution in, one out, and the shared embedding between them.

diffgen-train plugins=[docs/examples/model.py] model=shallow model.channels=32
"""

import torch.nn.functional as F
from torch import Tensor, nn

from diffgen.nets.base import MODELS, DataShape
from diffgen.nets.layers import NEAR_ZERO, Embedding, conv


@MODELS.register("shallow")
class Shallow(nn.Module):
    """(x [B, C, H, W], condition [B], label int64 [B], -1 for none) -> F shaped like x."""

    def __init__(self, shape: DataShape, *, channels: int = 16) -> None:
        super().__init__()
        self.embedding = Embedding(channels, channels, shape)
        self.stem = conv(shape.channels, channels)
        self.head = conv(channels, shape.channels, gain=NEAR_ZERO)

    def forward(self, x: Tensor, condition: Tensor, label: Tensor, augment: Tensor | None = None) -> Tensor:
        """`condition` is the schedule's noise_cond; `augment` [B, 9] is given where train.augment is on."""
        embedding = self.embedding(condition, label, augment)
        return self.head(F.silu(self.stem(x) + embedding[:, :, None, None]))
