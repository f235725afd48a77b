"""text8: the first 100,000,000 letters and spaces of an English Wikipedia, the usual yardstick for characters."""

import zipfile
from pathlib import Path
from typing import Literal

from diffgen.core.errors import DataError
from diffgen.data.base import DATASETS
from diffgen.data.download import download_with_progress, fetch, md5
from diffgen.data.text import Text, check
from diffgen.data.tokens import Tokens

ADDRESSES = ["http://mattmahoney.net/dc/text8.zip"]

PACKED, UNPACKED = "f26f94c5209bc6159618bad4a559ff81", "3bea1919949baf155f99411df5fada7e"
"""MD5 of the archive and of the text in it."""

LETTERS = " abcdefghijklmnopqrstuvwxyz"

Split = Literal["train", "test"]

PARTS: dict[Split, slice] = {
    "train": slice(90_000_000),
    "test": slice(95_000_000, 100_000_000),
}
"""Characters of each split, as the papers that report on it cut it; their 5 million between are left unused."""


@DATASETS.register("text8")
def text8(*, root: str, split: Split, length: int) -> Text:
    """Letters a to z and spaces, from <root>/text8 or <root>/text8.zip, which is downloaded if neither is there."""
    check(length, 0)
    kind = Tokens(symbols=tuple(LETTERS), symbol="character")
    return Text(read(Path(root))[PARTS[split]], kind, length, f"text8, {split}", overlapping=split == "train")


def read(folder: Path) -> str:
    """All of the text: of the unpacked file if that is there, else of the packed one.

    Raises:
        DataError: The file is damaged, or missing and not to be had.
    """
    unpacked, packed = folder / "text8", folder / "text8.zip"
    if unpacked.exists():
        if md5(unpacked) != UNPACKED:
            raise DataError(f"{unpacked} is damaged (its MD5 is not {UNPACKED}): delete it to fetch it anew")
        return unpacked.read_text("ascii")
    fetch(ADDRESSES, packed, PACKED, download_with_progress, instead="dataset=python_docs")
    with zipfile.ZipFile(packed) as archive:
        return archive.read("text8").decode("ascii")
