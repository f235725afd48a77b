"""`diffgen-eval`: figures that can be had again, in one table, with their floors."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffgen.datasets.digits import digits
from diffgen.evaluation import report

Command = Callable[..., Any]
FAST = ["extractor.epochs=1", "n=60", "sampler.steps=2", "guidance=1"]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One classifier for all."""
    return f"cache={tmp_path_factory.mktemp('cache')}"


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def pictures(folder: Path, split: str = "test", n: int = 100) -> Path:
    """Real digits as PNG files, a folder a class."""
    data = digits(split=split)  # type: ignore[arg-type]
    for i in range(n):
        path = folder / str(int(data.labels[i])) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(data.pixels[i, 0].numpy()).save(path)
    return folder


def test_a_checkpoint_is_judged(command: Command, tiny_model: Path, tmp_path: Path, cache: str) -> None:
    said = command("eval", f"ckpt={tiny_model}", "metrics=all", "out=out", cache, *FAST)
    assert said.code == 0, said.err
    (row,) = rows(tmp_path / "out")
    figures = (
        "fd",
        "kd",
        "kd_error",
        "is",
        "precision",
        "recall",
        "density",
        "coverage",
        "agreement",
        "copies",
        "cas",
        "bits",
    )
    assert all(np.isfinite(row[key]) for key in (*figures, "bits_error", "denoising_test"))
    assert row["fd"] > row["fd_floor_test"] > 0
    assert row["fd_floor_halves"] > 0
    assert (row["images"], row["seed"], row["nfe"], row["sampler"]) == (60, 0, 3, "heun")
    assert len(row["extractor_hash"]) == 64
    assert {"diffgen", "torch"} <= row["versions"].keys()
    assert "Frechet distance (classifier)" in said.out
    assert "FID" not in said.out
    for picture in ("pairs.png", "denoising.png"):
        with Image.open(tmp_path / "out" / picture) as opened:
            assert opened.width > 50


def test_the_same_figures_again(command: Command, tiny_model: Path, tmp_path: Path, cache: str) -> None:
    """From the cache, and in other batches."""
    for batch in (7, 60):
        assert (
            command(
                "eval", f"ckpt={tiny_model}", "metrics=fd,kd,dc", "out=out", cache, f"batch_size={batch}", *FAST
            ).code
            == 0
        )
    one, two = rows(tmp_path / "out")
    for key in ("fd", "kd", "density", "coverage"):
        assert one[key] == pytest.approx(two[key], rel=1e-2)


def test_results_of_a_run_stand_in_the_run(
    fit: Callable[..., Path], command: Command, tmp_path: Path, cache: str
) -> None:
    run = fit(tmp_path / "run", "train.images=16")
    assert command("eval", f"ckpt={run}", "metrics=fd", cache, *FAST).code == 0
    assert rows(run / "eval")[0]["images_seen"] == 16


def test_pictures_are_judged(command: Command, tmp_path: Path, cache: str) -> None:
    """Real held-out images are at the floor, and noise is far from it; a folder and an .npz give the same."""
    pictures(tmp_path / "real")
    data = digits(split="test")
    np.savez(tmp_path / "real.npz", data.pixels[:100].permute(0, 2, 3, 1).numpy(), data.labels[:100].numpy())
    noise = np.random.default_rng(0).integers(0, 256, (100, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "noise.npz", noise)
    for images in ("real", "real.npz", "noise.npz"):
        said = command("eval", f"images={images}", "dataset=digits", "out=out", cache, "extractor.epochs=6")
        assert said.code == 0, said.err
    folder, file, far = rows(tmp_path / "out")
    assert folder["fd"] == pytest.approx(file["fd"], rel=1e-6)
    assert far["fd"] > 10 * file["fd"]
    assert file["agreement"] > 0.5
    assert "agreement" not in far, "noise has no labels"


def test_a_sweep_ends_in_one_table_and_one_plot(command: Command, tiny_model: Path, tmp_path: Path, cache: str) -> None:
    said = command(
        "eval", "-m", f"ckpt={tiny_model}", "sampler=ddim,heun", "sampler.steps=2,4", "metrics=fd,kd", "out=out", cache,
        "n=40", "extractor.epochs=1",
    )  # fmt: skip
    assert said.code == 0, said.err
    (folder,) = tmp_path.glob("outputs/sweeps/*")
    table = list(csv.reader((folder / "results.csv").open()))
    assert table[0] == ["sampler", "steps", "nfe", "Frechet distance (classifier)", "kernel distance x 1000"]
    assert [line[:3] for line in table[1:]] == [
        ["ddim", "2", "2"],
        ["ddim", "4", "4"],
        ["heun", "2", "3"],
        ["heun", "4", "7"],
    ]
    assert len(json.loads((folder / "results.json").read_text())) == 4
    with Image.open(folder / "plot.png") as plot:
        assert plot.width > 300
    assert "plot: " in said.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "give either ckpt=PATH, a checkpoint, or images=PATH"),
        (["images=x"], 2, "dataset is missing: dataset=NAME says what the images are judged by"),
        (["images=x", "dataset=digits"], 3, "images='x' is neither a folder of pictures nor an .npz file"),
        (["images=x", "dataset=digit"], 2, "dataset='digit' is unknown"),
        (["ckpt=CKPT", "metrics=fid"], 2, "metrics='fid' is unknown; choose one of"),
        (["ckpt=CKPT", "n=1"], 2, "n=1 must be in [2, 10000000], or auto"),
        (["ckpt=CKPT", "dataset=cifar10", "dataset.root=nowhere"], 3, "nowhere"),
        (["ckpt=CKPT", "extractor=inception", "extractor.weights=x.pth"], 4, "extractor=classifier needs no download"),
        (["ckpt=CKPT", "dataset.size=3"], 2, "dataset.size is not a setting of dataset=digits"),
    ],
)
def test_what_cannot_be_judged(
    command: Command, tiny_model: Path, tmp_path: Path, arguments: list[str], code: int, words: str
) -> None:
    said = command("eval", *(a.replace("CKPT", str(tiny_model)) for a in arguments), "out=out", "cache=cache")
    assert said.code == code
    assert words in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_fid_is_inceptions_name() -> None:
    row = {"extractor": "inception", "fd": 2.0, "kd": 0.001}
    assert [report.name(key, row) for key in ("fd", "kd")] == ["FID", "KID x 1000"]
    assert report.name("fd", {"extractor": "classifier"}) == "Frechet distance (classifier)"
