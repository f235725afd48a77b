"""A prediction target of your own: the way from noise to the image, F = (x0 - z) / sqrt(2).

diffgen-train plugins=[docs/examples/parameterization.py] parameterization=way
"""

import torch
from torch import Tensor

from diffgen.diffusion.parameterizations import PARAMETERIZATIONS, Pair


@PARAMETERIZATIONS.register("way")
def way(alpha: Tensor, sigma: Tensor, sigma_data: float) -> Pair:
    """(a, b) of F = a x0 + b z, each shaped like sigma.

    The determinant b alpha - a sigma must not be 0 where the network is used; this one is -(alpha + sigma) / sqrt(2).
    """
    return torch.full_like(sigma, 0.5**0.5), torch.full_like(sigma, -(0.5**0.5))
