"""Sampling a checkpoint to a folder, shared among processes."""

import io
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffgen.build import restore
from diffgen.core import compilation
from diffgen.core.compilation import Compiled
from diffgen.core.console import Reporter, count
from diffgen.core.errors import CheckpointError, UsageError, require, unknown
from diffgen.core.files import explained, make_writable, write_atomically
from diffgen.core.processes import accelerated, on_main, share_of
from diffgen.core.randomness import image_noise
from diffgen.core.registry import build, convert
from diffgen.core.settings import SampleSettings
from diffgen.data import images
from diffgen.data.images import grid, picture, save_gif, save_png
from diffgen.diffusion.denoiser import NO_LABEL, Denoiser
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.tasks import TASKS, Plan, Run
from diffgen.sampling.drawing import Sampling, batch_size, columns, cycle_labels
from diffgen.storage import checkpoint, posthoc
from diffgen.storage.checkpoint import Checkpoint

GRID_LIMIT = 400  # tiles of a grid; the other images are in the other files
WORTH_COMPILING = 2000  # images, below which the compiler takes longer than it saves
FILM_LIMIT = 16  # rows of a grid of strips


def generate(settings: SampleSettings, sampler: Mapping[str, Any], task: Mapping[str, Any], default_out: Path) -> None:
    """Sample a checkpoint and write what `settings.save` asks for.

    Args:
        settings: Checked settings; `ckpt` is not None.
        sampler: Config of the sampler; `name: auto` stands for the checkpoint's own.
        task: Config of the task, a row of `tasks.TASKS`.
        default_out: The folder if `settings.out` is None.

    Raises:
        DiffgenError: The checkpoint, a label, a picture or the output folder cannot be used.
    """
    with accelerated(settings.precision) as accelerator:
        saved = posthoc.of_length(checkpoint.load(Path(str(settings.ckpt))), settings.sigma_rel)
        denoiser = restore(saved)  # from here on the config is known to be sound
        labels = choose_labels(settings, saved.config["data"], str(task.get("name")))
        require(
            settings.guidance in ("auto", 1) or settings.guide is not None or any(label >= 0 for label in labels),
            f"guidance={settings.guidance} needs labels or guide=CKPT, and these images have no label: guidance=1",
        )
        sampler = resolve_sampler(sampler, saved.config["sampler"])
        sampling = make_sampling(settings, sampler, saved, denoiser, accelerator.device)
        require(
            saved.config["data"]["pixels"] or task.get("name") == "generate",
            f"task={task.get('name')} is for pictures, and this model makes vectors: task=generate",
        )
        sampling.plan = make_plan(settings, task, sampling, shape_of(saved))
        out = Path(settings.out) if settings.out else default_out
        on_main(accelerator, lambda: _prepare(out, settings))
        reporter = Reporter(speaks=accelerator.is_main_process)
        reporter.header(
            f"diffgen-sample: {saved.path}",
            {
                "images": f"{settings.n} of {'x'.join(map(str, shape_of(saved)))}, seed {settings.seed}",
                "model": f"{saved.config['model']['name']}, {saved.images:,} images seen{shown_average(saved)}",
                "task": shown(task),
                "sampler": shown(sampler),
                "guidance": shown_guidance(sampling.guidance, settings.guide),
                "device": f"{accelerator.device.type} x {accelerator.num_processes}, "
                f"precision {accelerator.mixed_precision}",
            },
        )
        started = time.monotonic()
        pictures = Pictures(out / "images") if "png" in settings.kinds else None
        draw = batches_of(sampling, saved)
        with accelerator.autocast():
            drawn = _draw_all(draw, shape_of(saved), labels, settings, accelerator, reporter, pictures)
        if pictures:
            pictures.finish()
        if accelerator.is_main_process:
            seconds = max(time.monotonic() - started, 1e-9)
            notes = {"diffgen": f"ckpt={saved.path} seed={settings.seed} {shown(task)}, {shown(sampler)}"}
            in_line = settings.n if sampling.plan.path else None
            write(out, drawn, labels, settings.kinds, in_line or class_columns(labels, saved), notes)
            pace = count(settings.n / seconds)
            twice = ", some or all with a second one for guidance" if guides(sampling.guidance, labels) else ""
            reporter.say(f"{settings.n} images in {seconds:.1f} s ({pace} img/s), NFE {sampling.nfe}{twice}")
            more = f"   more: {', '.join(settings.kinds)} in {out}" if set(settings.kinds) - {"grid"} else ""
            reporter.say(f"grid: {out / 'grid.png'}{more}")


def class_columns(labels: list[int], saved: Checkpoint) -> int | None:
    """Columns of a grid with one class each, where the labels cycle through the classes."""
    classes = saved.config["data"]["num_classes"]
    return columns(len(labels), classes if labels == cycle_labels(len(labels), classes) else 0)


def shape_of(saved: Checkpoint) -> tuple[int, ...]:
    """(C, H, W) of a checkpoint's images."""
    return tuple(saved.config["data"][key] for key in ("channels", "height", "width"))


def shown(config: Mapping[str, Any]) -> str:
    """A part's name and settings in one line."""
    settings = [f"{key} {value}" for key, value in config.items() if key != "name" and value is not None]
    return ", ".join([str(config["name"]), *settings])


def shown_average(saved: Checkpoint) -> str:
    """How the weights were averaged, where that was chosen afterwards."""
    ema = posthoc.facts(saved.config)
    if not {"sigma_rel", "made_from", "missed"} <= ema.keys():
        return ""
    return f", ema.sigma_rel {ema['sigma_rel']:g} from {ema['made_from']} averages (misses {ema['missed']:.1%})"


def shown_guidance(guidance: Guidance, guide: str | None) -> str:
    """Scale, interval, rescaling and guide in one line."""
    parts = [f"{guidance.scale:g}" if guidance.scale != 1 else "off"]
    parts += [f"inside {list(guidance.interval)}"] if guidance.interval else []
    parts += [f"rescaled {guidance.rescale:g}"] if guidance.rescale else []
    return ", ".join(parts + ([f"away from {guide}"] if guide else []))


def make_sampling(
    settings: SampleSettings, sampler: Mapping[str, Any], saved: Checkpoint, denoiser: Denoiser, device: torch.device
) -> Sampling:
    """The checkpoint's denoiser with the sampler and guidance that were asked for, on the device."""
    if not saved.config["data"]["pixels"]:
        require("png" not in settings.kinds, "save=png is for pictures, and this model makes vectors: save=npz")
        sampler = {**sampler, "clip": False}  # vectors have no range to clip to
    denoiser.model.to(device)  # type: ignore[attr-defined]
    if compilation.wanted(settings.compile, pays=device.type == "cuda" and settings.n >= WORTH_COMPILING):
        required = settings.compile is True
        denoiser.model = Compiled(denoiser.model, key="compile", required=required)  # type: ignore[arg-type]
    guidance = make_guidance(settings, saved, device)
    return Sampling.from_config(denoiser, sampler, guidance=guidance, seed=settings.seed, device=device)


def make_plan(settings: SampleSettings, task: Mapping[str, Any], sampling: Sampling, shape: tuple[int, ...]) -> Plan:
    """The task's plan for this run."""

    def noise(indices: list[int], seed: int | None) -> Tensor:
        return sampling.state(image_noise(shape, indices, settings.seed if seed is None else seed, 0))

    def pictured(path: str) -> Tensor:
        return sampling.state(images.read(path, shape))

    @torch.inference_mode()
    def denoise(x: Tensor, t: Tensor) -> Tensor:
        unknown_label = torch.full((len(x),), NO_LABEL, device=x.device)
        return sampling.denoiser(x, t.to(x).expand(len(x)), unknown_label)

    run = Run(sampling.denoiser.schedule, sampling.ts, noise, pictured, denoise, settings.n)
    plan: Plan = build(TASKS, task, run)
    return plan


def batches_of(sampling: Sampling, saved: Checkpoint) -> Callable[..., Iterator[Tensor]]:
    """What draws batches: of 8-bit pixels, of frames of them, or of vectors."""
    if not saved.config["data"]["pixels"]:
        return sampling.batches
    return sampling.films if sampling.plan and sampling.plan.frames else sampling.pixels


def make_guidance(settings: SampleSettings, saved: Checkpoint, device: torch.device) -> Guidance:
    """The guidance that the settings ask for; `auto` is the scale of the checkpoint's previews."""
    scale, data = settings.guidance, saved.config["data"]
    if scale == "auto":
        try:
            scale = convert("guidance", saved.config.get("guidance", 1.0), float)
        except UsageError as error:
            raise CheckpointError(f"{saved.path} is refused: its config says {error}") from None
    guide = None
    if settings.guide:
        weaker = load_guide(settings.guide)
        guide = restore(weaker)
        require(
            all(weaker.config["data"][key] == data[key] for key in data if key != "augment_labels"),
            f"guide={settings.guide!r} was trained on images of another shape or with other classes than ckpt",
        )
        require(
            weaker.config["schedule"] == saved.config["schedule"],
            f"guide={settings.guide!r} has another noise schedule than ckpt: they cannot be combined",
        )
        guide.model.to(device)  # type: ignore[attr-defined]
    low_high = settings.guidance_interval
    interval = (low_high[0], low_high[1]) if low_high else None
    return Guidance(scale=scale, interval=interval, rescale=settings.guidance_rescale, guide=guide)


def guides(guidance: Guidance, labels: list[int]) -> bool:
    """Whether a network call stands for two evaluations."""
    return guidance.scale != 1 and (guidance.guide is not None or any(label >= 0 for label in labels))


def load_guide(path: str) -> Checkpoint:
    """The checkpoint to guide away from; its errors name the key `guide`."""
    try:
        return checkpoint.load(Path(path))
    except CheckpointError as error:
        raise CheckpointError(str(error).replace("ckpt=", "guide=", 1)) from None


def choose_labels(settings: SampleSettings, data: Mapping[str, Any], task: str) -> list[int]:
    """The label of each image; `auto` is each class in turn where new images are made, else none.

    Raises:
        UsageError: A label is out of range, or the model knows none.
    """
    wanted, num_classes, classes = settings.label, data["num_classes"], data["classes"]
    if wanted == "auto" and (not num_classes or task not in ("generate", "trajectory")):
        wanted = "none"
    if wanted in (None, "none"):
        return [-1] * settings.n
    require(
        num_classes > 0,
        f"label={_shown(wanted)} asks for a class, but this model is unconditional: label=none",
    )
    if wanted in ("auto", "each"):
        return cycle_labels(settings.n, num_classes)
    chosen = [_label(item, num_classes, classes) for item in (wanted if isinstance(wanted, tuple) else (wanted,))]
    require(bool(chosen), "label=[] is empty: give a class, a list of classes, each or none")
    return [chosen[i % len(chosen)] for i in range(settings.n)]


def _label(item: Any, num_classes: int, classes: list[str]) -> int:
    if isinstance(item, str):
        require(item in classes, unknown(f"label={item!r}", [*classes, "each", "none", "auto"]))
        return classes.index(item)
    require(0 <= item < num_classes, f"label={item} is out of range: the model has classes 0 to {num_classes - 1}")
    return int(item)


def _shown(label: Any) -> str:
    return str(list(label)) if isinstance(label, tuple) else str(label)


def resolve_sampler(config: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The sampler's config; `auto` is the checkpoint's own with the keys that are given replaced."""
    if config["name"] != "auto":
        return dict(config)
    return {**own, **{key: value for key, value in config.items() if value is not None and key != "name"}}


def _prepare(out: Path, settings: SampleSettings) -> None:
    """Make the folder and refuse to overwrite."""
    names = {"grid": "grid.png", "png": "images", "npz": "samples.npz"}
    there = [names[k] for k in ("grid", *settings.kinds) if (out / names[k]).exists()]
    if there and not settings.overwrite:
        raise UsageError(f"out={str(out)!r} already holds {there[0]}: choose another folder, or overwrite=true")
    make_writable(out)
    with explained(out):
        if "png" in settings.kinds:
            (out / "images").mkdir(exist_ok=True)
        for old in (out / "images").glob("[0-9]" * 6 + ".png"):
            old.unlink()  # of a larger set that was here: a mixture would spoil an evaluation


def _draw_all(
    batches: Callable[..., Iterator[Tensor]],
    shape: tuple[int, ...],
    labels: list[int],
    settings: SampleSettings,
    accelerator: Any,
    reporter: Reporter,
    pictures: "Pictures | None",
) -> Tensor:
    """All images (uint8) or vectors (float), [n, C, H, W], on the main process (elsewhere the same or a part)."""
    n, world = settings.n, accelerator.num_processes
    mine = share_of(n, accelerator)
    batch = settings.batch_size if isinstance(settings.batch_size, int) else batch_size(shape, accelerator.device)
    parts: list[Tensor] = []
    started = time.monotonic()
    with reporter.progress(len(mine), 0) as line:
        for part in batches(shape, mine, [labels[i] for i in mine], batch):
            done = sum(map(len, parts))
            if pictures:
                pictures.add(dict(zip(mine[done:], part, strict=False)))
            parts.append(part)
            done += len(part)
            line.update(done, f"{min(done * world, n)} img  {count(done * world / (time.monotonic() - started))} img/s")
    drawn = torch.cat(parts)
    if world > 1:
        drawn = accelerator.gather(drawn.to(accelerator.device)).cpu()
    return drawn[:n]


def write(
    out: Path,
    drawn: Tensor,
    labels: list[int],
    kinds: tuple[str, ...],
    grid_columns: int | None,
    notes: Mapping[str, str],
) -> None:
    """Write grid.png, and samples.npz where asked for.

    `samples.npz` follows the public ADM evaluator: arr_0 uint8 [N, H, W, C], arr_1 int64 labels (-1 for none).
    Vectors (float [N, D, 1, 1]) are plotted in grid.png; their arr_0 is float32 [N, D]. Films (uint8 [N, F, C, H, W])
    stand in grid.png as strips, one a row, and move in trajectory.gif; the other files hold their last frames.
    """
    vectors = drawn.is_floating_point()
    if drawn.ndim == 5:
        rows = drawn[:FILM_LIMIT]
        save_gif([grid(frame) for frame in rows.unbind(1)], out / "trajectory.gif")
        save_png(grid(rows.flatten(0, 1), columns=drawn.shape[1]), out / "grid.png", notes)
        write_npz(out, drawn[:, -1], labels, kinds)
        return
    sheet = scatter_sheet(drawn, labels) if vectors else grid(drawn[:GRID_LIMIT], columns=grid_columns)
    save_png(sheet, out / "grid.png", notes)
    write_npz(out, drawn, labels, kinds)


class Pictures:
    """A folder of PNG files, encoded and written by threads while the next images are drawn."""

    def __init__(self, folder: Path) -> None:
        """Args: folder: must exist."""
        self.folder = folder
        self.threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="png")
        self.written: list[Future[None]] = []

    def add(self, images: Mapping[int, Tensor]) -> None:
        """Write images, uint8 [C, H, W] by their number; of films [F, C, H, W] the last frame."""
        self.written.append(self.threads.submit(self._save, images))

    def _save(self, images: Mapping[int, Tensor]) -> None:
        for number, image in images.items():
            path = self.folder / f"{number:06d}.png"
            with explained(path):
                picture(image if image.ndim == 3 else image[-1]).save(path)

    def finish(self) -> None:
        """Wait for all files.

        Raises:
            EnvironmentFault: One cannot be written.
        """
        self.threads.shutdown()
        for done in self.written:
            done.result()


def write_npz(out: Path, drawn: Tensor, labels: list[int], kinds: tuple[str, ...]) -> None:
    """Write samples.npz where asked for."""
    if "npz" in kinds:
        buffer = io.BytesIO()
        array = drawn.flatten(1) if drawn.is_floating_point() else drawn.permute(0, 2, 3, 1)
        np.savez(buffer, array.numpy(), np.asarray(labels, np.int64))
        write_atomically(out / "samples.npz", buffer.getvalue())


def scatter_sheet(vectors: Tensor, labels: list[int]) -> Image.Image:
    """Vectors [N, D, 1, 1] as a scatter plot of their first two values."""
    from diffgen.core.plots import scatter

    return Image.open(io.BytesIO(scatter({"samples": (vectors.flatten(1), torch.tensor(labels))})))
