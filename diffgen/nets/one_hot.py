"""Tokens for networks of real numbers."""

import torch.nn.functional as F
from torch import Tensor, nn

from diffgen.nets.base import DataShape


class OneHot(nn.Module):
    """Any network over one-hot vectors of tokens: they are channels of what it is given, and its own are logits."""

    def __init__(self, network: nn.Module, vocabulary: int) -> None:
        """Args: network: For examples of the shape that `one_hot` gives."""
        super().__init__()
        self.network, self.vocabulary = network, vocabulary

    def forward(self, x: Tensor, condition: Tensor, label: Tensor) -> Tensor:
        """(int64 [B, *size] in [0, vocabulary], the last for a hidden token, [B], [B]) -> [B, *size, vocabulary]."""
        channels = F.one_hot(x, self.vocabulary + 1).movedim(-1, 1)  # [B, V + 1, *size]
        sides = channels.shape[3:] if x.ndim > 2 else channels.shape[2:]
        logits = self.network(channels.reshape(len(x), -1, *sides).to(condition), condition, label)
        return logits.reshape(channels.shape).movedim(1, -1)[..., :-1]


def one_hot(shape: DataShape) -> DataShape:
    """The shape of one-hot vectors: (C (V + 1), *sides) of tokens (C, *sides), (V + 1, L) of tokens (L,)."""
    values, size = shape.vocabulary + 1, shape.size
    channels = (values * size[0], *size[1:]) if len(size) > 1 else (values, *size)
    return DataShape(channels, shape.num_classes, shape.augment_labels)
