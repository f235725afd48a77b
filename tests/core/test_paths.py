"""What a printed command spells is read back as it was, by a shell and by Hydra."""

import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from diffgen.core.errors import EnvironmentFault, UsageError, typed
from diffgen.core.paths import at_home, check_folder, named_file, setting, walk

NASTY = [
    "with space", "a=b", "it's", 'say "no"', "a,b", "[x]", "{x: 1}", "$HOME", "${run_dir}", "\\${x}", "~", "~/x", "#1", "my(1)",
    "in/unié", "2024-11-27", "2024_11_27", "007", "1e5", ".5", "null", "True", "nan", "-inf", "back\\slash", "end\\", '\\"', "\\'",
    "a;b", "a&b", "a|b", "a*b?", "!x", " lead", "tail ", "`x`", "a:b", "%d", "@", "+x", "-x", "--x", "a\nb", "a\tb", "range(1)",
]  # fmt: skip


def read_back(command: str) -> Any:
    """What diffgen is given when the text is pasted into a shell."""
    (argument,) = shlex.split(command)
    override = OverridesParser.create().parse_override(argument)
    config = OmegaConf.create({"run_dir": None})
    OmegaConf.update(config, override.key_or_group, override.value())
    return OmegaConf.to_container(config, resolve=True)["run_dir"]  # type: ignore[call-overload, index]


@pytest.mark.parametrize("text", NASTY)
def test_texts_are_read_back(text: str) -> None:
    assert read_back(setting("run_dir", text)) == text


@given(st.text(st.sampled_from("ab1_/.~ '\"\\${}[]()=,:#é\n-+"), min_size=1))
@example("${")
@example("\\${\\")
def test_any_text_is_read_back(text: str) -> None:
    assert read_back(setting("run_dir", text)) == text
    assert read_back(setting("run_dir", [text, "b"])) == [text, "b"]


@pytest.mark.parametrize(
    "text", ["outputs/digits-flow/2026-01-01_00-00-00", "/tmp/x_1", "run", "../a", "./a", "a.safetensors"]
)
def test_what_needs_no_quotes_has_none(text: str) -> None:
    assert setting("ckpt", text) == f"ckpt={text}"


@pytest.mark.parametrize("path", ["~", "~/x", "~root/x"])
def test_a_folder_that_is_called_tilde_is_no_home(path: str) -> None:
    read = at_home("run_dir", read_back(setting("run_dir", Path(path))))
    assert Path(read) == Path(path)


def test_a_tilde_is_a_home_in_every_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    given = {"out": "~", "task": {"images": ["~/a.png", "b~"]}, "n": 3, "label": "~x", "guide": None, "x": "a/~"}
    told = {
        "out": "/home/me",
        "task": {"images": ["/home/me/a.png", "b~"]},
        "n": 3,
        "label": "~x",
        "guide": None,
        "x": "a/~",
    }
    assert walk(given, at_home) == told


def test_a_text_is_no_path_but_may_name_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    task = {"text": "~ is a tilde", "mark": "~"}
    assert walk({"task": task}, at_home) == {"task": task}
    (tmp_path / "letter.txt").write_text("a")
    assert named_file("~/letter.txt") == named_file(str(tmp_path / "letter.txt")) == str(tmp_path / "letter.txt")
    assert named_file("~ is a tilde") is None and named_file("a" * 5000) is None and named_file("~") is None


def test_a_user_that_is_not_there_is_told() -> None:
    with pytest.raises(UsageError, match=r"task.image='~no-such/x': no user here has that name; .* is ./~no-such/x"):
        walk({"task": {"image": "~no-such/x"}}, at_home)


def test_a_file_where_a_folder_is_wanted(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (str(tmp_path / "file"), str(tmp_path / "file" / "below")):
        with pytest.raises(EnvironmentFault, match=f"cannot write out='{path}': .*/file is a file"):
            check_folder("out", path)
    check_folder("out", str(tmp_path / "new" / "below"))
    check_folder("out", None)


def test_values_are_told_as_they_are_typed() -> None:
    told = {"null": None, "true": True, "1": 1, "'a'": "a", "[null, false, 'b']": (None, False, "b"), "0.5": 0.5}
    assert {typed(value): value for value in told.values()} == told
