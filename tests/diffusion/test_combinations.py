"""Every schedule with every parameterization and sampler, in reduced form; `scripts/combinations.py` does all of them."""

import sys

import pytest
from cases import CONFIGS, SCHEDULE_NAMES, schedule, singular

from diffgen.core.errors import UsageError
from diffgen.diffusion.parameterizations import PARAMETERIZATIONS

sys.path.insert(0, str(CONFIGS.parent / "scripts"))

import combinations as script

PAIRS = [(name, target) for name in SCHEDULE_NAMES for target in sorted(PARAMETERIZATIONS)]


@pytest.mark.parametrize(("name", "target"), PAIRS)
def test_every_pair_converges_or_is_refused(name, target):
    if singular(target, schedule(name)):
        with pytest.raises(UsageError, match=f"parameterization={target} is singular"):
            script.error(schedule(name), target, "unipc")
        assert script.error(script.clipped(name), target, "unipc") < script.limit("unipc")
    else:
        assert script.error(schedule(name), target, "unipc") < script.limit("unipc")


@pytest.mark.parametrize("sampler", script.WALKERS)
def test_every_sampler_converges_through_a_real_denoiser(sampler):
    assert script.error(schedule("rectified_flow"), "flow", sampler) < script.limit(sampler)


def test_the_script_would_notice(monkeypatch):
    """A network that outputs something else is far off."""
    monkeypatch.setattr(script.ExactNetwork, "__call__", lambda self, x, noise_cond, label: x)
    assert script.error(schedule("vp_linear"), "eps", "unipc") > 0.1


def test_the_document_is_of_these_tables():
    text = (CONFIGS.parent / "docs" / "combinations.md").read_text()
    header = next(line for line in text.splitlines() if line.startswith("| schedule"))
    assert [cell.strip() for cell in header.strip("|").split("|")][2:] == script.WALKERS
    for name, target in PAIRS:
        assert f"| {name} | {target} |" in text or f"| {name}* | {target} |" in text
    assert sum(line.startswith("| ") for line in text.splitlines()) == len(PAIRS) + 1
