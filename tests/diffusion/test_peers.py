"""The same denoiser from the same noise through other libraries: diffusers and k-diffusion.

Both sides get the exact denoiser of a Gaussian mixture. diffusers keeps its tables and states in float32, so
agreement ends near 1e-6; k-diffusion follows the dtype it is given. Where a peer deviates, its test says how
and why we do not.

k-diffusion is not in the `dev` extra, because its package asks for much that its samplers do not need:
pip install --no-deps k-diffusion torchsde torchdiffeq trampoline
"""

import importlib.util
import math
import sys
import types

import pytest
import torch
from cases import grid, sampler, schedule
from gmm import mixture, noises, start

from diffgen.diffusion.samplers import exponential
from diffgen.diffusion.samplers.exponential import exact
from diffgen.diffusion.samplers.steps import phi, polynomial_weights

F64 = torch.float64
DATA = mixture()
STEPS = 20

diffusers = pytest.importorskip("diffusers")


@pytest.fixture(scope="module")
def k_diffusion():
    """k_diffusion.sampling alone: its package also imports evaluation code with heavy dependencies."""
    pytest.importorskip("torchsde")
    pytest.importorskip("torchdiffeq")
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        pytest.skip("k-diffusion is not installed")
    package = types.ModuleType("k_diffusion")
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules["k_diffusion"] = package
    yield importlib.import_module("k_diffusion.sampling")
    del sys.modules["k_diffusion"]


def relative(ours, theirs):
    return float((ours - theirs).norm() / theirs.norm())


# --- tables -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_terminal", [False, True])
def test_table_of_betas(zero_terminal):
    peer = diffusers.DDPMScheduler(beta_schedule="linear", rescale_betas_zero_snr=zero_terminal)
    s = schedule("ddpm_linear", zero_terminal_snr=zero_terminal)
    alpha_bar = s.alpha(torch.arange(1, 1001, dtype=F64) / 1000) ** 2
    assert torch.allclose(alpha_bar, peer.alphas_cumprod.double(), rtol=0, atol=1e-6)


def test_table_of_cosine():
    """Theirs is the discrete table with beta clipped at 0.999, which changes the last entry only."""
    peer = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    alpha_bar = schedule("cosine").alpha(torch.arange(1, 1001, dtype=F64) / 1000) ** 2
    assert torch.allclose(alpha_bar[:-1], peer.alphas_cumprod.double()[:-1], rtol=0, atol=1e-6)
    assert alpha_bar[-1] < 1e-30 < peer.alphas_cumprod[-1] < 1e-8


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_table_of_flow(shift):
    peer = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    s, t = schedule("rectified_flow", shift=shift), torch.arange(1000, 0, -1, dtype=F64) / 1000
    assert torch.allclose(s.sigma(t), peer.sigmas.double(), rtol=1e-6)
    assert torch.allclose(s.noise_cond(t), peer.timesteps.double(), rtol=1e-6)


def test_grid_of_karras(k_diffusion):
    ours = grid(schedule("ve"), 18, "karras")
    edm = diffusers.EDMEulerScheduler()
    edm.set_timesteps(18)
    assert torch.allclose(ours, edm.sigmas.double(), rtol=1e-6)
    assert torch.allclose(ours, k_diffusion.get_sigmas_karras(18, 0.002, 80.0).double(), rtol=1e-5)
    logarithmic = k_diffusion.get_sigmas_exponential(18, 0.002, 80.0).double()
    assert torch.allclose(grid(schedule("ve"), 18, "logsnr"), logarithmic, rtol=1e-5)


# --- diffusers: variance-preserving -------------------------------------------------------------------------


def walk(peer, x, **options):
    """A peer's trajectory on the betas of DDPM; it asks for eps at its integer timesteps."""
    s, peer_noise = schedule("ddpm_linear"), options.pop("noise", None)
    denoise = DATA.denoise(s)
    for i, timestep in enumerate(peer.timesteps):
        t = (timestep.double() + 1) / 1000
        eps = (x - s.alpha(t) * denoise(x, t)) / s.sigma(t)
        extra = {"variance_noise": peer_noise(i)} if peer_noise else {}
        x = peer.step(eps, timestep, x, **extra, **options).prev_sample
    return x


def nodes(peer, end=0.0):
    """The peer's timesteps on our clock, and where its last step ends."""
    return torch.cat([(peer.timesteps.double() + 1) / 1000, torch.tensor([end], dtype=F64)])


def against(peer, row, *, end=0.0, with_noise=False, **options):
    """Relative distance of the two ends."""
    peer.set_timesteps(STEPS)
    s, ts = schedule("ddpm_linear"), nodes(peer, end)
    x = start(s, ts, 64)
    noise = noises(x)
    theirs = walk(peer, x, **options, **({"noise": noise} if with_noise else {}))
    return relative(row(DATA.denoise(s), s, x, ts, noise), theirs)


@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm(variance, monkeypatch):
    """They add the noise of the large variance with beta of the skipped table, as we do."""
    draws = iter(range(STEPS))
    peer = diffusers.DDPMScheduler(clip_sample=False, variance_type=f"fixed_{variance}")
    like = torch.zeros(64, 2, dtype=F64)
    module = sys.modules[type(peer).__module__]
    monkeypatch.setattr(module, "randn_tensor", lambda *a, **k: noises(like)(next(draws)))
    assert against(peer, sampler("ancestral", variance=variance)) < 1e-5


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing"])
def test_ddim(eta, spacing):
    peer = diffusers.DDIMScheduler(clip_sample=False, timestep_spacing=spacing)
    assert against(peer, sampler("ddim", eta=eta), eta=eta, with_noise=True) < 1e-5


def test_dpmpp_2m():
    assert against(diffusers.DPMSolverMultistepScheduler(), sampler("dpmpp_2m")) < 1e-5


def test_dpmpp_2m_sde():
    peer = diffusers.DPMSolverMultistepScheduler(algorithm_type="sde-dpmsolver++")
    assert against(peer, sampler("dpmpp_2m_sde", eta=1.0), with_noise=True) < 1e-5


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("variant", ["bh1", "bh2"])
def test_unipc(order, variant):
    peer = diffusers.UniPCMultistepScheduler(solver_order=order, solver_type=variant, final_sigmas_type="sigma_min")
    assert against(peer, sampler("unipc", order=order, variant=variant), end=1 / 1000) < 1e-5


def test_unipc_to_data():
    """Theirs is not a number for bh1 in a step to sigma = 0, where it multiplies B(h) = -inf by 0; ours is
    x0_hat."""
    peer = diffusers.UniPCMultistepScheduler(solver_order=3, solver_type="bh2", final_sigmas_type="zero")
    assert against(peer, sampler("unipc", variant="bh2")) < 1e-5
    peer = diffusers.UniPCMultistepScheduler(solver_order=3, solver_type="bh1", final_sigmas_type="zero")
    assert math.isnan(against(peer, sampler("unipc", variant="bh1")))
    s = schedule("ddpm_linear")
    x = start(s, nodes(peer), 64)
    ours = sampler("unipc", variant="bh1")(DATA.denoise(s), s, x, nodes(peer), noises(x))
    assert ours.isfinite().all()


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order):
    """Its last step ends at the first entry of the table, not at data, so ours ends there too."""
    peer = diffusers.DEISMultistepScheduler(solver_order=order)
    assert against(peer, sampler("deis", order=order), end=1 / 1000) < 1e-5


# --- diffusers: others --------------------------------------------------------------------------------------


class Circle:
    """alpha = cos, sigma = sin of t pi / 2: the schedule that iPNDM's peer is written for, with its clock."""

    spacing, t_min, t_max = "uniform", 1e-3, 1.0

    def alpha(self, t):
        return torch.cos(t * math.pi / 2)

    def sigma(self, t):
        return torch.sin(t * math.pi / 2)


def test_ipndm():
    """The peer asks for v, and multiplies it out to eps.

    It deviates where alpha = 0: it divides (x - eps) = 0 by 1e-8, so that x0_hat counts as 0 in the first
    step, which ours does not. The grid here starts below. Its last step, to data, is not Euler's but
    extrapolates; ours ends before it.
    """
    t = torch.linspace(0.95, 0.02, STEPS + 1, dtype=F64)
    s, peer = Circle(), diffusers.IPNDMScheduler(trained_betas=Circle().sigma(t).tolist())
    peer.set_timesteps(STEPS)
    x = theirs = start(s, t, 64)
    for i in range(STEPS):
        alpha, sigma = s.alpha(t[i]), s.sigma(t[i])
        x0_hat = DATA.denoise(s)(theirs, t[i])
        v = alpha * (theirs - alpha * x0_hat) / sigma - sigma * x0_hat
        theirs = peer.step(v, peer.timesteps[i], theirs).prev_sample
    assert relative(sampler("ipndm", order=4)(DATA.denoise(s), s, x, t, noises(x)), theirs) < 1e-5


def test_ipndm_keeps_what_its_peer_drops_in_pure_noise():
    """One step from alpha = 0 with the exact denoiser: the mean of what is left must be alpha_s E[x0]."""
    t = torch.tensor([1.0, 0.6, 0.0], dtype=F64)
    s, peer = Circle(), diffusers.IPNDMScheduler(trained_betas=Circle().sigma(t).tolist())
    peer.set_timesteps(2)
    x = start(s, t, 20_000)
    x0_hat = DATA.denoise(s)(x, t[0])
    theirs = peer.step(-x0_hat, peer.timesteps[0], x).prev_sample
    ours = sampler("ipndm", order=4)(DATA.denoise(s), s, x, t[:2], noises(x))
    wanted = s.alpha(t[1]) * DATA.mean()
    assert (ours.mean(0) - wanted).norm() < 0.02
    assert (theirs.mean(0) - wanted).norm() > 0.06


@pytest.mark.parametrize("name", ["euler", "heun", "lms"])
def test_discrete_samplers_in_sigma(name):
    """These run in x/alpha with sigma/alpha: our `ve`."""
    kinds = {
        "euler": diffusers.EulerDiscreteScheduler,
        "heun": diffusers.HeunDiscreteScheduler,
        "lms": diffusers.LMSDiscreteScheduler,
    }
    peer = kinds[name](beta_schedule="linear")
    peer.set_timesteps(STEPS)
    s = schedule("ve", sigma_max=200.0)
    ts = torch.unique(peer.sigmas.double()).flip(0)
    last = len(ts) - 1 - (name == "lms")  # the step to data is the next test's
    x = theirs = start(s, ts, 64)
    for i, timestep in enumerate(peer.timesteps[: 2 * last - 1 if name == "heun" else last]):
        sigma = peer.sigmas[i].double()
        peer.scale_model_input(theirs, timestep)
        eps = (theirs - DATA.denoise(s)(theirs, sigma)) / sigma
        theirs = peer.step(eps, timestep, theirs).prev_sample
    ours = sampler(name)(DATA.denoise(s), s, x, ts[: last + 1], noises(x))
    assert relative(ours, theirs.double()) < 1e-5


def test_edm_euler():
    peer = diffusers.EDMEulerScheduler()
    peer.set_timesteps(STEPS)
    s, ts = schedule("ve"), peer.sigmas.double()
    x = theirs = start(s, ts, 64)
    for i, timestep in enumerate(peer.timesteps):
        sigma = ts[i]
        total = sigma**2 + 0.25
        F = (DATA.denoise(s)(theirs, sigma) - 0.25 / total * theirs) / (sigma * 0.5 / total.sqrt())
        peer.scale_model_input(theirs, timestep)
        theirs = peer.step(F, timestep, theirs).prev_sample
    assert relative(sampler("euler")(DATA.denoise(s), s, x, ts, noises(x)), theirs) < 1e-5


@pytest.mark.parametrize("name", ["euler", "heun"])
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match(name, shift):
    kinds = {
        "euler": diffusers.FlowMatchEulerDiscreteScheduler,
        "heun": diffusers.FlowMatchHeunDiscreteScheduler,
    }
    peer = kinds[name](shift=shift)
    peer.set_timesteps(STEPS)
    s = schedule("rectified_flow")
    ts = torch.unique(peer.sigmas.double()).flip(0)
    x = theirs = start(s, ts, 64)
    for i, timestep in enumerate(peer.timesteps):
        sigma = peer.sigmas[i].double()
        velocity = (theirs - DATA.denoise(s)(theirs, sigma)) / sigma
        theirs = peer.step(velocity, timestep, theirs).prev_sample
    assert relative(sampler(name)(DATA.denoise(s), s, x, ts, noises(x)), theirs) < 1e-5


# --- k-diffusion --------------------------------------------------------------------------------------------


def beside(k_diffusion, name, row, *, drop_last=False, **options):
    """Relative distance of the ends, in float64."""
    s = schedule("ve")
    ts = grid(s, STEPS, "karras")
    ts = ts[:-1] if drop_last else ts
    x = start(s, ts, 64)
    noise = noises(x)

    def model(x, sigma):
        return DATA.denoise(s)(x, sigma[0])

    theirs = getattr(k_diffusion, f"sample_{name}")(model, x, ts, disable=True, **options)
    return relative(row(DATA.denoise(s), s, x, ts, noise), theirs)


DETERMINISTIC = {
    "euler": ("euler", {}),
    "heun": ("heun", {}),
    "dpm_2": ("dpm2", {}),
    "dpmpp_2m": ("dpmpp_2m", {}),
}


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_k_diffusion(name, k_diffusion):
    ours, options = DETERMINISTIC[name]
    assert beside(k_diffusion, name, sampler(ours, **options)) < 1e-10


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_k_diffusion_lms(order, k_diffusion):
    """It integrates its weights numerically to 1e-4, where ours are exact; both end before the step to
    data."""
    assert beside(k_diffusion, "lms", sampler("lms", order=order), order=order, drop_last=True) < 1e-5


def test_lms_does_not_extrapolate_to_data(k_diffusion):
    """From sigma_min = 0.5 its last step extrapolates over many node distances; ours takes x0_hat there."""
    s = schedule("ve")
    ts = torch.cat([torch.linspace(10, 0.5, 60, dtype=F64), torch.zeros(1, dtype=F64)])
    x = start(s, ts, 64)
    theirs = k_diffusion.sample_lms(lambda x, sigma: DATA.denoise(s)(x, sigma[0]), x, ts, disable=True)
    ours = sampler("lms", order=4)(DATA.denoise(s), s, x, ts, noises(x))
    exact = DATA.solve(s, x, ts)
    assert relative(ours, exact) < 0.005 < 0.2 < relative(theirs, exact)


STOCHASTIC = [
    ("euler_ancestral", "euler_ancestral", {"eta": 1.0}),
    ("euler_ancestral", "euler_ancestral", {"eta": 0.5}),
    ("dpmpp_2m_sde", "dpmpp_2m_sde", {"eta": 1.0}),
    ("dpmpp_2m_sde", "dpmpp_2m_sde", {"eta": 0.3}),
]


@pytest.mark.parametrize(("theirs", "ours", "options"), STOCHASTIC)
def test_k_diffusion_with_noise(theirs, ours, options, k_diffusion):
    draws = iter(range(STEPS))
    like = torch.zeros(64, 2, dtype=F64)
    noise_sampler = {"noise_sampler": lambda sigma, sigma_next: noises(like)(next(draws))}
    assert beside(k_diffusion, theirs, sampler(ours, **options), **options, **noise_sampler) < 1e-10


def halved(nodes, h):
    """The weights of the peer's dpmpp_3m_sde: the exact ones, but half the curvature."""
    if len(nodes) == 1:
        return exact(nodes, h)
    return polynomial_weights(nodes, [h * phi(2, -h), h * phi(3, -h)])  # the second should be 2! h phi_3


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_k_diffusion_3m(eta, k_diffusion, monkeypatch):
    """Its term in the second divided difference lacks the factor 2! of the Taylor series, as in the code of
    DPM-Solver++.

    With that factor taken out, ours is the same to the last digits. With it the order is 3, and without it 2.
    """
    draws = iter(range(STEPS))
    like = torch.zeros(64, 2, dtype=F64)
    options = {"noise_sampler": lambda sigma, sigma_next: noises(like)(next(draws))} if eta else {}
    with monkeypatch.context() as patched:
        patched.setattr(exponential, "exact", halved)
        assert beside(k_diffusion, "dpmpp_3m_sde", sampler("dpmpp_3m_sde", eta=eta), eta=eta, **options) < 1e-10


def test_k_diffusion_3m_is_second_order_and_ours_third(k_diffusion):
    s, errors = schedule("ve"), []
    for steps in (80, 160):
        ts = grid(s, steps + 1)
        x = start(s, ts, 32)
        exact_end = DATA.solve(s, x, ts)
        theirs = k_diffusion.sample_dpmpp_3m_sde(
            lambda x, sigma: DATA.denoise(s)(x, sigma[0]), x, ts, disable=True, eta=0.0
        )
        ours = sampler("dpmpp_3m_sde", eta=0.0)(DATA.denoise(s), s, x, ts, noises(x))
        errors.append([float((end - exact_end).norm()) for end in (theirs, ours)])
    theirs, ours = (math.log2(errors[0][i] / errors[1][i]) for i in (0, 1))
    assert 1.8 < theirs < 2.2 and 2.8 < ours < 3.3


def test_k_diffusion_churn(k_diffusion, monkeypatch):
    options = {"s_churn": 20.0, "s_noise": 1.003}
    draws = iter(range(STEPS))
    monkeypatch.setattr(k_diffusion.torch, "randn_like", lambda x: noises(x)(next(draws)))
    row = sampler("heun", s_min=0.05, s_max=50.0, **options)
    assert beside(k_diffusion, "heun", row, s_tmin=0.05, s_tmax=50.0, **options) < 1e-10
