"""A device for machines that have none: all is computed on the CPU, and every storage knows where it is said to be.

    with pretend.cuda() as device:
        ...                              # torch.cuda.is_available(), and torch.zeros(3, device="cuda").is_cuda

What would fail on a real device fails here with the same sentence: operations on tensors of two devices, a generator of
the other device, `numpy()` of what is not on the CPU. What would make Python wait for the device is noted in
`device.waits`, with the line of the package that asked for it. Kernels, memory, streams and the compiler stay those of
the CPU.
"""

import os
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor
from torch.overrides import TorchFunctionMode

import diffgen

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
PLACE = str | torch.device  # what names a device among arguments
PACKAGE = f"{Path(diffgen.__file__).parent}{os.sep}"

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


class Pretended(TorchFunctionMode):
    """The pretended device: what becomes of each operation that Python asks for.

    Attributes:
        device: What tensors say.
        waits: `item at file.py:line in function`, whenever the package made the thread wait that made this object.
        moved: The tensors that went to the device.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = torch.device(device.type, 0)
        self.waits: list[str] = []
        self.moved: list[Tensor] = []
        self.arriving: list[torch.UntypedStorage] = []
        self.thread = threading.get_ident()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Called by torch; inside, nothing is pretended."""
        kwargs, name = dict(kwargs or {}), func.__name__
        if name == "__get__" and func in GETTERS:
            return GETTERS[func](self.device if on_device(args[0]) else CPU)
        if name in FREE:
            return func(*args, **kwargs)
        given = [*tensors(args), *tensors(kwargs.values())]
        if self.arriving and any(getattr(tensor.untyped_storage(), "arriving", False) for tensor in given):
            raise RuntimeError(f"a copy to the CPU is read before anybody waited for it (in {name})")
        if name in ("numpy", "__array__") and on_device(args[0]):
            raise TypeError(f"can't convert {self.device} device type tensor to numpy: use Tensor.cpu() first")
        if name in MOVES:
            return self._move(name, *args, **kwargs)
        if name in FILLS:
            return self._fill(func, given, args, kwargs)
        if name == "__getitem__":
            return self._index(func, *args)
        return self._compute(func, given, args, kwargs)

    def _compute(self, func: Any, given: list[Tensor], args: Any, kwargs: dict[str, Any]) -> Any:
        """Any operation: its tensors must be in one place, and there its result is."""
        name, there = func.__name__, self._together(func.__name__, given)
        kwargs.pop("pin_memory", None)  # there is no driver that could
        if kwargs.get("device") is not None:
            came, there = there, torch.device(kwargs["device"]).type == self.device.type
            kwargs["device"] = CPU if there else kwargs["device"]
            if there and not came and name in ("tensor", "as_tensor"):  # made on the CPU, and copied
                self._wait(name)
        self._check_generator(kwargs.get("generator"), there)
        if there and name in ASKS:
            self._wait(name)
        return self._tagged(func(*args, **kwargs)) if there else func(*args, **kwargs)

    def _move(self, name: str, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """To another device, which takes a copy, or to another type."""
        if name in ("cpu", "cuda"):
            name, args = "to", (torch.device(name),)
        here, there = on_device(x), self._destination(x, *args, *kwargs.values())
        args = tuple(CPU if isinstance(arg, PLACE) else arg for arg in args)
        kwargs = {key: CPU if isinstance(value, PLACE) else value for key, value in kwargs.items()}
        if here == there:
            result = x.to(*args, **kwargs)
        else:
            result = x.to(*args, **{**kwargs, "copy": True})
            self.moved += [x] if there else []
            passes = kwargs.get("non_blocking")
            self._copied(f"{name}({(self.device if there else CPU).type})", () if there else result, passes)
        return self._tagged(result) if there else result

    def _fill(self, func: Any, given: list[Tensor], args: Any, kwargs: dict[str, Any]) -> Any:
        """Copies into a tensor, from wherever the other is."""
        result = func(*args, **kwargs)
        if len({on_device(tensor) for tensor in given}) > 1:
            self._copied(func.__name__, args[0], kwargs.get("non_blocking") or args[2:] == (True,))
        return result

    def _copied(self, name: str, target: Any, passes: bool | None) -> None:
        """What has been copied from one place to another; if that passes without waiting, later it will be there."""
        if not passes:
            self._wait(name)
            return
        for storage in (tensor.untyped_storage() for tensor in tensors((target,)) if not on_device(tensor)):
            storage.arriving = True  # type: ignore[attr-defined]
            self.arriving.append(storage)

    def _index(self, func: Any, x: Tensor, index: Any) -> Tensor:
        """Indices may be on the CPU, but then they have to be copied; numbers and masks have to be read."""
        here, indices = on_device(x), [*tensors((index,))]
        if here and any(not on_device(i) or i.ndim == 0 or i.dtype == torch.bool for i in indices):
            self._wait("__getitem__")
        if not here and any(map(on_device, indices)):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        return self._tagged(func(x, index)) if here else func(x, index)

    def _together(self, name: str, given: list[Tensor]) -> bool:
        """Whether an operation is on the device; a number of the CPU (no axes) may be there, but not be changed.

        Raises:
            RuntimeError: Its tensors are in two places.
        """
        places = [on_device(tensor) for tensor in given]
        if len({*places}) < 2:
            return any(places)
        changes = not places[0] and (name.startswith("__i") or (name.endswith("_") and not name.endswith("__")))
        numbers = all(there or tensor.ndim == 0 for there, tensor in zip(places, given, strict=True))
        if changes or not numbers or name.startswith(STRICT):
            two = f"found at least two devices, {self.device} and {CPU}! (in {name})"
            raise RuntimeError(f"Expected all tensors to be on the same device, but {two}")
        return True

    def _check_generator(self, generator: torch.Generator | None, there: bool) -> None:
        wanted = (self.device if there else CPU).type
        if generator is not None and generator.device.type != wanted:
            raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{generator.device.type}'")

    def _destination(self, x: Tensor, *given: Any) -> bool:
        """Whether a move with these arguments ends on the device."""
        for value in given:
            if isinstance(value, Tensor):
                return on_device(value)
            if isinstance(value, PLACE):
                return torch.device(value).type == self.device.type
        return on_device(x)

    def _tagged(self, result: Any) -> Any:
        """The same, said to be on the device."""
        for tensor in (result,) if isinstance(result, Tensor) else tensors((result,)):
            if self.device.type == "mps" and tensor.dtype == torch.float64:
                raise TypeError("Cannot convert a MPS Tensor to float64 dtype: the MPS framework has no float64")
            tensor.untyped_storage().pretended = True  # type: ignore[attr-defined]
        return result

    def _wait(self, name: str) -> None:
        """All that was on its way is there; note who asked, if it was the package."""
        while self.arriving:
            self.arriving.pop().arriving = False  # type: ignore[attr-defined]
        frame: FrameType | None = sys._getframe(1)
        while frame and threading.get_ident() == self.thread:
            code = frame.f_code
            if code.co_filename.startswith(PACKAGE):
                where = f"{code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno} in {code.co_name}"
                self.waits.append(f"{name} at {where}")
                return
            frame = frame.f_back


class Generator(torch.Generator):
    """A generator of the CPU that says of which device it is."""

    place: torch.device

    def __new__(cls, device: torch.device | str = "cpu") -> "Generator":
        """See `torch.Generator`."""
        made = super().__new__(cls, "cpu")  # type: ignore[call-arg]
        made.place = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        """Where it is said to be."""
        return self.place


def on_device(x: Tensor) -> bool:
    """Whether a tensor is said to be on the device; views share their storage, and so its answer."""
    return getattr(x.untyped_storage(), "pretended", False)


def tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors in nested arguments."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value)
        elif isinstance(value, dict):
            yield from tensors(value.values())


GETTERS: dict[Any, Callable[[torch.device], Any]] = {
    getattr(Tensor, name).__get__: answer
    for name, answer in {
        "device": lambda device: device,
        "is_cuda": lambda device: device.type == "cuda",
        "is_cpu": lambda device: device.type == "cpu",
    }.items()
}
"""What a tensor says of the device that it is on."""


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
    "get_rng_state": None,  # what is drawn comes from the CPU's, which is kept apart
    "set_rng_state": None,
    "empty_cache": None,
    "is_current_stream_capturing": False,
    "_lazy_init": None,
}
"""What functions of torch.cuda say."""


@contextmanager
def cuda() -> Iterator[Pretended]:
    """Pretend that there is a CUDA device, here and in threads that start meanwhile; afterwards all is as it was."""
    device = Pretended(CUDA)
    init, group, run = torch.autocast.__init__, torch._C._group_tensors_by_device_and_dtype, threading.Thread.run

    def autocast(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        init(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    def grouped(lists: Any, with_indices: bool = False) -> Any:  # written in C++, which knows better
        groups = group(lists, with_indices)
        return {(next(tensors(each)).device, dtype): each for (_, dtype), each in groups.items()}

    def in_thread(self: threading.Thread) -> None:
        with device:
            run(self)

    answers: dict[str, Any] = {name: mock.Mock(return_value=value) for name, value in ANSWERS.items()}
    answers["synchronize"] = lambda *_: device._wait("synchronize")
    with ExitStack() as stack:
        forget_accelerator()
        stack.callback(forget_accelerator)
        stack.enter_context(mock.patch.multiple(torch.cuda, **answers))
        stack.enter_context(mock.patch.object(torch.accelerator, "is_available", lambda: False))  # it is C++, too
        stack.enter_context(mock.patch.object(torch, "Generator", Generator))
        stack.enter_context(mock.patch.object(torch.autocast, "__init__", autocast))
        stack.enter_context(mock.patch.object(torch._C, "_group_tensors_by_device_and_dtype", grouped))
        stack.enter_context(mock.patch.object(threading.Thread, "run", in_thread))
        yield stack.enter_context(device)


@contextmanager
def none() -> Iterator[None]:
    """Pretend that there is no CUDA device, where there is one."""
    with mock.patch.object(torch.cuda, "is_available", lambda: False):
        forget_accelerator()
        yield
    forget_accelerator()


def forget_accelerator() -> None:
    """Let accelerate look for devices again."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
