"""Tables: only a name and exactly the right keywords make an object, and configs and signatures agree."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import pytest
import torch
from omegaconf import OmegaConf

from diffgen.build import make_denoiser, make_model
from diffgen.cli import plugins
from diffgen.cli.configs import config_dir
from diffgen.core.errors import UsageError
from diffgen.core.registry import Table, bind, build, conform, convert, parameters
from diffgen.core.settings import SECTIONS, section
from diffgen.data.opening import dataset_settings
from diffgen.diffusion.samplers.mean_flow import JUMPERS
from diffgen.diffusion.samplers.prior import PRIORS
from diffgen.diffusion.samplers.unmasking import UNMASKERS
from diffgen.nets import DataShape
from diffgen.sampling.walk import OF_WALK, sampler_settings
from diffgen.tables import ALL, TABLES, table_of

Compose = Callable[..., dict[str, Any]]


def make_table() -> Table:
    table = Table("shape")

    @table.register("circle")
    def circle(canvas: str, *, radius: float) -> tuple[str, float]:
        if radius < 0:
            raise UsageError(f"radius={radius} must not be negative")
        return canvas, radius

    @table.register("square")
    class Square:
        def __init__(self, *, side: int) -> None:
            self.side = side

    return table


def yaml_files(group: str) -> dict[str, dict[str, Any]]:
    """Choices of a group with their own keys, without the defaults list."""
    files = {}
    for path in sorted((config_dir() / group).glob("*.yaml")):
        config = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(config, dict)
        config.pop("defaults", None)
        files[path.stem] = {str(key): value for key, value in config.items()}
    return files


YAML = [(group, name) for group in TABLES for name in yaml_files(group)]


def test_functions_and_classes_are_built_by_name() -> None:
    table = make_table()
    assert build(table, {"name": "circle", "radius": 2}, "canvas") == ("canvas", 2.0)
    assert build(table, {"name": "square", "side": 3.0}).side == 3
    assert parameters(table["circle"]) == {"radius": float}


def test_a_name_is_registered_once() -> None:
    with pytest.raises(UsageError, match="shape='circle' is registered twice"):
        make_table().register("circle")(lambda: None)


def test_a_row_says_what_tests_and_plots_need_of_it() -> None:
    class Facts(NamedTuple):
        corners: int = 0

    table = Table("shape", Facts)
    table.register("square", corners=4)(lambda: None)
    table.register("circle")(lambda: None)
    assert [table.facts[name].corners for name in table] == [4, 0]
    with pytest.raises(UsageError, match=r"fact='corner' is unknown; choose one of \[corners\] \(did you mean"):
        table.register("triangle", corner=3)
    with pytest.raises(UsageError, match="shape='line': fact='corners' is unknown"):
        make_table().register("line", corners=2)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"name": "circel", "radius": 1.0}, "shape.name='circel' is unknown; choose one of [circle, square] (did you mean 'circle'?)"),
        ({"name": "zzz"}, "shape.name='zzz' is unknown; choose one of [circle, square]"),
        ({"name": "circle"}, "shape.radius is missing"),
        ({"name": "circle", "radius": 1.0, "side": 2}, "shape.side is not a setting here; its settings are [radius]"),
        ({"name": "circle", "radius": "big"}, "shape.radius='big' must be a number"),
        ({"name": "square", "side": 1.5}, "shape.side=1.5 must be a whole number"),
        ({"name": "circle", "radius": -1.0}, "shape.radius=-1.0 must not be negative"),
        ({"radius": 1.0}, "shape must be a mapping with a name; choose one of [circle, square]"),
        ({"name": 3}, "shape must be a mapping with a name; choose one of [circle, square]"),
        ("circle", "shape must be a mapping with a name; choose one of [circle, square]"),
        (None, "shape must be a mapping with a name; choose one of [circle, square]"),
    ],
)  # fmt: skip
def test_wrong_configs_are_told_in_one_sentence(config: object, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        build(make_table(), config, "canvas")
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("hint", "value", "converted"),
    [
        (int, 3, 3),
        (int, 1e6, 1_000_000),
        (float, 3, 3.0),
        (float, 0.5, 0.5),
        (bool, True, True),
        (str, "x", "x"),
        (tuple[int, ...], [1, 2.0], (1, 2)),
        (tuple[int, ...], [], ()),
        (int | None, None, None),
        (int | Literal["auto"], "auto", "auto"),
        (int | tuple[int, ...], [2, 3], (2, 3)),
        (Literal["a", "b"], "b", "b"),
        (Any, {"x": 1}, {"x": 1}),
    ],
)
def test_values_are_converted_to_their_type(hint: Any, value: object, converted: object) -> None:
    result = convert("key", value, hint)
    assert result == converted
    assert type(result) is type(converted)


@pytest.mark.parametrize(
    ("hint", "value", "words"),
    [
        (int, 1.5, "a whole number"),
        (int, True, "a whole number"),
        (int, "3", "a whole number"),
        (int, None, "a whole number"),
        (int, float("inf"), "a whole number"),
        (float, True, "a number"),
        (float, "nan", "a number"),
        (float, float("nan"), "a finite number"),
        (float, float("inf"), "a finite number"),
        (bool, 1, "true or false"),
        (bool, "yes", "true or false"),
        (str, 3.5, "text"),
        (tuple[int, ...], 3, "a list (whole number each)"),
        (tuple[int, ...], "12", "a list (whole number each)"),
        (tuple[int, ...], [1, "x"], "a whole number"),
        (int | None, "x", "a whole number or null"),
        (int | Literal["auto"], "best", "a whole number or one of [auto]"),
        (Literal["a", "b"], "c", "choose one of [a, b]"),
    ],
)
def test_values_of_another_type_are_refused(hint: Any, value: object, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        convert("group.key", value, hint)
    assert str(caught.value).startswith("group.key")
    assert words in str(caught.value)


def test_conform_wants_all_keys_and_no_others() -> None:
    hints = {"a": int, "b": float}
    assert conform("x", hints, {"a": 1, "b": 2}) == {"a": 1, "b": 2.0}
    with pytest.raises(UsageError, match="x.b is missing"):
        conform("x", hints, {"a": 1})
    with pytest.raises(UsageError, match=r"x.c is not a setting here; its settings are \[a, b\]"):
        conform("x", hints, {"a": 1, "b": 2, "c": 3})


@pytest.mark.parametrize(("group", "name"), YAML)
def test_yaml_keys_are_the_keyword_only_parameters(group: str, name: str) -> None:
    config = yaml_files(group)[name]
    if (group, config["name"]) == ("sampler", "auto"):
        assert set(config) == {"name", *OF_WALK}
        assert all(value is None for key, value in config.items() if key != "name")
        return
    table = table_of(group, config["name"])
    own = parameters(table[config["name"]])
    assert set(config) == {"name", *own, *plugins.shared_keys(table, own)}


CHOSEN = [group for group in TABLES if group != "kind"]
"""What a command line chooses from; a kind comes with its data set."""


@pytest.mark.parametrize("group", CHOSEN)
def test_every_row_has_a_yaml_and_every_yaml_a_row(group: str) -> None:
    named = {config["name"] for config in yaml_files(group).values()} - ({"auto"} if group == "sampler" else set())
    rows = [row for table in ALL if table.group == group for row in table]
    assert sorted(named) == sorted(rows)


@pytest.mark.parametrize("group", [g for g in TABLES if g not in ("model", "optimizer", "time")])
def test_a_yaml_is_named_after_its_row(group: str) -> None:
    """Those of networks, optimizers and times may be settings of one row."""
    assert all(name == config["name"] for name, config in yaml_files(group).items())


@pytest.mark.parametrize("group", CHOSEN)
def test_every_number_stands_in_yaml_and_none_in_a_signature(group: str) -> None:
    import inspect

    for row in (row for table in ALL if table.group == group for row in table.values()):
        for parameter in inspect.signature(row).parameters.values():
            assert parameter.default is parameter.empty, f"{row} gives {parameter} a default"


def build_row(group: str, config: Mapping[str, Any]) -> object:
    """Build a row with small runtime objects; datasets other than the embedded one are only bound."""
    runtime: dict[str, tuple[object, ...]] = {
        "model": (DataShape((3, 32, 32), 10),),
        "optimizer": ([("model.blocks.0.layer.weight", torch.zeros(2, 2)), ("model.head.bias", torch.zeros(2))],),
        "schedule": (),
    }
    if (table := table_of(group, config["name"])) in (UNMASKERS, PRIORS):
        return bind(table, config)
    if group == "sampler":
        own, grid, rest = sampler_settings(config)
        assert grid["steps"] >= 1
        assert rest["clip"] in (True, False, "auto")
        return bind(JUMPERS if table is JUMPERS else TABLES[group], own)
    if group == "dataset":
        return bind(TABLES[group], dataset_settings(config)[0])
    if group in runtime:
        with torch.device("meta") if group == "model" else torch.device("cpu"):
            return build(TABLES[group], config, *runtime[group])
    return bind(TABLES[group], config)


@pytest.mark.parametrize(("group", "name"), [pair for pair in YAML if pair != ("sampler", "auto")])
def test_every_yaml_builds(group: str, name: str) -> None:
    assert build_row(group, yaml_files(group)[name]) is not None


def combinations() -> list[list[str]]:
    """Each choice of each group, on the data set that is embedded, and each experiment and method by itself."""
    choices = []
    for folder in sorted(
        p for p in config_dir().iterdir() if p.is_dir() and p.name not in ("recipe", "task", "tune", "extractor")
    ):
        choices += [[f"{folder.name}={p.stem}"] for p in sorted(folder.glob("*.yaml"))]
    return [choice for choice in choices if choice != ["sampler=auto"]]


NEEDED = {
    "method=bits": ["model=dit_tiny"],
    "method=vae": ["model=vae_tiny"],
    "method=fsq": ["model=vae_tiny"],
    "experiment=folder256_latent": ["latent.path=A"],
}
"""What a choice brings by the command line, or leaves to be given."""


@pytest.mark.parametrize("overrides", combinations(), ids=lambda o: o[0])
def test_every_choice_composes_to_a_complete_run(compose: Compose, overrides: list[str]) -> None:
    config = compose("train", *overrides, *NEEDED.get(overrides[0], []))
    for name in SECTIONS:
        section(config, name)
    for group in (group for group in CHOSEN if group in config):
        rows = config[group].values() if group == "logger" else [config[group]] if group != "task" else []
        for row in rows:  # of loggers there may be several; a task is of diffgen-sample
            build_row(group, row)
    config["data"] = {
        "kind": {"name": "pixels", "background": "white", "range": None},
        "size": [1, 32, 32],
        "num_classes": 2,
        "augment_labels": 0,
        "classes": ["a", "b"],
    }
    with torch.device("meta"):
        model = make_model(config)
    try:
        make_denoiser(config, model)
    except UsageError as refusal:  # some do not fit the default method alone, and say so
        assert re.search("scale_input=true|is singular", str(refusal))
        assert overrides[0].split("=")[0] in ("schedule", "parameterization")


def test_data_sets_bring_their_recipes_and_everything_stays_overridable(compose: Compose) -> None:
    picked = {name: compose("train", f"dataset={name}") for name in ("digits", "mnist", "cifar10")}
    assert {n: (c["model"]["channels"], c["method"]) for n, c in picked.items()} == {
        "digits": (16, "flow"), "mnist": (32, "flow"), "cifar10": (128, "edm"),
    }  # fmt: skip
    config = compose(
        "train", "dataset=cifar10", "method=ddpm", "model=unet_tiny", "optimizer=adamw", "sampler=ddim",
        "train.batch_size=7", "denoiser.sigma_data=0.25", "weighting=min_snr", "ema.halflife=5", "lr_schedule.flat=0.1",
    )  # fmt: skip
    names = {part: config[part]["name"] for part in ("schedule", "sampler", "weighting", "optimizer", "time")}
    assert names == {
        "schedule": "ddpm_linear", "sampler": "ddim", "weighting": "min_snr", "optimizer": "adamw", "time": "uniform",
    }  # fmt: skip
    assert (config["train"]["batch_size"], config["denoiser"]["sigma_data"], config["ema"]["halflife"]) == (
        7,
        0.25,
        5,
    )
    assert config["model"]["channels"] == 16


def test_the_defaults_file_names_every_group(compose: Compose) -> None:
    """A new folder of configs must appear in `train.yaml`, or nobody could choose from it."""
    folders = {p.name for p in Path(config_dir()).iterdir() if p.is_dir()}
    text = "".join((config_dir() / f"{name}.yaml").read_text() for name in ("train", "sample", "eval", "tune"))
    assert all(f"- {folder}:" in text for folder in folders - {"recipe"})
