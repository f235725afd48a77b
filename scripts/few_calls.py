"""What a few network calls give: the best plain sampler and grid, beside grids that diffgen-tune finds.

    python scripts/few_calls.py CKPT --data digits [--root data] [--calls 5 7] [--samplers ipndm dpmpp_2m]
        [--each ipndm dpmpp_2m unipc heun] --out FILE.json

CKPT keeps the moments of its data (train.covariance=true, or diffgen-tune task=covariance). The distance is the root
mean square over the values of an image, in [-1, 1], to a very fine solution of the same network from the same noise; of
the median image, of images that no grid was chosen by. The Frechet distance is that of check_samples.py. Without
guidance. With --each there are rows of these samplers, too, in their best spacing, from noise and from where a closed
form leads (sampler.skip_to): scripts/few_calls_plot.py draws them. What is best of several is chosen by the distance.
"""

import argparse
import time
from itertools import product
from pathlib import Path
from typing import Any

import torch
from benchmark.facts import machine
from check_samples import Judge, frechet

from diffgen import __version__
from diffgen.build import restore
from diffgen.cli.configs import compose_group
from diffgen.core.files import write_json
from diffgen.data.images import to_float
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.samplers import SAMPLERS
from diffgen.sampling.drawing import Sampling
from diffgen.sampling.labels import cycle_labels
from diffgen.storage import checkpoint
from diffgen.tuning.search import Search

SPACINGS = ("uniform", "quadratic", "karras", "logsnr")
SKIPS = (40.0, 20.0, 10.0, 5.0)  # sigma/alpha down to which a closed form may lead
MANY = 18  # steps of Heun's method: 35 calls
N = 64  # images that grids are chosen by, and as many others to check by
SAMPLES = 500
DRAWN, CHECKED, SEARCHED = 0, 1, 2  # seeds: of these samples, of the images of the distance, and of those of a search
SAME = ("ddim", "euler")  # first order: never the best


def settings(name: str, **changes: Any) -> dict[str, Any]:
    """A sampler's config, without noise and clipping."""
    own = compose_group("sampler", name)
    return {**own, **({"eta": 0.0} if "eta" in own else {}), "clip": False, **changes}


def steps_of(name: str, calls: int) -> int:
    """How many steps of a sampler fit in so many network calls."""
    return (calls + 1) // 2 if SAMPLERS.facts[name].calls == 2 else calls


class Bench:
    """A checkpoint, and what is measured of it."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.trained = restore(checkpoint.load(args.ckpt))
        self.judge = Judge(args.data, args.root)
        self.check = Search(self.sampling(settings("heun")), settings("heun"), self.labels(N), CHECKED)

    def labels(self, n: int) -> list[int]:
        """Every class in turn."""
        return cycle_labels(n, self.trained.shape.num_classes)

    def sampling(self, config: dict[str, Any]) -> Sampling:
        """How to draw."""
        cpu = torch.device("cpu")
        return Sampling.from_config(self.trained, config, guidance=Guidance(scale=1.0), seed=DRAWN, device=cpu)

    def row(self, config: dict[str, Any], **more: Any) -> dict[str, Any]:
        """Distance and Frechet distance of a sampler's config."""
        sampling = self.sampling(config)
        pixels = torch.cat(list(sampling.examples(list(range(SAMPLES)), self.labels(SAMPLES), 100)))
        samples = self.judge.features(to_float(pixels).flatten(1).double().numpy())
        distance = frechet(samples, self.judge.features(self.judge.test))
        grid: dict[str, Any] = {
            key: config[key] for key in ("spacing", "sigmas", "skip_to", "first_step", "weights") if key in config
        }
        found = {"sampler": config["name"], "calls": sampling.nfe, "distance": self.distance(config)}
        return {**found, "frechet": round(distance, 4), **grid, **more}

    def distance(self, config: dict[str, Any]) -> float:
        """To the fine solution."""
        return round(float(self.check.error(config).median()), 5)

    def plain(self, calls: int) -> dict[str, Any]:
        """The nearest of all samplers of the ODE in all spacings, in so many calls."""
        configs = []
        for name, facts in SAMPLERS.facts.items():
            if facts.order and name not in SAME:
                steps = steps_of(name, calls)
                configs += [settings(name, steps=steps, spacing=spacing) for spacing in SPACINGS]
        return self.row(min(configs, key=self.distance), grid="plain")

    def each(self, name: str, calls: int) -> list[dict[str, Any]]:
        """A sampler from noise and from a closed form; none where its steps do not make so many calls."""
        if SAMPLERS.facts[name].calls == 2 and calls % 2 == 0:
            return []
        steps, rows = steps_of(name, calls), []
        for grid, levels in (("plain", (None,)), ("skip_to", SKIPS)):
            ways = product(SPACINGS, levels)
            configs = [settings(name, steps=steps, spacing=spacing, skip_to=level) for spacing, level in ways]
            rows.append(self.row(min(configs, key=self.distance), grid=grid))
        return rows

    def tuned(self, name: str, calls: int) -> dict[str, Any]:
        """By a grid that is found."""
        began, config = time.process_time(), settings(name, steps=steps_of(name, calls))
        found = Search(self.sampling(config), config, self.labels(N), SEARCHED).found()
        return self.row(found, grid="found", search_cpu_seconds=round(time.process_time() - began, 1))


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", type=Path)
    parser.add_argument("--data", choices=["digits", "mnist"], required=True)
    parser.add_argument("--root", default="data")
    parser.add_argument("--calls", type=int, nargs="+", default=[5, 7])
    parser.add_argument("--samplers", nargs="+", default=["ipndm"])
    parser.add_argument("--each", nargs="+", default=[])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    saved = checkpoint.load(args.ckpt)
    about = {key: saved.config[key] for key in ("model", "schedule", "parameterization")}
    result = {"machine": machine(), "diffgen": __version__, "data": args.data, "checkpoint": about, "rows": []}
    result |= {"training_images": saved.images, "images": N, "samples": SAMPLES}
    bench = Bench(args)
    result["many_calls"] = bench.row(settings("heun", steps=MANY), grid="plain")
    for calls in args.calls:
        rows = [bench.plain(calls), *(bench.tuned(name, calls) for name in args.samplers)]
        rows += [row for name in args.each for row in bench.each(name, calls)]
        result["rows"] += rows
        write_json(args.out, result)
        print(*rows, sep="\n", flush=True)


if __name__ == "__main__":
    main()
