"""Time of calls that take turns, so that what else the machine does falls on all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

Call = Callable[[], object]


@dataclass(frozen=True)
class Elsewhere:
    """What a call gives back that was timed elsewhere, in another process or in one thread: wall and CPU seconds."""

    wall: float
    cpu: float


Row = dict[str, Any]
T = TypeVar("T")


def measured(call: Call) -> tuple[float, float]:
    """Wall and process CPU seconds of a call; the CPU time of worker processes is not in it."""
    start, spent = time.perf_counter(), time.process_time()
    result = call()
    if isinstance(result, Elsewhere):
        return result.wall, result.cpu
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - spent


def take_turns(calls: Mapping[str, Call], rounds: int, warmup: int = 1) -> dict[str, Row]:
    """Medians over `rounds` of A B C A B C ..., after `warmup` further rounds.

    Returns:
        For each name `wall` and `cpu` in seconds, and `spread`, the inner half of the wall times over their median.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(warmup + rounds):
        for name, call in calls.items():
            times = measured(call)
            if number >= warmup:
                taken[name].append(times)
    return {name: medians(times) for name, times in taken.items()}


def medians(times: list[tuple[float, float]]) -> Row:
    """The row of one call."""
    wall, cpu = ([float(t) for t in column] for column in zip(*times, strict=True))
    low, _, high = statistics.quantiles(wall, n=4, method="inclusive") if len(wall) > 1 else wall * 3
    middle = statistics.median(wall)
    return {"wall": middle, "cpu": statistics.median(cpu), "spread": round((high - low) / middle, 3)}


def basis(device: torch.device) -> str:
    """Which time ratios are of: on one thread CPU time, which other work on the machine hardly changes; else wall."""
    return "cpu" if device.type == "cpu" and torch.get_num_threads() == 1 else "wall"


def offered(missing: list[str], peer: str, build: Callable[[], dict[str, T]]) -> dict[str, T]:
    """The calls of a peer; none if it, or what it imports, is not installed, and that is noted in `missing`."""
    try:
        return build()
    except ImportError as error:
        missing.append(f"{peer}: not installed (no module {error.name})")
        return {}
