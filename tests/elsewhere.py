"""A device that this machine may not have, pretended: its tensors lie on the CPU and are told apart by their class."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

FORBIDDEN = "Cannot convert a MPS Tensor to float64 dtype as the MPS framework doesn't support float64"


class Elsewhere(torch.Tensor):
    """A tensor on the pretended device; what is computed from it is there too."""


class Pretended(TorchFunctionMode):
    """Moves to and from the device, and what it refuses: tensors of two devices together, and float64 if it is an MPS.

    Attributes:
        moved: The tensors that went there from the CPU.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.moved: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]
            return self.device if isinstance(args[0], Elsewhere) else torch.device("cpu")
        if func is torch.Tensor.cpu:
            return args[0].as_subclass(torch.Tensor)
        if func is torch.Tensor.to:
            return self.checked(self.converted(*args, **kwargs))
        if kwargs.get("device") == self.device:
            return self.checked(func(*args, **{**kwargs, "device": "cpu"}).as_subclass(Elsewhere))
        if len({isinstance(each, Elsewhere) for each in operands(args) if each.ndim}) > 1:
            raise RuntimeError(f"{func.__name__}: expected all tensors to be on the same device")
        return self.checked(func(*args, **kwargs))

    def converted(self, x: torch.Tensor, like: Any, **options: Any) -> torch.Tensor:
        """`x.to(like)`, which is a type, a device, or a tensor that has both."""
        if isinstance(like, torch.dtype):
            return x.to(like)
        if isinstance(like, torch.Tensor):
            x, there = x.to(like.dtype), isinstance(like, Elsewhere)
        else:
            there = like == self.device
        if not there:
            if isinstance(x, Elsewhere) and options.get("non_blocking"):
                raise RuntimeError("a copy to the CPU that does not wait may be read before it has arrived")
            return x.as_subclass(torch.Tensor)
        if not isinstance(x, Elsewhere):
            self.moved.append(x)
        return x.as_subclass(Elsewhere)

    def checked(self, result: Any) -> Any:
        """The result of an operation, unless it cannot be."""
        if self.device.type == "mps" and isinstance(result, Elsewhere) and result.dtype == torch.float64:
            raise TypeError(FORBIDDEN)
        return result


def operands(args: Any) -> list[torch.Tensor]:
    """The tensors among arguments, also in lists."""
    found: list[torch.Tensor] = []
    for each in args:
        found += [each] if isinstance(each, torch.Tensor) else operands(each) if isinstance(each, list | tuple) else []
    return found
