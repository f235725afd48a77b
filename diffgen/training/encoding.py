"""All pictures of a data set to latents, once: kept in the cache, in pieces, so that a run that was stopped goes on."""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from diffgen.build import make_autoencoder
from diffgen.core.console import Reporter, count
from diffgen.core.errors import CheckpointError, DataError, UsageError, require
from diffgen.core.files import cache_folder
from diffgen.core.processes import faults_told, on_all, on_main
from diffgen.core.randomness import image_noise
from diffgen.core.settings import LatentSettings
from diffgen.core.signals import StoppedBefore, StopRequest
from diffgen.data import InMemory, Source
from diffgen.data.base import Part
from diffgen.data.latents import AT_ONCE, AutoencoderNetwork, Encoded, Latents
from diffgen.data.places import Place
from diffgen.evaluation.classifier import identity
from diffgen.storage import checkpoint
from diffgen.storage.autoencoder_file import Found, find
from diffgen.storage.tensor_file import load_tensors, write_tensors

PIECE = 2048
"""Pictures of a file."""

FORMAT = 1
"""Of what is kept; another number where pictures are read or encoded otherwise."""

DIGITS = 4
"""Of the scale: on another machine the last digits of an encoding differ, and a run that goes on keeps its scale."""


class Piece(NamedTuple):
    """A file of latents float32 [n, views, c, h, w], and which pictures they are of."""

    path: Path
    entries: Tensor


def held(config: Mapping[str, Any], resume: str) -> Path | None:
    """The model of the run that goes on, if it holds the autoencoder that the config names; None: it is read anew.

    So a run goes on in the same latents where that autoencoder is gone, or was trained further.

    Args:
        config: Of the run.
        resume: Its `train.resume`.
    """
    place = config["run_dir"] if resume in ("auto", "none") else resume
    if resume == "none" or place is None or not Path(place).exists():
        return None
    try:
        about = checkpoint.describe(Path(place), "train.resume")
    except (CheckpointError, UsageError):
        return None  # there is none, or whoever loads it says what is wrong
    before = (checkpoint.run_config(about.path) or {}).get("latent")
    if not isinstance(before, Mapping) or before.get("path") != config["latent"]["path"]:
        return None
    return about.path if checkpoint.holds_autoencoder(about.path) else None


def encoded(
    whole: Source,
    settings: LatentSettings,
    *,
    mirrored: bool,
    own: Path | None,
    accelerator: Accelerator,
    reporter: Reporter,
    request: StopRequest,
) -> tuple[Encoded, Found]:
    """The latents of a data set's pictures, and the autoencoder that makes them.

    Args:
        whole: The pictures.
        settings: Which autoencoder, and how it is asked.
        mirrored: Whether mirrored pictures are learned from, too: these are encoded beside the others.
        own: A checkpoint of the run that goes on, whose autoencoder and scale are taken; see `held`.
        accelerator: Each process encodes a part.
        reporter: Shows how far it is.
        request: Ends the encoding.

    Raises:
        StoppedBefore: A signal came.
        UsageError: The data are no pictures, or of another size than the autoencoder's.
        CheckpointError: The path holds no autoencoder.
        EnvironmentFault: The cache cannot be written.
    """
    assert settings.path is not None
    kind = whole.kind
    require(kind.judged and kind.bounded, f"latent.path={settings.path!r} is of pictures, and the data is {kind.unit}")
    found = find(str(own or settings.path), "latent.path")
    told = f"latent.path={settings.path!r} was written anew while this run read it: type the same command again"
    require(on_main(accelerator, lambda: found.hash) == found.hash, told)
    told = f"latent.path={settings.path!r} is an autoencoder of pictures of {found.size}, and the data is {whole.shape}"
    require(found.size in (None, tuple(whole.shape.size)), told)
    network = make_autoencoder(found.config, whole.shape.size, found.weights, Path(settings.path))
    network.to(accelerator.device)  # type: ignore[attr-defined]
    folder = Path(settings.cache or cache_folder() / "latents") / _key(whole, found, settings, mirrored=mirrored)
    pieces = [
        Piece(folder / f"{int(entries[0]):09d}.safetensors", entries)
        for entries in torch.arange(len(whole)).split(PIECE)
    ]
    made = _encode_missing(pieces, whole, network, settings, mirrored, accelerator, reporter, request)
    size = (2 if mirrored else 1, *network.latent_size)
    latents, labels = (torch.cat(column) for column in zip(*(_read(piece, size) for piece in pieces), strict=True))
    mean, std = scale(latents) if own is None else scale_of(own)
    pictures = kind.as_numbers()
    latent_kind = Latents(
        background=getattr(pictures, "background", "white"), range=getattr(pictures, "range", None),
        size=tuple(whole.shape.size), autoencoder=found.config, hash=found.hash, likelihood=found.likelihood,
        mean=mean, std=std,
    ).with_network(network)  # fmt: skip
    latent_kind.check(tuple(latents.shape[2:]))
    drawn = "means" if settings.posterior == "mean" else "one draw each"
    home = f"{drawn}, {count(latents.nbytes)}B, {'encoded now and kept' if made else 'found'} in {folder}"
    return Encoded(whole, latent_kind, latents, labels, home), found


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


def scale_of(own: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """That of a checkpoint."""
    kind = checkpoint.describe(own).config["data"]["kind"]
    return tuple(kind["mean"]), tuple(kind["std"])


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.{DIGITS}g}") for value in values.tolist())


def _key(whole: Source, found: Found, settings: LatentSettings, *, mirrored: bool) -> str:
    """A name that differs wherever the latents may."""
    facts = [FORMAT, fingerprint(whole), found.hash, mirrored, settings.posterior, len(whole), list(whole.shape.size)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:24]


def fingerprint(source: Source) -> str:
    """What tells pictures and labels from others: of those in memory their digest.

    Of others how they are read, and the names, sizes and times of their files.
    """
    if isinstance(source, InMemory):
        return source.digest
    total = hashlib.sha256(identity(source).encode())
    whole = source
    while isinstance(whole, Part):
        total.update(whole.entries.numpy().tobytes())
        total.update(repr(whole.numbers).encode())
        whole = whole.whole
    if isinstance(whole, InMemory):
        total.update(whole.digest.encode())
    total.update(repr([whole.kind, getattr(whole, "labels", None)]).encode())
    for path in _files(whole):
        status = path.stat()
        total.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    return total.hexdigest()


def _files(source: Source) -> list[Path]:
    """What pictures that are not in memory are read from."""
    place: Place | None = getattr(source, "place", None)
    if place is None:
        return []
    if place.root is not None:
        return [place.root / name for name in place.names]
    return getattr(place, "files", [Path(place.title)])


def _encode_missing(
    pieces: list[Piece],
    whole: Source,
    network: AutoencoderNetwork,
    settings: LatentSettings,
    mirrored: bool,
    accelerator: Accelerator,
    reporter: Reporter,
    request: StopRequest,
) -> bool:
    """Write the pieces that are not there, each process its own; whether there were any."""
    there = on_main(accelerator, lambda: [piece.path.is_file() for piece in pieces])
    missing = [piece for piece, known in zip(pieces, there, strict=True) if not known]
    mine = missing[accelerator.process_index :: accelerator.num_processes]
    if missing:
        reporter.say(f"encoding {len(whole):,} pictures, once: {pieces[0].path.parent}")

    def encode() -> None:
        done, todo = 0, sum(len(piece.entries) for piece in mine)
        with reporter.progress(max(todo, 1), 0) as line:
            for piece in mine:
                latents, labels = _encode(
                    whole, piece.entries, network, settings, mirrored, accelerator.device, request
                )
                write_tensors({"latents": latents, "labels": labels}, piece.path)
                done += len(piece.entries)
                line.update(done, f"{count(done * accelerator.num_processes)} img encoded")

    if missing:
        with faults_told(accelerator):
            on_all(encode)
    return bool(missing)


@torch.inference_mode()
def _encode(
    whole: Source,
    entries: Tensor,
    network: AutoencoderNetwork,
    settings: LatentSettings,
    mirrored: bool,
    device: torch.device,
    request: StopRequest,
) -> tuple[Tensor, Tensor]:
    """Latents [n, views, c, h, w] of some pictures, and their labels."""
    views, labels, done = [], [], 0
    most = max(1, min(256, AT_ONCE // math.prod(whole.shape.size)))
    for stored, label in whole.batches(iter(entries.split(most)), device):
        if request.signum:
            raise StoppedBefore(request.signum, "pictures were encoded")
        numbers = entries[done : done + len(stored)].tolist()
        both = [stored, whole.kind.mirror(stored, torch.ones_like(label, dtype=torch.bool))] if mirrored else [stored]
        views.append(
            torch.stack([_latents(network, whole.kind.encode(view), numbers, settings) for view in both], 1).cpu()
        )
        labels.append(label.cpu())
        done += len(stored)
    return torch.cat(views), torch.cat(labels)


def _latents(network: AutoencoderNetwork, x0: Tensor, numbers: list[int], settings: LatentSettings) -> Tensor:
    posterior = network.encode(x0)
    if settings.posterior == "mean":
        return posterior.mean.float()
    noise = image_noise(tuple(posterior.mean.shape[1:]), numbers, 0, 0).to(posterior.mean.device)
    return posterior.sample(noise.to(posterior.mean)).float()


def _read(piece: Piece, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A piece of the cache, whose latents are of a size (views, c, h, w).

    Raises:
        DataError: It is damaged.
    """
    if not piece.path.exists():
        raise DataError(f"{piece.path} is not there: latent.cache must be a folder that all processes share")
    try:
        tensors = load_tensors(piece.path)
        latents, labels = tensors["latents"], tensors["labels"]
        n = len(piece.entries)
        alike = latents.shape == (n, *size) and latents.dtype == torch.float32
        if alike and labels.shape == (n,) and labels.dtype == torch.int64 and latents.isfinite().all():
            return latents, labels
    except (CheckpointError, KeyError):
        pass
    raise DataError(f"{piece.path} is damaged: delete it, and its pictures are encoded again")
