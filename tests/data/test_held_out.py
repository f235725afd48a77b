"""Examples that are held out: never trained on, chosen by a seed, or another folder's."""

from pathlib import Path
from typing import Any

import inputs
import pytest
import torch
from rows import row

from diffgen.build import make_splits
from diffgen.core.errors import DataError, UsageError
from diffgen.data import Source
from diffgen.data.splits import Splits, held_out


def splits(root: Path, **changes: Any) -> Splits:
    settings = row("dataset", "image_folder", **{"root": str(root), "workers": 0, **changes})
    del settings["defaults"]
    return make_splits({"dataset": settings})


def everything(source: Source) -> list[bytes]:
    (batch,) = source.batches(iter([torch.arange(len(source))]), torch.device("cpu"))
    return [picture.numpy().tobytes() for picture in batch.examples]


@pytest.mark.parametrize(("share", "count"), [(0.1, 1), (0.25, 3), (0.01, 1), (0.9, 11)])
def test_a_share_is_kept_apart_by_a_seed(tmp_path: Path, share: float, count: int) -> None:
    root = inputs.classes(tmp_path, each=6)
    whole = everything(splits(root).train)
    for seed in (0, 1):
        parts = splits(root, held_out=share, held_out_seed=seed)
        assert parts.test is not None and parts.by == "share"
        kept, apart = everything(parts.train), everything(parts.test)
        assert len(apart) == count
        assert sorted(kept + apart) == sorted(whole) and not set(kept) & set(apart)
        assert parts.train.classes == parts.test.classes == ("cat", "dog")
    again = splits(root, held_out=share, held_out_seed=1)
    assert again.test is not None and everything(again.test) == apart


def test_other_seeds_hold_out_others() -> None:
    chosen = {tuple(held_out(100, 0.1, seed)[1].tolist()) for seed in range(5)}
    assert len(chosen) == 5


def test_without_a_share_nothing_is_held_out(tmp_path: Path) -> None:
    root = inputs.classes(tmp_path)
    for nothing in (None, 0):
        assert splits(root, held_out=nothing).test is None


def test_a_second_folder_is_told_by_the_first_one_s_classes(tmp_path: Path) -> None:
    root = inputs.classes(tmp_path / "train", ["bird", "cat", "dog"])
    other = inputs.classes(tmp_path / "val", ["cat", "dog"])
    parts = splits(root, held_out=str(other))
    assert len(parts.train) == 9 and parts.test is not None and len(parts.test) == 6
    (batch,) = parts.test.batches(iter([torch.arange(6)]), torch.device("cpu"))
    assert batch.labels.tolist() == [1, 1, 1, 2, 2, 2] and parts.test.classes == ("bird", "cat", "dog")


def test_labels_of_a_second_folder_come_from_its_own_file(tmp_path: Path) -> None:
    for name in ("train", "val"):
        inputs.fill(tmp_path / name, ["0.png", "1.png"])
    (tmp_path / "train" / "labels.csv").write_text("0.png,a\n1.png,b\n")
    (tmp_path / "val" / "labels.csv").write_text("0.png,b\n1.png,b\n")
    for labels in ("labels.csv", str(tmp_path / "train" / "labels.csv")):
        parts = splits(tmp_path / "train", labels=labels, held_out=str(tmp_path / "val"))
        assert parts.test
        (batch,) = parts.test.batches(iter([torch.arange(2)]), torch.device("cpu"))
        assert batch.labels.tolist() == [1, 1]


@pytest.mark.parametrize("resident", [True, False])
def test_a_streamed_set_is_divided_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resident: bool) -> None:
    from diffgen.data import pictures

    root = inputs.classes(tmp_path, each=6)
    expected = splits(root, held_out=0.25)
    monkeypatch.setattr(pictures, "RESIDENT_BYTES", 2**31 if resident else 0)
    parts = splits(root, held_out=0.25)
    assert parts.test and expected.test
    assert everything(parts.train) == everything(expected.train)
    assert everything(parts.test) == everything(expected.test)


def test_what_cannot_be_held_out_is_told(tmp_path: Path) -> None:
    root = inputs.classes(tmp_path / "in")

    def told(fault: type[Exception], **changes: Any) -> str:
        with pytest.raises(fault) as caught:
            assert splits(root, **changes).test
        return str(caught.value)

    assert "dataset.held_out=1 must be a share in [0, 1)" in told(UsageError, held_out=1)
    assert "dataset.held_out=-0.1 must be a share" in told(UsageError, held_out=-0.1)
    assert "dataset.held_out=0.99 of 6 examples leaves none" in told(DataError, held_out=0.99)
    assert "dataset.held_out='nowhere': dataset.root='nowhere' is not a folder" in told(DataError, held_out="nowhere")
    strangers = inputs.classes(tmp_path / "strangers", ["fish"])
    assert "'fish' is named as no class" in told(DataError, held_out=str(strangers))
    inputs.save(tmp_path / "large" / "cat" / "a.png", image=inputs.picture(size=(20, 20)))
    assert "3x20x20, and those to train on are 3x6x8" in told(DataError, held_out=str(tmp_path / "large"))


def test_data_sets_that_are_computed_have_no_second_place() -> None:
    with pytest.raises(UsageError, match="dataset=mixture is read from no place; give a share"):
        settings = row("dataset", "mixture", held_out="elsewhere")
        del settings["defaults"]
        assert make_splits({"dataset": settings}).test
