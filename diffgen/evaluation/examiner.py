"""A cheap evaluation from time to time in training: a line, a curve, and the best averaged weights kept.

`<run>/eval/training.jsonl` and `training.png` have its figures, `<run>/checkpoints/best` the weights that were best.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator

from diffgen.core import memory
from diffgen.core.errors import CheckpointError, EnvironmentFault, NonFiniteError, ProcessFault
from diffgen.core.files import append_text, cache_folder, read_rows, write_atomically, writing
from diffgen.core.plots import curves
from diffgen.core.processes import main_first, on_main
from diffgen.core.settings import TrainSettings
from diffgen.core.signals import Interrupted
from diffgen.data.splits import Splits
from diffgen.evaluation.extractors import shared_extractor
from diffgen.evaluation.few import too_few
from diffgen.evaluation.measure import Judged, Row, measured
from diffgen.evaluation.reference import Reference
from diffgen.evaluation.report import BETTER, FACTORS, as_json, name
from diffgen.evaluation.samples import Drawn, draw_share, gathered
from diffgen.sampling.drawing import Sampling, batch_size
from diffgen.sampling.labels import cycle_labels
from diffgen.storage import checkpoint
from diffgen.storage.tensor_file import Tensors

FIGURES = ("fd", "kd", "agreement")
WHOLE, NOT_FINITE, NO_MEMORY, STOPPED = range(4)  # what became of a process's share of the images


class Judgement(NamedTuple):
    """What became of an evaluation: a sentence, and its figures as loggers are told them, `eval/fd`, ..."""

    said: str
    figures: Mapping[str, float]


class Examiner:
    """Judges a run by images of its averaged weights, always from the same noise."""

    def __init__(
        self,
        config: Mapping[str, Any],
        settings: TrainSettings,
        splits: Splits,
        sampling: Sampling,
        accelerator: Accelerator,
        run_dir: Path,
    ) -> None:
        """Prepare the extractor; one that has to be trained takes a while, once for each data set.

        Args:
            config: Of the run; its extractor and data set.
            settings: How many images, and which metric says what is best.
            splits: The training images, and those that are held out.
            sampling: Of the averaged weights.
            accelerator: All processes draw.
            run_dir: Where the figures and the best weights go.

        Raises:
            DiffgenError: The data has no labels, or the extractor cannot be had.
        """
        self.settings, self.sampling, self.accelerator = settings, sampling, accelerator
        main_first(accelerator, lambda: splits.test)
        cache = cache_folder() / "eval" / str(config["dataset"]["name"])
        extractor = shared_extractor(config["extractor"], splits, cache, accelerator)
        self.reference = Reference(splits, extractor, cache)
        self.out, self.best_folder = run_dir / "eval", run_dir / "checkpoints" / "best"
        self.path = self.out / "training.jsonl"
        self.forgotten = False
        self.kind = {
            "images": settings.eval_n,
            "seed": sampling.seed,
            "sampler": config["sampler"],
            "guidance": sampling.guidance.scale,
            "extractor": extractor.name,
            "extractor_hash": extractor.hash,
        }
        self.labels = cycle_labels(settings.eval_n, sampling.trained.shape.num_classes)

    def begin(self, images: int) -> None:
        """Drop figures from beyond where the run stands, and forget best weights from there: they may not return."""
        with suppress(CheckpointError):
            self.forgotten = checkpoint.describe(self.best_folder).images > images
        rows = [row for row in self._rows() if row["images_seen"] <= images]
        if self.path.exists():
            write_atomically(self.path, "".join(map(as_json, rows)))

    def looked(self, images: int) -> bool:
        """Whether there are figures of this kind for so many images; every process calls this."""
        there: bool = on_main(self.accelerator, lambda: any(row["images_seen"] == images for row in self._like()))
        return there

    def look(self, model_config: Mapping[str, Any], weights: Tensors, images: int) -> Judgement:
        """Judge the run as it stands; every process calls this.

        Args:
            model_config: Config for the best checkpoint.
            weights: The averaged weights that `sampling` draws with.
            images: Training images seen.

        Returns:
            What there is to say, and the figures: none where the samples are not finite.

        Raises:
            EnvironmentFault: The figures or the best weights cannot be written, or memory is gone.
            Interrupted: A process was told to stop.
        """
        drawn = self._drawn()
        if drawn is None:
            return Judgement(f"{images:,} images: the samples are not finite, and not judged", {})
        judgement: Judgement = on_main(self.accelerator, lambda: self._judge(drawn, model_config, weights, images))
        return judgement

    def _drawn(self) -> Drawn | None:
        """The images, or None if some are not finite; processes learn of each other's fate before they exchange."""
        shape, device = self.sampling.trained.shape, self.accelerator.device
        share, fate = None, WHOLE
        try:
            with memory.as_fault():
                share = draw_share(
                    self.sampling, self.labels, self.reference.extractor, self.accelerator,
                    batch_size(shape, device), lambda done: None,
                )  # fmt: skip
        except NonFiniteError:
            fate = NOT_FINITE
        except ProcessFault:
            fate = NO_MEMORY
        except Interrupted:
            fate = STOPPED
        worst = int(self.accelerator.gather(torch.tensor([fate], device=device)).max())
        if worst == STOPPED:
            raise Interrupted
        if worst == NO_MEMORY:
            raise EnvironmentFault("out of memory in an evaluation, which is left out")
        return gathered(share, self.accelerator, len(self.labels)) if share and worst == WHOLE else None

    def _judge(self, drawn: Drawn, model_config: Mapping[str, Any], weights: Tensors, images: int) -> Judgement:
        judged = Judged.of(drawn, self.reference, self.out, 0, self.accelerator.device)
        row: Row = {"images_seen": images, **self.kind, "nfe": self.sampling.nfe} | measured(FIGURES, judged)
        row |= {"features": self.reference.extractor.dim, "training_images": len(self.reference.splits.train)}
        row["too_few"] = [key for key in too_few(row) if key in FIGURES]
        key = self.settings.best_by
        best = self._best()
        if key not in row:
            standing = f"there is no {key} to choose the best by"
        elif best is None or (row[key] < best if BETTER.get(key) == "lower" else row[key] > best):
            facts = {"metric": key, "value": row[key], **self.kind}
            checkpoint.save_model(self.best_folder, {**model_config, "best": facts}, images, weights)
            self.forgotten = False
            standing = f"the best by {key} so far"
        else:
            standing = f"the best by {key} had {best * FACTORS.get(key, 1):.4g}"
        with writing(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        append_text(self.path, as_json(row))  # after the best: what has a row is done
        self._plot()
        shown = [f"{name(key, row)} {row[key] * FACTORS.get(key, 1):.4g}" for key in FIGURES if key in row]
        figures = {f"eval/{key}": row[key] for key in FIGURES if key in row}
        few = f" (too few images for {', '.join(row['too_few'])})" if row["too_few"] else ""
        return Judgement(f"{images:,} images: {', '.join(shown)}{few}; {standing}", figures)

    def _best(self) -> float | None:
        """The figure of the best weights so far, if it is of this kind."""
        try:
            facts = checkpoint.describe(self.best_folder).config["best"]
            same = {**facts, "value": None} == {"metric": self.settings.best_by, "value": None, **self.kind}
            return float(facts["value"]) if same and not self.forgotten else None
        except (CheckpointError, KeyError, TypeError, ValueError):
            return None

    def _rows(self) -> list[Row]:
        """The figures so far."""
        rows = read_rows(self.path) if self.path.is_file() else []
        return [row for row in rows if isinstance(row.get("images_seen"), int)]

    def _like(self) -> list[Row]:
        """Those that compare: of as many images, the same features, sampler and seed."""
        return [row for row in self._rows() if all(row.get(key) == value for key, value in self.kind.items())]

    def _plot(self) -> None:
        rows, key = self._like(), self.settings.best_by
        points = [(row["images_seen"], row[key] * FACTORS.get(key, 1)) for row in rows if key in row]
        label = name(key, rows[-1])
        write_atomically(self.out / "training.png", curves({label: points}, "training images seen", label))
