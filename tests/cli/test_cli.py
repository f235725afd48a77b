"""The commands as a user types them: what they write, and one sentence for everything that is wrong."""

import io
import json
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from diffgen.cli import configs
from diffgen.core import errors
from diffgen.core.errors import EXIT_CODES, TRAINING_CODES

Command = Callable[..., Any]
Python = Callable[..., subprocess.CompletedProcess[str]]

QUICK = [
    "model.channels=8", "model.channel_mult=[1]", "model.attention_resolutions=[]", "sampler.steps=2", "preview.n=2",
    "train.images=32", "train.batch_size=16",
]  # fmt: skip


def everything(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


def one_sentence(answer: Any, code: int) -> str:
    """The error of a command: the exit code, one line on standard error, nothing else."""
    assert answer.code == code, answer.err
    lines = answer.err.splitlines()
    assert len(lines) == 1, answer.err
    assert lines[0].startswith("error: ")
    assert "Traceback" not in answer.err + answer.out
    assert not re.search(r"hydra\.cc|https?://|full_key|object_type", answer.err)
    return lines[0].removeprefix("error: ")


# --- answers before torch is imported -----------------------------------------------------------------------

PROBE = """
import sys
from diffgen.cli import {name}
sys.argv = ["diffgen-{name}", *{arguments!r}]
code = {name}.main()
heavy = [m for m in ("torch", "torchvision", "accelerate", "sklearn", "numpy", "matplotlib") if m in sys.modules]
print("CODE", code, "HEAVY", heavy)
"""


@pytest.mark.parametrize(
    ("name", "arguments", "code", "words"),
    [
        ("train", ["--help"], 0, "diffgen-train dataset=cifar10"),
        ("train", ["--version"], 0, "diffgen 0."),
        ("train", ["--cfg", "job"], 0, "batch_size: 64"),
        ("train", ["train.bach_size=3"], 2, "did you mean train.batch_size?"),
        ("train", ["train.batch_size=abc"], 2, "must be a number"),
        ("train", ["train.images=0"], 2, "train.images=0 must be at least 1"),
        ("sample", ["--help"], 0, "diffgen-sample ckpt=PATH"),
        ("sample", ["--cfg", "job"], 0, "guidance: auto"),
        ("sample", [], 2, "ckpt is missing"),
        ("export", ["--help"], 0, "diffgen-export ckpt=PATH to=FOLDER"),
        ("export", [], 2, "ckpt is missing"),
        ("export", ["ckpt=a"], 2, "to is missing"),
        (
            "export",
            ["ckpt=a", "to=b", "format=onx"],
            2,
            "choose one of [diffgen, diffusers, onnx, torch] (did you mean 'onnx'?)",
        ),
        ("tune", ["--help"], 0, "diffgen-tune ckpt=PATH"),
        ("tune", [], 2, "ckpt is missing"),
        ("sample", ["n=0"], 2, "n=0 must be in [1, 10000000]"),
    ],
)
def test_answers_at_once(
    python: Python, tmp_path: Path, name: str, arguments: list[str], code: int, words: str
) -> None:
    done = python("-c", PROBE.format(name=name, arguments=arguments))
    assert f"CODE {code} HEAVY []" in done.stdout, done.stderr
    assert words in done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_help_names_every_group_choice_and_setting(command: Command) -> None:
    said = command("train", "--help").out
    for group, choices in configs.groups().items():
        if group not in ("recipe", "task", "tune", "extractor"):
            assert f"\n  {group} " in said
            assert all(choice in said for choice in choices)
    for key in ("batch_size", "halflife", "warmup", "sigma_data", "run_dir", "exit codes"):
        assert key in said
    assert "hydra" not in said.lower()
    assert all(len(line) <= 130 for line in said.splitlines())
    assert "guidance: auto" in command("sample", "-h").out


def test_settings_called_alike_are_not_all_listed(command: Command) -> None:
    assert ".name" not in one_sentence(command("train", "name=x"), 2)


@pytest.mark.parametrize("name", ["train", "sample", "eval", "export", "tune"])
def test_help_names_every_exit_code(command: Command, name: str) -> None:
    said = command(name, "--help").out.partition("exit codes:\n")[2]
    listed = {int(code): meaning for code, meaning in re.findall(r"^  (\d+) +(.+)$", said, re.MULTILINE)}
    assert listed == EXIT_CODES | (TRAINING_CODES if name == "train" else {})


def test_every_error_has_a_documented_exit_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert {kind.exit_code for kind in kinds if issubclass(kind, errors.DiffgenError)} <= {*EXIT_CODES, *TRAINING_CODES}
    stops = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    assert {128 + signum for signum in stops} <= {*EXIT_CODES, *TRAINING_CODES}


def test_the_commands_are_installed_under_their_names() -> None:
    import tomllib

    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {
        "diffgen-train": "diffgen.cli.train:main", "diffgen-sample": "diffgen.cli.sample:main", "diffgen-eval": "diffgen.cli.eval:main",
        "diffgen-export": "diffgen.cli.export:main", "diffgen-tune": "diffgen.cli.tune:main",
    }  # fmt: skip


def test_without_arguments_it_is_the_quickstart(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from diffgen.training import trainer

    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(trainer, "train", lambda config, text, default: seen.append(config))
    assert command("train").code == 0
    assert command("train", "experiment=quickstart").code == 0
    assert seen[0] == seen[1]
    assert seen[0]["dataset"]["name"] == "digits"


# --- wrong settings -----------------------------------------------------------------------------------------

WRONG_TRAIN = [
    (["bogus=1"], "bogus is unknown; choose one of [conditional, dataset, denoiser, ema, experiment, "),
    (["methd=edm"], "(did you mean method?)"),
    (["train.bach_size=3"], "train.bach_size is unknown; train has [augment, batch_size, "),
    (["model.channel=8"], "(did you mean model.channels?)"),
    (["bach_size=8"], "bach_size is unknown; choose one of ["),
    (["lr=0.001"], "(did you mean optimizer.lr?)"),
    (["steps=10"], "(did you mean sampler.steps?)"),
    (["batch_size=8"], "(did you mean train.batch_size?)"),
    (["seed=1"], "(did you mean train.seed or preview.seed or extractor.seed?)"),
    (["training.batch_size=8"], "(did you mean train.batch_size?)"),
    (["optimiser.rate=1"], "(did you mean optimizer.rate?)"),
    (["+train.foo=1"], "train.foo is unknown; choose one of ["),
    (["++optimizer.momentum=1"], "optimizer.momentum is unknown; choose one of ["),
    (["~train.images"], "train.images is missing"),
    (["dataset=cifar"], "dataset='cifar' is unknown; choose one of [arrays, cifar10, digits, fashion_mnist, image_folder, mixture, mnist, moving_digits, moving_mnist, numbers, pairs, parquet, points, python_docs, text, text8, video_folder]"),
    (["method=edn"], "choose one of [bits, ddpm, ddpm_cosine, ect, edm, flow, flow_clips, flow_small, flow_tiny, fsq, masked, mean_flow, reflow, vae, vpred] (did you mean 'edm'?)"),
    (["model=unet"], "model='unet' is unknown; choose one of [dit_base, dit_large, dit_small, dit_tiny, mlp, unet2d, unet_base, unet_coarse, unet_large, unet_latent, unet_small, unet_tiny, vae_f4, vae_f8, vae_tiny, video_small, video_tiny]"),
    (["experiment=fast"], "experiment='fast' is unknown; choose one of [cifar10_ddpm, cifar10_dit, cifar10_edm, cifar10_fast, cifar10_jit, digits_minute, folder256_latent, mnist_minutes, moving_mnist, quickstart, text8, tutorial]"),
    (["dataset=null"], "dataset='null' is unknown; choose one of ["),
    (["model={name:unet}", "model=3"], "model='{name:unet}' is unknown; choose one of ["),
    (["sampler.name=eular"], "sampler.name='eular' is unknown; choose one of ["),
    (["schedule.name=cosin"], "schedule.name='cosin' is unknown; choose one of [cosine, "),
    (["dataset.name=mnist"], "dataset.root is missing"),
    (["dataset.split=validation"], "dataset.split='validation' is unknown; choose one of [all, test, train]"),
    (["train.batch_size=abc"], "train.batch_size='abc' must be a number"),
    (["train.batch_size="], "train.batch_size='' must be a number"),
    (["train.batch_size=1.5"], "train.batch_size=1.5 must be a whole number"),
    (["train.batch_size=true"], "train.batch_size=true must be a number"),
    (["train.batch_size=[1,2]"], "train.batch_size=[1, 2] must be a number"),
    (["train.batch_size=null"], "train.batch_size=null must be a whole number"),
    (["train.horizontal_flip=maybe"], "train.horizontal_flip='maybe' must be true or false"),
    (["train.horizontal_flip=1"], "train.horizontal_flip=1 must be true or false"),
    (["train.micro_batch=big"], "train.micro_batch='big' must be a whole number or one of [auto]"),
    (["train.compile=yes"], "train.compile='yes' must be true or false or one of [auto]"),
    (["train.precision=fp8"], "train.precision='fp8' is unknown; choose one of [auto, bf16, fp16, no]"),
    (["train=3"], "train=3 must be a group of settings: train.NAME=VALUE"),
    (["train=null"], "train must be a group of settings, not null"),
    (["model.channel_mult=2"], "model.channel_mult=2 must be a list (whole number each)"),
    (["model.channel_mult=[1,x]"], "model.channel_mult[1]='x' must be a whole number"),
    (["optimizer.lr=nan"], "optimizer.lr=nan must be a finite number"),
    (["optimizer.lr=inf"], "optimizer.lr=inf must be a finite number"),
    (["train.images=1e400"], "train.images=inf must be a whole number"),
    (["train.images=-5"], "train.images=-5 must be at least 1"),
    (["train.minutes=0"], "train.minutes=0.0 must be positive"),
    (["train.images=null"], "train.images=null and train.minutes=null: give at least one of them"),
    (["train.grad_clip=-1"], "train.grad_clip=-1.0 must be positive or null"),
    (["lr_schedule.flat=1"], "lr_schedule.flat=1.0 must be in [0, 1)"),
    (["ema.ramp=0"], "ema.ramp=0.0 must be in (0, 1]"),
    (["parameterization=eps"], "parameterization=eps is singular at t_max=1, where alpha reaches 0: choose parameterization=v or flow"),
    (["schedule=ve"], "this schedule's noise reaches sigma=80: set denoiser.scale_input=true"),
    (["train.precision=fp16"], "train.precision=fp16 needs a GPU"),
    (["train.seed=${train.nope}"], "${train.nope} names a setting that is not there; as text it is written \\${train.nope}"),
    (["train.batch_size"], "cannot read 'train.batch_size': settings are KEY=VALUE"),
    (["train.batch_size=[1"], "cannot read 'train.batch_size=[1': settings are KEY=VALUE"),
    (["dataset=digits,mnist"], "dataset=digits,mnist gives several values: add -m"),
    (["train.seed=1,2"], "train.seed=1,2 gives several values: add -m"),
    (["--bogus"], "--bogus is no flag; settings are KEY=VALUE, --help lists them"),
    (["--cfg", "jobs"], "argument --cfg/-c: invalid choice: 'jobs'"),
    (["dataset=image_folder"], "dataset.root is missing: dataset.root=FOLDER names the folder of pictures"),
    (["dataset=image_folder", "dataset.root=.", "dataset.channels=2"], "dataset.channels=2 must be one of [1, 3, 4]"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"), WRONG_TRAIN, ids=lambda value: value[0] if isinstance(value, list) else ""
)
def test_wrong_training_settings(command: Command, tmp_path: Path, arguments: list[str], words: str) -> None:
    assert words in one_sentence(command("train", *arguments), 2)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def ckpt(tiny_run: Path) -> str:
    return f"ckpt={tiny_run}"


WRONG_SAMPLE = [
    (["bogus=1"], "bogus is unknown; choose one of [batch_size, ckpt, "),
    (["guidence=2"], "(did you mean guidance?)"),
    (["n=many"], "n='many' must be a whole number"),
    (["n=0"], "n=0 must be in [1, 10000000]"),
    (["seed=-1"], "seed=-1 must be in [0, 2^63)"),
    (["guidance=strong"], "guidance='strong' must be a number"),
    (["guidance=inf"], "guidance=inf must be a number or one of [auto]"),
    (["batch_size=0"], "batch_size=0 must be at least 1"),
    (["batch_size=big"], "batch_size='big' must be a whole number or one of [auto]"),
    (["save=jpg"], "save='jpg' is unknown; choose one of [grid, npz, pairs, png]"),
    (["save=[grid,nzp]"], "save='nzp' is unknown; choose one of [grid, npz, pairs, png] (did you mean 'npz'?)"),
    (["label=10"], "label=10 is out of range: the model has classes 0 to 9"),
    (["label=cat"], "label='cat' is unknown; choose one of [0, 1, "),
    (["sampler=eular"], "sampler='eular' is unknown; choose one of [ancestral, "),
    (["sampler=ddim", "sampler.eta=2"], "sampler.eta=2.0 must be in [0, 1]"),
    (["sampler=ddim", "sampler.s_churn=2"], "sampler.s_churn is unknown; sampler has [clip, eta, "),
    (["sampler.steps=0"], "sampler.steps=0 must be in [1, 100000]"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"), WRONG_SAMPLE, ids=lambda value: value[0] if isinstance(value, list) else ""
)
def test_wrong_sampling_settings(command: Command, tmp_path: Path, ckpt: str, arguments: list[str], words: str) -> None:
    assert words in one_sentence(command("sample", ckpt, *arguments), 2)
    assert not list(tmp_path.iterdir())


def test_label_of_an_unconditional_model(command: Command, fit: Callable[..., Path], tmp_path: Path) -> None:
    run = fit(tmp_path / "run", "conditional=false", "train.images=16")
    said = one_sentence(command("sample", f"ckpt={run}", "label=1"), 2)
    assert said == "label=1 asks for a class, but this model is unconditional: label=none"
    assert command("sample", f"ckpt={run}", "n=2").code == 0


# --- wrong data, checkpoints and places ---------------------------------------------------------------------


def test_data_that_is_missing_without_a_network(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffgen.data import cifar, mnist

    def no_network(url: str, path: Path) -> None:
        raise OSError("Name or service not known")

    for module in (cifar, mnist):
        monkeypatch.setattr(module, "download_with_progress", no_network)
    for name, file in (("mnist", "train-images-idx3-ubyte.gz"), ("cifar10", "cifar-10-python.tar.gz")):
        said = one_sentence(command("train", f"dataset={name}", "dataset.root=here"), 3)
        assert said.startswith("here/")
        assert file in said
        assert "put the official file there, or set dataset.root" in said
        assert "dataset=digits needs no download" in said
    assert not list(tmp_path.iterdir())


def test_data_that_is_damaged(command: Command, tmp_path: Path) -> None:
    raw = tmp_path / "data" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    (raw / "train-images-idx3-ubyte.gz").write_bytes(b"half a file")
    (tmp_path / "data" / "cifar-10-python.tar.gz").write_bytes(b"half a file")
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"no picture")
    before = everything(tmp_path)
    assert "train-images-idx3-ubyte.gz is damaged" in one_sentence(command("train", "dataset=mnist"), 3)
    assert "cifar-10-python.tar.gz is damaged" in one_sentence(command("train", "dataset=cifar10"), 3)
    for root, words in (
        ("pictures", "pictures/a.png cannot be decoded"),
        ("data/MNIST", "holds no pictures"),
        ("x", "is not a folder"),
    ):
        said = one_sentence(command("train", "dataset=image_folder", f"dataset.root={root}"), 3)
        assert words in said
    assert everything(tmp_path) == before


def test_checkpoints_that_are_none(command: Command, tmp_path: Path, tiny_model: Path) -> None:
    good = tiny_model.read_bytes()
    files = {
        "empty": b"", "cut": good[: len(good) // 2], "page": b"<html></html>", "pickle": b"\x80\x04\x95\x0b\0\0\0\0\0\0\0.",
        "zip": b"PK\x03\x04" + bytes(100), "foreign": struct.pack("<Q", 2) + b"{}",
        "hostile": good.replace(b'\\"name\\": \\"unet\\"', b'\\"_target_\\": \\"os\\"', 1),
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    before = everything(tmp_path)
    words = {
        "empty": "cut short", "cut": "does not fit the file", "page": "a web page", "pickle": "a Python pickle, which can run code",
        "zip": "a zip archive", "foreign": "not a diffgen checkpoint", "hostile": "", "missing": "does not exist", ".": "holds neither",
    }  # fmt: skip
    for name, expected in words.items():
        said = one_sentence(command("sample", f"ckpt={name}", "out=out"), 4)
        assert expected in said
        assert name in said
    assert one_sentence(command("train", *QUICK, "train.resume=missing", "run_dir=run"), 4).startswith(
        "train.resume='missing'"
    )
    assert everything(tmp_path) == before


@pytest.mark.parametrize("place", ["/proc/nope/out", "file", "file/out"])
def test_places_that_cannot_be_written(command: Command, tmp_path: Path, ckpt: str, place: str) -> None:
    (tmp_path / "file").write_text("a file")
    for answer in (
        command("sample", ckpt, "n=2", f"out={place}"),
        command("train", *QUICK, f"run_dir={place}"),
    ):
        said = one_sentence(answer, 75)
        assert said.startswith("cannot write ")
        assert place in said
    assert everything(tmp_path) == ["file"]
    assert (tmp_path / "file").read_text() == "a file"


def test_samples_are_not_written_over(command: Command, tmp_path: Path, ckpt: str) -> None:
    assert command("sample", ckpt, "n=2", "out=out", "save=[png,npz]").code == 0
    before = {name: (tmp_path / name).stat().st_mtime_ns for name in everything(tmp_path)}
    for save, name in (("grid", "grid.png"), ("npz", "grid.png")):
        said = one_sentence(command("sample", ckpt, "n=3", "out=out", f"save={save}"), 2)
        assert said == f"out='out' already holds {name}: choose another folder, or overwrite=true"
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in everything(tmp_path)} == before
    assert command("sample", ckpt, "n=3", "out=out", "save=npz", "overwrite=true").code == 0
    assert len(np.load(tmp_path / "out" / "samples.npz")["arr_0"]) == 3


def test_fewer_images_leave_none_of_the_old_ones(command: Command, tmp_path: Path, ckpt: str) -> None:
    """overwrite=true with a smaller n: a folder that mixes two sets would spoil an evaluation."""
    for n in (5, 3):
        assert command("sample", ckpt, f"n={n}", "out=out", "save=png", "overwrite=true", f"seed={n}").code == 0
    assert [p.name for p in sorted((tmp_path / "out" / "images").iterdir())] == [f"{i:06d}.png" for i in range(3)]


# --- what the commands write --------------------------------------------------------------------------------


def test_train_then_sample_from_another_folder(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = command("train", *QUICK)
    assert answer.code == 0, answer.err
    assert answer.err == ""
    runs = list((tmp_path / "outputs" / "digits-flow").iterdir())
    assert len(runs) == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d", runs[0].name)
    said = answer.out
    for words in (
        "digits, flow",
        "1,437 images 1x8x8, 10 classes",
        "parameters",
        "GFLOP per image",
        "precision no",
        "x 1",
        "32 images",
    ):
        assert words in said
    last = said.strip().splitlines()[-1]
    assert last == f"next:    diffgen-sample ckpt={runs[0].relative_to(tmp_path)}"
    assert "batch_size: 16" in (runs[0] / "config.yaml").read_text()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    answer = command("sample", f"ckpt=../{runs[0].relative_to(tmp_path)}", "n=3")
    assert answer.code == 0, answer.err
    grids = list(elsewhere.glob("outputs/samples/*/grid.png"))
    assert len(grids) == 1
    assert f"grid: {grids[0].relative_to(elsewhere)}" in answer.out


def test_two_runs_of_one_second_have_two_folders(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffgen.cli import train

    class Clock:
        @staticmethod
        def now() -> Any:
            import datetime

            return datetime.datetime(2030, 1, 2, 3, 4, 5)

    monkeypatch.setattr(train, "datetime", Clock)
    for _ in range(2):
        assert command("train", *QUICK).code == 0
    assert sorted(p.name for p in (tmp_path / "outputs" / "digits-flow").iterdir()) == [
        "2030-01-02_03-04-05",
        "2030-01-02_03-04-05-2",
    ]


def test_a_run_directory_resumes(command: Command, metrics: Callable[..., Any], tmp_path: Path) -> None:
    assert "new run" in command("train", *QUICK, "run_dir=run", "train.images=16").out
    answer = command("train", *QUICK, "run_dir=run")
    assert "resumed at 16 images from run/checkpoints/00000016" in answer.out
    assert "train.images: 16 -> 32" in answer.out
    assert "holds a run and train.resume=none" in one_sentence(
        command("train", *QUICK, "run_dir=run", "train.resume=none"), 2
    )
    said = one_sentence(command("train", *QUICK, "run_dir=run", "model.channels=16"), 4)
    assert "model.channels (8 there, 16 here)" in said
    assert metrics(tmp_path / "run")[-1]["images"] == 32


def test_outputs_follow_the_conventions(command: Command, tmp_path: Path, ckpt: str) -> None:
    answer = command("sample", ckpt, "n=12", "out=out", "save=[grid,png,npz]", "seed=5")
    assert answer.code == 0, answer.err
    names = ["grid.png", "images", *(f"images/{i:06d}.png" for i in range(12)), "samples.npz"]
    assert everything(tmp_path / "out") == names
    with np.load(tmp_path / "out" / "samples.npz", allow_pickle=False) as file:
        images, labels = file["arr_0"], file["arr_1"]
    assert (images.shape, images.dtype) == ((12, 8, 8, 1), np.uint8)
    assert (labels.dtype, labels.tolist()) == (np.int64, [*range(10), 0, 1])
    for i in range(12):
        with Image.open(tmp_path / "out" / "images" / f"{i:06d}.png") as opened:
            assert np.array_equal(np.asarray(opened), images[i, :, :, 0])
    with Image.open(tmp_path / "out" / "grid.png") as grid:
        assert grid.width > 4 * grid.height, "ten columns, one for each class, in two rows"
        assert "seed=5" in grid.text["diffgen"]  # type: ignore[attr-defined]


def test_image_i_is_the_same_in_any_batch_and_any_number(command: Command, tmp_path: Path, ckpt: str) -> None:
    for out, arguments in (
        ("a", ["n=9"]),
        ("b", ["n=9", "batch_size=4"]),
        ("c", ["n=5", "batch_size=1"]),
        ("d", ["n=9", "seed=1"]),
    ):
        extra = ["save=npz", "label=3", "sampler=ddim", "sampler.eta=1", "sampler.steps=3"]
        assert command("sample", ckpt, f"out={out}", *arguments, *extra).code == 0
    images = {out: np.load(tmp_path / out / "samples.npz")["arr_0"].astype(int) for out in "abcd"}
    assert len({image.tobytes() for image in images["a"]}) == 9
    assert abs(images["a"] - images["b"]).max() <= 1
    assert abs(images["a"][:5] - images["c"]).max() <= 1
    assert abs(images["a"] - images["d"]).max() > 20


def test_a_sweep_gives_each_job_its_own_run_directory(command: Command, tmp_path: Path) -> None:
    answer = command("train", "-m", "method=flow,edm", "train.seed=1,2", *QUICK, "train.images=16")
    assert answer.code == 0, answer.err
    sweeps = list((tmp_path / "outputs" / "sweeps").iterdir())
    assert len(sweeps) == 1
    jobs = sorted(p.name for p in sweeps[0].iterdir() if p.is_dir())
    assert jobs == ["0-digits-flow", "1-digits-flow", "2-digits-edm", "3-digits-edm"]
    losses = [json.loads((sweeps[0] / job / "metrics.jsonl").read_text())["loss"] for job in jobs]
    assert len(set(losses)) == 4
    alone = command("train", "method=edm", "train.seed=1", *QUICK, "train.images=16", "run_dir=alone")
    assert alone.code == 0
    assert json.loads((tmp_path / "alone" / "metrics.jsonl").read_text())["loss"] == losses[2]


def test_a_sweep_goes_on_after_a_failed_job_and_says_so(command: Command, tmp_path: Path) -> None:
    answer = command("train", "-m", "optimizer.lr=20,0.001", *QUICK, "train.images=16", "run_dir=sweep")
    assert answer.code == 2
    assert "optimizer.lr=20.0 must be in (0, 10)" in answer.err
    assert "Traceback" not in answer.err
    assert [p.name for p in (tmp_path / "sweep").iterdir()] == ["1-digits-flow"]


def test_a_sweep_with_a_wrong_choice_runs_no_job(command: Command, tmp_path: Path) -> None:
    assert one_sentence(command("train", "-m", "method=edm,flo", *QUICK), 2).startswith("method='flo' is unknown")
    assert not list(tmp_path.rglob("config.yaml"))


def test_a_sweep_of_samples(command: Command, tmp_path: Path, ckpt: str) -> None:
    answer = command("sample", "-m", ckpt, "n=2", "sampler=ddim,heun", "sampler.steps=2")
    assert answer.code == 0, answer.err
    assert len(list(tmp_path.glob("outputs/sweeps/*/*/grid.png"))) == 2


def test_printing_the_config_writes_nothing(command: Command, tmp_path: Path) -> None:
    said = command("train", "--cfg", "job", "dataset=cifar10", "method=ddpm").out
    assert "name: ddpm_linear" in said
    assert "channels: 128" in said
    assert not list(tmp_path.iterdir())


def test_pictures_of_your_own(command: Command, tmp_path: Path) -> None:
    """Non-square colour pictures with classes, from the shell, and back as pictures of that shape."""
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "my" / name).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(rng.integers(0, 256, (10, 12, 3), np.uint8)).save(tmp_path / "my" / name / f"{i}.png")
    answer = command(
        "train",
        "dataset=image_folder",
        "dataset.root=my",
        "model=unet_tiny",
        *QUICK,
        "run_dir=run",
        "dataset.size=[6,9]",
    )
    assert answer.code == 0, answer.err
    assert "16 images 3x6x9, 2 classes" in answer.out
    assert command("sample", "ckpt=run", "n=3", "label=dogs", "save=npz", "out=out").code == 0
    with np.load(tmp_path / "out" / "samples.npz") as file:
        assert file["arr_0"].shape == (3, 6, 9, 3)
        assert file["arr_1"].tolist() == [1, 1, 1]


def test_a_reader_that_leaves_ends_the_command_quietly(
    command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ckpt: str
) -> None:
    """`diffgen-sample ... | head -1`: nobody reads on, but the images were asked for."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    from diffgen.cli import sample

    monkeypatch.setattr(sys, "stdout", Closed())
    monkeypatch.setattr(sys, "argv", ["diffgen-sample", ckpt, "n=2", "out=out"])
    assert sample.main() == 0
    assert [file.name for file in tmp_path.rglob("*.png")] == ["grid.png"]


def test_exit_codes_and_streams_of_a_real_process(python: Python, tmp_path: Path, tiny_run: Path) -> None:
    wrong = python("-m", "diffgen.cli.train", "dataset=cifar")
    assert wrong.returncode == 2
    assert wrong.stdout == ""
    assert wrong.stderr.startswith("error: dataset='cifar' is unknown")
    missing = python("-m", "diffgen.cli.sample", "ckpt=nothing")
    assert (missing.returncode, missing.stderr) == (4, "error: ckpt='nothing' does not exist\n")
    good = python("-m", "diffgen.cli.sample", f"ckpt={tiny_run}", "n=2", "out=out")
    assert (good.returncode, good.stderr) == (0, "")
    assert everything(tmp_path) == ["out", "out/grid.png"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["=5"], 2, "names no setting"),
        (["--resolve"], 2, "--resolve goes with --cfg job"),
        (["run_dir="], 2, "run_dir is empty"),
        (["run_dir=[x]"], 2, "run_dir=['x'] must be text or null"),
        (["conditional=maybe"], 2, "conditional='maybe' must be true or false"),
    ],
)
def test_odd_overrides_of_training(command: Command, arguments: list[str], code: int, words: str) -> None:
    said = command("train", *arguments)
    assert said.code == code
    assert words in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["guide=nope"], "guide='nope' does not exist"),
        (["sampler.s_churn=5"], "to change more of a sampler, name it too"),
        (["guidance=nan"], "guidance="),
    ],
)
def test_odd_overrides_of_sampling(command: Command, ckpt: str, arguments: list[str], words: str) -> None:
    said = command("sample", ckpt, *arguments)
    assert said.code in (2, 4)
    assert words in said.err


def test_the_sweep_flag_may_stand_anywhere(command: Command, ckpt: str, tmp_path: Path) -> None:
    said = command("sample", ckpt, "n=1", "out=both", "-m", "sampler=ddim,heun", "sampler.steps=2")
    assert said.code == 0, said.err
    assert len(list((tmp_path / "both").glob("*/grid.png"))) == 2
