"""Autoencoders, and diffusion in their latents, of the embedded digits and of 64x64 photographs, by the commands.

    python scripts/autoencoder_results.py [digits] [photos] [--runs FOLDER]

Digits: `method=vae` and `method=fsq`, each 25,600 images, and a model in the latents of the first. Photographs: pieces
of 64x64 pixels of the two that scikit-learn carries, a Chinese palace and a flower, as two classes; two strips of both
are held out, so that nothing judged was seen. Five minutes of an autoencoder, five of a model in its latents.

Writes what `diffgen-eval` says to benchmarks/results/autoencoders-<part>.json, with the wall and CPU seconds of each
training, and the pictures of docs/autoencoders.md. Runs that FOLDER holds are not trained again.
"""

import argparse
import json
import shutil
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from benchmark.facts import ROOT, commit, environment, machine, timed_once, versions
from PIL import Image
from sklearn.datasets import load_sample_images

from diffgen.core.files import write_json

IMAGES = ROOT / "docs" / "images"
SIDE, STEP, STRIPS = 64, 8, ((160, 240), (400, 480))
"""Of a piece, from one to the next, and the columns of the strips in which pieces are held out."""

Row = dict[str, Any]


def command(name: str, *settings: str) -> None:
    """Run one of diffgen's commands."""
    subprocess.run([sys.executable, "-m", f"diffgen.cli.{name}", *settings], check=True, env=environment())


def trained(run: Path, *settings: str) -> Row:
    """Train a run unless it is there; how, and what it took."""
    told = [each for each in settings if "/" not in each]  # no places of this machine
    return timed_once(run, lambda: command("train", *settings, f"run_dir={run}"), settings=told)


def evaluated(run: Path, *settings: str) -> Row:
    """What `diffgen-eval` says of a run."""
    shutil.rmtree(run / "eval", ignore_errors=True)
    command("eval", f"ckpt={run}", f"out={run}/eval", *settings)
    rows = (run / "eval" / "results.jsonl").read_text().splitlines()
    row: Row = json.loads(rows[-1])
    return {key: value for key, value in row.items() if key != "ckpt"}  # a place of this machine


def digits(runs: Path) -> Row:
    """The table of docs/evaluation.md."""
    vae, fsq, latent = (runs / f"digits-{name}" for name in ("vae", "fsq", "latent"))
    times = {
        "vae": trained(vae, "dataset=digits", "method=vae", "train.images=25600"),
        "fsq": trained(fsq, "dataset=digits", "method=fsq", "train.images=25600"),
        "latent": trained(latent, "dataset=digits", f"latent={vae}"),
    }
    rows = {name: evaluated(runs / f"digits-{name}") for name in ("vae", "fsq")}
    rows["latent"] = evaluated(latent, "metrics=auto,bits", "n=360")
    return {"times": times, "rows": rows}


def write_pieces(folder: Path) -> None:
    """The photographs in pieces: those to learn from, and those of the strips."""
    for name, pixels in zip(("palace", "flower"), load_sample_images().images, strict=True):
        height, width, _ = pixels.shape
        for y in range(0, height - SIDE + 1, STEP):
            for x in range(0, width - SIDE + 1, STEP):
                inside = any(first <= x <= last - SIDE for first, last in STRIPS)
                if not inside and any(first - SIDE < x < last for first, last in STRIPS):
                    continue  # on both sides of an edge
                place = folder / ("apart" if inside else "train") / name
                place.mkdir(parents=True, exist_ok=True)
                piece = np.ascontiguousarray(pixels[y : y + SIDE, x : x + SIDE])
                Image.fromarray(piece).save(place / f"{y}-{x}.png")


def photos(runs: Path) -> Row:
    """The table of docs/autoencoders.md."""
    pieces, vae, latent = runs / "pieces", runs / "photos-vae", runs / "photos-latent"
    if not pieces.exists():
        write_pieces(pieces)
    data = ["dataset=image_folder", f"dataset.root={pieces}/train", f"dataset.held_out={pieces}/apart"]
    times = {
        "vae": trained(vae, *data, "method=vae", "train.minutes=5"),
        "latent": trained(latent, *data, f"latent={vae}", "train.minutes=5"),
    }
    rows = {"vae": evaluated(vae), "latent": evaluated(latent, "n=500")}
    out = runs / "photos-samples"
    command("sample", f"ckpt={latent}", "n=36", f"out={out}", "overwrite=true")
    for name, picture in (("", out / "grid.png"), ("-pairs", vae / "eval" / "reconstruction.png")):
        with Image.open(picture) as opened:
            opened.save(IMAGES / f"latents-photos{name}.png")  # without its notes, which name the checkpoint
    return {"times": times, "rows": rows}


PARTS = {"digits": digits, "photos": photos}


def main() -> None:
    """Train, judge, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", default=[*PARTS], help=f"of {', '.join(PARTS)}")
    parser.add_argument("--runs", type=Path, default=Path("outputs/autoencoder-results"))
    args = parser.parse_args()
    args.runs.mkdir(parents=True, exist_ok=True)
    for part in args.parts:
        facts = {
            "machine": machine(),
            "versions": versions("torch", "scikit-learn"),
            "commit": commit(),
            "date": f"{date.today()}",
        }
        write_json(ROOT / "benchmarks" / "results" / f"autoencoders-{part}.json", PARTS[part](args.runs) | facts)


if __name__ == "__main__":
    main()
