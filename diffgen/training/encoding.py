"""A data set's pictures as the latents of an autoencoder, in which a run learns."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from diffgen.build import make_autoencoder
from diffgen.core.console import Reporter, count
from diffgen.core.errors import CheckpointError, DataError, require
from diffgen.core.files import cache_folder
from diffgen.core.processes import on_main
from diffgen.core.registry import build
from diffgen.core.settings import LatentSettings
from diffgen.core.signals import StopRequest
from diffgen.data import Source
from diffgen.data.kinds import KINDS
from diffgen.data.latents import Encoded, Latents
from diffgen.nets import DataShape
from diffgen.storage import checkpoint
from diffgen.storage.autoencoder_file import Found, find, group
from diffgen.storage.checkpoint import Description
from diffgen.storage.run_directory import begin_from, going_on_from
from diffgen.training import latent_cache
from diffgen.training.latent_cache import PIECE, Encoder

DIGITS = 4
"""Of the scale: on another machine the last digits of an encoding differ, and a run that goes on keeps its scale."""


def goes_on_from(config: Mapping[str, Any], resume: str) -> Description | None:
    """What the model says of itself from which a run will go on, or None.

    Args:
        config: Of the run.
        resume: Its `train.resume`.

    Raises:
        UsageError: The run will be refused; see `run_directory.choose_run`.
        CheckpointError: Alike.
    """
    folder = going_on_from(config["run_dir"], resume)
    return None if folder is None else checkpoint.describe(folder, "train.resume")


def _held(before: Description | None, path: str) -> Path | None:
    """The model of the run that goes on, if it holds the autoencoder of this path; None: it is read anew.

    So a run goes on in the same latents where that autoencoder is gone, or was trained further.
    """
    if before is None:
        return None
    told = group((checkpoint.run_config(before.path) or {}).get("latent"))
    return before.path if told.get("path") == path and checkpoint.holds_autoencoder(before.path) else None


def _kept(before: Description | None, found: Found, given: str) -> Latents | None:
    """The kind of the run that goes on, which must have learned in these latents; None of a new one.

    Raises:
        CheckpointError: It did not, which is said before all pictures are encoded.
    """
    if before is None:
        return None
    kind = group(group(before.config.get("data")).get("kind"))
    was = kind.get("hash")
    if was == found.hash:
        kept: Latents = build(KINDS, kind)
        return kept
    where = f"in the latents of another autoencoder, {str(was)[:12]}" if was else "on no latents"
    told = f"cannot go on from {before.path.parent}: it was trained {where}, and {given} is {found.hash[:12]}"
    raise CheckpointError(f"{told}; {begin_from(before.path.parent)}, in another run_dir")


def _check_draws(encoder: Encoder, size: tuple[int, ...], given: str) -> None:
    """Require a posterior where draws of it are wanted: codes, and some published autoencoders, have none."""
    if encoder.posterior == "mean":
        return
    with torch.inference_mode():
        posterior = encoder.network.encode(torch.zeros(1, *size, device=encoder.device))
    told = f"latent.posterior={encoder.posterior} draws latents, and those of {given} are certain"
    require(posterior.log_var is not None, f"{told}: latent.posterior=mean")


def encoded(
    whole: Source,
    settings: LatentSettings,
    *,
    mirrored: bool,
    before: Description | None,
    accelerator: Accelerator,
    reporter: Reporter,
    request: StopRequest,
    fits: Callable[[DataShape], None],
) -> tuple[Encoded, Found]:
    """The latents of a data set's pictures, and the autoencoder that makes them.

    Args:
        whole: The pictures.
        settings: Which autoencoder, and how it is asked.
        mirrored: Whether mirrored pictures are learned from, too: these are encoded beside the others.
        before: Of the run that goes on; see `goes_on_from`.
        accelerator: Each process encodes a part.
        reporter: Shows how far it is.
        request: Ends the encoding.
        fits: Is told the shape of the latents before, and may refuse it.

    Raises:
        StoppedBefore: A signal came.
        UsageError: The data are no pictures, or of another size than the autoencoder's.
        CheckpointError: The path holds no autoencoder, or the run that goes on has another.
        EnvironmentFault: The cache cannot be written.
    """
    assert settings.path is not None
    given, kind = f"latent.path={settings.path!r}", whole.kind
    require(kind.judged and kind.bounded, f"{given} is of pictures, and the data is {kind.unit}")
    place = settings.path
    own = on_main(accelerator, lambda: _held(before, place))
    found = find(str(own or place), "latent.path")
    told = f"{given} was written anew while this run read it: type the same command again"
    require(on_main(accelerator, lambda: found.hash) == found.hash, told)
    size = tuple(whole.shape.size)
    told = f"{given} is an autoencoder of pictures of {found.size}, and the data is {whole.shape}"
    require(found.size in (None, size), told)
    kept = _kept(before, found, given)
    pictures: Any = kind.as_numbers()  # pixels, since they are judged and bounded
    for key, here in (("background", pictures.background), ("range", pictures.range)):
        there = found.read_as.get(key)
        if there not in (None, here) and here is not None:  # bytes have no range: numbers and they may show the same
            reporter.warn(f"{given} learned from pictures read with dataset.{key}={there}, and these are with {here}")
    network = make_autoencoder(found.config, size, found.weights, Path(settings.path))
    network.to(accelerator.device)  # type: ignore[attr-defined]
    encoder = Encoder(network, found.hash, settings.posterior, mirrored, accelerator.device)
    _check_draws(encoder, size, given)
    fits(DataShape(network.latent_size, len(whole.classes)))
    home = Path(settings.cache or cache_folder() / "latents")
    folder = on_main(accelerator, lambda: home / latent_cache.key(whole, encoder))
    values, labels, made = latent_cache.latents(whole, encoder, folder, accelerator, reporter, request)
    if kept is None:
        mean, std = scale(values)
        kept = Latents(
            size=size, autoencoder=found.config, hash=found.hash, likelihood=found.likelihood, mean=mean, std=std
        )
    latent_kind = replace(kept, background=pictures.background, range=pictures.range).with_network(network)
    latent_kind.check(tuple(values.shape[2:]))
    drawn = "means" if settings.posterior == "mean" else "one draw each"
    where = f"{drawn}, {count(values.nbytes)}B, {'encoded now and kept' if made else 'found'} in {folder}"
    return Encoded(whole, latent_kind, values, labels, where), found


def scale(latents: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of latents [N, views, c, h, w], over all of them."""
    sums = torch.zeros(2, latents.shape[2], dtype=torch.float64)
    for some in latents.split(PIECE):
        values = some.double()
        sums += torch.stack([values.sum((0, 1, 3, 4)), values.square().sum((0, 1, 3, 4))])
    mean, square = sums / (latents.numel() / latents.shape[2])
    std = (square - mean**2).clamp(min=0).sqrt()
    if not bool((std > 1e-6).all()):
        raise DataError(
            f"channel {int(std.argmin())} of the latents is the same for all pictures: the autoencoder has collapsed; "
            "train it with a smaller objective.kl"
        )
    return _rounded(mean), _rounded(std)


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.{DIGITS}g}") for value in values.tolist())
