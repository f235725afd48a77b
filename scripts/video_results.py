"""What a model of moving digits learns in minutes on this machine, and how well it goes on with clips.

    python scripts/video_results.py [--run RUN] [--clips N]

Trains it with the command of the README, unless RUN is there, draws and judges it by `diffgen-eval`, and continues N
held-out clips from three frames: in the ways that docs/video.md tells of, and by a network that is told nothing of
them. Writes
benchmarks/results/video-moving_digits.json and the pictures of docs/video.md.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from shutil import copyfile
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from benchmark.facts import ROOT, commit, environment, machine, versions
from torch import Tensor

import diffgen
from diffgen.build import make_splits
from diffgen.core.files import write_json
from diffgen.data.base import Stored
from diffgen.data.images import grid, save_png
from diffgen.data.moving import centres
from diffgen.diffusion.denoiser import Denoiser
from diffgen.evaluation.clip_metrics import constancy

RESULT = ROOT / "benchmarks" / "results" / "video-moving_digits.json"
IMAGES = ROOT / "docs" / "images"
KNOWN, SHOWN = 3, 6


def typed(*command: str) -> float:
    """Run a command; the seconds that it took."""
    began = time.monotonic()
    subprocess.run([sys.executable, "-m", f"diffgen.cli.{command[0]}", *command[1:]], check=True, env=environment())
    return round(time.monotonic() - began, 1)


def held_out(n: int) -> Stored:
    """Clips of digits that nothing was trained on, uint8 [n, T, C, H, W], and their labels."""
    settings = {"name": "moving_digits", "frames": 6, "digits": 1, "n": 50_000, "seed": 0, "split": "train"}
    test = make_splits({"dataset": settings}).test
    assert test is not None
    return next(test.batches(iter([torch.arange(n)]), torch.device("cpu")))


def continued(run: diffgen.Run, clips: Tensor, labels: Tensor | None = None, **settings: Any) -> Tensor:
    """Each clip from its first frames on, by `task=predict`; with its label if there are labels."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, clip in enumerate(clips):
            path = Path(folder, f"{number}.npy")
            np.save(path, clip.permute(0, 2, 3, 1).numpy())
            label = "none" if labels is None else int(labels[number])
            asked = {"task": "predict", "video": str(path), "known": KNOWN, "label": label}
            found.append(run.sample(1, seed=number, **asked, **settings))
    return torch.cat(found)


def judged(made: Tensor, labels: Tensor, out: Path) -> dict[str, float]:
    """What `diffgen-eval` reads on the clips."""
    out.mkdir(parents=True, exist_ok=True)
    np.savez(out / "clips.npz", arr_0=made.permute(0, 1, 3, 4, 2).numpy(), arr_1=labels.numpy())
    typed("eval", f"images={out}/clips.npz", "dataset=moving_digits", "metrics=[checks]", f"out={out}")
    row = json.loads((out / "results.jsonl").read_text().splitlines()[-1])
    return {key: row[key] for key in ("label", "identity", "label_floor_test", "identity_floor_test")}


def figures(made: Tensor, clips: Tensor) -> dict[str, object]:
    """How far the centre is from where it should be, for each further frame, and how alike the digit is to itself."""
    away = (centres(made) - centres(clips)).norm(dim=-1)[:, KNOWN:]
    kept = bool((made[:, :KNOWN] == clips[:, :KNOWN]).all())
    alike, other = (constancy(torch.cat([whose[:, :1], made[:, KNOWN:]], 1)) for whose in (clips, clips.roll(1, 0)))
    shares = (away < 1.5).double().mean(0).tolist()
    return {
        "known_kept": kept,
        "median": away.median(0).values.tolist(),
        "below_1.5": shares,
        "shape": float(alike.mean()),
        "shape_of_another": float(other.mean()),
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=ROOT / "outputs" / "video-results")
    parser.add_argument("--clips", type=int, default=100, help="that are continued")
    args = parser.parse_args()
    run, seconds = args.run.resolve(), {}
    if not (run / "checkpoints").is_dir():
        seconds["train"] = typed("train", "dataset=moving_digits", f"run_dir={run}")
    seconds["sample"] = typed("sample", f"ckpt={run}", "n=50", f"out={run}/clips", "overwrite=true")
    seconds["eval"] = typed("eval", f"ckpt={run}", "n=500", "guidance=auto")
    seconds["eval, no guidance"] = typed("eval", f"ckpt={run}", "n=500", "guidance=1")
    guided, plain = map(json.loads, (run / "eval" / "results.jsonl").read_text().splitlines()[-2:])
    model, (clips, labels) = diffgen.load(run), held_out(args.clips)
    made = {
        "one by one": continued(model, clips, at_once=1),
        "at once": continued(model, clips),
        "labelled": continued(model, clips, labels),
        "guidance 1": continued(model, clips, guidance=1),
        "guidance 4": continued(model, clips, guidance=4),
    }
    with patch.object(Denoiser, "knowing", lambda self, told: self):
        made["replaced"] = continued(model, clips)
    strips = torch.stack([clips[:SHOWN], made["at once"][:SHOWN]], 1).flatten(0, 2)
    save_png(grid(strips, columns=clips.shape[1]), IMAGES / "moving-digits-predicted.png")
    save_png(model.grid(model.sample(10)), IMAGES / "moving-digits.png")
    copyfile(run / "clips" / "samples.gif", IMAGES / "moving-digits.gif")
    row = {
        "seconds": seconds,
        "images": model.images,
        "guided": guided | {"ckpt": "RUN"},
        "plain": plain | {"ckpt": "RUN"},
    }
    row |= {"continued": len(clips), "known": KNOWN}
    row |= {
        way: figures(found, clips) | judged(found, labels, run / "continued" / way.replace(" ", "-"))
        for way, found in made.items()
    }
    row |= {"machine": machine(), "versions": versions(), "commit": commit(), "date": f"{date.today()}"}
    write_json(RESULT, row)


if __name__ == "__main__":
    main()
