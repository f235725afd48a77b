"""What a folder or a zip holds is used, left out and counted, or refused."""

import os
import zipfile
from pathlib import Path
from typing import Any

import inputs
import pytest
import torch
from rows import row

from diffgen.build import make_splits
from diffgen.core.errors import DataError
from diffgen.data import Images, Source
from diffgen.data import pictures as module
from diffgen.data.places import Folder, Zip


def load(root: Path, name: str = "image_folder", **changes: Any) -> Source:
    """A data set with the settings of its YAML file."""
    place = {"root" if name == "image_folder" else "path": str(root)}
    settings = row("dataset", name, **place, **{"workers": 0, **changes})
    del settings["defaults"]
    return make_splits({"dataset": settings}).train


def told(root: Path, **changes: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(root, **changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def reasons(source: Source) -> dict[str, str]:
    return {each.name: each.reason for each in source.left_out}


# --- what is used -------------------------------------------------------------------------------------------------


def test_links_are_followed_and_circles_are_not(tmp_path: Path) -> None:
    inputs.classes(tmp_path / "elsewhere", ["dog"])
    root = inputs.classes(tmp_path / "in", ["cat"])
    (root / "dog").symlink_to("../elsewhere/dog")
    (root / "cat" / "one.png").symlink_to(tmp_path / "elsewhere" / "dog" / "0.png")
    (root / "cat" / "round").symlink_to("..")
    (root / "cat" / "broken.png").symlink_to("nowhere")
    (root / "cat" / "itself").symlink_to("itself")
    data = load(root)
    assert (data.classes, len(data)) == (("cat", "dog"), 7)
    assert reasons(data) == {
        "cat/broken.png": "a broken link",
        "cat/itself": "a broken link",
        "cat/round": "a link to a folder above it",
    }


@pytest.mark.parametrize(
    ("name", "kind"), [("a.jfif", "JPEG"), ("b.jpe", "JPEG"), ("c.ppm", None), ("d.tga", None), ("e.jp2", None)]
)
def test_whatever_pillow_reads_is_a_picture(tmp_path: Path, name: str, kind: str | None) -> None:
    inputs.save(tmp_path / "z.png")
    inputs.save(tmp_path / name, 1, format=kind)
    assert len(load(tmp_path)) == 2


def test_pictures_without_an_ending_are_known_by_their_bytes(tmp_path: Path) -> None:
    inputs.save(tmp_path / "a.png").rename(tmp_path / "0a1b2c")
    inputs.save(tmp_path / "b.jpg").rename(tmp_path / "b.jpg_large")
    (tmp_path / "notes").write_text("no picture")
    data = load(tmp_path)
    assert len(data) == 2 and reasons(data) == {"notes": "no picture"}


# --- what is left out ---------------------------------------------------------------------------------------------


def test_what_systems_leave_is_left_out_and_counted(tmp_path: Path) -> None:
    root = inputs.classes(tmp_path)
    inputs.fill(root / "@eaDir", ["0.png", "1.png"])
    inputs.fill(root / "cat" / "@eaDir" / "0.png", ["SYNOPHOTO_THUMB_M.jpg"])
    inputs.fill(root / ".thumbnails", ["a.png"])
    inputs.fill(root / "__MACOSX" / "cat", ["a.png"])
    for name in ("Thumbs.db", ".DS_Store", "cat/._0.png", "cat/0.txt", "cat/1.txt", "cat/raw.NEF"):
        (root / name).write_bytes(b"x")
    data = load(root)
    assert (data.classes, len(data)) == (("cat", "dog"), 6)
    assert len(data.left_out) == 11
    for words in ("11 left out", "3 in @eaDir", "4 hidden", "2 .txt"):
        assert words in data.found, data.found


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
def test_a_folder_that_may_not_be_read_is_said(tmp_path: Path) -> None:
    root = inputs.classes(tmp_path)
    (root / "dog").chmod(0)
    try:
        assert reasons(load(root)) == {"dog": "cannot be read (Permission denied)"}
    finally:
        (root / "dog").chmod(0o755)


def test_links_between_folders_do_not_multiply(tmp_path: Path) -> None:
    """Each of eight leads to the seven others: followed without end, that is a hundred thousand pictures."""
    names = [f"f{i}" for i in range(8)]
    inputs.classes(tmp_path, names, each=1)
    for a in names:
        for b in names:
            if a != b:
                (tmp_path / a / b).symlink_to(f"../{b}")
    data = load(tmp_path)
    assert data.classes == tuple(names) and len(data) == 64, "each class holds each folder once"
    assert "a folder that was there before" in reasons(data).values()


def test_odd_names_of_files_can_be_listed(tmp_path: Path) -> None:
    inputs.fill(tmp_path / "cat", ["0.png"])
    (tmp_path / "empty").mkdir()
    (tmp_path / "cat" / os.fsdecode(b"caf\xe9.t\xe9")).write_text("x")
    data = load(tmp_path)
    assert len(data.left_out) == 2 and reasons(data)["empty"] == "an empty folder"


def test_a_name_that_configs_would_read_as_a_setting_is_refused(tmp_path: Path) -> None:
    assert "would name a setting in a config" in told(inputs.classes(tmp_path, ["x${y}"]))


def test_a_folder_of_nothing_but_others_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    assert told(tmp_path) == f"dataset.root={str(tmp_path)!r} holds no pictures (1 left out: 1 .txt)"


@pytest.mark.parametrize("resident", [True, False])
@pytest.mark.parametrize("workers", [0, 2])
def test_undecodable_files_are_refused_or_left_out_and_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: bool, workers: int
) -> None:
    root = inputs.classes(tmp_path)
    (root / "cat" / "0.png").write_bytes(b"no picture")
    (root / "dog" / "1.png").write_bytes((root / "dog" / "0.png").read_bytes()[:60])
    monkeypatch.setattr(module, "FEW", 0)
    if not resident:
        monkeypatch.setattr(module, "RESIDENT_BYTES", 0)
    assert "0.png cannot be decoded" in told(root, workers=workers)
    data = load(root, undecodable="skip", workers=workers)
    assert len(data) == 4
    assert reasons(data) == {"cat/0.png": "cannot be decoded", "dog/1.png": "cannot be decoded"}
    _, labels = next(data.batches(iter([torch.arange(4)]), torch.device("cpu")))
    assert labels.tolist() == [0, 0, 1, 1]
    assert "2 left out: 2 cannot be decoded" in data.found


def test_a_set_of_which_nothing_can_be_decoded_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    assert "a.png cannot be decoded" in told(tmp_path, undecodable="skip")
    assert "none of the 1 pictures" in told(tmp_path, undecodable="skip", size=8)


def test_skip_leaves_out_nothing_else(tmp_path: Path) -> None:
    """A picture of another size, or of an unknown range, is whole."""
    inputs.fill(tmp_path, ["a.png"])
    inputs.save(tmp_path / "b.png", image=inputs.picture(size=(20, 20)))
    assert "set dataset.size" in told(tmp_path, undecodable="skip")


# --- classes ------------------------------------------------------------------------------------------------------


def test_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    names = [*map(str, range(12)), "other"]
    assert load(inputs.classes(tmp_path, names, each=1)).classes == tuple(names)


@pytest.mark.parametrize(
    ("names", "said"),
    [(["train", "val"], True), (["Training", "test"], True), (["cat", "test"], False), (["train"], True)],
)
def test_folders_called_like_splits_are_noted(tmp_path: Path, names: list[str], said: bool) -> None:
    notes = load(inputs.classes(tmp_path, names, each=2)).notes
    assert any("taken for classes" in note for note in notes) == said


def test_a_class_whose_name_is_no_text_is_named(tmp_path: Path) -> None:
    inputs.classes(tmp_path, ["cat"])
    odd = tmp_path / os.fsdecode(b"caf\xe9")
    odd.mkdir()
    inputs.save(tmp_path / "a.png").rename(odd / "a.png")
    assert "has a name that is not UTF-8" in told(tmp_path)


# --- notes --------------------------------------------------------------------------------------------------------


def test_grey_and_dim_sets_are_said_to_be(tmp_path: Path) -> None:
    for i in range(3):
        inputs.save(tmp_path / "grey" / f"{i}.png", image=inputs.picture(i, "L"))
        inputs.save(tmp_path / "dim" / f"{i}.png", image=inputs.picture(i, "L").point(lambda v: v > 128, "L"))
    assert "all pictures are grey" in load(tmp_path / "grey").notes[0]
    assert load(tmp_path / "grey", channels=1).notes == ()
    (note,) = load(tmp_path / "dim", channels=1).notes
    assert "no pixel is brighter than 1 of 255" in note and "dataset.range=[0,1]" in note
    bright = load(tmp_path / "dim", channels=1, range=[0, 1])
    assert isinstance(bright, Images) and bright.pixels.unique().tolist() == [0, 255]


def test_the_header_says_modes_and_sizes(tmp_path: Path) -> None:
    inputs.fill(tmp_path, ["a.png", "b.png"])
    inputs.save(tmp_path / "c.png", image=inputs.picture(mode="L", size=(20, 30)))
    assert load(tmp_path, size=4).found == "3 pictures: 2 RGB, 1 L; 6x8 to 30x20 (2 sizes), made 4x4; none left out"


# --- zip ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", ["", "pets/", "data/pets/"])
def test_a_zip_gives_what_its_folder_gives(tmp_path: Path, top: str) -> None:
    root = inputs.classes(tmp_path / "in")
    inputs.fill(root / "__MACOSX" / "cat", ["0.png"])
    (root / "notes.txt").write_text("x")
    path = inputs.zipped(root, tmp_path / "a.zip", top)
    folder = load(root)
    for data in (load(path), load(path, "arrays")):
        if top.count("/") < 2:
            assert data.classes == folder.classes
            assert isinstance(data, Images) and isinstance(folder, Images)
            assert torch.equal(data.pixels, folder.pixels) and torch.equal(data.labels, folder.labels)
        assert "1 .txt" in data.found and "1 in __MACOSX" in data.found


def test_a_zip_streams_from_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = inputs.zipped(inputs.classes(tmp_path / "in"), tmp_path / "a.zip")
    resident = load(path)
    monkeypatch.setattr(module, "RESIDENT_BYTES", 0)
    streamed = load(path, workers=2)
    entries = torch.tensor([5, 0, 3, 3])
    for data, labels in zip(
        *(list(s.batches(iter([entries]), torch.device("cpu"))) for s in (streamed, resident)), strict=True
    ):
        assert torch.equal(data[0], labels[0]) and torch.equal(data[1], labels[1])


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_files_of_one_name_in_a_zip_are_counted(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name, seed in (("cat/0.png", 0), ("./cat/0.png", 1), ("cat/0.png", 2), ("dog/0.png", 3)):
            file.write(inputs.save(tmp_path / f"{seed}.png", seed), name)
    data: Any = load(tmp_path / "a.zip")
    assert len(data) == 2 and list(reasons(data).values()) == ["of one name with another"]
    assert len(data.left_out) == 2


def test_a_damaged_lzma_zip_is_named(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_LZMA) as file:
        file.write(inputs.save(tmp_path / "0.png"), "0.png")
    data = bytearray((tmp_path / "a.zip").read_bytes())
    data[60:90] = bytes(30)
    (tmp_path / "a.zip").write_bytes(data)
    assert "0.png cannot be" in told(tmp_path / "a.zip")


def test_damaged_and_locked_zips_are_named(tmp_path: Path) -> None:
    path = inputs.zipped(inputs.classes(tmp_path / "in"), tmp_path / "a.zip")
    whole = path.read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    assert "cannot be read as a zip file" in told(tmp_path / "cut.zip")
    flipped = bytearray(whole)
    flipped[60] ^= 255
    (tmp_path / "flipped.zip").write_bytes(flipped)
    assert "cannot be unpacked" in told(tmp_path / "flipped.zip")
    with zipfile.ZipFile(path) as file:
        names = file.namelist()
    locked = bytearray(whole)
    at = whole.index(b"PK\x01\x02")
    locked[at + 8] |= 1  # of the first entry in the directory: it is encrypted
    (tmp_path / "locked.zip").write_bytes(locked)
    assert f"{names[0]} needs a password" in told(tmp_path / "locked.zip")


def test_pictures_without_an_ending_are_known_in_a_zip_too(tmp_path: Path) -> None:
    inputs.fill(tmp_path / "in", ["a.png"])
    inputs.save(tmp_path / "in" / "b.png", 1).rename(tmp_path / "in" / "0a1b")
    (tmp_path / "in" / "notes").write_text("x")
    data = load(inputs.zipped(tmp_path / "in", tmp_path / "a.zip"))
    assert len(data) == 2 and reasons(data) == {"notes": "no picture"}


def test_a_run_of_broken_files_in_a_large_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as a worker's share of a look at the set."""
    for i in range(70):
        (tmp_path / f"{i:03d}.png").write_bytes(b"x")
    inputs.fill(tmp_path, ["z0.png", "z1.png"])
    monkeypatch.setattr(module, "RESIDENT_BYTES", 0)
    data = load(tmp_path, undecodable="skip", size=8)
    assert len(data) == 2 and len(data.left_out) == 70


def test_names_are_in_the_order_of_their_parts(tmp_path: Path) -> None:
    """`cat-2` stands after `cat`, whatever their pictures are called; a zip's order is its folder's."""
    for name in ("cat/b.png", "cat-2/a.png", "cat/a.png"):
        inputs.save(tmp_path / "in" / name)
    folder = Folder(tmp_path / "in").names
    assert folder == ["cat/a.png", "cat/b.png", "cat-2/a.png"]
    assert Zip(inputs.zipped(tmp_path / "in", tmp_path / "a.zip")).names == folder
