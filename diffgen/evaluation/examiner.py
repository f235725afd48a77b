"""A cheap evaluation from time to time in training: a line, a curve, and the best averaged weights kept.

`<run>/eval/training.jsonl` and `training.png` have its figures, `<run>/checkpoints/best` the weights that were best.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from diffgen import checkpoint
from diffgen.datasets import ImageSource
from diffgen.errors import CheckpointError
from diffgen.evaluation.drawing import Drawn, draw_share, gathered
from diffgen.evaluation.extractors import Splits, shared_extractor
from diffgen.evaluation.measure import Judged, Row, measured
from diffgen.evaluation.reference import open_splits
from diffgen.evaluation.report import BETTER, FACTORS, name
from diffgen.files import append_text, cache_folder, explained, write_atomically
from diffgen.plots import curves
from diffgen.processes import on_main
from diffgen.sampling import Sampling, batch_size, cycle_labels
from diffgen.settings import TrainSettings
from diffgen.signals import Interrupted
from diffgen.tensor_file import Tensors


class Examiner:
    """Judges a run by images of its averaged weights, always from the same noise."""

    def __init__(
        self,
        config: Mapping[str, Any],
        settings: TrainSettings,
        dataset: ImageSource,
        sampling: Sampling,
        accelerator: Accelerator,
        run_dir: Path,
    ) -> None:
        """Prepare the extractor; one that has to be trained takes a while, once for each data set.

        Args:
            config: Of the run; its extractor and data set.
            settings: How many images, and which metric says what is best.
            dataset: The training images.
            sampling: Of the averaged weights.
            accelerator: All processes draw.
            run_dir: Where the figures and the best weights go.

        Raises:
            DiffgenError: The data has no labels, or the extractor cannot be had.
        """
        self.settings, self.sampling, self.accelerator = settings, sampling, accelerator
        self.splits = _splits(config["dataset"], dataset)
        self.cache = cache_folder() / "eval" / str(config["dataset"]["name"])
        self.extractor = shared_extractor(config["extractor"], self.splits, self.cache, accelerator)
        self.out, self.best_folder = run_dir / "eval", run_dir / "checkpoints" / "best"
        self.labels = cycle_labels(settings.eval_n, config["data"]["num_classes"])

    def begin(self, images: int) -> None:
        """Drop figures from beyond where the run stands."""
        rows = [row for row in self._rows() if row["images_seen"] <= images]
        if (self.out / "training.jsonl").exists():
            write_atomically(self.out / "training.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def looked(self, images: int) -> bool:
        """Whether there are figures for so many images; every process calls this."""
        there: bool = on_main(self.accelerator, lambda: any(row["images_seen"] == images for row in self._rows()))
        return there

    def look(self, kept: Mapping[str, Any], weights: Tensors, images: int) -> str | None:
        """Judge the run as it stands; every process calls this.

        Args:
            kept: Config for the best checkpoint.
            weights: The averaged weights that `sampling` draws with.
            images: Training images seen.

        Returns:
            What there is to say, or None if the run is to stop.

        Raises:
            EnvironmentFault: The figures or the best weights cannot be written.
        """
        drawn = self._drawn()
        if drawn is None:
            return None
        said: str = on_main(self.accelerator, lambda: self._judge(drawn, kept, weights, images))
        return said

    def _drawn(self) -> Drawn | None:
        """The images, or None if any process was told to stop."""
        shape, device = self.splits.train.shape, self.accelerator.device
        size = (shape.channels, shape.height, shape.width)
        batch, share = batch_size(size, device), None
        with suppress(Interrupted):
            share = draw_share(
                self.sampling, size, self.labels, self.extractor, self.accelerator, batch, lambda done: None
            )
        whole = self.accelerator.gather(torch.tensor([share is not None], device=device))
        return gathered(share, self.accelerator, len(self.labels)) if share and bool(whole.all()) else None

    def _judge(self, drawn: Drawn, kept: Mapping[str, Any], weights: Tensors, images: int) -> str:
        judged = Judged(
            **vars(drawn), splits=self.splits, extractor=self.extractor, cache=self.cache, out=self.out, seed=0
        )
        row: Row = {"images_seen": images, "images": len(self.labels), "seed": self.sampling.seed}
        row |= {"sampler": kept["sampler"], "nfe": self.sampling.nfe, "guidance": self.sampling.guidance.scale}
        row |= {"extractor": self.extractor.name, "extractor_hash": self.extractor.hash}
        row |= measured(("fd", "kd", "agreement"), judged)
        key = self.settings.best_by
        best = self._best()
        if best is None or (row[key] < best if BETTER.get(key) == "lower" else row[key] > best):
            facts = {"metric": key, "value": row[key], "extractor": self.extractor.hash}
            checkpoint.save_model(self.best_folder, {**kept, "best": facts}, images, weights)
            standing = f"the best by {key} so far"
        else:
            standing = f"the best by {key} had {best * FACTORS.get(key, 1):.4g}"
        with explained(self.out):
            self.out.mkdir(parents=True, exist_ok=True)
        append_text(self.out / "training.jsonl", json.dumps(row) + "\n")  # after the best: what has a row is done
        self._plot()
        shown = ", ".join(
            f"{name(key, row)} {row[key] * FACTORS.get(key, 1):.4g}" for key in ("fd", "kd", "agreement") if key in row
        )
        return f"{images:,} images: {shown}; {standing}"

    def _best(self) -> float | None:
        """The figure of the best weights so far, if it is of this metric and extractor."""
        try:
            facts = checkpoint.describe(self.best_folder).config["best"]
            same = (facts["metric"], facts["extractor"]) == (self.settings.best_by, self.extractor.hash)
            return float(facts["value"]) if same else None
        except (CheckpointError, KeyError, TypeError, ValueError):
            return None

    def _rows(self) -> list[Row]:
        """The figures so far; lines that a crash cut short are left out."""
        path = self.out / "training.jsonl"
        rows = []
        for line in path.read_text().splitlines() if path.is_file() else ():
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                rows.append({**row, "images_seen": int(row["images_seen"])})
        return rows

    def _plot(self) -> None:
        rows, key = self._rows(), self.settings.best_by
        points = [(row["images_seen"], row[key] * FACTORS.get(key, 1)) for row in rows if key in row]
        label = name(key, rows[-1])
        write_atomically(self.out / "training.png", curves({label: points}, "training images seen", label))


def _splits(config: Mapping[str, Any], training: ImageSource) -> Splits:
    """The run's own images, and what its data set holds out from them, if anything."""
    held_out = open_splits(config).test if config.get("split") == "train" else training
    return Splits(training, held_out)
