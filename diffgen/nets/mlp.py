"""A residual multi-layer perceptron, for vectors and other data without neighbourhoods."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from diffgen.core.errors import require
from diffgen.nets.base import MODELS, DataShape
from diffgen.nets.layers import NEAR_ZERO, Embedding, init_xavier, linear


class Block(nn.Module):
    """Pre-norm residual block, with the embedding added between its two layers as in the U-Net's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.layer0, self.layer1 = linear(width, width), linear(width, width)
        self.embed = linear(width, width)
        init_xavier(self.layer1, NEAR_ZERO)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        """(h [B, width], embedding [B, width]) -> [B, width]."""
        return h + self.layer1(F.silu(self.layer0(self.norm(h)) + self.embed(embedding)))


@MODELS.register("mlp")
class MLP(nn.Module):
    """Residual MLP over all values of an example, with the U-Net's embedding of noise level and label."""

    def __init__(self, shape: DataShape, *, width: int, blocks: int) -> None:
        """Build the network.

        Args:
            shape: Of the data; its C H W values are one input vector.
            width: Of every hidden layer; even.
            blocks: Residual blocks of two layers each.
        """
        super().__init__()
        require(4 <= width <= 65536 and width % 2 == 0, f"width={width} must be even and in [4, 65536]")
        require(1 <= blocks <= 256, f"blocks={blocks} must be in [1, 256]")
        self.size = shape.size
        self.embedding = Embedding(width, width, shape)
        self.stem = linear(math.prod(shape.seen), width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(blocks)])
        self.head = linear(width, math.prod(shape.size))
        init_xavier(self.head, NEAR_ZERO)

    def forward(
        self,
        x: Tensor,
        condition: Tensor,
        label: Tensor,
        augment: Tensor | None = None,
        estimate: None = None,
        span: Tensor | None = None,
    ) -> Tensor:
        """F(x).

        Args:
            x: [B, C, H, W].
            condition: The schedule's noise_cond, [B].
            label: int64 [B], negative for none.
            augment: See `unet`.
            estimate: None: this network sees none.
            span: See `unet`.

        Returns:
            [B, C, H, W].
        """
        embedding = self.embedding(condition, label, augment, span)
        h = self.stem(x.flatten(1))
        for block in self.blocks:
            h = block(h, embedding)
        return self.head(F.silu(h)).reshape(-1, *self.size)
