"""Memory of the device: how much was used, whether it is gone, and what is kept for the next step."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from diffgen.core.errors import SMALLER, ProcessFault, no_memory, out_of_memory

ONE_IMAGE = "out of memory with a single image at a time ({}): choose a smaller model or image size"

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def peak(device: torch.device) -> str:
    """Peak memory so far, of the GPU or of this process; Windows does not tell of that."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
    try:
        import resource
    except ImportError:
        return "memory unknown"
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB"


@contextmanager
def as_fault(advice: str = SMALLER) -> Iterator[None]:
    """Turn an error about memory into one sentence, wherever it comes from.

    Who goes on should `give_back` memory, once the error is dropped whose traceback keeps tensors alive.

    Raises:
        ProcessFault: Memory ran out.
    """
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise ProcessFault(no_memory(error, advice)) from None


def give_back() -> None:
    """Let go of what the GPU's allocator keeps for later."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def keep_freed() -> None:
    """Let this process keep the memory of freed tensors for the next ones, where its C library is glibc.

    By default glibc gives it back to the system, and each step on a CPU waits for the same thousands of pages again:
    about a tenth of its time.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        mallopt(M_MMAP_THRESHOLD, 32 * 2**20)  # the most that every glibc takes; larger tensors are given back
        mallopt(M_TRIM_THRESHOLD, 2**30)
