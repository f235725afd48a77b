"""Networks F(x, noise_cond, label). Importing this package fills the table."""

from diffgen.models.base import MODELS, DataShape
from diffgen.models.mlp import MLP
from diffgen.models.unet import UNet

__all__ = ["MLP", "MODELS", "DataShape", "UNet"]
