"""A time grid for one sampler and a small number of steps, found from how the paths of one model bend.

First as GITS does it (Chen et al. 2024, "On the trajectory regularity of ODE-based diffusion sampling"): the paths of a
fine solver are the teacher, an edge from one of its nodes to a later one costs what Euler's step over it misses, and
the cheapest way with so many edges is found by dynamic programming. Then downhill by what counts: nodes are moved
while the samples of the sampler itself come nearer to the teacher's. A sampler that takes weights (ipndm) has them
fitted on each grid, by least squares: those that lead each step nearest to where the teacher's paths are.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from diffgen.core.registry import bind
from diffgen.diffusion.samplers import SAMPLERS
from diffgen.diffusion.samplers.adams import weighted
from diffgen.diffusion.samplers.steps import Denoise, Level, Noise, euler_step, level
from diffgen.diffusion.schedules import Schedule
from diffgen.sampling.drawing import Sampling
from diffgen.sampling.walk import make_sampler

NODES = 100
"""Of the teacher, in equal steps of log(sigma/alpha)."""

LATE = 1.15
"""What an error weighs for each later step that it is carried through (GITS, sec. 3.3): above 1 spends steps late."""

MOVES = (8, 4, 2, 1)
"""How far a node is moved at once, in nodes of the teacher."""

FROM = 8
"""Grids from which it goes downhill: there are many valleys."""

BEGINS, ENDS = (60.0, 25.0, 14.0, 8.0, 5.0, 3.0), (0.14, 0.1, 0.07)
"""Levels of sigma/alpha to which a closed form may lead, and of the last call, to begin with."""

PURE = 1e9
"""The level of pure noise in a list of levels."""

RIDGE = 1e-6
"""Of the least squares, relative to the mean square of what is weighed: z_hat of neighbours are much alike."""

TEACHER = {"name": "heun", "s_churn": 0.0, "s_min": 0.0, "s_max": None, "s_noise": 1.0}


@dataclass(frozen=True)
class Paths:
    """The way of some images from noise to data, by a fine solver.

    Attributes:
        levels: The nodes, [NODES + 1].
        states: At each node, and last x0, each [n, *size].
        estimates: x0_hat at each node, each [n, *size].
    """

    levels: list[Level]
    states: list[Tensor]
    estimates: list[Tensor]

    @property
    def x0(self) -> Tensor:
        """The images."""
        return self.states[-1]


@dataclass(frozen=True)
class Grid:
    """Where a sampler calls the network: numbers of teacher's nodes that rise, the first of them its start."""

    nodes: tuple[int, ...]
    skips: bool
    analytic: bool

    def moved(self, place: int, by: int, last: int) -> "Grid | None":
        """With one node moved, if that leaves a grid."""
        nodes = list(self.nodes)
        nodes[place] += by
        rises = all(a < b for a, b in zip([-1, *nodes], [*nodes, last + 1], strict=False))
        free = place > 0 or (self.skips and nodes[0] > 0)  # without a closed form the path begins in noise, at node 0
        return replace(self, nodes=tuple(nodes)) if rises and free and nodes[-1] <= last else None


class Search:
    """Looks for grids of one sampler on one model."""

    def __init__(self, sampling: Sampling, sampler: Mapping[str, Any], labels: list[int], seed: int) -> None:
        """Draw the teacher's paths.

        Args:
            sampling: How to draw, with the guidance to be used.
            sampler: Config of the sampler, whose `steps` are how many nodes to place.
            labels: Of the images to look at.
            seed: Of their noise.
        """
        self.sampling, self.sampler, self.labels = replace(sampling, seed=seed), dict(sampler), labels
        self.indices = list(range(len(labels)))
        self.paths = self._paths()
        self._known: dict[Grid, float] = {}

    def found(self, tell: Callable[[int, int], None] = lambda done, of: None) -> dict[str, Any]:
        """The sampler's config with the best grid there is: downhill from the best `FROM` of many to begin with.

        Args:
            tell: Is told from how many it has gone down, and of how many.
        """
        starts, ends = sorted(self._starts(), key=self._mean_error)[:FROM], list[Grid]()
        for start in starts:
            ends.append(self._downhill(start))
            tell(len(ends), len(starts))
        best = min(ends, key=self._mean_error)
        fitted = self._fitting(best)
        if fitted:
            self.error(self._config(best), fitted)
        return {**self._config(best), **({"weights": fitted.weights(len(best.nodes))} if fitted else {})}

    def error(self, config: Mapping[str, Any], instead: "Fitting | None" = None) -> Tensor:
        """Root mean square over the values of each image, [n], of its distance to the teacher's.

        Args:
            config: Of the sampler.
            instead: What walks on its grid in its place.
        """
        walk = make_sampler(config, self.sampling.denoiser.schedule, self.sampling.trained.objective)
        walk = walk._replace(sampler=instead) if instead else walk
        drawn = replace(self.sampling, walk=walk).draw(self.indices, self.labels)
        return (drawn - self.paths.x0).square().flatten(1).mean(1).sqrt()

    def _config(self, grid: Grid) -> dict[str, Any]:
        """The sampler's config with a grid."""
        sigmas = [min(self.paths.levels[node].nsr, PURE) for node in grid.nodes]
        return {
            **self.sampler,
            "sigmas": sigmas,
            "skip_to": sigmas[0] if grid.skips else None,
            "first_step": "analytic" if grid.analytic else "network",
            "steps": len(sigmas),
        }

    def _fitting(self, grid: Grid) -> "Fitting | None":
        """What fits weights on a grid, if the sampler takes any."""
        if "weights" not in self.sampler:
            return None
        return Fitting([*(self.paths.states[node] for node in grid.nodes[1:]), self.paths.x0])

    # --- the teacher ----------------------------------------------------------------------------------------------

    @torch.inference_mode()
    def _paths(self) -> Paths:
        sampling, said = self.sampling, list[Tensor]()
        schedule, objective = sampling.denoiser.schedule, sampling.trained.objective
        levels = [level(schedule, t) for t in teacher_times(schedule)]
        label = torch.tensor(self.labels, device=sampling.device)
        denoise = objective.guided(sampling.denoiser, label, sampling.guidance, clip=sampling.clip, doubles=True)
        solver = bind(SAMPLERS, TEACHER)

        def heard(x: Tensor, t: Tensor) -> Tensor:
            said.append(denoise(x, t))
            return said[-1]

        x = objective.start(sampling.state(sampling.noise(self.indices, sampling.seed)), sampling.denoiser, levels[0].t)
        states, estimates = [x], []
        for now, then in zip(levels, [*levels[1:], None], strict=True):
            said.clear()
            x = heard(x, now.t) if then is None else solver(heard, schedule, x, torch.stack([now.t, then.t]), None)
            estimates.append(said[0])  # of the step's start, where the solver asks first
            states.append(x)
        return Paths(levels, [*states[:-1], x.float()], estimates)

    # --- dynamic programming --------------------------------------------------------------------------------------

    def _starts(self) -> list[Grid]:
        """Grids to begin with: the cheapest ways and even ones, from noise and from where a closed form leads.

        Each also with one node more, the first, at which a closed form answers: it costs no call, and samplers that
        remember have something to remember.
        """
        costs, known = self._costs(), self.sampling.trained.moments is not None
        begins = [0, *map(self._nearest, BEGINS)] if known else [0]
        grids = []
        free = SAMPLERS.facts[self.sampler["name"]].calls == 1  # else the same step asks the network, too
        for analytic in (False, True) if free else (False,):
            count = int(self.sampler["steps"]) + analytic
            ways = cheapest(costs, count)
            for node in begins:
                even = [spread_between(node, self._nearest(end), count) for end in ENDS]
                grids += [Grid(nodes, node > 0, analytic) for nodes in (ways.from_node(node), *even)]
        return [grid for grid in grids if all(a < b for a, b in pairwise(grid.nodes))]

    def _nearest(self, nsr: float) -> int:
        """The node, after the first, whose sigma/alpha is nearest."""
        levels = self.paths.levels
        return min(range(1, len(levels)), key=lambda i: abs(math.log(levels[i].nsr / nsr)))

    def _costs(self) -> Tensor:
        """What Euler's step misses from node i to node j > i, or to data, [NODES, NODES + 1]; infinite elsewhere."""
        paths = self.paths
        costs = torch.full((len(paths.levels), len(paths.levels) + 1), math.inf, dtype=torch.float64)
        for i, now in enumerate(paths.levels):
            for j, then in enumerate(paths.levels[i + 1 :], i + 1):
                missed = euler_step(paths.states[i], paths.estimates[i], now, then) - paths.states[j]
                costs[i, j] = size_of(missed) / math.hypot(then.alpha, then.sigma)
            costs[i, -1] = size_of(paths.estimates[i] - paths.x0)
        return costs

    # --- downhill -------------------------------------------------------------------------------------------------

    def _mean_error(self, grid: Grid) -> float:
        """Of the images; looked up where it is known."""
        if grid not in self._known:
            self._known[grid] = float(self.error(self._config(grid), self._fitting(grid)).mean())
        return self._known[grid]

    def _downhill(self, grid: Grid) -> Grid:
        """Move one node after the other while the mean error falls, in smaller and smaller moves."""
        last = len(self.paths.levels) - 1
        for far in MOVES:
            falls = True
            while falls:
                falls = False
                for place in range(len(grid.nodes)):
                    for by in (-far, far):
                        other = grid.moved(place, by, last)
                        if other and self._mean_error(other) < self._mean_error(grid):
                            grid, falls = other, True
        return grid


class Fitting:
    """A sampler that fits its weights on the way: in each step those that lead nearest to the teacher's states.

    Attributes:
        targets: These states at the end of each step, each [n, *size].
        rows: The weights, by step.
    """

    def __init__(self, targets: list[Tensor]) -> None:
        self.targets, self.rows = targets, dict[int, list[float]]()

    def __call__(self, denoise: Denoise, schedule: Schedule, x: Tensor, ts: Tensor, noise: Noise) -> Tensor:
        """Walk as `samplers.adams.weighted` does."""
        return weighted(denoise, schedule, x, ts, self._row)

    def weights(self, count: int) -> list[list[float]]:
        """The rows of so many steps; one from pure noise, Euler's, has the weight 1."""
        return [self.rows.get(step, [1.0]) for step in range(count)]

    def _row(self, step: int, kept: Tensor, parts: list[Tensor]) -> list[float]:
        self.rows[step] = least_squares(parts, self.targets[step] - kept)
        return self.rows[step]


@dataclass(frozen=True)
class Ways:
    """The cheapest ways to data.

    Attributes:
        cost: [k][i]: of a way of k edges from node i, or infinite.
        following: [k][i]: the node that comes next on it.
    """

    cost: list[Tensor]
    following: list[Tensor]

    def from_node(self, node: int) -> tuple[int, ...]:
        """Its nodes, without data."""
        nodes = [node]
        for following in reversed(self.following[2:]):
            nodes.append(int(following[nodes[-1]]))
        return tuple(nodes)


def cheapest(costs: Tensor, edges: int) -> Ways:
    """The cheapest ways of so many edges from every node to data, where an error weighs more for each edge after it.

    Args:
        costs: From each node to each later one, and last to data, [N, N + 1].
        edges: How many.
    """
    cost, following = [torch.full((len(costs),), math.inf).double(), costs[:, -1]], [torch.zeros(0)] * 2
    for k in range(2, edges + 1):
        through = costs[:, :-1] * LATE ** (k - 1) + cost[-1]
        best, node = through.min(1)
        cost.append(best)
        following.append(node)
    return Ways(cost, following)


def spread_between(first: int, last: int, count: int) -> tuple[int, ...]:
    """`count` nodes from the first to the last, as evenly as whole numbers can be."""
    step = (last - first) / (count - 1)
    return tuple(round(first + i * step) for i in range(count))


def teacher_times(schedule: Any) -> Tensor:
    """t_max, and from sigma/alpha = 80, or below t_max, to t_min in equal steps of its logarithm, [NODES]."""
    ends = torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64)
    high, low = (schedule.sigma(ends) / schedule.alpha(ends)).tolist()
    top = min(high, 80.0)
    logs = torch.linspace(math.log(top), math.log(max(low, 2e-3)), NODES - (high > top), dtype=torch.float64)
    ts = schedule.time_at(logs.exp()).clamp(schedule.t_min, schedule.t_max)
    return torch.cat([ends[:1], ts]) if high > top else torch.cat([ends[:1], ts[1:]])


def size_of(difference: Tensor) -> float:
    """Mean over images of the root mean square of [n, *size]."""
    return float(difference.square().flatten(1).mean(1).sqrt().mean())


def least_squares(parts: list[Tensor], wanted: Tensor) -> list[float]:
    """The weights of parts whose sum is nearest to what is wanted."""
    columns = torch.stack([part.flatten() for part in parts]).cpu().double()
    squares = columns @ columns.T
    squares += RIDGE * squares.diagonal().mean() * torch.eye(len(parts), dtype=torch.float64)
    return [float(w) for w in torch.linalg.solve(squares, columns @ wanted.flatten().cpu().double())]
