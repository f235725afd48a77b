"""Inpainting, image to image, interpolation and trajectories, on a denoiser that is known in closed form."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from rows import schedule

from diffgen.core.errors import DataError, UsageError
from diffgen.core.registry import bind, build
from diffgen.data.kinds import Pixels
from diffgen.diffusion.samplers import SAMPLERS, time_grid
from diffgen.diffusion.tasks import TASKS, Plan, Run, slerp
from diffgen.objectives import Denoise

FLOW = schedule("rectified_flow")
TS = time_grid(FLOW, steps=20, spacing="uniform", rho=7.0, sigma_max=80.0, sigmas=None, skip_to=None)
SHAPE = (1, 4, 4)
STD = 0.5


def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """E[x0 | x] for x0 ~ N(0, STD^2)."""
    alpha, sigma = FLOW.alpha(t), FLOW.sigma(t)
    return alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * x


class Exact:
    """The same as a frame."""

    schedule = FLOW

    def __call__(self, x: torch.Tensor, t: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        return denoise(x, t.reshape(-1, 1, 1, 1))


def noise(indices: list[int], seed: int | None) -> torch.Tensor:
    generators = (torch.Generator().manual_seed(100 * (seed or 0) + i) for i in indices)
    return torch.stack([torch.randn(SHAPE, generator=g, dtype=torch.float64) for g in generators])


PICTURES = {
    "a": torch.linspace(-1, 1, 16, dtype=torch.float64).reshape(SHAPE),
    "b": torch.linspace(1, -1, 16, dtype=torch.float64).reshape(SHAPE) ** 3,
    "top": torch.tensor([1.0, 1, -1, -1], dtype=torch.float64)[None, :, None].expand(SHAPE),
}


def run(n: int, ts: torch.Tensor = TS) -> Run:
    def state(noise: torch.Tensor) -> torch.Tensor:
        return Denoise().start(noise, Exact(), ts[0])  # type: ignore[arg-type]

    def start(indices: list[int]) -> torch.Tensor:
        return state(noise(indices, None))

    def shade(path: str) -> torch.Tensor:
        return (PICTURES[path].mean(0, keepdim=True) + 1) * 127.5

    def keep(x0: torch.Tensor, free: torch.Tensor, window: int = 0) -> Any:
        return Denoise().keep(x0, free, start)

    def template(text: str, mark: str) -> Any:
        return Pixels().template(text, mark, SHAPE)

    def film(path: str) -> torch.Tensor:
        return Pixels().film(path, SHAPE)

    return Run(
        schedule=FLOW,
        ts=ts,
        noise=noise,
        picture=PICTURES.__getitem__,
        shade=shade,
        film=film,
        size=SHAPE,
        state=state,
        noise_of=lambda x0, rtol: Denoise().noise_of(x0, Exact(), ts[0], rtol),  # type: ignore[arg-type]
        original=lambda path: Pixels().decode(PICTURES[path][None])[0],
        kept=lambda image, mask: None,
        n=n,
        start=start,
        keep=keep,
        template=template,
    )


def plan(n: int = 3, **config: Any) -> Plan:
    return build(TASKS, config, run(n))


def sample(p: Plan, n: int = 3, name: str = "heun") -> torch.Tensor:
    options = {
        "heun": {"s_churn": 0.0, "s_min": 0.0, "s_max": None, "s_noise": 1.0},
        "ancestral": {"variance": "small"},
    }
    walk = bind(SAMPLERS, {"name": name, **options[name]})
    return walk(p.wrap(denoise), FLOW, p.start(list(range(n))), p.ts, lambda i: noise(list(range(n)), i + 1))


@pytest.mark.parametrize("sampler", ["heun", "ancestral"])
def test_inpainting_keeps_what_is_black_and_paints_what_is_white(sampler: str) -> None:
    images = sample(plan(name="inpaint", image="a", mask="top"), name=sampler)
    assert torch.allclose(images[:, :, 2:], PICTURES["a"][:, 2:].expand(3, 1, 2, 4))
    painted = images[:, :, :2]
    assert float((painted[0] - painted[1]).abs().max()) > 0.1, "each image is painted anew"


def test_strength_decides_how_much_of_the_picture_is_left() -> None:
    distances = []
    for strength in (0.05, 0.5, 1.0):
        p = plan(name="img2img", image="a", strength=strength)
        assert len(p.ts) == round(20 * strength) + 1
        assert p.ts[-1] == 0
        distances.append(float((sample(p) - PICTURES["a"]).square().mean().sqrt()))
    assert distances[0] < 0.1 < distances[1] < distances[2]


def test_full_strength_is_new_images() -> None:
    assert torch.equal(sample(plan(name="img2img", image="a", strength=1.0)), sample(plan(name="generate")))


def test_interpolation_between_seeds_ends_at_both() -> None:
    path = plan(5, name="interpolate", seeds=[1, 2], images=None, rtol=1e-6).start([0, 2, 4])
    assert torch.allclose(path[0], noise([0], 1)[0])
    assert torch.allclose(path[2], noise([0], 2)[0])
    assert torch.allclose(path[1].norm(), (path[0].norm() + path[2].norm()) / 2, rtol=0.05), (
        "the length of noise is kept"
    )


def test_interpolation_between_pictures_finds_them_again() -> None:
    p = plan(5, name="interpolate", seeds=None, images=["a", "b"], rtol=1e-7)
    x = p.start([0, 1, 2, 3, 4])
    fine = time_grid(FLOW, steps=400, spacing="uniform", rho=7.0, sigma_max=80.0, sigmas=None, skip_to=None)
    images = sample(p._replace(ts=fine, start=lambda indices: x), 5)
    assert torch.allclose(images[0], PICTURES["a"], atol=5e-3)
    assert torch.allclose(images[4], PICTURES["b"], atol=5e-3)


def test_slerp_walks_the_circle_evenly() -> None:
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 2.0])
    third = slerp(a, b, 1 / 3)
    assert torch.allclose(third, 2 * torch.tensor([3**0.5 / 2, 0.5]))
    assert torch.equal(slerp(a, a, 0.3), a)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"name": "img2img", "image": "a", "strength": 0.0}, r"task.strength=0.0 must be in \(0, 1\]"),
        ({"name": "img2img", "image": None, "strength": 0.5}, "task.image is missing"),
        ({"name": "img2img", "image": None, "strength": 0.5}, "^task.image is missing"),
        ({"name": "inpaint", "image": "a", "mask": None}, "task.mask is missing"),
        ({"name": "trajectory", "frames": 1}, r"task.frames=1 must be in \[2, 64\]"),
        ({"name": "interpolate", "seeds": None, "images": None, "rtol": 1e-4}, "must be given, and not both"),
        ({"name": "interpolate", "seeds": [1], "images": None, "rtol": 1e-4}, "between two"),
        ({"name": "paint"}, "task.name='paint' is unknown"),
    ],
)
def test_what_does_not_fit_is_refused(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        plan(**config)


def test_pictures_are_fitted_to_the_model(tmp_path: Path) -> None:
    Image.fromarray(np.full((20, 40, 3), [255, 0, 127], np.uint8)).save(tmp_path / "rgb.png")
    assert Pixels().read(str(tmp_path / "rgb.png"), (3, 8, 6)).shape == (3, 8, 6)
    assert Pixels().read(str(tmp_path / "rgb.png"), (1, 8, 8)).unique().numel() == 1
    assert torch.allclose(Pixels().read(str(tmp_path / "rgb.png"), (3, 8, 8))[:, 0, 0], torch.tensor([1, -1, -1 / 255]))
    (tmp_path / "bad.png").write_text("no picture")
    for name in ("bad.png", "missing.png"):
        with pytest.raises(DataError, match=name):
            Pixels().read(str(tmp_path / name), (3, 8, 8))


def test_commands(command: Any, tiny_run: Path, tmp_path: Path) -> None:
    """Each task from the shell, on a trained network."""
    Image.fromarray(np.tile(np.uint8([0, 255]), (8, 4))).save(tmp_path / "a.png")
    for task, files in {
        "trajectory task.frames=4": {"grid.png", "trajectory.gif"},
        "img2img task.image=a.png sampler.steps=6": {"grid.png"},
        "inpaint task.image=a.png task.mask=a.png": {"grid.png"},
        "interpolate task.seeds=[1,2] label=3": {"grid.png"},
        "interpolate task.images=[a.png,a.png] task.rtol=0.1": {"grid.png"},
    }.items():
        name, *rest = task.split()
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        said = command("sample", f"ckpt={tiny_run}", "n=3", f"out={out.name}", f"task={name}", *rest)
        assert said.code == 0, said.err
        assert {file.name for file in out.iterdir()} == files
    wide = Image.open(tmp_path / "1" / "grid.png").size
    assert wide[0] / wide[1] == pytest.approx(4 / 3, rel=0.05), "three strips of four"


def test_interpolation_follows_a_grid_that_starts_below_pure_noise() -> None:
    ts = TS[8:]
    p = build(TASKS, {"name": "interpolate", "seeds": None, "images": ["a", "b"], "rtol": 1e-8}, run(2, ts))
    alpha, sigma = float(FLOW.alpha(ts[0])), float(FLOW.sigma(ts[0]))
    expected = PICTURES["a"] * (alpha**2 * STD**2 + sigma**2) ** 0.5 / STD  # the ODE of a Gaussian only scales
    assert torch.allclose(p.start([0])[0], expected, rtol=1e-2)
