"""Parts of a user's own, from a file named on the command line."""

import subprocess
from collections.abc import Callable
from pathlib import Path

SCHEDULE = """
from dataclasses import dataclass
import torch
from diffgen.diffusion.schedules import SCHEDULES, Continuous

@SCHEDULES.register("cubic")
@dataclass(frozen=True, kw_only=True)
class Cubic(Continuous):
    t_min: float = 0.05
    t_max: float = 1.0

    def alpha(self, t):
        return 1 - t**3

    def sigma(self, t):
        return t**3

    def time_at(self, nsr):
        return torch.where(nsr.isinf(), 1.0, nsr / (1 + nsr)) ** (1 / 3)
"""

SAMPLER = """
from diffgen.diffusion.samplers import SAMPLERS
from diffgen.diffusion.samplers.steps import steps, z_hat

@SAMPLERS.register("quiet_euler")
def quiet_euler(denoise, schedule, x, ts, noise, *, shrink: float = 0.9):
    for _, now, then in steps(schedule, ts):
        x0_hat = denoise(x, now.t)
        x = then.alpha * x0_hat + shrink * then.sigma * z_hat(x, x0_hat, now)
    return x
"""


def test_a_schedule_and_a_sampler_of_ones_own(
    python: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path, tiny: list[str]
) -> None:
    (tmp_path / "cubic.py").write_text(SCHEDULE)
    (tmp_path / "quiet.py").write_text(SAMPLER)
    both = "plugins=[cubic.py,quiet]"  # a file, and a module of the working folder
    run = [
        *tiny,
        both,
        "schedule=cubic",
        "schedule.t_min=0.04",
        "sampler=quiet_euler",
        "sampler.steps=3",
        "run_dir=run",
    ]
    trained = python("-m", "diffgen.cli.train", *run)
    assert trained.returncode == 0, trained.stderr
    assert "cubic + flow" in trained.stdout
    assert "quiet_euler in 3 steps" in trained.stdout
    sampled = python(
        "-m", "diffgen.cli.sample", both, "ckpt=run", "n=2", "sampler.shrink=0.5", "sampler=quiet_euler", "out=s"
    )
    assert sampled.returncode == 0, sampled.stderr
    assert "shrink 0.5" in sampled.stdout


def test_a_checkpoint_cannot_ask_for_a_plugin(
    python: Callable[..., "subprocess.CompletedProcess[str]"], tmp_path: Path, tiny: list[str]
) -> None:
    (tmp_path / "cubic.py").write_text(SCHEDULE)
    run = [*tiny, "plugins=[cubic.py]", "schedule=cubic", "train.images=16", "run_dir=run"]
    assert python("-m", "diffgen.cli.train", *run).returncode == 0
    refused = python("-m", "diffgen.cli.sample", "ckpt=run", "out=s")
    assert refused.returncode == 4
    assert "schedule.name='cubic' is unknown" in refused.stderr


def test_plugins_that_fail_are_told(command: Callable, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    assert command("train", "plugins=[broken.py]").code == 2
    missing = command("train", "plugins=[no_such_module]")
    assert missing.code == 2
    assert "plugins: no_such_module cannot be imported" in missing.err
