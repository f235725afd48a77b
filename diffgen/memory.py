"""Memory of the device: how much was used, whether it is gone, and what is kept for the next step."""

import ctypes
import resource
import sys

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h


def peak(device: torch.device) -> str:
    """Peak memory so far, of the GPU or of this process."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
    unit = 1 if sys.platform == "darwin" else 2**10  # bytes there, KiB elsewhere
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30:.1f} GiB"


def is_gone(error: RuntimeError) -> bool:
    """Whether an error says that the GPU or the CPU had no memory left; cuBLAS and cuDNN have words of their own."""
    words = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, torch.OutOfMemoryError) or any(word in str(error) for word in words)


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
