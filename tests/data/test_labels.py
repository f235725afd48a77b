"""Names of classes, and labels from files."""

import json
import shlex
from pathlib import Path
from typing import Any

import inputs
import pytest
from test_places import load, told

from diffgen.core.errors import DataError
from diffgen.data.classes import number_of, renumber, sort_names
from diffgen.data.labels import read_labels

# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "classes", "number"),
    [
        (1, ["1", "3", "7"], 0),
        ("7", ["1", "3", "7"], 2),
        (2, ["1", "3", "7"], 2),  # no class is called so: a number
        (5, ["1", "3", "7"], None),
        (2, ["0", "1", "10", "11", "2"], 4),
        ("dog", ["cat", "dog"], 1),
        (True, ["false", "true"], 1),
        (True, ["False", "True"], 1),
        (True, ["cat", "dog"], None),
        (1.5, ["1.5", "2.5"], 0),
        (-1, ["cat", "dog"], None),
        ("007", ["007", "7"], 0),
        (7, ["007", "7"], 1),
        (1.0, ["cat", "dog"], 1),
    ],
)
def test_a_name_comes_before_a_number(value: object, classes: list[str], number: int | None) -> None:
    assert number_of(value, classes) == number


def test_names_are_sorted_with_numbers_first() -> None:
    assert sort_names(["b", "10", "9", "a", "9", "1"]) == ("1", "9", "10", "a", "b")


def test_classes_are_told_by_their_names() -> None:
    assert renumber(["dog", "cat"], ["bird", "cat", "dog"], "x") == [2, 1]
    with pytest.raises(DataError, match="'0' is named as no class"):
        renumber(["0", "1"], ["1", "2"], "x", by_number=True)  # else both would be the first
    assert renumber(["0", "1"], ["cat", "dog"], "x", by_number=True) == [0, 1]
    with pytest.raises(DataError, match=r"x: 'fish' is named as no class; the classes are \[bird, cat\]"):
        renumber(["fish"], ["bird", "cat"], "x")


# --- files --------------------------------------------------------------------------------------------------------

WANTED = {f"{i}.png": "ab"[i % 2] for i in range(4)}
PAIRS = list(WANTED.items())

FILES = {
    "comma.csv": inputs.table([("file", "label"), *PAIRS]),
    "bare.csv": inputs.table(PAIRS),
    "semicolon.csv": inputs.table([("Filename", "Class"), *PAIRS], ";"),
    "tab.tsv": inputs.table(PAIRS, "\t"),
    "blank.txt": "\n".join(f"{name} {label}" for name, label in PAIRS),
    "swapped.csv": inputs.table([("label", "file"), *((label, name) for name, label in PAIRS)]),
    "more.csv": inputs.table([("n", "file_name", "label"), *((i, *pair) for i, pair in enumerate(PAIRS))]),
    "bom.csv": "\ufeff" + inputs.table([("file", "label"), *PAIRS]),
    "stems.csv": inputs.table([("id", "label"), *((name[:-4], label) for name, label in PAIRS)]),
    "slashes.csv": inputs.table([("file", "label"), *((f".\\{name}", label) for name, label in PAIRS)]),
    "metadata.jsonl": "\n".join(json.dumps({"file_name": n, "label": label}) for n, label in PAIRS),
    "dataset.json": json.dumps({"labels": PAIRS}),
    "by_name.json": json.dumps({"labels": WANTED}),
    "plain.json": json.dumps(WANTED),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("inside", [True, False])
def test_labels_from_a_file(tmp_path: Path, name: str, inside: bool) -> None:
    root = tmp_path / "in"
    inputs.fill(root, list(WANTED))
    path = (root if inside else tmp_path) / name
    path.write_text(FILES[name])
    data: Any = load(root, labels=str(path))
    assert (data.classes, data.labels.tolist()) == (("a", "b"), [0, 1, 0, 1])
    assert data.notes == ()


def test_labels_of_numbers_are_sorted_as_numbers(tmp_path: Path) -> None:
    names = [f"{i}.png" for i in range(12)]
    inputs.fill(tmp_path, names)
    for text in ("{}", "{}.0"):
        (tmp_path / "labels.csv").write_text(inputs.table([(n, text.format(i)) for i, n in enumerate(names)]))
        assert load(tmp_path, labels="labels.csv").classes == tuple(map(str, range(12)))


def test_a_folder_called_minus_one_is_a_class(tmp_path: Path) -> None:
    data: Any = load(inputs.classes(tmp_path, ["0", "-1"], each=1))
    assert data.classes == ("0", "-1") and data.labels.tolist() == [1, 0]


def test_labels_beside_sub_folders_go_by_the_file(tmp_path: Path) -> None:
    """EDM's layout: folders are shards, and dataset.json has the labels."""
    names = [f"{i // 2:05d}/img{i:08d}.png" for i in range(6)]
    inputs.fill(tmp_path, names)
    (tmp_path / "dataset.json").write_text(json.dumps({"labels": [[n, i % 3] for i, n in enumerate(names)]}))
    data: Any = load(tmp_path, labels="dataset.json")
    assert (data.classes, data.labels.tolist()) == (("0", "1", "2"), [0, 1, 2] * 2)
    unused = load(tmp_path)
    assert unused.classes == ("00000", "00001", "00002")
    assert "dataset.json is not used: dataset.labels=" in unused.notes[0]
    for place in (tmp_path, inputs.zipped(tmp_path, tmp_path.with_suffix(".zip"), "in/")):
        (note,) = load(place).notes  # as it is pasted
        pasted = shlex.split(note.split(": ")[1])[0].removeprefix("dataset.labels=")
        assert load(place, labels=pasted.strip('"')).classes == ("0", "1", "2")
    zipped: Any = load(inputs.zipped(tmp_path, tmp_path.with_suffix(".zip")), labels="dataset.json")
    assert zipped.labels.tolist() == data.labels.tolist()


def test_names_may_go_from_where_the_file_lies(tmp_path: Path) -> None:
    inputs.fill(tmp_path / "train", ["0.png", "1.png"])
    (tmp_path / "train" / "metadata.csv").write_text("file_name,label\n0.png,x\n1.png,y\n")
    assert load(tmp_path, labels=str(tmp_path / "train" / "metadata.csv")).classes == ("x", "y")


def test_gaps_are_counted(tmp_path: Path) -> None:
    inputs.fill(tmp_path, ["0.png", "1.png", "2.png", "3.png"])
    (tmp_path / "labels.csv").write_text("0.png,0\n1.png,\n3.png,-1\n9.png,1\n8.png,0\n")
    data: Any = load(tmp_path, labels="labels.csv")
    assert (data.classes, data.labels.tolist()) == (("0",), [0, -1, -1, -1])
    assert [note.split(" in ")[0] for note in data.notes] == [
        "2 labels", "3 of 4 pictures have no label: they are trained on without one",
    ]  # fmt: skip


def test_minus_one_is_a_class_where_there_is_no_zero(tmp_path: Path) -> None:
    inputs.fill(tmp_path, ["0.png", "1.png"])
    (tmp_path / "labels.csv").write_text("0.png,-1\n1.png,1\n")
    data: Any = load(tmp_path, labels="labels.csv")
    assert sorted(data.classes) == ["-1", "1"] and sorted(data.labels.tolist()) == [0, 1] and data.notes == ()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "9.png,a\n", "names none of the pictures: it has '9.png', and they are '0.png'"),
        ("a.csv", "0.png,a\n0.png,b\n", "gives '0.png' two labels, 'a' and 'b'"),
        ("a.csv", "0.png,a\n./0.png,b\n", "gives '0.png' two labels, 'a' and 'b'"),
        ("a.csv", "0.png,a\n0,b\n", "gives '0.png' two labels, 'a' and 'b'"),
        ("a.csv", "", "must have in each line two columns"),
        ("a.csv", "0.png\n1.png\n", "must have in each line two columns"),
        ("a.csv", "x,y,z\n0.png,1,2\n", "has the columns [x, y, z]: call one of them file and one label"),
        ("a.json", '{"labels": null}', "holds no labels: null"),
        ("a.json", '{"labels": [["0.png", [0, 1]]]}', "gives [0, 1]: a picture has one label"),
        ("a.json", '{"labels": [1, 2]}', 'must hold {"labels":'),
        ("a.json", "{", "cannot be read"),
        ("a.csv", "n,file,label\n1,0.png,a\n2,1.png\n", "must have in each line two columns"),
        ("a.json", "[" * 100_000, "cannot be read"),
        ("a.jsonl", "1\n2\n", "must hold an object in each line"),
    ],
)
def test_files_that_give_no_labels_are_refused(tmp_path: Path, name: str, text: str, words: str) -> None:
    inputs.fill(tmp_path / "in", ["0.png"])
    (tmp_path / name).write_text(text)
    sentence = told(tmp_path / "in", labels=str(tmp_path / name))
    assert words in sentence and str(tmp_path / name) in sentence


def test_a_file_of_labels_that_is_not_there(tmp_path: Path) -> None:
    inputs.fill(tmp_path, ["0.png"])
    assert "dataset.labels='nothing.csv' does not exist" in told(tmp_path, labels="nothing.csv")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-8-sig"])
def test_tables_as_excel_writes_them(encoding: str) -> None:
    assert read_labels("0.png\tcafé\n".encode(encoding), "a.txt") == {"0.png": "café"}
    assert read_labels(b"0.png\ta, b\n", "a.tsv") == {"0.png": "a, b"}
    assert read_labels(b'{"file_name": "0.png", "label": NaN}\n', "a.jsonl") == {"0.png": None}


def test_latin_1_is_read_too() -> None:
    assert read_labels("0.png,café\n".encode("latin-1"), "a.csv") == {"0.png": "café"}
