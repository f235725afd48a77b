"""How good the speed-run's images are."""

import importlib.util
import json
import shutil
from functools import partial
from pathlib import Path

from diffgen.core.files import cache_folder
from diffgen.evaluation.extractors import INCEPTION
from programme import commands, speed_run
from programme.work import RANDOM, Piece, Row, Skipped, Unfinished, Work

IMAGES = 10_000
PICTURE = "gpu-speed-run.png"
PLUGIN = Path(__file__).with_name("inception_768.py")
INCEPTION_768 = "inception-2015-12-05-to-mixed6e-bnfold-fp16.safetensors"


def judged(extractor: str, work: Work) -> Row:
    """`diffgen-eval` of the speed-run, with the time that it took.

    Raises:
        Skipped: It was trained on pictures at random, or what the extractor needs is not at hand.
        Unfinished: The speed-run is not over.
    """
    run, settings = subject(work)
    settings += [f"ckpt={run}", f"extractor={extractor}", f"cache={work.folder / 'eval'}"]
    if extractor == "inception":
        settings += [f"extractor.weights={inception(work)}"]
    if extractor == "inception_768":
        settings += [f"plugins=['{PLUGIN}']", f"+extractor.weights={found(work, INCEPTION_768)}", "metrics=[fd,kd]"]
    done = commands.run(work, commands.command("eval", *settings))
    row = json.loads((run / "eval" / "results.jsonl").read_text().splitlines()[-1])
    row["ckpt"] = "speed-run"  # wherever it lies
    told = {"images": row["images"], "nfe": row["nfe"], "figures": row, "command_seconds": done.seconds}
    return {**speed_run.length(work), **told}


def subject(work: Work) -> tuple[Path, list[str]]:
    """The run that is judged, and how: settings of `diffgen-eval`. In tiny it is one of digits."""
    if work.tiny:
        run = work.folder / "judged"
        settings = ["experiment=quickstart", *work.network(), "model.patch=1", "train.images=64", "preview.n=4"]
        if not run.exists():
            commands.run(work, commands.command("train", *settings, f"run_dir={run}"))
        return run, ["n=32", "extractor.epochs=1"]
    if work.data is None:
        raise Skipped(f"{RANDOM}: there is nothing to judge")
    run = speed_run.place(work)
    status = run / "status.json"
    if not status.exists() or json.loads(status.read_text())["state"] != "done":
        raise Unfinished("the speed-run is not over", {})
    return run, [f"n={IMAGES}", f"dataset.root={work.data}"]


def inception(work: Work) -> Path:
    """The published weights."""
    if importlib.util.find_spec("torch_fidelity") is None:
        raise Skipped("torch-fidelity is not installed")
    return found(work, INCEPTION)


def found(work: Work, name: str) -> Path:
    """A file of weights beside the data or in diffgen's cache."""
    folders = [*([work.data] if work.data else []), cache_folder() / "eval"]
    for path in (folder / name for folder in folders):
        if path.is_file():
            return path
    raise Skipped("Inception's weights are not at hand")


def picture(work: Work) -> Row:
    """A grid of the run's images."""
    run, _ = subject(work)
    images, out = (4 if work.tiny else 100), work.folder / "pictured"
    done = commands.run(work, commands.command("sample", f"ckpt={run}", f"n={images}", f"out={out}", "overwrite=true"))
    place = work.folder / "images" / PICTURE
    place.parent.mkdir(exist_ok=True)
    shutil.copyfile(out / "grid.png", place)
    return {**speed_run.length(work), "images": images, "picture": PICTURE, "command_seconds": done.seconds}


PIECES = {
    "a grid": Piece(1.5, picture),
    "classifier": Piece(5, partial(judged, "classifier")),
    "inception": Piece(5, partial(judged, "inception")),
    "inception_768": Piece(3, partial(judged, "inception_768")),
}
