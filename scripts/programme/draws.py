"""Sampling: the command as users type it, and the samplers beside those of other libraries."""

import re
from functools import partial
from pathlib import Path

import torch
from benchmark.layouts import DDPM, EDM, MNIST, TINY, Layout
from benchmark.sampling import sampling

from diffgen.storage.checkpoint import find_newest
from programme import commands
from programme.work import Piece, Row, Work

SAID = re.compile(r"(\d+) images? in ([\d.]+) s .*NFE (\d+)")
GUIDED = ("label=each", "guidance=2", "guidance_interval=[0.3,5]")


def checkpoint(work: Work) -> Path:
    """A run of the speed-run's network that saw a few images: what it draws is noise, at the speed of any weights."""
    folder = work.folder / "sampled"
    if find_newest(folder) is None:
        short = ["train.minutes=null", "train.images=128", "train.batch_size=64", "train.compile=false", "preview.n=4"]
        settings = ["experiment=cifar10_fast", *work.dataset(), *work.network(), *short]
        commands.run(work, commands.command("train", *settings, f"run_dir={folder}"))
    return folder


def command(work: Work, *more: str) -> Row:
    """`diffgen-sample` with as many images as are worth compiling for: images a second, and what it compiled."""
    images = 4 if work.tiny else 2500
    settings = [f"ckpt={checkpoint(work)}", f"n={images}", "save=[npz]", f"out={work.folder / 'drawn'}", *more]
    done = commands.run(
        work, commands.command("sample", *settings, "overwrite=true"), TORCH_LOGS="recompiles,graph_breaks"
    )
    said = SAID.search(done.text)
    if said is None:
        raise RuntimeError(f"diffgen-sample did not say how fast it was:\n{done.text[-1500:]}")
    again = done.text.count("Recompiling function")
    row: Row = {
        "data": work.pictures,
        "images": images,
        "nfe": int(said[3]),
        "images_per_second": images / max(float(said[2]), 0.05),  # told to a tenth of a second
        "command_seconds": done.seconds,
        "recompiles": again,
        "breaks": done.text.count("Graph break"),
    }
    return row | ({"wrong": [f"the network was compiled {again + 1} times"]} if again else {})


def beside_peers(layout: Layout, work: Work) -> Row:
    """Samplers of all libraries that are installed around the same network, in bfloat16 where there is a GPU."""
    with torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_available()):
        told = sampling(1 if work.tiny else 3, layout=TINY if work.tiny else layout, quick=work.tiny)
    return {"batch": told["images"], "rows": told["rows"], "missing": told["missing"]}


PIECES = {
    "diffgen-sample": Piece(3, command),
    "diffgen-sample, guided in an interval": Piece(3, lambda work: command(work, *GUIDED)),
    "MNIST, 1.6 M": Piece(2, partial(beside_peers, MNIST)),
    "DDPM CIFAR-10, 35.7 M": Piece(3, partial(beside_peers, DDPM), alike=True),
    "EDM CIFAR-10, 55.7 M": Piece(3, partial(beside_peers, EDM), alike=True),
}
