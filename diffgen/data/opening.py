"""A data set's config to its examples: those to train on, and those that are held out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffgen.core.errors import DataError, require
from diffgen.core.registry import build, conform
from diffgen.data.base import DATASETS, Source
from diffgen.data.classes import renumber
from diffgen.data.splits import NOTHING_HELD_OUT, Splits, held_out

Config = Mapping[str, Any]

HELD_OUT: dict[str, Any] = {"held_out": float | str | None, "held_out_seed": int}
"""Keys of every data set that has no split of its own: a share to hold out, or a place of other examples."""

PLACES = ("root", "path")
"""Keys of a data set that say where its examples are."""


def open_splits(config: Config) -> Splits:
    """The examples of a data set's config, as they are stored.

    Raises:
        UsageError: A setting is wrong.
        DataError: The examples cannot be read, or those held out are of another size or of unknown classes.
    """
    own, where, seed = dataset_settings(config)
    whole = _source(own)
    if "split" in own:
        apart = own["split"] == "train" and own.get("held_out") != 0
        return Splits(whole, lambda: _source({**own, "split": "test"}) if apart else None)
    if not where:
        return Splits.of(whole, None)
    if isinstance(where, float):
        require(0 <= where < 1, f"dataset.held_out={where:g} must be a share in [0, 1), or a folder or file")
        kept, apart = held_out(len(whole), where, seed, whole.groups)
        return Splits.of(whole.part(kept), whole.part(apart), "share")
    return Splits.of(whole, _held_out_elsewhere(own, where, whole), "place")  # now: it may not be fit


def dataset_settings(config: Config) -> tuple[Config, float | str | None, int]:
    """Split a data set's config: its own for `build`, what it holds out, and the seed of that choice."""
    own = {key: value for key, value in config.items() if key not in HELD_OUT or "split" in config}
    apart = NOTHING_HELD_OUT | {key: config[key] for key in config.keys() - own.keys()}
    return own, *conform("dataset", HELD_OUT, apart).values()


def _source(own: Config) -> Source:
    source: Source = build(DATASETS, own)
    return source


def _held_out_elsewhere(own: Config, where: str, training: Source) -> Source:
    """Examples of another place, told by the training examples' classes."""
    key, what = next((key for key in PLACES if key in own), ""), f"dataset.held_out={where!r}"
    require(bool(key), f"{what}: dataset={own['name']} is read from no place; give a share, 0.1, say")
    try:
        other = _source({**own, key: where, **_labels_there(own, own[key], where)})
    except DataError as error:
        raise DataError(f"{what}: {error}") from None
    if other.shape.size != training.shape.size:
        sizes = ["x".join(map(str, source.shape.size)) for source in (other, training)]
        raise DataError(f"{what} holds {other.kind.unit} of {sizes[0]}, and those to train on are {sizes[1]}")
    return other.renamed(training.classes, renumber(other.classes, training.classes, what))


def _labels_there(own: Config, root: str, where: str) -> Config:
    """A file of labels that lies among the training pictures is looked for among the others, too."""
    labels = own.get("labels")
    if not labels or not Path(labels).absolute().is_relative_to(Path(root).absolute()):
        return {}
    return {"labels": str(Path(where) / Path(labels).absolute().relative_to(Path(root).absolute()))}
