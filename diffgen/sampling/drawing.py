"""Images number i, j, ... of a sampling run, the same whatever the batch size and the number of processes."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffgen.build import MAX_VALUES, Trained
from diffgen.core import memory
from diffgen.core.ahead import Ahead
from diffgen.core.compilation import Compiled
from diffgen.core.devices import float_type
from diffgen.core.errors import ProcessFault, first_line, out_of_memory, require
from diffgen.core.randomness import image_noise, mix
from diffgen.diffusion.denoiser import Denoiser
from diffgen.diffusion.gaussian import answered_first
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.samplers import Denoise
from diffgen.diffusion.samplers.steps import level
from diffgen.diffusion.tasks import ALL, Plan
from diffgen.nets import DataShape
from diffgen.sampling.walk import Walk, make_sampler

Watch = Callable[[Tensor, Tensor], None]

KEEP_MOMENTS = "train with train.covariance=true, or diffgen-tune task=covariance ckpt=RUN keeps them afterwards"
"""How a checkpoint comes by them."""


@dataclass
class Sampling:
    """How to sample: what was trained, a sampler with its grid, a seed and guidance."""

    trained: Trained
    walk: Walk
    clip: bool
    guidance: Guidance
    seed: int
    device: torch.device
    plan: Plan | None = None
    """Where to start and what to keep, if not new images from noise."""
    before_each: Callable[[], None] | None = None
    """Called before each network evaluation; it may raise, to end the sampling."""
    strays: list[Tensor] = field(default_factory=list)
    """Which parts of the latest examples or films stood for nothing, a batch each; see `Kind.strays`."""
    raw: list[Tensor] | None = None
    """x0 of the latest examples as the sampler gave it, a batch each, if that is wanted."""
    nfe: int = 0
    """Network evaluations of each image in the latest `draw`; guidance evaluates twice at once and counts as one."""

    @classmethod
    def from_config(
        cls,
        trained: Trained,
        sampler: Mapping[str, Any],
        *,
        guidance: Guidance,
        seed: int,
        device: torch.device,
    ) -> "Sampling":
        """Look up the sampler and lay out its time grid.

        Raises:
            UsageError: The sampler's config is wrong.
        """
        walk = make_sampler(sampler, trained.denoiser.schedule, trained.objective)
        told = f"sampler.skip_to={sampler.get('skip_to')} needs mean and covariance of the data, which are not kept: "
        require(not walk.skips or trained.moments is not None, told + KEEP_MOMENTS)
        clip = amplifies_errors(trained.denoiser) if walk.clip == "auto" else walk.clip
        return cls(trained, walk, trained.kind.bounded and clip, guidance, seed, device)

    @property
    def ts(self) -> Tensor:
        """The sampler's time grid."""
        return self.walk.ts

    @property
    def begins(self) -> Tensor:
        """Where the path begins: where the grid does, or before the part of it that is known in closed form."""
        return torch.tensor(self.denoiser.schedule.t_max, dtype=torch.float64) if self.walk.skips else self.ts[0]

    @property
    def denoiser(self) -> Any:
        """The frame of the network: x, t -> x0_hat."""
        return self.trained.denoiser

    @property
    def tells(self) -> bool:
        """Whether the network is told of known frames, now or in a later window."""
        plan = self.plan
        return bool(plan and (self.tells_in(plan) or (self.trained.shape.given and plan.then)))

    def tells_in(self, plan: Plan) -> bool:
        """Whether the network is told of known frames in this window."""
        return bool(self.trained.shape.given) and plan.told is not None

    def seed_of(self, window: int) -> int:
        """Of the noise of a window of clips that are longer than the network's."""
        return mix(self.seed, "window", window) if window else self.seed

    def noise(self, indices: list[int], seed: int, draw: int = 0) -> Tensor:
        """The objective's noise for images, [B, *size] on the CPU; see `image_noise`."""
        size, objective = self.trained.noise_size, self.trained.objective
        pinned = self.device.type == "cuda"
        return image_noise(size, indices, seed, draw, fill=objective.noise, dtype=objective.noise_type, pinned=pinned)

    @torch.inference_mode()
    def draw(self, indices: list[int], labels: list[int], watch: Watch | None = None) -> Tensor:
        """Images `indices` with the given labels as x0, float [B, *size].

        Image i depends on (seed, i) and its label alone (with sampler=ode, whose steps suit the batch, to within its
        tolerance). The state is float64 where the device has it: steps are small differences of large numbers (Karras
        et al. 2022, app. D). `watch(x, t)` sees every state that the sampler shows to the denoiser, from noise to data.
        """
        plan = self.plan or Plan(lambda indices: self.start(self.noise(indices, self.seed)), self.ts)
        self.nfe = 0
        x0 = self._walk(plan, indices, labels, watch)
        while plan.then:
            plan = plan.then(x0.to(float_type(self.device)))
            x0 = torch.cat([x0, self._walk(plan, indices, labels, watch)], 2)
        return x0

    def _walk(self, plan: Plan, indices: list[int], labels: list[int], watch: Watch | None) -> Tensor:
        """The way from noise to x0 [B, *size], or to that part of it which the plan wants."""

        def noise(draw: int) -> Tensor:
            whose = [0] * len(indices) if plan.path else indices
            return self.noise(whose, self.seed_of(plan.window), draw)

        schedule, objective, frame = self.denoiser.schedule, self.trained.objective, self.denoiser
        if self.tells_in(plan):
            frame = frame.knowing(plan.told)
        label = torch.tensor(labels, device=self.device)
        doubles = not isinstance(self.denoiser.model, Compiled)  # which is compiled for one size: it is called twice
        predict = objective.guided(frame, label, self.guidance, clip=self.clip, doubles=doubles)

        def denoise(x: Tensor, t: Tensor, *end: Tensor) -> Tensor:
            self.nfe += 1
            if self.before_each:
                self.before_each()
            return predict(x, t, *end)

        begun: Denoise = denoise
        if self.walk.first_step == "analytic":
            begun = answered_first(denoise, self.trained.gaussian, label, schedule)

        def watched(x: Tensor, t: Tensor, *end: Tensor) -> Tensor:
            if watch:
                watch(x, t)
            return begun(x, t, *end)

        x = plan.start(indices)
        if self.walk.skips:
            x = self.trained.gaussian.carried(x, label, *(level(schedule, t) for t in (self.begins, plan.ts[0])))
        with Ahead(lambda step: noise(step + 1), len(plan.ts) - 2) as added:  # the step to data adds none
            x = self.walk.sampler(plan.wrap(watched), schedule, x, plan.ts, lambda step: self.state(added(step)))
        x0 = objective.finished(x)
        return x0 if plan.part == ALL else x0[:, :, plan.part]

    def expected_nfe(self) -> int:
        """Network calls of an image, counted without the network; a guess for a sampler that adapts its steps."""
        calls, trial = 0, self.trained.objective.trial(self.trained.shape.size)

        def denoise(x: Tensor, *times: Tensor) -> Tensor:
            nonlocal calls
            calls += 1
            return trial.denoise(x, *times)

        self.walk.sampler(denoise, self.denoiser.schedule, trial.x, self.ts, trial.noise)
        return calls - (self.walk.first_step == "analytic")

    def start(self, noise: Tensor) -> Tensor:
        """The state of this noise where the path begins, on the device."""
        return self.trained.objective.start(self.state(noise), self.denoiser, self.begins)

    def state(self, x: Tensor) -> Tensor:
        """A tensor on the device, in the precision of the sampler's state."""
        return x.to(self.device, non_blocking=x.is_pinned()).to(float_type(self.device))

    def examples(self, indices: list[int], labels: list[int], batch_size: int) -> Iterator[Tensor]:
        """Images as they are stored, in batches on the CPU; smaller ones where memory does not suffice."""

        def draw(numbers: list[int]) -> Tensor:
            return self.draw([indices[i] for i in numbers], [labels[i] for i in numbers]).cpu()

        self.strays = []
        stored = map(self._stored, in_batches(draw, len(indices), batch_size))
        finish = self.plan.finish if self.plan else None
        return stored if finish is None else _finished(stored, finish, indices)

    def _stored(self, x0: Tensor) -> Tensor:
        self.strays.append(self.trained.kind.strays(x0))
        if self.raw is not None:
            self.raw.append(x0.float())
        return self.trained.kind.decode(x0)

    def films(self, indices: list[int], labels: list[int], batch_size: int) -> Iterator[Tensor]:
        """The same with pictures of their way, [B, plan.frames, ...]; the last one is the image.

        A state on the way is shown as the objective sees it. Of tokens one example is drawn at a time: a sampler skips
        the calls that nothing in a batch needs, so that the way of one would depend on the others.
        """
        count, objective = self.plan.frames if self.plan else 1, self.trained.objective
        seen: list[Tensor] = []

        def watch(x: Tensor, t: Tensor) -> None:
            seen.append(self.trained.kind.decode(objective.seen(x, self.denoiser.schedule, t)).cpu())

        def draw(numbers: list[int]) -> Tensor:
            seen.clear()
            return self.draw([indices[i] for i in numbers], [labels[i] for i in numbers], watch).cpu()

        self.strays = []
        for x0 in in_batches(draw, len(indices), 1 if objective.discrete else batch_size):
            shown = [seen[i * len(seen) // (count - 1)][: len(x0)] for i in range(count - 1)]
            yield torch.stack([*shown, self._stored(x0)], dim=1)


def _finished(
    batches: Iterator[Tensor], finish: Callable[[Tensor, list[int]], Tensor], indices: list[int]
) -> Iterator[Tensor]:
    """Batches of examples as a plan wants them in the end; `indices` are their numbers, all in a row."""
    done = 0
    for batch in batches:
        yield finish(batch, indices[done : done + len(batch)])
        done += len(batch)


def batch_size(shape: DataShape, device: torch.device) -> int:
    """Images at once where nobody says: 1024 on a GPU, else 64, and fewer large ones: a file chooses their size.

    Of tokens the network says how likely each value is, so all of these count.
    """
    most = 1024 if device.type == "cuda" else 64
    return min(most, max(MAX_VALUES // (math.prod(shape.size) * max(shape.vocabulary, 1)), 1))


def in_batches(draw: Callable[[list[int]], Tensor], count: int, most: int) -> Iterator[Tensor]:
    """`draw` of images 0 .. count - 1, at most so many at a time; half as many from where memory runs out.

    All batches are of one size, for which a network is compiled once: the last repeats its last image to fill up, and
    what is drawn of that is dropped. They are as even as they can be, so few are repeated.

    Raises:
        ProcessFault: Memory does not suffice for a single image.
    """
    start, size = 0, _even(count, most)
    while start < count:
        try:
            drawn = draw([min(i, count - 1) for i in range(start, start + size)])
        except Exception as error:
            if not out_of_memory(error):
                raise
            drawn, reason = None, first_line(error)
        if drawn is None:  # outside the handler, whose traceback keeps tensors alive
            if size == 1:
                raise ProcessFault(memory.ONE_IMAGE.format(reason))
            size = _even(count - start, (size + 1) // 2)
            memory.give_back()
            continue
        yield drawn[: count - start]
        start += size


def _even(count: int, most: int) -> int:
    """Size of the fewest batches of at most `most`, the last of which lacks fewer than there are batches."""
    return math.ceil(count / math.ceil(count / most))


def amplifies_errors(denoiser: Denoiser) -> bool:
    """Whether x0_hat at t_max is the network's output many times over, as it is for eps, where c_out = -sigma/alpha.

    There the first steps of a sampler go astray unless x0_hat is clipped to the range of images.
    """
    end = torch.tensor(denoiser.schedule.t_max, dtype=torch.float64)
    return float(denoiser.coefficients(end).c_out.abs()) > 10
