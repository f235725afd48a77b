"""What the pages say is there: files, links, names of the code, settings, choices and commands."""

import ast
import importlib
import inspect
import itertools
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from diffgen.cli import configs
from diffgen.core.errors import EXIT_CODES, TRAINING_CODES

ROOT = Path(__file__).parents[1]
CHINESE = sorted((ROOT / "docs" / "zh").glob("*.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), *CHINESE]

SOURCES = (".py", ".md", ".yaml", ".toml")
"""Endings of files that are named because they are in the repository; others are what a run writes."""

OUTPUTS = (".png", ".gif", ".npz", ".gz", ".json", ".jsonl", ".csv", ".txt", ".safetensors", ".onnx", ".pt2")

ELSEWHERE = {"train_unconditional.py", r"logger.csv.delimiter=\t"}
"""What is not here: a script of diffusers, a setting of an example."""

LIBRARIES = {"torch", "nn", "numpy", "hydra", "omegaconf", "safetensors", "accelerate"}

COMMANDS = ("train", "sample", "eval", "export", "tune")
PROGRAMS = tuple(f"diffgen-{name}" for name in COMMANDS)


def prose(page: Path) -> str:
    """A page without its blocks of code, fenced or indented."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return re.sub(r"^    .*$", "", text, flags=re.MULTILINE)


def spans(page: Path) -> list[str]:
    """What stands between backquotes, on one line."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(page))]


def is_placeholder(text: str) -> bool:
    """`<run>/status.json`, `train.resume=PATH`, `configs/GROUP/NAME.yaml`: a reader puts something in."""
    return bool(re.search(r"[<>*{}]|\.\.\.|\b[A-Z]{3,}\b", text))


@cache
def files() -> list[str]:
    """Paths in the repository."""
    folders = ("diffgen", "configs", "tests", "scripts", "docs", "benchmarks")
    return [str(p.relative_to(ROOT)) for f in folders for p in (ROOT / f).rglob("*")] + [p.name for p in ROOT.iterdir()]


def is_file(name: str) -> bool:
    """Whether a file or folder of the repository is called so; the folders above it may be left out."""
    name = name.rstrip("/")
    return any(f"/{path}".endswith(f"/{name}") for path in files())


# --- names of the code --------------------------------------------------------------------------------------


@cache
def modules() -> dict[str, Any]:
    """`diffgen.nets.ema` -> the module."""
    names = [p.relative_to(ROOT).with_suffix("").parts for p in (ROOT / "diffgen").rglob("*.py")]
    dotted = [".".join(parts).removesuffix(".__init__") for parts in names]
    return {name: importlib.import_module(name) for name in dotted}


def has(thing: Any, parts: list[str]) -> bool:
    """Whether attributes, or fields that a class declares or its methods set, lead on."""
    if not parts:
        return True
    if hasattr(thing, parts[0]):
        return has(getattr(thing, parts[0]), parts[1:])
    if not inspect.isclass(thing) or len(parts) > 1:
        return False
    declared = {name for kind in thing.__mro__ for name in inspect.get_annotations(kind)}
    return parts[0] in declared or f"self.{parts[0]}" in inspect.getsource(thing)


def is_code(name: str) -> bool:
    """Whether it leads somewhere from a module, named in full or by its last parts, or from a class of one."""
    parts = name.split(".")
    for full, module in modules().items():
        for cut in range(1, len(parts) + 1):
            if f".{full}".endswith("." + ".".join(parts[:cut])) and has(module, parts[cut:]):
                return True
        if inspect.isclass(getattr(module, parts[0], None)) and has(module, parts):
            return True
    return False


def is_setting(name: str) -> bool:
    """Whether a config has the key, with some choice of its group."""
    return name in settings()


@cache
def settings() -> set[str]:
    """Full names of all settings and groups of the commands, with any choice of a group."""
    composed = {name for command in COMMANDS for name in names(configs.defaults(command, []), "")}
    shipped = (names(yaml.safe_load(path.read_text()), package(path)) for path in configs.config_dir().glob("*/*.yaml"))
    return composed.union(*shipped)


def names(config: dict[str, Any], prefix: str) -> Iterator[str]:
    """`train.`, {"images": 1} -> train.images."""
    for key, value in config.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from names(value, f"{prefix}{key}.")


def package(path: Path) -> str:
    """Where the settings of a choice stand: under its group, unless its first line says otherwise."""
    said = re.match(r"# @package (\S+)", path.read_text())
    place = said[1] if said else path.parent.name
    return "" if place == "_global_" else f"{place}."


def is_known(span: str) -> bool:
    """Whether what stands between backquotes exists, as far as it looks like a name of something."""
    if is_placeholder(span) or span in ELSEWHERE or span.endswith(OUTPUTS):
        return True
    if re.fullmatch(r"[\w./-]+::test_\w+", span):
        path, _, test = span.partition("::")
        return is_file(path) and f"def {test}(" in (ROOT / path).read_text()
    if re.fullmatch(r"[\w./-]+", span) and span.endswith(SOURCES):
        return is_file(span)
    if re.fullmatch(r"(diffgen|configs|tests|scripts|docs|benchmarks)/[\w./-]*", span):
        return is_file(span)
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", span):
        return span.split(".")[0] in LIBRARIES or is_code(span) or is_setting(span)
    if match := re.fullmatch(r"([a-z_]\w*(?:\.\w+)+)=\S*", span):
        return is_setting(match[1])
    if match := re.fullmatch(r"([a-z]+)=([a-z_0-9,]+)", span):
        choices = configs.groups().get(match[1])
        return choices is None or set(match[2].split(",")) <= set(choices)
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_names_exist(page: Path) -> None:
    assert not [span for span in spans(page) if not is_known(span)]


@pytest.mark.parametrize(
    "span",
    [
        *("diffgen.nets.nothing", "schedules.nothing", "ema.Nothing", "Schedule.nothing", "datasets.mixture.Mixture"),
        *("nothing.py", "tests/core/test_nothing.py", "diffgen/datasets/cifar.py", "docs/nothing.md"),
        *("optimizer.rate", "train.nothing=1", "sampler.s_chorn", "method=edn", "sampler=ddim,huen"),
        "tests/test_docs.py::test_nothing",
    ],
)
def test_a_name_of_nothing_is_noticed(span: str) -> None:
    assert not is_known(span)


# --- links --------------------------------------------------------------------------------------------------


def anchors(page: Path) -> list[str]:
    """What `#...` may name, in order: GitHub's rule for headings."""
    heads = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads]


def is_target(page: Path, link: str) -> bool:
    """Whether a link leads to a file or folder, and to a heading where it names one."""
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    return target.exists() and (not anchor or anchor in anchors(target))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    here = [link for link in links if "://" not in link]
    assert not [link for link in here if not is_target(page, link)]


def test_a_link_to_nothing_is_noticed() -> None:
    page = ROOT / "README.md"
    assert is_target(page, "docs/reliability.md#exit-codes")
    assert not is_target(page, "docs/nothing.md")
    assert not is_target(page, "docs/reliability.md#nothing")


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 130
    english = [page for page in PAGES[1:] if page not in CHINESE]
    assert not [page.name for page in english if f"({page.relative_to(ROOT)})" not in text]
    assert "(docs/zh/README.md)" in text


# --- lists that stand in the code, too ----------------------------------------------------------------------


def test_the_readme_names_every_choice() -> None:
    text = (ROOT / "README.md").read_text()
    listed = {
        group: set(re.findall(r"`(\w+)`", choices))
        for group, choices in re.findall(r"^\| `(\w+)` \| (.+?) \|", text, re.MULTILINE)
    }
    presets = {"recipe"}  # chosen by the data set
    assert listed == {group: set(names) - {"auto"} for group, names in configs.groups().items() if group not in presets}


def test_the_exit_codes_are_those_of_the_code() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text().partition("## Exit codes")[2].partition("\n## ")[0]
    listed = {int(code): meaning for code, meaning in re.findall(r"^\| (\d+) \| (.+) \|$", text, re.MULTILINE)}
    assert listed == EXIT_CODES | TRAINING_CODES


def test_the_tree_says_what_the_rooms_say() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listed = dict(re.findall(r"^    diffgen/(\w+(?:\.py|/)) +(.+)$", text, re.MULTILINE))
    beside = [path for path in (ROOT / "diffgen").glob("*.py") if path.name != "__init__.py"]
    homes = {f"{path.parent.name}/": path for path in (ROOT / "diffgen").glob("*/__init__.py")}
    homes |= {path.name: path for path in beside}
    sentences = {name: ast.get_docstring(ast.parse(path.read_text())) or "" for name, path in homes.items()}
    assert listed == {name: sentence.splitlines()[0] for name, sentence in sentences.items()}


def test_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {name for page in PAGES for name in re.findall(r"diffgen\[(\w+)\]", page.read_text())}
    assert named <= set(project["optional-dependencies"])


# --- commands -----------------------------------------------------------------------------------------------


def blocks(page: Path) -> Iterator[str]:
    """Lines of code, without their comments; a backslash joins two."""
    text = page.read_text()
    fenced = re.findall(r"^```(?:bash)?\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)
    indented = re.findall(r"^    (\S.*)$", text, re.MULTILINE)
    yield from "\n".join([*fenced, *indented]).replace("\\\n", " ").splitlines()


def commands() -> list[list[str]]:
    """Every command of every page that is one of ours, with whatever launches it; as a shell would see it."""
    ours = (*PROGRAMS, "make", "torchrun", "accelerate", "python", ".venv/bin/python")
    lines = [line for page in PAGES for line in blocks(page) if line.startswith(tuple(f"{name} " for name in ours))]
    lines += ["diffgen-train"]
    unique = dict.fromkeys(tuple(shlex.split(line, comments=True)) for line in lines)
    return [list(words) for words in unique]


def own(words: list[str]) -> list[str]:
    """From the name of one of our programs on; empty if there is none."""
    return list(itertools.dropwhile(lambda word: word not in PROGRAMS, words))


@pytest.mark.parametrize("words", [own(w) for w in commands() if own(w)], ids=" ".join)
def test_commands_are_understood(
    words: list[str], command: Callable[..., Any], tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the work itself: keys, choices and values, of a checkpoint that is there."""
    from diffgen.cli import eval as evaluation
    from diffgen.evaluation import evaluate
    from diffgen.exporting import export
    from diffgen.sampling import generate
    from diffgen.training import trainer
    from diffgen.tuning import tune

    monkeypatch.setattr(tune, "tune", lambda *given: None)
    monkeypatch.setattr(trainer, "train", lambda *given: None)
    monkeypatch.setattr(generate, "generate", lambda *given: None)
    monkeypatch.setattr(evaluate, "evaluate", lambda *given: {})
    monkeypatch.setattr(export, "export", lambda *given: None)
    monkeypatch.setattr(evaluation, "_tell_sweep", lambda folder: None)
    there = [re.sub(r"^(ckpt|train\.init)=.*", rf"\1={tiny_run}", word) for word in words[1:]]
    there = [word.replace("docs/examples", str(ROOT / "docs" / "examples")) for word in there]
    if any(word.startswith("dataset.root=") for word in there) and not any(w.startswith("dataset=") for w in there):
        there.append("dataset=mnist")  # the data of a RUN that has a place
    answer = command(words[0].removeprefix("diffgen-"), *there)
    assert answer.code == 0, answer.err


@pytest.mark.parametrize("words", [w for w in commands() if not own(w)], ids=" ".join)
def test_other_commands_name_what_is_there(words: list[str]) -> None:
    """Targets of make, scripts and their flags, tests."""
    program, *arguments = words
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return
    scripts = [word for word in arguments if word.endswith(".py")]
    assert scripts or "pytest" in arguments
    assert all((ROOT / script).is_file() for script in scripts)
    source = "".join((ROOT / script).read_text() for script in scripts)
    flags = [word for word in itertools.takewhile(lambda word: word != "--", arguments) if word.startswith("--")]
    assert all(f'"{flag}"' in source for flag in flags)
