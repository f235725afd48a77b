"""How often a step and a checkpoint call the device, counted on any device, before and after a change of how."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from benchmark.clock import Row
from benchmark.layouts import DDPM, MNIST, Layout, our_network
from diffgen.nets.casting import CastTogether, Given, cast_names
from diffgen.training.clipping import finite

IDLE = (
    "view",
    "detach",
    "t.",
    "transpose",
    "expand",
    "unsqueeze",
    "squeeze",
    "permute",
    "slice",
    "split",
    "unbind",
    "empty",
)
"""How the names of operators begin that launch nothing: they look at memory in another way, or take some."""


class Counting(TorchDispatchMode):
    """Counts operators by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func).removeprefix("aten.")] += 1
        return func(*args, **(kwargs or {}))


def launches(*, quick: bool) -> Row:
    """Operators of a bf16 pass forward and backward, of its casts, and of the checks of a checkpoint.

    "Before" casts weights where they are used, as autocast does, and asks of every weight whether it is finite.
    """
    layout = MNIST if quick else DDPM
    network = our_network(layout)
    names = cast_names(network)
    together = CastTogether(network, Given(network, names), names, torch.bfloat16)
    rows = []
    for name, call in (("cast where used", network), ("cast together", together)):
        calls = of_step(network, call, layout)
        rows.append({"name": name, "casts": casts(calls), "operators": launched(calls)})
    weights = list(network.parameters())
    with Counting() as before:
        assert all(bool(weight.isfinite().all()) for weight in weights)
    with Counting() as after:
        assert finite(weights)
    waits = {"before": waited(before.calls), "after": waited(after.calls)}
    return {"layout": layout.name, "rows": rows, "tensors": len(weights), "waits": waits, "missing": []}


def of_step(network: nn.Module, call: nn.Module, layout: Layout) -> Counter[str]:
    """Operators of a pass forward and backward."""
    x, t, label = torch.randn(1, *layout.shape), torch.rand(1), torch.tensor([-1])
    with Counting() as mode:
        with torch.autocast("cpu", torch.bfloat16):
            out: Tensor = call(x, t, label)
        torch.autograd.grad(out.float().square().sum(), list(network.parameters()))
    return mode.calls


def casts(calls: Counter[str]) -> int:
    """Those that cast."""
    return calls["_to_copy.default"] + calls["_foreach_copy_.default"]


def launched(calls: Counter[str]) -> int:
    """Those that launch something."""
    return sum(count for name, count in calls.items() if not name.lstrip("_").startswith(IDLE))


def waited(calls: Counter[str]) -> int:
    """Those for whose result Python waits."""
    return calls["_local_scalar_dense.default"] + calls["is_nonzero.default"]
