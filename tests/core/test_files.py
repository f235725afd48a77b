"""A file or folder is there whole, or not at all."""

import errno
import json
import os
from pathlib import Path

import pytest

from diffgen.core.errors import EnvironmentFault
from diffgen.core.files import append_text, folder_atomically, tidy, write_atomically, write_json

Patch = pytest.MonkeyPatch


def full_disk(*args: object, **kwargs: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_files_are_written_and_replaced(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    write_atomically(path, "one")
    write_atomically(path, b"two")
    write_json(tmp_path / "new" / "b.json", {"x": [1]})
    assert path.read_bytes() == b"two"
    assert json.loads((tmp_path / "new" / "b.json").read_text()) == {"x": [1]}
    assert names(tmp_path / "new") == ["a.txt", "b.json"]


@pytest.mark.parametrize("fault", ["fsync", "replace"])
def test_a_fault_leaves_the_old_file_whole(tmp_path: Path, monkeypatch: Patch, fault: str) -> None:
    path = tmp_path / "a.txt"
    write_atomically(path, "old")
    monkeypatch.setattr(os if fault == "fsync" else Path, fault, full_disk)
    with pytest.raises(EnvironmentFault) as caught:
        write_atomically(path, "new")
    assert str(caught.value) == f"cannot write {path}: No space left on device"
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_data_reaches_the_disk_before_the_name(tmp_path: Path, monkeypatch: Patch) -> None:
    calls = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda self, target: (calls.append("replace"), replace(self, target)))
    write_atomically(tmp_path / "a.txt", "x")
    assert calls[:2] == ["fsync", "replace"]


@pytest.mark.parametrize("path", ["/proc/nope/a.txt", "file/a.txt"])
def test_unwritable_places_are_named(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(EnvironmentFault, match="cannot write .*a.txt: "):
        write_atomically(tmp_path / path, "x")
    with pytest.raises(EnvironmentFault, match="cannot write .*a.txt: "):
        append_text(tmp_path / path, "x")
    with pytest.raises(EnvironmentFault, match="cannot write .*a.txt: "), folder_atomically(tmp_path / path):
        pass


def test_folders_appear_by_one_rename(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "folder"
    with folder_atomically(target) as temporary:
        (temporary / "a").write_text("1")
        assert not target.exists()
        assert temporary.parent == target.parent
    assert names(target) == ["a"]
    assert names(target.parent) == ["folder"]


@pytest.mark.parametrize("error", [RuntimeError("x"), OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_fault_leaves_the_old_folder_whole(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "folder"
    with folder_atomically(target) as temporary:
        (temporary / "a").write_text("old")
    expected = EnvironmentFault if isinstance(error, OSError) else type(error)
    with pytest.raises(expected), folder_atomically(target) as temporary:
        (temporary / "a").write_text("new")
        raise error
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["folder"]


def test_a_folder_is_replaced(tmp_path: Path) -> None:
    target = tmp_path / "folder"
    for text in ("old", "new"):
        with folder_atomically(target) as temporary:
            (temporary / text).write_text(text)
    assert names(target) == ["new"]
    assert names(tmp_path) == ["folder"]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: Patch) -> None:
    """The second of the two renames fails: the old folder must come back."""
    target = tmp_path / "folder"
    with folder_atomically(target) as temporary:
        (temporary / "a").write_text("old")
    rename = Path.rename

    def fail(self: Path, to: Path) -> Path:
        return full_disk() if self.name.startswith(".tmp_") else rename(self, to)  # type: ignore[return-value,func-returns-value]

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(EnvironmentFault), folder_atomically(target) as temporary:
        (temporary / "a").write_text("new")
    assert (target / "a").read_text() == "old"
    assert names(tmp_path) == ["folder"]


def test_text_is_appended_whole_or_not_at_all(tmp_path: Path) -> None:
    log = tmp_path / "log"
    append_text(log, "one\n")
    append_text(log, "two\nthree\n")
    assert log.read_text() == "one\ntwo\nthree\n"
    with pytest.raises(EnvironmentFault, match=r"cannot write .*: Is a directory"):
        append_text(tmp_path, "x")


def test_what_a_killed_process_left_is_tidied(tmp_path: Path) -> None:
    """Half-written files go; a folder that was about to be replaced comes back, unless the new one stands there."""
    for name in (".tmp_a_12", ".del_b", ".old_c_12", ".old_d_12", "d", "e"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    (tmp_path / ".tmp_f.png_12").write_text("half")
    tidy(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c", "d", "e"]
    assert (tmp_path / "c" / "file").read_text() == ".old_c_12"
    assert (tmp_path / "d" / "file").read_text() == "d"
