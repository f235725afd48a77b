"""What an optimizer remembers: to tensors and back, and a trial of whether that is all it needs to go on.

Its state by parameter may hold tensors of any shape, and numbers. Nothing else is kept: the settings of its groups come
from the config, their learning rates from the schedule.
"""

import inspect
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from diffgen.core.errors import CheckpointError, UsageError, require
from diffgen.core.registry import build
from diffgen.nets.optimizers import OPTIMIZERS, Named
from diffgen.storage.tensor_file import TYPES, Tensors

NUMBERS = {bool: torch.bool, int: torch.int64, float: torch.float64}
"""As what the numbers in a state are written; read back, each is the same number."""

NOTHING = "nothing"
"""Stands in a checkpoint for the state of a weight that has none while others have."""

SIDE, STEPS = 8, 3


def gather(optimizer: Optimizer, named: Named) -> Tensors:
    """The state under flat names, `optimizer.<parameter>/<key>`; a number is a tensor without axes.

    Raises:
        UsageError: The state holds something else.
    """
    states = {name: optimizer.state.get(parameter, {}) for name, parameter in named}
    tensors = {
        f"optimizer.{name}/{key}": _as_tensor(value, key)
        for name, state in states.items()
        for key, value in state.items()
    }
    if tensors:  # a weight that the network never uses has none, which is not to be taken for a loss
        tensors |= {f"optimizer.{name}/{NOTHING}": torch.zeros(0) for name, state in states.items() if not state}
    return tensors


def _as_tensor(value: Any, key: object) -> Tensor:
    if isinstance(value, Tensor):
        require(value.dtype in TYPES, f"its state {key!r} is of {value.dtype}, which no checkpoint holds")
        return value
    require(type(value) in NUMBERS, f"its state {key!r} is of type {type(value).__name__}, not a tensor or a number")
    return torch.tensor(value, dtype=NUMBERS[type(value)])


@torch.no_grad()
def restore(optimizer: Optimizer, named: Named, tensors: Tensors, source: object, *, stepped: bool = True) -> None:
    """Put back what `gather` took into an optimizer that has made no step; none of `tensors` stays in use.

    What belongs into the state, the optimizer itself shows: it makes a step. So the weights have to be loaded after.

    Args:
        optimizer: Has made no step.
        named: Its parameters.
        tensors: What `gather` gave, among others.
        source: Where they are from, for sentences.
        stepped: Whether the optimizer that they are of had made a step; before that there may be no state.

    Raises:
        CheckpointError: The tensors are not those of such an optimizer; the sentence names `source` and the first.
    """
    kept = {name: below(tensors, f"optimizer.{name}/") for name, _ in named}
    if not stepped and not any(kept.values()):
        return
    for name, parameter in named:
        if parameter.requires_grad and NOTHING not in kept[name]:
            parameter.grad = torch.zeros_like(parameter)
    with torch.random.fork_rng(devices=[]):
        optimizer.step()
    optimizer.zero_grad()
    for name, parameter in named:
        if NOTHING not in kept[name]:
            _fill(optimizer.state.get(parameter, {}), kept[name], name, source)


def _fill(state: dict[str, Any], kept: Tensors, name: str, source: object) -> None:
    for key in kept:
        if key not in state:
            raise CheckpointError(f"{source}: {key[:80]!r} of {name} is nothing that this run's optimizer keeps")
    for key, value in state.items():
        if key not in kept:
            raise CheckpointError(f"{source} is not a whole training state: it lacks optimizer.{name}/{key}")
        saved, live = kept[key], _as_tensor(value, key)
        if saved.shape != live.shape or saved.dtype != live.dtype:
            raise CheckpointError(f"{source}: the optimizer's {key!r} of {name} has another shape or type")
        if isinstance(value, Tensor):
            value.copy_(saved)  # on the device and laid out in memory as the optimizer wants it
        else:
            state[key] = saved.item()


def below(tensors: Tensors, prefix: str) -> Tensors:
    """The tensors whose names begin with `prefix`, by what follows."""
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


# --- before a run ---------------------------------------------------------------------------------------------------


def check_goes_on(config: Mapping[str, Any], named: Named) -> None:
    """Require that an optimizer goes on from a checkpoint as if it had never stopped, tried on small stand-ins.

    Args:
        config: Of the optimizer.
        named: The parameters; left as they are.

    Raises:
        UsageError: It cannot be built, made to step, saved or put back, or then makes other steps.
    """
    name = f"optimizer.name={config['name']!r}"
    ours, theirs = _stand_ins(named), _stand_ins(named)
    through, halved = _built(config, ours, name), _built(config, theirs, name)
    before = _settings(through)
    _advance(through, ours, 0)
    changed = {key for key, value in _settings(through).items() if before.get(key, _settings) != value}
    require(
        not changed,
        f"{name} cannot be resumed: its steps change {', '.join(sorted(changed))}, which no checkpoint keeps",
    )
    try:
        restore(halved, theirs, gather(through, ours), "from a trial")
    except (UsageError, CheckpointError) as error:
        raise UsageError(f"{name} cannot be saved: {error}") from None
    for (_, ahead), (_, behind) in zip(ours, theirs, strict=True):
        behind.data.copy_(ahead)
    for optimizer, parameters in ((through, ours), (halved, theirs)):
        _advance(optimizer, parameters, STEPS)
    a, b = (dict(p) | gather(o, p) for o, p in ((through, ours), (halved, theirs)))
    require(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a),
        f"{name} cannot be resumed: it goes by more than its groups' settings and its state of each parameter",
    )


def _built(config: Mapping[str, Any], named: Named, name: str) -> Optimizer:
    try:
        optimizer = build(OPTIMIZERS, config, named)
    except ValueError as error:
        raise UsageError(f"{name} fails on parameters with sides of at most {SIDE}: {error}") from error
    require(isinstance(optimizer, Optimizer), f"{name} gives {type(optimizer).__name__}, not a torch.optim.Optimizer")
    require(all("lr" in group for group in optimizer.param_groups), f"{name} has a group without a rate, `lr`")
    grouped = Counter(id(p) for group in optimizer.param_groups for p in group["params"])
    left = [key for key, p in named if p.requires_grad and grouped[id(p)] != 1]
    require(not left, f"{name} must have each weight in one group, once: {', '.join(left[:3])} is not")
    wanted = [p.name for p in inspect.signature(optimizer.step).parameters.values() if p.default is p.empty]
    require(not wanted, f"{name} cannot be used: its step needs {', '.join(wanted)}")
    return optimizer


def _settings(optimizer: Optimizer) -> dict[str, Any]:
    """Numbers and texts that an optimizer holds outside its state, those of its groups but the rate among them."""
    found: dict[str, Any] = {}
    for number, each in enumerate((optimizer, *getattr(optimizer, "members", ()))):
        part = f" of part {number}" if number else ""
        found |= {key + part: value for key, value in vars(each).items() if not key.startswith("_")}
        for i, group in enumerate(each.param_groups):
            found |= {f"param_groups[{i}].{key}{part}": value for key, value in group.items() if key != "lr"}
    return {key: value for key, value in found.items() if isinstance(value, bool | int | float | str)}


def _stand_ins(named: Named) -> Named:
    """Of the same names, types and numbers of axes, on the same device."""
    stand_ins = []
    for name, parameter in named:
        shape = torch.Size([min(n, SIDE) for n in parameter.shape])
        values = torch.linspace(-1, 1, shape.numel(), dtype=parameter.dtype, device=parameter.device)
        stand_ins.append((name, values.reshape(shape).requires_grad_(parameter.requires_grad)))
    return stand_ins


def _advance(optimizer: Optimizer, named: Named, first: int) -> None:
    """Steps whose gradients and random numbers depend on the parameters and on `first` alone."""
    with torch.random.fork_rng(devices=[]):
        for step in range(first, first + STEPS):
            torch.manual_seed(step)
            for number, (_, parameter) in enumerate(named):
                if parameter.requires_grad:
                    parameter.grad = (parameter.detach() + (step + number)).cos()
            optimizer.step()
