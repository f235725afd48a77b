"""Memory of the device: how much was used, and whether it is gone."""

import resource

import torch


def peak(device: torch.device) -> str:
    """Peak memory so far, of the GPU or of this process."""
    if device.type == "cuda":
        return f"{torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"


def is_gone(error: RuntimeError) -> bool:
    """Whether an error says that the GPU or the CPU had no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def give_back() -> None:
    """Let go of what the GPU's allocator keeps for later."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
