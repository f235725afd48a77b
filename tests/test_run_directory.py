"""Which folder a run writes to, and what it goes on from: nothing of anybody's is lost."""

from pathlib import Path

import pytest

from diffgen.checkpoint import rotate
from diffgen.errors import CheckpointError, UsageError
from diffgen.run_directory import choose_run


def run(folder: Path, *images: int) -> Path:
    """A run directory with checkpoints."""
    for count in images:
        checkpoint = folder / "checkpoints" / f"{count:08d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "state.json").write_text("{}")
    (folder / "metrics.jsonl").write_text("")
    return folder


def test_a_new_run_never_shares_a_folder(tmp_path: Path) -> None:
    default = str(tmp_path / "outputs" / "now")
    assert [choose_run(None, "auto", default)[0].name for _ in range(3)] == ["now", "now-2", "now-3"]


def test_auto_goes_on_from_the_newest(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", 100, 2000)
    assert choose_run(str(folder), "auto", "") == (folder, folder / "checkpoints" / "00002000")
    with pytest.raises(UsageError, match="holds a run and train.resume=none"):
        choose_run(str(folder), "none", "")


def test_going_back_asks_for_another_folder(tmp_path: Path) -> None:
    """Else the newest checkpoint would be one of the branch that was left."""
    folder = run(tmp_path / "run", 100, 2000)
    earlier = folder / "checkpoints" / "00000100"
    with pytest.raises(UsageError, match=r"holds 00002000, beyond .*00000100: give another run_dir"):
        choose_run(None, str(earlier), "")
    assert choose_run(str(tmp_path / "fork"), str(earlier), "") == (tmp_path / "fork", earlier)


def test_another_run_is_not_continued_over(tmp_path: Path) -> None:
    mine, other = run(tmp_path / "mine", 50), run(tmp_path / "other", 20)
    with pytest.raises(UsageError, match="give another run_dir"):
        choose_run(str(mine), str(other), "")


def test_a_damaged_run_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", 100, 2000)
    (folder / "checkpoints" / "00002000" / "state.json").unlink()
    assert choose_run(str(folder), "auto", "")[1] == folder / "checkpoints" / "00000100"
    (folder / "checkpoints" / "00000100" / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"is not a complete checkpoint"):
        choose_run(str(folder), "auto", "")


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine" / "samples").mkdir(parents=True)
    choose_run(str(tmp_path / "mine"), "auto", "")  # empty folders are nobody's
    (tmp_path / "mine" / "samples" / "cat.png").write_text("a cat")
    with pytest.raises(UsageError, match="no run of diffgen's"):
        choose_run(str(tmp_path / "mine"), "auto", "")


def test_rotation_counts_complete_checkpoints_only(tmp_path: Path) -> None:
    folders = run(tmp_path / "run", 1, 2, 3) / "checkpoints"
    (folders / "00000009").mkdir()  # not complete
    rotate(folders, keep=2)
    assert sorted(p.name for p in folders.iterdir()) == ["00000002", "00000003", "00000009"]
