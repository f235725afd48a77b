"""Every row keeps the contract of its table: with the settings of each YAML file, and of the plugins in docs/examples."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import contracts
import pytest
import torch
from cases import CONFIGS, config

from diffgen.build import make_weighting
from diffgen.cli import plugins
from diffgen.core.registry import bind, build
from diffgen.data.digits import digits
from diffgen.data.splits import Splits
from diffgen.diffusion.samplers.mean_flow import JUMPERS
from diffgen.diffusion.samplers.prior import PRIORS
from diffgen.diffusion.samplers.steps import SAMPLERS, Facts, steps
from diffgen.diffusion.samplers.unmasking import UNMASKERS
from diffgen.nets import AUTOENCODERS, DataShape
from diffgen.sampling.walk import sampler_settings
from diffgen.tables import TABLES

EXAMPLES = CONFIGS.parent / "docs" / "examples"
Settings = dict[str, Any]


def check_sampler(settings: Settings) -> None:
    if settings["name"] in UNMASKERS:
        return contracts.check_unmasker(bind(UNMASKERS, settings))
    if settings["name"] in PRIORS:
        return contracts.check_prior(bind(PRIORS, settings))
    own, _, _ = sampler_settings(settings)
    if settings["name"] in JUMPERS:
        return contracts.check_jumper(bind(JUMPERS, own), JUMPERS.facts[settings["name"]])
    contracts.check_sampler(bind(SAMPLERS, own), SAMPLERS.facts[settings["name"]])


def check_extractor(settings: Settings) -> None:
    data = digits(split="test")
    made = build(TABLES["extractor"], settings, Splits.of(data, data), Path(), torch.device("cpu"))
    contracts.check_extractor(made, settings["name"], data.pixels[:20])


def check_model(settings: Settings) -> None:
    """Narrow, which is as much of a network and takes no time; the widths of the YAML files are in test_registry."""
    most = {"channels": 32, "width": 32, "depth": 2, "heads": 4}
    narrow = {key: min(n, settings[key]) for key, n in most.items() if key in settings}
    if settings["name"] in AUTOENCODERS:
        return contracts.check_autoencoder(lambda shape: build(TABLES["model"], {**settings, **narrow}, shape))
    shape = replace(contracts.SHAPE, size=(3, 4, 16, 16)) if settings.get("patch_time") else contracts.SHAPE
    contracts.check_model(lambda shape: build(TABLES["model"], {**settings, **narrow}, shape), shape)


CHECKS: dict[str, Callable[[Settings], None]] = {
    "schedule": lambda settings: contracts.check_schedule(build(TABLES["schedule"], settings)),
    "parameterization": lambda settings: contracts.check_parameterization(bind(TABLES["parameterization"], settings)),
    "weighting": lambda settings: contracts.check_weighting(make_weighting({"weighting": settings})),
    "time": lambda settings: contracts.check_time(bind(TABLES["time"], settings)),
    "sampler": check_sampler,
    "model": check_model,
    "extractor": check_extractor,
}
"""By group. Extractors that diffgen ships train or need a file first: tests/evaluation has these."""

SHIPPED = [
    (group, path.stem)
    for group in CHECKS
    for path in sorted((CONFIGS / group).glob("*.yaml"))
    if group != "extractor" and path.stem != "auto"
]


@pytest.mark.parametrize(("group", "name"), SHIPPED)
def test_a_row_keeps_its_contract(group: str, name: str) -> None:
    CHECKS[group](config(group, name))


@pytest.mark.usefixtures("plugged")
@pytest.mark.parametrize("group", CHECKS)
def test_a_row_of_a_plugin_keeps_its_contract(group: str) -> None:
    """With the defaults of its signature, and no list here, in scripts or in documents names it."""
    (row,) = plugins.load([str(EXAMPLES / f"{group}.py")])[group]
    own = plugins.signature_defaults(TABLES[group][row])
    settings = {"name": row, **plugins.shared_keys(TABLES[group], own), **own}
    CHECKS[group](settings)


# --- contracts that are not kept ------------------------------------------------------------------------------------


def refused(check: Callable[[], None]) -> str:
    """What is said of a contract that is not kept."""
    try:
        check()
    except AssertionError as error:
        return str(error)
    return ""


def euler(
    denoise: Any, schedule: Any, x: Any, ts: Any, noise: Any, *, twice: bool = False, shaken: bool = False
) -> Any:
    """Euler's method, with more calls or noise that comes to nothing."""
    for i, now, then in steps(schedule, ts):
        x0_hat = denoise(x, now.t)
        if twice and then.sigma:
            denoise(x, now.t)
        keep = then.sigma / now.sigma
        x = keep * x + (then.alpha - keep * now.alpha) * x0_hat + (0 * noise(i) if shaken else 0)
    return x


@pytest.mark.parametrize(
    ("options", "facts", "sentence"),
    [
        ({}, Facts(order=1), ""),
        ({"twice": True}, Facts(order=1, calls=2), ""),
        ({"shaken": True}, Facts(noise=True), ""),
        ({}, Facts(order=2), "declares 2"),
        ({"twice": True}, Facts(order=1), "19 calls in 10 steps"),
        ({"shaken": True}, Facts(order=1), "asks for noise 10 times"),
        ({}, Facts(noise=True), "asks for noise 0 times"),
    ],
)
def test_a_sampler_that_declares_wrongly_is_seen(options: Settings, facts: Facts, sentence: str) -> None:
    said = refused(lambda: contracts.check_sampler(lambda *args: euler(*args, **options), facts))
    assert sentence in said and bool(said) == bool(sentence)


class Half(torch.nn.Module):
    """A network with a layer that it does not use, and without an ear for labels."""

    def __init__(self, shape: DataShape, *, idle: bool) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(()))
        self.unused = torch.nn.Linear(2, 2) if idle else None

    def forward(self, x: Any, condition: Any, label: Any, augment: Any = None) -> Any:
        return x * (self.gain + condition[:, None, None, None])


@pytest.mark.parametrize(
    ("idle", "sentence"), [(True, "no gradient reaches"), (False, "the label makes no difference")]
)
def test_a_network_that_does_not_learn_or_listen_is_seen(idle: bool, sentence: str) -> None:
    assert sentence in refused(lambda: contracts.check_model(lambda shape: Half(shape, idle=idle)))


def test_other_rows_that_break_their_contract_are_seen() -> None:
    ones = torch.ones_like
    assert "singular somewhere" in refused(lambda: contracts.check_parameterization(lambda a, s, d: (ones(a), ones(a))))
    assert "not positive" in refused(lambda: contracts.check_weighting(lambda alpha, sigma, c_out: sigma * 0))
    assert "not finite" in refused(lambda: contracts.check_weighting(lambda alpha, sigma, c_out: sigma / alpha))
    assert "does not rise" in refused(lambda: contracts.check_time(lambda u, schedule: 1 - u))
