"""What stands at a path that holds no checkpoint: it is followed, or told for what it is."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from diffgen.core.errors import CheckpointError, DiffgenError, UsageError
from diffgen.core.lock import RunLock
from diffgen.storage import checkpoint
from diffgen.storage.run_directory import choose_run


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, tiny_run: Path) -> Path:
    """A folder with a run, and what people take for one. Read only."""
    root = tmp_path_factory.mktemp("place")
    shutil.copytree(tiny_run, root / "run")
    for name in ("runs/digits-flow/one", "runs/digits-flow/two"):
        shutil.copytree(tiny_run / "checkpoints", root / name / "checkpoints")
    shutil.copy(tiny_run / "checkpoints" / "00000128" / "model.safetensors", root / "copy.safetensors")
    for name, target in {"link": "run", "newest": "run/checkpoints/latest", "broken": "nowhere"}.items():
        (root / name).symlink_to(target)
    (root / "diffusers").mkdir()
    (root / "diffusers" / "config.json").write_text(json.dumps({"_class_name": "X", "_diffusers_version": "0.3"}))
    for name in ("diffusers/diffusion_pytorch_model.safetensors", "plain.safetensors"):
        save_file({"a": torch.ones(2)}, root / name)
    torch.save({"a": torch.ones(2)}, root / "old.ckpt")
    (root / "empty.safetensors").touch()
    return root


FOLLOWED = ["run/checkpoints/latest", "run/checkpoints", "link", "newest", "link/checkpoints/latest", "run"]


@pytest.mark.parametrize("path", FOLLOWED)
def test_what_leads_to_a_checkpoint_is_followed(place: Path, tmp_path: Path, path: str) -> None:
    assert checkpoint.load(place / path).images == 128
    with RunLock() as lock:
        chosen = choose_run(str(tmp_path / "new"), str(place / path), "", lock)
    assert chosen.resumed_from and chosen.resumed_from.name == "00000128"


TOLD = {
    "run/config.yaml": "is a part of a run, and holds no weights: give ckpt='.*run'",
    "run/metrics.jsonl": "give ckpt='.*run'",
    "run/samples": "give ckpt='.*run'",
    "run/checkpoints/00000128/state.json": "give ckpt='.*00000128'",
    "run/checkpoints/00000128/state.safetensors": "is the state of a run, not its model: give model.safetensors",
    "old.ckpt": "a PyTorch pickle, which can run code.* is not loaded",
    "diffusers": "is a model of diffusers: diffgen-export with format=diffgen brings it in",
    "diffusers/diffusion_pytorch_model.safetensors": "is a model of diffusers",
    "plain.safetensors": r"is not a diffgen checkpoint \(tensors in it: 'a'\)",
    "empty.safetensors": "is an empty file",
    "broken": "is a link to nowhere, which does not exist",
    "nothing": "does not exist",
}


@pytest.mark.parametrize("path", TOLD)
def test_what_holds_no_model_is_told(place: Path, path: str) -> None:
    with pytest.raises(CheckpointError, match=TOLD[path]):
        checkpoint.load(place / path)
    if "ckpt=" in TOLD[path]:
        with pytest.raises(CheckpointError, match=TOLD[path].replace("ckpt=", "train.init=")):
            checkpoint.load(place / path, "train.init")


def test_a_folder_of_runs_names_them(place: Path) -> None:
    for path in ("runs", "runs/digits-flow"):
        with pytest.raises(UsageError, match=r"is a folder of runs: give one of \[.*one, .*two\]"):
            checkpoint.load(place / path)


def test_latest_that_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "latest").write_text("../../etc\n")
    with pytest.raises(CheckpointError, match="names the checkpoint '../../etc', which is not beside it"):
        checkpoint.load(tmp_path / "latest")


NOT_GONE_ON_FROM = {
    "copy.safetensors": (CheckpointError, "holds weights alone.*: train.init=.* begins a new run from its weights"),
    "run/samples": (CheckpointError, "give train.resume='.*run'"),
    "old.ckpt": (CheckpointError, "PyTorch pickle"),
    "diffusers": (CheckpointError, "train.resume='.*' is a model of diffusers"),
    "plain.safetensors": (CheckpointError, "is not a diffgen checkpoint"),
    "broken": (CheckpointError, "train.resume='.*' is a link to nowhere"),
    "nothing": (CheckpointError, "does not exist; choose auto, none or a path"),
    "x" * 300: (CheckpointError, "cannot be read: File name too long"),
    "runs": (UsageError, r"give one of \[.*one, .*two\]"),
}


@pytest.mark.parametrize("path", NOT_GONE_ON_FROM)
def test_what_no_run_goes_on_from_is_told(place: Path, tmp_path: Path, path: str) -> None:
    error, words = NOT_GONE_ON_FROM[path]
    with RunLock() as lock, pytest.raises(DiffgenError, match=words) as caught:
        choose_run(str(tmp_path / "new"), str(place / path), "", lock)
    assert caught.type is error
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("path", ["run/config.yaml", "run/checkpoints/00000128/state.json"])
def test_files_of_a_run_mean_the_run(place: Path, tmp_path: Path, path: str) -> None:
    with RunLock() as lock:
        chosen = choose_run(str(tmp_path / "new"), str(place / path), "", lock)
    assert chosen.resumed_from == place / "run" / "checkpoints" / "00000128"
