"""What a person types at a shell: printed commands are pasted, paths hold anything, and refusals show what works."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffgen.cli import plugins
from diffgen.core.errors import UsageError

Command = Callable[..., Any]
QUICK = [
    "train.images=16",
    "model.channel_mult=[1]",
    "model.attention_resolutions=[]",
    "train.log_every=16",
    "preview.n=1",
]
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"


def paste(command: Command, text: str, *more: str) -> Any:
    """Run a command that was printed."""
    program, *arguments = shlex.split(text)
    return command(program.removeprefix("diffgen-"), *arguments, *more)


@pytest.mark.parametrize(
    "folder", ["with space/it's", 'a=b,[c]{d}"e"', "$HOME ${x", "é#(1)", "2024_11_27", "1e5", "~tilde", "null", "end\\"]
)
def test_the_next_command_runs(command: Command, folder: str, tmp_path: Path) -> None:
    from diffgen.core.paths import setting

    trained = paste(command, f"diffgen-train {setting('run_dir', Path(folder))}", *QUICK)
    assert trained.code == 0, trained.err
    assert (tmp_path / folder / "loss.png").is_file()
    (line,) = re.findall(r"next: +(.*)", trained.out)
    drawn = paste(command, line, "n=1", "sampler.steps=1", "sampler=heun", "out=s")
    assert drawn.code == 0, drawn.err
    assert (tmp_path / "s" / "grid.png").is_file()


def test_the_next_command_names_the_plugins(command: Command, tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    (tmp_path / "a,b" / "cubic é.py").write_text((EXAMPLES / "schedule.py").read_text())
    trained = command("train", *QUICK, 'plugins="a,b/cubic é.py"', "schedule=cubic", "run_dir=run")
    assert trained.code == 0, trained.err
    (line,) = re.findall(r"next: +(.*)", trained.out)
    assert line == """diffgen-sample 'plugins=["a,b/cubic é.py"]' ckpt=run"""
    assert paste(command, line, "n=1", "out=s").code == 0


@pytest.mark.parametrize(
    "typed",
    [
        "run_dir=a=b",
        "run_dir=in/unié",
        "run_dir=my(1)",
        "run_dir=a#b",
        "run_dir=~/x",
        "run_dir='a'b'",
        'run_dir="a',
        "run_dir={a b",
    ],
)
def test_a_value_that_cannot_be_read_is_spelled(command: Command, typed: str, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    refused = command("train", *QUICK, typed)
    assert refused.code == 2
    assert refused.err.startswith("error: cannot read ")
    spelled = refused.err.strip().partition("like this one, ")[2]
    done = paste(command, f"diffgen-train {spelled}", *QUICK)
    assert done.code == 0, done.err
    value = typed.partition("=")[2]
    folder = "home/x" if value == "~/x" else value.replace("'a'b'", "a'b")
    assert (tmp_path / folder / "config.yaml").is_file()


@pytest.mark.parametrize(
    ("typed", "spelled"),
    [
        ("plugins=[unié.py]", """'plugins=["unié.py"]'"""),
        ("model.channel_mult=[1,é]", """'model.channel_mult=[1,"é"]'"""),
        ("x", None),
        ("é=3", None),
    ],
)
def test_lists_and_what_is_no_setting(command: Command, typed: str, spelled: str | None) -> None:
    refused = command("train", typed)
    assert refused.code == 2
    assert (f"like this one, {spelled}" in refused.err) == bool(spelled)
    assert "settings are KEY=VALUE" in refused.err


def test_a_folder_may_look_like_a_number(command: Command, tmp_path: Path) -> None:
    for name in ("2026_11_27", "007", "1e5", "1_0.5"):
        assert command("train", *QUICK, "train.images=1", f"run_dir={name}").code == 0
        assert (tmp_path / name / "config.yaml").is_file()


def test_commas_outside_a_sweep_show_both_ways(command: Command, tmp_path: Path) -> None:
    said = command("train", *QUICK, "run_dir=a,b").err
    assert "add -m" in said
    assert said.endswith("""write a list as 'run_dir=[a,b]', or one text as 'run_dir="a,b"'\n""")
    said = command("sample", "-m", "ckpt=a=b,c").err
    assert """'ckpt="a=b",c'""" in said


def test_a_tilde_is_a_home_for_each_command(command: Command, monkeypatch: Any, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert command("train", *QUICK, 'run_dir="~/run"').code == 0
    assert f"run_dir: {tmp_path}/run" in (tmp_path / "run" / "config.yaml").read_text()
    assert command("sample", 'ckpt="~/run"', 'out="~/s"', "n=2", "save=png").code == 0
    image = 'task.image="~/s/images/000000.png"'
    assert command("sample", 'ckpt="~/run"', "task=img2img", image, "n=1", "out=t").code == 0
    judged = command("eval", 'ckpt="~/run"', "metrics=denoising", "n=8", 'out="~/e"', 'cache="~/c"')
    assert judged.code == 0, judged.err
    assert not (tmp_path / "~").exists()
    resumed = command("train", *QUICK, 'train.resume="~/run"', "run_dir=again", "train.images=128")
    assert "resumed at 64 images" in resumed.out
    assert "~nobody-here/x" in command("sample", 'ckpt="~nobody-here/x"').err


def test_a_sweep_that_is_stopped_says_how_its_job_goes_on(command: Command, monkeypatch: Any, tmp_path: Path) -> None:
    from diffgen.core.signals import Stopped
    from diffgen.training import trainer

    def stopped(self: Any, request: Any) -> None:
        raise Stopped(15, 0, self.run_dir)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "run", stopped)
        said = command("train", "-m", *QUICK, "run_dir='a b'", "train.seed=1,2")
    assert said.code == 143
    (line,) = re.findall("goes on alone: (.*)", said.err)
    assert paste(command, line).code == 0
    assert [p.name for p in (tmp_path / "a b").iterdir()] == ["0-digits-flow"]
    assert (tmp_path / "a b" / "0-digits-flow" / "loss.png").is_file()


@pytest.mark.parametrize(
    "value", ["a/b", "../z", "[a]", "[digits,mnist]", "", "null", "5", "a=b", "é", "{a:1}", "true"]
)
def test_a_wrong_choice_names_the_choices(command: Command, value: str) -> None:
    for group, choice in (("dataset", "digits"), ("optimizer", "adamw"), ("model", "unet_tiny")):
        refused = command("train", f"{group}={value}")
        assert refused.code == 2
        assert refused.err.startswith(f"error: {group}={value!r} is unknown; choose one of [")
        assert choice in refused.err
    for name, group, choice in (
        ("sample", "sampler", "heun"),
        ("sample", "task", "inpaint"),
        ("eval", "sampler", "ddim"),
    ):
        refused = command(name, "ckpt=x", f"{group}={value}")
        assert refused.code == 2
        assert refused.err.startswith(f"error: {group}={value!r} is unknown; choose one of [")
        assert choice in refused.err


# --- plugins --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("plugins=['a,b/c.py']", ["a,b/c.py"]),
        ("plugins=cubic.py", ["cubic.py"]),
        ("plugins='x y.py'", ["x y.py"]),
        ("plugins=[a, 'b c' ,d/e.py]", ["a", "b c", "d/e.py"]),
        ("++plugins=[a]", ["a"]),
        ("plugins=null", []),
        ("plugins=[]", []),
        ("plugins=", []),
    ],
)
def test_plugins_are_read_by_the_grammar(typed: str, names: list[str]) -> None:
    assert plugins.named(["train.seed=1", typed]) == (names, ["train.seed=1"])


@pytest.mark.parametrize("typed", ["plugins=3", "plugins=[[a]]", "plugins={a:b}", "plugins=a,b", "plugins=true"])
def test_what_names_no_plugin(typed: str) -> None:
    with pytest.raises(UsageError, match="plugins="):
        plugins.named([typed])


@pytest.mark.parametrize("name", ["plug.txt", "..", ".", "/", "a-b", "a b"])
def test_what_is_no_plugin(command: Command, tmp_path: Path, name: str) -> None:
    (tmp_path / "plug.txt").touch()
    refused = command("train", f"plugins=['{name}']")
    assert refused.code == 2
    assert refused.err.startswith(f"error: plugins: {name} is ")
    assert "plugins=[my/part.py]" in refused.err


def test_help_lists_the_rows_of_plugins(command: Command, tmp_path: Path) -> None:
    (tmp_path / "cubic.py").write_text((EXAMPLES / "schedule.py").read_text())
    assert "cosine, cubic," in command("train", "--help", "plugins=cubic.py").out
    assert command("train", "--help", "plugins=nope.py").code == 2


def test_plugins_of_a_yaml_file_are_not_passed_over(command: Command, tmp_path: Path) -> None:
    (tmp_path / "cubic.py").write_text((EXAMPLES / "schedule.py").read_text())
    (tmp_path / "my" / "experiment").mkdir(parents=True)
    (tmp_path / "my" / "experiment" / "mine.yaml").write_text("# @package _global_\nplugins: [cubic.py]\n")
    refused = command("train", "--config-dir", "my", "experiment=mine", *QUICK)
    assert refused.code == 2
    assert "plugins='cubic.py' of a YAML file" in refused.err
    told = command("train", "--config-dir", "my", "experiment=mine", "plugins=cubic.py", *QUICK, "schedule=cubic")
    assert told.code == 0, told.err


def test_a_row_of_no_table_may_be_a_plugin_s(command: Command) -> None:
    assert "a part of a plugin needs plugins=[...]" in command("train", "schedule=quartic").err
    assert "plugin" not in command("train", "method=zzz").err
