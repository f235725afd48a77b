"""The plugins in docs/examples: one for every table, and each runs with the commands that it says."""

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from diffgen.tables import TABLES

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs" / "examples"
LONGEST = {"kind": 60}
"""Lines; others have 40 at most."""

SHORT = ["train.images=64", "train.batch_size=16", "train.log_every=16", "preview.n=2", "sampler.steps=3"]
TINY_UNET = ["model.channels=8", "model.channel_mult=[1]", "model.attention_resolutions=[]"]


def commands(text: str) -> list[list[str]]:
    """The command lines in a module's docstring."""
    lines = re.findall(r"^\s*(diffgen-\w+ .*)$", text.split('"""')[1], re.MULTILINE)
    return [shlex.split(line) for line in lines]


def shortened(program: str, arguments: list[str]) -> list[str]:
    """The arguments with paths made whole, and settings that make them quick."""
    whole = [argument.replace("docs/examples/", f"{EXAMPLES}/") for argument in arguments]
    if program != "diffgen-train":
        return [argument if not argument.startswith("n=") else "n=8" for argument in whole]
    mine = any(argument.startswith("model=") for argument in whole)
    network = ["model.width=16", "model.blocks=1"] if "model=mlp" in whole else [] if mine else TINY_UNET
    data = [] if any(argument.startswith("dataset=") for argument in whole) else ["dataset=digits"]
    return [*data, *network, *SHORT, *whole]


@pytest.mark.parametrize("group", TABLES)
def test_every_table_has_an_example_that_is_short(group: str) -> None:
    text = (EXAMPLES / f"{group}.py").read_text()
    assert len(text.splitlines()) <= LONGEST.get(group, 40)
    assert commands(text), "it says how it is used"


def test_every_example_is_of_a_table() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(TABLES)


def rows() -> set[str]:
    """Names of all rows there are."""
    return {row for table in TABLES.values() for row in table}


def run_as_it_says(command: Callable[..., Any], group: str, text: str) -> None:
    """Run an example's commands in turn; they add a row to its table, and choose what they add."""
    shipped, others = set(TABLES[group]), rows()
    chosen: set[str] = set()
    for program, *arguments in commands(text):
        done = command(program.removeprefix("diffgen-"), *shortened(program, arguments))
        assert done.code == 0, f"{program} {' '.join(arguments)}: {done.err}"
        chosen.update(*(re.findall(r"\w+", argument.partition("=")[2]) for argument in arguments))
    assert set(TABLES[group]) > shipped, f"no row is added to the table of {group}s"
    assert chosen & (rows() - others), "none of its rows is used"


@pytest.mark.parametrize("group", TABLES)
def test_an_example_runs_as_it_says(command: Callable[..., Any], group: str) -> None:
    run_as_it_says(command, group, (EXAMPLES / f"{group}.py").read_text())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ("plugins=[docs/examples/time.py] time=erly", "time='erly' is unknown"),
        ("plugins=[docs/examples/time.py] time=early time.pwoer=3", "time.pwoer is unknown"),
        ("plugins=[docs/examples/weighting.py]", "no row is added to the table of times"),
        ("time=uniform", "no row is added to the table of times"),
        ("plugins=[docs/examples/time.py]", "none of its rows is used"),
    ],
)
def test_a_command_that_is_wrong_is_noticed(command: Callable[..., Any], settings: str, sentence: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(sentence)):
        run_as_it_says(command, "time", f'"""A density.\n\ndiffgen-train {settings}\n"""')


def test_the_page_has_a_place_for_every_example() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    places = re.findall(r"^<!-- example: (\w+) -->\n```python\n", page, re.MULTILINE)
    assert sorted(places) == sorted(TABLES)


def test_the_page_shows_the_examples_as_they_are() -> None:
    checked = subprocess.run([sys.executable, str(ROOT / "scripts" / "examples.py"), "--check"], capture_output=True)
    assert checked.returncode == 0, checked.stdout
