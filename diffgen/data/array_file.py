"""From an .npy or .npz file to its arrays."""

from pathlib import Path

import numpy as np

from diffgen.core.errors import DataError


def load(path: Path, what: str) -> dict[str, np.ndarray]:
    """The arrays of an .npy or .npz file, of plain numbers or text and never objects; one of an .npy is mapped.

    Raises:
        DataError: It cannot be read.
    """
    try:
        file = np.load(path, allow_pickle=False, mmap_mode="c")  # noqa: TID251  arrays alone, never objects
        if isinstance(file, np.ndarray):
            return {"images": file}
        with file:
            return {name: file[name] for name in file.files}
    except Exception:  # readers of headers raise anything
        raise DataError(f"{what} is no .npy or .npz of numbers that can be read") from None
