"""What a run of a sampler reports and decides: network calls, and whether to clip."""

import pytest
import torch
from cases import SCHEDULE_NAMES, config, finite, schedule, trained

from diffgen.core.errors import NonFiniteError, UsageError
from diffgen.diffusion.denoiser import Denoiser
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.parameterizations import PARAMETERIZATIONS
from diffgen.sampling.drawing import Sampling


def sampling(name, guidance=1.0, **changes):
    calls = []

    def model(x, noise_cond, label):
        calls.append(len(x))
        return x

    s = schedule("ve")
    denoiser = Denoiser(model, s, PARAMETERIZATIONS["edm"], sigma_data=0.5, scale_input=True)
    settings = {**config("sampler", name), **changes}
    run = Sampling.from_config(
        trained(denoiser, (1, 4, 4)), settings, guidance=Guidance(scale=guidance), seed=0, device=torch.device("cpu")
    )
    return run, calls


@pytest.mark.parametrize(
    ("name", "steps", "nfe"), [("heun", 18, 35), ("unipc", 10, 10), ("dpm2", 5, 9), ("ddim", 7, 7)]
)
def test_calls_are_counted_for_each_batch(name, steps, nfe):
    run, calls = sampling(name, steps=steps)
    for _ in range(2):
        calls.clear()
        run.draw([0, 1], [-1, -1])
        assert run.nfe == len(calls) == nfe


def test_guidance_calls_once_with_both_branches():
    run, calls = sampling("euler", guidance=2.0, steps=6)
    run.draw([0, 1, 2], [0, 1, 2])
    assert run.nfe == 6 and calls == [6] * 6


def test_adaptive_steps_are_counted():
    loose, _ = sampling("ode", rtol=1e-2, atol=1e-2)
    tight, calls = sampling("ode", rtol=1e-6, atol=1e-6)
    for run in (loose, tight):
        run.draw([0], [-1])
    assert 8 < loose.nfe < tight.nfe == len(calls)


def test_an_explicit_list_decides_the_number_of_steps():
    run, _ = sampling("ipndm", sigmas=[80.0, 10.9836, 3.8811, 1.584, 0.5666, 0.1698, 0.002])
    run.draw([0], [-1])
    assert run.nfe == 7  # the six of the published list, and the step to data
    with pytest.raises(UsageError, match=r"sampler\.sigmas=\[1\.0, 2\.0\] must fall"):
        sampling("ipndm", sigmas=[1.0, 2.0])


@pytest.mark.parametrize("name", ["eps", "x0", "v", "flow", "edm"])
@pytest.mark.parametrize("schedule_name", SCHEDULE_NAMES)
def test_clipping_is_automatic_where_the_network_predicts_eps(name, schedule_name):
    s = finite(schedule_name)
    denoiser = Denoiser(lambda x, *_: x, s, PARAMETERIZATIONS[name], sigma_data=0.5, scale_input=True)
    settings = {**config("sampler", "unipc"), "clip": "auto"}
    for clip, wanted in (("auto", name == "eps"), (True, True), (False, False)):
        settings["clip"] = clip
        run = Sampling.from_config(
            trained(denoiser), settings, guidance=Guidance(scale=1.0), seed=0, device=torch.device("cpu")
        )
        assert run.clip is wanted


def test_a_largest_sigma_below_the_smallest_is_refused():
    with pytest.raises(UsageError, match="sigma_max=1e-05 must be above sigma/alpha at t_min"):
        sampling("heun", spacing="karras", sigma_max=1e-5)


def test_samples_that_are_not_finite_are_told():
    s = schedule("rectified_flow")
    denoiser = Denoiser(lambda x, *_: x * float("nan"), s, PARAMETERIZATIONS["flow"], sigma_data=0.5, scale_input=False)
    run = Sampling.from_config(
        trained(denoiser, (1, 2, 2)),
        config("sampler", "euler"),
        guidance=Guidance(scale=1.0),
        seed=0,
        device=torch.device("cpu"),
    )
    with pytest.raises(NonFiniteError, match="not finite"):
        run.draw([0], [-1])
