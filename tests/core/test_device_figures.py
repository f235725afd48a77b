"""What devices differ in: their widest numbers, and so where figures are computed."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import schedule
from pretend import Pretended
from torch import Tensor

from diffgen.build import make_denoiser
from diffgen.core.devices import float_type, with_float64
from diffgen.data.digits import digits
from diffgen.data.images import to_float
from diffgen.data.splits import Splits
from diffgen.evaluation import bits_per_dim as likelihood
from diffgen.evaluation import model
from diffgen.evaluation.classifier import accuracy
from diffgen.evaluation.measure import MEASURES, Judged, measured
from diffgen.evaluation.reference import Reference
from diffgen.evaluation.samples import Drawn

PACKAGE = Path(__file__).parents[2] / "diffgen"
CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))
TRAIN, TEST = digits(split="train"), digits(split="test")


def test_float64_is_everywhere_but_on_mps() -> None:
    assert [float_type(device) for device in (CPU, CUDA, MPS)] == [torch.float64, torch.float64, torch.float32]
    assert [with_float64(device) for device in (CPU, CUDA, MPS)] == [CPU, CUDA, CPU]


def test_one_function_knows_what_mps_lacks() -> None:
    """`processes` asks whether there is one, and whoever wants a floating-point type asks `float_type`."""
    naming = {path.name for path in PACKAGE.rglob("*.py") if '"mps"' in path.read_text()}
    assert naming == {"devices.py"}


# --- figures ------------------------------------------------------------------------------------------------------


class Plain:
    """An extractor without a network: pixels are the features, and ten of them the logits."""

    name, hash, dim = "plain", "0" * 64, 64

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        features = to_float(pixels).flatten(1)
        return features, features[:, 20:30]


def row_of(device: torch.device, out: Path) -> dict[str, Any]:
    """All figures of some held-out digits but that of a trained classifier, which is trained elsewhere."""
    features, logits = Plain()(TEST.pixels[:100])
    drawn = Drawn(TEST.pixels[:100], TEST.labels[:100], features, logits)
    reference = Reference(Splits.of(TRAIN, TEST), Plain(), out / "cache")
    out.mkdir()
    return measured([name for name in MEASURES if name != "cas"], Judged.of(drawn, reference, out, 0, device))


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return row_of(CPU, tmp_path_factory.mktemp("figures") / "out")


def test_figures_are_computed_on_the_device(on_the_cpu: dict[str, Any], tmp_path: Path) -> None:
    """Features of the images, of both splits, and logits go there once; pixels stay."""
    with Pretended(CUDA) as device:
        row = row_of(CUDA, tmp_path / "out")
    assert row == on_the_cpu
    assert {"fd", "kd", "is", "precision", "density", "agreement", "copies", "copies_floor_test"} <= row.keys()
    sizes = [tuple(each.shape) for each in device.moved if each.is_floating_point()]
    assert sorted(sizes) == [(100, 10), (100, 64), (100, 64), (len(TRAIN), 64)]
    assert not any(each.dtype == torch.uint8 for each in device.moved)
    assert (tmp_path / "out" / "pairs.png").exists()


def test_figures_are_computed_on_the_cpu_without_float64(on_the_cpu: dict[str, Any], tmp_path: Path) -> None:
    with Pretended(MPS) as device:
        assert row_of(MPS, tmp_path / "out") == on_the_cpu
    assert not device.moved


@pytest.fixture(params=["cuda", "mps"])
def pretended(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    device = torch.device(request.param)
    with Pretended(device):
        yield device


def test_accuracy_is_counted_on_the_cpu(pretended: torch.device) -> None:
    def tenth(x: Tensor) -> Tensor:
        return x.flatten(1)[:, 20:30]

    found = accuracy(tenth, TEST, pretended)  # type: ignore[arg-type]
    assert found == float((tenth(to_float(TEST.pixels)).argmax(1) == TEST.labels).double().mean())


def test_models_are_judged_without_float64(pretended: torch.device, compose: Any, tmp_path: Path) -> None:
    """Bits per dimension, the bound and the denoising error, with a network that returns nothing but zeros."""
    seen: list[torch.dtype] = []

    def zeros(x: Tensor, *_: Tensor) -> Tensor:
        seen.append(x.dtype)
        return 0 * x

    denoiser = make_denoiser(compose("train", "method=edm"), zeros)
    splits = Splits.of(TRAIN, TEST)
    row = model.denoising(denoiser, pretended, splits, 6, 0, tmp_path, lambda done, said: None)
    assert row["denoising_test"] == pytest.approx(1.0, abs=0.5)
    assert set(seen) == {torch.float32}
    pixels = TEST.pixels[:4].to(pretended)
    chain = (lambda x, t: 0 * x, schedule("ddpm_linear"), pixels, [0, 1, 2, 3])
    bits = likelihood.bits_per_dim(*chain, seed=0, rtol=1e-2, atol=1e-2).each
    bound = likelihood.variational_bound(*chain, steps=5, seed=0).total
    for each in (bits, bound):
        assert each.dtype == torch.float64 and each.isfinite().all()
