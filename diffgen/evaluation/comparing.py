"""The data set that a checkpoint or pictures are judged by: opened, checked, and told by the checkpoint's classes."""

from collections.abc import Mapping
from typing import Any

from accelerate import Accelerator

from diffgen.build import Trained, make_splits
from diffgen.core.errors import DataError, require
from diffgen.core.processes import main_first
from diffgen.data import Source
from diffgen.data.latents import Latents
from diffgen.data.splits import Splits
from diffgen.evaluation import held_out
from diffgen.evaluation.measure import Row
from diffgen.storage.checkpoint import Checkpoint


def suited(trained: Trained | None, splits: Splits, name: str) -> Splits:
    """The splits, known as the checkpoint's kind if that is text.

    Raises:
        UsageError: They hold neither pictures nor text that a checkpoint makes, or of another size than that makes.
    """
    kind = splits.train.kind
    told = f"dataset={name} holds what a sampler made: name one of real examples to judge by, dataset=NAME"
    require(not splits.train.coupled, told)
    told = "diffgen-eval judges pictures, clips, and a ckpt of text by text"
    known = kind.judged or kind.moving or (trained is not None and kind.textual)
    require(known, f"dataset={name} holds {kind.unit}: {told}")
    if not trained:
        return splits
    made, shown = tuple(trained.shape.size), trained.kind
    if isinstance(shown, Latents):  # of which pictures are made
        made, shown = tuple(shown.size), shown.pictures
    same = type(shown.as_numbers()) is type(kind.as_numbers())
    require(same, f"ckpt makes {trained.kind.unit} and dataset={name} has {kind.unit}: no comparison")
    if kind.textual and kind != trained.kind:
        splits = splits.known_as(trained.kind)
    wanted = tuple(splits.train.shape.size)
    hint = f": dataset.length={made[-1]}" if kind.textual else ""
    require(made == wanted, f"ckpt makes {kind.unit} of {made} and dataset={name} has {wanted}{hint}")
    return splits


def opened(
    saved: Checkpoint | None, dataset: Mapping[str, Any], moved: str, accelerator: Accelerator
) -> tuple[Splits, str, Row]:
    """The splits, what of them is held out in words, and in numbers for the row."""

    def opening() -> tuple[Splits, int]:
        try:
            splits = make_splits({"dataset": dataset})
            return splits, held_out.check_apart(splits)
        except DataError as error:
            raise DataError(f"{error}{moved}") from None

    unseen = held_out.check_unseen(saved, dataset) if saved else False
    splits, repeated = main_first(accelerator, opening)
    if saved:
        held_out.check_examples(saved, dataset, splits.train)
    doubts = held_out.doubtful(saved, dataset, splits.train) if saved else []
    unit = splits.train.kind.unit
    numbers: Row = {f"training_{unit}": splits.train.once, "held_out": len(splits.test) if splits.test else 0}
    numbers |= {"held_out_repeated": repeated} if repeated else {}
    return splits, held_out.words(splits, repeated, unseen=unseen, doubts=doubts), numbers


def told_by_classes(trained: Trained | None, splits: Splits, name: str) -> tuple[Splits, list[int]]:
    """The splits, told by a checkpoint's classes, and the numbers of those that there are.

    Classes are one where they have one name; without labels, or without a checkpoint, nothing is told.
    """
    known, own = (trained.classes if trained else ()), splits.train.classes
    if not known or not own:
        return splits, list(range(trained.shape.num_classes if trained else 0))
    strange = [repr(each) for each in own if each not in known]
    require(not strange, f"dataset={name} has {', '.join(strange[:3])}, no class of ckpt's: [{', '.join(known)}]")
    numbers = [known.index(each) for each in own]
    if own == known:
        return splits, numbers

    def told(source: Source | None) -> Source | None:
        return None if source is None else source.renamed(known, numbers)

    return Splits(splits.train.renamed(known, numbers), lambda: told(splits.test)), sorted(numbers)
