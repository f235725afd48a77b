"""Training steps: how fast, how near to the GPU's peak, and what the GPU is given to do."""

from collections.abc import Mapping
from contextlib import ExitStack

import torch
from benchmark import clock
from benchmark.competitor import Competitor
from benchmark.layouts import DDPM, EDM, MNIST, TINY, Costs, Layout, pictures
from benchmark.training import PICTURES, names, started

from diffgen.core import speed
from programme import recipes
from programme.work import RANDOM, Piece, Row, Work

BURST, ROUNDS = 20, 3
"""Steps a turn, and turns that are counted."""

BUSY = 0.95
"""Share of the time from which on a GPU that is kept busy is said to be what bounds a step."""


def ours(work: Work) -> str:
    """How diffgen trains on a GPU; to compile takes a CPU too long for a test."""
    return "diffgen, float32" if work.tiny else "diffgen, bfloat16, compiled"


def turns(work: Work) -> tuple[int, int]:
    """Steps a turn, and turns."""
    return (1, 1) if work.tiny else (BURST, ROUNDS)


def measured(
    work: Work, found: Mapping[str, Competitor], batches: Mapping[str, int], costs: Mapping[str, Row]
) -> list[Row]:
    """The rows of competitors that take turns.

    Args:
        work: The programme's.
        found: Each in its process, by the name of its row.
        batches: Images a step of each.
        costs: `parameters` and `gflop` of an image of each, see `benchmark.layouts.Costs`.
    """
    burst, rounds = turns(work)
    first = {name: clock.measured(call)[0] for name, call in found.items()}
    times = clock.take_turns(found, rounds)
    rows = []
    for name, competitor in found.items():
        step = times[name]["wall"] / burst
        told = {"first_step_seconds": first[name] - (burst - 1) * step, "spread": times[name]["spread"]}
        figures = pace(competitor.name, batches[name] / step, costs[name]["gflop"])
        rows.append({"name": name, **costs[name], **figures, **told, **looked_at(competitor, step, burst)})
    return rows


def pace(name: str, images_per_second: float, gflop: float) -> Row:
    """Images and TFLOP a second, and their share of the GPU's peak in 16 bits where that is what the name says."""
    tflops = images_per_second * gflop / 1e3
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    peak = speed.peak_tflops(device, "bf16" if "bfloat16" in name else "no")
    mfu = {"mfu": tflops / peak} if peak else {}
    return {"images_per_second": images_per_second, "tflops": tflops, **mfu}


def looked_at(competitor: Competitor, step: float, burst: int) -> Row:
    """What the profile says of one step, which takes so many seconds when nobody looks."""
    told = competitor.look()
    row: Row = {"step_ms": 1e3 * step, "peak_gb": round(competitor.peak, 2)}
    row |= {key: told[key] / burst for key in ("kernels", "launches", "conversions") if key in told}
    row |= {key: told[key] for key in ("graphs", "breaks", "from_cache") if key in told}
    if "compiled" in competitor.name:
        row.setdefault("graphs", 0)  # the compiler gave up, and the network ran as it is
    if "busy_ms" in told:
        busy = told["busy_ms"] / burst / row["step_ms"]
        row |= {"busy": busy, "bound": "device" if busy >= BUSY else "host"}
    return row


def pictured(stack: ExitStack, layout: Layout, work: Work) -> str:
    """A folder of pictures for a layout, deleted with the stack."""
    return str(pictures(work.scratch(stack) / "pictures", layout.shape, 16 if work.tiny else PICTURES))


def recipe(name: str, work: Work) -> Row:
    """One of the shipped recipes alone, as it trains on this GPU."""
    batch = 2 if work.tiny else recipes.BATCH
    settings = [*recipes.RECIPES[name], *work.network(), f"train.batch_size={batch}"]
    settings += ["train.precision=no", "train.compile=false"] if work.tiny else recipes.ON_GPU
    cost = recipes.cost(settings)
    with Competitor(
        name, ours(work), builder="programme.recipes", settings=settings, folder=str(work.folder), burst=turns(work)[0]
    ) as alone:
        rows = measured(work, {"diffgen": alone}, {"diffgen": batch}, {"diffgen": cost})
    return {"batch": batch, "data": RANDOM, "rows": rows, "wrong": broken(rows[0])}


def broken(row: Row) -> list[str]:
    """What is wrong about a network that was to be compiled to one graph."""
    graphs, breaks = row.get("graphs", 1), row.get("breaks", 0)
    return [] if (graphs, breaks) == (1, 0) else [f"compiled to {graphs} graphs with {breaks} breaks"]


def beside_peers(layout: Layout, work: Work) -> Row:
    """One network by all libraries that are installed, taking turns."""
    which, missing, costs = TINY if work.tiny else layout, list[str](), Costs()
    batch = which.batch[1]
    chosen = ["diffgen, float32", "diffusers, tuned, float32"] if work.tiny else names(which)
    with ExitStack() as stack:
        settings: Row = {"folder": pictured(stack, which, work), "batch": batch, "burst": turns(work)[0]}
        found = started(stack, missing, which.name, chosen, **settings)
        of_library = {name: costs.of(name.split(",")[0], which) for name in found}
        rows = measured(work, found, dict.fromkeys(found, batch), of_library)
    return {"batch": batch, "data": RANDOM, "rows": rows, "missing": missing}


def batches(work: Work) -> Row:
    """The DDPM network with batches of three sizes, taking turns."""
    which = TINY if work.tiny else DDPM
    sizes = {f"batch {size}": size for size in ((1, 2) if work.tiny else (64, 128, 512))}
    with ExitStack() as stack:
        settings: Row = {"folder": pictured(stack, which, work), "burst": turns(work)[0]}
        found = {
            label: stack.enter_context(Competitor(which.name, ours(work), batch=size, **settings))
            for label, size in sizes.items()
        }
        cost = Costs().of("diffgen", which)
        return {"data": RANDOM, "rows": measured(work, found, sizes, dict.fromkeys(found, cost))}


TRAINING = {
    "cifar10_ddpm, 35.7 M": Piece(3, lambda work: recipe("cifar10_ddpm", work)),
    "cifar10_edm, 55.7 M": Piece(4, lambda work: recipe("cifar10_edm", work), alike=True),
    "cifar10_fast, 27.9 M": Piece(3, lambda work: recipe("cifar10_fast", work), alike=True),
    "cifar10_dit, 38.8 M": Piece(3, lambda work: recipe("cifar10_dit", work), alike=True),
    "MNIST, 1.6 M, beside the peers": Piece(3, lambda work: beside_peers(MNIST, work)),
    "DDPM CIFAR-10, 35.7 M, beside the peers": Piece(5, lambda work: beside_peers(DDPM, work), alike=True),
    "EDM CIFAR-10, 55.7 M, eager and compiled": Piece(6, lambda work: beside_peers(EDM, work), alike=True),
}
BATCHES = {"DDPM CIFAR-10, 35.7 M": Piece(5, batches)}
