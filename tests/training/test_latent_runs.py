"""Autoencoders and diffusion in their latents from the commands: trained, gone on with, sampled, and refused."""

import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conftest
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from diffgen.build import data_config, make_model, make_splits, make_trained, restore
from diffgen.cli.brought import with_brought
from diffgen.core.console import count
from diffgen.core.errors import CheckpointError, DataError, UsageError
from diffgen.core.processes import accelerated
from diffgen.core.settings import section
from diffgen.core.signals import StoppedBefore, StopRequest
from diffgen.data.digits import digits
from diffgen.data.images import grid, to_float, to_uint8
from diffgen.data.latents import Latents
from diffgen.diffusion.times import uniform
from diffgen.diffusion.weightings import unit
from diffgen.nets.autoencoder import Autoencoder
from diffgen.storage import autoencoder_file, checkpoint
from diffgen.training import latent_cache
from diffgen.training.feed import Feed
from diffgen.training.parts import Parts
from diffgen.training.trainer import train

Command = Callable[..., Any]
Python = Callable[..., Any]

SMALL = [
    "dataset=digits", "model.channels=8", "preview.n=2", "train.images=128", "train.batch_size=16", "train.log_every=16",
    "train.checkpoint_every=64", "train.preview_every=64", "lr_schedule.warmup=32", "lr_schedule.decay=constant",
]  # fmt: skip
CODES = ["model=vae_tiny", "model.patch=2", "model.latent_channels=2"]
VAE, FSQ = ["method=vae", *CODES], ["method=fsq", *CODES, "model.levels=[5,4]"]
NOISE = ["model=unet_latent", "model.channel_mult=[1]", "denoiser.sigma_data=1.0", "sampler.steps=3"]


def trained(run: Path, *settings: str) -> Path:
    config = conftest.compose_config("train", [*SMALL, *settings]) | {"run_dir": str(run)}
    train(config, conftest.configs.as_yaml(config), "unused")
    return run


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("latents")


@pytest.fixture(scope="module")
def vae(home: Path) -> Path:
    """A run of an autoencoder. Read only."""
    return trained(home / "A", *VAE)


@pytest.fixture(scope="module")
def other(home: Path) -> Path:
    """Another one. Read only."""
    return trained(home / "B", *VAE, "train.seed=1", "train.images=64")


@pytest.fixture(scope="module")
def fsq(home: Path) -> Path:
    """A run of an autoencoder with levels. Read only."""
    return trained(home / "F", *FSQ)


@pytest.fixture(scope="module")
def latent(home: Path, vae: Path) -> Path:
    """A run in the latents of `vae`. Read only."""
    return trained(home / "L", *NOISE, f"latent.path={vae}")


@pytest.fixture(scope="module")
def apart(home: Path, vae: Path) -> Path:
    """The same run, whose checkpoints do not hold the autoencoder. Read only."""
    return trained(home / "L0", *NOISE, f"latent.path={vae}", "latent.embed=false")


@pytest.fixture
def pictures(tmp_path: Path) -> Tensor:
    """Two digits, uint8 [2, 1, 8, 8], as a.png and b.png, and a mask.png whose left half is to be painted."""
    found = digits(split="test").pixels[:2]
    for name, pixels in zip("ab", found, strict=True):
        Image.fromarray(pixels[0].numpy()).save(tmp_path / f"{name}.png")
    mask = np.zeros((8, 8), np.uint8)
    mask[:, :4] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    return found


def drawn(command: Command, ckpt: Path | str, *settings: str, out: str = "o") -> np.ndarray:
    """Samples [n, H, W, C] of a checkpoint."""
    done = command("sample", f"ckpt={ckpt}", "save=[npz]", f"out={out}", "overwrite=true", *settings)
    assert done.code == 0, done.err
    samples: np.ndarray = np.load(Path(out) / "samples.npz")["arr_0"]
    return samples


def kind_of(run: Path) -> dict[str, Any]:
    kind: dict[str, Any] = checkpoint.load(run).config["data"]["kind"]
    return kind


# --- what a run writes --------------------------------------------------------------------------------------------


def test_an_autoencoder_learns_in_bits_per_dimension(vae: Path, fsq: Path, metrics: Any) -> None:
    for run in (vae, fsq):
        losses = [row["loss"] for row in metrics(run)]
        assert losses[-1] < losses[0] - 0.3 and 1 < losses[-1] < 12
        with Image.open(run / "samples" / "00000128.png") as preview:
            assert preview.width > 8
        config = checkpoint.load(run).config
        assert config["data"]["num_classes"] == 0 and config["data"]["kind"]["name"] == "pixels"
        assert isinstance(restore(checkpoint.load(run)).denoiser.model, Autoencoder)
    assert not checkpoint.load(vae).autoencoder


def test_previews_of_an_autoencoder_are_pairs(vae: Path, tmp_path: Path) -> None:
    """Of digits from all over those that are held out, each beside what the averaged weights make of it."""
    run = trained(tmp_path / "A", *VAE, "preview.n=10", "train.images=16")
    codec = restore(checkpoint.load(run)).denoiser
    test = digits(split="test").pixels
    held_out = test[[round(share * (len(test) - 1) / 4) for share in range(5)]]
    with torch.inference_mode():
        back = to_uint8(codec.decode(codec.encode(to_float(held_out)).mean))
    shown = grid(torch.stack([held_out, back], 1).flatten(0, 1), columns=4)
    with Image.open(run / "samples" / "00000016.png") as preview:
        assert np.abs(np.asarray(preview, int) - np.asarray(shown, int)).max() <= 1


def test_the_header_tells_what_is_needed(vae: Path, tmp_path: Path, capsys: Any) -> None:
    capsys.readouterr()
    trained(tmp_path / "L", *NOISE, f"latent.path={vae}", f"latent.cache={tmp_path / 'cache'}", "train.images=16")
    out = capsys.readouterr().out
    numbers = sum(weight.numel() for weight in checkpoint.load(tmp_path / "L").weights.values())
    known = sum(weight.numel() for weight in checkpoint.load(vae).weights.values())
    needed = f"{count(12 * numbers)}B of weights, gradients and averages, {count(4 * known)}B of the autoencoder"
    assert f"memory  {needed}" in out and " GFLOP in all\n" in out
    n = len(digits(split="train"))
    assert f"encoding {n:,} of {n:,} pictures, once: {count(4 * n * 2 * 4 * 4)}B in " in out


def test_a_latent_checkpoint_says_what_its_latents_are(vae: Path, latent: Path) -> None:
    saved, of_vae = checkpoint.load(latent), checkpoint.load(vae)
    kind = saved.config["data"]["kind"]
    assert saved.config["data"]["size"] == [2, 4, 4] and saved.config["data"]["classes"] == list("0123456789")
    assert kind["name"] == "latents" and kind["size"] == [1, 8, 8] and kind["autoencoder"] == of_vae.config["model"]
    assert kind["hash"] == autoencoder_file.find(str(vae), "latent").hash and kind["likelihood"] == "logistic"
    assert saved.autoencoder.keys() == of_vae.weights.keys()
    assert all(torch.equal(saved.autoencoder[name], weight) for name, weight in of_vae.weights.items())
    assert not any(name.startswith("autoencoder/") for name in saved.weights)
    trained = restore(saved)
    assert isinstance(trained.kind, Latents) and trained.noise_size == (2, 4, 4)


def test_samples_need_nothing_but_the_checkpoint(command: Command, vae: Path, tmp_path: Path) -> None:
    """The autoencoder's run is gone, and so is what was encoded."""
    shutil.copytree(vae, tmp_path / "A")
    cache = tmp_path / "cache"
    run = trained(tmp_path / "L", *NOISE, f"latent.path={tmp_path / 'A'}", f"latent.cache={cache}")
    before = drawn(command, run, "n=4")
    assert before.shape == (4, 8, 8, 1) and before.dtype == np.uint8 and before.std() > 1
    shutil.rmtree(tmp_path / "A")
    shutil.rmtree(cache)
    assert np.array_equal(drawn(command, run, "n=4", out="o2"), before)


def test_a_latent_run_is_an_autoencoder_for_another(command: Command, latent: Path, tmp_path: Path) -> None:
    done = command("train", *SMALL, f"latent={latent}", "model.channel_mult=[1]", "run_dir=M", "train.images=16")
    assert done.code == 0, done.err
    assert kind_of(tmp_path / "M") == kind_of(latent)
    assert "found in" in done.out, "what was encoded for the first serves the second"
    theirs, ours = (checkpoint.load(run).autoencoder for run in (latent, tmp_path / "M"))
    assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())


def test_the_command_brings_what_suits(command: Command, vae: Path, tmp_path: Path) -> None:
    assert command("train", *SMALL, "method=vae", "train.images=16", "run_dir=A").code == 0
    assert checkpoint.load(tmp_path / "A").config["model"]["name"] == "autoencoder"
    assert command("train", *SMALL, f"latent={vae}", "train.images=16", "run_dir=L").code == 0
    config = checkpoint.load(tmp_path / "L").config
    assert config["model"]["name"] == "unet" and config["denoiser"]["sigma_data"] == 1


# --- an autoencoder that is kept apart ----------------------------------------------------------------------------


def test_a_checkpoint_without_its_autoencoder_says_so(command: Command, apart: Path, vae: Path) -> None:
    done = command("sample", f"ckpt={apart}", "n=2", "out=o")
    told = f"keeps its autoencoder, {kind_of(apart)['hash'][:12]}, apart (latent.embed=false): latent=PATH says where"
    assert done.code == 4 and told in done.err and len(done.err.splitlines()) == 1 and not Path("o").exists()
    assert not any(name.startswith("autoencoder/") for name in checkpoint.load_tensors(checkpoint.find_model(apart)))


def test_it_samples_with_the_right_one_alone(
    command: Command, apart: Path, latent: Path, vae: Path, other: Path
) -> None:
    whole = drawn(command, latent, "n=3")
    for path in (vae, latent):
        assert np.array_equal(drawn(command, apart, "n=3", f"latent={path}", out="o2"), whole)
    done = command("sample", f"ckpt={apart}", "n=2", f"latent={other}", "out=o3")
    hashes = [autoencoder_file.find(str(path), "latent").hash[:12] for path in (other, vae)]
    told = f"error: latent='{other}' is another autoencoder than"
    assert done.code == 4 and done.err.startswith(told) and "{}, and not {}".format(*hashes) in done.err
    done = command("sample", f"ckpt={vae}", "n=2", f"latent={other}", "out=o3")
    assert done.code == 2 and "was not trained on latents, and needs no autoencoder" in done.err
    assert not Path("o3").exists()


# --- going on -----------------------------------------------------------------------------------------------------

RESUMED = {
    "vae": VAE,
    "fsq": FSQ,
    "vae, accumulated": [*VAE, "train.micro_batch=6", "objective.likelihood=gaussian", "train.horizontal_flip=true"],
    "latent": [*NOISE, "latent.path=VAE"],
    "latent, drawn and mirrored": [
        *NOISE, "latent.path=VAE", "latent.posterior=sample", "train.horizontal_flip=true", "train.micro_batch=6",
    ],
    "latent, kept apart": [*NOISE, "latent.path=VAE", "latent.embed=false"],
}  # fmt: skip


ALIKE = ("vae, accumulated", "latent", "latent, kept apart")


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.slow if case in ALIKE else ()) for case in RESUMED]
)
def test_a_resumed_run_is_the_same_run(vae: Path, tmp_path: Path, case: str) -> None:
    settings = [setting.replace("VAE", str(vae)) for setting in RESUMED[case]]
    through = trained(tmp_path / "through", *settings)
    trained(tmp_path / "halves", *settings, "train.images=64")
    halves = trained(tmp_path / "halves", *settings)
    for file in ("model.safetensors", "state.safetensors"):
        one, two = (run / "checkpoints" / "00000128" / file for run in (through, halves))
        assert one.read_bytes() == two.read_bytes(), file
    previews = [(run / "samples" / "00000128.png").read_bytes() for run in (through, halves)]
    assert previews[0] == previews[1]


def test_a_run_goes_on_in_the_same_latents_alone(
    latent: Path, vae: Path, other: Path, tmp_path: Path, capsys: Any
) -> None:
    """Of the same autoencoder in another place, and of no other."""
    run = tmp_path / "L"
    shutil.copytree(latent, run)
    cache = f"latent.cache={tmp_path / 'cache'}"
    told = (
        r"L/checkpoints/00000128: it was trained in the latents of another autoencoder, [0-9a-f]{12}, and latent.path="
    )
    with pytest.raises(CheckpointError, match=told) as caught:
        trained(run, *NOISE, f"latent.path={other}", "train.images=160", cache)
    assert "\n" not in str(caught.value)
    pixels = trained(tmp_path / "pixels", "model.channel_mult=[1]", "train.images=16")
    with pytest.raises(CheckpointError, match="it was trained on no latents, and latent.path="):
        trained(pixels, *NOISE, f"latent.path={other}", "train.images=160", cache)
    assert not (tmp_path / "cache").exists(), "nothing is encoded for a run that is refused"
    with pytest.raises(CheckpointError, match=r"it was trained in latents: add latent=\S+/A, or train.init="):
        trained(run, *NOISE, "train.images=160")
    shutil.copytree(vae, tmp_path / "moved")
    capsys.readouterr()
    trained(run, *NOISE, f"latent.path={tmp_path / 'moved'}", "train.images=160")
    assert "resumed at 128 images" in capsys.readouterr().out
    assert checkpoint.load(run).images == 160


def test_a_run_begins_from_another_in_latents(
    command: Command, latent: Path, vae: Path, other: Path, tmp_path: Path, capsys: Any
) -> None:
    start = [*NOISE, f"latent.path={vae}", f"train.init={latent}", "optimizer.lr=1e-12", "train.images=16"]
    run = trained(tmp_path / "M", *start)
    theirs, ours = (checkpoint.load(each) for each in (latent, run))
    for name, weight in theirs.weights.items():
        torch.testing.assert_close(ours.weights[name], weight, atol=1e-6, rtol=1e-6)
    assert ours.autoencoder.keys() == theirs.autoencoder.keys()
    assert "another data.kind" not in capsys.readouterr().out
    trained(tmp_path / "O", *NOISE, f"latent.path={other}", f"train.init={latent}", "train.images=16")
    assert "another data.kind.hash" in capsys.readouterr().out
    half = trained(tmp_path / "A", *VAE, f"train.init={vae}", "optimizer.lr=1e-12", "train.images=16")
    for name, weight in checkpoint.load(vae).weights.items():
        torch.testing.assert_close(checkpoint.load(half).weights[name], weight, atol=1e-6, rtol=1e-6)


@pytest.mark.fault(
    "the newest checkpoint of a run in latents damaged",
    "as of any run: set aside, and the autoencoder and scale are those of the newest whole one",
)
def test_a_damaged_checkpoint_is_set_aside(vae: Path, tmp_path: Path, capsys: Any) -> None:
    """The newest of a run in latents, which was to give the autoencoder."""
    run, settings = tmp_path / "L", [*NOISE, f"latent.path={vae}", f"latent.cache={tmp_path / 'cache'}"]
    trained(run, *settings)
    newest = run / "checkpoints" / "00000128" / "model.safetensors"
    held = bytearray(newest.read_bytes())
    newest.write_bytes(held[:-1] + bytes([held[-1] ^ 1]))
    capsys.readouterr()
    trained(run, *settings)
    out = capsys.readouterr().out
    assert "set aside, going on from an earlier one" in out and "resumed at 64 images" in out
    assert newest.read_bytes() == held


@pytest.mark.parametrize("embed", [True, False])
def test_a_run_keeps_its_scale(vae: Path, tmp_path: Path, embed: bool) -> None:
    """Also with other pictures, of which another would be taken."""
    settings = ["dataset=arrays", "dataset.path=x.npy", "dataset.channels=null", *NOISE, f"latent.path={vae}"]
    settings += [f"latent.cache={tmp_path / 'cache'}", f"latent.embed={embed}"]
    pixels = digits(split="train").pixels[:, 0].numpy()
    place = f"dataset.path={tmp_path / 'x.npy'}"
    np.save(tmp_path / "x.npy", pixels[:64])
    first = kind_of(trained(tmp_path / "L", *settings, place, "train.images=16"))
    np.save(tmp_path / "x.npy", pixels[:200] // 2)
    assert kind_of(trained(tmp_path / "new", *settings, place, "train.images=16"))["std"] != first["std"]
    assert kind_of(trained(tmp_path / "L", *settings, place, "train.images=32")) == first


@pytest.mark.parametrize("setting", ["optimizer.lr=-1", "model.channels=9", "train.perceptual=x", "run_dir=HOME"])
def test_what_will_be_refused_is_so_before_anything_is_encoded(
    command: Command, vae: Path, tmp_path: Path, setting: str
) -> None:
    (tmp_path / "HOME").mkdir()
    (tmp_path / "HOME" / "letter.txt").write_text("dear")
    done = command("train", "dataset=digits", f"latent={vae}", "latent.cache=cache", "run_dir=run", setting)
    assert done.code == 2 and len(done.err.strip().splitlines()) == 1, done.err
    assert setting.partition("=")[0].rpartition(".")[2] in done.err and not Path("cache").exists()


@pytest.mark.fault(
    "an autoencoder gone, or trained further, since a run in its latents began",
    "the run goes on in the same latents, by what its checkpoint holds",
)
@pytest.mark.parametrize("fate", ["gone", "trained further"])
def test_a_run_goes_on_in_its_latents_whatever_became_of_the_autoencoder(vae: Path, tmp_path: Path, fate: str) -> None:
    """Byte for byte as one that was never stopped, by the autoencoder that its checkpoint holds."""
    ends = []
    for stops in (False, True):
        place = tmp_path / "A"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(vae, place)
        settings = [*NOISE, f"latent.path={place}", f"latent.cache={tmp_path / 'cache'}"]
        run = tmp_path / f"{stops}"
        if stops:
            trained(run, *settings, "train.images=64")
            if fate == "gone":
                shutil.rmtree(place)
            else:
                trained(place, *VAE, "train.images=256")
        trained(run, *settings)
        ends.append((run / "checkpoints" / "00000128" / "model.safetensors").read_bytes())
    assert ends[0] == ends[1]


def test_a_run_begins_from_one_that_keeps_its_autoencoder_apart(
    command: Command, apart: Path, vae: Path, tmp_path: Path
) -> None:
    settings = [*SMALL, *NOISE, "train.images=16", f"run_dir={tmp_path / 'new'}"]
    done = command("train", *settings, f"latent={vae}", f"train.init={apart}")
    assert done.code == 0 and "of 128 images" not in done.err, done.err


@pytest.mark.fault(
    "a signal while pictures are encoded",
    "the pieces that are written stay, and the same command goes on with them; 128 + the signal's number",
)
def test_a_signal_ends_the_encoding(vae: Path, tmp_path: Path) -> None:
    request = StopRequest()
    request.receive(signal.SIGTERM)
    config = conftest.compose_config("train", [*SMALL, *NOISE, f"latent.path={vae}", f"latent.cache={tmp_path}"])
    with (
        accelerated("no") as accelerator,
        pytest.raises(StoppedBefore, match="SIGTERM while pictures were encoded") as told,
    ):
        Parts(config, section(config, "train"), accelerator, request)
    assert told.value.exit_code == 128 + signal.SIGTERM


@pytest.mark.fault(
    "a cache of latents that processes do not share",
    "exit 3 on all of them",
)
def test_a_cache_that_processes_do_not_share_is_told(
    vae: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latent_cache, "_write", lambda *piece: None)  # the others wrote elsewhere
    with pytest.raises(DataError, match="is not there: latent.cache must be a folder that all processes share"):
        trained(tmp_path / "run", *NOISE, f"latent.path={vae}", f"latent.cache={tmp_path}")


def test_what_a_method_brings() -> None:
    """To a sweep only what all of its methods bring; never what is given."""
    levels = "model.levels=[8,5,5,5]"
    tiny = ["model=vae_tiny", "optimizer=adamw", "optimizer.lr=2.0e-3"]
    assert with_brought(["method=fsq"]) == [*tiny, levels, "method=fsq"]
    for sweep in ("method=vae,fsq", "method=vae,edm", "method=flow,vae", "latent=null,A", "latent=A,null"):
        with pytest.raises(UsageError, match="to some jobs of a sweep, or differs in them: give what all are to have"):
            with_brought([sweep, "--cfg", "job"])
    swept = ["method=vae,fsq", "model.levels=null", "--cfg", "job"]
    assert with_brought(swept) == [*tiny, *swept]
    assert with_brought(["latent=null,A", "model=unet_tiny", "denoiser.sigma_data=1"])[0] == "latent.path=null,A"
    assert with_brought(["latent=A,B"])[:2] == ["denoiser.sigma_data=1.0", "model=unet_latent"]
    assert with_brought(["method=vae", "optimizer.lr=1e-3"]) == [*tiny[:2], "method=vae", "optimizer.lr=1e-3"]
    assert with_brought(["method=vae", "model=vae_f4"]) == ["method=vae", "model=vae_f4"]
    assert with_brought(["experiment=text8", "method=vae"]) == ["experiment=text8", "method=vae"]
    scaled, learner = "denoiser.sigma_data=1.0", ["model=unet_latent", "optimizer=muon_small", "optimizer.lr=2.0e-3"]
    assert with_brought(["latent=A"]) == [scaled, *learner, "latent.path=A"]
    for behind, own in enumerate(("model=dit_tiny", "optimizer=adam", "optimizer.lr=1e-4")):
        assert with_brought([own, "latent=A"]) == [scaled, *learner[:behind], own, "latent.path=A"]
    assert with_brought(["experiment=quickstart", "latent=A"]) == [scaled, "experiment=quickstart", "latent.path=A"]
    assert with_brought(["latent=null"]) == ["latent.path=null"]


def test_an_autoencoder_draws_in_single_precision(vae: Path) -> None:
    """What the run's denoiser would be cast to has hardly more steps than a pixel has levels."""
    codec = restore(checkpoint.load(vae)).denoiser
    x0 = torch.linspace(-1, 1, 64).reshape(1, 1, 8, 8)
    exact = codec.decode(codec.encode(x0).mean)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(codec.decode(codec.encode(x0).mean), exact)


def test_every_average_holds_the_autoencoder(command: Command, vae: Path, tmp_path: Path) -> None:
    power = ["ema.profile=power", "ema.sigma_rel=[0.05,0.1]", "train.checkpoint_every=32"]
    run = trained(tmp_path / "P", *NOISE, f"latent.path={vae}", *power)
    files = sorted((run / "checkpoints" / "00000128").glob("model*.safetensors"))
    assert len(files) == 2
    first, second = (checkpoint.load(file) for file in files)
    assert first.autoencoder and first.autoencoder.keys() == second.autoencoder.keys()
    assert all(torch.equal(second.autoencoder[name], weight) for name, weight in first.autoencoder.items())
    assert any(not torch.equal(second.weights[name], weight) for name, weight in first.weights.items())
    assert drawn(command, run, "n=2", "ema.sigma_rel=0.08").shape == (2, 8, 8, 1)


# --- processes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["vae", "fsq"])
def test_two_halves_of_a_batch_are_the_whole(method: str) -> None:
    """What two processes learn from, and the gradient of it: each draws for the whole batch and takes its share."""
    config = conftest.compose_config("train", [*SMALL, *(VAE if method == "vae" else FSQ)])
    splits = make_splits(config)
    config |= {"data": data_config(splits.train, [], 0)}
    torch.manual_seed(0)
    network = make_model(config)
    learning = make_trained(config, network)
    settings = section(config, "train")
    (stored,) = splits.train.batches(iter([torch.arange(16)]), torch.device("cpu"))

    def gradient(*shares: slice) -> tuple[float, Tensor]:
        network.zero_grad()
        total = 0.0
        for share in shares:
            schedule, objective, size = learning.denoiser.schedule, learning.objective, learning.noise_size
            feed = Feed(settings, splits.train, schedule, uniform, objective, size, share)
            batch = feed.batch(3, type(stored)(stored.examples[share], stored.labels[share]))
            loss = objective.loss(learning.denoiser, unit, batch).sum() / 16
            loss.backward()
            total += loss.item()
        return total, torch.cat([w.grad.flatten() for w in network.parameters() if w.grad is not None])

    whole, halves = gradient(slice(0, 16)), gradient(slice(0, 8), slice(8, 16))
    assert whole[0] == pytest.approx(halves[0], rel=1e-5) and whole[0] > 0
    torch.testing.assert_close(whole[1], halves[1], rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["vae", "fsq", "latent"])
def test_two_processes_train_what_one_trains(
    vae: Path, tmp_path: Path, python: Python, metrics: Any, case: str
) -> None:
    """Also the encoding is shared by them, from an empty cache."""
    settings = {"vae": VAE, "fsq": FSQ, "latent": [*NOISE, f"latent.path={vae}"]}[case]
    caches = [[f"latent.cache={tmp_path / name}"] if case == "latent" else [] for name in ("first", "second")]
    one = trained(tmp_path / "one", *settings, *caches[0])
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "diffgen.cli.train"]
    done = python(*launch, *SMALL, *settings, *caches[1], "run_dir=two")
    assert done.returncode == 0, done.stderr
    assert "cpu x 2" in done.stdout
    two = tmp_path / "two"
    for row, expected in zip(metrics(two), metrics(one), strict=True):
        assert row["loss"] == pytest.approx(expected["loss"], rel=1e-3)
    theirs, ours = checkpoint.load(one), checkpoint.load(two)
    assert theirs.config == ours.config
    for name, weight in theirs.weights.items():
        torch.testing.assert_close(ours.weights[name], weight, rtol=1e-2, atol=1e-3)


# --- sampling -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("run", ["vae", pytest.param("fsq", marks=pytest.mark.slow), "latent"])
def test_a_sample_depends_on_its_seed_and_number_alone(
    command: Command, request: pytest.FixtureRequest, run: str
) -> None:
    ckpt = request.getfixturevalue(run)
    for n, batch in ((5, 5), (5, 2), (2, 1)):
        drawn(command, ckpt, f"n={n}", f"batch_size={batch}", out=f"o{n}{batch}")
    samples = {name: np.load(f"o{name}/samples.npz")["arr_0"].astype(int) for name in ("55", "52", "21")}
    assert np.abs(samples["55"] - samples["52"]).max() <= 1 and np.abs(samples["55"][:2] - samples["21"]).max() <= 1
    assert len({image.tobytes() for image in samples["55"]}) == 5
    assert not np.array_equal(drawn(command, ckpt, "n=5", "seed=1"), samples["55"])


def test_codes_are_drawn_and_decoded(command: Command, fsq: Path) -> None:
    """Each from noise of its own: what the decoder makes of one of the 400 codes of each site."""
    trained = restore(checkpoint.load(fsq))
    network = trained.denoiser.network
    from diffgen.core.randomness import image_noise

    z = network.quantiser.uniform(image_noise((2, 4, 4), [0, 1, 2], 0, 0))
    with torch.no_grad():
        expected = ((network.decode(z) + 1) * 127.5).clamp(0, 255)
    found = torch.from_numpy(drawn(command, fsq, "n=3")).permute(0, 3, 1, 2)
    assert (found.float() - expected).abs().max() <= 0.51


def test_inpainting_in_latents_keeps_the_picture_s_pixels(command: Command, latent: Path, pictures: Tensor) -> None:
    """Latents know of their neighbours, so pixels that are kept are put in again, to the last bit."""
    images = drawn(command, latent, "n=3", "task=inpaint", "task.image=a.png", "task.mask=mask.png")[..., 0]
    picture = pictures[0, 0].numpy()
    assert (images[:, :, 4:] == picture[:, 4:]).all()
    assert all((image[:, :4] != picture[:, :4]).any() for image in images) and not np.array_equal(images[0], images[1])


def test_variations_of_a_picture_are_nearer_to_it_the_weaker_they_are(
    command: Command, latent: Path, pictures: Tensor
) -> None:
    walk = ("n=4", "task=img2img", "task.image=a.png", "sampler.steps=20", "label=none", "guidance=1")
    far, near = (drawn(command, latent, *walk, f"task.strength={s}", out=f"o{s}") for s in (1, 0.05))
    network = restore(checkpoint.load(latent)).kind
    assert isinstance(network, Latents)
    again = network.decode(network.encode(pictures[:1]))[0, 0].numpy().astype(int)  # what the autoencoder makes of it
    distances = [np.abs(images[..., 0].astype(int) - again).mean() for images in (far, near)]
    assert distances[1] < 0.5 * distances[0]


def test_paths_between_seeds_end_in_their_samples(command: Command, latent: Path, vae: Path) -> None:
    for run, plain in ((latent, ("label=none", "guidance=1")), (vae, ())):
        path = drawn(command, run, "n=4", "task=interpolate", "task.seeds=[5,6]", *plain).astype(int)
        for end, seed in ((0, 5), (3, 6)):
            alone = drawn(command, run, "n=1", f"seed={seed}", *plain, out="alone").astype(int)
            assert np.abs(path[end] - alone[0]).max() <= 1
        assert not np.array_equal(path[1], path[0])


def test_paths_between_pictures_end_in_their_reconstructions(
    command: Command, latent: Path, vae: Path, pictures: Tensor
) -> None:
    pairs = drawn(command, vae, "task=reconstruct", "task.image=[a.png,b.png]").astype(int)
    walk = ("n=3", "task=interpolate", "task.images=[a.png,b.png]")
    path = drawn(command, vae, *walk).astype(int)
    assert np.abs(path[0] - pairs[1]).max() <= 1 and np.abs(path[2] - pairs[3]).max() <= 1
    fine = ("sampler=heun", "sampler.steps=30", "label=none", "guidance=1")
    path = drawn(command, latent, *walk, *fine).astype(int)
    assert np.abs(path[0] - pairs[1]).mean() < 2 and np.abs(path[2] - pairs[3]).mean() < 2


def test_ways_are_shown_as_pictures(command: Command, latent: Path) -> None:
    done = command("sample", f"ckpt={latent}", "n=2", "task=trajectory", "task.frames=3", "out=o")
    assert done.code == 0, done.err
    with Image.open("o/grid.png") as strips, Image.open("o/trajectory.gif") as film:
        assert strips.width > strips.height and film.n_frames == 3  # a row of three for each


@pytest.mark.parametrize("run", ["vae", "fsq"])
def test_reconstructions_stand_beside_their_pictures(
    command: Command, request: pytest.FixtureRequest, pictures: Tensor, run: str
) -> None:
    ckpt = request.getfixturevalue(run)
    pairs = drawn(command, ckpt, "task=reconstruct", "task.image=[a.png,b.png]", "batch_size=3")[..., 0]
    assert pairs.shape == (4, 8, 8)
    assert np.array_equal(pairs[::2], pictures[:, 0].numpy()), "as they are, in their order"
    network = restore(checkpoint.load(ckpt)).denoiser.network
    with torch.no_grad():
        again = (network.decode(network.encode(pictures / 127.5 - 1).mean) + 1) * 127.5
    assert np.abs(pairs[1::2] - again.clamp(0, 255)[:, 0].numpy()).max() <= 0.51
    one = drawn(command, ckpt, "task=reconstruct", "task.image=b.png", out="o1")[..., 0]
    assert np.array_equal(one, pairs[2:])


def test_pairs_stand_in_one_row(command: Command, vae: Path, pictures: Tensor) -> None:
    """Five pairs are three rows of two; a square of ten pictures would part them."""
    images = ",".join(["a.png", "b.png"] * 2 + ["a.png"])
    done = command("sample", f"ckpt={vae}", "task=reconstruct", f"task.image=[{images}]", "out=o")
    assert done.code == 0, done.err
    with Image.open("o/grid.png") as sheet:
        assert sheet.width == pytest.approx(4 / 3 * sheet.height, rel=0.02)


def test_a_guide_in_other_latents_is_refused(command: Command, latent: Path, other: Path, tmp_path: Path) -> None:
    guide = trained(tmp_path / "G", *NOISE, f"latent.path={other}", "train.images=16")
    done = command("sample", f"ckpt={latent}", f"guide={guide}", "guidance=2", "n=2", "out=o")
    told = f"guide='{guide}' was trained in the latents of another autoencoder than ckpt, or scaled otherwise"
    assert done.code == 2 and told in done.err and not Path("o").exists()


CANNOT = {
    "latent task=reconstruct task.image=a.png": "task=reconstruct is for an autoencoder, and this model",
    "vae task=inpaint task.image=a.png task.mask=mask.png": "task=inpaint needs a way from noise to pictures, and this",
    "vae task=img2img task.image=a.png": "task=img2img needs a way from noise to pictures, and this model is an auto",
    "vae task=trajectory": "task=trajectory needs a way from noise to pictures, and this model is an autoencoder",
    "vae task=reconstruct": "image is missing: task.image=PATH names a picture",
    "vae task=infill task.text=abc": "task=infill is for text, and this model makes images",
    "vae guidance=2": "guidance=2.0 and guide=None lead a sampler on its way, and this model is an autoencoder",
    "vae guide=A": "lead a sampler on its way, and this model is an autoencoder: leave them out",
    "vae compile=true": "compile=true is for a network that is called many times, and this model is an autoencoder",
    "vae label=3": "label",
    "vae sampler=heun": "sampler.name='heun' is unknown; choose one of [prior]; this model is an autoencoder",
    "latent sampler=prior": "sampler.name='prior' is unknown; choose one of",
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_cannot_be_drawn_is_one_sentence(
    command: Command, vae: Path, latent: Path, pictures: Tensor, case: str
) -> None:
    run, *settings = case.split()
    done = command("sample", f"ckpt={ {'vae': vae, 'latent': latent}[run] }", "n=2", "out=o", *settings)
    assert done.code == 2 and CANNOT[case] in done.err, done.err
    assert len(done.err.strip().splitlines()) == 1 and not Path("o").exists()


# --- refusals before anything is written ---------------------------------------------------------------------------

REFUSED = {
    "latent=PLAIN": (4, "is no autoencoder: it was trained by method=flow; diffgen-train method=vae makes one"),
    "latent=nowhere": (4, "latent.path='nowhere' does not exist"),
    "latent=": (2, "latent.path is empty: give a run of method=vae, or null"),
    "latent=VAE method=vae": (2, "gives latents to denoise, which objective=autoencode does not: leave one of them out"),
    "latent=VAE train.augment=0.1": (2, "train.augment=0.1 is for pixels, and latents cannot be turned: train.augment=0"),
    "model=vae_tiny": (2, "model.name=autoencoder is an autoencoder, which method=vae or fsq learns"),
    "method=fsq model.levels=null": (2, "method=fsq needs model.levels=[8,5,5,5], say, and levels are None"),
    "method=vae model.levels=[5,5,5,5]": (2, "method=vae needs model.levels=null, and levels are [5, 5, 5, 5]"),
    "latent=VAE dataset=points": (2, "is of pictures, and the data is vectors"),
    "latent=VAE dataset=numbers": (2, "gives latents to denoise, which objective=unmask does not: leave"),
    "latent=VAE method=masked sampler=unmask": (2, "gives latents to denoise, which objective=unmask does not"),
    "latent=VAE method=bits dataset=numbers model=dit_tiny": (2, "is of pictures, and the data is sequences"),
    "latent=VAE dataset=moving_digits": (2, "is of pictures, and the data is clips"),
    "latent=VAE latent.posterior=mode": (2, "latent.posterior='mode' is unknown; choose one of [mean, sample]"),
    "latent=VAE latent.size=3": (2, "latent.size"),
    "latent=FSQ latent.posterior=sample": (2, "and those of latent.path='FSQ' are certain: latent.posterior=mean"),
    "latent=APART": (4, "latent.path='APART' keeps its autoencoder, HASH, apart (latent.embed=false): give that"),
    "latent=VAE latent.cache=run/cache": (2, "latent.cache='run/cache' is inside run_dir='run': choose a folder beside it"),
    "latent=PIPELINE": (4, "is a pipeline of diffusers: give its autoencoder, PIPELINE/vae"),
    "latent.embed=false": (2, "latent.embed is of no use without latent.path: latent=PATH names an autoencoder"),
    "latent.posterior=sample latent.cache=x": (2, "latent.posterior, latent.cache is of no use without latent.path"),
    "method=fsq objective.kl=1": (2, "objective.kl=1 weighs a divergence that is a constant of codes: objective.kl=0"),
    "latent=VAE dataset=arrays dataset.path=large.npy": (2, "is an autoencoder of pictures of (1, 8, 8), and the data is"),
    "latent=VAE train.known_frames=0.5": (2, "train.known_frames=0.5 is for clips"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_together_is_told_before_training(
    command: Command, vae: Path, fsq: Path, apart: Path, tiny_run: Path, tmp_path: Path, case: str
) -> None:
    np.save(tmp_path / "large.npy", np.zeros((20, 16, 16), np.uint8))
    (tmp_path / "PIPELINE" / "vae").mkdir(parents=True)
    (tmp_path / "PIPELINE" / "vae" / "config.json").write_text("{}")
    places = {"VAE": vae, "PLAIN": tiny_run, "FSQ": fsq, "APART": apart, "HASH": kind_of(apart)["hash"][:12]}

    def named(text: str) -> str:
        for word, place in places.items():
            text = text.replace(word, str(place))
        return text

    given = [named(part) for part in case.split()]
    data = [] if "dataset=" in case else ["dataset=digits"]
    done = command("train", *data, *given, "train.images=16", "run_dir=run")
    code, sentence = REFUSED[case]
    assert done.code == code and named(sentence) in done.err, done.err
    assert len(done.err.strip().splitlines()) == 1 and not Path("run").exists()


def test_the_next_command_is_one_that_works(command: Command, vae: Path, tmp_path: Path) -> None:
    given = ["model.channel_mult=[1]", f"latent={vae}", "latent.embed=false", "train.images=16", "run_dir=E"]
    done = command("train", *SMALL, *given)
    assert done.code == 0 and f"next:    diffgen-sample latent={vae} ckpt=E" in done.out


def test_a_cache_that_cannot_be_written_is_told(command: Command, vae: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command("train", "dataset=digits", f"latent={vae}", "latent.cache=file", "run_dir=run")
    assert done.code == 75 and len(done.err.strip().splitlines()) == 1, done.err
    assert not Path("run").exists()


def test_numbers_of_the_log_are_plain(latent: Path) -> None:
    for line in (latent / "metrics.jsonl").read_text().splitlines():
        assert 0 < json.loads(line)["loss"] < 100
