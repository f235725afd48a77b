"""Optimizers, with the learning rate set each step by `diffgen.core.settings.LrSchedule`."""

import inspect
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor

from diffgen.core.errors import require
from diffgen.core.registry import Table

OPTIMIZERS = Table("optimizer")
Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


def eager(kind: type[Kind]) -> type[Kind]:
    """An optimizer of torch's without the wrappers that keep torch's compiler out of its methods.

    Each of them imports the compiler first, which takes as long as to import torch, and no optimizer is compiled here.
    Methods that another torch does not wrap stay as they are.
    """
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), methods)


def _check(lr: float, betas: tuple[float, ...], eps: float, weight_decay: float) -> None:
    require(0 < lr < 10, f"lr={lr} must be in (0, 10)")
    require(
        len(betas) == 2 and all(0 <= b < 1 for b in betas),
        f"betas={list(betas)} must be two numbers in [0, 1)",
    )
    require(eps > 0, f"eps={eps} must be positive")
    require(weight_decay >= 0, f"weight_decay={weight_decay} must not be negative")


@OPTIMIZERS.register("adam")
def adam(parameters: Iterable[Tensor], *, lr: float, betas: tuple[float, ...], eps: float) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015)."""
    _check(lr, betas, eps, 0)
    return eager(torch.optim.Adam)(parameters, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=True)


@OPTIMIZERS.register("adamw")
def adamw(
    parameters: Iterable[Tensor], *, lr: float, betas: tuple[float, ...], eps: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    _check(lr, betas, eps, weight_decay)
    return eager(torch.optim.AdamW)(
        parameters, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay, fused=True
    )
