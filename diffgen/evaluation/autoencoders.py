"""Figures of an autoencoder, or of the one whose latents a model was trained in: bounds, and how pictures come back."""

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from diffgen.build import Trained
from diffgen.core.settings import FEWEST
from diffgen.data import Source
from diffgen.data.base import spread
from diffgen.data.images import grid, save_png
from diffgen.data.latents import Latents
from diffgen.evaluation import elbo as bounds
from diffgen.evaluation import latent_bits
from diffgen.evaluation.bits_per_dim import mean_and_error
from diffgen.evaluation.measure import PAIRS, distances
from diffgen.evaluation.model import Progress, Row, so_far
from diffgen.evaluation.reconstruction import Channels, Coder, Codes, psnr, ssim, without_ssim
from diffgen.evaluation.reference import Reference

AT_ONCE = 2**22
"""Values of pictures that are looked at together; at most `MOST` pictures."""

MOST = 64


def untold(trained: Trained) -> dict[str, str]:
    """Metrics that an autoencoder has not, or others have not, each with why."""
    if is_autoencoder(trained):
        told = "is of a path of noise, and ckpt is an autoencoder"
        return {name: f"metrics={name} {told}" for name in ("bits", "vlb", "denoising")}
    kind, found = trained.kind, dict[str, str]()
    if not isinstance(kind, Latents):
        told = "is of an autoencoder, and ckpt has none"
        return {name: f"metrics={name} {told}" for name in ("elbo", "reconstruction")}
    found["elbo"] = "metrics=elbo is of an autoencoder alone, and ckpt is a model of latents"
    found["vlb"] = "metrics=vlb is a bound on bits of pixels, and ckpt was trained in latents"
    why = latent_bits.untold(kind)
    return found | ({"bits": why} if why else {})


def is_autoencoder(trained: Trained) -> bool:
    """Whether a checkpoint is an autoencoder itself."""
    return trained.objective.codes


def looked_at(source: Source, n: int, device: torch.device) -> Iterator[tuple[Tensor, list[int]]]:
    """The first n pictures or all there are, uint8 [B, C, H, W] on the device, and their numbers."""
    at_once = max(1, min(MOST, AT_ONCE // math.prod(source.shape.size)))
    numbers = torch.arange(min(n, len(source))).split(at_once)
    for (pixels, _), some in zip(source.batches(iter(numbers), device), numbers, strict=True):
        yield pixels, some.tolist()


def elbo(trained: Trained, device: torch.device, source: Source, n: int, seed: int, progress: Progress) -> Row:
    """Bounds on the bits per dimension of pictures: means, standard errors over pictures, and the two terms of one.

    Args:
        trained: An autoencoder, on the device.
        device: Where to compute.
        source: The pictures, best of all held out from training.
        n: How many of them.
        seed: Of the noise.
        progress: Hears the number of pictures done, and the figure so far.
    """
    network, likelihood = trained.denoiser.network, trained.objective.likelihood  # type: ignore[attr-defined]
    found: list[bounds.Elbo] = []
    for pixels, numbers in looked_at(source, n, device):
        found.append(bounds.elbo(network, network.log_scale, likelihood, pixels, numbers, seed=seed))
        mean, error = mean_and_error(torch.cat([each.total for each in found]))
        progress(numbers[-1] + 1, so_far(mean, error, "bits/dim"))
    row: Row = {"elbo": mean, "elbo_error": error, "elbo_images": numbers[-1] + 1}
    for part in ("rate", "distortion"):
        values = torch.cat([getattr(each, part) for each in found])
        row[f"elbo_{part}"], row[f"elbo_{part}_error"] = mean_and_error(values)
    tighter = [each.iwae for each in found if each.iwae is not None]
    if tighter:
        row["iwae"], row["iwae_error"] = mean_and_error(torch.cat(tighter))
        row["iwae_samples"] = bounds.SAMPLES
    return row


def reconstruction(
    coder: Coder,
    device: torch.device,
    source: Source,
    n: int,
    reference: Reference,
    out: Path,
    progress: Progress,
) -> Row:
    """How pictures come back through an autoencoder, and how much of its latents it uses.

    Pairs, each original above what came back, are in `reconstruction.png`.

    Args:
        coder: The autoencoder, on the device.
        device: Where to compute.
        source: The pictures, best of all held out from training.
        n: How many of them.
        reference: Its extractor tells how far off they are, beside the floors of real pictures.
        out: Folder of the picture.
        progress: Hears the number of pictures done, and the figure so far.
    """
    ratios, same, likeness = list[Tensor](), 0, list[Tensor]()
    features, shown, latents = list[Tensor](), list[Tensor](), Latent(coder)
    chosen = spread(PAIRS, min(n, len(source)))
    why = without_ssim(source.shape.size)
    for pixels, numbers in looked_at(source, n, device):
        back = latents.through(pixels)
        ratio, exact = psnr(pixels, back)
        ratios, same = [*ratios, ratio], same + int(exact.sum())
        likeness += [] if why else [ssim(pixels, back)]
        features.append(reference.extractor(back)[0].cpu())
        shown.append(torch.stack([pixels, back])[:, torch.isin(torch.tensor(numbers), chosen)].cpu())
        mean, error = mean_and_error(torch.cat(ratios))
        progress(numbers[-1] + 1, so_far(mean, error, "dB"))
    pairs = torch.cat(shown, 1)
    save_png(grid(pairs.flatten(0, 1), columns=pairs.shape[1]), out / "reconstruction.png")
    row: Row = {"psnr": mean, "psnr_error": error, "reconstructed": numbers[-1] + 1}
    row |= {"psnr_same": same} if same else {}
    row |= (
        {"ssim_left_out": why}
        if why
        else dict(zip(("ssim", "ssim_error"), mean_and_error(torch.cat(likeness)), strict=True))
    )
    return row | fidelity(torch.cat(features), reference) | latents.figures()


def fidelity(features: Tensor, reference: Reference) -> Row:
    """Frechet distance of what came back, beside the floors of real pictures; of too few there is none."""
    if len(features) < FEWEST:
        return {}
    found = distances(features, reference.train, None if reference.test is None else reference.test[: len(features)])
    return {f"fd_reconstruction{key}": value for key, value in found.items()}


class Latent:
    """The latents of the pictures that were looked at."""

    def __init__(self, coder: Coder) -> None:
        """None were, so far."""
        self.coder, self.channels = coder, Channels()
        self.codes = Codes(coder.quantiser) if coder.quantiser else None

    @torch.inference_mode()
    def through(self, pixels: Tensor) -> Tensor:
        """Pictures as they come back; their latents are noted."""
        posterior = self.coder.encode(pixels)
        if self.codes:
            self.codes.add(posterior.mean)
        elif posterior.log_var is not None:
            self.channels.add(posterior, bounds.rates(self.coder.network, posterior))
        return self.coder.decode(posterior.mean)

    def figures(self) -> Row:
        """Share of codes that are used, or what each channel carries; nothing of latents that are neither."""
        if self.codes:
            total = math.prod(self.codes.quantiser.levels)
            return {"codes_used": self.codes.used, "codes": total, "codes_sites": self.codes.sites}
        if not self.channels.count:
            return {}
        rate = self.channels.rate
        active: Row = {"active_channels": self.channels.active, "latent_channels": len(rate)}
        return active | {"rate_by_channel": [round(each, 4) for each in rate]}
