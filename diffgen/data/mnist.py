"""MNIST and Fashion-MNIST from the official idx files, read packed or unpacked and checked by MD5."""

import gzip
import math
import struct
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from diffgen.core.errors import DataError
from diffgen.data.base import DATASETS, Images
from diffgen.data.download import download_with_progress, fetch, md5

Split = Literal["train", "test"]


class IdxFile(NamedTuple):
    """An official file: its name, and the MD5 of the packed and of the unpacked bytes."""

    name: str
    packed: str
    unpacked: str


@DATASETS.register("mnist")
def mnist(*, root: str, split: Split) -> Images:
    """28x28 handwritten digits (LeCun et al. 1998), 60,000 to train and 10,000 to test, in <root>/MNIST/raw."""
    mirrors = ["https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"]
    return load(Path(root) / "MNIST" / "raw", mirrors, MNIST[split], tuple("0123456789"))


@DATASETS.register("fashion_mnist")
def fashion_mnist(*, root: str, split: Split) -> Images:
    """28x28 articles of clothing (Xiao et al. 2017), 60,000 to train and 10,000 to test, in <root>/FashionMNIST/raw."""
    mirrors = ["http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"]
    return load(Path(root) / "FashionMNIST" / "raw", mirrors, FASHION[split], CLOTHES)


def load(folder: Path, mirrors: list[str], files: tuple[IdxFile, IdxFile], classes: tuple[str, ...]) -> Images:
    """Images and labels of one split from its two files."""
    pixels, labels = (read_idx(folder, mirrors, file) for file in files)
    if pixels.ndim != 3 or labels.shape != pixels.shape[:1] or labels.max() >= len(classes):
        raise DataError(f"{folder}: {files[0].name} and {files[1].name} do not belong together")
    return Images(pixels[:, None], labels.long(), classes)


def read_idx(folder: Path, mirrors: list[str], file: IdxFile) -> Tensor:
    """The array of one idx file; the unpacked file if it is there, else the packed one, downloaded if need be.

    Raises:
        DataError: The file is damaged, or missing and not to be had.
    """
    unpacked, packed = folder / file.name, folder / f"{file.name}.gz"
    if not packed.exists() and unpacked.exists():
        if file.unpacked and md5(unpacked) != file.unpacked:
            raise DataError(f"{unpacked} is damaged (its MD5 is not {file.unpacked}): delete it to fetch it anew")
        return parse_idx(unpacked.read_bytes(), unpacked)
    fetch([mirror + packed.name for mirror in mirrors], packed, file.packed, download_with_progress)
    return parse_idx(gzip.decompress(packed.read_bytes()), packed)


def parse_idx(data: bytes, path: Path) -> Tensor:
    """idx: two zeros, type 8 (uint8), number of dimensions, each dimension as a big-endian int32, then the bytes."""
    dims = len(data) > 3 and data[:3] == b"\0\0\x08" and data[3]
    start = 4 + 4 * dims
    sides = struct.unpack(f">{dims}I", data[4:start]) if dims and len(data) > start else ()
    if not sides or len(data) != start + math.prod(sides):
        raise DataError(f"{path} is not a whole idx file of bytes")
    return torch.from_numpy(np.frombuffer(data, np.uint8, offset=start).reshape(sides).copy())


CLOTHES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip

MNIST: dict[Split, tuple[IdxFile, IdxFile]] = {
    "train": (
        IdxFile("train-images-idx3-ubyte", "f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
        IdxFile("train-labels-idx1-ubyte", "d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
    ),
    "test": (
        IdxFile("t10k-images-idx3-ubyte", "9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
        IdxFile("t10k-labels-idx1-ubyte", "ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c629615203637"),
    ),
}

# The unpacked sums of Fashion-MNIST are not published; unpacked files are then checked by their structure alone.
FASHION: dict[Split, tuple[IdxFile, IdxFile]] = {
    "train": (
        IdxFile("train-images-idx3-ubyte", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", ""),
        IdxFile("train-labels-idx1-ubyte", "25c81989df183df01b3e8a0aad5dffbe", ""),
    ),
    "test": (
        IdxFile("t10k-images-idx3-ubyte", "bef4ecab320f06d8554ea6380940ec79", ""),
        IdxFile("t10k-labels-idx1-ubyte", "bb300cfdad3c16e7a12a480ee83cd310", ""),
    ),
}
