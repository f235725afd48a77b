"""The denoiser as a program: torch.export's and ONNX Runtime's give what the original gives, or nothing is written."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_diffusers import SAMPLERS, run, saved

from diffgen.build import restore
from diffgen.core.errors import EnvironmentFault, UsageError
from diffgen.core.settings import ExportSettings
from diffgen.exporting import programs
from diffgen.exporting.export import export
from diffgen.storage import checkpoint

SMALL = ["method=edm", "model.channels=8", "model.channel_mult=[1,2]", "model.blocks=1"]


@pytest.fixture(scope="module")
def ckpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network that knows three classes, of images whose sides are odd. Read only."""
    return saved(tmp_path_factory.mktemp("programs") / "ckpt", *SMALL, size=(1, 7, 9), classes=3)


def answers(program: programs.Program, ckpt: Path) -> None:
    """The same as the denoiser for any batch, time and label; and not the same for other ones."""
    trained = restore(checkpoint.load(ckpt))
    for count in (1, 6):
        x, label = torch.randn(count, 1, 7, 9), torch.arange(count) % 4 - 1
        t = torch.logspace(-2, 1.9, count)
        torch.testing.assert_close(program(x, t, label), trained.denoiser(x, t, label), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(program(x, t, label), program(x, t, label.flip(0)), atol=1e-5)


@pytest.fixture(scope="module")
def folders(ckpt: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An export in each format. Read only."""
    where = tmp_path_factory.mktemp("written")
    return {format: run(ckpt, where / format, format) for format in programs.FILES}


def test_torch(folders: dict[str, Path], ckpt: Path) -> None:
    answers(torch.export.load(folders["torch"] / "denoiser.pt2").module(), ckpt)


def test_onnx(folders: dict[str, Path], ckpt: Path) -> None:
    session = pytest.importorskip("onnxruntime").InferenceSession(folders["onnx"] / "denoiser.onnx")
    types = {given.name: given.type for given in session.get_inputs()}
    assert types == {"x": "tensor(float)", "t": "tensor(float)", "label": "tensor(int64)"}

    def program(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        fed = {"x": x.numpy(), "t": t.numpy(), "label": label.numpy()}
        return torch.from_numpy(session.run(["x0_hat"], fed)[0])

    answers(program, ckpt)


@pytest.mark.parametrize("format", programs.FILES)
def test_the_folder_says_what_goes_in(folders: dict[str, Path], format: str) -> None:
    assert {path.name for path in folders[format].iterdir()} == {programs.FILES[format], "README.md"}
    text = (folders[format] / "README.md").read_text()
    assert (
        "[batch, 1, 7, 9]" in text and "time in [0.002, 80] of schedule=ve" in text and "-1 for none: 0, 1, 2 |" in text
    )


@pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_a_transformer(tmp_path: Path, format: str) -> None:
    """What is written is compared with it by the export itself."""
    pytest.importorskip("onnxruntime")
    tiny = [
        "model=dit_tiny",
        "model.patch=2",
        "model.width=16",
        "model.depth=2",
        "model.class_tokens=2",
        "model.class_tokens_from=1",
    ]
    run(saved(tmp_path / "a", "method=edm", *tiny, size=(1, 4, 6), classes=3), tmp_path / "b", format)
    assert (tmp_path / "b" / programs.FILES[format]).exists()


OF_CLIPS = {
    "unet": ["model=unet_tiny", "model.channels=8", "model.attention_resolutions=[8]"],
    "dit": ["model=dit_tiny", "model.width=32", "model.depth=2", "model.attention=factorised"],
}


@pytest.mark.parametrize("network", OF_CLIPS)
@pytest.mark.parametrize("format", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_clips(tmp_path: Path, network: str, format: str) -> None:
    """What is written is compared with it by the export itself, with batches of two sizes."""
    pytest.importorskip("onnxruntime")
    saved(tmp_path / "a", "method=edm", *OF_CLIPS[network], size=(1, 4, 8, 8), classes=3, given=4)
    text = (run(tmp_path / "a", tmp_path / "b", format) / "README.md").read_text()
    assert "[batch, 1, 4, 8, 8]" in text and "here it is told of none" in text


def test_a_network_without_classes_for_vectors(tmp_path: Path) -> None:
    config = checkpoint.load(saved(tmp_path / "a", "dataset=points", "model=mlp", "model.width=8", size=(2,)))
    vectors = {**config.config, "data": {**config.config["data"], "kind": {"name": "vectors"}}}
    checkpoint.save_model(tmp_path / "b", vectors, 1, config.weights)
    text = (run(tmp_path / "b", tmp_path / "c", "torch") / "README.md").read_text()
    assert "[batch, 2]" in text and "it knows no classes" in text and "[-1, 1]" not in text


def test_a_program_that_computes_something_else_is_not_left(
    ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(programs, "to_torch", lambda traced, path: lambda x, t, label: x)
    with pytest.raises(UsageError, match=r"computes something else: it differs by \d"):
        run(ckpt, tmp_path / "b", "torch")
    assert not list(tmp_path.iterdir())


def test_the_file_itself_is_compared(ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here that of another network, which was saved in its place."""
    trained = restore(checkpoint.load(ckpt))
    for weight in trained.denoiser.model.parameters():
        weight.mul_(2)
    other, save = programs.trace(trained), torch.export.save
    monkeypatch.setattr(torch.export, "save", lambda traced, path: save(other, path))
    with pytest.raises(UsageError, match=r"computes something else: it differs by \d"):
        run(ckpt, tmp_path / "b", "torch")
    assert not list(tmp_path.iterdir())


def test_times_of_one_batch_are_told_apart(ckpt: Path) -> None:
    """A program that takes the first time for all is right at each time by itself."""
    trained = restore(checkpoint.load(ckpt))

    def careless(x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return trained.denoiser(x, t[0], label)

    assert programs.compare(careless, trained) > programs.TOLERANCE
    assert programs.compare(trained.denoiser, trained) <= programs.TOLERANCE


def test_what_is_not_finite_is_a_difference(ckpt: Path) -> None:
    assert programs.compare(lambda x, t, label: x * torch.nan, restore(checkpoint.load(ckpt))) == float("inf")


def test_a_network_that_cannot_be_traced(ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def untraceable(*given: object) -> None:
        raise RuntimeError("data-dependent\ncontrol flow")

    monkeypatch.setattr(programs, "trace", untraceable)
    with pytest.raises(UsageError, match=r"format=torch cannot hold this network: data-dependent$"):
        run(ckpt, tmp_path / "b", "torch")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library(library: str, ckpt: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(EnvironmentFault, match=rf"\({library}\): pip install 'diffgen\[export\]'"):
        run(ckpt, tmp_path / "b", "onnx")
    assert not list(tmp_path.iterdir())


# --- the folder ---------------------------------------------------------------------------------------------------


def write(ckpt: Path, to: Path, *, overwrite: bool) -> None:
    export(ExportSettings(ckpt=str(ckpt), to=str(to), format="diffgen", overwrite=overwrite), SAMPLERS)


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_not_an_export_is_never_replaced(overwrite: bool, ckpt: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("mine, too")
    for to, words in (("mine", "thesis.txt"), ("file", "is a file"), ("x.safetensors", "names a file")):
        with pytest.raises(UsageError, match=words):
            write(ckpt, tmp_path / to, overwrite=overwrite)
    for to in (ckpt, ckpt.parent):
        with pytest.raises(UsageError, match="holds ckpt="):
            write(ckpt, to, overwrite=overwrite)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "years of work"


def test_an_earlier_export_is_replaced_where_that_is_asked_for(folders: dict[str, Path], tmp_path: Path) -> None:
    there = saved(tmp_path / "there", "model=unet2d", "model.channels=32", size=(1, 8, 8))
    (tmp_path / "to").mkdir()
    run(there, tmp_path / "to", "diffusers")
    with pytest.raises(UsageError, match="overwrite=true"):
        run(there, tmp_path / "to", "diffusers")
    before = (tmp_path / "to" / "model_index.json").stat().st_mtime_ns
    export(ExportSettings(ckpt=str(there), to=str(tmp_path / "to"), format="diffusers", overwrite=True), SAMPLERS)
    assert (tmp_path / "to" / "model_index.json").stat().st_mtime_ns > before


def test_the_command_from_a_run_to_a_sample(
    command: Callable[..., Any], fit: Callable[..., Path], tmp_path: Path
) -> None:
    """Out to diffusers, in again, and the command that is printed draws."""
    few = ["model.channels=8", "model.channel_mult=[1]", "model.attention_resolutions=[]", "model.groups=4"]
    fit(tmp_path / "a run", "conditional=false", "method=ddpm", "model=unet2d", *few, "sampler.steps=4")
    assert command("export", f"ckpt='{tmp_path / 'a run'}'", "to=out").code == 0
    said = command("export", "ckpt=out", "to='a net'", "format=diffgen")
    assert said.code == 0, said.err
    printed = next(line for line in said.out.splitlines() if line.startswith("next: "))
    program, *arguments = shlex.split(printed.removeprefix("next: "))
    drawn = command(program.removeprefix("diffgen-"), *arguments, "n=2", "sampler.steps=2", "out=drawn")
    assert drawn.code == 0, drawn.err
    assert (tmp_path / "drawn" / "grid.png").exists()
    assert command("export", "ckpt=out", "to=out").code == 2
