"""Kinds: what an example is. Those of a plugin train, preview, sample and go on like pictures."""

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diffgen.core.errors import DataError, UsageError
from diffgen.core.registry import Table, named
from diffgen.data import kinds
from diffgen.data.base import InMemory
from diffgen.data.kinds import KINDS, Kind, Pixels, Vectors
from diffgen.storage import checkpoint

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "kind.py"

SMALL = [
    "model=mlp",
    "model.width=16",
    "model.blocks=1",
    "sampler.steps=4",
    "preview.n=4",
    "train.batch_size=16",
    "train.log_every=16",
    "train.checkpoint_every=64",
    "train.preview_every=64",
]

CLIPS = """
from dataclasses import dataclass
import torch
from diffgen.data.base import DATASETS, InMemory
from diffgen.data.images import grid, to_float, to_uint8
from diffgen.data.kinds import KINDS, Kind

@KINDS.register("clips")
@dataclass(frozen=True, kw_only=True)
class Clips(Kind):
    unit = "clips"
    bounded = True
    def encode(self, stored):  # uint8 [B, T, C, H, W] -> [B, C, T, H, W]
        return to_float(stored).transpose(1, 2)
    def decode(self, x0):
        return to_uint8(x0).transpose(1, 2).contiguous()
    def show(self, examples, labels, columns=None):  # a strip a clip
        return grid(examples.flatten(0, 1), columns=examples.shape[1])

@DATASETS.register("drops")
def drops(*, n: int = 64) -> InMemory:
    where = torch.arange(n) % 4
    clips = torch.zeros(n, 4, 1, 4, 4, dtype=torch.uint8)
    for t in range(4):
        clips[torch.arange(n), t, 0, t, where] = 255  # a drop that falls
    return InMemory(clips, where, ("a", "b", "c", "d"), Clips())
"""


def train(command: Any, plugin: Path, *settings: str) -> Any:
    done = command("train", f"plugins=[{plugin}]", *SMALL, *settings)
    assert done.code == 0, done.err
    return done


@pytest.mark.parametrize(
    ("dataset", "size", "shape"), [("waves", "1x32", (6, 1, 32)), ("drops", "1x4x4x4", (6, 4, 1, 4, 4))]
)
def test_a_kind_of_a_plugin_trains_previews_samples_and_goes_on(
    command: Any, tmp_path: Path, dataset: str, size: str, shape: tuple[int, ...]
) -> None:
    """Sequences [C, L] and clips [C, T, H, W]; a run that was stopped ends with the bytes of one left alone."""
    plugin = EXAMPLE
    if dataset == "drops":
        plugin = tmp_path / "drops.py"
        plugin.write_text(CLIPS)
    settings = [f"dataset={dataset}", "lr_schedule.decay=constant"]
    whole = train(command, plugin, *settings, "train.images=128", "run_dir=whole")
    assert f"{size}, " in whole.out
    train(command, plugin, *settings, "train.images=64", "run_dir=half")
    again = train(command, plugin, *settings, "train.images=128", "run_dir=half")
    assert "resumed at 64 images" in again.out
    for name in ("model", "state"):
        one, two = (tmp_path / run / "checkpoints/00000128" / f"{name}.safetensors" for run in ("whole", "half"))
        assert one.read_bytes() == two.read_bytes(), name
    with Image.open(tmp_path / "whole" / "samples" / "00000128.png") as preview:
        assert preview.width > 100
    name = {"waves": "signals", "drops": "clips"}[dataset]
    assert checkpoint.load(tmp_path / "whole").config["data"]["kind"] == {"name": name}

    sample = ["sample", f"plugins=[{plugin}]", "ckpt=whole", "n=6", "save=[npz]"]
    assert command(*sample, "out=a").code == 0
    drawn = np.load(tmp_path / "a" / "samples.npz")["arr_0"]
    assert drawn.shape == shape
    assert np.isfinite(drawn).all()
    assert command(*sample, "out=b", "task=trajectory", "task.frames=3").code == 0
    assert (tmp_path / "b" / "trajectory.gif").is_file()


def test_a_checkpoint_of_a_plugin_s_kind_says_what_it_needs(command: Any, tmp_path: Path) -> None:
    train(command, EXAMPLE, "dataset=waves", "train.images=64", "run_dir=run")
    KINDS.pop("signals")  # as in a fresh process without the plugin
    refused = command("sample", "ckpt=run")
    assert (refused.code, refused.err.count("\n")) == (4, 1)
    assert "kind.name='signals' is unknown" in refused.err
    assert "plugins=[...]" in refused.err


def test_what_a_kind_cannot_do_is_refused_before_anything_is_written(command: Any, tmp_path: Path) -> None:
    for setting, sentence in {
        "train.horizontal_flip=true": "vectors cannot be mirrored",
        "train.augment=0.1": "vectors cannot be turned",
        "train.eval_every=64": "vectors have no features",
        "model=unet_tiny": "name=unet takes pictures [C, H, W] and clips, and the data is 2: choose model=mlp",
    }.items():
        refused = command("train", "dataset=points", "dataset.n=100", setting, "run_dir=run")
        assert refused.code == 2
        assert sentence in refused.err
        assert not (tmp_path / "run").exists()


def test_a_network_lies_in_memory_as_its_kind_says(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    assert Pixels().layout(cuda) == torch.channels_last
    assert Vectors().layout(cuda) == torch.contiguous_format
    assert Pixels().layout(torch.device("cpu")) == torch.contiguous_format


def test_pixels_come_back_from_x0() -> None:
    stored = torch.arange(256, dtype=torch.uint8).reshape(4, 1, 8, 8)
    assert torch.equal(Pixels().decode(Pixels().encode(stored)), stored)
    assert Pixels().encode(stored).aminmax() == (-1, 1)


def test_only_pictures_are_read_from_files() -> None:
    with pytest.raises(UsageError, match=r"image='a.png' is for pictures, and this model makes vectors"):
        Vectors().read("a.png", (2,))


def test_nobody_else_chooses_by_kind_of_data() -> None:
    """No flag, no isinstance, no choosing by dimensions or types in training, sampling and objectives."""
    package = Path(kinds.__file__).parents[1]
    asked = {"ndim", "is_floating_point", "pixels", "to_uint8", "to_float", "Vectors", "Pixels"}
    free = {("tally.py", "ndim"), ("clipping.py", "is_floating_point"), ("loggers.py", "pixels")}  # of other tensors
    for path in (p for room in ("training", "sampling", "objectives") for p in (package / room).glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            name = getattr(node, "attr", None) or getattr(node, "id", None)
            assert name not in asked or (path.name, name) in free, f"{path.name} asks for {name}"


def test_a_kind_that_makes_no_numbers_of_its_examples_is_refused() -> None:
    """Whole numbers would become noise-free zeros in silence."""
    with pytest.raises(DataError, match=r"Kind.encode must give float32, and gives torch.int64"):
        InMemory(torch.ones(4, 3, dtype=torch.long), torch.full((4,), -1), (), Kind())


def test_a_kind_may_have_settings() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Scaled(Kind):
        scale: tuple[float, ...] = (1.0, 2.0)

    table = Table("kind")
    table.register("scaled")(Scaled)
    assert named(table, Scaled()) == {"name": "scaled", "scale": [1.0, 2.0]}
