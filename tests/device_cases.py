"""What runs on the pretended device: training, sampling, tasks and evaluation, as small as they can be.

A case takes a `Bench` and an empty folder and gives figures, which are the same on every device. `test_device.py` runs all
of them; `scripts/device_mutations.py` runs them on a package with planted defects.
"""

import io
import json
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import hydra
import numpy as np
import pretend
import torch
from cases import CONFIGS, config
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from PIL import Image

from diffgen.build import restore
from diffgen.cli import eval as evaluation
from diffgen.cli import sample
from diffgen.data import pictures
from diffgen.data.digits import digits
from diffgen.diffusion.denoiser import Denoiser
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.samplers import SAMPLERS as TABLE
from diffgen.diffusion.samplers.unmasking import UNMASKERS
from diffgen.evaluation import measure
from diffgen.sampling.drawing import Sampling
from diffgen.storage import checkpoint
from diffgen.training.trainer import Trainer, train

NETWORK = ("model.channels=8", "model.channel_mult=[1]", "model.attention_resolutions=[8]")
SHORT = (
    *("train.images=64", "train.batch_size=16", "lr_schedule.warmup=32", "train.precision=no", "train.compile=false"),
    *("train.log_every=64", "train.checkpoint_every=64", "train.preview_every=64", "preview.n=2"),
)
"""Four steps, with nothing between them."""

STEPS = ("sampler.steps=2",)
DIGITS = ("dataset=digits",)
CODES = ("model=vae_tiny", "model.channels=8", "model.patch=2", "model.latent_channels=2")
LEVELS: dict[str, tuple[str, ...]] = {"vae": (), "fsq": ("model.levels=[5,4]",)}
"""Of the latents of each method of autoencoders."""

SETTLED = 2
"""Steps after which a run has all its tables on the device."""

METHODS = sorted({path.stem for path in (CONFIGS / "method").glob("*.yaml")} - {"bits", "vae", "fsq", "reflow"})
"""Not of text, not of autoencoders, and not of pairs that a sampler made."""
FACTS = dict(sorted(TABLE.facts.items()))
SAMPLERS = list(FACTS)

Figures = dict[str, Any]


class Bench(NamedTuple):
    """What was trained and drawn beforehand, on the CPU.

    Attributes:
        run: A run of `method=flow`.
        guide: The same, less trained.
        chain: A run of `method=ddpm`, whose schedule is a table.
        pictures: A folder of digits, in a folder a class.
    """

    run: Path
    guide: Path
    chain: Path
    pictures: Path

    @property
    def picture(self) -> Path:
        """One of the pictures."""
        return min(self.pictures.rglob("*.png"))


def prepared(home: Path) -> Bench:
    """Make all that cases start from."""
    bench = Bench(home / "run", home / "guide", home / "chain", home / "pictures")
    with pretend.none():
        trained(bench, bench.run)
        trained(bench, bench.guide, "train.images=16")
        trained(bench, bench.chain, "method=ddpm")
    data = digits(split="train")
    for number, (pixels, label) in enumerate(zip(data.pixels[:40], data.labels, strict=False)):
        path = bench.pictures / str(int(label)) / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[0].numpy()).save(path)
    return bench


# --- training -----------------------------------------------------------------------------------------------------


@cache
def composed(*overrides: str) -> Any:
    """The config of a run as plain data. Read only."""
    with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return OmegaConf.to_container(hydra.compose("train", [*overrides]), resolve=True)


def trained(
    bench: Bench,
    out: Path,
    *overrides: str,
    data: tuple[str, ...] = ("dataset=digits", *NETWORK),
    steps: tuple[str, ...] = STEPS,
) -> Figures:
    """The last line of the log."""
    settings = {**composed(*data, *SHORT, *steps, *overrides), "run_dir": str(out)}
    with redirect_stdout(io.StringIO()), mock.patch.object(Figure, "savefig"):  # to draw takes longer than to train
        train(settings, "the config, as text", "unused")
    *_, row = (json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines())
    return {key: row[key] for key in ("loss", "grad_norm")}


def resumed(bench: Bench, out: Path, *overrides: str) -> Figures:
    """The second half of a run that was cut in two."""
    whole = ("lr_schedule.decay=constant", "ema.profile=power", "weighting=uncertainty", *overrides)
    trained(bench, out, "train.images=32", *whole)
    return trained(bench, out, *whole)


def streamed(bench: Bench, out: Path) -> Figures:
    """A folder that is decoded in training, since it is said not to fit into memory."""
    data = ("dataset=image_folder", f"dataset.root={bench.pictures}", "dataset.channels=1", "dataset.workers=0")
    with mock.patch.object(pictures, "RESIDENT_BYTES", 0), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch has no pinned memory here
        return trained(bench, out, data=(*data, "model=unet_tiny", *NETWORK))


def vectors(bench: Bench, out: Path) -> Figures:
    """Points of the plane."""
    return trained(bench, out, data=("dataset=points", "dataset.n=500", "model.width=8", "model.blocks=1"))


def examined(bench: Bench, out: Path) -> Figures:
    """A run that is judged at its end, by an extractor that it has to train."""
    with mock.patch.dict("os.environ", {"XDG_CACHE_HOME": str(out / "cache")}):
        judging = ("train.eval_every=64", "train.eval_n=20", "extractor.epochs=1", "extractor.width=8")
        trained(bench, out / "run", *judging)
    (row,) = (json.loads(line) for line in (out / "run" / "eval" / "training.jsonl").read_text().splitlines())
    return {key: row[key] for key in ("fd", "kd", "agreement")}


# --- sampling and evaluation ---------------------------------------------------------------------------------------


def drawn(bench: Bench, out: Path, name: str, *, autoguidance: bool = False) -> Figures:
    """Four images by one sampler, guided inside an interval and rescaled, by the label or away from a weaker model."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    whole, other = (restore(checkpoint.load(run)) for run in (bench.run, bench.guide))
    guide = other.denoiser
    for each in (whole.denoiser, guide):
        each.model.to(device)
    guidance = Guidance(scale=2.0, interval=(0.1, 20.0), rescale=0.5, guide=guide if autoguidance else None)
    settings = {**config("sampler", name), "steps": 4} | (
        {"rtol": 1e-2, "atol": 1e-2} if FACTS[name].calls is None else {}
    )
    sampling = Sampling.from_config(whole, settings, guidance=guidance, seed=0, device=device)
    return {"images": sampling.draw([0, 1, 2, 3], [0, 1, 2, -1]).cpu().numpy()}


def command(main: Callable[[], int], *arguments: str) -> None:
    """Run a command in this process; one that fails raises what it raised or said."""
    said = io.StringIO()
    with mock.patch.object(sys, "argv", ["diffgen", *arguments]), redirect_stdout(said), redirect_stderr(said):
        code = main()
    assert code == 0, said.getvalue()


def sampled(bench: Bench, out: Path, *overrides: str) -> Figures:
    """The images of `diffgen-sample`, as it writes them."""
    quick = (f"ckpt={bench.run}", "n=4", "precision=no", "sampler.steps=6", "save=[npz,png]")
    command(sample.main, *quick, f"out={out}", *overrides)
    return {"images": np.load(out / "samples.npz")["arr_0"]}


def guided(bench: Bench, out: Path) -> Figures:
    """Autoguidance by the command."""
    return sampled(
        bench, out, "guidance=2", f"guide={bench.guide}", "guidance_interval=[0.1,20]", "guidance_rescale=0.5"
    )


def inpainted(bench: Bench, out: Path) -> Figures:
    """A picture with its left half anew."""
    mask = out.with_suffix(".png")
    Image.linear_gradient("L").rotate(90).resize((8, 8)).save(mask)
    return sampled(bench, out, "task=inpaint", f"task.image={bench.picture}", f"task.mask={mask}")


def varied(bench: Bench, out: Path) -> Figures:
    """Variations of a picture."""
    return sampled(bench, out, "task=img2img", f"task.image={bench.picture}")


def blended(bench: Bench, out: Path) -> Figures:
    """From one picture to another."""
    ends = sorted(map(str, bench.pictures.rglob("*.png")))[:2]
    return sampled(bench, out, "task=interpolate", f"task.images=[{','.join(ends)}]", "task.rtol=1e-2")


def judged(bench: Bench, out: Path, metrics: str) -> Figures:
    """Figures of `diffgen-eval`, with a classifier that it has to train; the bound is of a schedule that is a table."""
    ckpt = bench.chain if metrics == "vlb" else bench.run
    quick = ("n=8", "precision=no", "extractor.epochs=1", "extractor.width=8", "sampler.steps=2")
    score = measure.classification_accuracy_score
    with mock.patch.object(measure, "classification_accuracy_score", lambda *a, **k: score(*a, **{**k, "epochs": 1})):
        command(evaluation.main, f"ckpt={ckpt}", f"metrics=[{metrics}]", *quick, f"cache={out / 'cache'}", f"out={out}")
    row = json.loads((out / "results.jsonl").read_text())
    return {key: value for key, value in row.items() if isinstance(value, float) and key != "seconds"}


# --- all cases ----------------------------------------------------------------------------------------------------

Case = Callable[[Bench, Path], Figures]


def training(*overrides: str) -> Case:
    """A case that trains."""
    return lambda bench, out: trained(bench, out, *overrides)


def sampling(*overrides: str) -> Case:
    """A case that runs `diffgen-sample`."""
    return lambda bench, out: sampled(bench, out, *overrides)


def clips(model: str) -> Case:
    """Clips with known frames: trained, continued window by window, and judged."""

    def case(bench: Bench, out: Path) -> Figures:
        own = ("dataset=moving_digits", "dataset.n=40", "dataset.frames=4", f"model={model}", "train.known_frames=0.5")
        own += ("optimizer=adam",)  # see `text`
        small = {
            "video_tiny": ("model.channels=8", "model.patch=4"),
            "dit_tiny": ("model.width=16", "model.depth=2", "model.heads=2", "model.attention=factorised"),
        }
        figures = trained(bench, out, "train.minutes=null", data=(*own, *small[model]))
        settings = [f"ckpt={out}", "n=3", "label=each", "sampler.steps=2", "save=[npz]", f"out={out}/o"]
        command(sample.main, *settings, "task=predict", "task.length=6", "task.known=3")
        np.save(out / "clip.npy", np.load(out / "o" / "samples.npz")["arr_0"][0])
        command(sample.main, *settings, "task=inbetween", f"task.video={out}/clip.npy", "overwrite=true")
        return figures | {"images": np.load(out / "o" / "samples.npz")["arr_0"]}

    return case


def text(method: str) -> Case:
    """Numbers in words: trained, drawn by every sampler of tokens or by one of noise, and filled in."""

    def case(bench: Bench, out: Path) -> Figures:
        small = ("model.width=16", "model.depth=1", "model.heads=2", f"method={method}")
        small += ("optimizer=adam",)  # Muon has no form that leaves the GPU alone
        figures = trained(bench, out, data=("dataset=numbers", "dataset.n=100", *small))
        for number, sampler in enumerate(sorted(UNMASKERS) if method == "masked" else ["heun"]):
            steps = [] if sampler == "first_hitting" else ["sampler.steps=3"]
            settings = [f"ckpt={out}", "n=3", f"out={out}/{number}", f"sampler={sampler}", *steps]
            for task in (["task=infill", "task.text='one _ two'"], []):
                command(sample.main, *settings, *task, "overwrite=true")
            # not which tokens: one that is as likely as another may be either, by the last digit
            figures[sampler] = float(len((out / str(number) / "samples.txt").read_text().splitlines()))
        return figures

    return case


def codes(method: str) -> Case:
    """An autoencoder: trained, drawn from, and what it makes of a picture."""

    def case(bench: Bench, out: Path) -> Figures:
        figures = trained(bench, out, *CODES, f"method={method}", *LEVELS[method], data=DIGITS, steps=())
        for task in ([], ["task=reconstruct", f"task.image={bench.picture}"]):
            quick = (f"ckpt={out}", "n=3", "precision=no", "save=[npz]", f"out={out}/o", "overwrite=true")
            command(sample.main, *quick, *task)
            figures["-".join(["images", *task[:1]])] = np.load(out / "o" / "samples.npz")["arr_0"]
        return figures

    return case


def latents(bench: Bench, out: Path) -> Figures:
    """Latents of pictures and of mirrored ones: encoded, learned, drawn, and a picture filled in."""
    trained(bench, out / "A", *CODES, "method=vae", data=DIGITS, steps=())
    own = (*DIGITS, *NETWORK, "model=unet_latent", "denoiser.sigma_data=1.0", f"latent.cache={out / 'cache'}")
    told = (f"latent.path={out / 'A'}", "latent.posterior=sample", "train.horizontal_flip=true")
    figures = trained(bench, out / "L", *told, data=own)
    return figures | inpainted(bench._replace(run=out / "L"), out / "o")


def judging(metrics: str) -> Case:
    """A case that runs `diffgen-eval`."""
    return lambda bench, out: judged(bench, out, metrics)


def drawing(name: str, *, autoguidance: bool) -> Case:
    """A case that draws."""
    return lambda bench, out: drawn(bench, out, name, autoguidance=autoguidance)


CASES: dict[str, Case] = {
    **{method: training(f"method={method}") for method in METHODS},
    "micro-batches": training("train.micro_batch=6"),
    "augmentation": training("train.augment=0.5", "train.horizontal_flip=true"),
    "learned weighting": training("weighting=uncertainty"),
    "power averages": training("ema.profile=power"),
    "adam, not clipped": training("optimizer=adam", "train.grad_clip=null"),
    "bf16": training("train.precision=bf16"),
    "fp16": training("train.precision=fp16", "model.dropout=0.1"),
    "vectors": vectors,
    "masked text": text("masked"),
    "bits of text": text("bits"),
    **{method: codes(method) for method in LEVELS},
    "latents": latents,
    "clips": clips("video_tiny"),
    "clips by a transformer": clips("dit_tiny"),
    "streamed folder": streamed,
    "resumed": resumed,
    "resumed in fp16": lambda bench, out: resumed(bench, out, "train.precision=fp16"),
    "resumed with sgd": lambda bench, out: resumed(bench, out, "optimizer=sgd"),
    "judged on the way": examined,
    **{f"{name}, guided": drawing(name, autoguidance=False) for name in SAMPLERS},
    **{f"{name}, autoguided": drawing(name, autoguidance=True) for name in ("heun", "ancestral")},
    "generate": sampling("guidance=2"),
    "trajectory": sampling("task=trajectory", "task.frames=3"),
    "img2img": varied,
    "inpaint": inpainted,
    "interpolate between seeds": sampling("task=interpolate", "task.seeds=[1,2]"),
    "interpolate between pictures": blended,
    "autoguidance": guided,
    "metrics of images": judging("fd,kd,is,pr,dc,agreement,copies,cas"),
    "likelihood": judging("bits"),
    "variational bound": judging("vlb"),
    "denoising error": judging("denoising"),
}

CALM = [f"{name}, guided" for name, facts in FACTS.items() if facts.calls and not facts.noise]
"""Cases in which sampling does not wait between its calls of the network: no noise is fetched, no step size chosen."""


# --- what is demanded of them -------------------------------------------------------------------------------------


def on_device(name: str, bench: Bench, out: Path) -> Figures:
    """Run a case on the pretended device.

    Raises:
        AssertionError: A training step waited for the device, or sampling did in between.
    """
    with pretend.cuda() as device, waits_of_steps(device) as steps, waits_of_calls(device) as calls:
        figures = CASES[name](bench, out)
    assert not steps, f"a training step waits: {', '.join(sorted({*steps}))}"
    assert not calls or name not in CALM, f"sampling waits between calls: {', '.join(sorted({*calls}))}"
    return figures


def on_cpu(name: str, bench: Bench, out: Path) -> Figures:
    """Run a case as on a machine without a GPU."""
    with pretend.none():
        return CASES[name](bench, out)


@contextmanager
def waits_of_steps(device: pretend.Pretended) -> Iterator[list[str]]:
    """What Python waited for from the end of a run's second step to that of its last, once that is over."""
    step = Trainer._step
    marks: dict[Trainer, list[int]] = {}
    waits: list[str] = []

    def watched(trainer: Trainer, *args: Any, **kwargs: Any) -> Any:
        result = step(trainer, *args, **kwargs)
        marks.setdefault(trainer, []).append(len(device.waits))
        return result

    with mock.patch.object(Trainer, "_step", watched):
        yield waits
    for ends in marks.values():
        waits += device.waits[ends[min(SETTLED, len(ends)) - 1] : ends[-1]]


@contextmanager
def waits_of_calls(device: pretend.Pretended) -> Iterator[list[str]]:
    """The same from the first call of a denoiser to the last."""
    call = Denoiser.__call__
    marks: list[int] = []
    waits: list[str] = []

    def watched(denoiser: Denoiser, *args: Any, **kwargs: Any) -> Any:
        marks.append(len(device.waits))
        return call(denoiser, *args, **kwargs)

    with mock.patch.object(Denoiser, "__call__", watched):
        yield waits
    waits += device.waits[marks[0] : marks[-1]] if marks else []
