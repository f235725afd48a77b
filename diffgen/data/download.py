"""Official files of data sets: found, or downloaded, and checked."""

import hashlib
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path

from diffgen.core.errors import DataError
from diffgen.core.files import writing


def md5(path: Path) -> str:
    """Checksum of a file, in hex; the publishers of these data sets give MD5."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def fetch(
    urls: list[str],
    path: Path,
    checksum: str,
    download: Callable[[str, Path], None],
    tries: int = 2,
    instead: str = "dataset=digits",
) -> None:
    """Make sure that `path` holds the file with this MD5, downloading it from the first address that gives it.

    Args:
        urls: Addresses.
        path: Where it belongs.
        checksum: MD5, in hex.
        download: Writes what is at an address to a file.
        tries: How often each address is asked.
        instead: What needs no download, for the sentence.

    Raises:
        DataError: The file is damaged, or missing and no address answers.
    """
    if path.exists():
        if md5(path) != checksum:
            raise DataError(f"{path} is damaged (its MD5 is not {checksum}): delete it, or put the official file there")
        return
    made = [folder for folder in path.parents if not folder.exists()]
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    reason = ""
    for url in urls * tries:
        partial.unlink(missing_ok=True)  # of an interrupted download; it would be taken for the whole
        try:
            download(url, partial)
        except (OSError, RuntimeError, HTTPException) as error:
            reason = str(error)
            partial.unlink(missing_ok=True)
            continue
        if md5(partial) == checksum:
            partial.replace(path)
            return
        reason = f"{url} sent other bytes"
        partial.unlink(missing_ok=True)
    for folder in made:
        with suppress(OSError):
            folder.rmdir()
    raise DataError(
        f"{path} is missing and cannot be downloaded ({reason}): put the official file there, "
        f"or set dataset.root to the folder that holds it; {instead} needs no download"
    )


def download_with_progress(url: str, path: Path) -> None:
    """Download with torchvision's progress bar."""
    from torchvision.datasets.utils import download_url

    download_url(url, str(path.parent), path.name)
