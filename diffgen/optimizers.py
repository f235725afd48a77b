"""Optimizers, with the learning rate set each step by `diffgen.settings.LrSchedule`."""

from collections.abc import Iterable

import torch
from torch import Tensor

from diffgen.errors import require
from diffgen.registry import Table

OPTIMIZERS = Table("optimizer")


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
    return torch.optim.Adam(parameters, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=True)


@OPTIMIZERS.register("adamw")
def adamw(
    parameters: Iterable[Tensor], *, lr: float, betas: tuple[float, ...], eps: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    _check(lr, betas, eps, weight_decay)
    return torch.optim.AdamW(
        parameters, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay, fused=True
    )


def step_unless(optimizer: torch.optim.Optimizer, bad: Tensor) -> None:
    """One step, or none if `bad`, bool []; a fused optimizer finds that out on the device, without a wait."""
    if getattr(optimizer, "_step_supports_amp_scaling", False):
        optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        optimizer.step()
    elif not bad:
        optimizer.step()
