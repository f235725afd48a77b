"""Latents of a data set's pictures on disk: made once, and in pieces, so that an encoding that was stopped goes on."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from diffgen.core.console import Reporter, count
from diffgen.core.errors import CheckpointError, DataError
from diffgen.core.files import make_writable
from diffgen.core.processes import faults_told, on_all, on_main
from diffgen.core.randomness import image_noise
from diffgen.core.signals import StoppedBefore, StopRequest
from diffgen.data import InMemory, Source
from diffgen.data.base import Part
from diffgen.data.latents import AT_ONCE, AutoencoderNetwork
from diffgen.data.places import Place
from diffgen.evaluation.classifier import identity
from diffgen.storage.tensor_file import digest, load_tensors, on_cpu, read_header, write_tensors

PIECE = 2048
"""Pictures of a file."""

FORMAT = 2
"""Of what is kept; another number where pictures are read or encoded otherwise."""


class Piece(NamedTuple):
    """A file of latents float32 [n, views, c, h, w], and which pictures they are of."""

    path: Path
    entries: Tensor


@dataclass(frozen=True)
class Encoder:
    """How pictures are encoded.

    Attributes:
        network: On its device.
        hash: Of the autoencoder.
        posterior: Which latents stand for a picture.
        mirrored: Whether mirrored pictures are encoded, too.
        device: Where.
    """

    network: AutoencoderNetwork
    hash: str
    posterior: str
    mirrored: bool
    device: torch.device

    @property
    def size(self) -> tuple[int, ...]:
        """Of what is kept of a picture, (views, c, h, w)."""
        return (2 if self.mirrored else 1, *self.network.latent_size)

    @torch.inference_mode()
    def __call__(
        self, source: Source, entries: Tensor, request: StopRequest, tell: Callable[[int], None]
    ) -> tuple[Tensor, Tensor]:
        """Latents [n, views, c, h, w] of some pictures and their labels; `tell` hears of each batch.

        Raises:
            StoppedBefore: A signal came.
        """
        views, labels, done = [], [], 0
        most = max(1, min(256, AT_ONCE // math.prod(source.shape.size)))
        for stored, label in source.batches(iter(entries.split(most)), self.device):
            if request.signum:
                raise StoppedBefore(request.signum, "pictures were encoded")
            numbers = entries[done : done + len(stored)].tolist()
            both = [stored]
            if self.mirrored:
                both.append(source.kind.mirror(stored, torch.ones_like(label, dtype=torch.bool)))
            views.append(torch.stack([self._latents(source.kind.encode(view), numbers) for view in both], 1).cpu())
            labels.append(label.cpu())
            done += len(stored)
            tell(len(stored))
        return torch.cat(views), torch.cat(labels)

    def _latents(self, x0: Tensor, numbers: list[int]) -> Tensor:
        posterior = self.network.encode(x0)
        if self.posterior == "mean":
            return posterior.mean.float()
        noise = image_noise(tuple(posterior.mean.shape[1:]), numbers, 0, 0).to(posterior.mean.device)
        return posterior.sample(noise.to(posterior.mean)).float()


def key(source: Source, encoder: Encoder) -> str:
    """A name that differs wherever the latents may.

    Raises:
        DataError: A file that pictures are read from is gone.
    """
    facts = [FORMAT, fingerprint(source), encoder.hash, encoder.mirrored, encoder.posterior, len(source)]
    return hashlib.sha256(json.dumps([*facts, list(source.shape.size)]).encode()).hexdigest()[:24]


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
        with _read_alone(path):
            status = path.stat()
        total.update(f"{path.name} {status.st_size} {status.st_mtime_ns}".encode())
    return total.hexdigest()


@contextmanager
def _read_alone(path: Path) -> Iterator[None]:
    """Turn an error of the system about a file into a sentence.

    Raises:
        DataError: It came.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def _files(source: Source) -> list[Path]:
    """What pictures that are not in memory are read from."""
    place: Place | None = getattr(source, "place", None)
    if place is None:
        return []
    if place.root is not None:
        return [place.root / name for name in place.names]
    return getattr(place, "files", [Path(place.title)])


def latents(
    source: Source,
    encoder: Encoder,
    folder: Path,
    accelerator: Accelerator,
    reporter: Reporter,
    request: StopRequest,
) -> tuple[Tensor, Tensor, bool]:
    """Latents float32 [N, views, c, h, w] of all pictures, their labels int64 [N], and whether any had to be made.

    Raises:
        StoppedBefore: A signal came.
        DataError: A file is damaged.
        EnvironmentFault: One cannot be written.
    """
    numbers = torch.arange(len(source)).split(PIECE)
    pieces = [Piece(folder / f"{int(entries[0]):09d}.safetensors", entries) for entries in numbers]
    made = _encode_missing(pieces, source, encoder, accelerator, reporter, request)
    found = torch.empty(len(source), *encoder.size)  # filled piece by piece: two copies may be more than there is room
    labels = torch.empty(len(source), dtype=torch.int64)

    def read() -> None:
        for piece in pieces:
            found[piece.entries], labels[piece.entries] = _read(piece, encoder.size)

    on_all(read)
    return found, labels, made


def _encode_missing(
    pieces: list[Piece],
    source: Source,
    encoder: Encoder,
    accelerator: Accelerator,
    reporter: Reporter,
    request: StopRequest,
) -> bool:
    """Write the pieces that are not there; whether there were any.

    Each process encodes a piece, and then all learn whether one was stopped or met a fault: none waits for hours.
    """
    there = on_main(accelerator, lambda: [_is_there(piece.path) for piece in pieces])
    missing = [piece for piece, known in zip(pieces, there, strict=True) if not known]
    if not missing:
        return False
    todo, world = sum(len(piece.entries) for piece in missing), accelerator.num_processes
    folder, size = pieces[0].path.parent, f"{count(4 * math.prod(encoder.size) * len(source))}B"
    on_main(accelerator, lambda: make_writable(folder))
    reporter.say(f"encoding {todo:,} of {len(source):,} pictures, once: {size} in {folder}")
    done, started = 0, time.monotonic()
    with reporter.progress(todo, 0) as line, faults_told(accelerator):

        def encode(piece: Piece, every: int) -> None:
            """One of a round, in which all processes encode so many."""
            seen = 0

            def tell(n: int) -> None:
                nonlocal seen
                seen += n
                so_far = done + every * seen // len(piece.entries)  # the others are about as far
                pace = count(so_far / max(time.monotonic() - started, 1e-9))
                line.update(so_far, f"{count(so_far)} img encoded  {pace} img/s")

            _write(piece, *encoder(source, piece.entries, request, tell))

        for first in range(0, len(missing), world):
            these = missing[first : first + world]
            every, mine = sum(len(piece.entries) for piece in these), these[accelerator.process_index :][:1]
            on_all(partial(encode, mine[0], every) if mine else lambda: None)
            done += every
    return True


def _is_there(path: Path) -> bool:
    with _read_alone(path):
        return path.is_file()


def _write(piece: Piece, values: Tensor, labels: Tensor) -> None:
    tensors = on_cpu({"latents": values, "labels": labels})
    write_tensors(tensors, piece.path, {"sha256": digest(tensors, "")})


def _read(piece: Piece, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A piece, whose latents are of a size (views, c, h, w).

    Raises:
        DataError: It is damaged.
    """
    if not _is_there(piece.path):
        raise DataError(f"{piece.path} is not there: latent.cache must be a folder that all processes share")
    try:
        with _read_alone(piece.path):
            said = read_header(piece.path)["__metadata__"]
        tensors = load_tensors(piece.path)
        values, labels = tensors["latents"], tensors["labels"]
        n = len(piece.entries)
        alike = values.shape == (n, *size) and values.dtype == torch.float32
        alike = alike and labels.shape == (n,) and labels.dtype == torch.int64
        if alike and values.isfinite().all() and said.get("sha256") == digest(tensors, ""):
            return values, labels
    except (CheckpointError, KeyError):
        pass
    raise DataError(f"{piece.path} is damaged: delete it, and its pictures are encoded again")
