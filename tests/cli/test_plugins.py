"""Parts of a user's own, from a file named on the command line."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffgen.cli import plugins
from diffgen.core.errors import UsageError
from diffgen.core.registry import parameters
from diffgen.diffusion.samplers.steps import SAMPLERS, Facts
from diffgen.tables import TABLES

Command = Callable[..., Any]
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def folder(plugged: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, to write plugins to; what they add is taken away again."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_schedule_and_a_sampler_of_ones_own(command: Command, folder: Path, tiny: list[str]) -> None:
    (folder / "cubic.py").write_text((EXAMPLES / "schedule.py").read_text())
    (folder / "quiet.py").write_text((EXAMPLES / "sampler.py").read_text())
    both = "plugins=[cubic.py,quiet]"  # a file, and a module of the working folder
    chosen = ["schedule=cubic", "schedule.t_min=0.04", "sampler=quiet_euler", "sampler.steps=3", "run_dir=run"]
    trained = command("train", *tiny, both, *chosen)
    assert trained.code == 0, trained.err
    assert "cubic + flow" in trained.out
    assert "quiet_euler in 3 steps" in trained.out
    sampled = command("sample", both, "ckpt=run", "n=2", "sampler.shrink=0.5", "sampler=quiet_euler", "out=s")
    assert sampled.code == 0, sampled.err
    assert "shrink 0.5" in sampled.out


def test_a_checkpoint_cannot_ask_for_a_plugin(
    command: Command,
    python: Callable[..., "subprocess.CompletedProcess[str]"],
    folder: Path,
    tiny: list[str],
) -> None:
    (folder / "cubic.py").write_text((EXAMPLES / "schedule.py").read_text())
    run = [*tiny, "plugins=[cubic.py]", "schedule=cubic", "train.images=16", "run_dir=run"]
    assert command("train", *run).code == 0
    refused = python("-m", "diffgen.cli.sample", "ckpt=run", "out=s")
    assert refused.returncode == 4
    assert "schedule.name='cubic' is unknown" in refused.stderr


# --- files and modules ----------------------------------------------------------------------------------------------


def row(name: str, **facts: int) -> str:
    """A plugin that registers a sampler."""
    said = "".join(f", {key}={value}" for key, value in facts.items())
    return f"""
from diffgen.diffusion.samplers import SAMPLERS

@SAMPLERS.register("{name}"{said})
def sampler(denoise, schedule, x, ts, noise, *, shrink: float = 0.9):
    return x
"""


def test_a_file_may_have_the_name_of_any_module(folder: Path) -> None:
    (folder / "time.py").write_text(row("mine"))
    assert plugins.load(["time.py"])["sampler"] == ["mine"]
    assert sys.modules["time"] is time


def test_a_module_of_python_s_own_is_no_plugin(command: Command, folder: Path) -> None:
    (folder / "time.py").write_text(row("mine"))
    refused = command("train", "plugins=[time]")
    assert refused.code == 2
    assert refused.err == ("error: plugins: time is a module of Python's own; a file of yours is plugins=[time.py]\n")


def test_two_files_may_have_one_name(folder: Path) -> None:
    for name in ("a", "b"):
        (folder / name).mkdir()
        (folder / name / "mine.py").write_text(row(name))
    assert plugins.load(["a/mine.py", "b/mine.py"])["sampler"] == ["a", "b"]


def test_a_file_is_run_once(folder: Path) -> None:
    (folder / "mine.py").write_text(row("mine"))
    (folder / "link.py").symlink_to("mine.py")
    for names in (["mine.py"], ["mine.py"], ["./mine.py", str(folder / "mine.py"), "link.py"]):
        assert plugins.load(names)["sampler"] == ["mine"]


def test_a_dataclass_and_its_types_are_found_in_their_module(folder: Path) -> None:
    (folder / "cubic.py").write_text("from __future__ import annotations\n" + (EXAMPLES / "schedule.py").read_text())
    assert plugins.load(["cubic.py"])["schedule"] == ["cubic"]
    assert parameters(TABLES["schedule"]["cubic"]) == {"t_min": float, "t_max": float}


@pytest.mark.parametrize("name", ["broken.py", "broken"])
def test_a_plugin_that_fails_leaves_nothing(command: Command, folder: Path, name: str) -> None:
    (folder / "broken.py").write_text(row("half") + "1 / 0")
    (folder / "good.py").write_text(row("whole"))
    before = [*sys.path], {key for key in sys.modules if "broken" in key or key.startswith("diffgen_plugin_")}
    refused = command("train", f"plugins=[{name}]")
    assert refused.code == 2
    assert refused.err == (f"error: plugins: {name} cannot be imported (ZeroDivisionError: division by zero)\n")
    assert ([*sys.path], {key for key in sys.modules if "broken" in key or key.startswith("diffgen_plugin_")}) == before
    assert "half" not in TABLES["sampler"]
    (folder / "broken.py").write_text(row("half"))  # mended
    assert plugins.load([name])["sampler"] == ["half"]


def test_those_before_one_that_fails_stay(folder: Path) -> None:
    (folder / "good.py").write_text(row("whole"))
    (folder / "broken.py").write_text("1 / 0")
    with pytest.raises(UsageError):
        plugins.load(["good.py", "broken.py"])
    assert plugins.load(["good.py"])["sampler"] == ["whole"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (row("heun"), "sampler='heun' is registered twice: give the row another name"),
        (row("mine", calles=2), "sampler='mine': fact='calles' is unknown; choose one of [calls, noise, order]"),
        ("", "adds no row to any table: is it the module that was meant?"),
        ("raise SystemExit(3)", "cannot be imported (SystemExit: 3)"),
        ("import no_such_library", "cannot be imported (ModuleNotFoundError: No module named 'no_such_library')"),
        ("def", "cannot be imported (SyntaxError: invalid syntax"),
    ],
)
def test_what_is_wrong_with_a_plugin_is_one_sentence(command: Command, folder: Path, text: str, sentence: str) -> None:
    (folder / "mine.py").write_text(text)
    heun = TABLES["sampler"]["heun"]
    refused = command("train", "plugins=[mine.py]", "run_dir=run")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert refused.err.startswith("error: plugins: mine.py")
    assert sentence in refused.err
    assert TABLES["sampler"]["heun"] is heun
    assert not (folder / "run").exists()


@pytest.mark.parametrize("name", ["no_such_module", "no/such/file.py"])
def test_a_plugin_that_is_not_there_is_told(command: Command, folder: Path, name: str) -> None:
    refused = command("train", f"plugins=[{name}]")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert f"plugins: {name} cannot be imported" in refused.err


# --- what they reach ------------------------------------------------------------------------------------------------


def test_a_row_says_of_itself_what_shipped_ones_say(folder: Path) -> None:
    (folder / "mine.py").write_text(row("mine", order=1, calls=3))
    plugins.load(["mine.py"])
    assert SAMPLERS.facts["mine"] == Facts(order=1, calls=3)


def test_an_extractor_of_ones_own_judges(command: Command, folder: Path, tiny_run: Path) -> None:
    """And only where it is asked for."""
    judge = ("eval", f"ckpt={tiny_run}", "extractor=quarters", "metrics=fd", "n=16", "out=out", "sampler.steps=2")
    unknown = command(*judge)
    assert unknown.code == 2
    assert "extractor='quarters' is unknown; choose one of [" in unknown.err
    done = command(*judge, f"plugins=[{EXAMPLES / 'extractor.py'}]")
    assert done.code == 0, done.err
    written = json.loads((folder / "out" / "results.jsonl").read_text())
    assert written["extractor"] == "quarters"
    assert written["fd"] > 0


@pytest.mark.parametrize("name", ["train", "sample", "eval"])
def test_their_rows_are_among_the_choices(command: Command, folder: Path, name: str) -> None:
    (folder / "mine.py").write_text(row("mine"))
    assert "(did you mean 'mine'?)" in command(name, "plugins=[mine.py]", "sampler=mines").err
