"""An objective of your own: the pseudo-Huber error of F, which large errors pull on less than its square does.

diffgen-train plugins=[docs/examples/objective.py] objective=huber objective.c=0.03
"""

import math
from dataclasses import dataclass

from torch import Tensor

from diffgen.objectives import OBJECTIVES, Denoise


@OBJECTIVES.register("huber")
@dataclass(frozen=True, kw_only=True)
class Huber(Denoise):
    """sqrt(|e|^2 + d^2) - d with d = c sqrt(D) for D values (Song & Dhariwal 2024, sec. 3.3); noise and samplers stay.

    Attributes:
        c: Errors of a value below it count as squares, those above as themselves.
    """

    c: float = 0.03

    def error(self, difference: Tensor) -> Tensor:
        """[B, ...] -> [B]."""
        flat = difference.flatten(1)
        d = self.c * math.sqrt(flat.shape[1])
        return (flat.square().sum(1) + d**2).sqrt() - d
