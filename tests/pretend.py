"""A CUDA device for machines that have none: all is computed on the CPU, and every storage knows where it is said to be.

    with pretend.cuda() as device:
        ...                              # torch.cuda.is_available(), and torch.zeros(3, device="cuda").is_cuda

What would fail on a real device fails here with the same sentence: operations on tensors of two devices, a generator of
the other device, `numpy()` of what is not on the CPU. What would make Python wait for the device is noted in
`device.waits`, by the line of the package that asked for it. Kernels, memory, streams and the compiler stay those of the
CPU. The pretence is one thread's: other threads see the CPU tensors that there are.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple
from unittest import mock

import torch
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor
from torch.overrides import TorchFunctionMode

import diffgen

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
PACKAGE = Path(diffgen.__file__).parent

ASKS = {
    *("item", "tolist", "__bool__", "__int__", "__float__", "__complex__", "__index__", "__format__", "__repr__"),
    *("is_nonzero", "equal", "allclose", "__contains__"),
    *("nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "histc"),
}
"""Operations whose result, or whose result's size, Python has to be told."""

MOVES = ("to", "cpu", "cuda", "type_as")
FILLS = ("copy_", "__setitem__", "_foreach_copy_")
"""Into their first tensor, from any device."""

FREE = ("__set__", "_parse_to", "_has_compatible_shallow_copy_type")
"""Of no device: assignments to `data` and `grad`, and questions."""

STRICT = ("cat", "stack", "_fused_", "_amp_")
"""Beginnings of names of operations that take no number of the CPU beside tensors of the device."""


class Wait(NamedTuple):
    """Python waited for the device."""

    asked: str
    """The operation."""
    where: str
    """`file.py:line in function`, of the package."""

    def __str__(self) -> str:
        return f"{self.asked} at {self.where}"


class Device(TorchFunctionMode):
    """The pretended device.

    Attributes:
        waits: Every time that a line of the package made Python wait.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[Wait] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every operation on tensors that Python asks for, with this mode off inside."""
        kwargs, name = dict(kwargs or {}), func.__name__
        if name == "__get__" and func in GETTERS:
            return GETTERS[func](on_device(args[0]))
        if name in FREE:
            return func(*args, **kwargs)
        if name in ("numpy", "__array__") and on_device(args[0]):
            raise TypeError(f"can't convert {CUDA} device type tensor to numpy: use Tensor.cpu() first")
        if name in MOVES:
            return self._move(name, *args, **kwargs)
        if name in FILLS:
            return self._fill(func, args, kwargs)
        if name == "__getitem__":
            return self._index(func, *args)
        return self._compute(func, name, args, kwargs)

    def _compute(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """Any operation: its tensors must be in one place, and there its result is."""
        there = together(name, [*tensors((args, kwargs))])
        kwargs.pop("pin_memory", None)  # there is no driver that could
        if kwargs.get("device") is not None:
            moved, there = there, torch.device(kwargs["device"]).type == "cuda"
            kwargs["device"] = "cpu" if there else kwargs["device"]
            if name in ("tensor", "as_tensor", "new_tensor") and there and not moved:
                self._wait(name)
        check_generator(kwargs.get("generator"), there)
        if there and name in ASKS:
            self._wait(name)
        return tagged(func(*args, **kwargs)) if there else func(*args, **kwargs)

    def _move(self, name: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """To another device, which takes a copy, or to another type."""
        if name in ("cpu", "cuda"):
            name, args = "to", (torch.device(name),)
        here, there = on_device(x), destination(x, *args, *kwargs.values())
        args = tuple(CPU if is_place(arg) else arg for arg in args)
        kwargs = {key: CPU if is_place(value) else value for key, value in kwargs.items()}
        if here != there:
            kwargs["copy"] = True
            if not kwargs.get("non_blocking"):
                self._wait(f"{name}({CUDA.type if there else CPU.type})")
        result = x.to(*args, **kwargs)
        return tagged(result) if there else result

    def _fill(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Copies into a tensor, from wherever the other is."""
        places = {on_device(tensor) for tensor in tensors((args, kwargs))}
        if len(places) > 1 and not (kwargs.get("non_blocking") or args[2:] == (True,)):
            self._wait(func.__name__)
        return func(*args, **kwargs)

    def _index(self, func: Any, x: Tensor, index: Any) -> Tensor:
        """Indices may be on the CPU, but then they have to be copied; numbers and masks have to be read."""
        here, indices = on_device(x), [*tensors((index,))]
        if here and any(not on_device(i) or i.ndim == 0 or i.dtype == torch.bool for i in indices):
            self._wait("__getitem__")
        if not here and any(map(on_device, indices)):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        return tagged(func(x, index)) if here else func(x, index)

    def _wait(self, name: str) -> None:
        """Note who asked, if it was the package."""
        frame: FrameType | None = sys._getframe(1)
        while frame:
            path = Path(frame.f_code.co_filename)
            if path.is_relative_to(PACKAGE):
                where = f"{path.relative_to(PACKAGE)}:{frame.f_lineno} in {frame.f_code.co_name}"
                self.waits.append(Wait(name, where))
                return
            frame = frame.f_back


class Generator(torch.Generator):
    """A generator of the CPU that says of which device it is."""

    place: torch.device

    def __new__(cls, device: torch.device | str = "cpu") -> "Generator":
        """See `torch.Generator`."""
        made = super().__new__(cls, "cpu")
        made.place = CUDA if torch.device(device).type == "cuda" else torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it is said to be."""
        return self.place


# --- where a tensor is --------------------------------------------------------------------------------------------


def on_device(x: Tensor) -> bool:
    """Whether a tensor is said to be on the device; views share their storage, and so its answer."""
    return getattr(x.untyped_storage(), "pretended", False)


def tagged(result: Any) -> Any:
    """The same, said to be on the device."""
    for tensor in tensors((result,)):
        tensor.untyped_storage().pretended = True  # type: ignore[attr-defined]
    return result


def tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors in nested arguments."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value)
        elif isinstance(value, dict):
            yield from tensors(value.values())


def together(name: str, given: list[Tensor]) -> bool:
    """Whether an operation is on the device, where a single number (no axes) may come from the CPU but not be changed.

    Raises:
        RuntimeError: Its tensors are in two places.
    """
    places = [on_device(tensor) for tensor in given]
    if len({*places}) < 2:
        return any(places)
    changes = not places[0] and (name.startswith("__i") or (name.endswith("_") and not name.endswith("__")))
    numbers = all(place or tensor.ndim == 0 for place, tensor in zip(places, given, strict=True))
    if changes or not numbers or name.startswith(STRICT):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {CUDA} and {CPU}! (in {name})"
        )
    return True


def check_generator(generator: torch.Generator | None, there: bool) -> None:
    """Refuse a generator of the other device.

    Raises:
        RuntimeError: It is.
    """
    wanted = "cuda" if there else "cpu"
    if generator is not None and generator.device.type != wanted:
        raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{generator.device.type}'")


def is_place(value: Any) -> bool:
    """Whether an argument names a device."""
    return isinstance(value, str | torch.device)


def destination(x: Tensor, *given: Any) -> bool:
    """Whether a move with these arguments ends on the device."""
    for value in given:
        if isinstance(value, Tensor):
            return on_device(value)
        if is_place(value):
            return torch.device(value).type == "cuda"
    return on_device(x)


GETTERS: dict[Any, Callable[[bool], Any]] = {
    Tensor.device.__get__: lambda there: CUDA if there else CPU,  # type: ignore[attr-defined]
    Tensor.is_cuda.__get__: lambda there: there,  # type: ignore[attr-defined]
    Tensor.is_cpu.__get__: lambda there: not there,  # type: ignore[attr-defined]
}


# --- the switch ---------------------------------------------------------------------------------------------------

ANSWERS: dict[str, Any] = {
    "is_available": True,
    "device_count": 1,
    "current_device": 0,
    "is_bf16_supported": True,
    "get_device_name": "pretended device",
    "max_memory_allocated": 0,
    "set_device": None,
    "manual_seed_all": None,
    "empty_cache": None,
    "_lazy_init": None,
}
"""What functions of torch.cuda say."""


@contextmanager
def cuda() -> Iterator[Device]:
    """Pretend, in this thread, that there is a CUDA device; everything is as it was afterwards."""
    init, group = torch.autocast.__init__, torch._C._group_tensors_by_device_and_dtype

    def autocast(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        init(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    def grouped(lists: Any, with_indices: bool = False) -> Any:  # written in C++, which knows better
        groups = group(lists, with_indices)
        return {(next(tensors(each)).device, dtype): each for (_, dtype), each in groups.items()}

    answers = {name: mock.Mock(return_value=value) for name, value in ANSWERS.items()}
    with ExitStack() as stack:
        forget_accelerator()
        stack.callback(forget_accelerator)
        stack.enter_context(mock.patch.multiple(torch.cuda, **answers))
        stack.enter_context(mock.patch.object(torch.accelerator, "is_available", lambda: False))  # it is C++, too
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        stack.enter_context(mock.patch.object(torch.autocast, "__init__", autocast))
        stack.enter_context(mock.patch.object(torch._C, "_group_tensors_by_device_and_dtype", grouped))
        yield stack.enter_context(Device())


def forget_accelerator() -> None:
    """Let accelerate look for devices again."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
