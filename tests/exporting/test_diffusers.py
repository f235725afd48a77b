"""To diffusers and back: its own pipeline draws our images, its networks come in, and what does not fit is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import compose_config
from safetensors.torch import load_file, save_file

from diffgen.build import make_model, restore
from diffgen.cli.configs import compose_group
from diffgen.core.errors import CheckpointError, UsageError
from diffgen.core.registry import named
from diffgen.core.settings import ExportSettings
from diffgen.data.clips import Clips
from diffgen.data.kinds import KINDS, Pixels
from diffgen.diffusion.guidance import Guidance
from diffgen.exporting import from_diffusers
from diffgen.exporting.export import export
from diffgen.sampling.drawing import Sampling
from diffgen.storage import checkpoint

diffusers = pytest.importorskip("diffusers")

SAMPLERS = {name: compose_group("sampler", name) for name in ("ancestral", "ddim")}

UNIFORM = ["model=unet2d", "model.channels=16", "model.channel_mult=[1,2]", "model.blocks=1", "model.groups=8"]
"""A small net whose norms agree in their number of groups."""

WIDE = ["model.channels=128", "model.channel_mult=[1,1]", "model.blocks=1"]
"""`unet` has 32 groups everywhere from 128 channels on."""

GOOGLE = {
    "act_fn": "silu", "attention_head_dim": None, "block_out_channels": [32, 64, 64, 64], "center_input_sample": False,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"], "downsample_padding": 0,
    "flip_sin_to_cos": False, "freq_shift": 1, "in_channels": 3, "layers_per_block": 2, "mid_block_scale_factor": 1,
    "norm_eps": 1e-06, "norm_num_groups": 32, "out_channels": 3, "sample_size": 32, "time_embedding_type": "positional",
    "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip
"""google/ddpm-cifar10-32, but its widths."""

TUTORIAL = {
    "sample_size": 16, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": [32, 32, 64],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"], "norm_num_groups": 16,
}  # fmt: skip
"""What diffusers' own examples train: its defaults, heads of 8 channels among them."""

OBLONG = {**TUTORIAL, "sample_size": [8, 16], "attention_head_dim": 16, "norm_eps": 1e-4, "downsample_padding": 0}


def stirred(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights of which none is near 0."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=rng))
    return module.eval()


def saved(folder: Path, *overrides: str, size: tuple[int, ...] = (1, 8, 8), classes: int = 0, given: int = 0) -> Path:
    """A checkpoint of random weights, as a run of these settings would write it; of clips where there are four sides."""
    config = compose_config("train", ["dataset=digits", "method=ddpm", *overrides])
    kind = named(KINDS, Clips() if len(size) == 4 else Pixels())
    data = {"kind": kind, "size": list(size), "num_classes": classes, "augment_labels": 0, "classes": []}
    data = {**data, "given": given} if given else data
    parts = ("objective", "model", "schedule", "parameterization", "denoiser", "sampler")
    config = {"data": data, **{part: config[part] for part in parts}}
    checkpoint.save_model(folder, config, 128, stirred(make_model(config)).state_dict())
    return folder


def run(ckpt: Path, to: Path, format: str) -> Path:
    export(ExportSettings(ckpt=str(ckpt), to=str(to), format=format, overwrite=False), SAMPLERS)
    return to


def sampling(path: Path) -> Sampling:
    found = checkpoint.load(path)
    off, device = Guidance(scale=1.0), torch.device("cpu")
    return Sampling.from_config(restore(found), found.config["sampler"], guidance=off, seed=3, device=device)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path, Sampling, int, int], torch.Tensor]:
    """What DDPMPipeline draws of a folder from the noise of a `Sampling`, as [B, C, H, W] in [0, 1].

    Where steps are skipped, theirs adds noise of the large variance to the image itself: none comes with the last step.
    """

    def draw(folder: Path, ours: Sampling, n: int, steps: int) -> torch.Tensor:
        noise = (ours.noise([*range(n)], ours.seed, i) * (i < steps) for i in range(steps + 1))
        from diffusers.pipelines.ddpm import pipeline_ddpm
        from diffusers.schedulers import scheduling_ddpm

        for module in (pipeline_ddpm, scheduling_ddpm):
            monkeypatch.setattr(module, "randn_tensor", lambda *given, **options: next(noise))
        pipe = diffusers.DDPMPipeline.from_pretrained(str(folder), use_safetensors=True)
        pipe.set_progress_bar_config(disable=True)
        images = pipe(batch_size=n, num_inference_steps=steps, output_type="np").images
        return torch.from_numpy(images).permute(0, 3, 1, 2)

    return draw


LAYOUTS: dict[str, tuple[list[str], tuple[int, ...]]] = {
    "digits": ([*UNIFORM, "model.attention_resolutions=[4]"], (1, 8, 8)),
    "heads": ([*UNIFORM, "model.attention_resolutions=[8]", "model.head_channels=8", "model.padding=both"], (1, 8, 12)),
    "unet": ([*WIDE, "model.attention_resolutions=[4]", "model.heads=2"], (3, 8, 8)),
    "cifar": (["model=unet2d", "model.channels=32"], (3, 32, 32)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_their_pipeline_draws_our_images(layout: str, tmp_path: Path, pipeline: Callable[..., torch.Tensor]) -> None:
    overrides, size = LAYOUTS[layout]
    ours = sampling(saved(tmp_path / "ours", *overrides, "sampler.steps=10", size=size))
    theirs = pipeline(run(tmp_path / "ours", tmp_path / "theirs", "diffusers"), ours, 2, 10)
    drawn = (ours.draw([0, 1], [-1, -1]) / 2 + 0.5).clamp(0, 1)
    assert drawn.std() > 0.1
    assert (theirs - drawn).abs().max() < 1e-4


OTHERS = {
    "large": ["sampler.variance=large"],
    "unclipped": ["sampler.clip=false", "parameterization=v"],
    "x0": ["parameterization=x0"],
    "ddim": ["parameterization=v", "sampler=ddim", "sampler.clip=false", "sampler.steps=10"],
    "noise at the end": ["parameterization=v", "schedule.zero_terminal_snr=true"],
    "betas": ["schedule.beta_start=0.0005", "schedule.beta_end=0.03"],
}


@pytest.mark.parametrize("what", OTHERS)
def test_schedulers_are_told_what_was_trained(what: str, tmp_path: Path, pipeline: Callable[..., torch.Tensor]) -> None:
    ours = sampling(saved(tmp_path / "ours", *UNIFORM, "sampler.steps=10", *OTHERS[what]))
    theirs = pipeline(run(tmp_path / "ours", tmp_path / "theirs", "diffusers"), ours, 2, 10)
    steps = 1000 if what == "large" else 10
    assert f"num_inference_steps={steps}" in (tmp_path / "theirs" / "README.md").read_text()
    drawn = (ours.draw([0, 1], [-1, -1]) / 2 + 0.5).clamp(0, 1)
    assert drawn.std() > 0.02
    assert (theirs - drawn).abs().max() < 1e-4


@pytest.mark.parametrize("layout", ["unet", "heads"])
def test_there_and_back_are_the_same_weights(layout: str, tmp_path: Path) -> None:
    overrides, size = LAYOUTS[layout]
    saved(tmp_path / "a", *overrides, size=size)
    run(run(tmp_path / "a", tmp_path / "b", "diffusers"), tmp_path / "c", "diffgen")
    first, back = checkpoint.load(tmp_path / "a"), checkpoint.load(tmp_path / "c")
    assert first.weights.keys() == back.weights.keys()
    assert all(torch.equal(first.weights[name], back.weights[name]) for name in first.weights)
    for part in ("data", "schedule", "parameterization", "objective"):
        assert first.config[part] == back.config[part]
    assert {**first.config["sampler"], "spacing": "auto"} == back.config["sampler"]
    run(tmp_path / "c", tmp_path / "d", "diffusers")
    for file in ("config.json", "diffusion_pytorch_model.safetensors"):
        assert (tmp_path / "b" / "unet" / file).read_bytes() == (tmp_path / "d" / "unet" / file).read_bytes()


def test_every_file_is_readable_by_all(tmp_path: Path) -> None:
    folder = run(saved(tmp_path / "a", *UNIFORM), tmp_path / "b", "diffusers")
    assert {path.stat().st_mode & 0o444 for path in folder.rglob("*") if path.is_file()} == {0o444}


@pytest.mark.parametrize(
    ("overrides", "size", "classes", "words"),
    [
        (["model=unet_tiny"], (1, 8, 8), 0, "its norms have [4, 8, 12, 16] groups"),
        (UNIFORM, (1, 8, 8), 3, "its labels enter before"),
        (["method=flow", *UNIFORM], (1, 8, 8), 0, "parameterization=flow is none of [eps, x0, v]"),
        (["method=vpred", *UNIFORM], (1, 8, 8), 0, "its schedule is no table of 1000 linear betas"),
        (["schedule.steps=100", *UNIFORM], (1, 8, 8), 0, "its schedule is no table of 1000 linear betas"),
        (["schedule.beta_end=0.01", *UNIFORM], (1, 8, 8), 0, "ends at sigma=0.9968"),
        (["denoiser.scale_input=true", *UNIFORM], (1, 8, 8), 0, "denoiser.scale_input=true"),
        ([*WIDE, "model.patch=2"], (1, 8, 8), 0, "model.patch=1 alone, and this is 2"),
        ([*WIDE, "model.resample=block"], (1, 8, 8), 0, "model.resample=conv alone"),
        ([*WIDE, "model.skip_scale=0.5"], (1, 8, 8), 0, "model.skip_scale=1.0 alone"),
        ([*WIDE, "model.decoder_attention=last"], (1, 8, 8), 0, "model.decoder_attention=all alone"),
        (WIDE, (1, 7, 8), 0, "cannot halve 7x8 images 1 times"),
        (
            [*WIDE, "model.channel_mult=[1,2]", "model.heads=2", "model.attention_resolutions=[8]"],
            (1, 8, 8), 0, "its attention heads differ in width",
        ),
        (["model=mlp"], (1, 8, 8), 0, "its network is a MLP"),
        (["model=dit_tiny"], (1, 8, 8), 0, "its network is a DiT, not a UNet"),
        (WIDE, (1, 2, 8, 8), 0, "it makes clips, not pictures"),
    ],
)  # fmt: skip
def test_what_unet2dmodel_cannot_hold_is_refused(
    overrides: list[str], size: tuple[int, ...], classes: int, words: str, tmp_path: Path
) -> None:
    saved(tmp_path / "a", *overrides, size=size, classes=classes)
    with pytest.raises(UsageError) as refusal:
        run(tmp_path / "a", tmp_path / "b", "diffusers")
    assert words in str(refusal.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_known_frames_have_no_place_in_unet2dmodel(tmp_path: Path) -> None:
    saved(tmp_path / "a", *WIDE, size=(1, 2, 8, 8), given=4)
    with pytest.raises(UsageError, match=r"it is told of known frames \(train.known_frames\)"):
        run(tmp_path / "a", tmp_path / "b", "diffusers")


# --- the way in ---------------------------------------------------------------------------------------------------


def theirs(folder: Path, config: dict[str, Any], scheduler: Any = None) -> Any:
    """A UNet2DModel of random weights in a pipeline's folder."""
    torch.manual_seed(0)
    network = stirred(diffusers.UNet2DModel(**config))
    pipe = diffusers.DDPMPipeline(unet=network, scheduler=scheduler or diffusers.DDPMScheduler())
    pipe.save_pretrained(str(folder))
    return network


@torch.no_grad()
def outputs(network: Any, found: checkpoint.Checkpoint) -> tuple[torch.Tensor, torch.Tensor]:
    """What the two networks make of the same images at several entries of the table."""
    x, entry = torch.randn(3, *found.config["data"]["size"]), torch.tensor([0, 421, 999])
    denoiser = restore(found).denoiser
    ours = denoiser.predict(x, (entry.double() + 1) / 1000, torch.full((3,), -1))
    return network(x, entry).sample, ours


@pytest.mark.parametrize("config", [GOOGLE, TUTORIAL, OBLONG], ids=["google", "tutorial", "oblong"])
def test_their_networks_come_in_with_their_outputs(config: dict[str, Any], tmp_path: Path) -> None:
    network = theirs(tmp_path / "theirs", config)
    there, here = outputs(network, checkpoint.load(run(tmp_path / "theirs", tmp_path / "ours", "diffgen")))
    assert here.std() > 0.1
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)


def test_a_folder_as_it_lies_on_the_hub(tmp_path: Path) -> None:
    """All in one folder, attention under its earlier names, half precision, no defaults spelled out."""
    network = theirs(tmp_path / "a", GOOGLE).half().float()
    flat = tmp_path / "flat"
    flat.mkdir()
    (flat / "config.json").write_text(
        json.dumps({"_class_name": "UNet2DModel", "_diffusers_version": "0.0.4", **GOOGLE})
    )
    betas = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear", "num_train_timesteps": 1000}
    told = {"_class_name": "DDPMScheduler", "clip_sample": True, "trained_betas": None, "variance_type": "fixed_large"}
    (flat / "scheduler_config.json").write_text(json.dumps({**told, **betas}))
    weights = load_file(tmp_path / "a" / "unet" / "diffusion_pytorch_model.safetensors")
    for today, earlier in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
        weights = {name.replace(f".{today}.", f".{earlier}."): weight for name, weight in weights.items()}
    save_file({name: weight.half() for name, weight in weights.items()}, flat / "diffusion_pytorch_model.safetensors")
    found = checkpoint.load(run(flat, tmp_path / "b", "diffgen"))
    there, here = outputs(network, found)
    torch.testing.assert_close(here, there, rtol=1e-5, atol=1e-5)
    assert found.config["sampler"]["name"] == "ancestral" and found.config["sampler"]["variance"] == "large"


def test_schedulers_become_samplers(tmp_path: Path) -> None:
    scheduler = diffusers.DDIMScheduler(
        clip_sample=False, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"
    )
    theirs(tmp_path / "a", TUTORIAL, scheduler)
    found = checkpoint.load(run(tmp_path / "a", tmp_path / "b", "diffgen"))
    assert found.config["sampler"] == {**SAMPLERS["ddim"], "clip": False}
    assert found.config["parameterization"] == {"name": "v"}
    table = restore(found).denoiser.schedule.alpha(torch.arange(1, 1001).double() / 1000) ** 2
    torch.testing.assert_close(table.float(), scheduler.alphas_cumprod, rtol=0, atol=1e-6)


def test_a_network_alone_is_taken_for_ddpms_and_that_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs(tmp_path / "a", TUTORIAL)
    (tmp_path / "a" / "unet").rename(tmp_path / "unet")
    found = checkpoint.load(run(tmp_path / "unet", tmp_path / "b", "diffgen"))
    assert found.config["parameterization"] == {"name": "eps"}
    assert "no scheduler_config.json is there" in capsys.readouterr().out


def test_a_sampler_that_clips_otherwise_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    theirs(tmp_path / "a", TUTORIAL, diffusers.DDIMScheduler())
    run(tmp_path / "a", tmp_path / "b", "diffgen")
    assert "draw images that differ a little" in capsys.readouterr().out


def test_a_folder_of_diffusers_wants_the_way_in(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="format=diffgen makes a checkpoint of it"):
        run(folder, tmp_path / "b", "onnx")


def changed(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline's folder. Read only."""
    where = tmp_path_factory.mktemp("theirs") / "folder"
    theirs(where, TUTORIAL)
    return where


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def refusal(folder: Path) -> str:
    """The sentence for a folder that must not come in; nothing is written."""
    with pytest.raises(CheckpointError) as refused:
        run(folder, folder.parent / "b", "diffgen")
    assert sorted(path.name for path in folder.parent.iterdir()) == [folder.name]
    assert "\n" not in str(refused.value) and str(refused.value).isprintable()
    return str(refused.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"center_input_sample": True}, "center_input_sample=true has no place in diffgen, which does false"),
        ({"time_embedding_type": "fourier"}, 'which does "positional"'),
        ({"act_fn": "gelu"}, 'act_fn="gelu" has no place in diffgen, which does "silu" or "swish"'),
        ({"num_class_embeds": 10}, "num_class_embeds=10"),
        ({"class_embed_type": "timestep"}, "class_embed_type"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ({"downsample_type": "resnet"}, "downsample_type"),
        ({"mid_block_scale_factor": 1.4}, "mid_block_scale_factor=1.4"),
        ({"add_attention": False}, "add_attention=false"),
        ({"mid_block_type": None}, "mid_block_type=null"),
        ({"down_block_types": ["DownBlock2D", "SkipDownBlock2D", "DownBlock2D"]}, "choose one of [AttnDownBlock2D, DownBlock2D]"),
        ({"down_block_types": ["DownBlock2D", "DownBlock2D", "DownBlock2D"]}, "must attend on the levels of"),
        ({"down_block_types": ["DownBlock2D"]}, "are of 1, 3 and 3 levels"),
        ({"block_out_channels": [32, 48, 64]}, "must be multiples of the first"),
        ({"block_out_channels": [32, 64, 64]}, "the model torch.float32"),
        ({"block_out_channels": [10**6] * 3}, "must be a multiple of 4 in [4, 4096]"),
        ({"block_out_channels": []}, "must be numbers above 0"),
        ({"block_out_channels": "wide"}, "config.block_out_channels='wide' must be a list"),
        ({"layers_per_block": 10**9}, "must be in [1, 64]"),
        ({"layers_per_block": 2}, "weight"),
        ({"downsample_padding": 2}, "downsample_padding=2 must be one of [0, 1]"),
        ({"norm_num_groups": 5}, "groups=5 must divide"),
        ({"norm_num_groups": None}, "norm_num_groups=null must be a whole number"),
        ({"attention_head_dim": 7}, "head_channels=7 must divide"),
        ({"attn_norm_num_groups": 8}, "attn_norm_num_groups=8 has no place"),
        ({"time_embedding_dim": 64}, "time_embedding_dim=64 has no place"),
        ({"freq_shift": 3}, "frequency_shift=3.0 must be in [0, 1]"),
        ({"in_channels": 6}, "out_channels=1 must be in_channels=6"),
        ({"sample_size": None}, "sample_size=null must be a side"),
        ({"sample_size": 18}, "must divide both sides"),
        ({"sample_size": 10**6}, "out of range"),
        ({"_class_name": "UNet2DConditionModel"}, "_class_name='UNet2DConditionModel' is none of [UNet2DModel]"),
        ({"new_trick": 1}, "new_trick is unknown"),
        ({"_new_trick": 1}, "has the key '_new_trick'"),
        ({"act_fn": "\x1b[31m"}, "has the text"),
    ],
)  # fmt: skip
def test_networks_that_diffgen_has_not_are_refused(copy: Path, changes: dict[str, Any], words: str) -> None:
    changed(copy / "unet" / "config.json", **changes)
    assert words in refusal(copy)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"_class_name": "PNDMScheduler"}, "is none of [DDPMScheduler, DDIMScheduler]"),
        ({"beta_schedule": "squaredcos_cap_v2"}, 'which does "linear"'),
        ({"num_train_timesteps": 100}, "num_train_timesteps=100 has no place in diffgen, which does 1000"),
        ({"trained_betas": [0.1, 0.2]}, "trained_betas"),
        ({"thresholding": True}, "thresholding=true"),
        ({"clip_sample_range": 2.0}, "clip_sample_range=2 has no place"),
        ({"prediction_type": "flow"}, "choose one of [epsilon, sample, v_prediction]"),
        ({"variance_type": "learned_range"}, "choose one of [fixed_large, fixed_small, fixed_small_log]"),
        ({"beta_end": 1.5}, "beta_end=1.5"),
        ({"beta_end": "x"}, "scheduler_config.beta_end='x' must be a number"),
        ({"rescale_betas_zero_snr": True}, "is singular at t_max=1"),
        ({"new_trick": 1}, "new_trick is unknown"),
    ],
)
def test_schedules_that_diffgen_has_not_are_refused(copy: Path, changes: dict[str, Any], words: str) -> None:
    changed(copy / "scheduler" / "scheduler_config.json", **changes)
    assert words in refusal(copy)


def test_only_safetensors_are_read(copy: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(copy / "unet" / "diffusion_pytorch_model.bin")
    assert "but diffusion_pytorch_model.bin: nothing else is read, since other files can run code" in refusal(copy)
    torch.save({"x": torch.zeros(1)}, weights)
    assert "which can run code" in refusal(copy)


def test_damaged_folders_are_refused(copy: Path) -> None:
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    assert "does not fit the file" in refusal(copy)
    weights.write_bytes(whole)
    tensors = load_file(weights)
    for name, changes, words in (
        ("nan", {"conv_in.bias": torch.full((32,), torch.nan)}, "not finite"),
        ("more", {"extra.weight": torch.zeros(2)}, "belongs to no layer"),
        ("other", {"conv_in.bias": torch.zeros(3)}, "the model torch.float32"),
        ("doubles", {"conv_in.bias": torch.zeros(32, dtype=torch.float64)}, "torch.float64"),
    ):
        save_file({**tensors, **changes}, weights)
        assert words in refusal(copy), name
    save_file({name: weight for name, weight in tensors.items() if "conv_in" not in name}, weights)
    assert "'stem.weight' is missing" in refusal(copy)
    weights.write_bytes(whole)
    (copy / "unet" / "config.json").write_text("[" * 10_000)
    assert "is not JSON" in refusal(copy)
    (copy / "unet" / "config.json").write_text('{"a": "' + "x" * 2**22 + '"}')
    assert "far larger than any config" in refusal(copy)


def test_what_is_no_folder_of_diffusers(tmp_path: Path) -> None:
    for name in ("nothing", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(CheckpointError, match="is no folder"):
            from_diffusers.read(tmp_path / name, SAMPLERS)
