"""Checkpoints of models in latents, and of autoencoders, that come from strangers: loaded whole, or refused."""

import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conftest
import pytest
import torch
from conftest import Answer
from test_checkpoint import put, refused, with_config, with_weights
from torch import Tensor

from diffgen.build import restore
from diffgen.storage import checkpoint
from diffgen.training.trainer import train

Config = dict[str, Any]
Weights = dict[str, Tensor]

SMALL = [
    "dataset=digits", "model.channels=8", "preview.n=1", "train.images=16", "train.batch_size=16", "train.log_every=16",
]  # fmt: skip


def trained(run: Path, *settings: str) -> Path:
    config = conftest.compose_config("train", [*SMALL, *settings]) | {"run_dir": str(run)}
    train(config, conftest.configs.as_yaml(config), "unused")
    return max(run.glob("checkpoints/*/model.safetensors"))


@pytest.fixture(scope="module")
def vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of an autoencoder. Read only."""
    run = tmp_path_factory.mktemp("strangers") / "A"
    return trained(run, "method=vae", "model=vae_tiny", "model.latent_channels=2", "model.patch=2")


@pytest.fixture(scope="module")
def latent(vae: Path) -> Path:
    """The file of a model in its latents. Read only."""
    run = vae.parents[3] / "L"
    return trained(run, "model=unet_latent", "model.channel_mult=[1]", f"latent.path={vae}", "sampler.steps=2")


def kind(*path: str, value: object) -> Callable[[Config], None]:
    return put("data", "kind", *path, value=value)


HOSTILE: dict[str, tuple[Callable[[Config], object], str]] = {
    "an unknown autoencoder": (kind("autoencoder", value={"name": "os"}), "autoencoder.name='os' is unknown; choose one"),
    "a network that is none": (kind("autoencoder", "name", value="unet"), "autoencoder.name='unet' is unknown; choose one"),
    "a published one of an unknown class": (
        kind("autoencoder", value={"name": "diffusers", "kind": "os.system", "settings": {}, "licence": ""}),
        "kind='os.system' is unknown; choose one of [AutoencoderDC, AutoencoderKL, VQModel]",
    ),
    "a class to make": (kind("autoencoder", "_target_", value="os.system"), "has the key '_target_'"),
    "an autoencoder that is a list": (kind("autoencoder", value=[1]), "data.kind.autoencoder must be a group of settings"),
    "an autoencoder that is a text": (kind("autoencoder", value="A"), "data.kind.autoencoder must be a group of settings"),
    "no name": (kind("autoencoder", value={}), "autoencoder must be a mapping with a name"),
    "a setting too many": (kind("autoencoder", "path", value="x"), "autoencoder.path is not a setting here"),
    "a setting too few": (lambda c: c["data"]["kind"]["autoencoder"].pop("blocks"), "autoencoder.blocks is missing"),
    "std of zeros": (kind("std", value=[0.0, 0.0]), "must be one of each, std above 0"),
    "std below zero": (kind("std", value=[-1.0, 1.0]), "must be one of each, std above 0"),
    "std of another length": (kind("std", value=[1.0]), "must be one of each, std above 0"),
    "no means": (lambda c: (kind("std", value=[])(c), kind("mean", value=[])(c)), "must be one of each, std above 0"),
    "scales of other channels": (
        lambda c: (kind("std", value=[1.0] * 3)(c), kind("mean", value=[0.0] * 3)(c)),
        "data.size=[2, 4, 4] has 2 channels, and data.kind.mean 3",
    ),
    "a mean that is a text": (kind("mean", value="12"), "kind.mean='12' must be"),
    "a mean that is no number": (kind("mean", value=[float("nan"), 0.0]), "has the number nan"),
    "a hash that is a list": (kind("hash", value=[3]), "kind.hash=[3] must be"),
    "an unknown likelihood": (kind("likelihood", value="os"), "kind.likelihood='os' must be one of [logistic, gaussian] or null"),
    "huge pictures": (kind("size", value=[1, 10**9, 8]), "is out of range"),
    "many values": (kind("size", value=[4, 4096, 4096]), "is out of range"),
    "no sides": (kind("size", value=[]), "is out of range"),
    "two sides": (kind("size", value=[8, 8]), "is out of range"),
    "a side of nothing": (kind("size", value=[1, 0, 8]), "is out of range"),
    "pictures of another size": (kind("size", value=[1, 16, 16]), "data.size=[2, 4, 4] is not that of the autoencoder's"),
    "pictures that it does not divide": (kind("size", value=[1, 9, 9]), "these pictures are 9x9"),
    "pictures of three channels": (kind("size", value=[3, 8, 8]), "weight 'log_scale' is torch.float32 [1, 1, 1], the model"),
    "latents of another size": (put("data", "size", value=[2, 8, 8]), "is not that of the autoencoder's latents, [2, 4, 4]"),
    "latents of one side": (put("data", "size", value=[32]), "takes pictures [C, H, W] and clips, and the data is 32"),
    "wide layers": (kind("autoencoder", "channels", value=10**9), "channels=1000000000 must be a multiple of 4 in"),
    "wide layers that are allowed": (kind("autoencoder", "channels", value=4096), "the model torch.float32"),
    "many blocks": (kind("autoencoder", "blocks", value=10**9), "blocks=1000000000 must be in [1, 16]"),
    "many levels": (kind("autoencoder", "channel_mult", value=[64] * 9), "must be 1 to 8 whole numbers"),
    "all that is allowed": (
        lambda c: c["data"]["kind"]["autoencoder"].update(channels=4096, channel_mult=[64], blocks=16), "the model torch.float32",
    ),
    "codes instead of numbers": (kind("autoencoder", "levels", value=[5, 5]), "weight 'encoder."),
    "a million levels": (kind("autoencoder", "levels", value=[10**6, 2]), "must be null or one of [3, 1000]"),
    "pixels with an autoencoder": (
        put("data", "kind", value={"name": "pixels", "background": "white", "range": None}),
        "is of an autoencoder, which no config names",
    ),
    "tokens in latents": (put("objective", value={"name": "unmask", "levels": 256}), "objective is for tokens"),
    "an autoencoder of latents": (
        lambda c: (put("objective", value={"name": "autoencode", "kl": 1.0, "likelihood": "logistic"})(c)), "is of Gaussian noise",
    ),
}  # fmt: skip


@pytest.mark.timeout(20)
@pytest.mark.parametrize("case", HOSTILE)
def test_a_stranger_s_latents(tmp_path: Path, latent: Path, case: str) -> None:
    """One sentence, and no more memory than the file has."""
    change, words = HOSTILE[case]
    path = with_config(tmp_path / "hostile.safetensors", latent, change)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert words in refused(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 * 1024


def named(weights: Weights, start: str) -> str:
    return next(name for name in weights if name.startswith(start))


WEIGHTS: dict[str, tuple[Callable[[Weights], object], str]] = {
    "none of the autoencoder": (
        lambda w: [w.pop(name) for name in list(w) if name.startswith("autoencoder/")], "keeps its autoencoder,",
    ),
    "one missing": (lambda w: w.pop("autoencoder/log_scale"), "weight 'log_scale' is missing"),
    "one too many": (lambda w: w.update({"autoencoder/x": torch.zeros(1)}), "weight 'x' belongs to no layer"),
    "a path": (lambda w: w.update({"autoencoder/../../x": torch.zeros(1)}), "weight '../../x' belongs to no layer"),
    "no name": (lambda w: w.update({"autoencoder/": torch.zeros(1)}), "weight '' belongs to no layer"),
    "another shape": (
        lambda w: w.update({"autoencoder/log_scale": torch.zeros(2, 1, 1)}), "weight 'log_scale' is torch.float32 [2, 1, 1]",
    ),
    "half precision": (
        lambda w: w.update({"autoencoder/log_scale": torch.zeros(1, 1, 1).half()}), "weight 'log_scale' is torch.float16",
    ),
    "not a number": (
        lambda w: w["autoencoder/log_scale"].fill_(float("nan")), "weight 'autoencoder/log_scale' holds values that are not",
    ),
    "under the network's name": (
        lambda w: w.update(log_scale=w.pop("autoencoder/log_scale")), "is missing",
    ),
    "of the network itself": (lambda w: w.pop(named(w, "stem")), "is missing"),
}  # fmt: skip


@pytest.mark.parametrize("case", WEIGHTS)
def test_weights_that_do_not_fit(tmp_path: Path, latent: Path, case: str) -> None:
    change, words = WEIGHTS[case]
    assert words in refused(with_weights(tmp_path / "weights.safetensors", latent, change))


def test_weights_of_an_autoencoder_in_a_checkpoint_of_pixels(tmp_path: Path, tiny_model: Path) -> None:
    path = with_weights(tmp_path / "m.safetensors", tiny_model, lambda w: w.update({"autoencoder/x": torch.zeros(1)}))
    assert "weight 'x' is of an autoencoder, which no config names" in refused(path)


OF_VAE: dict[str, tuple[Callable[[Config], object], str]] = {
    "a network that encodes nothing": (put("model", value={"name": "mlp", "width": 8, "blocks": 1}), "name=mlp is none"),
    "levels that it has not": (put("model", "levels", value=[5, 5]), "weight 'encoder."),
    "pictures of a stranger's size": (put("data", "size", value=[1, 9, 9]), "these pictures are 9x9"),
    "an unknown likelihood": (put("objective", "likelihood", value="os"), "objective.likelihood='os' is unknown"),
    "noise": (put("objective", value={"name": "denoise"}), "model.name=autoencoder is an autoencoder, which method=vae or fsq learns"),
    "another sampler": (put("sampler", "name", value="heun"), "sampler.name='heun' is unknown"),
    "a setting of the sampler": (put("sampler", "steps", value=10**12), "sampler.steps is not a setting here"),
    "latents of latents": (
        put("data", "kind", value={
            "name": "latents", "background": "white", "range": None, "size": [1, 8, 8], "autoencoder": {"name": "autoencoder"},
            "hash": "", "likelihood": None, "mean": [0.0], "std": [1.0],
        }), "keeps its autoencoder",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OF_VAE)
def test_a_stranger_s_autoencoder(tmp_path: Path, vae: Path, case: str) -> None:
    change, words = OF_VAE[case]
    assert words in refused(with_config(tmp_path / "hostile.safetensors", vae, change))


COMMANDS = {
    "sample ckpt": (4, lambda path: ("sample", f"ckpt={path}", "n=1", "out=o")),
    "train latent": (4, lambda path: ("train", *SMALL, f"latent={path}", "run_dir=o")),
    "sample latent": (4, lambda path: ("sample", f"ckpt={path}", f"latent={path}", "n=1", "out=o")),
}  # fmt: skip

BAD: dict[str, Callable[[Config], object]] = {
    "an unknown autoencoder": kind("autoencoder", value={"name": "os"}),
    "an autoencoder that is a list": kind("autoencoder", value=[1]),
    "a kind that is a list": put("data", "kind", value=[1]),
    "a kind that lacks all": put("data", "kind", value={"name": "latents"}),
    "a size that is a number": kind("size", value=3),
    "data that is a text": put("data", value="x"),
    "no data": lambda config: config.pop("data"),
}


@pytest.mark.parametrize("command_line", COMMANDS)
@pytest.mark.parametrize("case", BAD)
def test_commands_refuse_in_one_sentence(
    tmp_path: Path, command: Callable[..., Answer], latent: Path, case: str, command_line: str
) -> None:
    """Wherever such a file is given: nothing of it is used before it is looked at."""
    path = with_config(tmp_path / "m.safetensors", latent, BAD[case])
    code, arguments = COMMANDS[command_line]
    done = command(*arguments(path))
    assert done.code in (2, code), done.err
    assert done.err.startswith("error: ") and done.err.count("\n") == 1 and not Path("o").exists()
    assert "Traceback" not in done.err


MODELS: dict[str, Callable[[Config], object]] = {
    "no model": lambda config: config.pop("model"),
    "a model that is a text": put("model", value="autoencoder"),
    "no size": lambda config: config["data"].pop("size"),
    "a size that is a number": put("data", "size", value=3),
    "a size of texts": put("data", "size", value=["x", "y", "z"]),
    "another model": put("model", value={"name": "mlp", "width": 8, "blocks": 1}),
    "an unknown likelihood": put("objective", "likelihood", value=["x"]),
}


@pytest.mark.parametrize("case", MODELS)
def test_an_autoencoder_of_a_stranger_s_is_refused_in_one_sentence(
    tmp_path: Path, command: Callable[..., Answer], vae: Path, case: str
) -> None:
    path = with_config(tmp_path / "m.safetensors", vae, MODELS[case])
    done = command("train", *SMALL, "model.channel_mult=[1]", f"latent={path}", "run_dir=o")
    assert done.code in (2, 4) and done.err.startswith("error: ") and done.err.count("\n") == 1, done.err
    assert not Path("o").exists()


def test_the_files_themselves_are_sound(vae: Path, latent: Path) -> None:
    """Else all of the above would be refused for another reason."""
    for path in (vae, latent):
        restore(checkpoint.load(path))
    assert json.loads(json.dumps(checkpoint.load(latent).config["data"]["kind"]))["name"] == "latents"
