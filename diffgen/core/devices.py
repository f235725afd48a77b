"""What devices differ in."""

import torch


def float_type(device: torch.device) -> torch.dtype:
    """The widest floating-point numbers of a device: float64, but float32 on MPS, which has no other."""
    return torch.float32 if device.type == "mps" else torch.float64


def with_float64(device: torch.device) -> torch.device:
    """Where to compute in float64: the device itself, or the CPU if it has no such numbers."""
    return device if float_type(device) == torch.float64 else torch.device("cpu")


def layout(device: torch.device) -> torch.memory_format:
    """How networks lie in memory: channels last is faster on a GPU, and not on a CPU."""
    return torch.channels_last if device.type == "cuda" else torch.contiguous_format


def best_device() -> str:
    """The fastest kind of device that is there."""
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
