"""Few steps on CIFAR-10: a flow is trained for some minutes, and what brings its network calls down begins from it.

The lengths are those of a first look, on one GPU and in one sitting: figures say how the ways compare after so many
minutes, and nothing of what they reach. Distances are of the features of a classifier, as that of the speed-run's
images; where CIFAR-10 is not at hand there is nothing to judge by, and only speed is told.
"""

import json
import re
import shutil
from pathlib import Path

from diffgen.core.files import read_rows
from programme import commands
from programme.work import PLUGIN, RANDOM, Piece, Row, Skipped, Unfinished, Work

MINUTES = {"flow": 3.0, "ect": 3.0, "mean_flow": 3.0, "reflow": 2.0, "worse": 0.5}
"""Of training, by the name of the run."""

JUDGED, PAIRS, OWN = 5_000, 20_000, 10_000
"""Images that a distance is of, pairs for reflow, and samples for neon."""

RESERVE = 100.0  # seconds in which a run is judged and recorded
TRIED = re.compile(r"w = (\S+) +Frechet distance (\S+)")

FEW = "sampler.steps=1,2,4,8"
MANY = "sampler=heun"  # in 18 steps: 35 calls
TUNED = ["optimizer.lr=3e-4"]  # of weights that are good already


def place(work: Work, name: str) -> Path:
    """A folder of this part."""
    return work.folder / "few-steps" / name


def settings(work: Work, name: str, *more: str) -> list[str]:
    """Of a run of the speed-run's network, that by `more` is another one."""
    minutes = 0.02 if work.tiny else MINUTES[name]
    chosen = ["experiment=cifar10_fast", "weighting=unit", *work.network(), f"train.minutes={minutes}", *more]
    few = ["train.batch_size=8", "train.log_every=8", "preview.n=4", "train.checkpoint_every=4000"]
    return chosen + (few if work.tiny else [])


def trained(work: Work, name: str, *more: str) -> Row:
    """Train until the time is nearly over, or to the end; what its log says.

    Raises:
        Unfinished: The run is not over.
        RuntimeError: It failed.
    """
    folder = place(work, name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    over, text = commands.train(work, settings(work, name, *more), folder, 0.0 if work.tiny else RESERVE)
    row = {"data": work.pictures, **commands.progress(folder), **commands.peak(text)}
    if not over:
        raise Unfinished(f"{row['images']:,} images seen", row)
    return row


def base(work: Work) -> Path:
    """The flow that the others begin from.

    Raises:
        Unfinished: It is not there yet.
    """
    status = place(work, "flow") / "status.json"
    if not status.exists() or json.loads(status.read_text())["state"] != "done":
        raise Unfinished("the flow that it begins from is not over", {})
    return place(work, "flow")


def plugins(work: Work) -> list[str]:
    """What commands need that look at the data of a checkpoint."""
    return [] if work.data else [f"plugins=['{PLUGIN}']"]


def judging(work: Work) -> list[str]:
    """How distances are measured, of all commands that do."""
    quick = ["extractor.epochs=1"] if work.tiny else []
    return ["extractor=classifier", f"cache={work.folder / 'eval'}", *quick]


def judged(work: Work, model: Path, *sweeps: list[str]) -> list[Row]:
    """Distances of a model's samples to the training data; none where the data are random.

    Args:
        work: The programme's.
        model: A run, or the folder of a model.
        sweeps: Settings of samplers, each with commas or without.
    """
    if work.data is None and not work.tiny:
        return []
    out = place(work, f"{model.name}-eval")
    shutil.rmtree(out, ignore_errors=True)
    by = [*(["dataset=cifar10"] if work.data else []), *work.dataset()]  # a run of pairs names no other data
    by += [f"n={16 if work.tiny else JUDGED}", "metrics=[fd]", *judging(work)]
    for sweep in sweeps[:1] if work.tiny else sweeps:
        commands.run(work, commands.command("eval", "-m", f"ckpt={model}", f"out={out}", *by, *sweep))
    return [
        {key: row[key] for key in ("nfe", "fd")} | {"name": row["sampler"]} for row in read_rows(out / "results.jsonl")
    ]


def drawn(work: Work, model: Path, save: str, images: int) -> tuple[Path, list[Row]]:
    """The folder of what a model makes without guidance, and how long that took; what is there is not drawn again."""
    out, few = place(work, save), ["sampler.steps=2"] if work.tiny else []
    if out.exists():
        return out, []
    order = [f"ckpt={model}", f"n={16 if work.tiny else images}", "guidance=1", f"save=[{save}]", *few]
    unfinished = out.with_name(f"{save}-unfinished")
    done = commands.run(work, commands.command("sample", *order, f"out={unfinished}", "overwrite=true"))
    unfinished.rename(out)
    return out, [{"name": f"to draw {save}", "seconds": done.seconds}]


# --- the pieces -------------------------------------------------------------------------------------------------------


def flow(work: Work) -> Row:
    """Trained from scratch: what the others begin from and are compared with."""
    row = trained(work, "flow", "method=flow", *work.dataset())
    return row | {"rows": judged(work, place(work, "flow"), ["sampler=ipndm", "sampler.steps=4,8"], [MANY])}


def grids(work: Work) -> Row:
    """Moments of the data, and a grid for 5 and for 7 calls beside a plain one."""
    model, begun = place(work, "moments"), base(work)
    shutil.rmtree(model, ignore_errors=True)  # with the grids that lie beside it
    order = ["task=covariance", f"ckpt={begun}", f"out={model}", *plugins(work)]
    moments = commands.run(work, commands.command("tune", *order))
    rows = []
    for steps in (2,) if work.tiny else (5, 7):
        sampler = ["sampler=ipndm", f"sampler.steps={steps}"]
        few = ["tune.n=1"] if work.tiny else []
        search = commands.run(
            work, commands.command("tune", "task=grid", f"ckpt={model}", *sampler, *plugins(work), *few)
        )
        found = json.loads((model / "grids" / f"ipndm-{steps}.json").read_text())
        distances = [found["errors"]["logsnr"], found["errors"]["found"]]
        told: list[Row] = judged(work, model, [*sampler, "sampler.spacing=logsnr,tuned"]) or [{"nfe": steps}] * 2
        names = [f"ipndm, {steps} steps, {grid}" for grid in ("logsnr", "found")]
        rows += [{**row, "name": name, "distance": far} for row, name, far in zip(told, names, distances, strict=True)]
        rows[-1]["seconds"] = search.seconds
    return {"data": work.pictures, "rows": [{"name": "moments", "seconds": moments.seconds}, *rows]}


def ect(work: Work) -> Row:
    """Consistency tuning."""
    row = trained(work, "ect", "method=ect", f"train.init={base(work)}", *TUNED, *work.dataset())
    return row | {"rows": judged(work, place(work, "ect"), [FEW])}


def mean_flow(work: Work) -> Row:
    """From data alone."""
    row = trained(work, "mean_flow", "method=mean_flow", *work.dataset())
    return row | {"rows": judged(work, place(work, "mean_flow"), [FEW], [MANY])}


def reflow(work: Work) -> Row:
    """Anew, from pairs that the flow has made."""
    out, rows = drawn(work, base(work), "pairs", PAIRS)
    data = ["dataset=pairs", f"dataset.path={out / 'pairs.safetensors'}", "train.horizontal_flip=false"]
    row = trained(work, "reflow", "method=reflow", f"train.init={base(work)}", *TUNED, *data)
    return row | {"rows": [*rows, *judged(work, place(work, "reflow"), [FEW], [MANY])]}


def neon(work: Work) -> Row:
    """Away from what training on own samples makes of the flow: each scale that was tried, and the best anew.

    Raises:
        Skipped: There is nothing to choose a scale by.
    """
    if work.data is None and not work.tiny:
        raise Skipped(f"{RANDOM}: there is nothing to judge")
    begun, out = base(work), place(work, "neon")
    shutil.rmtree(out, ignore_errors=True)
    own, drawing = drawn(work, begun, "npz", OWN)
    data = ["dataset=arrays", f"dataset.path={own / 'samples.npz'}"]
    row = trained(work, "worse", "method=flow", f"train.init={begun}", *TUNED, *data)
    few = ["tune.n=16", "tune.scales=[1.0]", "sampler.steps=2"] if work.tiny else []
    order = [
        f"ckpt={begun}",
        f"tune.tuned={place(work, 'worse')}",
        "guidance=1",
        f"out={out}",
        *judging(work),
        *plugins(work),
        *few,
    ]
    done = commands.run(work, commands.command("tune", "task=neon", *order))
    rows: list[Row] = [{"name": f"w = {scale}", "fd": float(fd)} for scale, fd in TRIED.findall(done.text)]
    best = judged(work, out, [MANY]) if out.exists() else []
    return row | {"rows": [*drawing, {"name": "to choose w", "seconds": done.seconds}, *rows, *best]}


PIECES = {
    "method=flow": Piece(8, flow),
    "task=grid": Piece(7, grids),
    "method=ect": Piece(7, ect),
    "method=mean_flow": Piece(8, mean_flow),
    "method=reflow": Piece(7, reflow),
    "task=neon": Piece(6, neon),
}
