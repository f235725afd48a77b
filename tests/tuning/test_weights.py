"""Weights of past estimates: exact where one is enough, fitted as a library fits them, kept in the grid, refused elsewhere."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import SCHEDULE_NAMES, grid, sampler, schedule
from gmm import noises
from pretend import Pretended
from test_grids import SOUND

from diffgen.cli.configs import compose_group
from diffgen.core.errors import UsageError
from diffgen.diffusion.gaussian import Gaussian
from diffgen.diffusion.samplers.steps import Level, level, steps
from diffgen.objectives.denoise import Denoise
from diffgen.sampling.walk import make_sampler
from diffgen.storage import checkpoint
from diffgen.storage.formats import in_todays_words
from diffgen.tuning.search import Fitting, least_squares

Command = Callable[..., Any]

DATA = Gaussian.isotropic(0.7)
NONE = torch.full((5,), -1)


def path(name: str, count: int, seed: int) -> tuple[Any, Any, torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """A schedule, its best denoiser of isotropic data, a grid, noise at its start, and the exact states at its ends."""
    s = schedule(name)
    ts = grid(s, count)
    z = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    x = float(s.sigma(ts[0])) * z
    walk = list(steps(s, ts))
    ends = [then if then.sigma else Level(then.t, 1.0, 0.0) for _, _, then in walk]
    targets = [DATA.carried(x, NONE, walk[0][1], end) for end in ends]
    return s, lambda x, t: DATA.denoise(x, NONE, level(s, t)), ts, x, targets


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_isotropic_gaussian_data_are_followed_exactly(name: str) -> None:
    """All z_hat of an example are then multiples of each other: one weight a step is all that the exact path needs."""
    s, denoise, ts, x, targets = path(name, 3, 0)
    fitting = Fitting(targets)
    drawn = fitting(denoise, s, x, ts, noises(x))
    assert (drawn - targets[-1]).abs().max() < 1e-4
    plain = sampler("ipndm")(denoise, s, x, ts, noises(x))
    assert (plain - targets[-1]).abs().max() > 1e-2
    rows = tuple(map(tuple, fitting.weights(3)))
    _, _, _, others, theirs = path(name, 3, 1)
    fresh = sampler("ipndm", weights=rows)(denoise, s, others, ts, noises(x))
    assert (fresh - theirs[-1]).abs().max() < 1e-4


def test_those_of_adams_and_bashforth_are_ipndm() -> None:
    s, denoise, ts, x, _ = path("ve", 4, 0)
    plain = sampler("ipndm", order=2)(denoise, s, x, ts, noises(x))
    rows = ((1.0,), (1.5, -0.5), (1.5, -0.5, 0.0), (1.0, 0.0, 0.0, 0.0))  # the step to data is Euler's
    torch.testing.assert_close(sampler("ipndm", weights=rows)(denoise, s, x, ts, noises(x)), plain)


def test_they_are_those_of_a_library() -> None:
    parts = list(torch.randn(3, 40, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64))
    wanted = torch.randn(40, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    columns = torch.stack([part.flatten() for part in parts], 1)
    theirs = torch.linalg.lstsq(columns, wanted.reshape(-1, 1)).solution.flatten()
    torch.testing.assert_close(torch.tensor(least_squares(parts, wanted)).double(), theirs, rtol=1e-4, atol=1e-5)


def test_a_device_without_float64_has_them_too() -> None:
    """Where MPS is pretended, float64 there is an error."""
    parts = [torch.randn(6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)]
    with Pretended(torch.device("mps")):
        theirs = least_squares([part.to("mps") for part in parts], (parts[0] - parts[1]).to("mps"))
    assert theirs == least_squares(parts, parts[0] - parts[1])


def test_wrong_rows_are_told_before_a_run_begins() -> None:
    """And not by its first preview."""
    s, config = schedule("ve"), compose_group("sampler", "ipndm")
    make_sampler({**config, "steps": 2, "weights": [[1.0], [1.5, -0.5]]}, s, Denoise())
    for count in (1, 6):
        with pytest.raises(
            UsageError, match=f"sampler.weights are for 2 steps from noise to data, and here are {count}"
        ):
            make_sampler({**config, "steps": count, "weights": [[1.0], [1.5, -0.5]]}, s, Denoise())


def test_wrong_rows_are_refused() -> None:
    s, denoise, ts, x, _ = path("ve", 3, 0)
    with pytest.raises(UsageError, match="sampler.weights are for 2 steps from noise to data, and here are 3"):
        sampler("ipndm", weights=((1.0,), (1.5, -0.5)))(denoise, s, x, ts, noises(x))
    with pytest.raises(UsageError, match="a row for each step: one weight, then two, and so on"):
        sampler("ipndm", weights=((1.0,), (1.0,), (1.0,)))(denoise, s, x, ts, noises(x))


def test_a_grid_brings_them(command: Command, fit: Callable[..., Path], tmp_path: Path) -> None:
    run = fit(tmp_path / "run", "train.covariance=true")
    asked = (f"ckpt={run}", "sampler=ipndm", "sampler.steps=3", "guidance=1")
    assert command("tune", *asked, "tune.n=4").code == 0
    kept = run / "grids" / "ipndm-3.json"
    found = json.loads(kept.read_text())
    assert [len(row) for row in found["weights"]] == list(range(1, len(found["sigmas"]) + 1))
    other = command("sample", f"ckpt={run}", "sampler=deis", f"sampler.spacing={kept}", "n=1", "out=o")
    assert other.code == 2
    assert "holds weights of sampler=ipndm, and this is deis" in other.err
    twice = command("sample", *asked, "sampler.spacing=tuned", "sampler.weights=[[1.0]]", "n=1", "out=o")
    assert twice.code == 2
    assert "leave out sampler.weights" in twice.err
    drawn = command("sample", *asked, "sampler.spacing=tuned", "n=1", "save=png", "out=a")
    assert drawn.code == 0, drawn.err
    begun = command("sample", *asked, "sampler.spacing=tuned", "task=interpolate", "task.seeds=[1,2]", "n=2", "out=b")
    assert begun.code == 2
    assert "sampler.weights" in begun.err


@pytest.mark.parametrize("rows", [[[1.0]], [[1.0], [1.0]], [[1.0], ["1", 2]], [[1.0], [1e9, 1.0]], "none", [1.0, 2.0]])
def test_broken_weights_are_one_sentence(command: Command, tiny_run: Path, rows: object) -> None:
    known = {**SOUND, "schedule": checkpoint.load(tiny_run).config["schedule"], "sampler": "ipndm", "weights": rows}
    Path("grid.json").write_text(json.dumps(known))
    refused = command("sample", f"ckpt={tiny_run}", "sampler=ipndm", "sampler.spacing=grid.json", "n=1", "out=o")
    assert refused.code == 2
    assert "grid.json is no grid that diffgen-tune wrote" in refused.err


def test_an_earlier_checkpoint_has_none() -> None:
    assert in_todays_words({"sampler": {"name": "ipndm", "sigmas": None}})["sampler"]["weights"] is None
    assert "weights" not in in_todays_words({"sampler": {"name": "heun", "sigmas": None}})["sampler"]
