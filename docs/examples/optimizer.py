"""An optimizer of your own: Lion (Chen et al. 2023, algorithm 2), which steps by the sign of a momentum.

diffgen-train plugins=[docs/examples/optimizer.py] optimizer=lion optimizer.lr=3e-4
"""

import torch

from diffgen.nets.optimizers import OPTIMIZERS, Named


class Lion(torch.optim.Optimizer):
    """What it keeps by parameter, `self.state[p]`, is in every checkpoint: tensors of any shape, and numbers."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One step, with the settings of each parameter's group."""
        for group in self.param_groups:
            (near, far), decay = group["betas"], 1 - group["lr"] * group["weight_decay"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
                p.mul_(decay).sub_(group["lr"] * momentum.lerp(p.grad, 1 - near).sign())
                momentum.lerp_(p.grad, 1 - far)


@OPTIMIZERS.register("lion")
def lion(
    parameters: Named, *, lr: float = 1e-4, betas: tuple[float, ...] = (0.9, 0.99), weight_decay: float = 0.0
) -> torch.optim.Optimizer:
    """Weights in one group; biases and norms in another, at half the rate and without decay."""
    weights = {"params": [pair for pair in parameters if pair[1].ndim > 1]}
    others = {"params": [pair for pair in parameters if pair[1].ndim <= 1], "weight_decay": 0.0, "lr": lr / 2}
    return Lion([weights, others], {"lr": lr, "betas": betas, "weight_decay": weight_decay})
