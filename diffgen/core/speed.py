"""How fast a run is beside its hardware, and where its time goes."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile, schedule
from torch.utils._python_dispatch import TorchDispatchMode

from diffgen.core.files import write_atomically

PEAKS = {
    "H100 PCIe": 756,
    "H100 NVL": 835,
    "H100": 989,
    "H200": 989,
    "A100": 312,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "RTX 4090": 165,
    "A10": 125,
    "B200": 2250,
    "V100": 125,
    "T4": 65,
}
"""Dense 16-bit tensor-core TFLOP/s by what the device's name contains, from the vendor's data sheets."""

WAIT, WARM, ACTIVE = 8, 2, 10  # steps before, and in, a profile
ROWS = 25


def peak_tflops(device: torch.device, precision: str) -> float | None:
    """What the device can do at most in this precision, in TFLOP/s, where that is known."""
    if device.type != "cuda" or precision == "no":
        return None
    name = torch.cuda.get_device_name(device)
    return next((float(peak) for part, peak in PEAKS.items() if re.search(rf"\b{part}\b", name)), None)


def shown(tflops: float, peak: float | None) -> str:
    """`1.23 TFLOP/s`, and the share of the peak where it is known (MFU, model FLOPs utilization)."""
    return f"{tflops:.3g} TFLOP/s" + (f" (MFU {tflops / peak:.0%})" if peak else "")


def work(gflop: float) -> str:
    """An amount of work: `1.79 EFLOP`."""
    size, unit = next(
        (each for each in ((1e9, "EFLOP"), (1e6, "PFLOP"), (1e3, "TFLOP")) if gflop >= each[0]), (1, "GFLOP")
    )
    return f"{gflop / size:.3g} {unit}"


@contextmanager
def profiled(folder: Path | None, say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Profile ten steps of a loop, if a folder is given: a trace for a viewer, and a table of operators.

    Args:
        folder: Where `trace.json` and `table.txt` go.
        say: Is told the first rows and where the rest is.

    Yields:
        What to call after each step; it says whether the next one is in the profile, and nothing else should be.
    """
    if folder is None:
        yield lambda: False
        return
    last, seen = WAIT + WARM + ACTIVE, 0

    def step() -> bool:
        nonlocal seen
        seen += 1
        profiler.step()
        return WAIT <= seen < last

    def finish(profiler: profile) -> None:
        if seen < last:
            return
        key = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=key, row_limit=ROWS, max_name_column_width=48)
        write_atomically(folder / "table.txt", table)
        profiler.export_chrome_trace(str(folder / "trace.json"))
        say(table)
        say(f"profile of {ACTIVE} steps: {folder}/table.txt, and {folder}/trace.json for ui.perfetto.dev")

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
    steps = schedule(wait=WAIT, warmup=WARM, active=ACTIVE, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=finish) as profiler:
        yield step
    if seen < last:
        say(f"no profile: it takes {last} steps, and there were {seen}")


def gflop(network: torch.nn.Module, *inputs: torch.Tensor) -> float:
    """Floating-point operations of one forward pass of one example, in 1e9, two to a multiply-add."""
    # the fused attention of some devices has no formula, that of plain products has: the same number everywhere
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), Flops() as counter:
        network(*inputs)
    return counter.total / 1e9


class Flops(TorchDispatchMode):
    """Counts the operations in `total`, by torch's formulas.

    Its own FlopCounterMode imports the compiler first, to be left alone by it, and that takes a second.
    """

    total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        from torch.utils.flop_counter import flop_registry

        result = func(*args, **(kwargs or {}))
        if formula := flop_registry.get(func._overloadpacket):
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result
