"""The result file: parts with their pieces, written as soon as one is done."""

import json
import os
from collections.abc import Iterable
from datetime import date
from pathlib import Path

import torch
from benchmark.facts import ROOT, commit, machine, slug, versions

from diffgen.core.files import write_json
from programme.work import Row

FOLDER = ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "torchvision", "triton", "accelerate", "diffusers", "denoising-diffusion-pytorch", "numpy")
WITHOUT_FIGURES = {"skipped", "unfinished", "error"}


class Results:
    """What has been measured on one GPU.

    Attributes:
        name: Of the file.
        parts: For each part its `facts`, and the rows of its `pieces`.
    """

    def __init__(self, device: str, folders: list[Path], *, others: Iterable[Path] = ()) -> None:
        """Go on with the newest file of the device, or begin one.

        Args:
            device: Name of the GPU.
            folders: Where the file is kept; it is written to all of them.
            others: Where one may lie besides.
        """
        self.folders = folders
        places = [*others, *folders]
        names = {path.name for place in places for path in place.glob(f"gpu-{slug(device)}-????-??-??.json")}
        self.name = max(names, default=f"gpu-{slug(device)}-{date.today()}.json")
        self.parts: dict[str, Row] = {}
        for path in (place / self.name for place in places):
            for part, section in (json.loads(path.read_text()) if path.exists() else {}).items():
                mine = self.parts.setdefault(part, {"facts": {}, "pieces": {}})
                mine["facts"] = section["facts"]
                mine["pieces"] |= section["pieces"]

    def pieces(self, part: str) -> dict[str, Row]:
        """The rows of a part so far."""
        found: dict[str, Row] = self.parts.get(part, {}).get("pieces", {})
        return found

    def left(self, part: str, pieces: Iterable[str]) -> list[str]:
        """Those pieces that were not tried, or are not finished."""
        known = self.pieces(part)
        return [name for name in pieces if name not in known or "unfinished" in known[name]]

    def begin_again(self, part: str, pieces: Iterable[str]) -> None:
        """Forget what has no figures; if all pieces have some, forget these."""
        known = self.pieces(part)
        without = {name for name in pieces if name not in known or WITHOUT_FIGURES & known[name].keys()}
        for name in without or pieces:
            known.pop(name, None)

    def add(self, part: str, facts: Row, piece: str, row: Row) -> None:
        """Keep a row."""
        mine = self.parts.setdefault(part, {"facts": {}, "pieces": {}})
        mine["facts"] = facts
        mine["pieces"][piece] = row
        for folder in self.folders:
            write_json(folder / self.name, self.parts)


def facts(device: str) -> Row:
    """What figures depend on."""
    return {
        "machine": machine(),
        "device": device,
        "date": str(date.today()),
        "load": round(os.getloadavg()[0], 1),
        "commit": commit(),
        "versions": {**versions(*PACKAGES), "cuda": torch.version.cuda},
    }
