"""Pairs of noise and what a sampler made of it: written, learned from, and what does not go with them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import part
from conftest import compose_config
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from diffgen.build import make_splits, restore
from diffgen.core.errors import DataError
from diffgen.core.registry import bind
from diffgen.core.settings import section
from diffgen.data.images import to_uint8
from diffgen.diffusion.guidance import Guidance
from diffgen.diffusion.schedules import SCHEDULES
from diffgen.diffusion.times import TIMES
from diffgen.objectives import Denoise
from diffgen.sampling.drawing import Sampling
from diffgen.storage import checkpoint
from diffgen.training.feed import Feed

Fit = Callable[..., Path]
SMALL = ["train.images=64", "train.batch_size=16", "train.log_every=16", "train.checkpoint_every=32", "preview.n=2"]
DRAWN = 20


@pytest.fixture(scope="module")
def file(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pairs that the tiny run has made. Read only."""
    from diffgen.cli.compose import sample_config
    from diffgen.cli.sample import check
    from diffgen.sampling.generate import generate

    out = tmp_path_factory.mktemp("pairs") / "P"
    config = sample_config({"n": DRAWN, "guidance": 1.0}) | {
        "ckpt": str(tiny_run),
        "save": ["pairs", "npz"],
        "out": str(out),
    }
    generate(check(config), config["sampler"], config["task"], out)
    return out / "pairs.safetensors"


def source(file: Path, *more: str) -> Any:
    return make_splits(compose_config("train", ["dataset=pairs", f"dataset.path={file}", *more]))


def test_a_pair_is_what_the_sampler_makes_of_the_noise(file: Path, tiny_run: Path) -> None:
    saved, held = checkpoint.load(tiny_run), load_file(file)
    assert held["x0"].shape == held["z"].shape == (DRAWN, 1, 8, 8) and held["x0"].dtype == torch.float32
    sampling = Sampling.from_config(
        restore(saved), saved.config["sampler"], guidance=Guidance(scale=1.0), seed=0, device=torch.device("cpu")
    )
    assert torch.equal(held["z"], sampling.noise(list(range(DRAWN)), 0))
    again = sampling.draw(list(range(DRAWN)), held["labels"].tolist())
    torch.testing.assert_close(held["x0"], again, rtol=1e-4, atol=1e-5)
    assert not torch.equal(held["x0"], held["x0"].mul(127.5).round() / 127.5), "as drawn, and not rounded to pixels"
    with safe_open(file, "pt") as opened:
        said = json.loads(opened.metadata()["pairs"])
    assert said["schedule"] == saved.config["schedule"] and said["kind"]["name"] == "pixels"
    assert said["classes"] == list("0123456789") and said["sampler"].startswith("heun")


def test_each_example_is_fed_with_its_own_noise(file: Path) -> None:
    config = compose_config("train", ["dataset=pairs", f"dataset.path={file}", "train.batch_size=8"])
    train, held = make_splits(config).train, load_file(file)
    feed = Feed(
        section(config, "train"), train, part(SCHEDULES, "rectified_flow"), bind(TIMES, config["time"]), Denoise(), (1, 8, 8),
        slice(0, 8),
    )  # fmt: skip
    entries = feed.entries(len(train), 0)
    chosen = next(entries)
    batch = feed.batch(0, next(train.batches(iter([chosen]), torch.device("cpu"))))
    assert torch.equal(batch.x0, held["x0"][chosen]) and torch.equal(batch.z, held["z"][chosen])


def test_a_share_is_held_out_pair_by_pair(file: Path) -> None:
    splits = source(file, "dataset.held_out=0.25")
    assert len(splits.train) == 15 and splits.test is not None and len(splits.test) == 5
    held = load_file(file)
    stored = next(splits.test.batches(iter([torch.arange(5)]), torch.device("cpu")))
    places = [int((held["x0"] == x0).flatten(1).all(1).nonzero()) for x0 in splits.test.x0(stored.examples, None)]
    assert torch.equal(splits.test.z(stored.examples), held["z"][places])


def test_reflow_learns_from_them_and_goes_on_to_the_last_byte(
    command: Any, file: Path, tiny_run: Path, tmp_path: Path
) -> None:
    settings = ["method=reflow", "dataset=pairs", f"dataset.path={file}", f"train.init={tiny_run}", *SMALL]
    done = command("train", *settings, "run_dir=whole")
    assert done.code == 0, done.err
    now, then = checkpoint.load(tmp_path / "whole").config, checkpoint.load(tiny_run).config
    assert now["model"] == then["model"] and now["sampler"]["name"] == "euler"
    assert "made by heun" in " ".join(done.out.split())
    shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "checkpoints" / "00000064")
    assert command("train", *settings, "run_dir=half").code == 0
    for name in ("model.safetensors", "state.safetensors"):
        a, b = (load_file(tmp_path / run / "checkpoints" / "00000064" / name) for run in ("whole", "half"))
        assert all(torch.equal(a[key], b[key]) for key in a)
    drawn = command("sample", "ckpt=whole", "n=4", "out=out", "sampler.steps=1")
    assert drawn.code == 0 and "NFE 1" in drawn.out


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["sampler=ancestral"], "save=[pairs] keeps the noise of the start, and this sampler adds more"),
        (["sampler=ddim", "sampler.eta=1"], "this sampler adds more"),
        (["sampler=heun", "sampler.s_churn=10"], "this sampler adds more"),
        (["task=trajectory"], "save=[pairs] keeps what noise alone becomes: task=generate, and not task=trajectory"),
    ],
)
def test_what_is_no_function_of_its_noise_is_refused(
    command: Any, tiny_run: Path, settings: list[str], said: str, tmp_path: Path
) -> None:
    refused = command("sample", f"ckpt={tiny_run}", "save=[pairs]", "out=out", "n=4", *settings)
    assert refused.code == 2 and said in refused.err
    assert not (tmp_path / "out").exists()


def test_pairs_that_are_there_are_kept(command: Any, tiny_run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "pairs.safetensors").write_text("mine")
    refused = command("sample", f"ckpt={tiny_run}", "save=[pairs]", "out=out", "n=4")
    assert refused.code == 2 and "already holds pairs.safetensors" in refused.err


def test_tokens_and_autoencoders_make_no_pairs(command: Any, tmp_path: Path) -> None:
    for method, more in (("masked", ["dataset=numbers"]), ("vae", ["dataset=digits"])):
        trained = command("train", f"method={method}", *more, "run_dir=" + method, *SMALL, "train.images=16")
        assert trained.code == 0, trained.err
        refused = command("sample", f"ckpt={method}", "save=[pairs]", "out=out", "n=4")
        assert refused.code == 2 and "save=[pairs] needs a way from Gaussian noise, and this model" in refused.err


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            "train.horizontal_flip=true",
            "train.horizontal_flip=true is for pictures as they are stored, and dataset=pairs",
        ),
        ("train.augment=0.1", "train.augment=0.1 is for pictures as they are stored"),
        ("train.eval_every=32", "train.eval_every=32 is for pictures as they are stored"),
        (
            "objective=unmask",
            "dataset=pairs holds real numbers and the noise that they were made of: objective=denoise",
        ),
    ],
)
def test_what_would_part_them_is_refused(command: Any, file: Path, setting: str, said: str, tmp_path: Path) -> None:
    refused = command("train", "dataset=pairs", f"dataset.path={file}", setting, "run_dir=run")
    assert refused.code == 2 and said in refused.err
    assert not (tmp_path / "run").exists()


def test_reflow_without_pairs_is_refused(command: Any, tiny_run: Path) -> None:
    refused = command("train", "dataset=digits", "method=reflow", f"train.init={tiny_run}", "run_dir=run")
    assert refused.code == 2 and "method=reflow learns from noise and what was made of it: dataset=pairs" in refused.err
    refused = command("train", "dataset=pairs", "method=reflow")
    assert refused.code == 2 and "method=reflow tunes a trained network: train.init=RUN says which" in refused.err
    refused = command("train", "dataset=pairs")
    assert refused.code == 2 and "path is missing: dataset.path=OUT/pairs.safetensors" in refused.err


def test_nothing_is_judged_by_pairs(command: Any, file: Path, tiny_run: Path) -> None:
    refused = command("eval", f"ckpt={tiny_run}", "dataset=pairs", f"dataset.path={file}", "n=16")
    assert (
        refused.code == 2
        and "dataset=pairs holds what a sampler made: name one of real examples to judge by" in refused.err
    )


def test_files_of_others_are_refused(file: Path, tiny_model: Path, tmp_path: Path) -> None:
    held = load_file(file)
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()

    def changed(metadata: dict[str, str] = metadata, **tensors: Any) -> Path:
        path = tmp_path / "changed.safetensors"
        save_file({name: tensor for name, tensor in {**held, **tensors}.items() if tensor is not None}, path, metadata)
        return path

    assert len(source(changed()).train) == DRAWN
    broken = held["z"].clone()
    broken[0] = torch.nan
    for path, said in (
        (tiny_model, "holds no pairs: diffgen-sample save=\\[pairs\\] writes them"),
        (tmp_path / "none", "cannot be read: No such file"),
        (changed(z=None), "must hold x0 and z, float32"),
        (changed(z=held["z"][:3]), "must hold x0 and z, float32"),
    ):
        with pytest.raises(DataError, match=said):
            source(path)
    for tensors, said in (
        ({"z": broken}, "not finite"),
        ({"labels": held["labels"] + 1}, "holds labels of other classes than it names"),
        ({"x0": held["x0"].flatten(1), "z": held["z"].flatten(1)}, "1 sides, and images have 3"),
    ):
        with pytest.raises(DataError, match=said):
            source(changed(**tensors))
    said = json.loads(metadata["pairs"])
    with pytest.raises(DataError, match="holds labels of other classes than it names"):
        source(changed({**metadata, "pairs": json.dumps({**said, "classes": []})}, labels=0 * held["labels"]))
    with pytest.raises(DataError, match="kind.name='nonsense' is unknown"):
        source(
            changed({**metadata, "pairs": json.dumps({"kind": {"name": "nonsense"}, "classes": list("0123456789")})})
        )


def test_rounding_is_what_pixels_would_lose(file: Path) -> None:
    """The pictures beside the pairs are theirs."""
    import numpy as np

    with np.load(file.parent / "samples.npz") as samples:
        pixels = torch.from_numpy(samples["arr_0"]).movedim(-1, 1)
    assert torch.equal(to_uint8(load_file(file)["x0"]), pixels)
