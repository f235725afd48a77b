"""CIFAR-10 from the official Python archive or its unpacked folder, checked by MD5 before anything is read."""

import shutil
import tarfile
from pathlib import Path
from typing import Literal

import torch

from diffgen.core.errors import DataError
from diffgen.data.base import DATASETS, Images
from diffgen.data.download import download_with_progress, fetch, md5

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
FOLDER = "cifar-10-batches-py"
FILES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
}

LARGEST = 2**26
"""Bytes; the official files have 31 MB each."""


@DATASETS.register("cifar10")
def cifar10(*, root: str, split: Literal["train", "test"]) -> Images:
    """32x32 colour photographs of 10 classes (Krizhevsky 2009), 50,000 to train and 10,000 to test.

    Reads <root>/cifar-10-batches-py, unpacked from <root>/cifar-10-python.tar.gz, downloaded if neither is there.
    """
    folder = Path(root) / FOLDER
    if not folder.exists():
        archive = Path(root) / "cifar-10-python.tar.gz"
        fetch([URL], archive, ARCHIVE_MD5, download_with_progress)
        unpack(archive, folder)
    check(folder)
    # the official files are Python pickles: opened only now that their MD5 is right
    from torchvision.datasets import CIFAR10

    data = CIFAR10(root, train=split == "train")
    pixels = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
    return Images(pixels, torch.tensor(data.targets), tuple(data.classes))


def unpack(archive: Path, folder: Path) -> None:
    """Take the official files out of the archive, and nothing else; the folder appears whole.

    Names in the archive never form a path, so nothing in it can write elsewhere.

    Raises:
        DataError: It is no archive, lacks a file, or there is no room.
    """
    temporary = folder.with_name(f".tmp_{folder.name}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        with tarfile.open(archive) as tar:
            for name in FILES:
                _take(tar, f"{FOLDER}/{name}", temporary / name)
        temporary.rename(folder)
    except (tarfile.TarError, OSError, EOFError, KeyError) as error:
        raise DataError(f"{archive} cannot be unpacked: {error}") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take(tar: tarfile.TarFile, member: str, path: Path) -> None:
    entry = tar.getmember(member)
    content = tar.extractfile(entry) if entry.isreg() and entry.size <= LARGEST else None
    if content is None:
        raise OSError(f"{member} is not one of the official files")
    with path.open("wb") as file:
        shutil.copyfileobj(content, file)


def check(folder: Path) -> None:
    """Compare every file with its published MD5.

    Raises:
        DataError: One is missing or damaged; the sentence names it.
    """
    for name, checksum in FILES.items():
        file = folder / name
        if not file.is_file():
            raise DataError(f"{file} is missing: unpack the official cifar-10-python.tar.gz in {folder.parent}")
        if md5(file) != checksum:
            raise DataError(f"{file} is damaged (its MD5 is not {checksum}): unpack the official archive again")
