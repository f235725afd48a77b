"""Weights in low precision, cast together: once for each pass of a network, not once for each use.

Autocast casts every weight and bias where a layer uses it, and every gradient back, each by a launch of its own: 404 of
the launches of a step of DDPM's network. Here either way is one pass over all of them, with the same numbers.
"""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""By the name of a run's precision."""

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
"""What autocast runs in low precision. Their subclasses may use a weight in other ways first, and are left to it."""


class Cast(torch.autograd.Function):
    """Copies of weights in another type; gradients come back in the weights' own."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        """Cast all."""
        ctx.dtype = weights[0].dtype
        ctx.set_materialize_grads(False)  # a weight that the pass does not use has no gradient, and is not decayed
        return _together(weights, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Cast all back that there are."""
        back = iter(_together(tuple(g for g in gradients if g is not None), ctx.dtype))
        return (None, *(None if gradient is None else next(back) for gradient in gradients))


def _together(tensors: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    copies = tuple(torch.empty_like(tensor, dtype=dtype) for tensor in tensors)
    torch._foreach_copy_(copies, tensors)
    return copies


def cast_names(network: nn.Module) -> list[str]:
    """Names of the float32 weights and biases that autocast would cast: those of `LAYERS` that nothing else holds.

    A layer that is made ready by a hook (weight norm, spectral norm) is left to autocast. A network that reads
    `layer.weight` itself, beside calling the layer, would read it in low precision.
    """
    modules = dict(network.named_modules())
    holders = Counter(id(p) for module in modules.values() for p in module.parameters(recurse=False))
    return [
        f"{name}.{key}" if name else key
        for name, module in modules.items()
        if type(module) in LAYERS and not module._forward_pre_hooks
        for key, p in module.named_parameters(recurse=False)
        if key in ("weight", "bias") and p.dtype == torch.float32 and holders[id(p)] == 1
    ]


class Given(nn.Module):
    """A network that is given some of its weights before its inputs."""

    def __init__(self, network: nn.Module, names: list[str]) -> None:
        """Args: names: of the weights that are given."""
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *given: Tensor) -> Tensor:
        """What the network gives, with these weights in the place of its own."""
        count = len(self.names)
        weights = dict(zip(self.names, given[:count], strict=True))
        return functional_call(self.network, weights, given[count:])


class CastTogether(nn.Module):
    """A network whose weights are cast before each pass; call it under autocast, as the network itself."""

    def __init__(self, network: nn.Module, given: nn.Module, names: list[str], dtype: torch.dtype) -> None:
        """Wrap a network.

        Args:
            network: Whose weights they are.
            given: `Given(network, names)`, or what compiles that.
            names: As `cast_names` finds them.
            dtype: What to cast to.
        """
        super().__init__()
        parameters = dict(network.named_parameters())
        self.given, self.dtype = given, dtype
        self.weights = [parameters[name] for name in names]

    def forward(self, *inputs: Tensor) -> Tensor:
        """What the network gives."""
        return self.given(*Cast.apply(self.dtype, *self.weights), *inputs)
