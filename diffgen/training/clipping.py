"""An optimizer's step with its gradient clipped, and whether numbers are finite, which the device is asked once."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils import clip_grads_with_norm_, get_total_norm


def clipped_step(optimizer: torch.optim.Optimizer, largest: float) -> Tensor:
    """One step with the gradient's norm clipped to `largest`, or none if that norm is not finite; returns it, [].

    A fused optimizer divides by the norm's excess in the pass that it makes anyway, and finds out on the device whether
    to step: no second pass over the gradients, and no wait. Others, such as Muon, wait for a GPU once a step.
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
