"""Which folder a run writes to, and what it goes on from: nothing of anybody's is lost."""

from pathlib import Path

import pytest
import torch

from diffgen.core.errors import CheckpointError, UsageError
from diffgen.core.lock import RunLock
from diffgen.storage import checkpoint
from diffgen.storage.run_directory import Place, choose_run

WEIGHTS = {"w": torch.ones(3)}


def run(folder: Path, *images: int, stays: int = 0) -> Path:
    """A run directory with checkpoints; those at multiples of `stays` are to stay."""
    for count in images:
        place = folder / "checkpoints" / f"{count:08d}"
        checkpoint.save(
            place,
            {},
            count,
            WEIGHTS,
            WEIGHTS,
            {"config": {}, "images": count, "stays": bool(stays) and count % stays == 0},
        )
    (folder / "metrics.jsonl").write_text("")
    return folder


def choose(run_dir: Path | None, resume: object = "auto", default: object = "") -> Place:
    """The choice, with the lock given back."""
    with RunLock() as lock:
        return choose_run(None if run_dir is None else str(run_dir), str(resume), str(default), lock)


def names(folder: Path) -> list[str]:
    """What a folder holds, hidden files aside."""
    return sorted(p.name for p in folder.iterdir() if not p.name.startswith("."))


def test_a_new_run_never_shares_a_folder(tmp_path: Path) -> None:
    default = str(tmp_path / "outputs" / "now")
    assert [choose(None, "auto", default).run_dir.name for _ in range(3)] == ["now", "now-2", "now-3"]


def test_auto_goes_on_from_the_newest(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", 100, 2000)
    assert choose(folder) == Place(folder, folder / "checkpoints" / "00002000")
    with pytest.raises(UsageError, match="holds a run and train.resume=none"):
        choose(folder, "none")


def test_going_back_asks_for_another_folder(tmp_path: Path) -> None:
    """Else the newest checkpoint would be one of the branch that was left."""
    folder = run(tmp_path / "run", 100, 2000)
    earlier = folder / "checkpoints" / "00000100"
    with pytest.raises(UsageError, match=r"holds 00002000, beyond .*00000100: give another run_dir"):
        choose(None, earlier)
    assert choose(tmp_path / "fork", earlier) == Place(tmp_path / "fork", earlier)


def test_another_run_is_not_continued_over(tmp_path: Path) -> None:
    mine, other = run(tmp_path / "mine", 50), run(tmp_path / "other", 20)
    with pytest.raises(UsageError, match="give another run_dir"):
        choose(mine, other)


def test_a_damaged_run_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", 100, 2000)
    (folder / "checkpoints" / "00002000" / "state.json").unlink()
    assert choose(folder).resumed_from == folder / "checkpoints" / "00000100"
    (folder / "checkpoints" / "00000100" / "state.json").unlink()
    with pytest.raises(CheckpointError, match=r"is not a complete checkpoint"):
        choose(folder)


def test_somebody_elses_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine" / "samples").mkdir(parents=True)
    choose(tmp_path / "mine")  # empty folders are nobody's
    (tmp_path / "mine" / "samples" / "cat.png").write_text("a cat")
    with pytest.raises(UsageError, match="no run of diffgen's"):
        choose(tmp_path / "mine")


def test_rotation_counts_complete_checkpoints_only(tmp_path: Path) -> None:
    folders = run(tmp_path / "run", 1, 2, 3) / "checkpoints"
    (folders / "00000009").mkdir()  # not complete
    checkpoint.rotate(folders, keep=2)
    assert names(folders) == ["00000002", "00000003", "00000009", "latest"]


@pytest.mark.fault(
    "many checkpoints on a small disk", "train.keep_checkpoints newest stay, and one every train.keep_every images"
)
def test_milestones_stay(tmp_path: Path) -> None:
    folders = run(tmp_path / "run", 10, 20, 30, 40, 50, 60, stays=20) / "checkpoints"
    checkpoint.rotate(folders, keep=1)
    assert names(folders) == ["00000020", "00000040", "00000060", "latest"]


@pytest.mark.fault("a checkpoint that cannot be judged", "rotation does not delete it")
def test_what_cannot_be_read_is_not_deleted(tmp_path: Path) -> None:
    folders = run(tmp_path / "run", 1, 2) / "checkpoints"
    (folders / "00000001" / "state.json").write_text("{")
    checkpoint.rotate(folders, keep=1)
    assert names(folders) == ["00000001", "00000002", "latest"]


@pytest.mark.fault(
    "the newest checkpoint damaged", "a warning; going on from the newest whole one, the other is set aside"
)
def test_a_damaged_newest_checkpoint_is_set_aside(tmp_path: Path) -> None:
    """The run goes on from the newest whole one; the damaged ones beyond it are kept under another name."""
    folder = run(tmp_path / "run", 10, 20, 30, 40)
    for images in (30, 40):
        weights = folder / "checkpoints" / f"{images:08d}" / "state.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    place = choose(folder)
    assert place.resumed_from == folder / "checkpoints" / "00000020"
    assert len(place.notes) == 2
    assert "00000040/state.safetensors is damaged" in place.notes[0]
    assert [name[:16] for name in names(folder / "checkpoints")] == [
        "00000010", "00000020", "00000030-damaged", "00000040-damaged", "latest"
    ]  # fmt: skip


@pytest.mark.fault("every checkpoint damaged", "exit 4; the run is never silently begun anew")
@pytest.mark.parametrize("how", ["digits changed", "renamed", "without state.json"])
def test_a_checkpoint_that_is_not_what_it_says_is_set_aside(tmp_path: Path, how: str) -> None:
    folder = run(tmp_path / "run", 10, 20)
    newest = folder / "checkpoints" / "00000020"
    if how == "digits changed":
        (newest / "state.json").write_text((newest / "state.json").read_text().replace('"images": 20', '"images": 21'))
    elif how == "renamed":
        newest.rename(newest.with_name("00000099"))
    else:
        (newest / "state.json").unlink()
    place = choose(folder)
    assert place.resumed_from == folder / "checkpoints" / "00000010"
    assert len(place.notes) == 1
    assert any("-damaged-" in name for name in names(folder / "checkpoints"))


def test_a_run_with_damaged_checkpoints_only_is_not_begun_anew(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", 10, 20)
    for state in folder.rglob("state.json"):
        state.write_text("{}")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"00000020/state.json is damaged; no other checkpoint of the run is"):
            choose(folder)
    assert names(folder / "checkpoints") == ["00000010", "00000020", "latest"]


def test_a_checkpoint_of_another_version_is_no_damage(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", 10, 20)
    state = folder / "checkpoints" / "00000020" / "state.json"
    state.write_text(state.read_text().replace('"format": 1', '"format": 99'))
    with pytest.raises(CheckpointError, match="another version of diffgen"):
        choose(folder)


def test_an_explicit_checkpoint_is_never_exchanged(tmp_path: Path) -> None:
    folder = run(tmp_path / "run", 10, 20)
    (folder / "checkpoints" / "00000020" / "state.json").write_text("{}")
    asked = folder / "checkpoints" / "00000020"
    assert choose(None, asked).resumed_from == asked, "loading it will say what is wrong"
