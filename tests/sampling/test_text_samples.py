"""Text from the commands: trained, previewed, sampled, filled in, shown on its way, and refused in a sentence."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conftest
import numpy as np
import pytest
import torch

import diffgen
from diffgen.build import data_config, make_model, make_splits, make_trained
from diffgen.core import plots
from diffgen.core.errors import UsageError
from diffgen.core.settings import section
from diffgen.data.tokens import unescaped
from diffgen.diffusion.times import uniform
from diffgen.diffusion.weightings import unit
from diffgen.sampling.generate import _strays
from diffgen.training.feed import Feed

Command = Callable[..., Any]
Fit = Callable[..., Path]

SMALL = ["model.width=16", "model.depth=1", "model.heads=2", "preview.n=3", "train.batch_size=16", "train.log_every=16"]
NUMBERS = ["dataset=numbers", "dataset.n=500", *SMALL]
ENDS = ["train.images=64", "train.preview_every=32", "train.checkpoint_every=32"]


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on spelled numbers. Read only."""
    run = tmp_path_factory.mktemp("text") / "words"
    return trained(run, *NUMBERS, *ENDS)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on digits as tokens, with labels. Read only."""
    run = tmp_path_factory.mktemp("text") / "pictures"
    few = ["model=dit_tiny", "model.patch=1", *SMALL, "sampler.steps=3"]
    return trained(run, "dataset=digits", "method=masked", "objective.levels=17", *few, *ENDS)


def trained(run: Path, *settings: str) -> Path:
    from diffgen.training.trainer import train

    config = conftest.compose_config("train", list(settings)) | {"run_dir": str(run)}
    train(config, conftest.configs.as_yaml(config), "unused")
    return run


def test_previews_are_lines_of_text_and_the_loss_is_in_bits(words: Path) -> None:
    for images in ("00000032", "00000064"):
        assert len((words / "samples" / f"{images}.txt").read_text().splitlines()) == 3
    assert not list((words / "samples").glob("*.png")) and (words / "loss.png").exists()
    first = json.loads((words / "metrics.jsonl").read_text().splitlines()[0])["loss"]
    assert first == pytest.approx(math.log2(102), rel=0.5), "a network that knows nothing, in bits a word"


def test_text_is_counted_in_sequences(command: Command, words: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(plots, "loss_curve", lambda *given: called.append(given) or b"")
    trained = command("train", *NUMBERS, "train.images=16", "run_dir=run")
    assert trained.code == 0 and " 16 sequences (" in trained.out and "images" not in trained.out, trained.err
    assert called[-1][-2:] == ("loss, bits/word", "sequences")
    drawn = command("sample", f"ckpt={words}", "n=1", "out=o")
    assert ", 64 sequences seen" in drawn.out and "\n1 sequence in " in drawn.out
    assert " 64 sequences seen" in command("eval", f"ckpt={words}", "n=1", "metrics=bits", "out=e").out


def test_samples_are_written_and_the_first_are_read_out(command: Command, words: Path) -> None:
    done = command("sample", f"ckpt={words}", "n=12", "out=o")
    assert done.code == 0, done.err
    lines = Path("o/samples.txt").read_text().split("\n")[:-1]
    assert len(lines) == 12 and all(line in done.out for line in lines[:10])
    assert "sequences  12 of 7 words" in done.out
    saved = np.load("o/samples.npz")
    assert saved["arr_0"].shape == (12, 7) and saved["arr_0"].dtype == np.int64
    symbols = [unescaped(str(symbol)) for symbol in saved["symbols"]]
    first = [symbols[i] for i in saved["arr_0"][0]]
    while first and first[-1] == "":
        first.pop()
    assert " ".join(word or "\ufffd" for word in first) == lines[0]
    assert not Path("o/grid.png").exists()
    again = command("sample", f"ckpt={words}", "n=12", "out=o")
    assert again.code == 2 and "already holds samples.txt" in again.err


@pytest.mark.parametrize(("task", "file"), [("generate", "samples.npz"), ("trajectory", "trajectory.txt")])
def test_no_file_is_overwritten_unasked(command: Command, words: Path, task: str, file: str) -> None:
    """Each that would be written is asked for by itself: others in its folder may have been taken away."""
    Path("o").mkdir()
    Path("o", file).write_text("mine")
    draw = ("sample", f"ckpt={words}", "n=1", f"task={task}", "sampler.steps=2", "out=o")
    done = command(*draw)
    assert done.code == 2 and f"already holds {file}" in done.err
    assert [path.name for path in Path("o").iterdir()] == [file] and Path("o", file).read_text() == "mine"
    done = command(*draw, "overwrite=true")
    assert done.code == 0 and Path("o", file).read_bytes() != b"mine", done.err


def test_no_film_is_overwritten_unasked(command: Command, pictures: Path) -> None:
    Path("o").mkdir()
    Path("o/trajectory.gif").write_text("mine")
    done = command("sample", f"ckpt={pictures}", "n=1", "task=trajectory", "out=o")
    assert done.code == 2 and "already holds trajectory.gif" in done.err
    assert Path("o/trajectory.gif").read_text() == "mine" and not Path("o/grid.png").exists()


@pytest.mark.parametrize("sampler", ["unmask", "remask", "first_hitting", "confidence"])
def test_a_line_depends_on_its_seed_and_number_alone(command: Command, words: Path, sampler: str) -> None:
    found = []
    for n, batch in ((6, 6), (6, 4), (3, 1)):
        out = f"o{n}{batch}"
        done = command("sample", f"ckpt={words}", f"n={n}", f"batch_size={batch}", f"sampler={sampler}", f"out={out}")
        assert done.code == 0, done.err
        found.append(Path(out, "samples.txt").read_text().splitlines())
    assert found[0] == found[1] and found[0][:3] == found[2]
    assert len(set(found[0])) > 1


def test_what_is_given_stays_and_what_follows_is_free(command: Command, words: Path) -> None:
    gaps = "task.text='twelve _ three _'"
    done = command("sample", f"ckpt={words}", "n=5", "task=infill", gaps, "out=o")
    assert done.code == 0, done.err
    assert " (as it stands, no file), mark" in done.out
    for ids in np.load("o/samples.npz")["arr_0"]:
        assert (ids[0], ids[2]) == tuple(np.load("o/samples.npz")["arr_0"][0][[0, 2]])
    assert all(line.startswith("twelve ") for line in Path("o/samples.txt").read_text().splitlines())
    Path("gap.txt").write_text("# hundred\n")
    done = command("sample", f"ckpt={words}", "n=2", "task=infill", "task.text=gap.txt", "task.mark='#'", "out=o2")
    assert done.code == 0, done.err
    assert "infill, text of the file gap.txt, mark #\n" in done.out
    assert all(line.split()[1] == "hundred" for line in Path("o2/samples.txt").read_text().splitlines())


def test_a_tilde_is_a_mark_as_any_other(command: Command, words: Path) -> None:
    """And no folder, as it is in settings that are paths."""
    done = command("sample", f"ckpt={words}", "n=3", "task=infill", "task.text='~ hundred'", "task.mark='~'", "out=o")
    assert done.code == 0, done.err
    assert all(line.split()[1] == "hundred" for line in Path("o/samples.txt").read_text().splitlines())


def test_the_way_is_shown_and_written(command: Command, words: Path) -> None:
    done = command("sample", f"ckpt={words}", "n=2", "task=trajectory", "task.frames=4", "out=o")
    assert done.code == 0, done.err
    ways = [way.split("\n") for way in Path("o/trajectory.txt").read_text().strip().split("\n\n")]
    assert [len(way) for way in ways] == [4, 4]
    for way, line in zip(ways, Path("o/samples.txt").read_text().splitlines(), strict=True):
        assert way[0] == " ".join("\u2591" * 7) and way[-1] == line
    assert all(line in done.out for line in ways[0])


def test_a_way_depends_on_its_seed_and_number_alone(command: Command, words: Path) -> None:
    """Of twelve steps to seven words some show none: the network is not asked then, unless for others of a batch."""
    ways = []
    for batch in (1, 4):
        task = ("task=trajectory", "task.frames=6", "sampler.steps=12", f"batch_size={batch}", f"out=o{batch}")
        assert command("sample", f"ckpt={words}", "n=4", *task).code == 0
        ways.append(Path(f"o{batch}/trajectory.txt").read_text())
    assert ways[0] == ways[1]


def test_bits_are_drawn_by_the_samplers_of_noise(command: Command) -> None:
    done = command("train", *NUMBERS, "method=bits", *ENDS, "sampler.steps=3", "run_dir=run")
    assert done.code == 0, done.err
    steps = "sampler.steps=3"
    for more in (["sampler=heun", steps], ["sampler=ancestral", steps], ["task=infill", "task.text='one _'"]):
        done = command("sample", "ckpt=run", "n=3", "out=o", "overwrite=true", *more)
        assert done.code == 0, done.err
        assert "codes that are no token's, and became the nearest: " in done.out
        assert len(Path("o/samples.txt").read_text().splitlines()) == 3
    assert all(line.startswith("one") for line in Path("o/samples.txt").read_text().splitlines())
    said = []
    for task in ("generate", "trajectory"):
        done = command("sample", "ckpt=run", "n=3", "batch_size=2", "out=o", "overwrite=true", steps, f"task={task}")
        said += [line for line in done.out.splitlines() if line.startswith("codes that are no token's")]
    assert len(said) == 2 and said[0] == said[1]


def test_codes_of_all_processes_are_counted() -> None:
    """Of three samples on two processes, whose last share is filled up with the last sample."""
    sampling: Any = SimpleNamespace(strays=[torch.tensor([[True, False], [False, False]])])
    order: Any = SimpleNamespace(sampling=sampling, settings=SimpleNamespace(n=3))
    other = torch.tensor([[True, True], [True, True]])
    two: Any = SimpleNamespace(num_processes=2, device="cpu", gather=lambda mine: torch.cat([mine, other]))
    assert _strays(order, two) == 3 / 6
    sampling.strays = [torch.zeros(2, 0, dtype=torch.bool)]
    assert _strays(order, two) is None


def test_pictures_are_unmasked_level_by_level(command: Command, pictures: Path) -> None:
    for n, batch in ((4, 4), (4, 3)):
        done = command(
            "sample", f"ckpt={pictures}", f"n={n}", f"batch_size={batch}", "guidance=2", "save=[npz]", f"out=o{batch}"
        )
        assert done.code == 0, done.err
    drawn = np.load("o4/samples.npz")["arr_0"]
    assert drawn.shape == (4, 8, 8, 1) and drawn.dtype == np.uint8
    assert set(np.unique(drawn)) <= {round(k * 255 / 16) for k in range(17)}
    assert np.array_equal(drawn, np.load("o3/samples.npz")["arr_0"]) and Path("o4/grid.png").exists()


REFUSED = {
    "task=inpaint": "task=inpaint is for pictures, and this model makes sequences: task=infill fills in text",
    "task=img2img": "task=img2img is for pictures",
    "task=interpolate task.seeds=[1,2]": "task=interpolate needs a path of Gaussian noise, and this model makes sequences",
    "task=infill": "text is missing: task.text=",
    "task=infill task.text=elephant": "text has 'elephant', which is no word",
    "task=infill task.text='one two three four five six seven eight'": "text has 8 words, and this model makes 7",
    "sampler=heun": "sampler.name='heun' is unknown; choose one of [confidence, first_hitting, remask, unmask]",
    "guidance=2": "guidance=2.0 needs labels or guide=CKPT, and these sequences have no label",
    "guidance_rescale=0.5": "guidance_rescale are for Gaussian noise",
    "guidance_interval=[1,2]": "guidance_interval and guidance_rescale are for Gaussian noise",
    "save=[png]": "save='png' is unknown",
    "sampler.grid=cosine": "sampler.grid is a setting of [remask, unmask] alone; to change more of a sampler, "
    "name it too",
    "sampler.steps=0": "sampler.steps=0 must be in",
}


@pytest.mark.parametrize("settings", REFUSED)
def test_what_text_cannot_do_is_one_sentence(command: Command, words: Path, settings: str) -> None:
    first, _, rest = settings.partition(" ")
    done = command("sample", f"ckpt={words}", "n=2", "out=o", first, *([rest] if rest else []))
    assert done.code == 2 and REFUSED[settings] in done.err, done.err
    assert len(done.err.strip().splitlines()) == 1 and not Path("o").exists()


def test_text_is_not_filled_into_pictures(command: Command, pictures: Path) -> None:
    done = command("sample", f"ckpt={pictures}", "n=2", "out=o", "task=infill", "task.text=a_c")
    told = "error: task=infill is for text, and this model makes images: task=inpaint fills in pictures\n"
    assert (done.code, done.err) == (2, told) and not Path("o").exists()


NOT_TRAINED = {
    "schedule=ve": "objective=unmask needs a schedule that hides every token, and at t_max=80",
    "schedule=vp_linear": "needs a schedule that hides every token",
    "schedule.t_max=0.9": "at t_max=0.9 this one shows alpha=0.1",
    "weighting=snr": "weighting=unit",
    "time=logit_normal": "time=uniform",
    "model=unet_tiny": "takes pictures [C, H, W] and clips, and the data is 104x7",
    "train.augment=0.1": "train.augment=0.1 is for pictures",
    "train.horizontal_flip=true": "train.horizontal_flip=true is for pictures",
    "train.eval_every=100": "train.eval_every is for pictures",
    "objective.levels=1": "objective.levels=1 must be in [2, 256]",
    "parameterization=eps": "parameterization=eps is of Gaussian noise",
    "sampler=heun": "sampler.name='heun' is unknown",
}


@pytest.mark.parametrize("setting", NOT_TRAINED)
def test_what_does_not_go_with_text_is_told_before_training(command: Command, setting: str) -> None:
    small = [] if setting.startswith("model=") else SMALL
    done = command("train", "dataset=numbers", "dataset.n=500", *small, setting, "run_dir=run")
    assert done.code == 2 and NOT_TRAINED[setting] in done.err, done.err
    assert len(done.err.strip().splitlines()) == 1 and not Path("run").exists()


def test_a_tokenizer_lives_in_the_checkpoint(command: Command) -> None:
    from tokenizers import Tokenizer, decoders, models

    made = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "\n": 3, "é": 4}, [("a", "b")]))
    made.decoder = decoders.Fuse()
    made.save("tokenizer.json")
    Path("a.txt").write_text("abbaé\n" * 200)
    told = ["dataset=text", "dataset.path=a.txt", "dataset.tokenizer=tokenizer.json", "dataset.length=8"]
    done = command("train", *told, *SMALL, *ENDS, "run_dir=run")
    assert done.code == 0, done.err
    Path("tokenizer.json").unlink()
    done = command("sample", "ckpt=run", "n=3", "out=o", "task=infill", "task.text='abbaé_'")
    assert done.code == 0, done.err
    assert all(line.startswith("abbaé") for line in Path("o/samples.txt").read_text().splitlines())
    assert [*np.load("o/samples.npz")["symbols"]] == ["a", "b", "ab", "\\n", "é"]
    done = command("sample", "ckpt=run", "n=3", "out=o2", "task=infill", "task.text='abc_'")
    assert done.code == 2 and "task.text has 'c', which is not given back by this model's tokenizer" in done.err


def test_vectors_cannot_be_masked(command: Command) -> None:
    done = command("train", "dataset=points", "method=masked", "run_dir=run")
    assert done.code == 2 and "objective=unmask is for tokens and pictures, and the data is vectors" in done.err


@pytest.mark.parametrize("method", ["masked", "bits"])
def test_two_halves_of_a_batch_are_the_whole(method: str) -> None:
    """What two processes learn from, and the gradient of it: each draws for the whole batch and takes its share."""
    config = conftest.compose_config("train", [*NUMBERS, f"method={method}"])
    splits = make_splits(config)
    config |= {"data": data_config(splits.train, [], 0)}
    torch.manual_seed(0)
    network = make_model(config)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.1)
    learning = make_trained(config, network)
    settings = section(config, "train")
    (stored,) = splits.train.batches(iter([torch.arange(16)]), torch.device("cpu"))

    def gradient(*shares: slice) -> tuple[float, torch.Tensor]:
        network.zero_grad()
        total = 0.0
        for share in shares:
            feed = Feed(
                settings,
                splits.train,
                learning.denoiser.schedule,
                uniform,
                learning.objective,
                learning.noise_size,
                share,
            )
            batch = feed.batch(3, type(stored)(stored.examples[share], stored.labels[share]))
            loss = learning.objective.loss(learning.denoiser, unit, batch).sum() / 16
            loss.backward()
            total += loss.item()
        return total, torch.cat([w.grad.flatten() for w in network.parameters() if w.grad is not None])

    whole, halves = gradient(slice(0, 16)), gradient(slice(0, 8), slice(8, 16))
    assert whole[0] == pytest.approx(halves[0], rel=1e-5) and whole[0] > 0
    torch.testing.assert_close(whole[1], halves[1], rtol=1e-4, atol=1e-6)


def test_text_in_python(words: Path, pictures: Path) -> None:
    run = diffgen.load(words)
    tokens = run.sample(3, seed=1, sampler="unmask", steps=4)
    assert tokens.shape == (3, 7) and tokens.dtype == torch.int64
    lines = run.text(tokens)
    assert len(lines) == 3 and all(isinstance(line, str) for line in lines)
    ways = run.sample(2, task="trajectory", frames=3)
    assert ways.shape == (2, 3, 7) and run.text(ways[0])[0] == " ".join("\u2591" * 7)
    for wrong in (tokens[0], tokens.float(), ways, tokens.tolist(), tokens + 1000, -tokens - 2):
        with pytest.raises(UsageError, match="tokens"):
            run.text(wrong)
    with pytest.raises(UsageError, match="which no picture shows"):
        run.grid(tokens)
    with pytest.raises(UsageError, match="unmasks tokens"):
        run.denoise(torch.zeros(1, 7), 0.5)
    with pytest.raises(UsageError, match="which are no text"):
        diffgen.load(pictures).text(torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("form", ["diffusers", "onnx", "torch"])
def test_what_no_export_holds_is_said(command: Command, words: Path, form: str) -> None:
    done = command("export", f"ckpt={words}", f"format={form}", "to=o")
    assert done.code == 2 and "this model unmasks tokens" in done.err and len(done.err.splitlines()) == 1
    assert not Path("o").exists()


@pytest.mark.parametrize("model", ["mlp", "unet_tiny"])
def test_bits_want_a_network_that_sees_its_estimate(command: Command, model: str) -> None:
    done = command("train", "dataset=numbers", "method=bits", f"model={model}", "run_dir=run")
    assert done.code == 2 and "method=bits needs a network that sees its own estimate: model=dit_tiny" in done.err
    assert len(done.err.splitlines()) == 1
