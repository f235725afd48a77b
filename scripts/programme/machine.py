"""The machine: its GPU, what compiling needs, and how fast its arithmetic and memory are."""

import shutil
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from benchmark import clock
from benchmark.facts import versions
from torch import Tensor

from programme.work import Piece, Row, Work

SMI = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm", "clocks.max.mem", "temperature.gpu")
PACKAGES = ("torch", "torchvision", "accelerate", "triton")
MODES = {"float32": torch.float32, "tf32": torch.float32, "bfloat16": torch.bfloat16}


def facts(work: Work) -> Row:
    """What is installed."""
    found: Row = {
        **smi(),
        "gcc": first_line("gcc", "--version") or "not found",
        "Python.h": (Path(sysconfig.get_paths()["include"]) / "Python.h").is_file(),
        **versions(*PACKAGES),
        "CUDA": torch.version.cuda,
    }
    if not work.tiny:
        card = torch.cuda.get_device_properties(torch.device("cuda"))
        found |= {
            "cuDNN": torch.backends.cudnn.version(),
            "memory": f"{card.total_memory / 2**30:.1f} GiB",
            "multiprocessors": card.multi_processor_count,
            "capability": f"{card.major}.{card.minor}",
            "bfloat16": torch.cuda.is_bf16_supported(including_emulation=False),
        }
    ready = found["gcc"] != "not found" and found["Python.h"]
    return {"facts": found, "wrong": [] if ready else ["no network can be compiled: Triton needs gcc and Python.h"]}


def smi() -> dict[str, str]:
    """What the driver says of the first GPU, or why it says nothing."""
    told = first_line("nvidia-smi", f"--query-gpu={','.join(SMI)}", "--format=csv,noheader")
    values = told.split(", ")
    return dict(zip(SMI, values, strict=True)) if len(values) == len(SMI) else {"nvidia-smi": told or "not found"}


def first_line(*command: str) -> str:
    """What a program prints first; empty if it is not there."""
    if shutil.which(command[0]) is None:
        return ""
    told = subprocess.run(command, capture_output=True, text=True)
    return (told.stdout or told.stderr).partition("\n")[0]


def peaks(work: Work) -> Row:
    """TFLOP/s of a large matrix product and a large convolution, and TB/s of a copy: what can be reached."""
    device, repeats = torch.device("cpu" if work.tiny else "cuda"), 1 if work.tiny else 10
    rows = []
    for mode, dtype in MODES.items():
        with tf32(mode == "tf32"):
            product = best(repeats, *matrix_product(device, dtype, 256 if work.tiny else 8192))
            convolved = best(repeats, *convolution(device, dtype, 1 if work.tiny else 256))
        rows.append({"name": mode, "matrix_tflops": product / 1e12, "convolution_tflops": convolved / 1e12})
    return {"rows": rows, "copy_tb_per_second": best(repeats, *copy(device, 2**20 if work.tiny else 2**31)) / 1e12}


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Let float32 arithmetic be done in TF32, or not; PyTorch's default is yes in cuDNN and no in cuBLAS."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def matrix_product(device: torch.device, dtype: torch.dtype, size: int) -> tuple[Callable[[], Tensor], float]:
    """A call, and its operations."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return partial(torch.mm, a, b), 2.0 * size**3


def convolution(device: torch.device, dtype: torch.dtype, batch: int) -> tuple[Callable[[], Tensor], float]:
    """A 3x3 convolution of 256 channels at 32x32 in channels_last, as the networks have them, and its operations."""
    x = torch.randn(batch, 256, 32, 32, device=device).to(dtype, memory_format=torch.channels_last)
    weight = torch.randn(256, 256, 3, 3, device=device).to(dtype, memory_format=torch.channels_last)
    return partial(F.conv2d, x, weight, padding=1), 2.0 * batch * 256 * 256 * 9 * 32 * 32


def copy(device: torch.device, size: int) -> tuple[Callable[[], Tensor], float]:
    """A copy from one place of the device's memory to another, and the bytes read and written."""
    a, b = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return partial(b.copy_, a), 2.0 * size


def best(repeats: int, call: Callable[[], object], work: float) -> float:
    """Work a second in the best of three turns of so many calls, after one to warm up."""

    def turn() -> None:
        for _ in range(repeats):
            call()

    clock.measured(turn)
    return repeats * work / min(clock.measured(turn)[0] for _ in range(3))


PIECES = {"facts": Piece(0.3, facts), "peaks": Piece(0.7, peaks)}
