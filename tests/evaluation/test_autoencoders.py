"""Figures of autoencoders: bounds against densities that are known, reconstructions by hand, and what is refused."""

import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cases import schedule
from omegaconf import OmegaConf
from PIL import Image
from torch import Tensor, nn

from diffgen.data.kinds import Pixels
from diffgen.data.latents import Latents
from diffgen.diffusion.codec import BIN
from diffgen.evaluation import elbo as bounds
from diffgen.evaluation import few, latent_bits, report
from diffgen.evaluation.autoencoders import Latent, untold
from diffgen.evaluation.bits_per_dim import LEVELS, levels
from diffgen.evaluation.reconstruction import Channels, Coder, Codes, psnr, ssim, without_ssim
from diffgen.nets.autoencoder import Posterior, Quantiser

Command = Callable[..., Any]

# --- a linear autoencoder, whose pictures are Gaussian --------------------------------------------------------------

SIZE, LATENT = (1, 4, 4), (2, 1, 2)
D, C = math.prod(SIZE), math.prod(LATENT)
WIDTH = 0.1
"""Of p(x | z): wide beside the bins, so that their masses are densities times their width."""

N = 120
MEAN, STD = (0.3, -0.2), (1.5, 0.7)
"""Of the latents of a model in latents, by channel."""


def on_sites(values: tuple[float, ...]) -> Tensor:
    """By channel -> of each of the C latents."""
    return torch.tensor(values, dtype=torch.float64).repeat_interleave(C // len(values))


class Linear(nn.Module):
    """z ~ N(mean, std^2) and x ~ N(W z, WIDTH^2), where q(z | x) is the exact posterior, or a wrong one.

    The columns of W are orthogonal, so that the posterior is independent Gaussians.
    """

    latent_size, quantiser = LATENT, None

    def __init__(self, mean: Tensor, std: Tensor, shift: float = 0.0, wider: float = 1.0) -> None:
        super().__init__()
        noise = torch.randn(D, C, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        self.W = torch.linalg.qr(noise)[0] * torch.linspace(0.2, 0.4, C, dtype=torch.float64)
        self.mean, self.std, self.shift, self.wider = mean, std, shift, wider
        self.var = 1 / (self.W.square().sum(0) / WIDTH**2 + std**-2)
        self.log_scale = nn.Parameter(torch.full((1, 1, 1), math.log(WIDTH)))

    def encode(self, x: Tensor) -> Posterior:
        exact = self.mean + self.var * ((x.double().flatten(1) - self.W @ self.mean) @ self.W) / WIDTH**2
        log_var = (self.wider**2 * self.var).log().expand_as(exact)
        mean = exact + self.shift * self.var.sqrt()
        return Posterior(mean.reshape(-1, *LATENT), log_var.reshape(-1, *LATENT))

    def decode(self, z: Tensor) -> Tensor:
        return (z.double().flatten(1) @ self.W.T).reshape(-1, *SIZE)

    def pictures(self) -> Tensor:
        rng = torch.Generator().manual_seed(1)
        z = self.mean + self.std * torch.randn(N, C, generator=rng, dtype=torch.float64)
        x = z @ self.W.T + WIDTH * torch.randn(N, D, generator=rng, dtype=torch.float64)
        assert x.abs().max() < 1, "the outermost bins reach to infinity"
        return ((x + 1) * LEVELS).round().to(torch.uint8).reshape(-1, *SIZE)

    def bits(self, pixels: Tensor) -> Tensor:
        """The exact ones."""
        cov = self.W * self.std.square() @ self.W.T + WIDTH**2 * torch.eye(D)
        normal = torch.distributions.MultivariateNormal(self.W @ self.mean, cov)
        return -(normal.log_prob(levels(pixels).flatten(1)) + D * math.log(BIN)) / (D * math.log(2))

    def divergence(self) -> float:
        """KL(q || p(z | x)) in bits/dim."""
        each = 0.5 * (self.wider**2 + self.shift**2 - 1) - math.log(self.wider)
        return C * each / (D * math.log(2))


def standard(**wrong: float) -> Linear:
    return Linear(torch.zeros(C, dtype=torch.float64), torch.ones(C, dtype=torch.float64), **wrong)


def judged(network: Linear, pixels: Tensor, numbers: list[int] | None = None) -> bounds.Elbo:
    numbers = list(range(len(pixels))) if numbers is None else numbers
    return bounds.elbo(network, network.log_scale, "gaussian", pixels, numbers, seed=0)  # type: ignore[arg-type]


def test_the_bounds_of_a_linear_autoencoder_are_the_likelihood() -> None:
    """With the exact posterior all importance weights are alike, so one bound scatters not at all, and one little."""
    network = standard()
    pixels = network.pictures()
    exact, found = network.bits(pixels), judged(network, pixels)
    assert found.iwae is not None
    torch.testing.assert_close(found.iwae, exact, rtol=0, atol=2e-3)  # the masses of bins are about densities
    error = (found.total - exact).std() / math.sqrt(N)
    assert abs(float((found.total - exact).mean())) < 4 * error + 5e-4
    torch.testing.assert_close(found.total, found.rate + found.distortion)


@pytest.mark.parametrize("wrong", [{"shift": 0.7}, {"wider": 1.6}, {"wider": 0.5}, {"shift": -0.5, "wider": 0.8}])
def test_a_wrong_posterior_costs_its_divergence(wrong: dict[str, float]) -> None:
    network = standard(**wrong)
    pixels = network.pictures()
    exact, found = network.bits(pixels), judged(network, pixels)
    excess = found.total - exact
    assert network.divergence() > 0.02
    assert abs(float(excess.mean()) - network.divergence()) < 4 * float(excess.std()) / math.sqrt(N) + 5e-4
    assert found.iwae is not None
    assert -5e-4 < float((found.iwae - exact).mean()) < network.divergence() / 3, "between the two"


def test_bounds_do_not_depend_on_the_batch() -> None:
    network = standard(shift=0.3)
    pixels = network.pictures()[:7]
    whole = judged(network, pixels)
    parts = [judged(network, pixels[i : i + 1], [i]) for i in range(7)]
    for key in ("rate", "distortion", "iwae"):
        torch.testing.assert_close(getattr(whole, key), torch.cat([getattr(part, key) for part in parts]))
    assert not torch.allclose(judged(network, pixels, list(range(1, 8))).distortion, whole.distortion)


def test_what_is_bounded_is_the_mass_of_levels() -> None:
    """Of a decoder that knows nothing, of all 256 levels together: their masses sum to 1."""
    network = standard()
    network.W = 0 * network.W
    every = torch.arange(256, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, *SIZE)
    fits = judged(network, every).distortion
    assert float((2.0**-fits).sum()) == pytest.approx(1, abs=1e-6)


# --- a model of Gaussian latents ------------------------------------------------------------------------------------


def in_latents(network: Any, likelihood: Any = "gaussian") -> Latents:
    kind = Latents(size=SIZE, autoencoder={}, hash="", likelihood=likelihood, mean=MEAN, std=STD)
    return kind.with_network(network)


def through_latents(network: Linear, pixels: Tensor) -> Tensor:
    """The bound, with the exact denoiser of N(0, 1)."""
    s = schedule("rectified_flow")

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = s.alpha(t), s.sigma(t)
        return alpha / (alpha**2 + sigma**2) * x

    numbers = list(range(len(pixels)))
    found = latent_bits.bits_per_dim(in_latents(network), denoise, s, pixels, numbers, seed=0, rtol=1e-7, atol=1e-7)
    assert found.nfe > 10
    return found.each.detach()


def test_bits_through_latents_are_the_likelihood_where_all_is_known() -> None:
    """z ~ N(mean, std^2) by channel, so that x0 is standard normal: the bound of the exact posterior has no slack."""
    network = Linear(on_sites(MEAN), on_sites(STD))
    pixels = network.pictures()[:24]
    torch.testing.assert_close(through_latents(network, pixels), network.bits(pixels), rtol=0, atol=2e-3)


def test_a_wrong_posterior_costs_its_divergence_through_latents_too() -> None:
    network = Linear(on_sites(MEAN), on_sites(STD), shift=0.5, wider=0.8)
    pixels = network.pictures()
    excess = through_latents(network, pixels) - network.bits(pixels)
    assert abs(float(excess.mean()) - network.divergence()) < 4 * float(excess.std()) / math.sqrt(N) + 5e-4


@pytest.mark.parametrize(
    ("network", "likelihood", "words"),
    [
        (standard(), "gaussian", ""),
        (standard(), None, "the autoencoder of ckpt was trained by another loss, which has none"),
        (nn.Identity(), "gaussian", "the autoencoder of ckpt was trained by another loss"),
        (SimpleNamespace(log_scale=0, quantiser=Quantiser((8, 5))), "gaussian", "and those of ckpt are codes"),
    ],
)
def test_latents_without_a_density_of_pictures(network: Any, likelihood: Any, words: str) -> None:
    told = latent_bits.untold(in_latents(network, likelihood))
    assert words in told and bool(told) == bool(words)
    trained: Any = SimpleNamespace(
        kind=in_latents(network, likelihood), objective=SimpleNamespace(path=True, discrete=False, codes=False)
    )
    assert ("bits" in untold(trained)) == bool(words)


# --- reconstructions by hand ----------------------------------------------------------------------------------------


def test_psnr_by_hand() -> None:
    black = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)
    other = black.clone()
    other[0] += 5  # mse 25
    other[1, 0, 0, 0] = 1  # mse 1/16, the least
    ratio, same = psnr(black, other)
    expected = [10 * math.log10(255**2 / 25), 10 * math.log10(255**2 * 16), 10 * math.log10(255**2 * 16)]
    assert ratio.tolist() == pytest.approx(expected)
    assert same.tolist() == [False, False, True], "which counts as if one value were one level off"


def test_ssim_is_wang_and_others() -> None:
    """The formula with their Gaussian window, at the one place where it fits into 11x11 pixels."""
    rng = torch.Generator().manual_seed(0)
    a, b = (torch.randint(256, (2, 1, 11, 11), generator=rng, dtype=torch.uint8) for _ in range(2))
    b[1] = a[1]
    g = torch.exp(-((torch.arange(11.0, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    w = torch.outer(g, g) / g.sum() ** 2
    x, y = a[0, 0].double(), b[0, 0].double()
    mx, my = (w * x).sum(), (w * y).sum()
    vx, vy, cov = (w * x * x).sum() - mx**2, (w * y * y).sum() - my**2, (w * x * y).sum() - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    expected = (2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert ssim(a, b).tolist() == pytest.approx([float(expected), 1.0], abs=1e-4)


def test_why_there_is_no_ssim(monkeypatch: pytest.MonkeyPatch) -> None:
    assert without_ssim((3, 11, 32)) == ""
    assert without_ssim((3, 10, 32)) == "SSIM is left out: its window is 11x11, and these pictures are 10x32"
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    assert without_ssim((3, 32, 32)) == "SSIM is left out: pip install torchmetrics"


def test_codes_are_counted_once() -> None:
    quantiser = Quantiser((4, 3))
    codes = Codes(quantiser)
    planted = torch.tensor([[0, 0], [1, 2], [0, 0], [3, 1]])  # three of twelve
    z = ((planted - torch.tensor([2, 1])) / torch.tensor([2, 1])).T.reshape(1, 2, 2, 2).float()
    codes.add(z)
    codes.add(z.repeat(3, 1, 1, 1))
    assert (codes.sites, codes.used) == (16, 3 / 12)


def test_a_collapsed_channel_is_seen() -> None:
    """The second never hears of the picture; the third does at one site alone."""
    mean = torch.zeros(50, 3, 2, 2)
    mean[:, 0] = torch.randn(50, 2, 2, generator=torch.Generator().manual_seed(0))
    mean[:, 1] = 0.7
    mean[::2, 2, 1, 1] = 0.5  # variance 1/16
    posterior, channels = Posterior(mean, torch.zeros_like(mean)), Channels()
    rate = bounds.rates(standard(), posterior)  # type: ignore[arg-type]
    for some in (slice(0, 7), slice(7, 50)):
        channels.add(Posterior(mean[some], posterior.log_var), rate[some])
    assert channels.active == 2
    assert channels.rate == pytest.approx((0.5 * mean.double().square()).sum((2, 3)).mean(0).tolist())
    assert Latent(Coder(standard(), lambda z: z)).figures() == {}  # type: ignore[arg-type]


# --- the command ----------------------------------------------------------------------------------------------------

SHORT = ["dataset=digits", "train.images=640", "train.batch_size=64", "preview.n=2", "lr_schedule.warmup=64"]
ENCODER = ["model=vae_tiny", "model.channels=8"]
UNET = ["model=unet_tiny", "model.channels=8", "model.channel_mult=[1]", "model.attention_resolutions=[]"]


@pytest.fixture(scope="module")
def learn(compose: Callable[..., dict[str, Any]]) -> Callable[..., Path]:
    """`learn(run_dir, "method=vae")` trains in this process."""
    from diffgen.training.trainer import train

    def run(run_dir: Path, *overrides: str) -> Path:
        config = compose("train", *SHORT, *overrides) | {"run_dir": str(run_dir)}
        train(config, OmegaConf.to_yaml(OmegaConf.create(config)), "unused")
        return run_dir

    return run


@pytest.fixture(scope="module")
def runs(learn: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two autoencoders, and a model in the latents of each."""
    place, at = tmp_path_factory.mktemp("runs"), ["denoiser.sigma_data=1.0", "sampler.steps=4"]
    found = {"vae": learn(place / "vae", "method=vae", *ENCODER)}
    found["fsq"] = learn(place / "fsq", "method=fsq", *ENCODER, "model.levels=[8,5,5,5]")
    for name, of in (("in_vae", "vae"), ("in_fsq", "fsq")):
        found[name] = learn(place / name, f"latent.path={found[of]}", *UNET, *at)
    return found


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One classifier for all."""
    return f"cache={tmp_path_factory.mktemp('cache')}"


def row_of(said: Any, out: Path) -> dict[str, Any]:
    assert said.code == 0, said.err
    (row,) = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert isinstance(row, dict)
    return row


def test_an_autoencoder_is_judged(command: Command, runs: dict[str, Path], tmp_path: Path, cache: str) -> None:
    said = command("eval", f"ckpt={runs['vae']}", "n=40", "out=out", cache, "extractor.epochs=1")
    row = row_of(said, tmp_path / "out")
    assert row["elbo"] == pytest.approx(row["elbo_rate"] + row["elbo_distortion"])
    assert row["iwae"] < row["elbo"] and row["elbo_error"] > 0 and row["elbo_of"] == "test"
    assert (row["elbo_images"], row["reconstructed"], row["images"], row["iwae_samples"]) == (40, 40, 40, 64)
    nats = row["elbo_rate"] * 64 * math.log(2)
    assert sum(row["rate_by_channel"]) == pytest.approx(nats, rel=1e-3)
    assert 0 <= row["active_channels"] <= row["latent_channels"] == 4
    assert 0 < row["fd_reconstruction_floor_test"] < row["fd_reconstruction"]
    assert {"ssim", "codes_used", "nfe", "fd", "psnr_same"}.isdisjoint(row)
    assert "bound, bits/dim, held-out images" in said.out and "SSIM is left out: its window is 11x11" in said.out
    assert "channels of latents: " in said.out and "too few images: reconstructions: Frechet distance" in said.out
    with Image.open(tmp_path / "out" / "reconstruction.png") as opened:
        assert opened.width > 5 * opened.height, "20 pairs in two rows"


def test_codes_have_a_constant_rate(command: Command, runs: dict[str, Path], tmp_path: Path, cache: str) -> None:
    said = command("eval", f"ckpt={runs['fsq']}", "n=20", "out=out", cache, "extractor.epochs=1", "metrics=auto,fd")
    row = row_of(said, tmp_path / "out")
    assert row["elbo_rate"] == pytest.approx(4 * math.log2(1000) / 64) and row["elbo_rate_error"] == 0
    assert row["elbo"] == pytest.approx(row["elbo_rate"] + row["elbo_distortion"])
    assert 0 < row["codes_used"] <= 80 / 1000 and (row["codes"], row["codes_sites"]) == (1000, 80)
    assert {"iwae", "active_channels", "rate_by_channel"}.isdisjoint(row)
    assert row["nfe"] == 1 and row["fd"] > 0, "images of the prior, as they were asked for"
    assert row["fd_floor_reconstruction"] == pytest.approx(row["fd_reconstruction"], rel=1e-4)
    assert "of 1,000 at the 80 sites of the images looked at" in said.out


def test_a_model_in_latents_is_judged(command: Command, runs: dict[str, Path], tmp_path: Path, cache: str) -> None:
    said = command(
        "eval", f"ckpt={runs['in_vae']}", "n=40", "out=out", cache, "extractor.epochs=1", "guidance=1",
        "metrics=fd,bits,denoising,reconstruction",
    )  # fmt: skip
    row = row_of(said, tmp_path / "out")
    assert row["fd_floor_reconstruction"] > row["fd_floor_test"] > 0
    assert row["fd_floor_reconstruction"] == pytest.approx(row["fd_reconstruction"], rel=1e-4)
    assert 0 < row["bits"] < 12 and row["bits_error"] > 0 and row["bits_images"] == 40
    assert row["denoising_test"] == pytest.approx(1, abs=0.8), "of latents, whose deviation is 1"
    head = next(line for line in said.out.splitlines() if "better" in line)
    assert head.split() == ["value", "held-out", "halves", "reconstructed", "better"]
    assert "bits/dim, bound through latents, held-out images" in said.out


def test_where_nothing_is_held_out_it_is_said(
    command: Command, learn: Callable[..., Path], tmp_path: Path, cache: str
) -> None:
    (tmp_path / "pictures").mkdir()
    for i, pixels in enumerate(torch.randint(256, (8, 12, 12), generator=torch.Generator().manual_seed(0))):
        Image.fromarray(pixels.to(torch.uint8).numpy()).save(tmp_path / "pictures" / f"{i}.png")
    data = ["dataset=image_folder", "dataset.root=pictures", "dataset.size=12"]
    run = learn(tmp_path / "run", *data, "method=vae", *ENCODER, "train.images=64")
    said = command("eval", f"ckpt={run}", "out=out", cache, "extractor=pixels")
    row = row_of(said, tmp_path / "out")
    assert (row["elbo_of"], row["reconstruction_of"], row["reconstructed"]) == ("train", "train", 8)
    assert -1 < row["ssim"] < 1 and row["ssim_error"] > 0 and "fd_reconstruction_floor_test" not in row
    assert "bound, bits/dim, training images" in said.out and "no images are held out: figures of the model" in said.out


@pytest.mark.parametrize(
    ("run", "metric", "words"),
    [
        ("vae", "bits", "metrics=bits is of a path of noise, and ckpt is an autoencoder"),
        ("vae", "vlb", "metrics=vlb is of a path of noise"),
        ("fsq", "denoising", "metrics=denoising is of a path of noise"),
        ("vae", "cas", "metrics=cas is not a metric of autoencoders"),
        ("in_vae", "elbo", "metrics=elbo is of an autoencoder alone, and ckpt is a model of latents"),
        ("in_vae", "vlb", "metrics=vlb is a bound on bits of pixels, and ckpt was trained in latents"),
        ("in_fsq", "bits", "metrics=bits needs a density of latents, and those of ckpt are codes"),
        ("tiny", "elbo", "metrics=elbo is of an autoencoder, and ckpt has none"),
        ("tiny", "reconstruction", "metrics=reconstruction is of an autoencoder, and ckpt has none"),
    ],
)
def test_what_cannot_be_measured(
    command: Command, runs: dict[str, Path], tiny_model: Path, tmp_path: Path, run: str, metric: str, words: str
) -> None:
    said = command("eval", f"ckpt={({**runs, 'tiny': tiny_model})[run]}", f"metrics={metric}", "out=out", "cache=cache")
    assert (said.code, said.err.count("\n")) == (2, 1), said.err
    assert words in said.err and "choose some of [fd, " in said.err
    assert not (tmp_path / "out").exists()


def test_pictures_alone_have_no_autoencoder(command: Command) -> None:
    said = command("eval", "images=x", "dataset=digits", "metrics=reconstruction")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "metrics=reconstruction is a metric of a model and needs ckpt=PATH" in said.err


def test_too_few_reconstructions_are_told() -> None:
    row = {"images": 300, "training_images": 300, "features": 128, "floor_images": 90}
    row |= {"fd": 1, "fd_floor_reconstruction": 1, "extractor": "pixels"}
    assert few.too_few(row)["fd_floor_reconstruction"].startswith("90 reconstructions for 128 features")
    assert "Frechet distance of reconstructions: 90 reconst" in "\n".join(report.table(row))


def test_kinds_are_pictures_still() -> None:
    assert in_latents(standard()).pictures == Pixels()
