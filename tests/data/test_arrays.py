"""Arrays and parquet files, by the same checks as folders."""

import shlex
from pathlib import Path
from typing import Any

import inputs
import numpy as np
import pytest
import torch
from test_places import load

from diffgen.core.errors import DataError, UsageError
from diffgen.data import InMemory, array_file, arrays, pictures
from diffgen.data import base as base_module
from diffgen.data.base import Part
from diffgen.nets import DataShape

RNG = np.random.default_rng(0)
UINT8 = RNG.integers(0, 256, (12, 6, 8, 3), np.uint8)
LABELS = np.arange(12) % 3


def array(tmp_path: Path, values: np.ndarray = UINT8, **others: np.ndarray) -> Path:
    np.savez(tmp_path / "a.npz", images=values, **others)
    return tmp_path / "a.npz"


# --- arrays -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("first", [False, True])
def test_any_number_of_channels_in_either_order(tmp_path: Path, channels: int, first: bool) -> None:
    values = RNG.integers(0, 256, (4, 9, 10, channels), np.uint8)
    data: Any = load(array(tmp_path, np.moveaxis(values, 3, 1) if first else values), "arrays")
    assert data.shape == DataShape((channels, 9, 10), 0)
    assert np.array_equal(data.pixels.numpy(), np.moveaxis(values, 3, 1))


def test_greys_need_no_axis_and_labels_come_along(tmp_path: Path) -> None:
    data: Any = load(array(tmp_path, UINT8[..., 0], labels=LABELS), "arrays")
    assert (data.shape, data.classes) == (DataShape((1, 6, 8), 3), ("0", "1", "2"))
    assert data.labels.tolist() == LABELS.tolist()


def test_npy_files_with_labels_beside_them(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", UINT8)
    np.save(tmp_path / "b.npy", np.array(list("cab") * 4))
    data: Any = load(tmp_path / "a.npy", "arrays", labels=str(tmp_path / "b.npy"))
    assert data.classes == ("a", "b", "c") and data.labels.tolist() == [2, 0, 1] * 4
    assert np.array_equal(data.pixels.numpy(), UINT8.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("names", [("arr_0", "arr_1"), ("X", "Y"), ("x_train", "y_train"), ("frames", "Label")])
def test_names_of_arrays(tmp_path: Path, names: tuple[str, str]) -> None:
    np.savez(tmp_path / "a.npz", **{names[0]: UINT8, names[1]: LABELS.astype(float)[:, None]})
    data: Any = load(tmp_path / "a.npz", "arrays")
    assert data.labels.tolist() == LABELS.tolist() and data.classes == ("0", "1", "2")


def test_labels_of_other_types_and_arrays_that_are_not_used(tmp_path: Path) -> None:
    data: Any = load(array(tmp_path, labels=np.array([b"cat", b"dog"] * 6), x_test=UINT8), "arrays")
    assert data.classes == ("cat", "dog") and "not used are the arrays [x_test]" in data.notes[0]
    data = load(array(tmp_path, labels=np.array([-1, 1] * 6)), "arrays")
    assert sorted(data.classes) == ["-1", "1"] and -1 not in data.labels
    data = load(array(tmp_path, labels=np.arange(12) % 3 - 1), "arrays")
    assert data.classes == ("0", "1") and data.labels.tolist().count(-1) == 4
    assert "4 of 12 pictures have no label" in data.notes[0]
    names = np.array(["dog", "dog"])
    assert "have one name" in told_arrays(array(tmp_path, labels=np.uint8([0, 1] * 6), classes=names))


def test_samples_know_the_names_of_their_classes(tmp_path: Path) -> None:
    """Their numbers are those of the model, and no names: class 1 of `1, 3, 7` is 3."""
    np.savez(tmp_path / "a.npz", arr_0=UINT8, arr_1=LABELS, classes=np.array(["1", "3", "7"]))
    data: Any = load(tmp_path / "a.npz", "arrays")
    assert data.classes == ("1", "3", "7") and data.labels.tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("values", "given", "expected"),
    [
        (UINT8, None, UINT8),
        (UINT8 > 127, None, (UINT8 > 127) * 255),
        (UINT8.astype(np.float32) / 255, [0, 1], UINT8),
        (UINT8.astype(np.float64) / 127.5 - 1, [-1, 1], UINT8),
        (UINT8.astype(np.uint16) * 257, None, UINT8),
        (UINT8.astype(np.int64), [0, 255], UINT8),
    ],
)
def test_values_become_grey_levels(tmp_path: Path, values: np.ndarray, given: object, expected: np.ndarray) -> None:
    data: Any = load(array(tmp_path, values), "arrays", range=given)
    assert np.array_equal(data.pixels.numpy(), expected.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (UINT8.astype(np.float32) / 255, "dataset.range=[0,1]"),
        (UINT8.astype(np.uint16) * 16, "uint16 values from 0 to 4080: dataset.range=[0,4095]"),
        (UINT8.astype(np.int64), "int64 values from 0 to 255: dataset.range=[0,255]"),
        (np.where(UINT8 > 250, np.nan, 0), "not finite"),
        (UINT8[0], "holds no"),
        (UINT8[:, :3, :3], "dataset.layout=channels_first or channels_last"),
        (UINT8.reshape(12, -1), "has the shape [12, 144]: pictures are"),
        (UINT8[:0], "has the shape [0, 6, 8, 3]"),
        (UINT8[:0, :, :, 0].astype(float), "has the shape [0, 6, 8]"),
        (UINT8[:, :0, :, 0], "has the shape [12, 0, 8]"),
        (UINT8.astype(complex), "complex128, which are no grey levels"),
        (np.array(["a"]).reshape(1, 1, 1), "<U1, which are no grey levels"),
    ],
)
def test_arrays_that_are_no_pictures_are_refused(tmp_path: Path, values: np.ndarray, words: str) -> None:
    if words == "holds no":
        assert load(array(tmp_path, values), "arrays").shape.size == (1, 8, 3), "six greys of 8x3, for all we know"
        return
    sentence = told_arrays(array(tmp_path, values))
    assert words in sentence and "a.npz" in sentence


def told_arrays(path: Path, **changes: Any) -> str:
    with pytest.raises((DataError, UsageError)) as caught:
        load(path, "arrays", **changes)
    return str(caught.value)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (LABELS[:5], "labels must be 12 whole numbers or names, not int64 [5]"),
        (np.eye(3)[LABELS], "labels must be 12 whole numbers or names"),
        (LABELS + 0.5, "labels must be 12 whole numbers or names"),
    ],
)
def test_labels_that_are_none_are_refused(tmp_path: Path, labels: np.ndarray, words: str) -> None:
    assert words in told_arrays(array(tmp_path, labels=labels))


def test_other_files_and_settings_are_refused_by_name(tmp_path: Path) -> None:
    assert (
        told_arrays(tmp_path / "b.npz")
        == f"dataset.path={str(tmp_path / 'b.npz')!r} is no file; it must be an .npy, .npz or .zip"
    )
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "is no .npy or .npz of numbers" in told_arrays(tmp_path / "objects.npy")
    (tmp_path / "cut.npz").write_bytes(array(tmp_path).read_bytes()[:200])
    assert "is no .npy or .npz of numbers" in told_arrays(tmp_path / "cut.npz")
    assert "dataset.channels=1, and the arrays have 3" in told_arrays(array(tmp_path), channels=1)
    np.savez(tmp_path / "two.npz", one=UINT8, two=UINT8)
    assert "holds the arrays [one, two]: call that of the pictures images" in told_arrays(tmp_path / "two.npz")


def test_arrays_are_resized_as_pictures_are(tmp_path: Path) -> None:
    for i, values in enumerate(UINT8):
        inputs.save(tmp_path / "in" / f"{i:02d}.png", image=inputs.Image.fromarray(values))
    folder: Any = load(tmp_path / "in", size=[4, 5])
    arrays: Any = load(array(tmp_path), "arrays", size=[4, 5])
    assert torch.equal(folder.pixels, arrays.pixels)


def test_large_arrays_stay_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.save(tmp_path / "a.npy", UINT8)
    small: Any = load(tmp_path / "a.npy", "arrays")
    assert isinstance(array_file.load(tmp_path / "a.npy", "x")["images"], np.memmap)
    for module in (base_module, arrays):
        monkeypatch.setattr(module, "RESIDENT_BYTES", 100)
    monkeypatch.delattr(np, "ascontiguousarray")  # which would copy it
    large = load(tmp_path / "a.npy", "arrays")
    assert isinstance(large, InMemory) and large.home == "kept in memory"
    assert large.digest == small.digest
    part = large.part(torch.tensor([3, 1]))
    assert isinstance(part, Part) and part.whole is large, "nothing is copied"
    (batch,) = large.batches(iter([torch.tensor([3, 1])]), torch.device("cpu"))
    assert torch.equal(batch.examples, small.pixels[[3, 1]])


# --- parquet ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("named", [True, False])
def test_parquet_gives_what_its_folder_gives(tmp_path: Path, shards: int, named: bool) -> None:
    names = ("0", "1") if not named else ("cat", "dog")
    root = inputs.classes(tmp_path / "in", names, each=5)
    if shards == 1:
        path = inputs.as_parquet(root, tmp_path / "a.parquet", named=named)
    else:
        path = tmp_path / "shards"
        files = sorted(p for p in root.rglob("*.png"))
        for number in range(shards):  # each with its own two classes
            part = tmp_path / f"part{number}"
            for file in files[number::shards]:
                inputs.save(part / file.parent.name / file.name, image=inputs.Image.open(file))
            inputs.as_parquet(part, path / f"train-{number:05d}.parquet", named=named)
    data: Any = load(path, "parquet")
    folder: Any = load(root)
    assert data.classes == folder.classes
    order = sorted(range(10), key=lambda i: (i % shards, i))
    assert torch.equal(data.pixels, folder.pixels[order]) and torch.equal(data.labels, folder.labels[order])


def test_parquet_streams_from_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = inputs.as_parquet(inputs.classes(tmp_path / "in", each=9), tmp_path / "a.parquet", rows=2)
    resident: Any = load(path, "parquet")
    monkeypatch.setattr(pictures, "RESIDENT_BYTES", 0)
    streamed = load(path, "parquet", workers=2)
    entries = [torch.randperm(18, generator=torch.Generator().manual_seed(i))[:7] for i in range(4)]
    for chosen, batch in zip(entries, streamed.batches(iter(entries), torch.device("cpu")), strict=True):
        assert torch.equal(batch.examples, resident.pixels[chosen])
        assert torch.equal(batch.labels, resident.labels[chosen])


@pytest.mark.parametrize("names", [("train-0.parquet", "test-0.parquet"), ("train/0.parquet", "validation/0.parquet")])
def test_splits_of_a_folder_are_not_mixed(tmp_path: Path, names: tuple[str, str]) -> None:
    """The hub keeps all of them in one folder."""
    root = inputs.classes(tmp_path / "in")
    for name in names:
        inputs.as_parquet(root, tmp_path / "data" / name)
    with pytest.raises(DataError, match="holds the splits") as caught:
        load(tmp_path / "data", "parquet")
    advised = shlex.split(str(caught.value).split("give one of them, ")[1])[0].rstrip(",")
    advised = advised.removeprefix("dataset.path=").strip('"')
    assert "train" in advised and len(load(Path(advised), "parquet")) == 6


def test_parquet_keeps_the_hub_s_order_of_classes(tmp_path: Path) -> None:
    import json

    import pyarrow
    from pyarrow import parquet

    image = [{"bytes": inputs.save(tmp_path / f"{i}.png", i).read_bytes(), "path": None} for i in range(4)]
    features = {"info": {"features": {"label": {"names": ["zebra", "ant"], "_type": "ClassLabel"}}}}
    table = pyarrow.table({"img": image, "label": [0, 1, 1, None]})
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)}), tmp_path / "a.parquet")
    data: Any = load(tmp_path / "a.parquet", "parquet")
    assert data.classes == ("zebra", "ant") and data.labels.tolist() == [0, 1, 1, -1]


def test_each_shard_has_its_own_order_of_names(tmp_path: Path) -> None:
    for number, names in enumerate((["cat", "dog"], ["dog", "cat"])):
        write_table(tmp_path / "data" / f"{number}.parquet", [0, 1], names)
    data: Any = load(tmp_path / "data", "parquet")
    assert data.classes == ("cat", "dog") and data.labels.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("labels", "names", "classes", "numbers"),
    [
        ([1.0, None, 0.0], None, ("0", "1"), [1, -1, 0]),
        ([-1, 1, 0], ["a", "b"], ("a", "b"), [-1, 1, 0]),
        (["x", "y", None], None, ("x", "y"), [0, 1, -1]),
        ([True, False, True], None, ("False", "True"), [1, 0, 1]),
    ],
)
def test_labels_as_tables_hold_them(
    tmp_path: Path, labels: list[Any], names: list[str] | None, classes: tuple[str, ...], numbers: list[int]
) -> None:
    data: Any = load(write_table(tmp_path / "a.parquet", labels, names), "parquet")
    assert data.classes == classes and data.labels.tolist() == numbers
    assert (-1 in numbers) == any("1 of 3 pictures have no label" in note for note in data.notes)


def test_labels_that_are_none_of_the_classes_are_refused(tmp_path: Path) -> None:
    for labels, names in ((["x", "a"], ["a", "b"]), ([0.5, 1.0], None), ([0, 7], ["a", "b"])):
        with pytest.raises(DataError, match="is none of its classes|holds 0.5: a picture|holds 7, and its classes"):
            load(write_table(tmp_path / "a.parquet", labels, names), "parquet")


def test_columns_that_may_be_labels_are_told(tmp_path: Path) -> None:
    (note,) = load(write_table(tmp_path / "a.parquet", [0, 1], column="digit"), "parquet").notes
    assert "dataset.label names one of [digit]" in note


def write_table(path: Path, labels: list[Any], names: list[str] | None = None, column: str = "label") -> Path:
    """Random pictures with such labels."""
    import json

    import pyarrow
    from pyarrow import parquet

    image = [{"bytes": inputs.save(path.parent / f"{i}.png", i).read_bytes(), "path": None} for i in range(len(labels))]
    table = pyarrow.table({"image": image, column: labels})
    features = {"info": {"features": {column: {"names": names, "_type": "ClassLabel"}}}}
    parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(features)} if names else {}), path)
    return path


def test_bad_parquet_is_named(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    def refused(path: Path, **changes: Any) -> str:
        with pytest.raises((DataError, UsageError)) as caught:
            load(path, "parquet", **changes)
        return str(caught.value)

    (tmp_path / "a.parquet").write_bytes(b"no table")
    assert "a.parquet cannot be read as parquet" in refused(tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "b.parquet")
    assert "dataset.image=null finds no column of pictures; choose one of [text]" in refused(tmp_path / "b.parquet")
    assert "dataset.label='x' is no column" in refused(tmp_path / "b.parquet", image="text", label="x")
    assert "row 0 of" in refused(tmp_path / "b.parquet", image="text")
    parquet.write_table(pyarrow.table({"image": [b"no picture"]}), tmp_path / "c.parquet")
    assert "row 0 of" in refused(tmp_path / "c.parquet")
    (tmp_path / "empty").mkdir()
    assert "is no .parquet file and no folder of such" in refused(tmp_path / "empty")


def test_without_pyarrow_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = inputs.as_parquet(inputs.classes(tmp_path / "in"), tmp_path / "a.parquet")
    monkeypatch.setitem(__import__("sys").modules, "pyarrow.parquet", None)
    with pytest.raises(UsageError, match=r"needs pyarrow: pip install 'diffgen\[parquet\]'"):
        load(path, "parquet")


def test_undecodable_rows_may_be_left_out(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    whole = inputs.save(tmp_path / "a.png").read_bytes()
    parquet.write_table(pyarrow.table({"image": [whole, b"x", whole, None]}), tmp_path / "a.parquet")
    data = load(tmp_path / "a.parquet", "parquet", undecodable="skip")
    assert len(data) == 2 and [each.name for each in data.left_out] == ["1", "3"]
    with pytest.raises(DataError, match="row 1 of"):
        load(tmp_path / "a.parquet", "parquet")
