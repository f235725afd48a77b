"""Autoencoders of diffusers: what they encode and decode is what diffusers does, and its folders are read with care."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffgen.build import make_autoencoder, restore
from diffgen.core.errors import CheckpointError, UsageError
from diffgen.data.latents import AutoencoderNetwork, Latents
from diffgen.nets.published import CLASSES
from diffgen.storage import checkpoint
from diffgen.storage.autoencoder_file import find

diffusers = pytest.importorskip("diffusers")

Command = Callable[..., Any]

SMALL: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {
        "block_out_channels": (8, 8), "layers_per_block": 1, "latent_channels": 3, "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
    },
    "VQModel": {
        "block_out_channels": (8, 8), "layers_per_block": 1, "latent_channels": 3, "norm_num_groups": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
        "num_vq_embeddings": 16,
    },
    "AutoencoderDC": {
        "latent_channels": 4, "attention_head_dim": 4, "encoder_block_types": "ResBlock", "decoder_block_types": "ResBlock",
        "encoder_block_out_channels": (8, 16), "decoder_block_out_channels": (8, 16), "encoder_layers_per_block": (1, 1),
        "decoder_layers_per_block": (1, 1), "encoder_qkv_multiscales": ((), ()), "decoder_qkv_multiscales": ((), ()),
    },
}  # fmt: skip


def made(kind: str, channels: int = 3, **changes: Any) -> nn.Module:
    """A small one with random weights."""
    torch.manual_seed(0)
    own = {"in_channels": channels} | ({} if kind == "AutoencoderDC" else {"out_channels": channels})
    network: nn.Module = getattr(diffusers, kind)(**SMALL[kind] | own | changes).eval()
    return network


def saved(network: Any, folder: Path) -> Path:
    network.save_pretrained(folder, safe_serialization=True)
    return folder


@pytest.fixture
def grey(tmp_path: Path) -> Path:
    """A folder of an autoencoder of grey pictures."""
    return saved(made("AutoencoderKL", 1), tmp_path / "kl")


def opened(folder: Path, size: tuple[int, ...]) -> AutoencoderNetwork:
    found = find(str(folder), "latent.path")
    return make_autoencoder(found.config, size, found.weights, folder)


@pytest.mark.parametrize("kind", CLASSES)
def test_it_does_what_diffusers_does(tmp_path: Path, kind: str) -> None:
    """Bit for bit, before any scaling of its own."""
    network: Any = made(kind)
    ours = opened(saved(network, tmp_path / "a"), (3, 16, 8))
    x = torch.rand(2, 3, 16, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        out = network.encode(x)
        expected = out.latent_dist.mean if kind == "AutoencoderKL" else out[0]
        posterior = ours.encode(x)
        assert torch.equal(posterior.mean, expected) and ours.latent_size == tuple(expected.shape[1:])
        assert torch.equal(ours.decode(expected), network.decode(expected).sample)
        if kind == "AutoencoderKL":
            noise = torch.ones_like(expected)
            deviation = posterior.sample(noise) - posterior.mean
            torch.testing.assert_close(deviation, out.latent_dist.std, rtol=1e-4, atol=1e-5)
        else:
            assert posterior.log_var is None
    assert expected.std() > 1e-3, "so that the test can fail"


def test_it_is_never_trained(grey: Path) -> None:
    network: Any = opened(grey, (1, 8, 8))
    assert not network.training and not any(p.requires_grad for p in network.parameters())


SHORT = [
    "dataset=digits", "train.images=32", "train.batch_size=16", "train.log_every=16", "preview.n=2", "model.channels=8",
    "model.channel_mult=[1]", "sampler.steps=2",
]  # fmt: skip


def sampled(command: Command, run: str, out: str) -> np.ndarray:
    done = command("sample", f"ckpt={run}", "n=2", "save=[npz]", f"out={out}")
    assert done.code == 0, done.err
    samples: np.ndarray = np.load(Path(out) / "samples.npz")["arr_0"]
    return samples


def test_diffusion_learns_its_latents_and_keeps_it(command: Command, grey: Path) -> None:
    (grey / "README.md").write_text("---\nlicense: openrail++\ntags: [x]\n---\n# A card\n")
    done = command("train", *SHORT, f"latent={grey}", "run_dir=run")
    assert done.code == 0, done.err
    kind = checkpoint.load(Path("run")).config["data"]["kind"]
    assert kind["autoencoder"]["name"] == "diffusers" and kind["autoencoder"]["kind"] == "AutoencoderKL"
    assert kind["autoencoder"]["licence"] == "openrail++" and kind["likelihood"] is None
    before = sampled(command, "run", "one")
    assert before.shape == (2, 8, 8, 1) and isinstance(restore(checkpoint.load(Path("run"))).kind, Latents)
    shutil.rmtree(grey)
    assert np.array_equal(sampled(command, "run", "two"), before)
    again = find("run", "latent")
    assert again.config == kind["autoencoder"] and again.hash == kind["hash"]


def test_pictures_of_three_channels_are_learned(command: Command, tmp_path: Path) -> None:
    folder = saved(made("AutoencoderKL"), tmp_path / "kl")
    pictures = np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), np.uint8)
    np.save(tmp_path / "pictures.npy", pictures)
    data = ["dataset=arrays", f"dataset.path={tmp_path / 'pictures.npy'}"]
    done = command("train", *data, *SHORT[1:], f"latent={folder}", "run_dir=run")
    assert done.code == 0, done.err
    assert sampled(command, "run", "one").shape == (2, 8, 8, 3)


LICENCES: dict[str, tuple[dict[str, str], str]] = {
    "none": ({}, ""),
    "a card": ({"README.md": "---\nlicense: mit\n---\n"}, "mit"),
    "a card that names it": ({"README.md": "---\nlicense_name: My own\n---\n"}, "My own"),
    "a file": ({"LICENSE.txt": "\n  Apache License\nVersion 2\n"}, "Apache License"),
    "a card above": ({"../README.md": "---\nlicense: other\n---\n"}, "other"),
    "one that forms no setting": ({"LICENSE": "${oc.env:HOME}\x1b[2J"}, "oc.env:HOME[2J"),
    "a long one": ({"LICENSE": "x" * 1000}, "x" * 60),
}


@pytest.mark.parametrize("case", LICENCES)
def test_a_licence_is_kept(grey: Path, case: str) -> None:
    files, expected = LICENCES[case]
    for name, text in files.items():
        (grey / name).write_text(text)
    assert find(str(grey), "latent").config["licence"] == expected


# --- what cannot be read ------------------------------------------------------------------------------------------


def rewritten(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return change


def as_pickle(folder: Path) -> None:
    """Weights of before there were safetensors."""
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    torch.save({}, folder / "diffusion_pytorch_model.bin")


WEIGHTS = "diffusion_pytorch_model.safetensors"

DAMAGED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no weights": (lambda p: (p / WEIGHTS).unlink(), f"has no {WEIGHTS}; pickles (.bin, .pt) are not read"),
    "pickles": (as_pickle, f"has no {WEIGHTS}; pickles (.bin, .pt) are not read"),
    "weights are a pickle": (lambda p: torch.save({}, p / WEIGHTS), "a zip archive (a PyTorch pickle, which can run code)"),
    "weights cut short": (lambda p: (p / WEIGHTS).write_bytes((p / WEIGHTS).read_bytes()[:-3]), "the file"),
    "weights of another": (
        lambda p: rewritten(block_out_channels=[8, 16])(p), "latent.path="),
    "a pipeline": (lambda p: (rewritten(_class_name="StableDiffusionPipeline")(p)), "of a whole pipeline give its folder vae"),
    "another network": (lambda p: (rewritten(_class_name="UNet2DModel")(p)), "holds 'UNet2DModel', and is to hold one of [Auto"),
    "a class of another library": (rewritten(_class_name="os.system"), "holds 'os.system', and is to hold one of"),
    "a class that is a list": (rewritten(_class_name=["AutoencoderKL"]), "and is to hold one of"),
    "no class": (lambda p: (p / "config.json").write_text("{}"), "holds 'None', and is to hold one of"),
    "no JSON": (lambda p: (p / "config.json").write_text("{'a': "), "config.json is damaged, or is no config of diffusers"),
    "a list": (lambda p: (p / "config.json").write_text("[1]"), "config.json is damaged, or is no config of diffusers"),
    "not UTF-8": (lambda p: (p / "config.json").write_bytes(b"\xff\xfe{"), "config.json is damaged, or is no config of"),
    "nested": (lambda p: (p / "config.json").write_text("[" * 100_000), "config.json is damaged, or is no config of"),
    "huge": (rewritten(block_out_channels=[10**9, 10**9]), "latent.path="),
    "no numbers": (rewritten(block_out_channels="many"), "latent.path="),
    "unknown blocks": (rewritten(down_block_types=["os.system", "DownEncoderBlock2D"]), "latent.path="),
    "many layers": (rewritten(layers_per_block=10**6), "latent.path="),
    "no layers": (rewritten(block_out_channels=[]), "latent.path="),
    "null groups": (rewritten(norm_num_groups=0), "latent.path="),
    "channels that are no number": (rewritten(in_channels=[1]), "latent.path="),
}  # fmt: skip


@pytest.mark.timeout(60)
@pytest.mark.parametrize("case", DAMAGED)
def test_a_folder_that_is_none_is_one_sentence(command: Command, grey: Path, case: str) -> None:
    change, sentence = DAMAGED[case]
    change(grey)
    done = command("train", *SHORT, f"latent={grey}", "run_dir=run")
    assert done.code in (2, 4) and sentence in done.err, done.err
    assert len(done.err.strip().splitlines()) == 1 and not Path("run").exists()
    assert "Traceback" not in done.err and len(done.err) < 700


def test_pictures_that_it_does_not_take_are_refused(command: Command, grey: Path, tmp_path: Path) -> None:
    colour = saved(made("AutoencoderKL"), tmp_path / "colour")
    done = command("train", *SHORT, f"latent={colour}", "run_dir=run")
    told = "takes pictures of 3 channels, and these have 1: dataset.channels=3, where the data set has that"
    assert done.code == 2 and told in done.err and len(done.err.splitlines()) == 1
    np.save(tmp_path / "odd.npy", np.zeros((32, 9, 9), np.uint8))
    data = ["dataset=arrays", f"dataset.path={tmp_path / 'odd.npy'}"]
    done = command("train", *data, *SHORT[1:], f"latent={grey}", "run_dir=run")
    assert done.code == 2 and "gives back (8, 8) of pictures of" in done.err, done.err
    assert not Path("run").exists()


# --- what a stranger's checkpoint may say of one --------------------------------------------------------------------


def settings_of(grey: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    found = find(str(grey), "latent")
    return found.config, dict(found.weights)


BOUNDS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "an unknown class": (lambda c: c.update(kind="UNet2DModel"), "kind='UNet2DModel' is unknown"),
    "a class of another library": (lambda c: c.update(kind="os.system"), "kind='os.system' is unknown"),
    "settings that are a list": (lambda c: c.update(settings=[1]), "settings must be a group of settings"),
    "a wide layer": (lambda c: c["settings"].update(block_out_channels=[10**9, 8]), ""),
    "many layers": (lambda c: c["settings"].update(layers_per_block=10**7), ""),
    "many levels": (lambda c: c["settings"].update(block_out_channels=[8] * 10**4), ""),
    "many latent channels": (lambda c: c["settings"].update(latent_channels=10**12), ""),
    "an unknown block": (lambda c: c["settings"].update(down_block_types=["os.system"] * 2), ""),
    "no groups": (lambda c: c["settings"].update(norm_num_groups=0), ""),
    "text for a number": (lambda c: c["settings"].update(layers_per_block="1"), ""),
    "a negative number": (lambda c: c["settings"].update(latent_channels=-3), ""),
    "a fraction": (lambda c: c["settings"].update(latent_channels=0.5), ""),
    "null": (lambda c: c["settings"].update(act_fn=None), ""),
    "a mapping for a number": (lambda c: c["settings"].update(latent_channels={"a": 1}), ""),
    "another shape": (lambda c: c["settings"].update(latent_channels=5), "the model torch.float32"),
    "no settings": (lambda c: c.update(settings={}), ""),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("case", BOUNDS)
def test_settings_that_make_no_network_are_refused(grey: Path, case: str) -> None:
    """Without an error of a library's, and without the memory that they ask for: they are built on the meta device."""
    import resource

    config, weights = settings_of(grey)
    change, sentence = BOUNDS[case]
    change(config)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises((UsageError, CheckpointError)) as caught:
        make_autoencoder(config, (1, 8, 8), weights, Path("a.safetensors"))
    assert sentence in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 700
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def test_without_diffusers_a_sentence_says_what_to_install(grey: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    config, weights = settings_of(grey)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(UsageError, match="kind=AutoencoderKL needs the library diffusers: pip install diffusers"):
        make_autoencoder(config, (1, 8, 8), weights, Path("a.safetensors"))
    with pytest.raises(CheckpointError, match="needs the library diffusers: pip install diffusers"):
        find(str(grey), "latent.path")
