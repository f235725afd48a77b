"""Which images a model has never seen: what may be called held out, and what stands in where nothing is."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from diffgen.core.errors import DataError, UsageError, require
from diffgen.data import InMemory, Source
from diffgen.data.splits import NOTHING_HELD_OUT, Splits
from diffgen.evaluation.classifier import identity
from diffgen.storage.checkpoint import Checkpoint

Config = Mapping[str, Any]

NOTHING = {"split": "train", **NOTHING_HELD_OUT}
"""What a data set's config says of it where a run trains on the training split and keeps nothing of it apart."""

NOTED = ("dataset", *NOTHING, "identity")
"""Keys of a `note` that say which examples may have been seen."""

CHOICE = ("n", "seed")
"""Keys of a data set that choose, from what is not its test split, what is trained on."""

KEPT = 8
"""How many data sets a checkpoint remembers of the runs that its weights come from."""

ADVICE = "dataset.held_out=0.1 in training keeps some apart"


def kept_apart(dataset: Config) -> dict[str, Any]:
    """What a data set's config says of what is held out, for a checkpoint to note; empty if that is `NOTHING`."""
    found = {key: dataset.get(key) or default for key, default in NOTHING.items()}
    if not isinstance(found["held_out"], float):
        found["held_out_seed"] = 0  # of a choice that is not made
    return {key: value for key, value in found.items() if value != NOTHING[key]}


def note(dataset: Config, train: Source) -> dict[str, Any]:
    """What a checkpoint says of its data set: the name, `kept_apart`, `_choice`, and of what a share was held out."""
    apart = kept_apart(dataset)
    of = {"identity": identity(train)} if isinstance(apart.get("held_out"), float) else {}
    return {"dataset": dataset["name"], **apart, **(_choice(dataset) if "split" in dataset else {}), **of}


def _choice(told: Config) -> dict[str, Any]:
    return {key: told[key] for key in CHOICE if key in told}


def _seen(told: Config) -> dict[str, Any]:
    return {key: value for key, value in told.items() if key in NOTED}


def noted(config: Config) -> dict[str, Any]:
    """What a checkpoint's config says of its data set: the name, `kept_apart` of it, and which it was trained on."""
    told = _note(config)
    return {"name": told.get("dataset", ""), **kept_apart(told), **_choice(told)}


def _note(config: Config) -> Config:
    own = config.get("trained")
    return own if isinstance(own, Mapping) else {}


def ancestors(config: Config) -> list[Config]:
    """The `note` of each run whose weights a checkpoint's own began from, by its config; empty where one is unknown."""
    found = _note(config).get("begun_from", [])
    return [each if isinstance(each, Mapping) else {} for each in (found if isinstance(found, list) else [None])]


def lineage(config: Config) -> list[Config]:
    """What `ancestors` is of a run that begins from a checkpoint with this config: that one first, each note once."""
    own = _seen(_note(config))
    notes: list[Config] = []
    for each in [own, *ancestors(config)]:
        notes += [each] if each not in notes else []
    return notes[:KEPT] + [{}] * (len(notes) > KEPT)


def inherit(config: dict[str, Any], notes: list[Config]) -> None:
    """Put into the config of a run's checkpoints what `ancestors` finds there."""
    config["trained"].pop("begun_from", None)
    config["trained"] |= {"begun_from": notes} if notes else {}


def doubtful(saved: Checkpoint, dataset: Config, train: Source) -> list[str]:
    """In words, the training of those ancestors of a checkpoint that may have seen what a data set's config holds out.

    They are all that were not trained on the same examples, with the same held out: whether two data sets share
    examples is not known.
    """
    here = _seen(note(dataset, train))
    return [_of(each) for each in ancestors(saved.config) if each != here]


def _of(told: Config) -> str:
    name = f"dataset={told['dataset']}" if told.get("dataset") else "unknown data"
    return ", ".join([name, *(f"dataset.{key}={value}" for key, value in kept_apart(told).items())])


def check_unseen(saved: Checkpoint, dataset: Config) -> bool:
    """Require that what a data set's config holds out is what the run of a checkpoint held out of it.

    Another folder is nobody's training images, so it may be held out from a run that was trained on its data whole.

    Returns:
        Whether the checkpoint itself says that it was not trained on what is held out.

    Raises:
        UsageError: The run was trained on images that would be called held out, or not on some called training images.
    """
    _check_choice(noted(saved.config), dataset)
    own, given = kept_apart(noted(saved.config)), kept_apart(dataset)
    whole = not any(isinstance(each.get("held_out"), float) for each in (own, given))
    same_split = own.get("split") == given.get("split")
    same_data = noted(saved.config)["name"] == dataset["name"]
    if not same_data or own == given or (whole and same_split):
        return same_data and own == given
    raise UsageError(
        f"{_words(given)}, and ckpt was trained with {_words(own)}: what it has seen would be called held out, "
        "or the other way round; leave these settings to ckpt"
    )


def _check_choice(own: Config, dataset: Config) -> None:
    """Require the training examples that a run chose: others would be called so.

    Raises:
        UsageError: A setting chooses others.
    """
    for key, was in _choice(own).items() if own["name"] == dataset["name"] else ():
        told = f"dataset.{key}={dataset[key]} chooses other examples than ckpt was trained on, by {was}"
        require(dataset[key] == was, f"{told}: leave it to ckpt")


def _words(told: Config) -> str:
    return ", ".join(f"dataset.{key}={value}" for key, value in told.items()) or "nothing held out"


def check_examples(saved: Checkpoint, dataset: Config, train: Source) -> None:
    """Require the examples of which a run held a share out: of others the share would be another one.

    Raises:
        DataError: They have changed.
    """
    own = _note(saved.config)
    if own.get("dataset") == dataset["name"] and own.get("identity", identity(train)) != identity(train):
        raise DataError(
            f"the {len(train)} training {train.kind.unit} of dataset={dataset['name']} are not those that ckpt was "
            f"trained on: the share that is held out, {own.get('held_out')}, would be another"
        )


def same_examples(a: Config, b: Config) -> bool:
    """Whether two checkpoints held a share out of the same examples, by their configs, as far as these say it."""
    own, other = _note(a).get("identity"), _note(b).get("identity")
    return own is None or other is None or own == other


def check_apart(splits: Splits) -> int:
    """How many of the held-out images are training images too, to the last pixel.

    They are counted where both are in memory; elsewhere only the same images throughout are noticed.

    Raises:
        DataError: All of them are.
    """
    if splits.test is None:
        return 0
    count, unit = _repeated(splits.train, splits.test), splits.test.kind.unit
    if count == len(splits.test):
        raise DataError(f"all {count} held-out {unit} are training {unit} too: dataset.held_out must name others")
    return count


def _repeated(train: Source, test: Source) -> int:
    if isinstance(test, InMemory) and isinstance(train, InMemory):
        known = set(_prints(train))
        return sum(each in known for each in _prints(test))
    return len(test) * (identity(test) == identity(train))


def _prints(source: InMemory) -> Iterator[bytes]:
    return (hashlib.blake2b(each.contiguous().numpy().data, digest_size=16).digest() for each in source.stored)


def judge(splits: Splits) -> tuple[Source, str]:
    """The images that metrics of the model look at, and which they are: `test`, or `train` where none are held out."""
    return (splits.train, "train") if splits.test is None else (splits.test, "test")


def words(splits: Splits, repeated: int, *, unseen: bool, doubts: Sequence[str] = ()) -> str:
    """How many are held out, for the header.

    Args:
        splits: The images.
        repeated: See `check_apart`.
        unseen: Whether the run of a checkpoint is known not to have been trained on them.
        doubts: See `doubtful`.
    """
    if splits.test is None:
        return f"none held out ({ADVICE})"
    never = ", never trained on" if unseen and not repeated and not doubts else ""
    twice = f", {repeated:,} of them with the pixels of a training image" if repeated else ""
    began = (
        f", but the weights or the autoencoder that it began from ({'; '.join(doubts)}) may have seen them"
        if doubts
        else ""
    )
    return f"{len(splits.test):,} held out{never}{twice}{began}"
