"""Mean flows: the identity of the mean velocity, its two derivatives, networks that are told of a stretch, and runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rows
import torch
import yaml
from cases import schedule
from torch import Tensor, nn

from diffgen.build import restore
from diffgen.core.errors import CheckpointError, UsageError
from diffgen.core.registry import build
from diffgen.diffusion.denoiser import Denoiser
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.parameterizations import PARAMETERIZATIONS
from diffgen.diffusion.samplers import SAMPLERS
from diffgen.diffusion.samplers.mean_flow import JUMPERS
from diffgen.diffusion.weightings import WEIGHTINGS
from diffgen.nets import MODELS, DataShape
from diffgen.objectives import OBJECTIVES, Batch, MeanFlow
from diffgen.sampling.drawing import Sampling
from diffgen.storage import checkpoint

Fit = Callable[..., Path]
MU, STD = 0.7, 0.4
NETWORKS = {
    "unet_tiny": ((1, 8, 8), {}),
    "dit_tiny": ((1, 8, 8), {"patch": 2, "width": 32, "depth": 2}),
    "mlp": ((3,), {"width": 32, "blocks": 2}),
    "video_tiny": ((1, 4, 8, 8), {"channels": 16}),
}


class Gaussian(nn.Module):
    """The exact mean velocity of data N(MU, STD^2), as a network, and an error that can be learned away."""

    def __init__(self) -> None:
        super().__init__()
        self.error = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, condition: Tensor, label: Tensor, *more: Tensor | None) -> Tensor:
        t = condition[:, None] / 1000
        span = more[-1][:, None] / 1000 if more and more[-1] is not None else torch.zeros_like(t)
        moved = torch.where(span > 1e-6, (x - flowed(x, t, t - span)) / span.clamp(min=1e-6), velocity(x, t))
        return moved + self.error


def spread(t: Tensor) -> Tensor:
    return ((1 - t) ** 2 * STD**2 + t**2).sqrt()


def flowed(x: Tensor, t: Tensor, r: Tensor) -> Tensor:
    """Where the ODE leads from x at t by r."""
    return (1 - r) * MU + spread(r) / spread(t) * (x - (1 - t) * MU)


def velocity(x: Tensor, t: Tensor) -> Tensor:
    slope = (t - (1 - t) * STD**2) / spread(t) ** 2
    return -MU + slope * (x - (1 - t) * MU)


def framed(network: nn.Module) -> Denoiser:
    return Denoiser(network, schedule("rectified_flow"), PARAMETERIZATIONS["flow"], sigma_data=0.5, scale_input=False)


def objective(**changes: Any) -> MeanFlow:
    made = build(OBJECTIVES, rows.row("objective", "mean_flow", **changes))
    assert isinstance(made, MeanFlow)
    return made


def network(name: str, *, spans: bool = True, **changes: Any) -> nn.Module:
    """One of random weights, so that every part shows."""
    size, narrow = NETWORKS[name]
    made: nn.Module = build(MODELS, {**rows.row("model", name), **narrow, **changes}, DataShape(size, 3, spans=spans))
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape) / max(weight[0].numel() if weight.ndim > 1 else 4, 1) ** 0.5)
    return made


def gaussian_batch(n: int, seed: int = 0) -> Batch:
    rng = torch.Generator().manual_seed(seed)
    x0, z = torch.randn(2, n, 2, generator=rng)
    t, coin = torch.rand(2, n, generator=rng, dtype=torch.float64)
    return Batch(MU + STD * x0, torch.full((n,), -1), 0.05 + 0.9 * t, z, None, coin.float())


def of_network(name: str, n: int = 4) -> Batch:
    rng = torch.Generator().manual_seed(0)
    x0, z = torch.randn(2, n, *NETWORKS[name][0], generator=rng)
    t, coin = torch.rand(2, n, generator=rng)
    return Batch(x0, torch.arange(n) % 3, 0.1 + 0.8 * t.double(), z, None, coin)


# --- the identity -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0.0, 0.005])
def test_the_exact_mean_velocity_satisfies_the_identity(step: float) -> None:
    """u + (t - r) du/dt is the velocity, along the velocity (Geng et al. 2025, eq. 6)."""
    b, made = gaussian_batch(64), objective(apart=1.0, step=step)
    r = made.starts(b)
    t = b.t[:, None].float()
    x = (1 - t) * b.x0 + t * b.z
    v = velocity(x, t)
    u = framed(Gaussian()).predict(x, b.t, b.label, None, None, r)
    slope = made.slope(framed(Gaussian()), x, v, r, b)
    torch.testing.assert_close(u + (b.t - r)[:, None].float() * slope, v, rtol=2e-3, atol=2e-3)
    assert (u - v).abs().max() > 0.1, "and the velocity itself would not do"


def test_the_exact_mean_velocity_has_nothing_to_learn() -> None:
    """The gradient of the squared error is 0 there, to within chance, and not beside it."""
    frame, made = framed(Gaussian()), objective(apart=1.0, power=0.0, step=0.0)
    losses = made.loss(frame, WEIGHTINGS["unit"], gaussian_batch(20_000))
    (gradient,) = torch.autograd.grad(losses.mean(), [*frame.model.parameters()])
    assert gradient.abs() < 0.05
    with torch.no_grad():
        frame.model.error.add_(0.2)
    (gradient,) = torch.autograd.grad(
        made.loss(frame, WEIGHTINGS["unit"], gaussian_batch(20_000)).mean(), [*frame.model.parameters()]
    )
    assert abs(float(gradient) - 0.4) < 0.05, "2 times the error, since its derivative is 0"


def test_a_single_picture_has_no_error_at_all() -> None:
    """From one x0 all ways are straight: u = (x - x0) / t wherever they begin."""
    b = gaussian_batch(32)._replace(x0=torch.full((32, 2), 0.3))

    class Straight(nn.Module):
        def forward(self, x: Tensor, condition: Tensor, label: Tensor, *more: Tensor | None) -> Tensor:
            return (x - 0.3) / (condition[:, None] / 1000)

    for step in (0.0, 0.05):
        losses = objective(apart=1.0, power=0.0, step=step).loss(framed(Straight()), WEIGHTINGS["unit"], b)
        assert losses.max() < 1e-4


@pytest.mark.parametrize("steps", [1, 3])
def test_the_sampler_lands_where_the_ode_does(steps: int) -> None:
    frame, ts = framed(Gaussian()), torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    z = torch.randn(50, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    label = torch.full((50,), -1)
    drawn = JUMPERS["mean_flow"](lambda x, t, end: frame(x, t, label, end=end), frame.schedule, z, ts, lambda i: z)
    torch.testing.assert_close(drawn, MU + STD * z, rtol=1e-4, atol=1e-4)
    euler = SAMPLERS["euler"](lambda x, t: frame(x, t, label), frame.schedule, z, ts, lambda i: z)
    assert (euler - drawn).abs().max() > 0.1, "which Euler's method needs many steps for"


# --- the loss -----------------------------------------------------------------------------------------------------


def test_the_slope_of_the_loss_is_the_weight_of_the_paper() -> None:
    error = torch.tensor([0.0, 0.01, 0.5, 3.0], dtype=torch.float64, requires_grad=True)
    for power in (0.0, 0.5, 0.75, 1.0, 1.5):
        made = objective(power=power, floor=1e-2)
        loss = made.concave(error)
        assert float(loss.detach()[0]) == 0
        (weight,) = torch.autograd.grad(loss.sum(), error)
        torch.testing.assert_close(weight, (error.detach() + 1e-2) ** -power)


def test_where_a_stretch_begins_is_what_the_coin_says() -> None:
    b = gaussian_batch(8)._replace(coin=torch.tensor([0.0, 0.1, 0.2, 0.249, 0.25, 0.5, 0.9, 0.999]))
    r = objective(apart=0.25).starts(b)
    torch.testing.assert_close(r[:4], b.coin[:4].double() / 0.25 * b.t[:4])
    assert torch.equal(r[4:], b.t[4:])


def test_of_velocities_alone_it_is_the_error_of_denoise() -> None:
    b = gaussian_batch(8)._replace(coin=torch.full((8,), 0.9))
    loss = objective(power=0.0).loss(framed(Gaussian()), WEIGHTINGS["unit"], b)
    t = b.t[:, None].float()
    x = (1 - t) * b.x0 + t * b.z
    torch.testing.assert_close(loss, (velocity(x, t) - (b.z - b.x0)).square().mean(1), rtol=1e-4, atol=1e-5)


# --- networks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NETWORKS)
def test_both_derivatives_of_a_network_agree(name: str) -> None:
    """At a small step: random weights listen to the fastest sinusoids, too."""
    frame, b = framed(network(name)), of_network(name)
    r = b.t * b.coin
    found = [objective(step=step).slope(frame, b.x0, b.z, r, b) for step in (0.0, 4e-4)]
    assert (found[0] - found[1]).norm() < 0.05 * found[0].norm()
    other = objective(step=0.0).slope(frame, b.x0, torch.zeros_like(b.z), r, b)
    assert (found[0] - other).norm() > 0.001 * found[0].norm(), "x moves, too"


def test_a_difference_is_of_one_dropout() -> None:
    frame, b = framed(network("unet_tiny", dropout=0.5)), of_network("unet_tiny")
    found = []
    for step in (0.0, 4e-4):
        torch.manual_seed(3)
        found.append(objective(step=step).slope(frame, b.x0, b.z, b.t * b.coin, b))
    assert (found[0] - found[1]).norm() < 0.05 * found[0].norm()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_stretch_of_nothing_is_none(name: str) -> None:
    model, b = network(name).eval(), of_network(name)
    t = (1000 * b.t).float()
    plain = model(b.x0, t, b.label)
    assert torch.equal(model(b.x0, t, b.label, None, None, torch.zeros(4)), plain)
    assert not torch.allclose(model(b.x0, t, b.label, None, None, torch.full((4,), 300.0)), plain)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_begins_as_one_that_is_told_of_no_stretch(name: str) -> None:
    plain, b = network(name, spans=False).eval(), of_network(name)
    size, narrow = NETWORKS[name]
    told = build(MODELS, {**rows.row("model", name), **narrow}, DataShape(size, 3, spans=True)).eval()
    missing, unexpected = told.load_state_dict(plain.state_dict(), strict=False)
    assert missing == ["embedding.span.weight"] and not unexpected
    t = (1000 * b.t).float()
    span = torch.full((4,), 300.0)
    assert torch.equal(told(b.x0, t, b.label, None, None, span), plain(b.x0, t, b.label))


def test_a_network_without_a_forward_mode_is_told_of_the_difference() -> None:
    class Copied(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

    class Stubborn(Gaussian):
        def forward(self, x: Tensor, *more: Any) -> Tensor:
            return super().forward(Copied.apply(x), *more)

    b = gaussian_batch(8)
    r = objective().starts(b)
    with pytest.raises(
        UsageError, match=r"objective.step=0 needs a network with a forward-mode .*: objective.step=0.05"
    ):
        objective(step=0.0).slope(framed(Stubborn()), b.x0, b.z, r, b)
    plain = objective().slope(framed(Gaussian()), b.x0, b.z, r, b)
    assert torch.equal(objective().slope(framed(Stubborn()), b.x0, b.z, r, b), plain)


# --- runs ---------------------------------------------------------------------------------------------------------

RUN = ["method=mean_flow", "preview.guidance=1", "sampler.steps=1"]


@pytest.fixture(scope="module")
def run(fit: Fit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny one. Read only."""
    return fit(tmp_path_factory.mktemp("runs") / "mean", *RUN)


def weights_of(path: Path) -> bytes:
    return max(path.glob("checkpoints/*/model.safetensors")).read_bytes()


def test_a_checkpoint_says_that_its_network_is_told(run: Path, tiny_run: Path) -> None:
    saved = checkpoint.load(run)
    assert saved.config["data"]["spans"] is True and "spans" not in checkpoint.load(tiny_run).config["data"]
    trained = restore(saved)
    assert trained.shape.spans and "embedding.span.weight" in saved.weights
    assert saved.weights["embedding.span.weight"].abs().max() > 0, "it is learned"


def test_a_run_that_was_stopped_ends_the_same(run: Path, fit: Fit, tmp_path: Path) -> None:
    fit(tmp_path / "two", *RUN, "train.images=64", "lr_schedule.decay=constant", "ema.ramp=0.9")
    once = fit(tmp_path / "one", *RUN, "lr_schedule.decay=constant", "ema.ramp=0.9")
    twice = fit(tmp_path / "two", *RUN, "lr_schedule.decay=constant", "ema.ramp=0.9")
    assert weights_of(once) == weights_of(twice)
    assert weights_of(once) != weights_of(run)


def test_the_batch_does_not_depend_on_how_it_is_cut(run: Path, fit: Fit, tmp_path: Path) -> None:
    cut = checkpoint.load(fit(tmp_path / "cut", *RUN, "train.micro_batch=5")).weights
    for name, weight in checkpoint.load(run).weights.items():
        torch.testing.assert_close(cut[name], weight, rtol=1e-2, atol=1e-3)


def test_it_begins_from_a_plain_checkpoint(
    tiny_run: Path, fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fit(tmp_path / "begun", *RUN, f"train.init={tiny_run}", "train.images=16")
    assert "new: embedding.span.weight" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["mean_flow", "heun", "ancestral", "ode"])
def test_every_sampler_of_noise_draws_from_it(run: Path, name: str) -> None:
    saved = checkpoint.load(run)
    settings = rows.row("sampler", name, steps=2)
    for scale in (1.0, 2.0):
        drawer = Sampling.from_config(
            restore(saved), settings, guidance=Guidance(scale=scale), seed=0, device=torch.device("cpu")
        )
        assert drawer.draw([0, 1], [3, 4]).shape == (2, 1, 8, 8)


def test_the_sampler_tells_the_network_where_a_step_ends(run: Path) -> None:
    """One step is x - u over the whole way."""
    trained = restore(checkpoint.load(run))
    settings = rows.row("sampler", "mean_flow", steps=1)
    drawer = Sampling.from_config(trained, settings, guidance=Guidance(scale=1.0), seed=0, device=torch.device("cpu"))
    x = drawer.start(drawer.noise([0, 1], 0))
    one, label = torch.ones(2, dtype=torch.float64), torch.tensor([3, 4])
    u = trained.denoiser.predict(x, one, label, None, None, 0 * one)
    torch.testing.assert_close(drawer.draw([0, 1], [3, 4]).double(), x - u, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(u, trained.denoiser.predict(x, one, label))


def test_tasks_and_figures_work_on_it(run: Path, command: Any, tmp_path: Path) -> None:
    from PIL import Image

    Image.new("L", (8, 8), 90).save(tmp_path / "a.png")
    half = Image.new("L", (8, 8), 0)
    half.paste(255, (0, 0, 4, 8))
    half.save(tmp_path / "mask.png")
    wanted = ["n=2", f"ckpt={run}", "sampler.steps=2"]
    kept = command(
        "sample",
        *wanted,
        "task=inpaint",
        f"task.image={tmp_path / 'a.png'}",
        f"task.mask={tmp_path / 'mask.png'}",
        "save=[png]",
        "out=kept",
    )
    assert kept.code == 0, kept.err
    assert command("sample", *wanted, "task=trajectory", "task.frames=3", "out=way").code == 0
    assert command("export", f"ckpt={run}", "to=program", "format=torch").code == 0
    refused = command("export", f"ckpt={run}", "to=folder", "format=diffusers")
    assert refused.code == 2 and "objective=mean_flow is no denoiser's" in refused.err


@pytest.mark.parametrize(
    ("given", "steps", "guidance"),
    [([], 1, 1.0), (["sampler.steps=3", "preview.guidance=2"], 3, 2.0), (["sampler=heun"], 50, 1.0)],
)
def test_one_step_is_brought_whatever_a_recipe_says(
    given: list[str], steps: int, guidance: float, command: Any
) -> None:
    """That of points has 50 steps, and what is given beside the method stays."""
    said = command("train", "dataset=points", "method=mean_flow", *given, "--cfg", "job")
    config = yaml.safe_load(said.out)
    assert said.code == 0 and (config["sampler"]["steps"], config["preview"]["guidance"]) == (steps, guidance)


REFUSED = {
    "schedule=cosine": "schedule=cosine has no mean velocity that objective=mean_flow could learn: schedule=rectified_flow",
    "parameterization=v": "parameterization=v has no mean velocity that objective=mean_flow could learn",
    "schedule.shift=3": "schedule.shift=3 is another clock than objective=mean_flow goes by: schedule.shift=1",
    "weighting=min_snr": "objective=mean_flow has a weight of its own, objective.power: weighting=unit",
    "objective.apart=0": "objective.apart=0 must be in (0, 1]",
    "objective.power=3": "objective.power=3 must be in [0, 2]",
    "objective.floor=0": "objective.floor=0 must be in (0, 100]",
    "objective.step=1e-6": "objective.step=1e-06 must be in [1e-4, 0.5], which float32 can tell apart, or 0",
    "model=unet2d": "name=unet2d is told of one time alone: choose model=unet_tiny",
}


@pytest.mark.parametrize("override", REFUSED)
def test_what_does_not_go_with_it_is_told(override: str, command: Any) -> None:
    refused = command("train", "method=mean_flow", override, "run_dir=run", "train.images=64")
    assert refused.code == 2, refused.err
    assert REFUSED[override] in refused.err and refused.err.count("\n") <= 2


def test_it_goes_on_with_no_other_objective_and_its_sampler_with_no_other(
    run: Path, tiny_run: Path, command: Any, tmp_path: Path
) -> None:
    refused = command("sample", f"ckpt={tiny_run}", "sampler=mean_flow", "n=1")
    assert refused.code == 2 and "sampler.name='mean_flow' is unknown; choose one of" in refused.err


def test_a_config_that_leaves_out_what_the_network_is_told_is_refused(run: Path) -> None:
    saved = checkpoint.load(run)
    del saved.config["data"]["spans"]
    with pytest.raises(CheckpointError, match="data.spans must be true for objective=mean_flow"):
        restore(saved)
