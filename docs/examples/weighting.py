"""A loss weight of your own: P2, with which the steps near the data count less (Choi et al. 2022, eq. 8).

diffgen-train plugins=[docs/examples/weighting.py] method=ddpm weighting=p2 weighting.gamma=0.5
"""

from torch import Tensor

from diffgen.diffusion.weightings import WEIGHTINGS


@WEIGHTINGS.register("p2")
def p2(alpha: Tensor, sigma: Tensor, c_out: Tensor, *, k: float = 1.0, gamma: float = 1.0) -> Tensor:
    """1 / (k + SNR)^gamma on the eps error, whatever the network predicts."""
    snr = (alpha / sigma) ** 2
    return c_out**2 * snr / (k + snr) ** gamma
