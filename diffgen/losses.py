"""The training loss: the only place where noise meets data."""

from collections.abc import Callable

from torch import Tensor

from diffgen.denoiser import Denoiser, like

Weighting = Callable[[Tensor, Tensor, Tensor], Tensor]


def denoising_loss(denoiser: Denoiser, weighting: Weighting, x0: Tensor, label: Tensor, t: Tensor, z: Tensor) -> Tensor:
    """Weighted squared error of the network's output F against a x0 + b z, averaged over channels and pixels.

    Args:
        denoiser: The network in its frame.
        weighting: (alpha, sigma, c_out) -> weight, [B] each.
        x0: Images in [-1, 1], [B, C, H, W].
        label: int64 [B], `NO_LABEL` where none.
        t: Times [B].
        z: Standard normal noise shaped like x0.

    Returns:
        The loss of each image, [B]. Where papers sum over pixels (EDM) this is smaller by C H W, which Adam does not see.
    """
    alpha, sigma, a, b = denoiser.coefficients(t)
    x = like(alpha, x0) * x0 + like(sigma, x0) * z
    target = like(a, x0) * x0 + like(b, x0) * z
    error = (denoiser.predict(x, t, label) - target).square().flatten(1).mean(1)  # [B]
    return weighting(alpha, sigma, denoiser.c_out(t)) * error
