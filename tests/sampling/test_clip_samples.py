"""Clips from the commands: trained, previewed, sampled, continued, filled in, made longer, judged and refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import conftest
import numpy as np
import pytest
import torch
from PIL import Image
from rows import dataset
from torch import Tensor

import diffgen
from diffgen.core.errors import UsageError
from diffgen.evaluation.model import spread
from diffgen.storage import checkpoint

Command = Callable[..., Any]
CPU = torch.device("cpu")

SMALL = [
    "dataset=moving_digits",
    "dataset.n=500",
    "dataset.frames=4",
    "model=unet_tiny",
    "model.channels=8",
    "model.patch=4",
    "sampler.steps=3",
    "preview.n=3",
    "train.batch_size=8",
    "train.log_every=16",
]
ENDS = ["train.images=64", "train.preview_every=64", "train.checkpoint_every=32"]


def trained(run: Path, *settings: str) -> Path:
    from diffgen.training.trainer import train

    config = conftest.compose_config("train", [*SMALL, *ENDS, *settings]) | {"run_dir": str(run)}
    train(config, conftest.configs.as_yaml(config), "unused")
    return run


@pytest.fixture(scope="module")
def informed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is told of known frames. Read only."""
    return trained(tmp_path_factory.mktemp("clips") / "informed", "train.known_frames=0.5")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is told of nothing. Read only."""
    return trained(tmp_path_factory.mktemp("clips") / "plain", "train.known_frames=0", "model.time_layers=[conv]")


@pytest.fixture
def real(tmp_path: Path) -> Tensor:
    """A clip that no run was trained on, uint8 [4, 1, 16, 16]; as real.gif, real/ and real.npy, too."""
    source = dataset("moving_digits", n=10, frames=4, split="test")
    clip: Tensor = next(source.batches(iter([torch.tensor([3])]), CPU))[0][0]
    films = [Image.fromarray(frame[0].numpy()) for frame in clip]
    films[0].save(tmp_path / "real.gif", save_all=True, append_images=films[1:])
    (tmp_path / "real").mkdir()
    for number, frame in enumerate(films):
        frame.save(tmp_path / "real" / f"{number}.png")
    np.save(tmp_path / "real.npy", clip[:, 0].numpy())
    return clip


def drawn(out: str) -> np.ndarray:
    saved: np.ndarray = np.load(Path(out) / "samples.npz")["arr_0"]
    return saved


def test_previews_are_a_strip_and_a_film(informed: Path) -> None:
    with (
        Image.open(informed / "samples" / "00000064.png") as strip,
        Image.open(informed / "samples" / "00000064.gif") as film,
    ):
        assert strip.width > strip.height and film.n_frames == 4
    config = checkpoint.load(informed).config
    assert config["data"]["size"] == [1, 4, 16, 16] and config["data"]["given"] == 4
    assert config["data"]["kind"]["name"] == "video"


def test_samples_are_strips_a_film_and_what_is_asked_for(command: Command, informed: Path) -> None:
    done = command("sample", f"ckpt={informed}", "n=3", "save=[webp,frames,npz]", "fps=20", "out=o")
    assert done.code == 0, done.err
    assert "clips  3 of 1x4x16x16" in done.out and "film: o/samples.gif" in done.out
    clips = drawn("o")
    assert clips.shape == (3, 4, 16, 16, 1) and clips.dtype == np.uint8
    assert np.load("o/samples.npz")["arr_1"].tolist() == [0, 1, 2]
    for name in ("gif", "webp"):
        with Image.open(f"o/samples.{name}") as film:
            assert film.n_frames == 4
            film.load()
            assert film.info["duration"] == 50
    frames = [np.asarray(Image.open(f"o/frames/00000{i}/000{t}.png")) for i in range(3) for t in range(4)]
    assert np.array_equal(np.stack(frames).reshape(3, 4, 16, 16, 1), clips)
    again = command("sample", f"ckpt={informed}", "n=2", "save=[frames]", "out=o")
    assert again.code == 2 and "already holds grid.png" in again.err
    fewer = command("sample", f"ckpt={informed}", "n=2", "save=[frames]", "out=o", "overwrite=true")
    assert fewer.code == 0 and sorted(path.name for path in Path("o/frames").iterdir()) == ["000000", "000001"]


def test_what_is_drawn_is_read_back_as_the_data_that_it_is(command: Command, informed: Path) -> None:
    assert command("sample", f"ckpt={informed}", "n=3", "save=[frames,npz]", "out=o").code == 0
    arrays = dataset("arrays", path="o/samples.npz")
    films = dataset("video_folder", root="o/frames", frames=4, channels=1, workers=0)
    assert torch.equal(arrays.stored, films.stored) and arrays.labels.tolist() == [0, 1, 2]
    assert arrays.classes == tuple("0123456789") and arrays.kind.array(arrays.stored).shape == (3, 4, 16, 16, 1)


@pytest.mark.parametrize("sampler", ["heun", "ancestral", "unipc"])
def test_a_clip_depends_on_its_seed_and_number_alone(command: Command, informed: Path, sampler: str) -> None:
    for n, batch in ((5, 5), (5, 2), (2, 1)):
        more = ("task=predict", "task.length=7", f"sampler={sampler}", "sampler.steps=3", "save=[npz]", "label=each")
        done = command("sample", f"ckpt={informed}", f"n={n}", f"batch_size={batch}", f"out=o{n}{batch}", *more)
        assert done.code == 0, done.err
    assert np.array_equal(drawn("o55"), drawn("o52")) and np.array_equal(drawn("o55")[:2], drawn("o21"))


@pytest.mark.parametrize("run", ["informed", "plain"])
@pytest.mark.parametrize("sampler", ["heun", "ancestral", "dpmpp_2m"])
def test_known_frames_are_kept_to_the_pixel(
    command: Command, request: pytest.FixtureRequest, real: Tensor, run: str, sampler: str
) -> None:
    ckpt, known = request.getfixturevalue(run), real.permute(0, 2, 3, 1).numpy()
    for path in ("real.gif", "real", "real.npy"):
        more = (f"sampler={sampler}", "sampler.steps=3", "save=[npz]", "overwrite=true", "out=o")
        done = command("sample", f"ckpt={ckpt}", "n=3", "task=predict", f"task.video={path}", "task.known=2", *more)
        assert done.code == 0, done.err
        clips = drawn("o")
        assert (clips[:, :2] == known[:2]).all() and not (clips[:, 2:] == known[2:]).all()
        assert not np.array_equal(clips[0], clips[1])
    done = command("sample", f"ckpt={ckpt}", "n=2", "task=inbetween", "task.video=real.gif", *more)
    assert done.code == 0, done.err
    assert (drawn("o")[:, [0, 3]] == known[[0, 3]]).all() and not (drawn("o")[:, 1:3] == known[1:3]).all()


def test_what_is_told_matters_to_a_network_that_is_told(command: Command, informed: Path, real: Tensor) -> None:
    """The same start and the same frames put in: only what the network is told differs from a network that is not."""
    command("sample", f"ckpt={informed}", "n=2", "task=predict", "task.video=real.gif", "save=[npz]", "out=a")
    told = drawn("a")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffgen.diffusion.denoiser.Denoiser.knowing", lambda self, told: self)
        command("sample", f"ckpt={informed}", "n=2", "task=predict", "task.video=real.gif", "save=[npz]", "out=b")
    assert not np.array_equal(told, drawn("b"))


@pytest.mark.parametrize(("known", "length"), [(1, 5), (2, 9), (3, 6), (2, 4), (1, 3)])
def test_clips_longer_than_the_network_s_go_on_from_their_last_frames(
    command: Command, informed: Path, real: Tensor, known: int, length: int
) -> None:
    sample = ("sample", f"ckpt={informed}", "n=2", f"task.known={known}", "save=[npz]", "task=predict")
    done = command(*sample, "task.video=real.gif", f"task.length={length}", "out=o")
    assert done.code == 0, done.err
    clips = drawn("o")
    assert clips.shape == (2, length, 16, 16, 1)
    assert (clips[:, :known] == real.permute(0, 2, 3, 1).numpy()[:known]).all()
    if length >= 4:
        assert command(*sample, "task.video=real.gif", "out=short").code == 0
        assert np.array_equal(drawn("short"), clips[:, :4])
    with Image.open("o/samples.gif") as film:
        assert film.n_frames <= length


def test_new_clips_are_of_each_class_in_turn_and_those_that_go_on_of_none(
    command: Command, informed: Path, real: Tensor
) -> None:
    sample = ("sample", f"ckpt={informed}", "n=3", "task=predict", "save=[npz]", "overwrite=true", "out=o")
    done = command(*sample, "task.length=6")
    assert done.code == 0 and np.load("o/samples.npz")["arr_1"].tolist() == [0, 1, 2]
    assert command(*sample, "task.length=6", "task.video=real.gif").code == 0
    assert np.load("o/samples.npz")["arr_1"].tolist() == [-1] * 3


def test_a_film_goes_on_at_the_pace_of_the_training_clips(command: Command) -> None:
    frames = [Image.new("L", (16, 16), 8 * t) for t in range(24)]
    Path("films").mkdir()
    Path("frames").mkdir()
    for number, frame in enumerate(frames):
        frame.save(f"frames/{number}.png")
    for name in ("a", "b"):
        frames[0].save(f"films/{name}.gif", save_all=True, append_images=frames[1:])
    np.save("array.npy", np.stack([np.asarray(frame) for frame in frames]))
    films = ["dataset=video_folder", "dataset.root=films", "dataset.channels=1", "dataset.frames=4", "dataset.stride=3"]
    done = command("train", *films, *SMALL[3:], "dataset.workers=0", "train.images=16", "run_dir=run")
    assert done.code == 0, done.err
    for task, pace, known in (
        ("task=predict task.video=films/a.gif", 3, [0, 24]),
        ("task=predict task.video=frames", 3, [0, 24]),
        ("task=predict task.video=frames task.stride=1", 1, [0, 8]),
        ("task=predict task.video=array.npy", 1, [0, 8]),
        ("task=inbetween task.video=films/a.gif", 3, [0, 168]),
    ):
        done = command("sample", "ckpt=run", "n=1", "save=[npz]", "overwrite=true", "out=o", *task.split(" "))
        assert done.code == 0 and f"stride {pace}" in done.out, done.out + done.err
        shown = drawn("o")[0, :, 0, 0, 0].tolist()
        assert [shown[0], shown[-1] if "inbetween" in task else shown[1]] == known
    wrong = command("sample", "ckpt=run", "n=1", "task=predict", "task.video=frames", "task.stride=0")
    assert wrong.code == 2 and "task.stride=0 must be in [1, 1000]" in wrong.err


def test_guidance_is_towards_known_frames_too(command: Command, informed: Path, plain: Path, real: Tensor) -> None:
    def sample(run: Path, *settings: str) -> Any:
        return command("sample", f"ckpt={run}", "n=2", "save=[npz]", "overwrite=true", "out=o", *settings)

    shown = {}
    for scale in (1, 3):
        done = sample(informed, "task=predict", "task.video=real.gif", f"guidance={scale}")
        assert done.code == 0 and ("a second one for guidance" in done.out) == (scale > 1), done.err
        shown[scale] = drawn("o")
    assert not np.array_equal(shown[1], shown[3])
    known = np.array_equal(shown[1][:, :2], shown[3][:, :2])
    assert known, "known frames are kept"
    own = sample(informed, "task=predict", "task.video=real.gif")
    assert "guidance  2\n" in own.out
    shown[0] = drawn("o")
    assert sample(informed, "task=predict", "task.video=real.gif", "guidance=2").code == 0
    assert np.array_equal(drawn("o"), shown[0])
    unaware = sample(plain, "task=predict", "task.video=real.gif", "label=3")
    assert "guidance  4\n" in unaware.out, unaware.out
    first = sample(informed, "task=predict", "task.length=6", "label=none")
    assert "guidance  off; 2 in later windows\n" in first.out, first.out
    later = sample(informed, "task=predict", "task.length=6")
    assert "guidance  4; 2 in later windows\n" in later.out, later.out
    untold = sample(plain, "task=predict", "task.video=real.gif", "guidance=3")
    assert untold.code == 2 and "guidance=3.0 needs labels or guide=CKPT" in untold.err


def test_frames_one_at_a_time_know_all_those_before(command: Command, informed: Path, real: Tensor) -> None:
    """As typed by hand: what was made is what the next command knows. Windows have noise of their own."""
    sample = ("sample", f"ckpt={informed}", "n=1", "save=[npz]", "task=predict", "sampler=ddim", "sampler.steps=3")
    done = command(*sample, "task.video=real.gif", "task.known=2", "task.at_once=1", "out=o")
    assert done.code == 0, done.err
    clip = drawn("o")[0]
    assert clip.shape == (4, 16, 16, 1) and (clip[:2] == real.permute(0, 2, 3, 1).numpy()[:2]).all()
    assert command(*sample, "task.video=real.gif", "task.known=2", "out=whole").code == 0
    assert np.array_equal(drawn("whole")[0][:3], clip[:3]) and not np.array_equal(drawn("whole")[0][3], clip[3])
    seen: list[Tensor] = []
    own = diffgen.diffusion.denoiser.Denoiser.knowing

    def knowing(self: Any, told: Tensor) -> Any:
        seen.append(told)
        return own(self, told)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diffgen.diffusion.denoiser.Denoiser.knowing", knowing)
        told = (*sample, "task.video=real.gif", "task.known=2", "task.at_once=1", "task.length=6", "out=long")
        assert command(*told).code == 0
    windows = [(told[0, 1, :, 0, 0] == 1).tolist() for told in seen if told is not None and len(told) == 1]
    assert windows == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 0]]
    assert drawn("long").shape == (1, 6, 16, 16, 1) and np.array_equal(drawn("long")[0][:4], clip)


def test_a_mask_is_one_picture_for_all_frames(command: Command, informed: Path, real: Tensor) -> None:
    mask = np.zeros((16, 16), np.uint8)
    mask[:, 8:] = 255
    Image.fromarray(mask).save("mask.png")
    task = ("task=inpaint", "task.image=real.gif", "task.mask=mask.png")
    done = command("sample", f"ckpt={informed}", "n=2", *task, "save=[npz]", "out=o")
    assert done.code == 0, done.err
    assert (drawn("o")[:, :, :, :8] == real.permute(0, 2, 3, 1).numpy()[:, :, :8]).all()
    for other in (["task=img2img", "task.image=real", "sampler.steps=6"], ["task=interpolate", "task.seeds=[1,2]"]):
        done = command("sample", f"ckpt={informed}", "n=2", *other, "save=[npz]", "out=o", "overwrite=true")
        assert done.code == 0 and drawn("o").shape == (2, 4, 16, 16, 1), done.err
    assert command("sample", f"ckpt={informed}", "n=2", "task=trajectory", "out=t").code == 0
    assert Path("t/trajectory.gif").is_file()


def test_a_run_that_was_stopped_ends_with_the_same_bytes(command: Command) -> None:
    few = ("train.known_frames=0.5", "lr_schedule.decay=constant", "train.checkpoint_every=16", "preview.n=1")
    assert command("train", *SMALL, *few, "train.images=32", "run_dir=whole").code == 0
    assert command("train", *SMALL, *few, "train.images=16", "run_dir=half").code == 0
    done = command("train", *SMALL, *few, "train.images=32", "run_dir=half")
    assert "resumed at 16 images" in done.out, done.err
    for name in ("model", "state"):
        one, two = (Path(run, "checkpoints/00000032", f"{name}.safetensors") for run in ("whole", "half"))
        assert one.read_bytes() == two.read_bytes(), name


def test_films_in_files_train_to_the_weights_of_the_same_clips_in_an_array(command: Command) -> None:
    """A folder of GIFs, folders of frames, and an .npz."""
    source = dataset("moving_digits", n=12, frames=4)
    clips, labels = next(source.batches(iter([torch.arange(12)]), CPU))
    order = sorted(range(12), key=lambda i: (int(labels[i]), i))
    for i, clip in enumerate(clips):
        film = [Image.fromarray(frame[0].numpy()) for frame in clip]
        for form in ("gif", "png"):
            Path(form, str(int(labels[i]))).mkdir(parents=True, exist_ok=True)
        film[0].save(f"gif/{int(labels[i])}/{i:02d}.gif", save_all=True, append_images=film[1:])
        Path(f"png/{int(labels[i])}/{i:02d}").mkdir()
        for t, frame in enumerate(film):
            frame.save(f"png/{int(labels[i])}/{i:02d}/{t}.png")
    names = np.array(sorted({str(int(label)) for label in labels}))
    numbers = np.searchsorted(names, [str(int(labels[i])) for i in order])
    np.savez("clips.npz", arr_0=clips[order].permute(0, 1, 3, 4, 2).numpy(), arr_1=numbers, classes=names)
    few = [setting for setting in SMALL if not setting.startswith("dataset")] + ["train.images=32"]
    weights = []
    for number, form in enumerate(("gif", "png")):
        folder = (f"dataset.root={form}", "dataset.frames=4", "dataset.channels=1", "dataset.workers=0")
        done = command("train", "dataset=video_folder", *folder, *few, f"run_dir=run{number}")
        assert done.code == 0, done.err
        assert "12 films give 12 clips of 4 frames; 16x16; none left out" in done.out
        weights.append(checkpoint.load(Path(f"run{number}")).weights)
    done = command("train", "dataset=arrays", "dataset.path=clips.npz", *few, "run_dir=run2")
    assert done.code == 0, done.err
    weights.append(checkpoint.load(Path("run2")).weights)
    for other in weights[1:]:
        assert all(torch.equal(weight, other[name]) for name, weight in weights[0].items())


@pytest.mark.slow
def test_two_processes_train_on_the_same_numbers_as_one(command: Command, python: Any) -> None:
    few = [
        *SMALL,
        "train.known_frames=0.5",
        "train.images=32",
        "train.grad_clip=null",
        "optimizer=sgd",
        "optimizer.lr=0.01",
    ]
    assert command("train", *few, "run_dir=one").code == 0
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node=2", "--master_port=29577", "-m", "diffgen.cli.train")
    done = python(*torchrun, *few, "run_dir=two")
    assert done.returncode == 0, done.stderr
    one, two = (checkpoint.load(Path(run)).weights for run in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)


REFUSED = {
    "task=predict": "task.video is missing: task.video=PATH, or task.length=32 without one",
    "task=predict task.video=nothing.gif": "'nothing.gif' does not exist",
    "task=predict task.video=real.gif task.known=4": "task.known=4 must be in [1, 3]: this model's clips have 4 frames",
    "task=predict task.video=real.gif task.known=0": "task.known=0 must be in [1, 3]",
    "task=predict task.video=one.png task.known=2": "known=2 is more than the 1 frames of video='one.png'",
    "task=predict task.length=3": "task.length=3 must be in [4, 4096]: this model's clips have 4 frames",
    "task=predict task.video=real.gif task.length=2": "task.length=2 must be in [3, 4096]",
    "task=predict task.video=real.gif task.at_once=3": "task.at_once=3 must be in [1, 2]: of 4 frames 2 are known",
    "task=inbetween": "task.video is missing",
    "task=inbetween task.video=real.gif task.known=2": "task.known=2 at either end must leave some of this model's 4",
    "task=inbetween task.video=one.png": "known=1 at either end is more than the 1 frames of the video",
    "task=img2img task.image=one.png": "'one.png' has 1 frames, and this model's clips have 4",
    "task=infill task.text=a": "task=infill is for text",
    "fps=0": "fps=0.0 must be in [0.1, 240]",
    "save=[png]": "save='png' is unknown; choose one of [frames, gif, grid, mp4, npz, pairs, webp]; this model makes clips",
}


@pytest.mark.parametrize("settings", REFUSED)
def test_what_cannot_be_done_is_one_sentence(command: Command, informed: Path, real: Tensor, settings: str) -> None:
    Image.fromarray(real[0, 0].numpy()).save("one.png")
    done = command("sample", f"ckpt={informed}", "n=2", "out=o", *settings.split(" "))
    assert done.code in (2, 3) and REFUSED[settings] in done.err, done.err
    assert len(done.err.strip().splitlines()) == 1 and not Path("o").exists()


def test_pictures_have_no_frames(command: Command, tiny_run: Path) -> None:
    for setting, told in {
        "task=predict": "task=predict is for clips, and this model makes images",
        "fps=5": "fps=5 is for clips, and this model makes images: leave it out",
    }.items():
        done = command("sample", f"ckpt={tiny_run}", "n=2", "out=o", setting)
        assert done.code == 2 and told in done.err and not Path("o").exists()
    done = command("train", "train.known_frames=0.5", "run_dir=run")
    assert done.code == 2 and "train.known_frames=0.5 is for clips: images have no frames" in done.err


def test_another_error_says_what_that_of_unknown_frames_is(command: Command) -> None:
    huber = f"plugins=[{Path(__file__).parents[2] / 'docs/examples/objective.py'}]"
    done = command("train", *SMALL, "train.images=16", huber, "objective=huber", "run_dir=run")
    assert done.code == 2 and "objective=huber has another `error` without its `error_of_unknown`" in done.err
    assert not Path("run").exists()
    done = command("train", *SMALL, "train.images=16", huber, "objective=huber", "train.known_frames=0", "run_dir=run")
    assert done.code == 0, done.err


@pytest.mark.parametrize("data", ["moving_digits", "moving_mnist"])
@pytest.mark.parametrize("method", ["ddpm", "ddpm_cosine", "edm", "flow", "flow_clips", "vpred"])
def test_a_recipe_of_clips_goes_with_every_method(data: str, method: str) -> None:
    own, usual = (
        conftest.compose_config("train", [f"dataset={name}", f"method={method}"]) for name in (data, "digits")
    )
    assert own["method"] == method and own["time"] == usual["time"]


def test_from_python(informed: Path) -> None:
    run = diffgen.load(informed)
    clips = run.sample(3, steps=3)
    assert clips.shape == (3, 4, 1, 16, 16)
    assert run.grid(clips).width > run.grid(clips).height
    film = run.film(clips, fps=10)
    assert film.data.startswith(b"GIF89a") and "image/gif" in film._repr_mimebundle_()
    longer = run.sample(2, task="predict", length=6, steps=3)
    assert longer.shape == (2, 6, 1, 16, 16) and run.grid(longer).width > run.grid(clips).width
    with pytest.raises(UsageError, match=r"images of torch.uint8 \[3, 1, 16, 16\] are no clips of this run"):
        run.film(clips[:, 0])


def test_clips_are_judged(command: Command, informed: Path) -> None:
    few = ("metrics=[fd_frames,fd_pairs,motion,checks]", "n=12", "extractor=classifier", "extractor.epochs=1", "out=e")
    done = command("eval", f"ckpt={informed}", *few, "extractor.width=4", "sampler.steps=2")
    assert done.code == 0, done.err
    row = json.loads(Path("e/results.jsonl").read_text())
    assert row["clips"] == 12 and row["straight_floor_test"] == 1 and row["floor_clips"] == 12
    assert {"fd_frames", "fd_pairs", "motion", "label", "identity", "shape"} <= row.keys()
    assert (
        command(
            "sample", f"ckpt={informed}", "n=12", "save=[npz,frames]", "sampler.steps=2", "out=o", "guidance=1"
        ).code
        == 0
    )
    for path in ("o/samples.npz", "o"):
        images = (f"images={path}", "dataset=moving_digits", "dataset.frames=4", "dataset.n=500")
        done = command("eval", *images, *few, "extractor.width=4")
        assert done.code == 0, done.err
        again = json.loads(Path("e/results.jsonl").read_text().splitlines()[-1])
        assert again["fd_pairs"] == pytest.approx(row["fd_pairs"], rel=1e-4) and again["straight"] == row["straight"]
    done = command("eval", f"ckpt={informed}", "metrics=fd", "out=e2")
    assert done.code == 2 and "metrics=fd is not a metric of clips" in done.err


def test_the_model_of_clips_is_judged(command: Command, informed: Path) -> None:
    done = command("eval", f"ckpt={informed}", "metrics=[bits,denoising]", "n=4", "out=e", "dataset.frames=4")
    assert done.code == 0, done.err
    row = json.loads(Path("e/results.jsonl").read_text())
    assert row["bits_clips"] == 4 and 0 < row["bits"] < 12 and row["bits_of"] == "test"
    assert row["denoising_test"] > 0 and len(row["denoising"]) == 12
    assert "bits/dim, held-out clips" in done.out and "denoising error, training clips" in done.out


def test_clips_that_are_read_are_judged_by_what_can_be_told(command: Command, tmp_path: Path) -> None:
    """Real clips with labels, without them, and by a data set that has no exact checks."""
    held_out = dataset("moving_digits", n=500, frames=4, split="test")
    clips, labels = next(held_out.batches(iter([spread(500, 40)]), CPU))  # those that the floors are of
    arrays = clips.permute(0, 1, 3, 4, 2).numpy()
    np.savez("labelled.npz", arr_0=arrays, arr_1=labels.numpy())
    np.savez("plain.npz", arr_0=arrays)
    np.savez("short.npz", arr_0=arrays[:, :3])
    small = ("extractor.epochs=3", "extractor.width=16", "out=e", f"cache={tmp_path / 'cache'}")
    judge = ("dataset=moving_digits", "dataset.frames=4", "dataset.n=500", *small)
    for name in ("labelled", "plain"):
        done = command("eval", f"images={name}.npz", *judge)
        assert done.code == 0, done.err
    full, plain = map(json.loads, Path("e/results.jsonl").read_text().splitlines())
    assert full["straight"] == full["straight_floor_test"] == 1 and full["label"] == full["label_floor_test"] > 0.1
    assert full["fd_pairs"] == full["fd_pairs_floor_test"] and full["motion"] == full["motion_floor_test"]
    assert full["fd_pairs_floor_halves"] > 0 and "straight_floor_halves" not in full
    assert plain["left_out"] == ["label"] and plain["identity"] == full["identity"] and "label" not in plain
    assert {"fd_pairs", "fd_pairs_floor_test"} <= set(full["too_few"]) and "40 clips for 64 features" in done.out
    done = command("eval", "images=short.npz", *judge)
    assert done.code == 3 and "'short.npz' are 1x3x16x16 and dataset=moving_digits is 1x4x16x16" in done.err
    done = command("eval", "images=plain.npz", "dataset.digits=2", *judge, "metrics=[checks]")
    assert done.code == 2 and "metrics=checks are of one moving digit, and dataset=moving_digits has others" in done.err


def test_clips_without_held_out_ones_stand_beside_halves(command: Command, tmp_path: Path) -> None:
    clips, _ = next(dataset("moving_digits", n=30, frames=4).batches(iter([torch.arange(30)]), CPU))
    np.savez("clips.npz", arr_0=clips.permute(0, 1, 3, 4, 2).numpy())
    done = command(
        "eval", "images=clips.npz", "dataset=arrays", "dataset.path=clips.npz", "extractor=pixels", "out=e",
        f"cache={tmp_path / 'cache'}",
    )  # fmt: skip
    assert done.code == 0, done.err
    row = json.loads(Path("e/results.jsonl").read_text())
    assert row["motion"] == 0 and row["fd_pairs"] == pytest.approx(0, abs=1e-6) and row["motion_floor_halves"] > 0
    assert "straight" not in row and "motion_floor_test" not in row
