"""What the noise of a stochastic sampler costs the host, which draws it image by image so that devices agree."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from benchmark import clock
from benchmark.clock import Call, Elsewhere, Row
from diffgen.core.ahead import Ahead
from diffgen.core.randomness import generator, image_noise

Draw = Callable[[int], Tensor]
"""Number of the draw -> noise [B, C, H, W]."""

SHAPES = ((1, 28, 28), (3, 32, 32))


def separate(shape: tuple[int, ...], images: list[int]) -> Draw:
    """As diffgen drew before: a generator and a tensor for each image, joined afterwards."""

    def one(image: int, draw: int) -> Tensor:
        return torch.randn(shape, generator=generator("cpu", 0, "image", image, draw))

    return lambda draw: torch.stack([one(image, draw) for image in images])


def together(shape: tuple[int, ...], images: list[int]) -> Draw:
    """As it draws now: one generator, one tensor."""
    return lambda draw: image_noise(shape, images, 0, draw)


def when_asked(draw: Draw, steps: int) -> Call:
    """All steps' noise, drawn by the thread that launches the network."""

    def call() -> None:
        for step in range(steps):
            draw(step)

    return call


def ahead(draw: Draw, steps: int) -> Call:
    """The same, drawn ahead in a thread; the caller has nothing to do but to wait, as for a GPU."""

    def call() -> None:
        with Ahead(draw, steps) as values:
            for step in range(steps):
                values(step)

    return call


def calling_thread(call: Call) -> Call:
    """The same call, with the CPU time of its own thread alone."""

    def timed() -> Elsewhere:
        start, spent = time.perf_counter(), time.thread_time()
        call()
        return Elsewhere(time.perf_counter() - start, time.thread_time() - spent)

    return timed


def ways(shape: tuple[int, ...], images: int, steps: int) -> dict[str, Call]:
    """What is compared; all draw the same numbers."""
    before, now = (way(shape, list(range(images))) for way in (separate, together))
    if not torch.equal(before(1), now(1)):
        raise SystemExit("the noise is not what it was")
    return {
        "a generator for each image (before)": when_asked(before, steps),
        "one generator": when_asked(now, steps),
        "one generator, drawn ahead (diffgen)": ahead(now, steps),
    }


def launching(draw: Draw | None, steps: int) -> Call:
    """Steps of a caller that has small operators to launch all the time, with the noise of each step or without.

    Python runs one thread at a time, so the caller and one that draws are in each other's way.
    """
    x = torch.zeros(20_000)

    def call() -> None:
        for step in range(steps):
            if draw:
                draw(step)
            for _ in range(400):
                x.add_(1)

    return call


def launching_ahead(draw: Draw, steps: int) -> Call:
    """The same with the noise drawn ahead."""

    def call() -> None:
        with Ahead(draw, steps) as values:
            launching(values, steps)()

    return call


def beside_launches(rounds: int, *, quick: bool) -> list[Row]:
    """Milliseconds a step of a caller that launches, by wall time."""
    images, steps = (2, 3) if quick else (64, 50)
    draw = together(SHAPES[1], list(range(images)))
    calls = {
        "launches alone": launching(None, steps),
        "noise drawn when asked": launching(draw, steps),
        "noise drawn ahead (diffgen)": launching_ahead(draw, steps),
    }
    times = clock.take_turns(calls, rounds)
    return [{"name": name, "ms": 1e3 * row["wall"] / steps, "spread": row["spread"]} for name, row in times.items()]


def noise(rounds: int, *, quick: bool) -> Row:
    """CPU microseconds an image and draw: of all threads, and of the one that launches the network."""
    images, steps = (2, 3) if quick else (64, 200)
    calls = {
        f"{'x'.join(map(str, shape))}, {name}": call
        for shape in SHAPES
        for name, call in ways(shape, images, steps).items()
    }
    all_threads = clock.take_turns(calls, rounds)
    caller = clock.take_turns({name: calling_thread(call) for name, call in calls.items()}, rounds)
    each = 1e6 / (images * steps)
    rows = [
        {"name": name, "us": each * all_threads[name]["cpu"], "caller_us": each * caller[name]["cpu"]} for name in calls
    ]
    beside = beside_launches(rounds, quick=quick)
    return {"images": images, "steps": steps, "rows": rows, "beside": beside, "missing": []}
