"""Which schedule, parameterization and sampler go together: run all of them and write docs/combinations.md.

    python scripts/combinations.py

Each runs with its YAML settings on Gaussian-mixture data, with a network that outputs the exact target, so that what is
measured is the combination and nothing else. ODE samplers are compared with the solution of the ODE, samplers that add
noise with the mean and covariance of the data. What does not fit is refused by a sentence, which the table repeats.
"""

import sys
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from diffgen.core.errors import UsageError
from diffgen.core.files import write_atomically
from diffgen.core.registry import bind
from diffgen.diffusion.denoiser import Denoiser
from diffgen.diffusion.parameterizations import PARAMETERIZATIONS
from diffgen.diffusion.samplers import SAMPLERS, Denoise
from diffgen.diffusion.schedules import SCHEDULES, Schedule

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from cases import grid, sampler, schedule  # noqa: E402
from gmm import mixture, noises, start  # noqa: E402

DATA = mixture()

WALKERS = sorted(set(SAMPLERS) - {"consistency"})
"""Samplers of E[x0 | x_t]: the other one takes what it is told for the end of the ODE, and has tests of its own."""


class ExactNetwork:
    """Outputs F = a E[x0 | x] + b E[z | x]; it is told the time, which real networks read off `noise_cond`."""

    def __init__(self) -> None:
        self.t = torch.tensor(0.0)
        self.denoiser: Denoiser | None = None

    def __call__(self, x_in: Tensor, noise_cond: Tensor, label: Tensor) -> Tensor:
        """x_in [B, 2, 1, 1] -> F."""
        assert self.denoiser is not None
        alpha, sigma, a, b, _ = self.denoiser.coefficients(self.t)
        x = x_in.double().flatten(1) * torch.hypot(alpha * self.denoiser.sigma_data, sigma)
        x0_hat = DATA.posterior_mean(x, alpha, sigma)
        return (a * x0_hat + b * (x - alpha * x0_hat) / sigma)[..., None, None]


def exact_denoise(s: Schedule, target: str) -> Denoise:
    """x0_hat through a denoiser that predicts `target`.

    Raises:
        UsageError: They do not fit.
    """
    network = ExactNetwork()
    denoiser = Denoiser(network, s, bind(PARAMETERIZATIONS, {"name": target}), sigma_data=0.5, scale_input=True)
    network.denoiser = denoiser

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        network.t = t
        label = torch.full((len(x),), -1)
        return denoiser(x[..., None, None], t.expand(len(x)), label)[..., 0, 0]

    return denoise


def clipped(name: str) -> Schedule:
    """The schedule, ending before alpha = 0: what eps needs."""
    return schedule(name, t_max=0.999)


@cache
def solution(s: Schedule) -> Tensor:
    """What ODE samplers should find from the starting noise of 64 points."""
    ts = grid(s, 2, sigma_max=1e3)
    x = start(s, ts, 64)
    return sampler("ode", rtol=1e-9, atol=1e-9)(DATA.denoise(s), s, x, ts, noises(x))


def error(s: Schedule, target: str, name: str) -> float:
    """Root mean square distance to the solution, or for noisy samplers the largest error of mean and covariance.

    Raises:
        UsageError: They do not fit.
    """
    denoise = exact_denoise(s, target)
    if SAMPLERS.facts[name].noise:
        ts = grid(s, 150, "karras")
        x = start(s, ts, 4000)
        x = sampler(name)(denoise, s, x, ts, noises(x))
        return max(float((x.mean(0) - DATA.mean()).abs().max()), float((x.T.cov() - DATA.cov()).abs().max()))
    ts = grid(s, 2 if SAMPLERS.facts[name].calls is None else 101, sigma_max=1e3)
    x = start(s, ts, 64)
    x = sampler(name)(denoise, s, x, ts, noises(x))
    return float((x - solution(s)).square().mean().sqrt())  # type: ignore[arg-type]


def limit(name: str) -> float:
    """Largest error that counts as converged; the data has a standard deviation of about 0.5."""
    facts = SAMPLERS.facts[name]
    return 0.05 if facts.noise else 0.03 if facts.order == 1 else 0.002


def row(name: str, target: str, samplers: list[str]) -> tuple[list[float], str]:
    """Errors of one schedule and parameterization, and the sentence if they are refused."""
    try:
        return [error(schedule(name), target, each) for each in samplers], ""
    except UsageError as refusal:
        return [error(clipped(name), target, each) for each in samplers], str(refusal)


def table() -> str:
    """The document."""
    samplers = WALKERS
    lines = [
        "# What goes with what",
        "",
        "Written by `python scripts/combinations.py`; see there for what is measured. Numbers are errors in units of",
        "the data (standard deviation about 0.5) after 100 steps of equal log SNR, 150 Karras steps for samplers with",
        "noise. With noise, about 0.02 is the statistical error of 4000 samples.",
        "",
        "| schedule | parameterization | " + " | ".join(samplers) + " |",
        "|" + "---|" * (len(samplers) + 2),
    ]
    refusals: dict[str, str] = {}
    for name in sorted(SCHEDULES):
        for target in sorted(PARAMETERIZATIONS):
            errors, refusal = row(name, target, samplers)
            failed = [each for each, e in zip(samplers, errors, strict=True) if not e < limit(each)]
            if failed:
                raise SystemExit(f"{name} with {target} does not converge: {failed}, errors {errors}")
            mark = "*" if refusal else ""
            if refusal:
                refusals[f"{name} with {target}"] = refusal
            lines.append(f"| {name}{mark} | {target} | " + " | ".join(map(digits, errors)) + " |")
    lines += ["", "\\* refused with the schedule's own `t_max`, so measured at `schedule.t_max=0.999`:", ""]
    lines += [f'- {which}: "{sentence}"' for which, sentence in refusals.items()]
    return "\n".join(lines) + "\n"


def digits(number: float) -> str:
    """Two digits, as short as they go."""
    return f"{number:.2g}" if number >= 1e-3 else f"{number:.0e}".replace("e-0", "e-")


if __name__ == "__main__":
    write_atomically(ROOT / "docs" / "combinations.md", table())
