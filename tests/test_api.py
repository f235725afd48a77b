"""`diffgen.load` and `diffgen.train`: what the commands give, for whoever calls from Python."""

import io
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from pathlib import Path
from threading import Timer
from typing import Any

import hydra
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hydra.core.global_hydra import GlobalHydra
from PIL import Image

import diffgen
from diffgen.cli.configs import config_dir
from diffgen.core.errors import CheckpointError, DiffgenError, NonFiniteError, UsageError
from diffgen.data.kinds import Pixels

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "python.md"
EXAMPLES = ROOT / "docs" / "examples"

VECTORS = ["dataset=mixture", "model=mlp", "model.width=8", "model.blocks=1", "train.images=64", "preview.n=2"]


@pytest.fixture(scope="module")
def run(tiny_run: Path) -> diffgen.Run:
    """The tiny run, loaded."""
    return diffgen.load(tiny_run, device="cpu")


def test_to_import_costs_nothing(python: Callable[..., Any], tiny_run: Path) -> None:
    done = python("-c", "import sys, diffgen; print({'torch', 'hydra', 'numpy'} & set(sys.modules), dir(diffgen))")
    assert done.stdout == "set() ['Run', '__version__', 'load', 'train']\n"
    done = python("-c", f"import diffgen; r = diffgen.load({str(tiny_run)!r}); print(r.sample(4, seed=0).shape)")
    assert (done.stdout, done.stderr) == ("torch.Size([4, 1, 8, 8])\n", "")
    with pytest.raises(AttributeError, match="nothing"):
        _ = diffgen.nothing  # type: ignore[attr-defined]


# --- sampling -------------------------------------------------------------------------------------------------------


def by_command(command: Callable[..., Any], run: diffgen.Run, *arguments: str) -> torch.Tensor:
    """What the command writes, as uint8 [n, C, H, W]."""
    answer = command("sample", f"ckpt={run.dir}", *arguments, "save=[npz]", "out=drawn", "overwrite=true")
    assert answer.code == 0, answer.err
    with np.load("drawn/samples.npz") as file:
        return torch.from_numpy(file["arr_0"]).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ({}, []),
        ({"n": 7, "label": "3", "seed": 5}, ["n=7", "label=3", "seed=5"]),
        ({"n": 4, "sampler": "ddim"}, ["n=4", "sampler=ddim"]),
        ({"n": 4, "steps": 3}, ["n=4", "sampler.steps=3"]),
        (
            {"n": 4, "sampler": "dpmpp_2m", "steps": 5, "guidance": 1.5, "label": "3"},
            ["n=4", "sampler=dpmpp_2m", "sampler.steps=5", "guidance=1.5", "label=3"],
        ),
        (
            {"n": 4, "sampler": "ddim", "eta": 0.5, "steps": 4},
            ["n=4", "sampler=ddim", "sampler.eta=0.5", "sampler.steps=4"],
        ),
        (
            {"n": np.int64(5), "label": (1, 2), "batch_size": 2, "guidance": 2, "guidance_interval": (0.1, 5)},
            ["n=5", "label=[1,2]", "batch_size=2", "guidance=2", "guidance_interval=[0.1,5]"],
        ),
        ({"n": 3, "label": None, "precision": "bf16"}, ["n=3", "label=null", "precision=bf16"]),
        ({"n": 3, "sampler.steps": 2, "sigmas": [9, 1]}, ["n=3", "sampler.steps=2", "sampler.sigmas=[9,1]"]),
    ],
)
def test_the_pixels_are_those_of_the_command(
    settings: dict[str, Any], arguments: list[str], run: diffgen.Run, command: Callable[..., Any]
) -> None:
    drawn = run.sample(**settings)
    assert (drawn.dtype, drawn.device.type) == (torch.uint8, "cpu")
    assert torch.equal(drawn, by_command(command, run, *arguments))


def test_tasks_are_those_of_the_command(run: diffgen.Run, command: Callable[..., Any], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    run.grid(run.sample(1, steps=2)).save(path)
    varied = run.sample(3, task="img2img", image=path, strength=0.5, steps=6)
    arguments = ["n=3", "task=img2img", f"task.image={path}", "task.strength=0.5", "sampler.steps=6"]
    assert torch.equal(varied, by_command(command, run, *arguments))
    films = run.sample(2, task="trajectory", frames=3)
    assert films.shape == (2, 3, 1, 8, 8)
    assert torch.equal(films[:, -1], by_command(command, run, "n=2", "task=trajectory", "task.frames=3"))
    between = run.sample(3, sampler="ode", task="interpolate", seeds=[1, 2], label=3, **{"sampler.rtol": 1e-3})
    arguments = ["n=3", "sampler=ode", "task=interpolate", "task.seeds=[1,2]", "label=3", "sampler.rtol=1e-3"]
    assert torch.equal(between, by_command(command, run, *arguments))


def test_threads_draw_what_one_draws(run: diffgen.Run) -> None:
    alone = [run.sample(4, seed=seed, sampler="heun", steps=3) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda seed: run.sample(4, seed=seed, sampler="heun", steps=3), range(4)))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    assert not torch.equal(alone[0], alone[1])


def test_other_kinds_give_what_they_store(tmp_path: Path) -> None:
    run = diffgen.train([*VECTORS, f"run_dir={tmp_path / 'run'}"])
    drawn = run.sample(5)
    assert (run.kind, drawn.shape, drawn.dtype) == ("vectors", (5, *run.shape), torch.float32)
    assert run.grid(drawn).size > (50, 50)


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        ({"sampler": "hun"}, ["sampler=hun"]),
        ({"task": 3}, ["task=3"]),
        ({"n": 0}, ["n=0"]),
        ({"n": 2.5}, ["n=2.5"]),
        ({"seed": -1}, ["seed=-1"]),
        ({"label": "cat"}, ["label=cat"]),
        ({"label": 11}, ["label=11"]),
        ({"label": []}, ["label=[]"]),
        ({"steps": "many"}, ["sampler.steps=many"]),
        ({"sampler": "ddim", "eta": "much"}, ["sampler=ddim", "sampler.eta=much"]),
        ({"sampler": "ddim", "steps": 0}, ["sampler=ddim", "sampler.steps=0"]),
        ({"guidance": 2, "label": None}, ["guidance=2", "label=null"]),
        ({"guidance_interval": [1]}, ["guidance_interval=[1]"]),
        ({"sigma_rel": 0.9}, ["ema.sigma_rel=0.9"]),
        ({"precision": "fp16"}, ["precision=fp16"]),
        ({"guide": "nowhere"}, ["guide=nowhere"]),
        ({"task": "img2img", "image": "nowhere.png"}, ["task=img2img", "task.image=nowhere.png"]),
        ({"task": "inpaint", "image": "~nobody/a.png"}, ["task=inpaint", "task.image='~nobody/a.png'"]),
    ],
)
def test_errors_are_those_of_the_command(
    settings: dict[str, Any], arguments: list[str], run: diffgen.Run, command: Callable[..., Any]
) -> None:
    with pytest.raises(DiffgenError) as raised:
        run.sample(**settings)
    answer = command("sample", f"ckpt={run.dir}", *arguments)
    assert answer.code == raised.value.exit_code
    assert answer.err.strip() == f"error: {raised.value}"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"stps": 3}, r"stps is unknown; .*did you mean 'steps'\?"),
        ({"eta": 0.5}, "eta is unknown.* name it too: sampler='heun', or 'unmask' for tokens"),
        ({"sampler": "ddim", "sampler.s_churn": 1}, "sampler.s_churn is unknown"),
        ({"ckpt": "a"}, "ckpt is unknown"),
        ({"save": ["npz"]}, "save is unknown"),
        ({"sampler": "ode", "task": "interpolate", "rtol": 1}, "rtol can be several.*'sampler.rtol'.*'task.rtol'"),
        ({"sampler": {"name": "ddim"}}, "sampler=.* is unknown"),
    ],
)
def test_names_that_are_no_settings(run: diffgen.Run, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        run.sample(2, **settings)


def test_a_run_says_what_it_is(run: diffgen.Run, tiny_run: Path, tiny_model: Path) -> None:
    assert (run.path.resolve(), run.dir, run.images) == (tiny_model.resolve(), tiny_run.resolve(), 128)
    assert (run.kind, run.shape, run.classes) == ("pixels", (1, 8, 8), tuple("0123456789"))
    assert run.config["trained"]["dataset"] == "digits"
    assert re.fullmatch(r"<diffgen run: unet, images 1x8x8, 10 classes, 128 seen, on cpu, from .*>", repr(run))


def test_what_can_be_loaded(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "model.safetensors"
    copy.write_bytes(tiny_model.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert diffgen.load("model.safetensors").dir is None
    assert diffgen.load(tiny_model.parent).images == 128
    with pytest.raises(CheckpointError, match="'nowhere' does not exist"):
        diffgen.load("nowhere")
    with pytest.raises(UsageError, match="no user here has that name"):
        diffgen.load("~nobody.here/run")
    for device in ("gpu", "cuda:99"):
        with pytest.raises(UsageError, match=f"device='{device}' cannot be used"):
            diffgen.load(copy, device=device)


def test_plugins_can_be_loaded_with(run: diffgen.Run, plugged: None, tiny_run: Path) -> None:
    with pytest.raises(UsageError, match="sampler='quiet_euler' is unknown"):
        run.sample(2, sampler="quiet_euler")
    other = diffgen.load(tiny_run, plugins=str(EXAMPLES / "sampler.py"))
    assert other.sample(2, sampler="quiet_euler", shrink=0.98, steps=3).shape == (2, 1, 8, 8)


def test_plugins_can_be_trained_with(plugged: None, tiny: list[str], tmp_path: Path) -> None:
    here = [*tiny, "train.images=16", f"run_dir={tmp_path / 'run'}"]
    run = diffgen.train([f"plugins=[{EXAMPLES / 'time.py'}]", *here, "time=early", "time.power=3"])
    assert "name: early" in (tmp_path / "run" / "config.yaml").read_text() and run.images == 16


def test_a_grid(run: diffgen.Run) -> None:
    images = run.sample(6, steps=2)
    assert run.grid(images, columns=3).tobytes() == Pixels().show(images, [-1] * 6, 3).tobytes()
    assert isinstance(run.grid(images), Image.Image)
    for wrong in (images[:, 0], images.float(), images[:0], images[None]):
        with pytest.raises(UsageError, match="are no images of this run"):
            run.grid(wrong)
    with pytest.raises(UsageError, match="columns=0"):
        run.grid(images, columns=0)


def test_the_denoiser(run: diffgen.Run) -> None:
    from diffgen.build import restore
    from diffgen.storage import checkpoint

    denoiser = restore(checkpoint.load(run.path)).denoiser
    x, t = torch.randn(3, 1, 8, 8), torch.tensor([0.1, 0.5])
    assert torch.equal(run.denoise(x[:2], t, [3, "1"]), denoiser(x[:2], t, torch.tensor([3, 1])))
    assert torch.equal(run.denoise(x, 0.5), denoiser(x, torch.full((3,), 0.5), torch.full((3,), -1)))
    assert torch.equal(run.denoise(x, 0.5, "7"), denoiser(x, torch.full((3,), 0.5), torch.full((3,), 7)))
    assert not run.denoise(x, 0.5).requires_grad
    x.requires_grad_()
    run.denoise(x, 0.5).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("x", "t", "label", "sentence"),
    [
        (torch.zeros(2, 8, 8), 0.5, None, "x of .* must be floats"),
        (torch.zeros(2, 1, 8, 8, dtype=torch.uint8), 0.5, None, "x of .* must be floats"),
        (torch.zeros(2, 1, 8, 8), 1.5, None, r"t=1.5 must be in \[0, 1\]"),
        (torch.zeros(2, 1, 8, 8), float("nan"), None, "t=nan"),
        (torch.zeros(2, 1, 8, 8), torch.zeros(3), None, r"t of shape \[3\]"),
        (torch.zeros(2, 1, 8, 8), 0.5, 10, "label=10 is out of range"),
        (torch.zeros(2, 1, 8, 8), 0.5, "cat", "label='cat' is unknown"),
        (torch.zeros(2, 1, 8, 8), 0.5, [1, 2, 3], "must be one, or 2 of them"),
    ],
)
def test_what_cannot_be_denoised(run: diffgen.Run, x: torch.Tensor, t: Any, label: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        run.denoise(x, t, label)


# --- training -------------------------------------------------------------------------------------------------------


def weights(run_dir: Path) -> bytes:
    return max(run_dir.glob("checkpoints/*/model.safetensors")).read_bytes()


def test_training_is_that_of_the_command(
    command: Callable[..., Any], tiny: list[str], metrics: Callable[[Path], list[dict[str, Any]]]
) -> None:
    answer = command("train", *tiny, "run_dir=a")
    rows: list[dict[str, Any]] = []
    with redirect_stdout(io.StringIO()) as said:
        run = diffgen.train([*tiny, "run_dir=b"], progress=rows.append)
    assert weights(Path("a")) == weights(Path("b")) == run.path.read_bytes()
    assert Path("b/config.yaml").read_text() == Path("a/config.yaml").read_text().replace("run_dir: a", "run_dir: b")
    assert rows == metrics(Path("b")) and len(rows) == 8
    assert said.getvalue().splitlines()[0] == answer.out.splitlines()[0]
    assert "\x1b" not in said.getvalue()
    assert run.dir == Path("b").resolve()


def test_from_a_thread_and_to_its_default_place(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with ThreadPoolExecutor(1) as pool:
        run = pool.submit(diffgen.train, tiny).result()
    assert run.dir and run.dir.parent == tmp_path / "outputs" / "digits-flow"
    assert run.images == 128


def test_a_run_goes_on(tiny: list[str], tmp_path: Path) -> None:
    here = [*tiny, f"run_dir={tmp_path / 'run'}"]
    assert diffgen.train([*here, "train.images=64"]).images == 64
    rows: list[dict[str, Any]] = []
    assert diffgen.train(here, rows.append).images == 128
    assert rows[0]["images"] == 80


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.imagse=3"],
        ["dataset=digts"],
        ["train.images=many"],
        ["train.images=[x"],
        ["train.images=0"],
        ["train.seed=-1"],
        ["run_dir="],
        ["=3"],
        ["sampler=null"],
        ["plugins=[nowhere.py]"],
        ["train.resume=nowhere"],
        ["dataset=image_folder", "dataset.root=nowhere"],
    ],
    ids=" ".join,
)
def test_wrong_settings_are_answered_as_by_the_command(
    overrides: list[str], tiny: list[str], command: Callable[..., Any]
) -> None:
    with pytest.raises(DiffgenError) as raised:
        diffgen.train([*tiny, *overrides])
    answer = command("train", *tiny, *overrides)
    assert answer.code == raised.value.exit_code
    assert answer.err.strip() == f"error: {raised.value}"


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["-m", "train.seed=1,2"], "-m is a flag of the command, .* call it once for each"),
        (["--cfg"], "--cfg is a flag"),
        (["train.seed=1,2"], "train.seed=1,2 gives several values, .* call it once for each"),
        ("dataset=digits", "must be a list"),
        ([3], "3 must be text"),
    ],
)
def test_what_only_the_command_can_do(overrides: Any, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        diffgen.train(overrides)


class Enough(Exception):
    """Raised by a callback."""


def test_an_error_of_the_callback_ends_the_run_with_a_checkpoint(tiny: list[str], tmp_path: Path, fit: Any) -> None:
    def progress(row: dict[str, Any]) -> None:
        raise Enough

    with pytest.raises(Enough):
        diffgen.train([*tiny, "train.images=1_000_000", f"run_dir={tmp_path / 'run'}"], progress)
    assert '"stopped"' in (tmp_path / "run" / "status.json").read_text()
    assert 16 <= diffgen.load(tmp_path / "run").images < 1_000_000


@pytest.mark.parametrize("seconds", [0.0, 0.1])
def test_ctrl_c_ends_the_run_with_a_checkpoint(seconds: float, tiny: list[str], tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    timers: list[Timer] = []

    def progress(row: dict[str, Any]) -> None:
        if not timers:
            timers.append(Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)))
            timers[0].start()

    with pytest.raises(KeyboardInterrupt, match="go on with the same command and run_dir="):
        diffgen.train([*tiny, "train.images=1_000_000", f"run_dir={tmp_path / 'run'}"], progress)
    assert diffgen.load(tmp_path / "run").images >= 16
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_run_that_fails_raises_what_it_failed_of(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffgen.training.trainer import Trainer

    monkeypatch.setattr(Trainer, "_log", lambda self, *given: self._diverged("the loss is lost"))
    with pytest.raises(NonFiniteError, match="the loss is lost, at 16 images"):
        diffgen.train([*tiny, f"run_dir={tmp_path / 'run'}"])


def test_one_training_at_a_time(tiny: list[str], tmp_path: Path) -> None:
    refused: list[str] = []

    def progress(row: dict[str, Any]) -> None:
        with pytest.raises(UsageError) as raised:
            diffgen.train(tiny)
        refused.append(str(raised.value))

    run = diffgen.train([*tiny, "train.images=32", f"run_dir={tmp_path / 'run'}"], progress)
    assert len(refused) == 2 and "is at work in this process" in refused[0]
    assert run.sample(1, steps=1).shape == (1, 1, 8, 8)


def state_of_the_process() -> list[Any]:
    handlers = [signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)]
    hooks = [warnings.showwarning, sys.stdout, sys.stderr, sys.excepthook, list(sys.argv), list(warnings.filters)]
    numbers = [
        torch.get_num_threads(),
        torch.get_rng_state().tolist(),
        torch.is_grad_enabled(),
        np.random.get_state()[2],
    ]
    return [*handlers, *hooks, *numbers, dict(os.environ), GlobalHydra.instance().hydra, Path.cwd()]


def test_the_process_is_as_it_was(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--help", "-m", "train.nothing=1"])
    torch.manual_seed(7)
    with hydra.initialize_config_dir(str(config_dir() / "sampler"), version_base="1.3"):
        before = state_of_the_process()
        run = diffgen.train([*tiny, "train.images=16", "train.threads=2", f"run_dir={tmp_path / 'run'}"])
        run.sample(2, steps=2, seed=1)
        assert state_of_the_process() == before
        assert hydra.compose("ddim").eta == 0.0


def test_an_accelerator_of_the_callers_stays(tiny: list[str], tmp_path: Path) -> None:
    mine = Accelerator(cpu=True, mixed_precision="bf16")
    try:
        diffgen.train([*tiny, f"run_dir={tmp_path / 'run'}"]).sample(2, steps=1)
        assert mine.mixed_precision == "bf16"
        assert AcceleratorState().mixed_precision == "bf16"
    finally:
        AcceleratorState._reset_state(True)


# --- the page -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 6
    space: dict[str, Any] = {}
    with redirect_stdout(io.StringIO()) as said:
        for block in blocks:
            exec(block, space)
    assert "torch.Size([16, 1, 8, 8]) torch.uint8" in said.getvalue()
    assert "sampler='hun' is unknown" in said.getvalue()
    assert len(space["losses"]) == 4


def test_the_notebook_is_the_page(python: Callable[..., Any]) -> None:
    done = python(str(ROOT / "scripts" / "notebook.py"), "--check")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(PAGE.with_suffix(".ipynb"), as_version=4)
    NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "execute_result"}
    said = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "\x1b" not in said
    assert "diffgen-train: digits, flow" in said and "100%" in said
    assert "sampler='hun' is unknown" in said
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.slow
def test_a_notebook_stops_a_run_with_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel lives on."""
    from jupyter_client.manager import start_new_kernel

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    manager, client = start_new_kernel(cwd=str(tmp_path))
    try:
        client.execute("import diffgen, os, signal, threading")
        begin = "lambda row: threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start() if row['step'] == 20 else None"
        long = f"diffgen.train(['dataset=digits', 'train.images=10_000_000', 'run_dir=run'], {begin})"
        content = client.execute_interactive(long, timeout=200, output_hook=lambda message: None)["content"]
        assert content["ename"] == "KeyboardInterrupt"
        assert "go on with the same command and run_dir=run" in content["evalue"]
        there = client.execute_interactive("assert diffgen.load('run').sample(2).shape[0] == 2", timeout=60)["content"]
        assert there["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
