"""A row for each kind of input that people bring: what the header says of it, or the one sentence of a refusal."""

from pathlib import Path
from typing import Any

import inputs
import pytest
from test_people import TINY


@pytest.fixture(scope="module")
def brought(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("brought")
    inputs.write(root)
    return root


USED = {
    "numbers": "24 images 3x6x8, 12 classes (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)",
    "words": "3 classes (a b, none, true)",
    "splits": "the sub-folders test, train are taken for classes; if they are splits, dataset.root=",
    "splits/train dataset.held_out=IN/splits/test": "6 images 3x6x8, 2 classes (cat, dog), kept on the device, 6 held out",
    "linked": "2 classes (dog, real)",
    "system": "6 pictures: 6 RGB; 6x8; 9 left out: 3 in #recycle, 3 hidden, 3 in @eaDir",
    "system.zip": "6 pictures: 6 RGB; 6x8; 9 left out: 3 in #recycle, 3 hidden, 3 in @eaDir",
    "endings": "6 pictures: 6 RGB",
    "floats dataset.range=[0,1]": "1 picture: 1 F; 6x8; range [0, 1]",
    "signed dataset.range=[-1,1]": "1 picture: 1 F; 6x8; range [-1, 1]",
    "ten_bits dataset.range=[0,1023]": "1 picture: 1 I;16",
    "sixteen_bits": "1 picture: 1 I;16; 6x8; none left out",
    "zero_one dataset.channels=1": "no pixel is brighter than 1 of 255",
    "turned": "3 pictures: 3 RGB; 32x32",
    "hidden": "1 with transparent pixels, laid on white",
    "hidden dataset.background=black": "1 with transparent pixels, laid on black",
    "grey": "all pictures are grey: dataset.channels=1",
    "notes": "1 picture: 1 RGB; 6x8; none left out",
    "broken dataset.undecodable=skip": "2 pictures: 2 RGB; 6x8; 1 left out: 1 cannot be decoded",
    "tables": "labels.tsv is not used: dataset.labels=",
    "tables dataset.labels=labels.tsv": "3 images 3x6x8, 2 classes (x, y)",
    "arrays.npz": "8 images 5x6x8, 2 classes (a, b)",
    "floats.npy dataset.range=[0,1]": "8 images 3x6x8, no labels",
}
"""What is under IN, with settings: what is said of it."""

REFUSED = {
    "floats": "a.tif holds float32 values from",
    "signed": "dataset.range=[-1,1], say",
    "ten_bits": "dataset.range=[0,1023], say",
    "ten_bits dataset.range=[0,255]": "outside dataset.range=[0,255]",
    "broken": "2.png cannot be decoded",
    "splits/train dataset.held_out=IN/numbers": "'0' is named as no class",
    "tables dataset.labels=nothing.csv": "dataset.labels='nothing.csv' does not exist",
    "floats.npy": "dataset.range=[0,1], say",
    "arrays.npz dataset.channels=3": "dataset.channels=3, and the arrays have 5",
    "nothing": "is not a folder",
}


def train(command: Any, brought: Path, what: str) -> Any:
    place, *settings = what.replace("IN", str(brought)).split(" ")
    path = brought / place
    file = path.suffix in (".npz", ".npy", ".zip")
    where = ("dataset=arrays", f"dataset.path={path}") if file else ("dataset=image_folder", f"dataset.root={path}")
    return command("train", *where, *settings, *TINY, "run_dir=run")


@pytest.mark.parametrize("what", USED)
def test_what_is_brought_is_used_and_told(command: Any, brought: Path, what: str) -> None:
    answer = train(command, brought, what)
    assert answer.code == 0, answer.err
    assert USED[what] in answer.out


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_brought_is_refused_in_a_sentence(command: Any, brought: Path, tmp_path: Path, what: str) -> None:
    answer = train(command, brought, what)
    assert answer.code in (2, 3) and answer.err.count("\n") == 1
    assert REFUSED[what] in answer.err
    assert not (tmp_path / "run").exists()
