"""What a denoiser can do beside making images from noise: restore, vary, blend, and show its way.

A task changes three things about a sampling run, and nothing else: the state at which the sampler starts and the rest
of its time grid, the denoiser that it sees, and the pictures that are kept. So each goes with every model and sampler,
but those that need Gaussian noise do not go with tokens. Pictures and text of the user's come in as the kind reads
them: pictures as [C, H, W] in [-1, 1], say.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from diffgen.core.errors import require
from diffgen.core.registry import Table
from diffgen.diffusion.knowing import told
from diffgen.diffusion.samplers import Denoise
from diffgen.diffusion.schedules import Schedule

Start = Callable[[list[int]], Tensor]
"""Numbers of examples -> the state at which a sampler starts, [B, *size]."""

Wrap = Callable[[Denoise], Denoise]
"""A denoiser -> the one that a sampler sees."""

Finish = Callable[[Tensor, list[int]], Tensor]
"""(examples as stored [B, ...], their numbers) -> what becomes of them."""

LONGEST = 4096
"""Frames of a clip that is longer than the network's."""


class Facts(NamedTuple):
    """What a task declares of itself.

    Attributes:
        pictures: Whether it starts from pictures of the user's.
        noise: Whether it needs a path of Gaussian noise.
        text: Whether it starts from a text of the user's.
        clips: Whether it is about frames of clips.
        way: Whether it changes, or shows, the way of a sampler.
        codes: Whether it needs an autoencoder.
    """

    pictures: bool = False
    noise: bool = False
    text: bool = False
    clips: bool = False
    way: bool = False
    codes: bool = False


TASKS = Table("task", Facts)
"""Rows are called as row(run, **settings) and give a `Plan`."""


class Run(NamedTuple):
    """What a task is told of the run.

    Attributes:
        schedule: The noise schedule.
        ts: The sampler's time grid.
        noise: (indices, seed or None for the run's own) -> the objective's noise [B, *size].
        picture: path -> x0 [*size], as the kind reads it.
        shade: path -> brightness of a picture in [0, 255], [1, H, W], or of any shape that is broadcast to x0.
        film: (path, how many first frames or None for all, every how many or None for the kind's own) -> x0
            [C, n, H, W] of a clip.
        size: Of x0.
        state: noise [B, *size] -> the state at ts[0].
        noise_of: (x0 [B, *size], rtol) -> the noise of which a sampler of the ODE makes it again.
        original: path -> the example as it is stored, as the kind reads it.
        kept: (picture, mask) -> what puts the pixels that are kept into drawn pictures, where x0 does not hold them
            exactly; None where it does, or where nothing is kept.
        n: Number of images of the run.
        start: indices -> the state at ts[0] of new examples, [B, *size].
        keep: (x0 [*size], where it is free, bool [*size]) -> how to start and what the sampler sees, so that the rest
            of x0 stays; a third is the number of the window, whose noise is its own.
        template: (text, mark) -> x0 [*size] of a text with gaps, and where it is free, bool [*size].
    """

    schedule: Schedule
    ts: Tensor
    noise: Callable[[list[int], int | None], Tensor]
    picture: Callable[[str], Tensor]
    shade: Callable[[str], Tensor]
    film: Callable[[str, int | None, int | None], Tensor]
    size: tuple[int, ...]
    state: Callable[[Tensor], Tensor]
    noise_of: Callable[[Tensor, float], Tensor]
    original: Callable[[str], Tensor]
    kept: "Callable[[str, str], Finish | None]"
    n: int
    start: Start
    keep: Callable[..., tuple[Start, Wrap]]
    template: Callable[[str, str], tuple[Tensor, Tensor]]


ALL = slice(None)
"""Of what there is."""


class Plan(NamedTuple):
    """What a task decides.

    Attributes:
        start: indices -> the state x at ts[0], [B, *size].
        ts: The time grid from there on.
        wrap: denoise -> the denoiser that the sampler sees.
        frames: How many pictures of its way to keep for each image, itself included; 0 for none.
        path: Whether the images are a path: in one line of the grid, and the same noise for all in stochastic samplers.
        told: What the network is told of the examples, if it can be: see `diffusion.knowing`.
        window: Its number, where clips are longer than the network's; each has noise of its own.
        part: Which frames of this window become those of the clip; all of them unless it says so.
        then: The clip so far, [B, C, n, H, W] -> the plan of the next window; None after the last.
        new: Whether nothing of the user's is in the examples; unless told otherwise each is then of a class in turn.
        n: How many examples there are, if the task says so.
        columns: How many of them are in a row of the grid, if it says so.
        finish: (examples as stored [B, ...], their numbers) -> what becomes of them.
    """

    start: Start
    ts: Tensor
    wrap: Wrap = lambda denoise: denoise
    frames: int = 0
    path: bool = False
    told: Tensor | None = None
    window: int = 0
    part: slice = ALL
    then: "Callable[[Tensor], Plan] | None" = None
    new: bool = False
    n: int | None = None
    columns: int | None = None
    finish: "Finish | None" = None


@TASKS.register("generate")
def generate(run: Run) -> Plan:
    """New images from noise."""
    return Plan(run.start, run.ts, new=True)


@TASKS.register("trajectory", way=True)
def trajectory(run: Run, *, frames: int) -> Plan:
    """New images, and `frames` pictures of each on its way, itself the last."""
    require(2 <= frames <= 64, f"frames={frames} must be in [2, 64]")
    return Plan(run.start, run.ts, frames=frames, new=True)


@TASKS.register("img2img", pictures=True, noise=True, way=True)
def img2img(run: Run, *, image: str | None, strength: float) -> Plan:
    """Variations of a picture: noise it up to a point of the path, and walk back (Meng et al. 2022, SDEdit).

    Args:
        run: The run.
        image: The picture's path.
        strength: Share of the sampler's steps that are walked, in (0, 1]; 1 keeps nothing of the picture.
    """
    require(0 < strength <= 1, f"strength={strength} must be in (0, 1]")
    x0 = run.picture(given("image", image))
    steps = len(run.ts) - 1
    require(steps >= 5, f"strength is a share of the sampler's steps, and it has {steps}: give sampler.steps=20, say")
    ts = run.ts[steps - max(1, round(strength * steps)) :]
    alpha, sigma = float(run.schedule.alpha(ts[0])), float(run.schedule.sigma(ts[0]))
    return Plan(lambda indices: alpha * x0 + sigma * run.noise(indices, None), ts)


@TASKS.register("inpaint", pictures=True, way=True)
def inpaint(run: Run, *, image: str | None, mask: str | None) -> Plan:
    """Fill in a part of a picture: wherever the mask is black, the picture itself stays, with any sampler.

    Args:
        run: The run.
        image: The picture's path.
        mask: Path of a picture that is white where to paint and black where to keep.
    """
    x0, shade = run.picture(given("image", image)), run.shade(given("mask", mask))
    paint = shade > 127.5
    brightest = round(float(shade.max()))
    require(
        bool(paint.any()),
        f"mask={mask!r} is black, and black is kept: nothing would be painted. At the model's size its brightest pixel "
        f"has {brightest} of 255; from 128 on, and best in white, 255, it says where to paint",
    )
    finish = run.kept(str(image), str(mask))
    require(
        finish is not None or not bool(paint.all()),
        f"mask={mask!r} has 128 of 255 or more everywhere, with what shines through its transparent pixels: nothing "
        "would be kept, which is task=generate; black is kept",
    )

    start, wrap = run.keep(x0, paint.expand(x0.shape))
    return Plan(start, run.ts, wrap, finish=finish)


@TASKS.register("infill", text=True)
def infill(run: Run, *, text: str | None, mark: str) -> Plan:
    """Fill gaps in a text, and go on after its end; every token that is given stays.

    Args:
        run: The run.
        text: What is given, or the path of a file of it.
        mark: Stands for one unknown token.
    """
    require(text is not None, f"text is missing: task.text='The function {4 * mark} the value', or a file")
    require(mark != "", "mark is empty: give what stands for one unknown token, as in task.mark=_")
    start, wrap = run.keep(*run.template(str(text), mark))
    return Plan(start, run.ts, wrap)


@TASKS.register("predict", clips=True)
def predict(
    run: Run, *, video: str | None, known: int | None, length: int | None, at_once: int | None, stride: int | None
) -> Plan:
    """Go on with a clip from its first frames, or make new clips that are longer than the network's.

    Args:
        run: The run.
        video: The clip's path; without one the first frames are new, too.
        known: How many of its frames are known; null: half of the network's, or all of the clip's if these are fewer.
            Every further window knows as many of the last, or more where fewer are new.
        length: Frames to make in all, the known ones included; null: as many as the network makes at once.
        at_once: New frames of a window; null: all that fit. Fewer are nearer to what is known, and cost more windows.
        stride: Every how many frames of the clip is one of those; null: as in training, and every one of an array.
    """
    frames = run.size[1]
    require(video is not None or length is not None, "video is missing: task.video=PATH, or task.length=32 without one")
    film = run.film(video, frames, stride) if video is not None else None
    known = min(frames // 2, frames if film is None else film.shape[1]) if known is None else known
    require(1 <= known < frames, f"known={known} must be in [1, {frames - 1}]: this model's clips have {frames} frames")
    most, length = frames - known, frames if length is None else length
    at_once = most if at_once is None else at_once
    require(1 <= at_once <= most, f"at_once={at_once} must be in [1, {most}]: of {frames} frames {known} are known")
    least = frames if film is None else known + 1
    told = f"length={length} must be in [{least}, {LONGEST}]: this model's clips have {frames} frames"
    require(least <= length <= LONGEST, told)
    if film is None:
        then = partial(_onward, run, at_once=at_once, length=length, number=1) if length > frames else None
        return Plan(run.start, run.ts, then=then, new=True)
    require(known <= film.shape[1], f"known={known} is more than the {film.shape[1]} frames of video={video!r}")
    plan = _onward(run, film[:, :known], at_once=at_once, length=length, number=0)
    return plan._replace(part=slice(0, plan.part.stop))  # with the known ones


def _onward(run: Run, clip: Tensor, *, at_once: int, length: int, number: int) -> Plan:
    """The window that goes on with a clip [(B,) C, n, H, W]: it knows as many of the last frames as leave room."""
    frames, done = run.size[1], clip.shape[-3]
    fresh = min(at_once, length - done)
    known = min(done, frames - fresh)
    plan = _window(run, clip[..., done - known :, :, :], clip[..., :0, :, :], number)
    more = done + fresh < length
    then = partial(_onward, run, at_once=at_once, length=length, number=number + 1) if more else None
    return plan._replace(part=slice(known, known + fresh), then=then)


@TASKS.register("inbetween", clips=True)
def inbetween(run: Run, *, video: str | None, known: int, stride: int | None) -> Plan:
    """Fill in the frames between the first and the last ones of a clip.

    Args:
        run: The run.
        video: The clip's path: its first and last frames become those of the clips that are made.
        known: How many frames are known at either end.
        stride: See `predict`.
    """
    film, frames = run.film(given("video", video), None, stride), run.size[1]
    require(1 <= 2 * known < frames, f"known={known} at either end must leave some of this model's {frames} frames")
    require(
        2 * known <= film.shape[1], f"known={known} at either end is more than the {film.shape[1]} frames of the video"
    )
    return _window(run, film[:, :known], film[:, -known:], 0)


def _window(run: Run, first: Tensor, last: Tensor, number: int) -> Plan:
    """Clips whose first and last frames are known, [(B,) C, n, H, W] each; n may be 0."""
    _, frames, *sides = run.size
    n, m = first.shape[-3], last.shape[-3]
    x0 = torch.cat([first, first.new_zeros(*first.shape[:-3], frames - n - m, *sides), last], -3)
    time = torch.arange(frames, device=x0.device)[:, None, None]
    known = (time < n) | (time >= frames - m)
    start, wrap = run.keep(x0, ~known, number)
    return Plan(start, run.ts, wrap, told=told(x0.reshape(-1, *run.size), known[None, None]), window=number)


@TASKS.register("interpolate", noise=True)
def interpolate(run: Run, *, seeds: tuple[int, ...] | None, images: tuple[str, ...] | None, rtol: float) -> Plan:
    """A path of n images between two others, along the great circle between their noises (Song et al. 2021, DDIM).

    Args:
        run: The run.
        seeds: Two seeds; both ends are new images.
        images: Two paths; both ends are pictures, whose noise is found by walking the ODE backwards. Samplers of the
            ODE (ddim, heun, unipc, ode, ...) lead back to them.
        rtol: Tolerance of that walk.
    """
    require((seeds is None) != (images is None), "seeds=[A,B] or task.images=[A,B] must be given, and not both")
    require(len(seeds or images or ()) == 2, "seeds or task.images must be two: a path goes between two ends")
    if seeds:
        a, b = (run.noise([0], seed)[0] for seed in seeds)
    else:
        a, b = run.noise_of(torch.stack([run.picture(path) for path in images or ()]), rtol)

    def start(indices: list[int]) -> Tensor:
        return run.state(torch.stack([slerp(a, b, i / max(run.n - 1, 1)) for i in indices]))

    return Plan(start, run.ts, path=True)


@TASKS.register("reconstruct", codes=True)
def reconstruct(run: Run, *, image: str | tuple[str, ...] | None) -> Plan:
    """Pairs: each picture as the model reads it, and what an autoencoder makes of its latents.

    Args:
        run: The run.
        image: The path of a picture, or several.
    """
    require(bool(image), "image is missing: task.image=PATH names a picture, task.image=[PATH,PATH] several")
    paths = (image,) if isinstance(image, str) else tuple(image or ())
    latents = run.state(run.noise_of(torch.stack([run.picture(path) for path in paths]), 0.0))
    return pairs(torch.stack([run.original(path) for path in paths]), lambda numbers: latents[numbers], run.ts)


def pairs(originals: Tensor, state: Callable[[list[int]], Tensor], ts: Tensor) -> Plan:
    """Examples beside what is made of them.

    Args:
        originals: As they are stored, [n, ...].
        state: Numbers of originals -> the state at ts[0] from which they are made again.
        ts: The sampler's time grid.
    """

    def finish(examples: Tensor, indices: list[int]) -> Tensor:
        numbers = torch.tensor(indices)
        first = (numbers % 2 == 0).reshape(-1, *[1] * (examples.ndim - 1))
        return torch.where(first, originals[numbers // 2].to(examples), examples)

    n = 2 * len(originals)
    columns = 2 * math.ceil(math.sqrt(n) / 2)  # a square, in whose rows both stand side by side
    return Plan(lambda indices: state([i // 2 for i in indices]), ts, n=n, columns=columns, finish=finish)


def slerp(a: Tensor, b: Tensor, share: float) -> Tensor:
    """Spherical interpolation, which keeps the length that noise has; share 0 gives a, 1 gives b."""
    cosine = float((a * b).sum() / (a.norm() * b.norm()))
    angle = math.acos(min(max(cosine, -1.0), 1.0))
    if angle < 1e-6:
        return torch.lerp(a, b, share)
    return (math.sin((1 - share) * angle) * a + math.sin(share * angle) * b) / math.sin(angle)


def given(key: str, path: str | None) -> str:
    """A path that must be there."""
    require(path is not None, f"{key} is missing: task.{key}=PATH names it")
    return str(path)
