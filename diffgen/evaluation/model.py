"""Metrics of a model that need no samples: likelihood of images and its bound, denoising errors by noise level."""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffgen.build import Trained
from diffgen.core.devices import float_type
from diffgen.core.files import write_atomically
from diffgen.data import Source
from diffgen.data.latents import Latents
from diffgen.data.splits import Splits
from diffgen.diffusion.denoiser import Denoiser
from diffgen.diffusion.guidance import Guidance, guided
from diffgen.diffusion.schedules import Schedule
from diffgen.evaluation import bits_per_dim as likelihood
from diffgen.evaluation import latent_bits, text_bits
from diffgen.evaluation.denoising import compare, denoising_errors, noise_levels

PLAIN = Guidance(scale=1.0)

LIKELIHOOD_BATCH = 32
TOLERANCE = 1e-4
TERMS = 32
"""Of the variational bound, for each image. With 30, one image's figure scattered by 0.14 bits/dim around that of all
999 (digits), which is little beside the 0.46 of images."""

BATCH, LEVELS = 256, 12
LOWEST, HIGHEST = 0.02, 80.0
"""Noise levels sigma/alpha between which denoising is looked at, where the schedule has them."""

CURVES = {"train": "training", "test": "held-out"}

Row = dict[str, Any]
Progress = Callable[[int, str], None]
"""Hears the number of images done, and a figure so far."""


def first(source: Source, n: int) -> tuple[Tensor, Tensor]:
    """The first n images and labels, or all if there are fewer."""
    return next(source.batches(iter([torch.arange(min(n, len(source)))]), torch.device("cpu")))


def batches(source: Source, n: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor, list[int]]]:
    """The first n images or all there are, uint8 [B, *size], with labels [B], on the device, and their numbers."""
    pixels, labels = first(source, n)
    for numbers in torch.arange(len(pixels)).split(_at_once(source, LIKELIHOOD_BATCH)):
        yield source.kind.channels_first(pixels[numbers]).to(device), labels[numbers].to(device), numbers.tolist()


def _at_once(source: Source, images: int) -> int:
    """Examples that are about as much work as so many images: a clip is as many as it has frames."""
    return max(1, images // source.shape.size[1]) if source.kind.moving else images


def so_far(mean: float, error: float, unit: str) -> str:
    """A figure beside a bar; one example has no standard error."""
    return f"{mean:.3f}{f' +- {error:.3f}' if error < math.inf else ''} {unit}"


def bits(
    denoiser: Denoiser,
    device: torch.device,
    source: Source,
    n: int,
    seed: int,
    progress: Progress,
    latents: Latents | None = None,
) -> Row:
    """Bits per dimension of images along the ODE: mean, standard error, network calls.

    Args:
        denoiser: On the device.
        device: Where to compute.
        source: The images, best of all held out from training.
        n: How many of them.
        seed: Of dequantisation and probes.
        progress: Hears the number of images done, and the figure so far.
        latents: The kind of a model that was trained in some; its figure is a bound, see `latent_bits`.
    """
    measure = partial(latent_bits.bits_per_dim, latents) if latents else likelihood.bits_per_dim
    found: list[Tensor] = []
    calls: list[int] = []
    for pixels, label, numbers in batches(source, n, device):
        denoise = guided(denoiser, label, PLAIN, clip=False)
        result = measure(denoise, denoiser.schedule, pixels, numbers, seed=seed, rtol=TOLERANCE, atol=TOLERANCE)
        found.append(result.each.cpu())
        calls.append(result.nfe)
        mean, error = likelihood.mean_and_error(torch.cat(found))
        progress(numbers[-1] + 1, so_far(mean, error, "bits/dim"))
    row: Row = {"bits": mean, "bits_error": error, "bits_nfe": sum(calls) / len(calls)}
    row |= {"bits_in": latent_bits.MEASURE} if latents else {}
    return row | {f"bits_{source.kind.unit}": numbers[-1] + 1}


def chain_length(schedule: Schedule) -> int | None:
    """Entries of a schedule that is a table, so that a model trained on it has a variational bound; else None."""
    steps = getattr(schedule, "steps", None)
    return steps if isinstance(steps, int) and steps >= 2 else None


def untold(trained: Trained, schedule: str) -> dict[str, str]:
    """Metrics that cannot be told of a model, each with why; `schedule` is what its own is called."""
    if trained.objective.discrete:
        return dict.fromkeys(
            ("vlb", "denoising"), "metrics=vlb,denoising are of Gaussian noise, and ckpt unmasks tokens"
        )
    if trained.kind.textual:
        return {"bits": "metrics=bits needs a likelihood of text, and ckpt denoises codes of it, which have none"}
    if not trained.objective.estimates:
        told = f"are of E[x0 | x_t], which ckpt does not give: it {trained.objective.makes}"
        return dict.fromkeys(("bits", "vlb", "denoising"), f"metrics=bits,vlb,denoising {told}")
    if chain_length(trained.denoiser.schedule) is None:
        return {"vlb": f"metrics=vlb is the bound of a chain of steps, and schedule={schedule} of ckpt is continuous"}
    return {}


def vlb(
    denoiser: Denoiser, steps: int, device: torch.device, source: Source, n: int, seed: int, progress: Progress
) -> Row:
    """Variational bound on the bits per dimension of images: mean, its parts, standard errors, network calls.

    x0_hat is clipped to [-1, 1], as in the code of Ho et al. 2020. Of the sum over the chain `TERMS` terms are
    evaluated for each image, or all if there are no more.

    Args:
        denoiser: On the device; its schedule is a table.
        steps: Entries of the table.
        device: Where to compute.
        source: The images, best of all held out from training.
        n: How many of them.
        seed: Of the noise, and of which terms.
        progress: Hears the number of images done, and the figure so far.
    """
    draws = TERMS if steps - 1 > TERMS else None
    found: list[likelihood.Bound] = []
    for pixels, label, numbers in batches(source, n, device):
        denoise = partial(_clipped, denoiser, label)
        bound = likelihood.variational_bound(
            denoise, denoiser.schedule, pixels, numbers, steps=steps, seed=seed, draws=draws
        )
        found.append(bound)
        mean, error = likelihood.mean_and_error(torch.cat([each.total for each in found]))
        progress(numbers[-1] + 1, so_far(mean, error, "bits/dim"))
    row: Row = {"vlb": mean, "vlb_error": error, f"vlb_{source.kind.unit}": numbers[-1] + 1}
    row["vlb_nfe"] = (draws or steps - 1) + 1
    for part, values in zip(likelihood.Bound._fields, zip(*found, strict=True), strict=True):
        row[f"vlb_{part}"], row[f"vlb_{part}_error"] = likelihood.mean_and_error(torch.cat(values))
    return row


def masked_bits(
    trained: Trained, device: torch.device, source: Source, n: int, seed: int, batch: int, progress: Progress
) -> Row:
    """Upper bound on the bits of examples under masked diffusion: mean a token, standard error over examples.

    Args:
        trained: Its network on the device.
        device: Where to compute.
        source: The examples, best of all held out from training.
        n: How many of them, spread evenly.
        seed: Of the masks.
        batch: Examples at once.
        progress: Hears the number of examples done, and the figure so far.
    """
    kind, each, changed = trained.kind, torch.empty(0, dtype=torch.float64), 0
    entries = spread(len(source), n)
    numbers = iter(entries.tolist())
    for stored, labels in source.batches(iter(entries.split(batch)), device):
        x0 = kind.encode(stored)
        changed += int((kind.decode(x0) != stored).flatten(1).any(1).sum())
        bits = text_bits.bound(trained.denoiser, x0, labels, [next(numbers) for _ in x0], seed=seed)
        each = torch.cat([each, bits])
        mean, error = (value / x0[0].numel() for value in likelihood.mean_and_error(each))
        progress(len(each), so_far(mean, error, kind.measure))
    row: Row = {"bits": mean, "bits_error": error, "bits_in": kind.measure, "bits_draws": text_bits.DRAWS}
    return row | {f"bits_{kind.unit}": len(each), "tokens": x0[0].numel()} | ({"rounded": changed} if changed else {})


def spread(size: int, n: int) -> Tensor:
    """Numbers of n of so many examples, at even distances, or of all if there are fewer, int64."""
    n = min(n, size)
    return torch.arange(n) * size // n


def _clipped(denoiser: Denoiser, label: Tensor, x: Tensor, t: Tensor) -> Tensor:
    return denoiser(x, t, label).clamp(-1, 1)


@torch.inference_mode()
def denoising(
    denoiser: Denoiser,
    device: torch.device,
    splits: Splits,
    n: int,
    seed: int,
    out: Path,
    progress: Progress,
    latents: Latents | None = None,
) -> Row:
    """Weighted denoising error by noise level, on training images and, if there are some, on held-out ones.

    Where the two part, the model knows its training images beyond their kind. The curves are in `denoising.png`. Of a
    model that was trained in `latents` it is the error of these.
    """
    from diffgen.core.plots import curves

    ends = torch.tensor([denoiser.schedule.t_min, denoiser.schedule.t_max], dtype=torch.float64)
    low, high = (denoiser.schedule.sigma(ends) / denoiser.schedule.alpha(ends)).tolist()
    nsrs = noise_levels(max(1.001 * low, LOWEST), min(0.999 * high, HIGHEST), LEVELS)
    done, unit = 0, splits.train.kind.unit

    def more(images: int) -> None:
        nonlocal done
        done += images
        progress(done, f"{unit} denoised")

    train = _errors(denoiser, device, splits.train, n, nsrs, seed, more, latents)
    if splits.test is None:
        bins = [{"nsr": nsr, "train": error} for nsr, error in zip(nsrs, train.mean(0).tolist(), strict=True)]
    else:
        test = _errors(denoiser, device, splits.test, n, nsrs, seed, more, latents)
        bins = [each._asdict() for each in compare(train, test, nsrs)]
    kinds = {key: f"{words} {unit}" for key, words in CURVES.items() if key in bins[0]}
    shown = {words: [(math.log10(b["nsr"]), b[key]) for b in bins] for key, words in kinds.items()}
    write_atomically(out / "denoising.png", curves(shown, "log10 sigma/alpha", "weighted denoising error"))
    means = {f"denoising_{key}": sum(b[key] for b in bins) / len(bins) for key in kinds}
    return {**means, "denoising": [{key: round(value, 6) for key, value in b.items()} for b in bins]}


def _errors(
    denoiser: Denoiser,
    device: torch.device,
    source: Source,
    n: int,
    nsrs: list[float],
    seed: int,
    more: Callable[[int], None],
    latents: Latents | None,
) -> Tensor:
    (pixels, labels), kind = first(source, n), latents or source.kind
    parts, batch = [], _at_once(source, BATCH)
    for start in range(0, len(pixels), batch):
        here = slice(start, start + batch)
        denoise = guided(denoiser, labels[here].to(device), PLAIN, clip=False)
        x0 = kind.encode(pixels[here].to(device)).to(float_type(device))
        numbers = list(range(start, start + len(x0)))
        sigma_data = denoiser.sigma_data
        parts.append(denoising_errors(denoise, denoiser.schedule, x0, numbers, nsrs, sigma_data=sigma_data, seed=seed))
        more(len(x0))
    return torch.cat(parts)
