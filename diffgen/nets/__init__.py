"""Networks F(x, noise_cond, label), their layers, optimizers and averages."""

from diffgen.nets.autoencoder import AUTOENCODERS, Autoencoder
from diffgen.nets.base import MODELS, DataShape
from diffgen.nets.dit import DiT
from diffgen.nets.mlp import MLP
from diffgen.nets.published import Published
from diffgen.nets.unet import UNet
from diffgen.nets.unet2d import UNet2D

__all__ = ["AUTOENCODERS", "MLP", "MODELS", "Autoencoder", "DataShape", "DiT", "Published", "UNet", "UNet2D"]
