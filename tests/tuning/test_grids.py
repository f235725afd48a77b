"""`diffgen-tune task=grid`: found grids are near to the exact solution, are used, and refused where they do not fit."""

import itertools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from diffgen.storage import checkpoint, grid_file
from diffgen.tuning.search import LATE, Grid, cheapest, spread_between

Command = Callable[..., Any]

FEW = ("task.n=4", "guidance=1")


@pytest.fixture(scope="module")
def with_moments(fit: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that keeps the moments of its data."""
    return fit(tmp_path_factory.mktemp("tune") / "run", "method=edm", "train.images=128", "train.covariance=true")


# --- dynamic programming --------------------------------------------------------------------------------------------


def test_the_cheapest_way_is_that_of_trying_all() -> None:
    costs = torch.full((7, 8), math.inf, dtype=torch.float64)
    for i, j in itertools.combinations(range(8), 2):
        costs[i, j] = torch.rand((), generator=torch.Generator().manual_seed(10 * i + j))

    def cost(nodes: tuple[int, ...]) -> float:
        ends = [*nodes[1:], 7]
        weights = [LATE ** (len(nodes) - 1 - place) for place in range(len(nodes))]
        return sum(w * float(costs[a, b]) for w, a, b in zip(weights, nodes, ends, strict=True))

    for count in (2, 3, 4):
        ways = cheapest(costs, count)
        for first in (0, 2):
            every = [(first, *rest) for rest in itertools.combinations(range(first + 1, 7), count - 1)]
            assert ways.from_node(first) == min(every, key=cost)
            assert float(ways.cost[count][first]) == pytest.approx(min(map(cost, every)))


def test_nodes_are_moved_between_their_neighbours_alone() -> None:
    grid = Grid((0, 3, 5), skips=False, analytic=False)
    assert grid.moved(1, 1, 9) == Grid((0, 4, 5), skips=False, analytic=False)
    assert grid.moved(1, 2, 9) is None
    assert grid.moved(2, 5, 9) is None
    assert grid.moved(0, 1, 9) is None  # a path that begins in noise begins at t_max
    assert Grid((2, 3, 5), skips=True, analytic=False).moved(0, -1, 9) == Grid((1, 3, 5), skips=True, analytic=False)


def test_even_nodes_reach_from_end_to_end() -> None:
    assert spread_between(0, 9, 4) == (0, 3, 6, 9)


# --- the command ----------------------------------------------------------------------------------------------------


def test_a_grid_is_found_kept_and_used(command: Command, with_moments: Path) -> None:
    asked = (f"ckpt={with_moments}", "sampler=ipndm", "sampler.steps=3")
    found = command("tune", *asked, *FEW)
    assert found.code == 0, found.err
    path = with_moments / "grids" / "ipndm-3.json"
    grid = json.loads(path.read_text())
    errors = grid["errors"]
    assert set(errors) == {"uniform", "karras", "logsnr", "found"}
    assert errors["found"] < min(errors["uniform"], errors["karras"], errors["logsnr"])
    assert "sampler.spacing=tuned guidance=1\n" in found.out
    assert "8 of 8 grids" in found.out
    calls = len(grid["sigmas"]) - (grid["first_step"] == "analytic")
    assert calls == 3
    drawn = command("sample", *asked, "sampler.spacing=tuned", "n=4", "guidance=1", "out=a")
    assert drawn.code == 0, drawn.err
    assert "NFE 3" in drawn.out
    assert not drawn.err
    again = command("sample", *asked, f"sampler.spacing={path}", "n=4", "guidance=1", "out=b")
    assert again.code == 0, again.err
    shown = [Image.open(f"{folder}/grid.png").tobytes() for folder in "ab"]  # beside them stands what was asked
    assert shown[0] == shown[1]


def test_a_grid_is_found_without_moments(command: Command, tiny_run: Path) -> None:
    found = command("tune", f"ckpt={tiny_run}", "sampler=deis", "sampler.steps=2", "out=g", *FEW)
    assert found.code == 0, found.err
    grid = json.loads(Path("g/deis-2.json").read_text())
    assert grid["skip_to"] is None
    assert not (tiny_run / "grids").exists()


def test_what_a_grid_was_found_for_is_told_where_it_is_not(command: Command, with_moments: Path) -> None:
    """It is drawn by all the same: it may still be the best there is."""
    asked = (f"ckpt={with_moments}", "sampler.steps=2", "n=2")
    assert command("tune", f"ckpt={with_moments}", "sampler=deis", "sampler.steps=2", "out=g", *FEW).code == 0
    here = ("sampler.spacing=g/deis-2.json", "overwrite=true", "out=o")
    drawn = command("sample", *asked, "sampler=lms", "guidance=2", *here)
    assert drawn.code == 0
    assert "was found for sampler=deis, guidance=1.0, and this is sampler=lms, guidance=2.0" in drawn.err
    path = Path("g/deis-2.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "images_seen": 64}))
    drawn = command("sample", *asked, "sampler=deis", "guidance=1", *here)
    assert "was found for images_seen=64, and this is images_seen=128: it may be worth less here" in drawn.err
    path.write_text(json.dumps({**json.loads(path.read_text()), "images_seen": 128}))
    assert not command("sample", *asked, "sampler=deis", "guidance=1", *here).err


def test_nothing_is_overwritten(command: Command, tiny_run: Path) -> None:
    Path("g").mkdir()
    Path("g/deis-2.json").write_text("mine")
    refused = command("tune", f"ckpt={tiny_run}", "sampler=deis", "sampler.steps=2", "out=g", *FEW)
    assert refused.code == 2
    assert "overwrite=true" in refused.err
    assert Path("g/deis-2.json").read_text() == "mine"


WRONG = {
    "sampler=ancestral": "choose one of [ddim, deis, dpm2,",
    "sampler=ddim sampler.eta=1": "does not follow the path of the ODE",
    "sampler=heun sampler.s_churn=10": "does not follow the path of the ODE",
    "sampler=mean_flow sampler.steps=2": "sampler=mean_flow does not follow the path of the ODE",
    "sampler=ipndm sampler.steps=50": "sampler.steps=50 must be in [2, 32]",
    "sampler=ipndm sampler.steps=1": "sampler.steps=1 must be in [2, 32]",
    "sampler=ipndm sampler.steps=3 sampler.skip_to=5": "task=grid finds sampler.skip_to: leave out what is to be found",
    "sampler=ipndm sampler.steps=3 tune.n=0": "task.n=0 must be in [1, 16384]",
    "task=gird": "choose one of [covariance, grid, neon]",
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_cannot_be_found_is_one_sentence(command: Command, tiny_run: Path, wrong: str) -> None:
    refused = command("tune", f"ckpt={tiny_run}", "guidance=1", *wrong.split())
    assert refused.code == 2
    assert WRONG[wrong] in refused.err
    assert "tune.sampler" not in refused.err
    assert refused.err.count("\n") == 1


# --- grids that do not fit --------------------------------------------------------------------------------------------


SOUND = {"format": 1, "schedule": {"name": "ve"}, "sigmas": [5.0, 1.0], "skip_to": None, "first_step": "network"}

BROKEN = {
    "no json": "{",
    "another format": json.dumps({**SOUND, "format": 2}),
    "no levels": json.dumps({**SOUND, "sigmas": []}),
    "text": json.dumps({**SOUND, "sigmas": ["5", "1"]}),
    "not finite": json.dumps({**SOUND, "sigmas": [math.inf, 1.0]}),
    "negative": json.dumps({**SOUND, "sigmas": [5.0, -1.0]}),
    "no schedule": json.dumps({key: value for key, value in SOUND.items() if key != "schedule"}),
    "a huge number": '{"format": 1, "schedule": {}, "sigmas": [1'
    + "0" * 400
    + ', 1], "skip_to": null, "first_step": "network"}',
    "a word": json.dumps({**SOUND, "first_step": "mine"}),
    "a list": "[1]",
    "deep": "[" * 100_000,
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_a_broken_grid_is_one_sentence(command: Command, tiny_run: Path, text: str) -> None:
    Path("grid.json").write_text(text)
    refused = command("sample", f"ckpt={tiny_run}", "sampler=ipndm", "sampler.spacing=grid.json", "n=1", "out=o")
    assert refused.code == 2
    assert "grid.json is no grid that diffgen-tune wrote" in refused.err


def test_a_grid_of_another_schedule_is_refused(command: Command, tiny_run: Path) -> None:
    Path("grid.json").write_text(json.dumps({**SOUND, "schedule": {"name": "ve", "sigma_min": 0.002}}))
    refused = command("sample", f"ckpt={tiny_run}", "sampler=ipndm", "sampler.spacing=grid.json", "n=1", "out=o")
    assert refused.code == 2
    assert "was found for another schedule, ve sigma_min=0.002, and ckpt has rectified_flow" in refused.err
    assert not Path("o").exists()


def test_a_grid_that_was_not_found_yet_is_told_how(command: Command, tiny_run: Path) -> None:
    refused = command("sample", f"ckpt={tiny_run}", "sampler=ipndm", "sampler.steps=9", "sampler.spacing=tuned", "n=1")
    assert refused.code == 2
    assert f"diffgen-tune ckpt={tiny_run} sampler=ipndm sampler.steps=9 makes it" in refused.err


def test_a_grid_beside_settings_that_it_replaces_is_refused(command: Command, tiny_run: Path) -> None:
    Path("grid.json").write_text(json.dumps({**SOUND, "schedule": checkpoint.load(tiny_run).config["schedule"]}))
    asked = ("sample", f"ckpt={tiny_run}", "sampler=ipndm", "sampler.spacing=grid.json", "n=1", "out=o")
    refused = command(*asked, "sampler.skip_to=3")
    assert refused.code == 2
    assert "leave out sampler.skip_to" in refused.err
    assert command(*asked).code == 0


def test_where_a_grid_is_kept() -> None:
    inside = Path("/runs/A/checkpoints/00000128/model.safetensors")
    assert grid_file.place(inside, "ipndm", 6) == Path("/runs/A/grids/ipndm-6.json")
    assert grid_file.place(Path("/b/model.safetensors"), "ipndm", 6) == Path("/b/grids/ipndm-6.json")
