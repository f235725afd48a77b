"""Judge samples of digits or MNIST by a classifier that never saw the model, and write the figures to a result file.

    python scripts/check_samples.py CKPT --data digits [--root data] [--n 500] [--guidance 1 1.5] [--steps 1 2]
        [--samplers heun euler] [--seeds 0 1 2] [--out FILE.json]

Accuracy is the share of samples whose label a support vector machine, trained on the real training images, agrees with.
The Frechet distance is between Gaussians fitted to raw pixels in [-1, 1] (64 of them; for MNIST to 64 principal
components), against held-out real images; its floors are all real training images against these, and as many of them
as there are samples, in the mean of 20 draws: few images of any kind are further away. How far these draws are apart
is how far samples of several seeds may be. The nearest-neighbour ratio is the median distance of a sample to the
training set over that of a held-out image: far below 1 would mean copying.
"""

import argparse
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark.facts import machine
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors
from sklearn.svm import SVC

from diffgen import __version__
from diffgen.build import restore
from diffgen.cli.configs import compose_group
from diffgen.core.registry import build
from diffgen.data import DATASETS
from diffgen.data.images import to_float
from diffgen.diffusion.guidance import Guidance
from diffgen.sampling.drawing import Sampling
from diffgen.sampling.labels import cycle_labels
from diffgen.storage import checkpoint

Array = NDArray[np.float64]


def real(data: str, root: str, split: str, limit: int) -> tuple[Array, NDArray[np.int64]]:
    """Real images [N, D] in [-1, 1] and labels."""
    config = {"name": data, "split": split} | ({} if data == "digits" else {"root": root})
    images = build(DATASETS, config)
    pixels = to_float(images.pixels[:limit]).flatten(1).double().numpy()
    return pixels, images.labels[:limit].numpy()


def sample(
    ckpt: Path, n: int, guidance: float, seed: int, steps: int | None, name: str | None = None
) -> tuple[Array, list[int], int]:
    """n samples [n, D] in [-1, 1], as 8-bit pixels would hold them, the labels asked for, and network calls of each.

    The sampler is the checkpoint's own unless `name` is given.
    """
    saved = checkpoint.load(ckpt)
    cpu = torch.device("cpu")
    guide = Guidance(scale=guidance)
    trained = restore(saved)
    labels = cycle_labels(n, trained.shape.num_classes)
    own = saved.config["sampler"] if name is None else compose_group("sampler", name)
    sampler = own | ({} if steps is None else {"steps": steps})
    sampling = Sampling.from_config(trained, sampler, guidance=guide, seed=seed, device=cpu)
    pixels = torch.cat(list(sampling.examples(list(range(n)), labels, 100)))
    return to_float(pixels).flatten(1).double().numpy(), labels, sampling.nfe


def frechet(a: Array, b: Array) -> float:
    """Frechet distance between Gaussians fitted to two sets."""
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    root = sqrtm(cov_a @ cov_b + 1e-9 * np.eye(len(cov_a))).real
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a + cov_b - 2 * root))


def median_distance(queries: Array, training: Array) -> float:
    """Median distance to the nearest training image."""
    return float(np.median(NearestNeighbors(n_neighbors=1).fit(training).kneighbors(queries)[0]))


class Judge:
    """Real images, and a classifier of them."""

    def __init__(self, data: str, root: str) -> None:
        """Train it."""
        self.train, labels = real(data, root, "train", 12_000)
        self.test, self.test_labels = real(data, root, "test", 2_000)
        self.features = (lambda x: x) if data == "digits" else PCA(64, random_state=0).fit(self.train).transform
        self.classifier = SVC(C=10).fit(self.features(self.train), labels)
        self.held_out = median_distance(self.test, self.train)

    def real(self, n: int) -> dict[str, float]:
        """Figures of held-out images, and of n training images."""
        train, test = self.features(self.train), self.features(self.test)
        rng = np.random.default_rng(0)
        draws = [frechet(train[rng.choice(len(train), min(n, len(train)), replace=False)], test) for _ in range(20)]
        return {
            "accuracy": float(self.classifier.score(test, self.test_labels)),
            "frechet_train_test": frechet(train, test),
            "frechet_as_many_as_samples": float(np.mean(draws)),
            "deviation_of_these": float(np.std(draws, ddof=1)),
        }

    def of(
        self, ckpt: Path, n: int, guidance: float, seed: int, steps: int | None = None, sampler: str | None = None
    ) -> dict[str, Any]:
        """Figures of n samples."""
        samples, labels, nfe = sample(ckpt, n, guidance, seed, steps, sampler)
        return {
            "seed": seed,
            "guidance": guidance,
            **({} if sampler is None else {"sampler": sampler}),
            **({} if steps is None else {"steps": steps}),
            "nfe": nfe,
            "accuracy": float(self.classifier.score(self.features(samples), labels)),
            "frechet": frechet(self.features(samples), self.features(self.test)),
            "nearest_neighbour_ratio": median_distance(samples, self.train) / self.held_out,
        }


def judge(args: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    by, saved = Judge(args.data, args.root), checkpoint.load(args.ckpt)
    wanted = itertools.product(args.seeds, args.guidance, args.steps, args.samplers)
    return {
        "data": args.data,
        "images_seen": saved.images,
        "sampler": saved.config["sampler"],
        "n": args.n,
        "real": by.real(args.n),
        "samples": [by.of(args.ckpt, args.n, guidance, seed, steps, name) for seed, guidance, steps, name in wanted],
        "machine": machine(),
        "versions": {"diffgen": __version__, "torch": torch.__version__},
    }


def main() -> None:
    """Parse, judge, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", type=Path)
    parser.add_argument("--data", choices=["digits", "mnist"], required=True)
    parser.add_argument("--root", default="data")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the samples")
    parser.add_argument("--guidance", type=float, nargs="+", default=[1.0, 1.5])
    parser.add_argument("--steps", type=int, nargs="+", default=[None], help="instead of the checkpoint's own")
    parser.add_argument("--samplers", nargs="+", default=[None], help="instead of the checkpoint's own")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    text = json.dumps(judge(args), indent=2)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
