"""Optimizers, with the learning rate set each step by `diffgen.core.settings.LrSchedule`.

A row takes named parameters, `[("model.blocks.0.layer0.weight", tensor), ...]`, and gives a `torch.optim.Optimizer`.
It may make groups of them, each with a rate of its own, which the schedule multiplies. Checkpoints keep its state by
parameter: tensors of any shape, and numbers. Before a run begins, a row is tried on parameters of the same names and
numbers of axes whose sides are 8 at most, and refused if it does not come back from a checkpoint as it was. What it
keeps must be there after its first step: state that appears later cannot be foreseen, and is refused on the way back.
"""

import inspect
import math
import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import islice
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from diffgen.core.errors import require
from diffgen.core.registry import Table

OPTIMIZERS = Table("optimizer")
Kind = TypeVar("Kind", bound=torch.optim.Optimizer)
Named = Sequence[tuple[str, Tensor]]

HIDDEN = re.compile(r"\.\d+\..+\.")
"""In the name of a weight: it belongs to a layer of a numbered block, as in `model.blocks.0.layer1.weight`."""


def eager(kind: type[Kind]) -> type[Kind]:
    """An optimizer of torch's without the wrappers that keep torch's compiler out of its methods.

    Each of them imports the compiler first, which takes as long as to import torch, and no optimizer is compiled here.
    Methods that another torch does not wrap stay as they are.
    """
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods: dict[str, Any] = {name: inspect.unwrap(getattr(kind, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(kind.step))
    return type(kind.__name__, (kind,), methods)


class Joined(torch.optim.Optimizer):
    """Several optimizers as one: all their groups and states, and a step of each."""

    def __init__(self, *members: torch.optim.Optimizer) -> None:
        """Args: members: their parameters are all named, or none is, and none is in two of them."""
        super().__init__([group for member in members for group in member.param_groups], {})
        self.members = members
        for member in members:
            self.state.update(member.state)

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step of each."""
        groups = iter(self.param_groups)
        for member in self.members:  # handed over anew: `load_state_dict`, which Accelerate calls, replaces them
            member.param_groups = list(islice(groups, len(member.param_groups)))
            member.state = self.state
            member.step()


TOGETHER = 2**24
"""Numbers of the weights that Muon takes at once, but for one that has more: of small networks, all of one shape."""


class Muon(torch.optim.Optimizer):
    """Momentum, made orthogonal as a matrix (Jordan et al. 2024, kellerjordan.github.io/posts/muon).

    Its weights are [A, B], and [A, ...], whose other axes are taken as one; its settings are those of `muon`. On
    matrices it is torch's own, of torch 2.9 and newer, which refuses convolutions, and takes one weight after another
    in bfloat16, which few CPUs are fast at.
    """

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One step, of weights of one shape together."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = defaultdict(list)
            for weight in group["params"]:
                if weight.grad is not None:
                    alike[weight.flatten(1).shape].append(weight)
            for shape, weights in alike.items():
                some = max(TOGETHER // shape.numel(), 1)
                for start in range(0, len(weights), some):
                    self._together(weights[start : start + some], group)

    def _together(self, weights: list[Tensor], group: dict[str, Any]) -> None:
        ahead = [self._ahead(weight, group["momentum"], nesterov=group["nesterov"]) for weight in weights]
        turned = orthogonal(torch.stack([each.flatten(1) for each in ahead]), group["ns_steps"])
        a, b = turned.shape[1:]
        size = math.sqrt(max(1, a / b)) if group["adjust_lr_fn"] == "original" else 0.2 * math.sqrt(max(a, b))
        for weight, step in zip(weights, turned.to(weights[0].dtype), strict=True):
            weight.mul_(1 - group["lr"] * group["weight_decay"])
            weight.sub_(step.view_as(weight), alpha=group["lr"] * size)

    def _ahead(self, weight: Tensor, momentum: float, *, nesterov: bool) -> Tensor:
        """The mean gradient, which the step makes anew, or with Nesterov's the one that it will be."""
        assert weight.grad is not None
        state = self.state[weight]
        if not state:
            state["momentum_buffer"] = torch.zeros_like(weight)
        mean = state["momentum_buffer"].lerp_(weight.grad, 1 - momentum)
        return weight.grad.lerp(mean, momentum) if nesterov else mean


def orthogonal(matrices: Tensor, steps: int) -> Tensor:
    """Matrices of nearly the same singular vectors whose singular values are near to 1, by Newton-Schulz iterations.

    Each brings the singular values s, of a matrix whose sum of squares is 1, to a s + b s^3 + c s^5, with Jordan's
    coefficients, which end between 0.6 and 1.25, but for those near to 0. In bfloat16 where that is fast, as he does.

    Args:
        matrices: [n, A, B].
        steps: How many iterations.

    Returns:
        The same shape.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrices.bfloat16() if matrices.is_cuda else matrices
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x  # the smaller side makes the smaller square
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def _check(lr: float, betas: tuple[float, ...], eps: float, weight_decay: float, prefix: str = "") -> None:
    require(0 < lr < 10, f"{prefix}lr={lr} must be in (0, 10)")
    require(
        len(betas) == 2 and all(0 <= b < 1 for b in betas),
        f"{prefix}betas={list(betas)} must be two numbers in [0, 1)",
    )
    require(eps > 0, f"{prefix}eps={eps} must be positive")
    require(weight_decay >= 0, f"weight_decay={weight_decay} must not be negative")


def _check_momentum(lr: float, momentum: float, weight_decay: float, *, nesterov: bool) -> None:
    require(0 < lr < 10, f"lr={lr} must be in (0, 10)")
    require(0 <= momentum < 1, f"momentum={momentum} must be in [0, 1)")
    require(momentum > 0 or not nesterov, "nesterov=true needs a momentum above 0")
    require(weight_decay >= 0, f"weight_decay={weight_decay} must not be negative")


@OPTIMIZERS.register("adam")
def adam(parameters: Named, *, lr: float, betas: tuple[float, ...], eps: float) -> torch.optim.Optimizer:
    """Adam (Kingma & Ba 2015)."""
    _check(lr, betas, eps, 0)
    return eager(torch.optim.Adam)(parameters, lr=lr, betas=(betas[0], betas[1]), eps=eps, fused=True)


@OPTIMIZERS.register("adamw")
def adamw(
    parameters: Named, *, lr: float, betas: tuple[float, ...], eps: float, weight_decay: float
) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    _check(lr, betas, eps, weight_decay)
    return eager(torch.optim.AdamW)(
        parameters, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay, fused=True
    )


@OPTIMIZERS.register("sgd")
def sgd(parameters: Named, *, lr: float, momentum: float, nesterov: bool, weight_decay: float) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum (Polyak 1964), or Nesterov's in the form of Sutskever et al. 2013.

    `weight_decay` is added to the gradient, as the square of the weights in the loss would be.
    """
    _check_momentum(lr, momentum, weight_decay, nesterov=nesterov)
    optimizer = eager(torch.optim.SGD)(
        parameters, lr=lr, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, fused=True
    )
    for _, parameter in parameters if momentum else ():  # else torch leaves it uninitialised by a skipped first step
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _is_hidden_matrix(name: str, weight: Tensor) -> bool:
    return bool(HIDDEN.search(name)) and weight.ndim >= 2 and min(weight.flatten(1).shape) > 1


@OPTIMIZERS.register("muon")
def muon(
    parameters: Named,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    ns_steps: int,
    weight_decay: float,
    adjust_lr_fn: Literal["original", "match_rms_adamw"],
    adam_lr: float,
    adam_betas: tuple[float, ...],
    adam_eps: float,
) -> torch.optim.Optimizer:
    """Muon for the hidden matrices (Jordan et al. 2024, kellerjordan.github.io/posts/muon), Adam for all else.

    A hidden matrix is a weight of two axes or more in a layer of a numbered block, such as `blocks.0.layer1.weight`;
    a convolution [out, in, height, width] is the matrix [out, in height width]. So Adam keeps the layers at both ends
    and the embedding, which stand outside the blocks, and all norms and biases. The run's header counts both. Queries,
    keys and values in one matrix are made orthogonal as one.

    Args:
        parameters: Of which some are hidden matrices.
        lr: Of the matrices.
        momentum: Of the matrices.
        nesterov: Whether their momentum is Nesterov's.
        ns_steps: Newton-Schulz iterations that make an update nearly orthogonal.
        weight_decay: Of the matrices, decoupled; Adam has none.
        adjust_lr_fn: Factor on `lr` for a matrix [A, B]: `original`, sqrt(max(1, A / B)); `match_rms_adamw`,
            0.2 sqrt(max(A, B)) (Liu et al. 2025, eq. 4), with which rates that suit Adam suit Muon.
        adam_lr: Of all else.
        adam_betas: Of all else.
        adam_eps: Of all else.
    """
    _check_momentum(lr, momentum, weight_decay, nesterov=nesterov)
    _check(adam_lr, adam_betas, adam_eps, 0, "adam_")
    require(1 <= ns_steps < 100, f"ns_steps={ns_steps} must be in [1, 99]")
    matrices = [p for name, p in parameters if _is_hidden_matrix(name, p)]
    rest = [p for name, p in parameters if not _is_hidden_matrix(name, p)]
    require(bool(matrices), "name='muon' finds no matrix in a numbered block of this network: choose adamw")
    settings = {"lr": lr, "weight_decay": weight_decay, "adjust_lr_fn": adjust_lr_fn}
    settings |= {"momentum": momentum, "nesterov": nesterov, "ns_steps": ns_steps}
    return eager(Joined)(
        eager(Muon)(matrices, settings),
        eager(torch.optim.Adam)(
            [{"params": rest}], lr=adam_lr, betas=(adam_betas[0], adam_betas[1]), eps=adam_eps, fused=True
        ),
    )
