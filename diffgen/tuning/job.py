"""What a task of `diffgen-tune` is told."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from diffgen.build import Trained, restore
from diffgen.core.console import Reporter
from diffgen.core.errors import UsageError, require
from diffgen.core.registry import Table
from diffgen.core.settings import TuneSettings
from diffgen.data.latents import Latents
from diffgen.data.splits import Splits
from diffgen.evaluation.comparing import opened, told_by_classes
from diffgen.storage import checkpoint, posthoc
from diffgen.storage.autoencoder_file import supplied
from diffgen.storage.checkpoint import Checkpoint
from diffgen.storage.run_directory import run_of

TUNES = Table("tune")
"""Rows are called as row(job, **settings)."""


@dataclass(frozen=True)
class Job:
    """A checkpoint, and the settings of the command.

    Attributes:
        settings: Checked.
        sampler: Its config; `name: auto` stands for the checkpoint's own.
        extractor: Config of whose features compare pictures.
        dataset: Config of the data that the checkpoint was trained on, and what to say where they are not found.
        accelerator: Of the command.
        reporter: Tells how it goes.
        saved: The checkpoint.
        trained: What it holds.
    """

    settings: TuneSettings
    sampler: Mapping[str, Any]
    extractor: Mapping[str, Any]
    dataset: tuple[Mapping[str, Any], str]
    accelerator: Accelerator
    reporter: Reporter
    saved: Checkpoint
    trained: Trained

    @classmethod
    def of(
        cls,
        settings: TuneSettings,
        sampler: Mapping[str, Any],
        extractor: Mapping[str, Any],
        dataset: tuple[Mapping[str, Any], str],
        accelerator: Accelerator,
    ) -> "Job":
        """Open the checkpoint.

        Raises:
            CheckpointError: It cannot be used.
            UsageError: It is of no denoiser, or several processes were started.
        """
        told = f"diffgen-tune looks at few images and runs in one process, not in {accelerator.num_processes}"
        require(accelerator.num_processes == 1, told)
        saved = supplied(checkpoint.load(Path(str(settings.ckpt))), settings.latent)
        saved = posthoc.of_length(saved, settings.sigma_rel)
        trained = restore(saved)
        told = f"diffgen-tune is for models that remove Gaussian noise, and this model {trained.objective.makes}"
        require(trained.objective.path, told)
        return cls(settings, sampler, extractor, dataset, accelerator, Reporter(speaks=True), saved, trained)

    def splits(self) -> Splits:
        """The data that the checkpoint was trained on, told by its classes.

        Raises:
            DataError: They cannot be read.
            UsageError: They are others.
        """
        config, moved = self.dataset
        splits, _, _ = opened(self.saved, config, moved, self.accelerator)
        name = str(config["name"])
        if (known := self.trained.objective.suited(splits.train.kind)) != splits.train.kind:
            splits = splits.known_as(known)
        made, has = tuple(self.trained.shape.size), tuple(splits.train.shape.size)
        alike = type(known) is type(self.trained.kind) and made == has
        told = f"ckpt makes {self.trained.kind.unit} of {made}, and dataset={name} has {known.unit} of {has}"
        require(alike or isinstance(self.trained.kind, Latents), told)
        splits, _ = told_by_classes(self.trained, splits, name)
        return splits

    def guided(self) -> str:
        """The guidance that was asked for, as a command that is to draw alike has it."""
        scale = self.settings.guidance
        return "" if scale == "auto" else f" guidance={scale:g}"

    def place(self, name: str) -> Path:
        """Where a model goes that is made of this one: `out`, or a folder of the run.

        Raises:
            UsageError: Something is there already.
        """
        path = self.saved.path
        out = Path(self.settings.out or (run_of(path) or path.resolve().parent) / name)
        others = [path.name for path in out.iterdir() if path.name != "model.safetensors"] if out.is_dir() else []
        told = f"out={out} holds more than a model ({', '.join(sorted(others)[:3])}): choose a folder of its own"
        require(not others, told)  # the folder is replaced as a whole
        if not out.is_dir() or any(out.iterdir()):
            self.check_free(out)
        return out

    def check_free(self, path: Path) -> None:
        """Require a place where nothing is lost.

        Raises:
            UsageError: Something is there, and nobody said that it may be replaced.
        """
        if path.exists() and not self.settings.overwrite:
            raise UsageError(f"{path} is already there: overwrite=true replaces it, out=PATH leaves it")
