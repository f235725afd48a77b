"""Training runs of a few steps in this process: what they write, and that a resumed run is the same run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conftest
import numpy as np
import pytest
import torch
from cases import CONFIGS
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from diffgen.build import restore
from diffgen.core.errors import CheckpointError, EnvironmentFault, UsageError
from diffgen.data import kinds
from diffgen.data import pictures as image_folder
from diffgen.diffusion.guidance import Guidance
from diffgen.objectives import Batch, Denoise
from diffgen.sampling.drawing import Sampling
from diffgen.storage import checkpoint
from diffgen.training import stopwatch, trainer
from diffgen.training.changes import flatten

Fit = Callable[..., Path]
Compose = Callable[..., dict[str, Any]]
Metrics = Callable[[Path], list[dict[str, Any]]]
Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]

TIMING = {"images_per_second", "seconds"}


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def without_timing(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{key: value for key, value in row.items() if key not in TIMING} for row in rows]


def same(first: Path, second: Path) -> None:
    """All tensors of two files are equal, bit for bit."""
    a, b = load_file(first), load_file(second)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


# --- what a run writes --------------------------------------------------------------------------------------


def test_the_run_directory(tiny_run: Path) -> None:
    assert names(tiny_run) == [
        ".lock", "checkpoints", "config.yaml", "loss.png", "metrics.jsonl", "samples", "status.json"
    ]  # fmt: skip
    status = {"state": "done", "images": 128, "exit_code": 0, "reason": ""}
    assert json.loads((tiny_run / "status.json").read_text()) == status
    assert names(tiny_run / "checkpoints") == ["00000064", "00000128", "latest"]
    assert (tiny_run / "checkpoints" / "latest").read_text() == "00000128\n"
    for folder in ("00000064", "00000128"):
        files = names(tiny_run / "checkpoints" / folder)
        assert files == ["model.safetensors", "state.json", "state.safetensors"]
    assert names(tiny_run / "samples") == ["00000128.png"]
    for picture in ("samples/00000128.png", "loss.png"):
        with Image.open(tiny_run / picture) as opened:
            assert opened.width > 100
            opened.load()
    assert "channels: 8" in (tiny_run / "config.yaml").read_text()


def test_metrics_rows(tiny_run: Path, metrics: Metrics) -> None:
    rows = metrics(tiny_run)
    assert [row["images"] for row in rows] == list(range(16, 129, 16))
    assert [row["step"] for row in rows] == list(range(1, 9))
    keys = ["images", "step", "loss", "lr", "grad_norm", "skipped", "images_per_second", "seconds"]
    assert all(list(row) == keys for row in rows)
    assert all(0 < row["loss"] < 10 and 0 < row["grad_norm"] < 100 for row in rows)
    seconds = [row["seconds"] for row in rows]
    assert seconds == sorted(seconds)


def test_learning_rate_warms_up_and_falls(tiny_run: Path, metrics: Metrics) -> None:
    """4e-3 of the recipe; 32 images of warm-up (but a tenth of the run at most), then linear to 0 at 128."""
    expected = [
        4e-3 * min(1, max((images + 1) / 32, images / 12.8)) * (1 - images / 128) for images in range(0, 128, 16)
    ]
    assert [row["lr"] for row in metrics(tiny_run)] == pytest.approx(expected)


def test_a_checkpoint_says_what_it_is(tiny_model: Path) -> None:
    loaded = checkpoint.load(tiny_model)
    assert loaded.images == 128
    kind = {"name": "pixels", "background": "white", "range": None}
    assert loaded.config["data"] == {
        "kind": kind, "size": [1, 8, 8], "num_classes": 10, "augment_labels": 0, "classes": list("0123456789"),
    }  # fmt: skip
    assert loaded.config["objective"] == {"name": "denoise"}
    assert loaded.config["trained"] == {"dataset": "digits", "method": "flow"}
    assert loaded.config["sampler"]["steps"] == 4
    assert not set(loaded.config) & {"run_dir", "train", "dataset"}, "nothing of this machine"
    assert restore(loaded).denoiser.sigma_data == 0.75


def test_the_average_is_that_of_the_weights(fit: Fit, tmp_path: Path) -> None:
    """Two steps with a half-life of one step: half of the second weights, a quarter of the first and of the start."""
    weights = {}
    for images in (16, 32):
        run = fit(
            tmp_path / str(images),
            f"train.images={images}",
            "ema.halflife=16",
            "ema.ramp=1",
            "lr_schedule.decay=constant",
        )
        weights[images] = load_file(run / "checkpoints" / f"{images:08d}" / "state.safetensors")
    average = {n: load_file(tmp_path / str(n) / "checkpoints" / f"{n:08d}" / "model.safetensors") for n in (16, 32)}
    for name, value in average[32].items():
        expected = (average[16][name] + weights[32][f"model.{name}"]) / 2
        torch.testing.assert_close(value, expected)
    assert any(not torch.equal(average[32][name], weights[32][f"model.{name}"]) for name in average[32])


def test_training_learns(fit: Fit, metrics: Metrics, tmp_path: Path) -> None:
    rows = metrics(
        fit(
            tmp_path / "run",
            "train.images=2560",
            "train.batch_size=64",
            "train.log_every=320",
            "train.checkpoint_every=9999",
        )
    )
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]


def test_old_checkpoints_rotate(fit: Fit, tmp_path: Path) -> None:
    run = fit(tmp_path / "run", "train.checkpoint_every=16", "train.keep_checkpoints=3", "train.images=96")
    assert names(run / "checkpoints") == ["00000064", "00000080", "00000096", "latest"]


def test_milestones_are_written_and_kept(fit: Fit, tmp_path: Path) -> None:
    """Also between two checkpoints that rotate."""
    run = fit(tmp_path / "run", "train.keep_checkpoints=1", "train.keep_every=48", "train.checkpoint_every=32")
    assert names(run / "checkpoints") == ["00000048", "00000096", "00000128", "latest"]


def test_the_time_used_counts_after_a_resume(fit: Fit, metrics: Metrics, tmp_path: Path) -> None:
    run = fit(tmp_path / "run", "train.images=64")
    state = run / "checkpoints" / "00000064" / "state.json"
    counters = json.loads(state.read_text())
    counters = {**counters, "seconds": 3600.0}
    del counters["sha256"]
    state.write_text(json.dumps({**counters, "sha256": checkpoint._sha256_of(counters)}))
    fit(run, "train.images=null", "train.minutes=60.0001")
    rows = metrics(run)
    assert rows[-1]["images"] < 1024, "60 minutes were used up, six milliseconds were left"
    assert rows[-1]["seconds"] > 3600


def test_intervals_need_not_fit_the_batch(fit: Fit, metrics: Metrics, tmp_path: Path) -> None:
    run = fit(
        tmp_path / "run",
        "train.images=100",
        "train.log_every=40",
        "train.checkpoint_every=50",
        "train.preview_every=70",
    )
    assert [row["images"] for row in metrics(run)] == [48, 80, 112]
    assert names(run / "checkpoints") == ["00000064", "00000112", "latest"]
    assert names(run / "samples") == ["00000080.png", "00000112.png"]


def test_a_run_may_last_so_many_minutes(fit: Fit, metrics: Metrics, tmp_path: Path) -> None:
    run = fit(tmp_path / "run", "train.images=null", "train.minutes=0.02", "lr_schedule.warmup=0")
    rows = metrics(run)
    assert rows[-1]["seconds"] >= 1.2
    assert all(row["seconds"] < 1.2 for row in rows[:-1])
    rates = [row["lr"] for row in rows]
    assert rates == sorted(rates, reverse=True), "the learning rate falls with the clock"
    for row, before in zip(rows[1:], rows[:-1], strict=True):
        assert row["lr"] == pytest.approx(4e-3 * (1 - before["seconds"] / 1.2), rel=0.01, abs=1e-5)
    assert checkpoint.load(run).images == rows[-1]["images"]


def with_clock(monkeypatch: pytest.MonkeyPatch, first: float) -> None:
    """A clock of which a step takes half a second, and the first step of each part of the run so many more."""
    now = [1000.0]
    step = trainer.Trainer._step

    def timed(self: trainer.Trainer, *batch: torch.Tensor) -> Any:
        now[0] += 0.5 + first * (self.at.images == self.at.first_images)
        return step(self, *batch)

    monkeypatch.setattr(trainer.Trainer, "_step", timed)
    monkeypatch.setattr(stopwatch, "time", SimpleNamespace(monotonic=lambda: now[0]))


@pytest.mark.parametrize("resumes", [False, True])
def test_a_slow_first_step_is_not_on_the_clock(
    fit: Fit, metrics: Metrics, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resumes: bool
) -> None:
    """A compiler may take minutes: neither the learning rate nor the length of the run nor images/s know of them."""
    limits = ["train.images=null", "train.minutes=0.1", "lr_schedule.warmup=100000", "train.checkpoint_every=96"]
    runs = []
    for name, first in (("plain", 0.0), ("slow", 300.0)):
        with monkeypatch.context() as patch:
            with_clock(patch, first)
            if resumes:
                fit(tmp_path / name, *limits[1:], "train.images=96")
            runs.append(metrics(fit(tmp_path / name, *limits)))
    assert runs[0] == runs[1]
    rows = runs[0]
    assert len(rows) == 13 + resumes
    assert rows[-1]["seconds"] == 6.0
    assert {row["images_per_second"] for row in rows} == {None, 32.0}
    if not resumes:
        rates = [row["lr"] for row in rows]
        assert rates[0] < rates[2] < rates[3] > rates[4] > rates[-1], "a tenth of the time is warm-up"


def test_previews_show_the_same_seeds(fit: Fit, tmp_path: Path) -> None:
    """With a learning rate of nearly 0 the network stays, so the pictures must stay too."""
    run = fit(tmp_path / "run", "train.preview_every=64", "optimizer.lr=1e-12")
    first, second = (np.asarray(Image.open(run / "samples" / f"{n:08d}.png")) for n in (64, 128))
    assert np.array_equal(first, second)


# --- what a step sees ---------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch: Patch) -> list[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Collects (x0, label, t, z) of every call of the loss."""
    calls = []
    loss = Denoise.loss

    def record(self: Denoise, denoiser: Any, weighting: Any, batch: Batch) -> Tensor:
        calls.append((batch.x0.clone(), batch.label.clone(), batch.t.clone(), batch.z.clone()))
        return loss(self, denoiser, weighting, batch)

    monkeypatch.setattr(Denoise, "loss", record)
    return calls


Seen = list[tuple[Tensor, Tensor, Tensor, Tensor]]


def test_images_times_and_noise_of_a_step(fit: Fit, tmp_path: Path, seen: Seen) -> None:
    fit(tmp_path / "run", "train.batch_size=64", "train.label_dropout=0")
    from diffgen.core.randomness import data_order
    from diffgen.data.digits import digits

    data = digits(split="train")
    for step, (x0, label, t, z) in enumerate(seen):
        entries = data_order(0, len(data), 64 * step, 64)
        assert torch.equal(x0, data.pixels[entries] / 127.5 - 1)
        assert torch.equal(label, data.labels[entries])
        assert 1e-3 <= t.min() < 0.2
        assert 0.8 < t.max() <= 1
        assert abs(float(z.mean())) < 0.1
        assert abs(float(z.std()) - 1) < 0.1
    assert not torch.equal(seen[0][3], seen[1][3])


def test_label_dropout_hides_its_share(fit: Fit, tmp_path: Path, seen: Seen) -> None:
    fit(tmp_path / "run", "train.batch_size=256", "train.images=256", "train.label_dropout=0.25")
    assert (seen[0][1] == -1).double().mean() == pytest.approx(0.25, abs=0.08)
    fit(tmp_path / "all", "train.batch_size=256", "train.images=256", "train.label_dropout=1")
    assert (seen[-1][1] == -1).all()


def test_an_unconditional_run_sees_no_labels(fit: Fit, tmp_path: Path, seen: Seen) -> None:
    run = fit(tmp_path / "run", "conditional=false", "train.images=16")
    loaded = checkpoint.load(run)
    assert loaded.config["data"]["num_classes"] == 0
    assert loaded.config["data"]["classes"] == []
    assert not any("label" in name for name in loaded.weights)


def test_flips_mirror_half_of_the_images(fit: Fit, tmp_path: Path, seen: Seen) -> None:
    for name, flip in (("off", "false"), ("on", "true")):
        fit(tmp_path / name, "train.batch_size=256", "train.images=256", f"train.horizontal_flip={flip}")
    plain, flipped = seen[0][0], seen[1][0]
    mirrored = (flipped == plain.flip(-1)).flatten(1).all(1) & (flipped != plain).flatten(1).any(1)
    kept = (flipped == plain).flatten(1).all(1)
    assert (mirrored | kept).all()
    assert mirrored.double().mean() == pytest.approx(0.5, abs=0.1)


def test_accumulated_gradients_are_those_of_the_full_batch(
    fit: Fit, metrics: Metrics, tmp_path: Path, seen: Seen
) -> None:
    runs = {size: fit(tmp_path / str(size), f"train.micro_batch={size}") for size in ("auto", 4, 5, 64)}
    assert [len(x0) for x0, *_ in seen][8:12] == [4, 4, 4, 4]
    assert [len(x0) for x0, *_ in seen][40:44] == [5, 5, 5, 1]
    whole = metrics(runs["auto"])
    for size in (4, 5):
        for row, expected in zip(metrics(runs[size]), whole, strict=True):
            assert row["loss"] == pytest.approx(expected["loss"], rel=1e-4)
            assert row["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-3)
    assert without_timing(metrics(runs[64])) == without_timing(whole)


@pytest.mark.parametrize("precision", ["bf16", "no"])
def test_precisions_take_turns_in_one_process(
    fit: Fit, metrics: Metrics, tmp_path: Path, tiny_run: Path, precision: str
) -> None:
    """As in a sweep; the state of the job before must not leak."""
    rows = metrics(fit(tmp_path / "run", f"train.precision={precision}"))
    plain = metrics(tiny_run)
    if precision == "no":
        assert without_timing(rows) == without_timing(plain)
    else:
        assert rows[-1]["loss"] == pytest.approx(plain[-1]["loss"], rel=0.05)
        assert rows[-1]["loss"] != plain[-1]["loss"]
    weights = checkpoint.load(tmp_path / "run").weights
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


METHODS = sorted({path.stem for path in (CONFIGS / "method").glob("*.yaml")} - {"bits", "vae", "fsq", "ect", "reflow"})
"""Not of text, not of autoencoders, which test_latent_runs.py has, and not those that go on from a run (test_tuning.py)."""


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_and_every_sampler_draws_from_it(
    fit: Fit, compose: Compose, tmp_path: Path, method: str
) -> None:
    run = fit(tmp_path / "run", f"method={method}", "train.images=64", "train.preview_every=64")
    trained = restore(checkpoint.load(run))
    samplers = trained.objective.samplers
    for sampler in (name for name, facts in samplers.facts.items() if getattr(facts, "calls", True)):
        steps = ["sampler.steps=5"] if sampler != "first_hitting" else []
        config = compose("sample", f"sampler={sampler}", *steps)["sampler"]
        sampling = Sampling.from_config(
            trained, config, guidance=Guidance(scale=2.0), seed=0, device=torch.device("cpu")
        )
        images = sampling.draw([0, 1, 2], [0, 9, -1])
        assert images.isfinite().all()
        assert images.float().std() > 0.01


# --- going on -----------------------------------------------------------------------------------------------

CONSTANT = ["lr_schedule.decay=constant", "train.preview_every=100000"]
HARD = [
    "model.dropout=0.2", "train.micro_batch=6", "train.log_every=48", "train.horizontal_flip=true", "method=edm",
    "optimizer=adam", "train.precision=bf16", "train.stratified_times=false", "train.batch_size=24", "train.images=144",
]  # fmt: skip


NARROW = ["model.width=16", "model.depth=1", "model.heads=2"]

RESUMED = {
    "plain": ([], 64, 128),
    "hard": (HARD, 96, 144),
    "adam, accumulated": (["optimizer=adam", "train.micro_batch=5"], 48, 128),
    "bf16, accumulated": (["train.precision=bf16", "train.micro_batch=8"], 80, 128),
    "learned weighting": (["weighting=uncertainty", "train.label_dropout=0.5"], 64, 128),
    "streamed, no worker": (["dataset=image_folder", "dataset.root=ROOT", "dataset.workers=0"], 64, 128),
    "streamed, 2 workers": (["dataset=image_folder", "dataset.root=ROOT", "dataset.workers=2"], 64, 128),
    "vectors": (["dataset=points"], 64, 128),
    "text": (["dataset=numbers", "dataset.n=500", "sampler=unmask", *NARROW], 64, 128),
    "text as bits": (["dataset=numbers", "dataset.n=500", "method=bits", *NARROW], 64, 128),
    "channels last, as on a GPU": ([], 64, 128),
}
ALIKE = (
    "vectors",
    "adam, accumulated",
    "bf16, accumulated",
    "streamed, no worker",
    "text as bits",
    "channels last, as on a GPU",
)


@pytest.mark.fault(
    "a run interrupted and resumed", "losses, weights, EMA, moments and pictures of an uninterrupted one"
)
@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case in ALIKE else ()) for case in RESUMED]
)
def test_a_resumed_run_is_the_same_run(
    fit: Fit, metrics: Metrics, tmp_path: Path, monkeypatch: Patch, case: str
) -> None:
    """Bit for bit, whatever the optimizer, precision, accumulation and workers."""
    settings, half, whole = RESUMED[case]
    if "vectors" in case or "text" in case:  # the tiny settings are those of a U-Net
        monkeypatch.setattr(conftest, "TINY", [o for o in conftest.TINY if not o.startswith(("model.", "dataset="))])
    if "channels last" in case:
        monkeypatch.setattr(kinds, "layout", lambda device: torch.channels_last)
    if "streamed" in case:
        monkeypatch.setattr(image_folder, "RESIDENT_BYTES", 0)
        for number in range(20):
            pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            (tmp_path / "pictures" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / "pictures" / "ab"[number % 2] / f"{number}.png")
    settings = [o.replace("ROOT", str(tmp_path / "pictures")) for o in (*CONSTANT, *settings)]
    through = fit(tmp_path / "through", *settings)
    fit(tmp_path / "halves", *settings, f"train.images={half}", "train.log_every=48")
    halves = fit(tmp_path / "halves", *settings)
    for file in (f"checkpoints/{whole:08d}/model.safetensors", f"checkpoints/{whole:08d}/state.safetensors"):
        assert (through / file).read_bytes() == (halves / file).read_bytes(), file
    for picture in (through / "samples").iterdir():
        assert picture.read_bytes() == (halves / "samples" / picture.name).read_bytes()
    after = [[row for row in metrics(run) if row["images"] > half] for run in (through, halves)]
    assert without_timing(after[0]) == without_timing(after[1])


def test_a_damaged_log_stops_nothing(fit: Fit, metrics: Metrics, tmp_path: Path) -> None:
    """Lines that are no rows are dropped; something that is no file is named."""
    whole = fit(tmp_path / "whole")
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "00000128")
    log = run / "metrics.jsonl"
    lines = log.read_bytes().splitlines()
    log.write_bytes(b"\n".join([b"null", b"[]", b'{"images": "x"}', b"\xff{", *lines, b"\0\0"]))
    fit(run)
    assert without_timing(metrics(run)) == without_timing(metrics(whole))
    log.unlink()
    log.mkdir()
    with pytest.raises(EnvironmentFault, match=r"metrics.jsonl is not a file"):
        fit(run, "train.images=256")


def test_a_command_with_train_resume_can_be_typed_again(
    fit: Fit, tmp_path: Path, tiny_run: Path, capsys: Capture
) -> None:
    """As a cluster does: the run goes on from its own newest checkpoint, not from where it began."""
    command = [f"train.resume={tiny_run / 'checkpoints' / '00000064'}", "lr_schedule.decay=constant"]
    run = fit(tmp_path / "run", *command, "train.images=96")
    capsys.readouterr()
    fit(run, *command)
    assert f"resumed at 96 images from {run}" in capsys.readouterr().out
    with pytest.raises(UsageError, match="has seen 128 images: give more of them"):
        fit(tmp_path / "other", f"train.resume={tiny_run}")


def test_more_data_than_before_is_told(fit: Fit, tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "pictures.npy"
    arrays = ["dataset=arrays", f"dataset.path={path}"]
    np.save(path, np.zeros((20, 8, 8, 3), dtype=np.uint8))
    run = fit(tmp_path / "run", *arrays, "train.images=64")
    capsys.readouterr()
    np.save(path, np.zeros((22, 8, 8, 3), dtype=np.uint8))
    fit(run, *arrays)
    assert "images in the data set: 20 -> 22" in " ".join(capsys.readouterr().out.split())


def test_rows_from_beyond_the_checkpoint_are_dropped(fit: Fit, metrics: Metrics, tmp_path: Path) -> None:
    """After a crash the log is ahead of the newest checkpoint, its last line cut; the mean of a row goes on, too."""
    whole = fit(tmp_path / "whole", "train.log_every=48")
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "checkpoints" / "00000128")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"images": 144, "st')
    fit(run, "train.log_every=48")
    assert [row["images"] for row in metrics(run)] == [48, 96, 128]
    assert without_timing(metrics(run)) == without_timing(metrics(whole))


def test_a_finished_run_has_nothing_to_do(fit: Fit, tmp_path: Path, capsys: Capture) -> None:
    run = fit(tmp_path / "run")
    times = {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")}
    capsys.readouterr()
    fit(run)
    assert "nothing to do: 128 images are done" in capsys.readouterr().out
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*.safetensors")} == times


def test_resume_none_refuses_a_folder_that_holds_a_run(fit: Fit, tiny_run: Path) -> None:
    with pytest.raises(
        UsageError, match="holds a run and train.resume=none: choose another run_dir, or train.resume=auto"
    ):
        fit(tiny_run, "train.resume=none")


def test_a_run_goes_on_elsewhere_from_a_checkpoint(fit: Fit, tmp_path: Path, tiny_run: Path) -> None:
    earlier = tiny_run / "checkpoints" / "00000064"
    for name, path in (("folder", earlier), ("file", earlier / "model.safetensors")):
        run = fit(tmp_path / name, f"train.resume={path}")
        same(
            run / "checkpoints" / "00000128" / "state.safetensors",
            tiny_run / "checkpoints" / "00000128" / "state.safetensors",
        )
    run = fit(tmp_path / "run", f"train.resume={tiny_run}", "train.images=144")
    assert "00000144" in names(run / "checkpoints")


@pytest.mark.parametrize(("path", "words"), [("nothing", "does not exist"), (".", "holds no complete checkpoint")])
def test_resuming_from_nothing_is_told(fit: Fit, tmp_path: Path, path: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=rf"train.resume='.*' {words}; choose auto, none or a path"):
        fit(tmp_path / "run", f"train.resume={tmp_path / path}")
    assert not (tmp_path / "run").exists()


def test_another_model_is_refused_with_the_keys_that_differ(fit: Fit, tiny_run: Path) -> None:

    def files() -> dict[Path, int]:
        return {p: p.stat().st_mtime_ns for p in tiny_run.rglob("*") if p.is_file() and p.name != ".lock"}

    before = files()
    with pytest.raises(CheckpointError) as caught:
        fit(tiny_run, "model.channels=16", "schedule.t_min=0.01")
    assert "model.channels (8 there, 16 here), schedule.t_min (0.001 there, 0.01 here)" in str(caught.value)
    with pytest.raises(CheckpointError, match=r"data.num_classes \(10 there, 0 here\)"):
        fit(tiny_run, "conditional=false")
    assert files() == before


def test_a_changed_learning_rate_is_reported(fit: Fit, tmp_path: Path, capsys: Capture) -> None:
    run = fit(tmp_path / "run", "train.images=64")
    capsys.readouterr()
    fit(run, "optimizer.lr=0.001")
    assert "optimizer.lr: 0.004 -> 0.001" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("file", ["model.safetensors", "state.safetensors", "state.json"])
def test_a_damaged_newest_checkpoint_is_done_again(
    fit: Fit, tmp_path: Path, tiny_run: Path, file: str, capsys: Capture
) -> None:
    """From the one before; the result is what it was."""
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    damaged = run / "checkpoints" / "00000128" / file
    damaged.write_bytes(damaged.read_bytes()[:-3])
    capsys.readouterr()
    fit(run)
    said = capsys.readouterr().out
    assert "warning:" in said
    assert file in said
    assert "resumed at 64 images" in said
    for name in ("model.safetensors", "state.safetensors"):
        same(run / "checkpoints" / "00000128" / name, tiny_run / "checkpoints" / "00000128" / name)
    explicit = next((run / "checkpoints").glob("00000128-damaged-*"))
    with pytest.raises(CheckpointError, match=file):
        fit(tmp_path / "other", f"train.resume={explicit}")


@pytest.mark.parametrize("key", ["optimizer.model.stem.weight/exp_avg", "tally.skipped", "tally.loss"])
def test_a_state_of_other_shapes_is_refused(fit: Fit, tmp_path: Path, key: str) -> None:
    run = fit(tmp_path / "run", "train.images=64")
    folder = run / "checkpoints" / "00000064"
    kept, (counters, state) = checkpoint.load(folder), checkpoint.load_state(folder)
    state[key] = torch.zeros(3, 3, 3)
    checkpoint.save(folder, kept.config, 64, kept.weights, state, {k: counters[k] for k in counters if k != "format"})
    with pytest.raises(
        CheckpointError, match=key.split(".")[0] if "tally" in key else "'exp_avg' of model.stem.weight"
    ):
        fit(run)


@pytest.mark.parametrize("lacks", ["optimizer.model.stem.weight", "model.stem.weight", "tally.skipped"])
def test_a_state_that_lacks_something_is_refused(fit: Fit, tmp_path: Path, lacks: str) -> None:
    run = fit(tmp_path / "run", "train.images=64")
    folder = run / "checkpoints" / "00000064"
    state = load_file(folder / "state.safetensors")
    state = {name: tensor for name, tensor in state.items() if not name.startswith(lacks)}
    counters = json.loads((folder / "state.json").read_text())
    kept = checkpoint.load(folder)
    checkpoint.save(
        folder,
        kept.config,
        64,
        kept.weights,
        state,
        {k: counters[k] for k in counters if k not in ("files", "format", "sha256")},
    )
    with pytest.raises(CheckpointError, match=lacks.removeprefix("model.")):
        fit(run)


# --- refusals before anything is written --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["train.precision=fp16"], "train.precision=fp16 needs a GPU"),
        (["parameterization=eps"], "parameterization=eps is singular at t_max=1, where alpha reaches 0"),
        (["schedule=ve"], "this schedule's noise reaches sigma=80: set denoiser.scale_input=true"),
        (["time.std=-1"], "time.std=-1.0 must be positive"),
        (["sampler=ddim", "sampler.eta=1.5"], "sampler.eta=1.5 must be in [0, 1]"),
        (["sampler.steps=0"], "sampler.steps=0 must be in [1, 100000]"),
        (["schedule.t_max=2"], "schedule.t_min=0.001 and t_max=2.0 must satisfy"),
        (["model.patch=3"], "model.patch=3 must divide the image size 8x8"),
        (["model.channels=0"], "model.channels=0 must be a multiple of 4"),
        (["model.attention_resolutions=[8]", "model.heads=3"], "model.heads=3 must divide the 8 channels"),
        (["optimizer.lr=0"], "optimizer.lr=0.0 must be in (0, 10)"),
        (["optimizer.betas=[0.9]"], "optimizer.betas=[0.9] must be two numbers in [0, 1)"),
        (["ema.halflife=0"], "ema.halflife=0.0 must be positive"),
        (["train.label_dropout=1.5"], "train.label_dropout=1.5 must be in [0, 1]"),
        (["train.batch_size=0"], "train.batch_size=0 must be at least 1"),
        (["train.micro_batch=0"], "train.micro_batch=0 must be"),
        (["train.images=null"], "train.images=null and train.minutes=null: give at least one of them"),
        (["train.seed=-1"], "train.seed=-1 must be in [0, 2^63)"),
        (["lr_schedule.decay=step"], "lr_schedule.decay='step' is unknown; choose one of [constant, cosine, linear]"),
        (["preview.n=0"], "preview.n=0 must be in [1, 4096]"),
        (["denoiser.sigma_data=0"], "denoiser.sigma_data=0.0 must be in (0, 100)"),
        (["weighting=min_snr", "weighting.gamma=-5"], "weighting.gamma=-5.0 must be positive"),
    ],
)  # fmt: skip
def test_bad_values_are_told_before_anything_is_written(
    fit: Fit, tmp_path: Path, overrides: list[str], sentence: str
) -> None:
    with pytest.raises(UsageError) as caught:
        fit(tmp_path / "run", *overrides)
    assert str(caught.value).startswith(sentence)
    assert not list(tmp_path.iterdir())


def test_flatten() -> None:
    assert flatten({"a": {"b": 1, "c": [2]}, "d": None}) == {"a.b": 1, "a.c": [2], "d": None}
