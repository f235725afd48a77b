"""A joint distribution of three tokens of an alphabet of three, and all that follows from it by counting."""

from itertools import product

import torch
from torch import Tensor

from diffgen.diffusion.masking import HIDDEN

V = L = 3
STATES = torch.tensor(list(product(range(-1, V), repeat=L)))  # every sequence of tokens and hidden ones, [64, L]
WHOLE = torch.tensor(list(product(range(V), repeat=L)))  # [27, L]
JOINT = torch.rand(V**L, generator=torch.Generator().manual_seed(3), dtype=torch.float64).pow(2)
JOINT = JOINT / JOINT.sum()  # of WHOLE


def number(x: Tensor) -> Tensor:
    """Which of STATES each row of x int64 [B, L] is."""
    return ((x + 1) * torch.tensor([(V + 1) ** i for i in reversed(range(L))])).sum(-1)


def conditionals() -> Tensor:
    """p(token i | what is seen) for every state, [64, L, V]; of a token that is seen, 1 for itself."""
    agree = ((STATES[:, None] == HIDDEN) | (STATES[:, None] == WHOLE)).all(-1)  # [64, 27]
    given = agree * JOINT
    of_token = torch.nn.functional.one_hot(WHOLE, V).double()  # [27, L, V]
    return torch.einsum("sw,wlv->slv", given, of_token) / given.sum(1)[:, None, None]


def perfect(x: Tensor, t: Tensor) -> Tensor:
    """What the best of networks says: log p, [B, L, V]."""
    return conditionals().clamp(min=1e-300).log()[number(x)]


def frequencies(x: Tensor) -> Tensor:
    """Of each of WHOLE among samples [n, L]."""
    places = {int(n): i for i, n in enumerate(number(WHOLE))}
    counts = torch.bincount(torch.tensor([places[int(n)] for n in number(x)]), minlength=len(WHOLE))
    return counts.double() / len(x)
