"""A sampler that is asked for beside a preset."""

import pytest

from diffgen.cli.brought import with_brought
from diffgen.cli.compose import train_config
from diffgen.cli.configs import compose_group
from diffgen.core.errors import UsageError


@pytest.mark.parametrize(
    "preset", ["method=flow_tiny", "method=flow_small", "experiment=digits_minute", "experiment=cifar10_ddpm"]
)
def test_a_sampler_that_is_asked_for_is_as_its_file_says(preset: str) -> None:
    """The preset's steps, eta or variance were for its own."""
    assert train_config([preset, "sampler=euler"])["sampler"] == compose_group("sampler", "euler")
    assert train_config([preset, "sampler=euler", "sampler.steps=7"])["sampler"]["steps"] == 7


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["method=flow_tiny"], {"name": "dpmpp_2m_sde", "steps": 20, "eta": 2.0}),
        (["method=flow_tiny", "sampler=dpmpp_2m_sde"], {"steps": 20, "eta": 2.0}),
        (["experiment=digits_minute", "method=edm", "sampler=euler"], {"steps": 50}),
        (["experiment=cifar10_jit"], {"name": "heun", "steps": 50}),
        (["dataset=points", "sampler=euler"], {"steps": 50, "clip": False}),  # for the data, whatever the sampler
    ],
)
def test_other_settings_stay(given: list[str], kept: dict[str, object]) -> None:
    """Those of the sampler that was named, and what a data set needs."""
    assert kept.items() <= train_config(given)["sampler"].items()


def test_jobs_of_a_sweep_that_would_differ() -> None:
    """All jobs have the same overrides beside the swept one."""
    for sweep in (["method=flow_tiny,flow", "sampler=heun"], ["method=flow_tiny", "sampler=heun,euler"]):
        with pytest.raises(UsageError, match="undoes settings of a preset in some jobs of a sweep, or differs in them"):
            with_brought(sweep)
    assert with_brought(["method=flow,edm", "sampler=heun,euler"]) == ["method=flow,edm", "sampler=heun,euler"]
    assert with_brought(["method=flow_tiny", "sampler=mine"]) == ["method=flow_tiny", "sampler=mine"]  # of a plugin
