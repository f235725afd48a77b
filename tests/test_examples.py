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


@pytest.mark.usefixtures("plugged")
@pytest.mark.parametrize("group", TABLES)
def test_an_example_runs_as_it_says(command: Callable[..., Any], group: str) -> None:
    for program, *arguments in commands((EXAMPLES / f"{group}.py").read_text()):
        done = command(program.removeprefix("diffgen-"), *shortened(program, arguments))
        assert done.code == 0, f"{program} {' '.join(arguments)}: {done.err}"


def test_the_page_shows_the_examples_as_they_are() -> None:
    checked = subprocess.run([sys.executable, str(ROOT / "scripts" / "examples.py"), "--check"], capture_output=True)
    assert checked.returncode == 0, checked.stdout
