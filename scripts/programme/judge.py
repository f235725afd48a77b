"""How good the speed-run's images are."""

import importlib.util
import json
import shutil
from functools import partial
from pathlib import Path

from diffgen.core.files import cache_folder
from diffgen.evaluation.extractors import INCEPTION
from programme import commands
from programme.work import RANDOM, Piece, Row, Skipped, Unfinished, Work

IMAGES = 10_000
PICTURE = "gpu-speed-run.png"


def judged(extractor: str, work: Work) -> Row:
    """`diffgen-eval` of the speed-run, with the time that it took.

    Raises:
        Skipped: It was trained on pictures at random, or what the extractor needs is not at hand.
        Unfinished: The speed-run is not over.
    """
    weights = [f"extractor.weights={inception(work)}"] if extractor == "inception" else []
    run, settings = subject(work)
    settings += [f"ckpt={run}", f"extractor={extractor}", f"cache={work.folder / 'eval'}", *weights]
    done = commands.run(work, commands.command("eval", *settings))
    row = json.loads((run / "eval" / "results.jsonl").read_text().splitlines()[-1])
    row["ckpt"] = "speed-run"  # wherever it lies
    return {"images": row["images"], "nfe": row["nfe"], "figures": row, "command_seconds": done.seconds}


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
    run = work.folder / "speed-run"
    status = run / "status.json"
    if not status.exists() or json.loads(status.read_text())["state"] != "done":
        raise Unfinished("the speed-run is not over", {})
    return run, [f"n={IMAGES}", f"dataset.root={work.data}"]


def inception(work: Work) -> Path:
    """The published weights, from beside the data or from diffgen's cache."""
    if importlib.util.find_spec("torch_fidelity") is None:
        raise Skipped("torch-fidelity is not installed")
    folders = [*([work.data] if work.data else []), cache_folder() / "eval"]
    for path in (folder / INCEPTION for folder in folders):
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
    return {"images": images, "picture": PICTURE, "command_seconds": done.seconds}


PIECES = {
    "a grid": Piece(1.5, picture),
    "classifier": Piece(5, partial(judged, "classifier")),
    "inception": Piece(5, partial(judged, "inception")),
}
