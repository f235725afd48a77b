"""Optimizers, with the learning rate set each step by `diffgen.settings.LrSchedule`."""

import inspect
import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from diffgen.errors import require
from diffgen.registry import Table

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


def clipped_step(optimizer: torch.optim.Optimizer, largest: float) -> Tensor:
    """One step with the gradient's norm clipped to `largest`, or none if that norm is not finite; returns it, [].

    A fused optimizer divides by the norm's excess in the pass that it makes anyway, and finds out on the device whether
    to step: no second pass over the gradients, and no wait.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    norm = get_total_norm([p.grad for p in parameters])
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = (~norm.isfinite()).float()  # type: ignore[attr-defined]
        optimizer.grad_scale = ((norm + 1e-6) / largest).clamp(min=1.0)  # type: ignore[attr-defined]
        optimizer.step()
    elif norm.isfinite():
        clip_grads_with_norm_(parameters, largest, norm)
        optimizer.step()
    return norm


def finite(tensors: Sequence[Tensor]) -> bool:
    """Whether all values are finite, which the device is asked once."""
    return bool(get_total_norm([x for x in tensors if x.is_floating_point() and x.numel()], math.inf).isfinite())
