"""What a GPU does in a call, counted in the profiler's trace, and what the compiler made of it."""

import json
import re
import sys
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, schedule

Event = dict[str, Any]
Row = dict[str, Any]

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
"""Categories of events that keep the device busy."""

LAUNCH = re.compile(r"Launch\w*Kernel|GraphLaunch")
"""Calls of the CUDA runtime or driver that the host makes for each kernel, or for a recorded graph of them."""

CONVERSION = re.compile(r"nchwToNhwc|nhwcToNchw|convertTensor", re.IGNORECASE)
"""Kernels by which cuDNN turns one memory layout into the other."""


def profiled(call: Callable[[], object]) -> Row:
    """What the device does in a call; the call is made twice, and the first one warms the profiler up."""
    with tempfile.TemporaryDirectory(prefix="trace-") as folder:
        path = Path(folder) / "trace.json"
        steps = schedule(wait=0, warmup=1, active=1, repeat=1)
        with profile(
            activities=[ProfilerActivity.CUDA],
            schedule=steps,
            on_trace_ready=lambda profiler: profiler.export_chrome_trace(str(path)),
        ) as profiler:
            for _ in range(2):
                call()
                torch.cuda.synchronize()
                profiler.step()
        return counted(json.loads(path.read_text())["traceEvents"])


def counted(events: Iterable[Event]) -> Row:
    """Counts of a trace.

    Args:
        events: Of a Chrome trace as torch.profiler writes it: `cat`, `name`, `ts` and `dur` in microseconds.

    Returns:
        `kernels`, the host's `launches`, layout `conversions`, and the milliseconds `busy_ms` in which the device did
        anything, whatever ran side by side.
    """
    known = [event for event in events if event.get("ph") == "X"]
    device = [event for event in known if event.get("cat") in ON_DEVICE]
    kernels = [event["name"] for event in device if event["cat"] == "kernel"]
    calls = [event["name"] for event in known if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    return {
        "kernels": len(kernels),
        "launches": sum(bool(LAUNCH.search(name)) for name in calls),
        "conversions": sum(bool(CONVERSION.search(name)) for name in kernels),
        "busy_ms": covered([(event["ts"], event["ts"] + event["dur"]) for event in device]) / 1e3,
    }


def covered(intervals: list[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(end - max(start, reached), 0.0)
        reached = max(end, reached)
    return total


def compiled() -> Row:
    """What the compiler did in this process so far, empty if it was not used.

    Returns:
        `graphs`, graph `breaks`, and whether any graph came `from_cache`.
    """
    dynamo = sys.modules.get("torch._dynamo.utils")
    if dynamo is None or not dynamo.counters["stats"]["unique_graphs"]:
        return {}
    counters = dynamo.counters
    hits = counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"]
    return {
        "graphs": counters["stats"]["unique_graphs"],
        "breaks": sum(counters["graph_break"].values()),
        "from_cache": hits > 0,
    }
