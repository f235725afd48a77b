"""All pictures of a data set to latents, once: kept in the cache, in pieces, so that a run that was stopped goes on."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from diffgen.build import make_autoencoder
from diffgen.core.console import Reporter, count
from diffgen.core.errors import CheckpointError, DataError, require
from diffgen.core.files import cache_folder
from diffgen.core.processes import faults_told, on_all, on_main
from diffgen.core.randomness import image_noise
from diffgen.core.settings import LatentSettings
from diffgen.data import InMemory, Source
from diffgen.data.base import Part
from diffgen.data.latents import AutoencoderNetwork, Encoded, Latents
from diffgen.data.places import Place
from diffgen.evaluation.classifier import identity
from diffgen.storage.autoencoder_file import Found, find
from diffgen.storage.tensor_file import load_tensors, write_tensors

PIECE = 2048
"""Pictures of a file."""

DIGITS = 4
"""Of the scale: on another machine the last digits of an encoding differ, and a run that goes on keeps its scale."""


class Piece(NamedTuple):
    """A file of latents float32 [n, views, c, h, w], and which pictures they are of."""

    path: Path
    entries: Tensor


def encoded(
    whole: Source, settings: LatentSettings, *, mirrored: bool, accelerator: Accelerator, reporter: Reporter
) -> tuple[Encoded, Found]:
    """The latents of a data set's pictures, and the autoencoder that makes them.

    Args:
        whole: The pictures.
        settings: Which autoencoder, and how it is asked.
        mirrored: Whether mirrored pictures are learned from, too: these are encoded beside the others.
        accelerator: Each process encodes a part.
        reporter: Shows how far it is.

    Raises:
        UsageError: The data are no pictures, or of another size than the autoencoder's.
        CheckpointError: The path holds no autoencoder.
        EnvironmentFault: The cache cannot be written.
    """
    assert settings.path is not None
    kind = whole.kind
    require(kind.judged and kind.bounded, f"latent.path={settings.path!r} is of pictures, and the data is {kind.unit}")
    found = find(settings.path, "latent.path")
    told = f"latent.path={settings.path!r} is an autoencoder of pictures of {found.size}, and the data is {whole.shape}"
    require(found.size in (None, tuple(whole.shape.size)), told)
    network = make_autoencoder(found.config, whole.shape.size, found.weights, Path(settings.path))
    network.to(accelerator.device)  # type: ignore[attr-defined]
    folder = Path(settings.cache or cache_folder() / "latents") / _key(whole, found, settings, mirrored=mirrored)
    pieces = [
        Piece(folder / f"{int(entries[0]):09d}.safetensors", entries)
        for entries in torch.arange(len(whole)).split(PIECE)
    ]
    made = _encode_missing(pieces, whole, network, settings, mirrored, accelerator, reporter)
    size = (2 if mirrored else 1, *network.latent_size)
    latents, labels = (torch.cat(column) for column in zip(*(_read(piece, size) for piece in pieces), strict=True))
    mean, std = scale(latents)
    own = kind.as_numbers()
    latent_kind = Latents(
        background=getattr(own, "background", "white"), range=getattr(own, "range", None),
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


def _rounded(values: Tensor) -> tuple[float, ...]:
    return tuple(float(f"{value:.{DIGITS}g}") for value in values.tolist())


def _key(whole: Source, found: Found, settings: LatentSettings, *, mirrored: bool) -> str:
    """A name that differs wherever the latents may."""
    facts = [fingerprint(whole), found.hash, mirrored, settings.posterior, len(whole), list(whole.shape.size)]
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
                latents, labels = _encode(whole, piece.entries, network, settings, mirrored, accelerator.device)
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
) -> tuple[Tensor, Tensor]:
    """Latents [n, views, c, h, w] of some pictures, and their labels."""
    views, labels, done = [], [], 0
    most = max(1, min(256, 2**22 // whole.shape.size[0] // whole.shape.size[1] // whole.shape.size[2]))
    for stored, label in whole.batches(iter(entries.split(most)), device):
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
