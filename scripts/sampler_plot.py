"""Error against network calls, for all samplers on one trained checkpoint.

    python scripts/sampler_plot.py CKPT

Writes docs/images/samplers_nfe.png and benchmarks/results/samplers-digits.json. ODE samplers are compared with a very
fine solution of the same network from the same noise. Samplers that add noise have no such solution: for them it is
the energy distance between samples and the training images, beside the distance between random halves of those.
"""

import sys
from pathlib import Path
from typing import Any

import matplotlib
import torch
from benchmark.facts import machine
from few_calls import steps_of
from torch import Tensor

from diffgen import __version__
from diffgen.build import restore
from diffgen.core.files import write_json
from diffgen.core.registry import build, parameters
from diffgen.data import DATASETS
from diffgen.data.images import to_float
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.samplers import SAMPLERS
from diffgen.sampling.drawing import Sampling
from diffgen.sampling.labels import cycle_labels
from diffgen.storage import checkpoint

matplotlib.use("Agg")
from matplotlib import pyplot

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from cases import config  # noqa: E402

SAME = ("ddim", "euler_ancestral", "dpmpp_2m_sde")  # without noise they are euler, euler and dpmpp_2m
ODE: dict[str, dict[str, Any]] = {
    name: {"eta": 0.0} if "eta" in parameters(SAMPLERS[name]) else {}
    for name, facts in SAMPLERS.facts.items()
    if facts.order and name not in SAME
}
NOISY: dict[str, dict[str, Any]] = {
    **{name: {} for name, facts in SAMPLERS.facts.items() if facts.noise and name != "consistency"},  # of another model
    "heun": {"s_churn": 20.0},
    **{"euler": {}, "unipc": {}},  # without noise, to compare
}
SPACINGS = ("uniform", "quadratic", "karras", "logsnr")
BUDGETS = (5, 6, 8, 10, 14, 20, 30, 50, 100)
IMAGES = 64
SAMPLES = 1200
NOISY_BUDGETS = (6, 10, 20, 50)


class Bench:
    """A checkpoint, and its images by any sampler."""

    def __init__(self, path: str) -> None:
        self.saved = checkpoint.load(Path(path))
        self.trained = restore(self.saved)

    def draw(self, n: int, name: str, **changes: Any) -> tuple[Tensor, int]:
        """n images [n, C, H, W] and the number of network calls."""
        settings = {**config("sampler", name), "clip": False, **changes}
        device = torch.device("cpu")
        sampling = Sampling.from_config(self.trained, settings, guidance=Guidance(scale=1.0), seed=0, device=device)
        images = sampling.draw(list(range(n)), cycle_labels(n, self.trained.shape.num_classes))
        return images, sampling.nfe

    def budget(self, n: int, name: str, nfe: int, **changes: Any) -> tuple[Tensor, int]:
        """The same with as many steps as fit in `nfe` calls."""
        return self.draw(n, name, steps=steps_of(name, nfe), **changes)


def ode_errors(bench: Bench) -> list[dict[str, Any]]:
    """Root mean square of a pixel's distance to the fine solution, in the median image; pixels are in [-1, 1]."""
    reference, _ = bench.draw(IMAGES, "heun", steps=2000, spacing="quadratic")
    rows = []

    def note(name: str, spacing: str, images: Tensor, nfe: int) -> None:
        error = float((images - reference).square().flatten(1).mean(1).sqrt().median())
        rows.append({"sampler": name, "spacing": spacing, "nfe": nfe, "error": round(error, 6)})

    for name, options in ODE.items():
        for spacing in SPACINGS:
            for nfe in BUDGETS:
                note(name, spacing, *bench.budget(IMAGES, name, nfe, spacing=spacing, **options))
    for tolerance in (3e-2, 1e-2, 1e-3, 1e-4):
        note("ode", f"rtol {tolerance:g}", *bench.draw(IMAGES, "ode", rtol=tolerance, atol=tolerance))
    return rows


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| over all pairs, unbiased (Szekely & Rizzo 2013); x [N, ...], y [M, ...]."""
    x, y = x.flatten(1).double(), y.flatten(1).double()
    within = [torch.cdist(s, s).sum() / (len(s) * (len(s) - 1)) for s in (x, y)]
    return float(2 * torch.cdist(x, y).mean() - within[0] - within[1])


def noisy_errors(bench: Bench, data: Tensor) -> list[dict[str, Any]]:
    """Energy distance to the data."""
    rows = []
    for name, options in NOISY.items():
        for nfe in NOISY_BUDGETS:
            images, calls = bench.budget(SAMPLES, name, nfe, **options)
            distance = energy_distance(images.clamp(-1, 1), data)
            rows.append({"sampler": name, **options, "nfe": calls, "energy_distance": round(distance, 5)})
    return rows


def floor(data: Tensor) -> tuple[float, float]:
    """Smallest and largest energy distance between two random halves of the data, of 20."""
    half = len(data) // 2
    orders = [torch.randperm(len(data), generator=torch.Generator().manual_seed(seed)) for seed in range(20)]
    distances = [energy_distance(data[order[:half]], data[order[half:]]) for order in orders]
    return round(min(distances), 5), round(max(distances), 5)


def training_images() -> Tensor:
    """The digits the checkpoint was trained on, [N, 1, 8, 8]."""
    dataset = build(DATASETS, {"name": "digits", "split": "train"})
    entries = iter([torch.arange(len(dataset))])
    pixels, _ = next(iter(dataset.batches(entries, torch.device("cpu"))))
    return to_float(pixels)


def plot(ode: list[dict[str, Any]], noisy: list[dict[str, Any]], band: tuple[float, float], path: Path) -> None:
    """Two panels; ODE samplers at the best of their spacings."""
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), dpi=120)
    for name in dict.fromkeys(row["sampler"] for row in ode):
        best: dict[int, float] = {}
        for row in ode:
            if row["sampler"] == name:
                best[row["nfe"]] = min(row["error"], best.get(row["nfe"], 9.0))
        left.loglog(list(best), list(best.values()), marker="o", markersize=3, label=name)
    left.set(
        xlabel="network calls (NFE)",
        ylabel="error of a pixel (RMS, median image)",
        title="distance to the exact ODE solution",
    )
    for name in NOISY:
        points = [row for row in noisy if row["sampler"] == name]
        label = f"{name}, churn" if name == "heun" else name
        right.semilogx([p["nfe"] for p in points], [p["energy_distance"] for p in points], marker="o", label=label)
    right.axhspan(*band, color="grey", alpha=0.25, label="data against data")
    right.set(xlabel="network calls (NFE)", ylabel="energy distance", title="distance to the training images")
    for axes in (left, right):
        axes.legend(fontsize=7)
        axes.grid(True, which="both", alpha=0.2)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Measure, write, draw."""
    torch.set_num_threads(1)
    bench, data = Bench(sys.argv[1]), training_images()
    with torch.no_grad():
        ode, noisy = ode_errors(bench), noisy_errors(bench, data)
    result = {
        "machine": machine(),
        "diffgen": __version__,
        "checkpoint": {k: bench.saved.config[k] for k in ("model", "schedule", "parameterization", "trained")},
        "training_images": bench.saved.images,
        "reference": "heun, 2000 quadratic steps",
        "ode_samplers": {"images": IMAGES, "rows": ode},
        "with_noise": {"images": SAMPLES, "data_against_data": floor(data), "rows": noisy},
    }
    write_json(ROOT / "benchmarks" / "results" / "samplers-digits.json", result)
    plot(ode, noisy, floor(data), ROOT / "docs" / "images" / "samplers_nfe.png")


if __name__ == "__main__":
    main()
