"""The parts of the programme, in the order in which they are done."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass

from programme.work import Piece


@dataclass(frozen=True)
class Part:
    """Measurements that belong together.

    Attributes:
        title: What it is about.
        module: Of this package.
        table: Its pieces, by the name of the module's dictionary.
    """

    title: str
    module: str
    table: str = "PIECES"

    @property
    def pieces(self) -> Mapping[str, Piece]:
        """Its pieces by name, in order."""
        pieces: Mapping[str, Piece] = getattr(importlib.import_module(f"programme.{self.module}"), self.table)
        return pieces


PARTS = {
    "machine": Part("The machine", "machine"),
    "tests": Part("Tests that need a GPU", "suite"),
    "eager-compiled": Part("Eager and compiled: digits", "agreement"),
    "training": Part("Training steps", "steps", "TRAINING"),
    "batches": Part("Training steps by batch size", "steps", "BATCHES"),
    "faults": Part("Faults", "faults"),
    "sampling": Part("Sampling", "draws"),
    "text": Part("Text", "text"),
    "variants": Part("Variants", "variants"),
    "speed-run": Part("The speed-run", "speed_run"),
    "judge": Part("The speed-run's images", "judge"),
    "few-steps": Part("Few steps: CIFAR-10", "few_steps"),
}
