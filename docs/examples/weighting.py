"""A loss weight of your own: velocity space, as pixel transformers weigh the error of x0.

diffgen-train plugins=[docs/examples/weighting.py] parameterization=x0 weighting=velocity
"""

from torch import Tensor

from diffgen.diffusion.weightings import WEIGHTINGS


@WEIGHTINGS.register("velocity")
def velocity(alpha: Tensor, sigma: Tensor, c_out: Tensor, *, least: float = 0.05) -> Tensor:
    """(c_out / sigma)^2 on the error of F, with sigma at least `least`: on the straight path the error of z - x0."""
    return (c_out / sigma.clamp(min=least)) ** 2
