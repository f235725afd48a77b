"""What every row of a table must do, whoever wrote it.

Checks of a row that is built with settings: `test_contracts.py` gives them every YAML file and the plugins of
docs/examples, and a plugin's author can give them a row of their own. Each raises AssertionError.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from cases import SCHEDULE_NAMES, finite, grid, schedule
from gmm import mixture, noises, start
from torch import Tensor, nn

from diffgen.diffusion.denoiser import Denoiser
from diffgen.diffusion.masking import HIDDEN
from diffgen.diffusion.samplers.steps import Facts
from diffgen.diffusion.schedules import Schedule
from diffgen.diffusion.weightings import Weighting
from diffgen.evaluation.extractors import Extractor
from diffgen.nets import DataShape

F64 = torch.float64
SHAPE = DataShape((3, 16, 16), num_classes=4, augment_labels=9)

Row = Callable[..., Tensor]


# --- the path -----------------------------------------------------------------------------------------------------


def check_schedule(s: Schedule) -> None:
    """Finite, from data to noise without a turn, with its inverse, in the dtype and shape that it is given."""
    for dtype, tolerance in ((torch.float32, 2e-5), (F64, 1e-9)):
        ends = torch.tensor([0.0, s.t_min, s.t_max], dtype=dtype)
        alpha, sigma = s.alpha(ends), s.sigma(ends)
        assert alpha.dtype == sigma.dtype == s.noise_cond(ends).dtype == dtype
        assert alpha.isfinite().all() and sigma.isfinite().all() and s.noise_cond(ends[1:]).isfinite().all()
        assert alpha[0] == 1 and sigma[0] == 0 and (sigma[1:] > 0).all() and (alpha >= 0).all()
        for shape in ((), (1,), (3, 2)):
            for share in (0.0, 1e-3, 0.3, 0.77, 1.0):
                t = torch.full(shape, s.t_min + share * (s.t_max - s.t_min), dtype=dtype)
                back = s.time_at(s.sigma(t) / s.alpha(t))
                assert back.shape == t.shape and back.dtype == dtype
                assert torch.allclose(back, t, rtol=tolerance, atol=1e-12), f"time_at({t}) gives {back}"
    ts = torch.linspace(s.t_min, s.t_max, 5000, dtype=F64)
    assert ((s.sigma(ts) / s.alpha(ts)).diff() > 0).all(), "sigma/alpha must rise"
    low, high = float(s.snap(ts).min()), float(s.snap(ts).max())
    assert s.t_min <= low and high <= s.t_max, "snap leaves [t_min, t_max]"


def check_parameterization(row: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """The true target gives back x0 at every level of noise, on every schedule; shaped like sigma, in its dtype."""
    for name in SCHEDULE_NAMES:
        s = finite(name)
        t = torch.linspace(s.t_min, s.t_max, 33, dtype=F64)
        x0, z = torch.randn(2, 33, 2, 3, 4, dtype=F64, generator=torch.Generator().manual_seed(0))
        a, b = row(s.alpha(t), s.sigma(t), 0.5)
        assert a.shape == b.shape == t.shape and a.dtype == b.dtype == F64
        determinant = b * s.alpha(t) - a * s.sigma(t)
        assert (determinant * determinant[0] > 0).all(), f"singular somewhere on schedule={name}"
        a, b, alpha, sigma = (c[:, None, None, None] for c in (a, b, s.alpha(t), s.sigma(t)))
        told = Denoiser(lambda *_, F=a * x0 + b * z: F, s, row, sigma_data=0.5, scale_input=True)
        x0_hat = told(alpha * x0 + sigma * z, t, torch.full((33,), -1))
        assert torch.allclose(x0_hat, x0, rtol=1e-8, atol=1e-8), f"x0 is lost on schedule={name}"


def check_weighting(row: Weighting) -> None:
    """A finite weight for each example, above 0 wherever a signal is left."""
    for name in SCHEDULE_NAMES:
        s = schedule(name)
        t = torch.linspace(s.t_min, s.t_max, 200, dtype=F64)
        for dtype in (torch.float32, F64):
            alpha, sigma = s.alpha(t).to(dtype), s.sigma(t).to(dtype)
            weight = row(alpha, sigma, torch.ones_like(sigma))
            assert weight.shape == t.shape
            assert weight.isfinite().all(), f"not finite on schedule={name}"
            assert (weight >= 0).all() and (weight[alpha > 1e-6] > 0).all(), f"not positive on schedule={name}"


def check_time(row: Row) -> None:
    """A quantile function: a time for each u in (0, 1), finite, above 0, and never falling."""
    u = torch.linspace(1e-6, 1 - 1e-6, 1001, dtype=F64)
    for name in SCHEDULE_NAMES:
        s = schedule(name)
        t = row(u, s)
        assert t.shape == u.shape and t.dtype == F64
        assert t.isfinite().all() and (t > 0).all(), f"leaves the clock of schedule={name}"
        assert (t.diff() >= 0).all() and t.unique().numel() > 500, f"does not rise on schedule={name}"
    t = row(u, schedule("rectified_flow"))
    assert (t.diff() > 0).all() and t[-1] < 1


# --- samplers -----------------------------------------------------------------------------------------------------


def check_unmasker(row: Row) -> None:
    """Tokens of the vocabulary where any were hidden, what was given as it was, and nothing else changed."""
    x = torch.tensor([[HIDDEN] * 5, [HIDDEN, 1, HIDDEN, 0, HIDDEN], [1, 0, 1, 0, 1]])
    before, ts = x.clone(), torch.tensor([1.0, 0.0], dtype=F64)

    def noise(draw: int) -> Tensor:
        return torch.rand(x.shape, generator=torch.Generator().manual_seed(draw), dtype=F64)

    found = row(lambda x, t: torch.zeros(*x.shape, 2), schedule("rectified_flow"), x, ts, noise)
    assert torch.equal(x, before), "a sampler must leave its input as it is"
    assert found.dtype == torch.int64 and found.min() >= 0 and found.max() <= 1, "tokens, and none hidden"
    assert torch.equal(found[before != HIDDEN], before[before != HIDDEN]), "what is given must stay"


def check_prior(row: Row) -> None:
    """Pictures of latents, in one call, at the first of its times."""
    z, ts = torch.rand(3, 2, 4, 4, dtype=F64), torch.tensor([1.0, 0.0], dtype=F64)
    before, calls = z.clone(), list[float]()

    def decode(z: Tensor, t: Tensor) -> Tensor:
        calls.append(float(t))
        return 2 * z[:, :1]

    drawn = row(decode, schedule("rectified_flow"), z, ts, noises(z))
    assert torch.equal(z, before), "a sampler must leave its input as it is"
    assert torch.equal(drawn, 2 * z[:, :1]) and calls == [1.0]


def check_sampler(row: Row, facts: Facts) -> None:
    """It ends at x0_hat, and calls, noise and order are those that it declares."""
    for name in SCHEDULE_NAMES:
        _check_end(row, schedule(name), facts)
    _check_calls_and_noise(row, facts)
    if facts.order and facts.calls and not facts.noise:
        _check_order(row, facts.order)


def check_jumper(row: Row, facts: Facts) -> None:
    """It tells of each step where it ends; of who does not listen it is what `check_sampler` asks for."""
    s, told = schedule("rectified_flow"), list[tuple[float, float]]()
    ts = grid(s, 3, "uniform")

    def denoise(x: Tensor, t: Tensor, end: Tensor) -> Tensor:
        told.append((float(t), float(end)))
        return 0 * x

    x = start(s, ts, 4)
    row(denoise, s, x, ts, noises(x))
    assert told == list(pairwise(ts.tolist()))

    def deaf(denoise: Row, *more: Any) -> Tensor:
        return row(lambda x, t, end: denoise(x, t), *more)

    check_sampler(deaf, facts)


def _grid(s: Schedule, steps: int, facts: Facts) -> Tensor:
    ts = grid(s, steps, sigma_max=1e3)
    return ts if facts.calls else ts[[0, -2, -1]]


def _check_end(row: Row, s: Schedule, facts: Facts) -> None:
    """A single image is all that there is: every way ends there, from pure noise too, and x stays as it was."""
    ts, x0 = _grid(s, 6, facts), torch.tensor([[0.3, -0.8]], dtype=F64)
    x = start(s, ts, 4)
    before = x.clone()
    drawn = row(lambda x, t: x0.expand_as(x), s, x, ts, noises(x))
    assert torch.allclose(drawn, x0.expand_as(x), atol=1e-9), f"ends elsewhere on {type(s).__name__}"
    assert torch.equal(x, before), "x is changed in place"


def _check_calls_and_noise(row: Row, facts: Facts) -> None:
    s, calls, asked = schedule("ve"), list[float](), list[int]()
    ts = _grid(s, 10, facts)
    x = start(s, ts, 4)
    exact, draw = mixture().denoise(s), noises(x)

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        calls.append(float(t))
        return exact(x, t)

    def noise(step: int) -> Tensor:
        asked.append(step)
        return draw(step)

    drawn = row(denoise, s, x, ts, noise)
    assert drawn.isfinite().all() and drawn.shape == x.shape and drawn.dtype == F64
    assert s.t_min * 0.999 < min(calls) and max(calls) < s.t_max * 1.001, "the network knows no such noise"
    assert bool(asked) == facts.noise, f"asks for noise {len(asked)} times and declares noise={facts.noise}"
    if facts.calls:
        assert len(calls) == 9 * facts.calls + 1, f"{len(calls)} calls in 10 steps, and declares {facts.calls} a step"


def _check_order(row: Row, order: int) -> None:
    """Half the step is an error smaller by 2^order; starts of a lower order are in the tolerance."""
    s, data = schedule("vp_linear"), mixture()
    ts = grid(s, 2, sigma_max=1e3)
    x = start(s, ts, 32)
    exact = data.solve(s, x, ts)
    errors = []
    for steps in (40, 80):
        ts = grid(s, steps + 1, sigma_max=1e3)
        errors.append(float((row(data.denoise(s), s, x, ts, noises(x)) - exact).norm()))
    measured = math.log2(errors[0] / errors[1])
    assert order - 0.45 < measured < order + 0.6, f"order {measured:.2f}, and declares {order}"


# --- networks -----------------------------------------------------------------------------------------------------


def check_model(build: Callable[[DataShape], nn.Module], shape: DataShape = SHAPE) -> None:
    """The shape of x, the same in evaluation mode again, told of level, label and augmentation, and all weights learn.

    Args:
        build: What makes the network for a shape of data.
        shape: With labels, and with augmentation.
    """
    with torch.device("meta"):
        assert sum(p.numel() for p in build(shape).parameters()) > 0
    torch.manual_seed(0)
    model = build(shape)
    assert {p.device.type for p in model.parameters()} == {"cpu"}
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():  # a branch that begins near 0 hides what it does
            p.add_(0.05 * torch.randn(p.shape, generator=rng))
    x, condition, label = torch.randn(2, *shape.size, generator=rng), torch.tensor([10.0, 500.0]), torch.tensor([-1, 2])
    augment = torch.rand(2, shape.augment_labels, generator=rng)
    _check_gradients(model, x, condition, label, augment)
    _check_inputs(model.eval().requires_grad_(False), x, condition, label, augment)


def _check_gradients(model: nn.Module, *inputs: Tensor) -> None:
    x, *others = inputs
    x = x.clone().requires_grad_()
    out = model(x, *others)
    assert out.shape == x.shape and out.dtype == x.dtype
    out.square().sum().backward()
    assert x.grad is not None and x.grad.any()
    idle = [name for name, p in model.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())]
    assert not idle, f"no gradient reaches {idle}"


def _check_inputs(model: nn.Module, x: Tensor, condition: Tensor, label: Tensor, augment: Tensor) -> None:
    plain = model(x, condition, label)
    assert plain.shape == x.shape and plain.isfinite().all()
    assert torch.equal(plain, model(x, condition, label)), "not the same in evaluation mode"
    torch.testing.assert_close(model(x[:1], condition[:1], label[:1]), plain[:1], rtol=1e-3, atol=1e-3)
    others = (condition + 100, label, None), (condition, torch.tensor([0, 3]), None), (condition, label, augment)
    for what, other in zip(("noise level", "label", "augmentation"), others, strict=True):
        assert not torch.equal(model(x, *other), plain), f"the {what} makes no difference"


def check_autoencoder(build: Callable[[DataShape], Any], shape: DataShape = SHAPE) -> None:
    """Pictures to latents and back, each by itself, and all weights learn.

    Args:
        build: What makes the network for a shape of pictures.
        shape: Of these.
    """
    torch.manual_seed(0)
    model, rng = build(shape), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=rng))
    x, noise = torch.randn(2, *shape.size, generator=rng), torch.randn(2, *model.latent_size, generator=rng)
    decoded, log_scale, rate = model(x, noise)
    assert decoded.shape == x.shape and rate.shape == noise.shape and log_scale.shape == (shape.channels, 1, 1)
    (decoded.square().sum() + log_scale.sum() + rate.square().sum()).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle, f"no gradient reaches {idle}"
    model.eval().requires_grad_(False)
    z = model.encode(x).mean
    torch.testing.assert_close(model.encode(x[:1]).mean, z[:1], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(model.decode(z[:1]), model.decode(z)[:1], rtol=1e-3, atol=1e-3)
    assert z.shape == noise.shape and model.decode(z).isfinite().all()


# --- extractors ---------------------------------------------------------------------------------------------------


def check_extractor(made: Extractor, name: str, pixels: Tensor) -> None:
    """Its name, its hash, and float32 features of any number of images, each by itself; pixels uint8 [B, C, H, W]."""
    assert made.name == name
    assert len(made.hash) == 64 and set(made.hash) <= set("0123456789abcdef"), "hash must be a SHA-256 in hex"
    features, logits = made(pixels)
    assert features.shape == (len(pixels), made.dim) and features.dtype == torch.float32
    assert features.isfinite().all() and not features.requires_grad and features.std() > 0
    assert logits is None or (logits.ndim == 2 and len(logits) == len(pixels))
    torch.testing.assert_close(made(pixels[:1])[0], features[:1], rtol=1e-3, atol=1e-4)
