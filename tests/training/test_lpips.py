"""The perceptual distance: torchmetrics' to the last digits, in the loss of autoencoders, and nowhere else."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from diffgen.core.errors import CheckpointError, UsageError
from diffgen.nets import DataShape
from diffgen.storage import checkpoint
from diffgen.storage.tensor_file import write_tensors
from diffgen.training.lpips import Lpips, load_lpips

Command = Callable[..., Any]

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def vgg16() -> dict[str, Tensor]:
    """Weights with the names of torchvision's, drawn so that all five blocks say something."""
    torch.manual_seed(0)
    own = {name: weight for name, weight in Lpips().state_dict().items() if name.startswith("features.")}
    return {
        name: torch.randn_like(weight) * (2 / weight[0].numel()) ** 0.5 if weight.dim() > 1 else 0.1 * weight
        for name, weight in own.items()
    }


@pytest.fixture(scope="module")
def theirs(vgg16: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """torchmetrics' network with these weights, and the file that the script makes of them."""
    lpips = pytest.importorskip("torchmetrics.functional.image.lpips")
    network = lpips._LPIPS(net="vgg", pnet_rand=True, eval_mode=True)
    convolutions = [layer for layer in network.net.modules() if isinstance(layer, nn.Conv2d)]
    for layer, (weight, bias) in zip(convolutions, zip(*2 * [iter(vgg16.values())], strict=True), strict=True):
        layer.weight.data, layer.bias.data = weight, bias
    folder = tmp_path_factory.mktemp("lpips")
    torch.save({**vgg16, "classifier.0.weight": torch.zeros(1)}, folder / "vgg16.pth")
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(ROOT / "scripts"))
        patched.setattr(sys, "argv", ["", str(folder / "vgg16.pth"), str(folder / "lpips.safetensors")])
        script = importlib.import_module("lpips_weights")
        with pytest.raises(SystemExit, match="is not torchvision's VGG16: its SHA-256 begins with"):
            script.main()
        patched.setattr(script, "SHA256", "")
        script.main()
    return network, folder / "lpips.safetensors"


@pytest.mark.parametrize(("channels", "size"), [(3, 40), (1, 28), (3, 16)])
def test_the_distance_is_that_of_torchmetrics(theirs: Any, channels: int, size: int) -> None:
    network, file = theirs
    rng = torch.Generator().manual_seed(1)
    a, b = (torch.rand(3, channels, size, size, generator=rng) * 2 - 1 for _ in range(2))
    ours = load_lpips(file, "train.perceptual", DataShape((channels, size, size)))
    expected = network(a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1)).flatten()
    assert expected.min() > 0.01
    torch.testing.assert_close(ours(a, b), expected, rtol=1e-4, atol=1e-6)
    assert ours(a, a).abs().max() == 0


def test_its_gradient_is_a_number_where_nothing_differs(theirs: Any) -> None:
    network = load_lpips(theirs[1], "train.perceptual", DataShape((1, 16, 16)))
    x = torch.full((1, 1, 16, 16), -1.0, requires_grad=True)
    network(x, x.detach()).sum().backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_other_pictures_and_files_are_refused(theirs: Any, tmp_path: Path) -> None:
    for size, told in (((1, 8, 8), "is for pictures from 16x16 on"), ((4, 32, 32), "these have 4 channels")):
        with pytest.raises(UsageError, match=told):
            load_lpips(theirs[1], "train.perceptual", DataShape(size))
    shape = DataShape((3, 32, 32))
    with pytest.raises(CheckpointError, match="cannot be read .No such file.*; scripts/lpips_weights.py makes one"):
        load_lpips(tmp_path / "x", "train.perceptual", shape)
    spoilt = {name: weight.clone() for name, weight in load_file(theirs[1]).items()}
    spoilt["features.0.bias"][3] = float("nan")
    write_tensors(spoilt, tmp_path / "nan")
    with pytest.raises(CheckpointError, match="weight 'features.0.bias' holds values that are not finite"):
        load_lpips(tmp_path / "nan", "train.perceptual", shape)
    write_tensors({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "half")
    with pytest.raises(CheckpointError, match=r"train.perceptual: .*weight 'features.0.bias' is missing; scripts"):
        load_lpips(tmp_path / "half", "train.perceptual", shape)
    (tmp_path / "pickle").write_bytes(b"PK\x03\x04" + bytes(64))
    with pytest.raises(CheckpointError, match="train.perceptual: .*pickle"):
        load_lpips(tmp_path / "pickle", "train.perceptual", shape)


TINY = [
    "dataset=arrays", "dataset.path=x.npy", "model.channels=8", "train.images=8", "train.batch_size=8", "preview.n=2",
]  # fmt: skip


def test_an_autoencoder_learns_by_it(command: Command, theirs: Any, tmp_path: Path, metrics: Any) -> None:
    """The first loss is higher by the distance, the checkpoint knows nothing of it, and diffusion has none."""
    np.save("x.npy", np.random.default_rng(0).integers(0, 256, (16, 16, 16, 1), np.uint8))
    losses, rows = [], []
    for name, more in {"plain": [], "seen": [f"train.perceptual={theirs[1]}", "train.perceptual_weight=2"]}.items():
        done = command("train", *TINY, "method=vae", f"run_dir={name}", *more)
        assert done.code == 0, done.err
        losses.append(metrics(tmp_path / name)[0]["loss"])
        rows.append(next(line for line in done.out.splitlines() if "GFLOP per image" in line or "memory" in line))
        assert ("MB of LPIPS" in done.out) == (name == "seen")
    work = [float(row.split(",")[-1].split()[0]) for row in rows]
    assert work[1] > work[0] + 3 * 0.15, "three passes through 0.157 GFLOP"
    assert losses[1] > losses[0] + 0.01
    plain, seen = (checkpoint.load(tmp_path / name) for name in ("plain", "seen"))
    assert plain.config == seen.config
    assert any(not torch.equal(seen.weights[name], weight) for name, weight in plain.weights.items())
    done = command("train", *TINY, f"train.perceptual={theirs[1]}", "run_dir=noise")
    assert done.code == 2 and "is for autoencoders: method=vae or fsq" in done.err and not Path("noise").exists()
    done = command("train", *TINY, "method=vae", "train.perceptual_weight=5", "run_dir=noise")
    assert done.code == 2 and "train.perceptual_weight=5 is of no use without train.perceptual=FILE" in done.err
    done = command("train", *TINY, "method=vae", "train.perceptual=missing", "run_dir=none")
    assert done.code == 4 and "train.perceptual='missing' cannot be read" in done.err and not Path("none").exists()
