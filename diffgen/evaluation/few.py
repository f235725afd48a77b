"""Which figures were made of too few images to be read, and why."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

SOME = 256
"""Images below which neighbours are far apart, and the kernel distance's subsets small."""

TENFOLD = 1000
"""Images from which the inception score is that of ten parts."""

FRECHET = ("fd", "fd_reconstruction", "fd_frames", "fd_pairs")
"""Frechet distances; frames of one clip are alike, so that clips count."""


def too_few(row: Mapping[str, Any]) -> dict[str, str]:
    """Figures of a row of results that need more images, each with why.

    Args:
        row: Its figures, and `images`, `training_images`, `features` and perhaps `floor_images`: numbers of each; or
            `clips`, and so on, of which the training ones that were looked at are `reference_clips`.
    """
    return {key: why for key, why in _reasons(row) if key in row}


def _reasons(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    unit = "clips" if "clips" in row else "images"
    dim = row.get("features", 0)
    train = row.get(f"reference_{unit}", row.get(f"training_{unit}", math.inf))
    fewest, which = min((row.get(unit, math.inf), unit), (train, f"training {unit}"))
    sets = {"": (fewest, which), "_floor_test": (row.get(f"floor_{unit}", math.inf), f"held-out {unit}")}
    sets["_floor_halves"] = (train // 2, f"{unit} in each half")
    sets["_floor_reconstruction"] = (min(fewest, sets["_floor_test"][0]), "reconstructions")
    for floor, (count, what) in sets.items():
        for key in FRECHET if count <= dim else ():
            yield f"{key}{floor}", f"{count} {what} for {dim} features: it is mostly their number that it measures"
    if why := _kernel(row, fewest):
        yield "kd", why
    if row.get("images", math.inf) < TENFOLD:
        yield "is", f"{row['images']} images: below {TENFOLD:,} it is not of ten parts, and lower"
    if fewest < SOME:
        for key in ("precision", "recall", "density", "coverage", "copies"):
            yield key, f"{fewest} {which}, and it takes some {SOME}"


def _kernel(row: Mapping[str, Any], fewest: float) -> str:
    """What is wrong with the kernel distance, if anything."""
    value, error = row.get("kd"), row.get("kd_error")
    if value is None:
        return ""
    if error is None or not math.isfinite(error):
        return f"{fewest} images have no error"
    if error >= abs(value):
        return f"its error, {1000 * error:.3g}, is larger than its value"
    if fewest < TENFOLD and error >= abs(value - row.get("kd_floor_test", -math.inf)):
        return f"its error, {1000 * error:.3g}, is larger than what is between it and its floor"
    return f"subsets of {fewest // 2} images, and it takes some {SOME // 2}" if fewest < SOME else ""
