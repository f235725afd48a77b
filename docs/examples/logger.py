"""A logger of your own: the figures as a table that a spreadsheet opens, <run>/metrics-<images>.csv.

diffgen-train plugins=[docs/examples/logger.py] 'logger=[jsonl,csv]'
"""

import csv
from pathlib import Path

from diffgen.training.loggers import LOGGERS

COLUMNS = ["images", "loss", "lr", "grad_norm"]


@LOGGERS.register("csv")
class Csv:
    """A line a logged step. A logger that fails is told once and never stops the run."""

    def __init__(self, *, delimiter: str = ",") -> None:
        self.delimiter = delimiter

    def start(self, run_dir: Path, config: dict, images: int) -> None:
        """The run has a directory; a run that is resumed starts a table of its own."""
        self.file = (run_dir / f"metrics-{images:08d}.csv").open("w", newline="")
        self.table = csv.DictWriter(self.file, COLUMNS, extrasaction="ignore", delimiter=self.delimiter)
        self.table.writeheader()

    def log(self, figures: dict, images: int) -> None:
        """Figures of a logged step, or of an evaluation, which has no loss; one that is missing is None."""
        if "loss" in figures:
            self.table.writerow(figures)

    def picture(self, path: Path, images: int) -> None:
        """A preview was written."""

    def finish(self) -> None:
        """The run ends, well or badly."""
        self.file.close()
