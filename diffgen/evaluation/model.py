"""Metrics of a model that need no samples: likelihood of held-out images, and denoising errors by noise level."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffgen.datasets import ImageSource
from diffgen.denoiser import Denoiser
from diffgen.evaluation import likelihood
from diffgen.evaluation.denoising import compare, denoising_errors, noise_levels
from diffgen.evaluation.extractors import Splits
from diffgen.files import write_atomically
from diffgen.guidance import Guidance, guided
from diffgen.images import to_float

PLAIN = Guidance(scale=1.0)

LIKELIHOOD_BATCH = 32
TOLERANCE = 1e-4

BATCH, LEVELS = 256, 12
LOWEST, HIGHEST = 0.02, 80.0
"""Noise levels sigma/alpha between which denoising is looked at, where the schedule has them."""

Row = dict[str, Any]


def first(source: ImageSource, n: int) -> tuple[Tensor, Tensor]:
    """The first n images and labels, or all if there are fewer."""
    return next(source.batches(iter([torch.arange(min(n, len(source)))]), torch.device("cpu")))


def bits(
    denoiser: Denoiser, device: torch.device, test: ImageSource, n: int, seed: int, told: Callable[[int, str], None]
) -> Row:
    """Bits per dimension of held-out images along the ODE: mean, standard error, network calls.

    Args:
        denoiser: On the device.
        device: Where to compute.
        test: Held-out images.
        n: How many of them.
        seed: Of dequantisation and probes.
        told: Hears the number of images done, and the figure so far.
    """
    pixels, labels = first(test, n)
    found: list[Tensor] = []
    calls: list[int] = []
    for start in range(0, len(pixels), LIKELIHOOD_BATCH):
        here = slice(start, start + LIKELIHOOD_BATCH)
        denoise = guided(denoiser, labels[here].to(device), PLAIN, clip=False)
        some = pixels[here].to(device)
        numbers = list(range(start, start + len(some)))
        result = likelihood.bits_per_dim(
            denoise, denoiser.schedule, some, numbers, seed=seed, rtol=TOLERANCE, atol=TOLERANCE
        )
        found.append(result.each.cpu())
        calls.append(result.nfe)
        mean, error = likelihood.mean_and_error(torch.cat(found))
        told(start + len(some), f"{mean:.3f} +- {error:.3f} bits/dim")
    return {"bits": mean, "bits_error": error, "bits_images": len(pixels), "bits_nfe": sum(calls) / len(calls)}


@torch.inference_mode()
def denoising(denoiser: Denoiser, device: torch.device, splits: Splits, n: int, seed: int, out: Path) -> Row:
    """Weighted denoising error by noise level, on training and on held-out images; a curve in `denoising.png`.

    Where the two part, the model knows its training images beyond their kind.
    """
    from diffgen.plots import curves

    ends = torch.tensor([denoiser.schedule.t_min, denoiser.schedule.t_max], dtype=torch.float64)
    low, high = (denoiser.schedule.sigma(ends) / denoiser.schedule.alpha(ends)).tolist()
    nsrs = noise_levels(max(1.001 * low, LOWEST), min(0.999 * high, HIGHEST), LEVELS)
    errors = [_errors(denoiser, device, source, n, nsrs, seed) for source in (splits.train, splits.test)]
    bins = compare(errors[0], errors[1], nsrs)
    shown = {
        "training images": [(math.log10(b.nsr), b.train) for b in bins],
        "held-out images": [(math.log10(b.nsr), b.test) for b in bins],
    }
    write_atomically(out / "denoising.png", curves(shown, "log10 sigma/alpha", "weighted denoising error"))
    means = {f"denoising_{kind}": sum(getattr(b, kind) for b in bins) / len(bins) for kind in ("train", "test")}
    return {**means, "denoising": [{key: round(value, 6) for key, value in b._asdict().items()} for b in bins]}


def _errors(
    denoiser: Denoiser, device: torch.device, source: ImageSource, n: int, nsrs: list[float], seed: int
) -> Tensor:
    pixels, labels = first(source, n)
    parts = []
    for start in range(0, len(pixels), BATCH):
        here = slice(start, start + BATCH)
        denoise = guided(denoiser, labels[here].to(device), PLAIN, clip=False)
        x0 = to_float(pixels[here].to(device)).double()
        numbers = list(range(start, start + len(x0)))
        sigma_data = denoiser.sigma_data
        parts.append(denoising_errors(denoise, denoiser.schedule, x0, numbers, nsrs, sigma_data=sigma_data, seed=seed))
    return torch.cat(parts)
