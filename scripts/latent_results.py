"""What an autoencoder and diffusion in its latents learn of MNIST in minutes, beside diffusion of pixels.

    python scripts/latent_results.py [--root data] [--runs FOLDER]

Trains the three with the commands of the README, unless FOLDER has them, and judges 500 samples of every kept
checkpoint at the default guidance as `check_samples.py` does: a support vector machine that never saw a model, and the
Frechet distance on 64 principal components to held-out digits. What is compared is the CPU time of training (user and
system, all threads; the autoencoder's counts for the model of latents) after which both figures are reached: 96 % of
the labels as asked, and 1.5 times the distance of training digits to held-out ones. Writes
benchmarks/results/latents-mnist.json and the pictures of docs/autoencoders.md.
"""

import argparse
import json
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmark.facts import ROOT, commit, environment, machine, timed_once, versions
from check_samples import Array, frechet, real, sample
from sklearn.decomposition import PCA
from sklearn.svm import SVC

from diffgen.build import restore
from diffgen.core.files import write_json
from diffgen.data.images import grid, save_png, to_float, to_uint8
from diffgen.storage import checkpoint

RESULT = ROOT / "benchmarks" / "results" / "latents-mnist.json"
IMAGES = ROOT / "docs" / "images"
N = 500
ENOUGH, NEAR = 0.96, 1.5

RUNS: dict[str, list[str]] = {
    "autoencoder": ["method=vae", "train.minutes=2"],
    "latents": ["latent={autoencoder}", "train.minutes=4", "train.keep_every=12_800"],
    "pixels": ["train.minutes=8", "train.keep_every=12_800"],
}
"""Settings beside the data set's, by run."""


def trained(folder: Path, name: str, root: str) -> dict[str, Any]:
    """Train one of `RUNS` unless it is there; wall and CPU seconds of the command, and where it ran."""
    paths = {run: str(folder / run) for run in RUNS}
    settings = [each.format(**paths) for each in RUNS[name]]
    command = ["dataset=mnist", f"dataset.root={root}", *settings, f"run_dir={paths[name]}"]
    train = [sys.executable, "-m", "diffgen.cli.train", *command]
    return timed_once(folder / name, lambda: subprocess.run(train, check=True, env=environment()))


class Judge:
    """Real digits, and a classifier of them."""

    def __init__(self, root: str) -> None:
        """Train it."""
        train, labels = real("mnist", root, "train", 12_000)
        self.test, self.test_labels = real("mnist", root, "test", 2_000)
        self.features = PCA(64, random_state=0).fit(train).transform
        self.classifier = SVC(C=10).fit(self.features(train), labels)
        self.floor = frechet(self.features(train), self.features(self.test))

    def of(self, images: Array, labels: Any) -> dict[str, float]:
        """Both figures of images [n, D] in [-1, 1]."""
        features = self.features(images)
        distance = frechet(features, self.features(self.test))
        return {"accuracy": float(self.classifier.score(features, labels)), "frechet": round(distance, 3)}


def curve(run: Path, judge: Judge, took: dict[str, Any], before: float) -> list[dict[str, float]]:
    """Figures of each kept checkpoint of a run, which `took` what is said, and before which `before` CPU seconds went.

    What comes ahead of its first step, the encoding above all, is counted with the first checkpoint, by wall time.
    """
    folders = checkpoint.complete(run / "checkpoints")[::-1]
    last, rows = int(folders[-1].name), []
    steps = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])["seconds"] / took["seconds"]
    cpu, before = steps * took["cpu_seconds"], before + (1 - steps) * took["cpu_seconds"]
    for folder in folders:
        images = int(folder.name)
        began = time.process_time()
        samples, labels, _ = sample(folder, N, float(checkpoint.load(folder).config["guidance"]), 0, None)
        row = {"images": images, "cpu_seconds": round(before + cpu * images / last, 1), **judge.of(samples, labels)}
        rows.append(row | {"sampling_cpu_seconds": round(time.process_time() - began, 1)})
        print(run.name, rows[-1], flush=True)
    return rows


def reached(rows: list[dict[str, float]], floor: float) -> dict[str, dict[str, float | None]]:
    """CPU seconds of the first checkpoint with each figure, and of that from which all have it; None if none does."""
    good = {
        "accuracy": [row["accuracy"] >= ENOUGH for row in rows],
        "frechet": [row["frechet"] <= NEAR * floor for row in rows],
    }
    good["both"] = [a and b for a, b in zip(*good.values(), strict=True)]
    seconds = [row["cpu_seconds"] for row in rows]
    return {
        key: {
            "first": next((second for second, now in zip(seconds, each, strict=True) if now), None),
            "for_good": next((second for at, second in enumerate(seconds) if all(each[at:])), None),
        }
        for key, each in good.items()
    }


def reconstructed(run: Path, judge: Judge) -> dict[str, float]:
    """The held-out digits through the autoencoder; writes the picture of pairs."""
    frame = restore(checkpoint.load(run)).denoiser
    x = torch.from_numpy(judge.test).float().reshape(-1, 1, 28, 28)
    with torch.inference_mode():
        back = torch.cat([frame.decode(frame.encode(some).mean) for some in x.split(256)])
    pairs = torch.stack([x[:40].unflatten(0, (2, 20)), back[:40].unflatten(0, (2, 20))], 1).flatten(0, 2)
    save_png(grid(to_uint8(pairs), columns=20), IMAGES / "latents-mnist-pairs.png")
    mse = (to_float(to_uint8(back)) - x).square().flatten(1).mean(1) / 4
    levels = to_float(to_uint8(back)).flatten(1).double().numpy()
    return {"psnr": round(float((-10 * mse.log10()).mean()), 2), **judge.of(levels, judge.test_labels)}


def evaluated(run: Path, root: str) -> dict[str, float]:
    """The bounds on bits/dim of 1,000 held-out digits by diffgen-eval."""
    command = [f"ckpt={run}", f"dataset.root={root}", "metrics=elbo", "n=1000", f"out={run}/eval"]
    subprocess.run([sys.executable, "-m", "diffgen.cli.eval", *command], check=True, env=environment())
    row = json.loads((run / "eval" / "results.jsonl").read_text().splitlines()[-1])
    return {key: value for key, value in row.items() if key.startswith(("elbo", "iwae")) and np.isreal(value)}


def main() -> None:
    """Train, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", default="data")
    parser.add_argument("--runs", type=Path, default=Path("outputs/latent-results"))
    args = parser.parse_args()
    times = {name: trained(args.runs, name, args.root) for name in RUNS}
    judge = Judge(args.root)
    before = times["autoencoder"]["cpu_seconds"]
    rows = {
        "latents": curve(args.runs / "latents", judge, times["latents"], before),
        "pixels": curve(args.runs / "pixels", judge, times["pixels"], 0.0),
    }
    samples, _, _ = sample(args.runs / "latents", 100, 1.5, 0, None)
    save_png(
        grid(to_uint8(torch.from_numpy(samples).float().reshape(-1, 1, 28, 28)), columns=10),
        IMAGES / "latents-mnist.png",
    )
    result = {
        "real": {"accuracy": judge.of(judge.test, judge.test_labels)["accuracy"], "frechet_floor": judge.floor},
        "reconstructions": reconstructed(args.runs / "autoencoder", judge),
        "bits": evaluated(args.runs / "autoencoder", args.root),
        "times": times,
        "curves": rows,
        "reached": {name: reached(row, judge.floor) for name, row in rows.items()},
        "n": N,
        "machine": machine(),
        "versions": versions("torch", "scikit-learn"),
        "commit": commit(),
        "date": f"{date.today()}",
    }
    write_json(RESULT, result)
    print(json.dumps({key: value for key, value in result.items() if key != "curves"}, indent=2))


if __name__ == "__main__":
    main()
