"""What the tests share: composed configs, commands run in this process, and one tiny trained run."""

import copy
import gc
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import pytest
import torch
from hydra._internal.hydra import Hydra
from hydra.core.config_store import ConfigStore
from hypothesis import settings
from omegaconf import OmegaConf

from diffgen.cli import configs

torch.set_num_threads(1)  # tiny networks are faster on one thread

# the same examples each time: a change is never refused by another's luck (--hypothesis-profile=default searches on)
settings.register_profile("repeatable", derandomize=True, database=None)
settings.load_profile("repeatable")

ROOT = Path(__file__).parents[1]

TINY = [
    "dataset=digits",
    "model.channels=8",
    "model.channel_mult=[1]",
    "model.attention_resolutions=[]",
    "sampler.steps=4",
    "preview.n=2",
    "train.images=128",
    "train.batch_size=16",
    "train.log_every=16",
    "train.checkpoint_every=64",
    "train.preview_every=128",
    "lr_schedule.warmup=32",
]
"""Eight steps of a network that trains in a tenth of a second."""


def compose_config(name: str, overrides: list[str]) -> dict[str, Any]:
    """A top-level config with overrides, resolved to plain data, as a command would hand it on."""
    with hydra.initialize_config_dir(str(configs.config_dir()), version_base="1.3"):
        config = OmegaConf.to_container(hydra.compose(name, overrides), resolve=True)
    assert isinstance(config, dict)
    return {str(key): value for key, value in config.items()}


@pytest.fixture(scope="module", autouse=True)
def _few_objects_to_collect() -> None:
    """A run collects garbage at its end; what was imported by then need not be looked at each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _all_objects_to_collect_at_the_end() -> Iterator[None]:
    """Libraries count what is left when Python ends."""
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is read from or left in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _composed_once() -> Iterator[None]:
    """A command composes three configs: to run, to see whether `hydra.mode` makes it a sweep, and the plain defaults.

    Of the last two, no test sets `hydra.mode`, and the same defaults serve all tests. Real processes do without this.
    """
    composed, known = configs.composed, dict[tuple[str, ...], Any]()

    def once(name: str, overrides: list[str]) -> Any:
        key = (name, str(configs.PLUGGED), *overrides)
        if key not in known:
            known[key] = composed(name, overrides)
        return copy.deepcopy(known[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(configs, "composed", once)
        patch.setattr(Hydra, "get_mode", lambda *given, **settings: None)
        yield


@pytest.fixture(scope="session")
def compose() -> Callable[..., dict[str, Any]]:
    """`compose("train", "method=edm", ...)` -> plain config."""
    return lambda name, *overrides: compose_config(name, list(overrides))


@pytest.fixture(scope="session")
def tiny() -> list[str]:
    """Overrides of a tiny run."""
    return list(TINY)


@pytest.fixture(scope="session")
def fit() -> Callable[..., Path]:
    """`fit(run_dir, "method=edm", ...)` trains a tiny run in this process and returns its directory."""
    from diffgen.training.trainer import train

    def run(run_dir: Path, *overrides: str) -> Path:
        config = compose_config("train", [*TINY, *overrides])
        config["run_dir"] = str(run_dir)
        train(config, OmegaConf.to_yaml(OmegaConf.create(config)), "unused")
        return run_dir

    return run


@pytest.fixture(scope="session")
def tiny_run(fit: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a tiny class-conditional run. Read only."""
    return fit(tmp_path_factory.mktemp("runs") / "tiny")


@pytest.fixture(scope="session")
def tiny_model(tiny_run: Path) -> Path:
    """The newest `model.safetensors` of the tiny run. Read only."""
    return max(tiny_run.glob("checkpoints/*/model.safetensors"))


@dataclass
class Answer:
    """What a command said."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(
    plugged: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Answer]:
    """`command("train", "dataset=digits")` runs a command in this process from an empty folder; plugins do not stay."""
    from diffgen.cli import eval as evaluation
    from diffgen.cli import export, sample, train, tune

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    programs = {"train": train, "sample": sample, "eval": evaluation, "export": export, "tune": tune}

    def run(name: str, *arguments: str) -> Answer:
        monkeypatch.setattr(sys, "argv", [f"diffgen-{name}", *arguments])
        capsys.readouterr()
        code = programs[name].main()
        said = capsys.readouterr()
        return Answer(code, said.out, said.err)

    return run


@pytest.fixture
def python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`python("-m", "diffgen.cli.train", ...)` runs a fresh interpreter from an empty folder."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str, cwd: Path = tmp_path) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=200)

    return run


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics file."""
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def metrics() -> Callable[[Path], list[dict[str, Any]]]:
    """`metrics(run_dir)` -> rows of its log."""
    return read_rows


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """What plugins add in this process is taken away again after the test."""
    from diffgen.cli import configs
    from diffgen.tables import ALL

    before = [dict(table) for table in ALL]
    monkeypatch.setattr(sys, "path", list(sys.path))
    modules = set(sys.modules)
    yield
    for table, rows in zip(ALL, before, strict=True):
        for row in table.keys() - rows:
            ConfigStore.instance().repo.get(table.group, {}).pop(f"{row}.yaml", None)
        table.clear()
        table.update(rows)
    configs.PLUGGED.clear()
    for name in set(sys.modules) - modules:
        file = getattr(sys.modules[name], "__file__", None) or ""
        if name.startswith("diffgen_plugin_") or Path(file).is_relative_to(tmp_path):
            del sys.modules[name]
