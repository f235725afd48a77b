"""Guidance: steering the denoiser away from a worse one.

D = D_ref + w (D - D_ref), with w = 1 for no guidance. The reference is the same network without its condition, the
label and what it is told of known frames (classifier-free guidance, Ho & Salimans 2022), or a smaller or less trained
one with the label (autoguidance, Karras et al. 2024). For the same x_t, guiding x0_hat, z_hat or the velocity is the
same thing.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from diffgen.core.errors import require
from diffgen.diffusion.denoiser import NO_LABEL, Denoiser


@dataclass(frozen=True, kw_only=True)
class Guidance:
    """How to guide.

    Attributes:
        scale: w; 1 is off.
        interval: Levels of sigma/alpha, (low, high), inside which to guide (Kynkaanniemi et al. 2024); None is all.
        rescale: Share phi in [0, 1] of the guided x0_hat that is scaled back to the standard deviation of the unguided
            one, image by image (Lin et al. 2024, sec. 3.4), against over-exposed pictures at high scales.
        guide: The reference of autoguidance; None takes the network itself without its condition.
        told: w where the network is told of known frames; None takes `scale`.
    """

    scale: float
    interval: tuple[float, float] | None = None
    rescale: float = 0.0
    guide: Denoiser | None = None
    told: float | None = None

    def __post_init__(self) -> None:
        require(math.isfinite(self.scale), f"guidance={self.scale} must be finite")
        require(0 <= self.rescale <= 1, f"guidance_rescale={self.rescale} must be in [0, 1]")
        low, high = self.interval or (0.0, math.inf)
        require(0 <= low < high, f"guidance_interval=[{low:g}, {high:g}] must satisfy 0 <= low < high")

    def where(self, *, told: bool) -> "Guidance":
        """The same with the one scale that counts: where the network is told of known frames, or of none."""
        return replace(self, scale=self.told if told and self.told is not None else self.scale, told=None)

    def acts_at(self, nsr: float) -> bool:
        """Whether to guide at this sigma/alpha."""
        low, high = self.interval or (0.0, math.inf)
        return self.scale != 1 and low <= nsr <= high


def guided(
    denoiser: Denoiser,
    label: Tensor,
    guidance: Guidance,
    *,
    clip: bool,
    doubles: bool = True,
    remembers: bool = False,
) -> Callable[..., Tensor]:
    """The function (x [B, ...], t []) -> x0_hat that samplers see, with label, guidance and clipping closed over.

    Args:
        denoiser: The denoiser.
        label: int64 [B].
        guidance: How to guide; without labels, known frames and a guide there is nothing to guide by.
        clip: Whether to clip x0_hat to [-1, 1].
        doubles: Whether the network may be given images with and without their condition in one batch, twice the size.
        remembers: Whether a network that sees its earlier estimate is given that of the last call, as on a walk of a
            sampler; else it is given none, and the function is one of x and t.

    Raises:
        UsageError: The guide has another noise schedule.
    """
    guidance = guidance.where(told=denoiser.told is not None)
    guide, schedule = guidance.guide, denoiser.schedule
    require(
        guide is None or guide.schedule == schedule,
        "guide has another noise schedule than ckpt: they cannot be combined",
    )
    guide = guide and guide.knowing(denoiser.told)
    possible = guide is not None or denoiser.told is not None or bool((label != NO_LABEL).any())
    unknown = torch.full_like(label, NO_LABEL)
    untold, both_told, doubled = denoiser.knowing(None), twofold(denoiser, len(label)), torch.cat([label, unknown])
    earlier: tuple[Tensor, ...] = ()  # x0_hat of the call before, for a network that wants to see it

    def both(x: Tensor, t: Tensor, **more: Tensor) -> tuple[Tensor, Tensor]:
        """x0_hat and the reference; in one batch where one network gives both, which pays for small batches."""
        if guide is not None:
            reference = guide(x, t, label, *(earlier if guide.self_condition else ()), **more)
            return denoiser(x, t, label, *earlier, **more), reference
        if not doubles:
            return denoiser(x, t, label, *earlier, **more), untold(x, t, unknown, *earlier, **more)
        twice = [torch.cat([estimate, estimate]) for estimate in earlier]
        main, reference = both_told(torch.cat([x, x]), t, doubled, *twice, **more).chunk(2)
        return main, reference

    def denoise(x: Tensor, t: Tensor, end: Tensor | None = None) -> Tensor:
        nonlocal earlier
        more = {} if end is None else {"end": end}
        if possible and guidance.acts_at(denoiser.preconditioning(t).nsr):
            main, reference = both(x, t, **more)
            x0_hat = rescaled(reference + guidance.scale * (main - reference), main, guidance.rescale)
        else:
            x0_hat = denoiser(x, t, label, *earlier, **more)
        x0_hat = x0_hat.clamp(-1, 1) if clip else x0_hat
        earlier = (x0_hat,) if remembers and denoiser.self_condition else ()
        return x0_hat

    return denoise


def twofold(denoiser: Denoiser, n: int) -> Denoiser:
    """The denoiser of 2 n examples, which is told of the first n what it was told, and nothing of the others."""
    if denoiser.told is None:
        return denoiser
    told = denoiser.told.expand(n, *denoiser.told.shape[1:])
    return denoiser.knowing(torch.cat([told, torch.zeros_like(told)]))


def rescaled(x0_hat: Tensor, unguided: Tensor, share: float) -> Tensor:
    """Mix in x0_hat scaled to the standard deviation of the unguided one, image by image."""
    if share == 0:
        return x0_hat
    axes = tuple(range(1, x0_hat.ndim))
    ratio = unguided.std(axes, keepdim=True) / x0_hat.std(axes, keepdim=True)
    return x0_hat * (share * ratio + (1 - share))
