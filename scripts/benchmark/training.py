"""Training steps per second, and what of a step is not the network."""

import contextlib
import io
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate.state import AcceleratorState

from benchmark import clock
from benchmark.clock import Call, Row
from benchmark.competitor import Competitor
from benchmark.diffusers_loop import Loop
from benchmark.layouts import LAYOUTS, MNIST, PLAIN, Config, Costs, Layout, compose, lucidrains_network, pictures
from diffgen.core.lock import RunLock
from diffgen.core.processes import accelerated
from diffgen.core.settings import section
from diffgen.training.parts import Parts
from diffgen.training.trainer import Trainer

PICTURES = 512


def fresh_accelerate() -> None:
    """Let the next trainer choose its own precision: Accelerate keeps one choice a process, in this dict."""
    AcceleratorState._shared_state = {}


# --- the competitors --------------------------------------------------------------------------------------------------


def our_trainer(
    stack: ExitStack, layout: Layout, folder: Path, batch: int, precision: str, *, compiles: bool = False
) -> tuple[Trainer, Call]:
    """The real Trainer on a run directory of its own, and its step with the data."""
    run_dir = folder.parent / f"run-{time.monotonic_ns()}"
    settings = [f"train.batch_size={batch}", f"train.precision={precision}", f"train.compile={compiles}"]
    data = [f"dataset.root={folder}", f"dataset.channels={layout.shape[0]}", f"run_dir={run_dir}"]
    return stepping(stack, compose(*PLAIN, *layout.ours, *settings, *data))


def stepping(stack: ExitStack, config: Config) -> tuple[Trainer, Call]:
    """The real Trainer of a config whose run directory is new, and its step with the data."""
    fresh_accelerate()
    lock = stack.enter_context(RunLock())
    settings = section(config, "train")
    parts = Parts(config, settings, stack.enter_context(accelerated(settings.precision)))
    trainer = Trainer(parts)
    trainer.open_run("", "", lock)
    parts.model.train()
    trainer.at.watch.start(0)
    trainer.line = stack.enter_context(parts.reporter.progress(1.0, 0.0))
    entries = parts.feed.entries(len(parts.dataset), 0)
    batches = parts.dataset.batches(entries, parts.device)
    return trainer, lambda: trainer._step(next(batches))


def lucidrains(layout: Layout, folder: Path, batch: int, precision: str, burst: int) -> Call:
    """A call of its Trainer that takes `burst` steps; it reads pictures in worker processes, as many as cores."""
    from denoising_diffusion_pytorch import GaussianDiffusion
    from denoising_diffusion_pytorch import Trainer as TheirTrainer

    trainer = TheirTrainer(
        GaussianDiffusion(lucidrains_network(layout), image_size=layout.shape[1]),
        str(folder),
        train_batch_size=batch,
        gradient_accumulate_every=accumulation(batch),
        save_and_sample_every=10**9,
        results_folder=str(folder.parent / "lucidrains"),
        amp=precision == "bf16",
        mixed_precision_type="bf16",
        calculate_fid=False,
    )

    def call() -> None:
        trainer.train_num_steps = trainer.step + burst
        silence = io.StringIO()
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            trainer.train()

    return call


def accumulation(batch: int) -> int:
    """Its Trainer refuses steps of fewer than 16 images."""
    return max(1, 16 // batch)


def repeated(call: Call, times: int) -> Call:
    """A call that is long enough to be timed on a GPU."""

    def calls() -> None:
        for _ in range(times):
            call()

    return calls


def names(layout: Layout) -> list[str]:
    """The competitors that there are for a layout: a library, how it is used, and in which precision."""
    compiled = ["diffgen, bfloat16, compiled"] if torch.cuda.is_available() else []
    found = ["diffgen, float32", "diffgen, bfloat16", *compiled]
    if layout.diffusers:
        tuned = "diffusers, tuned, bfloat16"
        found += ["diffusers, published", "diffusers, tuned, float32", tuned, *([f"{tuned}, compiled"] * len(compiled))]
    return found + (["lucidrains, published", "lucidrains, bfloat16"] if layout.lucidrains else [])


@contextlib.contextmanager
def build(layout: str, name: str, folder: str, batch: int, burst: int) -> Iterator[Call]:
    """A call that takes `burst` whole steps of one competitor.

    Raises:
        ImportError: The library, or what it imports, is not installed.
    """
    which, root, compiles = LAYOUTS[layout], Path(folder), "compiled" in name
    precision = "bf16" if "bfloat16" in name else "no"
    with ExitStack() as stack:
        if name.startswith("lucidrains"):
            yield lucidrains(which, root, batch, precision, burst)
        elif name.startswith("diffusers"):
            loop = Loop(which, root, batch, precision=precision, tuned="tuned" in name, compiles=compiles)
            yield repeated(loop.step, burst)
        else:
            yield repeated(our_trainer(stack, which, root, batch, precision, compiles=compiles)[1], burst)


# --- the sections -----------------------------------------------------------------------------------------------------


def training(layout: Layout, rounds: int, folder: Path, *, quick: bool) -> Row:
    """Images per second of whole steps: data, forward, loss, backward, clipping, optimizer and average."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch = 2 if quick else layout.batch[device.type == "cuda"]
    burst, missing = (20 if device.type == "cuda" and not quick else 1), list[str]()
    root = pictures(folder / "pictures", layout.shape, PICTURES if not quick else 128)
    settings = {"folder": str(root), "batch": batch, "burst": burst}
    with ExitStack() as stack:
        calls = started(stack, missing, layout.name, names(layout), **settings)
        bounds = products(device)
        times = clock.take_turns(calls | {name: call for name, (call, _) in bounds.items()}, rounds)
    basis, costs = clock.basis(device), Costs()
    gflops = {name: work / times[name][basis] / 1e9 for name, (_, work) in bounds.items()}
    ceiling = {dtype: max(v for k, v in gflops.items() if k.endswith(dtype)) for dtype in ("float32", "bfloat16")}
    rows = []
    for name in calls:
        images = burst * batch * (accumulation(batch) if name.startswith("lucidrains") else 1)
        row = pace(name, layout, images, times[name], costs, ceiling, basis)
        rows.append({**row, "peak_gb": round(calls[name].peak, 2)})
    return {"layout": layout.name, "batch": batch, "bounds_gflops": gflops, "rows": rows, "missing": missing}


def started(
    stack: ExitStack, missing: list[str], layout: str, names: list[str], **settings: Any
) -> dict[str, Competitor]:
    """The competitors that are installed, each in its process; what is not is noted in `missing`."""
    found: dict[str, Competitor] = {}
    for name in names:
        competitor = stack.enter_context(Competitor(layout, name, **settings))
        if competitor.missing is None:
            found[name] = competitor
        else:
            missing.append(f"{name}: not installed (no module {competitor.missing})")
    return found


def products(device: torch.device) -> dict[str, tuple[Call, float]]:
    """What bounds the speed of a network: a large matrix product and a large convolution, and their operations.

    On some CPUs the libraries' convolution is the faster of the two.
    """
    size, batch = (8192, 256) if device.type == "cuda" else (2048, 8)
    found: dict[str, tuple[Call, float]] = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(size, size, device=device).to(dtype)
        x, weight = torch.randn(batch, 256, 16, 16, device=device), torch.randn(256, 256, 3, 3, device=device)
        name = str(dtype).removeprefix("torch.")
        found[f"matrix product {name}"] = partial(torch.mm, a, a), 2 * size**3
        convolve = partial(F.conv2d, x.to(dtype), weight.to(dtype), padding=1)
        found[f"convolution {name}"] = convolve, 2 * batch * 256 * 256 * 9 * 16 * 16
    return found


def pace(name: str, layout: Layout, images: int, time: Row, costs: Costs, ceiling: dict[str, float], basis: str) -> Row:
    """The row of one competitor."""
    cost = costs.of(name.split(",")[0], layout)
    speed = images / time[basis]
    most = ceiling["bfloat16" if "bfloat16" in name else "float32"]
    return {
        "name": name,
        **cost,
        "images_per_second": images / time["wall"],
        "images_per_cpu_second": images / time["cpu"],
        "share_of_bound": cost["gflop"] * speed / most,
        "spread": time["spread"],
    }


def around_the_network(rounds: int, folder: Path, *, quick: bool) -> Row:
    """Milliseconds of a float32 step of the MNIST network that are not its passes, and of a line of the log.

    Clipping, optimizer, average and counters; of diffusers also its learning-rate schedule and its progress bar.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    batch, missing = 2 if quick else MNIST.batch[device.type == "cuda"], list[str]()
    root = pictures(folder / "pictures", MNIST.shape, 128)
    with ExitStack() as stack:
        trainer, step = our_trainer(stack, MNIST, root, batch, "no")
        whole = watched(trainer, "_step")
        passes, feed = watched(trainer.parts.gradients, "accumulate"), watched(trainer.parts.feed, "batch")
        calls: dict[str, Call] = {"diffgen": step, "log": lambda: trainer._log(torch.ones((), device=device), 1e-4)}
        theirs: dict[str, list[float]] = {}

        def loop() -> dict[str, Call]:
            fresh_accelerate()
            loop = Loop(MNIST, root, batch, precision="no", tuned=False)
            theirs["whole"], theirs["rest"] = watched(loop, "step"), watched(loop, "update")
            return {"diffusers, published": lambda: loop.step()}

        calls |= clock.offered(missing, "diffusers", loop)
        log = clock.take_turns(calls, rounds)["log"]["cpu"]
    rest = [all_ - one - other for all_, one, other in zip(whole, passes, feed, strict=True)]
    rows = [share("diffgen", whole, rest)] + ([share("diffusers, published", **theirs)] if theirs else [])
    return {"layout": MNIST.name, "batch": batch, "rows": rows, "log_ms": 1e3 * log, "missing": missing}


def watched(owner: Any, name: str) -> list[float]:
    """From now on, the seconds of each call of a method; CPU time on the CPU."""
    seconds: list[float] = []
    method, on_gpu = getattr(owner, name), torch.cuda.is_available()

    def call(*arguments: Any) -> Any:
        results = []
        wall, cpu = clock.measured(lambda: results.append(method(*arguments)))
        seconds.append(wall if on_gpu else cpu)
        return results[0]

    setattr(owner, name, call)
    return seconds


def share(name: str, whole: list[float], rest: list[float]) -> Row:
    """Medians of the steps after the first, which warms up."""
    step, around = statistics.median(whole[1:]), statistics.median(rest[1:])
    return {"name": name, "step_ms": 1e3 * step, "around_ms": 1e3 * around, "share": around / step}
