"""A sampler that is asked for beside a preset."""

import pytest

from diffgen.cli.brought import with_brought
from diffgen.cli.compose import train_config
from diffgen.cli.configs import as_it_stands, compose_group, config_dir
from diffgen.core.errors import UsageError

PRESETS = [
    f"{group}={path.stem}"
    for group in ("method", "experiment")
    for path in sorted((config_dir() / group).glob("*.yaml"))
    if "sampler" in as_it_stands(group, path.stem) and path.stem not in ("reflow", "ect")  # which begin from a run
]


@pytest.mark.parametrize("preset", [*PRESETS, "experiment=digits_minute", "experiment=mnist_minutes"])
def test_a_sampler_that_is_asked_for_is_as_its_file_says(preset: str) -> None:
    """The preset's steps, eta or variance were for its own."""
    own = compose_group("sampler", "dpm2")
    for asked in ("sampler=dpm2", "sampler='dpm2'", 'sampler="dpm2"'):
        found = train_config([preset, asked])["sampler"]
        assert found | {"clip": own["clip"]} == own  # a recipe says whether its data have a range
    assert train_config([preset, "sampler=dpm2", "sampler.steps=7"])["sampler"]["steps"] == 7


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (["method=flow_tiny"], {"name": "dpmpp_2m_sde", "steps": 20, "eta": 2.0}),
        (["method=flow_tiny", "sampler=dpmpp_2m_sde"], {"steps": 20, "eta": 2.0}),
        (["experiment=digits_minute", "method=edm", "sampler=euler"], {"steps": 50}),
        (["experiment=cifar10_jit"], {"name": "heun", "steps": 50}),
        (["experiment=cifar10_ddpm"], {"name": "ancestral", "variance": "large", "steps": 1000}),
        (["experiment=cifar10_ddpm", "method=edm"], compose_group("sampler", "heun")),
        (["experiment=cifar10_ddpm", "method=flow_tiny"], {"name": "dpmpp_2m_sde", "steps": 20, "eta": 2.0}),
        (["experiment=mnist_minutes", "method=mean_flow"], {"name": "mean_flow", "steps": 1}),
        (["dataset=points", "sampler=euler"], {"steps": 50, "clip": False}),  # for the data, whatever the sampler
    ],
)
def test_other_settings_stay(given: list[str], kept: dict[str, object]) -> None:
    """Those of the sampler that was named, and what a data set needs."""
    assert kept.items() <= train_config(given)["sampler"].items()


def test_jobs_of_a_sweep_that_would_differ() -> None:
    """All jobs have the same overrides beside the swept one."""
    for sweep in (
        ["method=flow_tiny,flow", "sampler=heun"],
        ["method=flow_tiny", "sampler=heun,euler"],
        ["method=flow_tiny", "sampler=choice(heun,euler)"],
        ["method=flow_tiny", "sampler=glob(dpm*)"],
    ):
        with pytest.raises(UsageError, match="undoes settings of a preset in some jobs of a sweep, or differs in them"):
            with_brought(sweep)
    assert with_brought(["method=flow,edm", "sampler=heun,euler"]) == ["method=flow,edm", "sampler=heun,euler"]
    for nothing in (
        ["sampler=null"],
        ["sampler="],
        ["method=glob(ddpm*)", "sampler=heun"],
        ["experiment=glob(cifar10_d*)"],
    ):
        assert with_brought(nothing) == nothing
    assert with_brought(["method=flow_tiny", "sampler=mine"]) == ["method=flow_tiny", "sampler=mine"]  # of a plugin
