"""The training loss: the only place where noise meets data."""

from torch import Tensor, nn

from diffgen.diffusion.denoiser import Denoiser, like
from diffgen.diffusion.weightings import Weighting


def denoising_loss(
    denoiser: Denoiser,
    weighting: Weighting,
    x0: Tensor,
    label: Tensor,
    t: Tensor,
    z: Tensor,
    augment: Tensor | None = None,
) -> Tensor:
    """Weighted squared error of the network's output F against a x0 + b z, averaged over channels and pixels.

    Args:
        denoiser: The network in its frame.
        weighting: (alpha, sigma, c_out) -> weight, [B] each. A module's weight w is learned, so it pays -log w: this is
            the likelihood of an error with variance 1/w, and the best w is 1 / (mean error) (Kendall et al. 2018).
        x0: Images in [-1, 1], [B, C, H, W].
        label: int64 [B], `NO_LABEL` where none.
        t: Times [B].
        z: Standard normal noise shaped like x0.
        augment: What was done to the images, [B, 9], or None.

    Returns:
        The loss of each image, [B]. Where papers sum over pixels (EDM) this is smaller by C H W; Adam does not see it.
    """
    alpha, sigma, a, b = denoiser.coefficients(t)
    x = like(alpha, x0) * x0 + like(sigma, x0) * z
    target = like(a, x0) * x0 + like(b, x0) * z
    error = (denoiser.predict(x, t, label, augment) - target).square().flatten(1).mean(1)  # [B]
    weight = weighting(alpha, sigma, -sigma / (b * alpha - a * sigma))
    return weight * error - weight.log() if isinstance(weighting, nn.Module) else weight * error
