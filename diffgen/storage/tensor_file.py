"""Safetensors files that may come from a stranger: opened with bounds, and written so that they compare.

The header is read here, with bounds, before any library touches the file. Its metadata are text, and configs in them
plain bounded data.
"""

import hashlib
import json
import math
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffgen.core.errors import CheckpointError, UsageError, printable
from diffgen.core.files import file_atomically

MAX_HEADER = 2**22
MAX_CONFIG = 3 * 2**20
MAX_DEPTH = 8
MAX_ITEMS = 1024
MAX_TEXT = 256

ROOM = 2**19
"""Bytes of a header for what is no config: names and shapes of tensors."""

LARGE = {"symbols": 2**17, "tokenizer": 2**21}
"""Parts of a config, by their keys, that may have more items, or a longer text: vocabularies."""

DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
"""Bytes of a number by the file's name of its type."""

TYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)
"""The same types in torch: what a file may hold."""

Tensors = dict[str, Tensor]


# --- reading ------------------------------------------------------------------------------------------------------


def read_header(path: Path) -> dict[str, Any]:
    """The header of one of our safetensors files, checked before a library opens it.

    Raises:
        CheckpointError: Not a regular file, not safetensors, cut short, or not diffgen's.
        OSError: It cannot be opened.
    """
    header = read_any_header(path)
    if header["__metadata__"].get("library") != "diffgen":
        found = ", ".join(repr(name[:40]) for name in sorted(header.keys() - {"__metadata__"})[:3]) or "none"
        raise CheckpointError(f"{path} is not a diffgen checkpoint (tensors in it: {found})")
    return header


def read_any_header(path: Path) -> dict[str, Any]:
    """The header of any safetensors file, checked alike.

    Raises:
        CheckpointError: Not a regular file, not safetensors, or cut short.
        OSError: It cannot be opened.
    """
    size = size_of(path)
    if size == 0:
        raise CheckpointError(f"{path} is an empty file: it was cut short")
    with path.open("rb") as file:
        start = file.read(9)
        _refuse_other_formats(path, start)
        length = struct.unpack("<Q", start[:8])[0] if len(start) > 8 else size
        if length > size - 8:
            raise CheckpointError(f"{path} is not a whole safetensors file: it is cut short, or something else")
        if length > MAX_HEADER:
            raise CheckpointError(f"{path} is refused: its header is far larger than any model's")
        file.seek(8)
        header = parse(file.read(length).decode("utf-8", "replace"), path)
    _check_layout(header, size - 8 - length, path)
    header.setdefault("__metadata__", {})
    return header


def size_of(path: Path) -> int:
    """Bytes of a regular file; pipes and devices, which have no end, are refused before they are opened."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise CheckpointError(f"{path} is not a regular file")
    return status.st_size


def _refuse_other_formats(path: Path, start: bytes) -> None:
    kinds = {
        b"\x80": "a Python pickle, which can run code,",
        b"PK": "a zip archive (a PyTorch pickle, which can run code),",
        b"<": "a web page",
        b"version ": "a Git LFS pointer, not the file itself,",
        b"\x89PNG": "a picture",
    }
    if start[4:] == b"\0\0\0\0{":  # as safetensors starts: a small little-endian length, then the header
        return
    for magic, kind in kinds.items():
        if start.startswith(magic):
            raise CheckpointError(f"{path} is {kind} and is not loaded; diffgen reads safetensors files")


def unique_keys(items: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no key stands twice; readers differ in which of the two they take."""
    if len({key for key, _ in items}) < len(items):
        raise ValueError("a key twice")
    return dict(items)


def parse(text: str, path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: It is something else.
    """
    try:
        value = json.loads(text, object_pairs_hook=unique_keys)
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is not a diffgen checkpoint: its header or config is not JSON") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} is not a diffgen checkpoint: its header or config is not a JSON object")
    return value


def _check_layout(header: dict[str, Any], payload: int, path: Path) -> None:
    metadata = header.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path} has malformed metadata")
    if len(metadata.get("config", "")) > MAX_CONFIG:
        raise CheckpointError(f"{path} is refused: its config is far larger than any model's")
    spans = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            begin, end = entry["data_offsets"]
            whole = len(entry["shape"]) <= 8 and all(
                isinstance(n, int) and n >= 0 for n in (begin, end, *entry["shape"])
            )
            fits = whole and end <= payload and end - begin == math.prod(entry["shape"]) * DTYPES[entry["dtype"]]
        except (KeyError, TypeError, ValueError):
            fits = False
        if not fits:
            raise CheckpointError(f"{path} is damaged: tensor {name[:80]!r} does not fit the file")
        spans.append((begin, end))
    spans.sort()
    if [begin for begin, _ in spans] != [0, *(end for _, end in spans)][: len(spans)] or (
        spans and spans[-1][1] != payload
    ):
        raise CheckpointError(f"{path} is damaged: its tensors do not cover the file exactly")


def check_plain(value: object, where: str, depth: int = 0, most: int = 0) -> None:
    """Require plain bounded data: no keys that start with `_`, no interpolations, nothing deep, long or huge.

    Args:
        value: The data, or a part of it.
        where: What is told to hold it.
        depth: Of the part.
        most: Items of a list, or characters of a text, that the part may have beyond the usual bounds.

    Raises:
        CheckpointError: The sentence names what was found.
    """
    if depth > MAX_DEPTH:
        raise CheckpointError(f"{where} is refused: its config is nested deeper than {MAX_DEPTH} levels")
    if isinstance(value, dict | list):
        if len(value) > max(most, MAX_ITEMS):
            raise CheckpointError(f"{where} is refused: its config has a part with {len(value)} items")
        for key in value if isinstance(value, dict) else ():
            named = key.isascii() and key.replace("_", "a").isalnum() and key[0] != "_" and len(key) <= 64
            if not named:
                raise CheckpointError(f"{where} is refused: its config has the key {key[:80]!r}")
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            check_plain(item, where, depth + 1, LARGE.get(str(key), 0))
    elif isinstance(value, str):
        if len(value) > max(most, MAX_TEXT) or "${" in value or not value.isprintable():
            raise CheckpointError(f"{where} is refused: its config has the text {value[:80]!r}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not abs(value) < 1e15:
            raise CheckpointError(f"{where} is refused: its config has the number {str(value)[:20]}")
    elif value is not None and not isinstance(value, bool):
        raise CheckpointError(f"{where} is refused: its config holds a {type(value).__name__}")


def config_text(config: Mapping[str, Any]) -> str:
    """A config as a file's metadata hold it."""
    return json.dumps(config, allow_nan=False)


def check_config(config: Mapping[str, Any]) -> None:
    """Require that a run's config could be read again from a checkpoint.

    Raises:
        CheckpointError: Something in it is not plain, or out of bounds.
        UsageError: It is too large.
    """
    check_plain(config, "this run")
    text = config_text(config)
    if len(text) > MAX_CONFIG or len(json.dumps(text)) > MAX_HEADER - ROOM:  # a header holds it as a text in JSON
        told = f"a checkpoint's config would have {len(text):,} characters, more than can be read again"
        raise UsageError(f"{told}: choose a smaller dataset.tokenizer, or fewer dataset.symbols")


def load_tensors(path: Path) -> Tensors:
    """The tensors of a file whose header was checked."""
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {printable(str(error))[:300]}") from None


def check_finite(weights: Tensors, path: Path) -> None:
    """Require weights that are numbers.

    Raises:
        CheckpointError: The sentence names the first that holds something else.
    """
    for name, weight in weights.items():
        if not weight.isfinite().all():
            raise CheckpointError(f"{path}: weight {name[:80]!r} holds values that are not finite")


def digest(tensors: Tensors, config: str) -> str:
    """SHA-256 over the config's text, and over names and bytes in the order of names."""
    total = hashlib.sha256(config.encode())
    for name in sorted(tensors):
        total.update(name.encode())
        total.update(tensors[name].contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a regular file, in hex."""
    size_of(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# --- writing ------------------------------------------------------------------------------------------------------


def on_cpu(tensors: Tensors) -> Tensors:
    """The same as they are hashed and written."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def write_tensors(tensors: Tensors, path: Path, said: Mapping[str, str] = MappingProxyType({})) -> None:
    """Write tensors, whole or not at all; `said` goes into the header.

    Raises:
        EnvironmentFault: The folder is not writable or the disk is full.
    """
    with file_atomically(path) as temporary:
        save_tensors(on_cpu(tensors), temporary, {"format": "pt", "library": "diffgen", **said})


def save_tensors(tensors: Tensors, path: Path, metadata: dict[str, str]) -> None:
    """Write tensors that are `on_cpu` to a safetensors file; the same contents give the same bytes.

    Raises:
        OSError: The disk is full or fails.
    """
    path.touch()
    mode = path.stat().st_mode  # as the umask wants it; the library writes 0600, which colleagues cannot read
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:  # its only cause here is the disk
        raise OSError(str(error)) from error
    _sort_metadata(path)
    path.chmod(mode)


def _sort_metadata(path: Path) -> None:
    """The library writes metadata in random order; sorted, the same run gives the same file, byte for byte."""
    with path.open("r+b") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(length))
