"""`diffgen-eval`: figures that can be had again, in one table, with their floors."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from cases import schedule
from PIL import Image

from diffgen.build import restore
from diffgen.data.digits import digits
from diffgen.data.splits import Splits
from diffgen.evaluation import drawing, report
from diffgen.evaluation.measure import Judged, agreement
from diffgen.evaluation.model import chain_length
from diffgen.evaluation.samples import Drawn
from diffgen.storage.checkpoint import load

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
        (["ckpt=CKPT", "metrics=fda"], 2, "metrics='fda' is unknown; choose one of"),
        (
            ["ckpt=CKPT", "metrics=fid,kid"],
            2,
            "metrics=fid is over Inception's features: extractor=inception, or metrics=fd",
        ),
        (["ckpt=CKPT", "metrics=fid", "dataset=cifar10", "dataset.root=nowhere"], 2, "metrics=fid is over Inception's"),
        (["ckpt=CKPT", "metrics=[]"], 2, "metrics=[] names none; choose some of [fd, "),
        (
            ["ckpt=CKPT", "metrics=vlb"],
            2,
            "metrics=vlb is the bound of a chain of steps, and schedule=rectified_flow of",
        ),
        (["ckpt=CKPT", "n=1"], 2, "n=1 is too few: metrics of images need at least 4"),
        (["ckpt=CKPT", "n=3"], 2, "n=3 is too few: metrics of images need at least 4"),
        (["ckpt=CKPT", "dataset=points"], 2, "dataset=points holds vectors: diffgen-eval judges pictures"),
        (["images=x", "dataset=digits", "metrics=bits"], 2, "metrics=bits is a metric of a model and needs ckpt=PATH"),
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


def test_what_cannot_be_measured_is_said(command: Command, tmp_path: Path, cache: str) -> None:
    """Pictures without labels agree with none."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "nolabels.npz", arr_0=pixels)
    arguments = ("images=nolabels.npz", "dataset=digits", "out=out", cache, "extractor.epochs=1")
    said = command("eval", *arguments, "metrics=agreement,cas")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "metrics=agreement,cas need labels" in said.err
    assert not (tmp_path / "out" / "results.jsonl").exists()
    said = command("eval", *arguments, "metrics=agreement,fd")
    assert said.code == 0
    assert "left out, for want of labels, classes or held-out images: agreement" in said.out


def test_agreement_is_with_the_datas_own_classes() -> None:
    """Inception's thousand classes have nothing to say about digits."""
    splits = Splits.of(digits(split="train"), digits(split="test"))
    drawn = Drawn(splits.test.pixels[:4], torch.arange(4), torch.zeros(4, 2), torch.zeros(4, 1008))
    held: Any = SimpleNamespace(splits=splits)
    judged = Judged(**vars(drawn), reference=held, out=Path(), seed=0)
    assert agreement(judged) == {}
    judged.logits = torch.eye(10)[:4]
    assert agreement(judged)["agreement"] == 1.0


def test_columns_are_named_for_what_all_rows_have() -> None:
    rows: list[dict[str, Any]] = [{"extractor": "inception", "fd": 2.0}, {"extractor": "classifier", "fd": 1.0}]
    assert "Frechet distance" in report.many([*rows, {"bits": 3.0}])[0]
    assert "FID" in report.many(rows[:1])[0]
    assert json.loads(report.as_json({"a": [float("nan"), 1.0], "b": float("inf")})) == {"a": [None, 1.0], "b": None}


def noisy(name: str, *sizes: tuple[int, ...]) -> str:
    """A folder with one picture of each size."""
    Path(name).mkdir()
    for i, size in enumerate(sizes):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, size, dtype=np.uint8)).save(f"{name}/{i}.png")
    return name


def strangers(name: str) -> str:
    """A folder with one sub-folder that is no digit."""
    for own in ("3", "moon"):
        Path(name, own).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(f"{name}/{own}/0.png")
    return name


def arrays(name: str, *given: Any, **named: Any) -> str:
    np.savez(name, *given, **named)
    return name


def text(name: str) -> str:
    Path(name).write_text("hello")
    return name


GREY = np.zeros((5, 8, 8, 1), np.uint8)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (lambda: noisy("a", (8, 8), (9, 8)), "a/1.png is 9x8, others 8x8: they must be as those of dataset=digits"),
        (lambda: noisy("a", (8, 9), (8, 9)), "images='a' are 1x8x9 and dataset=digits is 1x8x8: they must be alike"),
        (lambda: noisy("a"), "images='a' holds no pictures"),
        (lambda: strangers("a"), "images='a': 'moon' is named as no class; the classes are [0, 1, 2,"),
        (lambda: arrays("a.npz", a=GREY, b=GREY), "images='a.npz' holds the arrays [a, b]: call that of the pictures"),
        (
            lambda: arrays("a.npz", GREY / 2),
            "images='a.npz', array 'arr_0' holds float64 values from 0 to 0: they must be as",
        ),
        (lambda: arrays("a.npz", GREY[:, 0, 0]), "images='a.npz', array 'arr_0' has the shape [5, 1]: pictures are"),
        (lambda: arrays("a.npz", GREY.repeat(3, 3)), "images='a.npz' are 3x8x8 and dataset=digits is 1x8x8"),
        (lambda: arrays("a.npz", GREY, np.arange(3)), "images='a.npz', array 'arr_1': labels must be 5 whole"),
        (lambda: arrays("a.npz", GREY, np.full(5, 10)), "images='a.npz': '10' is named as no class"),
        (lambda: arrays("a.npz", GREY, np.ones(5) / 2), "images='a.npz', array 'arr_1': labels must be 5 whole"),
        (lambda: arrays("a.npz", np.array([{}])), "images='a.npz' is no .npy or .npz of numbers that can be read"),
        (lambda: text("a.npz"), "images='a.npz' is no .npy or .npz of numbers that can be read"),
    ],
)
def test_pictures_that_cannot_be_judged(command: Command, tmp_path: Path, made: Callable[[], str], words: str) -> None:
    said = command("eval", f"images={made()}", "dataset=digits", "out=out", "cache=cache", "metrics=fd")
    assert said.code == 3
    assert words in said.err
    assert said.err.count("\n") == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "cache").exists()


def test_colours_are_made_grey_and_that_is_told(command: Command, cache: str) -> None:
    data = [f"images={noisy('rgb', *[(8, 8, 3)] * 5)}", "dataset=digits", "out=out", cache, "extractor.epochs=1"]
    said = command("eval", *data, "metrics=fd")
    assert said.code == 0, said.err
    assert "found  5 pictures: 5 RGB; 8x8; none left out" in said.out


def test_a_folder_need_not_hold_all_classes(command: Command, tmp_path: Path, cache: str) -> None:
    """Labels go by the names of sub-folders, not by their order."""
    pictures(tmp_path / "some")
    for left_out in "013":
        shutil.rmtree(tmp_path / "some" / left_out)
    said = command("eval", "images=some", "dataset=digits", "out=out", cache, "extractor.epochs=6", "metrics=agreement")
    assert said.code == 0, said.err
    assert rows(tmp_path / "out")[0]["agreement"] > 0.5


@pytest.mark.parametrize("out", ["file", "file/below"])
def test_results_that_cannot_be_written_are_told_before_the_work(
    command: Command, tiny_model: Path, cache: str, out: str
) -> None:
    Path("file").write_text("mine")
    said = command("eval", f"ckpt={tiny_model}", f"out={out}", cache, *FAST)
    assert said.code == 75
    assert f"cannot write out='{out}': file is a file" in said.err and said.err.count("\n") == 1
    assert "img/s" not in said.out, "nothing was drawn"
    assert Path("file").read_text() == "mine"


def test_a_sweep_survives_its_bad_members(command: Command, tiny_model: Path, tmp_path: Path, cache: str) -> None:
    said = command("eval", "-m", f"ckpt=nowhere,{tiny_model}", "seed=0,1", "metrics=kd", "out=out", cache, *FAST)
    assert said.code == 4
    assert said.err.count("ckpt='nowhere' does not exist") == 2
    assert "job 1 failed: ckpt=nowhere seed=1" in said.err
    assert [row["seed"] for row in rows(tmp_path / "out")] == [0, 1]
    (folder,) = tmp_path.glob("outputs/sweeps/*")
    table = list(csv.reader((folder / "results.csv").open()))
    assert [line[0] for line in table] == ["seed", "0", "1"]


def test_metrics_of_a_model_need_no_images(command: Command, tiny_model: Path, tmp_path: Path) -> None:
    """So no sampler runs, and no classifier is trained."""
    said = command("eval", f"ckpt={tiny_model}", "n=8", "metrics=denoising", "out=out", "cache=cache")
    assert said.code == 0, said.err
    assert "extractor" not in said.out and not (tmp_path / "cache").exists()
    assert {"nfe", "extractor"}.isdisjoint(rows(tmp_path / "out")[0])


@pytest.mark.parametrize(("steps", "calls"), [(1000, 33), (20, 20)])
def test_the_bound_of_a_chain(
    fit: Callable[..., Path], command: Command, tmp_path: Path, steps: int, calls: int
) -> None:
    """The parts add up, in the row and in the table of a sweep; a short chain is summed whole."""
    run = fit(
        tmp_path / "run",
        "method=ddpm",
        f"schedule.steps={steps}",
        "schedule.beta_end=0.015",
        "train.images=32",
        "sampler=ddim",
    )
    said = command("eval", "-m", f"ckpt={run}", "n=40,8", "metrics=vlb", "out=out")
    assert said.code == 0, said.err
    for row, n in zip(rows(tmp_path / "out"), (40, 8), strict=True):
        assert row["vlb"] == pytest.approx(row["vlb_prior"] + row["vlb_steps"] + row["vlb_decoder"])
        assert row["vlb_error"] > 0 and min(row["vlb_prior"], row["vlb_steps"], row["vlb_decoder"]) > 0
        assert (row["vlb_images"], row["vlb_nfe"]) == (n, calls)
        assert f"{row['vlb']:.4g}" in said.out
    (folder,) = tmp_path.glob("outputs/sweeps/*")
    head, first, _ = csv.reader((folder / "results.csv").open())
    assert head[1:] == [report.NAMES[key] for key in ("vlb", "vlb_prior", "vlb_steps", "vlb_decoder", "vlb_nfe")]
    assert float(first[1]) == pytest.approx(rows(tmp_path / "out")[0]["vlb"], rel=1e-3)


def test_all_leaves_out_the_bound_where_there_is_no_chain(tiny_model: Path) -> None:
    assert chain_length(restore(load(tiny_model)).denoiser.schedule) is None
    assert chain_length(schedule("ddpm_linear")) == 1000


@pytest.mark.parametrize(("n", "words"), [(60, "drawing 60 images takes about 0:"), (1001, "; n=1000 takes about 0:")])
def test_a_long_drawing_is_foretold(
    command: Command, tiny_model: Path, cache: str, monkeypatch: pytest.MonkeyPatch, n: int, words: str
) -> None:
    """Before the first batch is done, from the network calls that it takes."""
    monkeypatch.setattr(drawing, "SOON", 0.0)
    monkeypatch.setattr(drawing, "LONG", 0.0)
    said = command("eval", f"ckpt={tiny_model}", "metrics=kd", "out=out", cache, *FAST, f"n={n}", "batch_size=1001")
    assert said.code == 0, said.err
    assert said.out.count("drawing ") == 1 and words in said.out
    assert said.out.index("drawing ") < said.out.index("img/s")


def test_a_short_drawing_is_not(command: Command, tiny_model: Path, cache: str) -> None:
    assert "drawing" not in command("eval", f"ckpt={tiny_model}", "metrics=kd", "out=out", cache, *FAST).out


def test_floors_of_fewer_images_are_said_to_be_so() -> None:
    row = {"images": 500, "extractor": "classifier", "fd": 2.0, "floor_images": 360}
    assert list(report.table(row))[-1].startswith("held-out floors are of 360 images, not 500: with fewer")
    assert "floors" not in "".join(report.table({**row, "floor_images": 500}))


def test_fid_is_inceptions_name() -> None:
    row = {"extractor": "inception", "fd": 2.0, "kd": 0.001}
    assert [report.name(key, row) for key in ("fd", "kd")] == ["FID", "KID x 1000"]
    assert report.name("fd", {"extractor": "classifier"}) == "Frechet distance (classifier)"
