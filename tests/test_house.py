"""The rooms of docs/architecture.md, read off the import statements, and what may be imported where."""

import ast
import builtins
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import diffgen

PACKAGE = Path(__file__).parents[1] / "diffgen"
CONFIGS = PACKAGE.parent / "configs"

ROOMS = (
    "core",
    "nets",
    "diffusion",
    "data",
    "objectives",
    "storage",
    "build",
    "sampling",
    "evaluation",
    "training",
    "tuning",
    "exporting",
    "tables",
    "cli",
    "api",
)
"""From the ground up, as in docs/architecture.md: a room imports from those before it, and from itself."""

LAZY = {"typing.TYPE_CHECKING", "typing.Any", "diffgen.api", *("diffgen.api." + name for name in diffgen.__all__)}
"""What the package itself imports: nothing, before it is used."""

MOST_BESIDE = 4
"""Modules beside the rooms."""

PURE = {
    *("core.errors", "core.registry"),
    *("diffusion." + name for name in ("schedules", "parameterizations", "weightings", "times", "samplers")),
    *("diffusion.denoiser", "diffusion.guidance", "objectives", "data.augment"),
}
"""Mathematics and tables: torch and the standard library only."""

OWNERS = {
    "hydra": {"cli"},
    "omegaconf": {"cli"},
    "safetensors": {"storage.tensor_file", "evaluation"},
    "accelerate": {"core.processes", "sampling", "evaluation", "training", "tuning"},
    "rich": {"core.console"},
    "sklearn": {"data"},
    "pyarrow": {"data.parquet"},
    "av": {"data.film"},
    "tokenizers": {"data.tokenizer"},
    "torch_fidelity": {"evaluation"},
    "torchmetrics": {"evaluation"},
    "torchvision": {"data"},
    "matplotlib": {"core.plots"},
}
"""Libraries that only these rooms or modules know of."""

AT_ONCE = ("errors", "registry", "settings", "eval_settings", "files", "console", "paths")
NO_TORCH = {*("core." + name for name in AT_ONCE), "cli"}
"""What `--help`, `--cfg job` and a wrong override need; they answer before torch is imported."""

FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """`diffgen/nets/unet.py` -> `nets.unet`; a package is what its `__init__.py` is."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def among(module: str, names: set[str]) -> bool:
    """Whether a module or a package that it is in is named."""
    return any(f"{module}.".startswith(f"{name}.") for name in names)


def imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    """Dotted names that a file imports; `from diffgen import x` counts as diffgen.x."""
    tree = ast.parse(path.read_text())
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


def modules_imported(path: Path) -> set[str]:
    """The package's own modules among them, as `nets.unet`."""
    names = {name.removeprefix("diffgen.") for name in imports(path) if name.startswith("diffgen.")}
    found = {name if name in MODULES else name.rpartition(".")[0] for name in names}
    return found - {""}


def rank(room: str) -> int:
    """How high a room stands."""
    assert room in ROOMS, f"diffgen/{room} is no room: add it to ROOMS here and to docs/architecture.md"
    return ROOMS.index(room)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_rooms_import_only_what_is_below_them(path: Path) -> None:
    module = module_of(path)
    if not module:
        assert set(imports(path)) <= LAZY
        return
    room = module.split(".")[0]
    for name in modules_imported(path):
        below = name.split(".")[0]
        assert below == room or rank(below) < rank(room), f"{module} imports {name}, which is not below it"


def circles(graph: dict[str, set[str]]) -> set[str]:
    """Modules that import themselves by way of others."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            if (name := todo.pop()) not in seen:
                seen.add(name)
                todo += graph.get(name, ())
        return seen

    return {name for name in graph if name in reached(name)}


@pytest.mark.parametrize("folder", ["diffgen", "scripts"])
def test_no_module_imports_itself_by_way_of_others(folder: str) -> None:
    """Not even inside a function: that is a circle too."""
    root = PACKAGE.parent / folder
    modules = {
        ".".join(p.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): p for p in root.rglob("*.py")
    }
    prefix = "diffgen." if folder == "diffgen" else ""

    def own(path: Path) -> set[str]:
        names = {name.removeprefix(prefix) for name in imports(path) if name.startswith(prefix)}
        return {name if name in modules else name.rpartition(".")[0] for name in names} & modules.keys()

    assert not circles({name: own(path) - {name} for name, path in modules.items()})


def test_the_house_is_a_few_rooms_of_small_files() -> None:
    beside = [path for path in FILES if path.parent == PACKAGE]
    assert len(beside) <= MOST_BESIDE
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} | {path.stem for path in beside} >= set(ROOMS)
    for path in PACKAGE.rglob("*/__init__.py"):
        sentence = ast.get_docstring(ast.parse(path.read_text())) or ""
        assert sentence.endswith(".") and "\n" not in sentence, f"{path} says in one sentence what lives there"
    for path in [*FILES, *(PACKAGE.parent / "scripts").rglob("*.py")]:
        assert len(path.read_text().splitlines()) <= 400, f"{path} has more than 400 lines"


def test_functions_are_small() -> None:
    sizes = {
        f"{path.relative_to(PACKAGE)}:{node.name}": (node.end_lineno or 0) - node.lineno + 1
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert statistics.median(sizes.values()) <= 12
    assert max(sizes.values()) <= 80, max(sizes, key=lambda name: sizes[name])


def test_tests_mirror_the_rooms() -> None:
    tests = Path(__file__).parent
    assert {path.parent.name for path in tests.glob("*/test_*.py")} <= set(ROOMS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_libraries_stay_with_their_owners(path: Path) -> None:
    module = module_of(path)
    for name in imports(path):
        library = name.split(".")[0]
        assert library not in OWNERS or among(module, OWNERS[library]), f"{module} imports {library}"
        if among(module, PURE):
            assert library in {"torch", "scipy", "diffgen", *sys.stdlib_module_names}, f"{module} imports {library}"


@pytest.mark.parametrize("module", [name for name in MODULES if among(name, NO_TORCH)])
def test_what_answers_at_once_does_not_import_torch(module: str) -> None:
    for name in imports(MODULES[module], top_only=True):
        assert name.split(".")[0] not in {"torch", "torchvision", "accelerate", "numpy", "sklearn"}
        below = name.removeprefix("diffgen.")
        assert below == name or below == "__version__" or among(below, {*NO_TORCH}) or below == "core", (
            f"{module}: {name}"
        )


BANNED = {
    *("builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__"),
    *("pickle", "_pickle", "cPickle", "pickletools", "dill", "cloudpickle", "joblib", "shelve", "marshal", "copyreg"),
    *("importlib", "imp", "pkgutil", "runpy", "code", "codeop", "ctypes", "cffi"),
    *("subprocess", "pty", "commands", "multiprocessing"),
    *("os.system", "os.popen", "os.startfile", "os.fork", "os.forkpty"),
    *("os." + way + kind for way in ("exec", "spawn") for kind in ("l", "le", "lp", "lpe", "v", "ve", "vp", "vpe")),
    *("os.posix_spawn", "os.posix_spawnp", "asyncio.create_subprocess_exec", "asyncio.create_subprocess_shell"),
    *("torch.load", "torch.save", "torch.jit.load", "torch.hub", "torch.package", "torch.export.load"),
    *("torch.utils.cpp_extension", "torch.ops.load_library", "torch.classes.load_library", "torch.serialization"),
    *("numpy.load", "numpy.fromfile", "numpy.memmap", "numpy.lib.format", "numpy.ctypeslib", "pandas"),
    *("yaml", "ruamel", "jsonpickle", "xml", "hydra.utils", "omegaconf.OmegaConf.load"),
    *("omegaconf.OmegaConf.register_new_resolver", "accelerate.load_checkpoint_and_dispatch"),
    *("safetensors.torch.load_model", "huggingface_hub", "socket", "urllib", "requests", "http.client.HTTPConnection"),
    "torchvision.datasets.CIFAR10",
}
"""Names that run code, start programs, read formats which do, or reach the network, and all below them."""

BANNED_METHODS = {"instantiate", "unsafe_load", "full_load", "load_state", "__reduce__"}
"""Of whatever object; `load_state` is Accelerate's, which unpickles."""

EXCEPTIONS = {
    ("cli/plugins.py", "importlib"),  # what the command line names, never a checkpoint
    ("data/cifar.py", "torchvision.datasets.CIFAR10"),  # unpickles the official files once their MD5 is right
    ("evaluation/extractors.py", "torch.hub"),  # its download, which checks the SHA-256
    ("exporting/programs.py", "torch.export.load"),  # what it has just written, to compare it
    ("data/array_file.py", "numpy.load"),  # allow_pickle=False
    ("core/memory.py", "ctypes"),  # a setting of the C library's allocator
    ("storage/run_directory.py", "diffgen.storage.checkpoint.load_state"),
    ("training/saving.py", "diffgen.storage.checkpoint.load_state"),  # ours
}


def imported(tree: ast.AST) -> dict[str, str]:
    """Local name -> full name of all that a file imports."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names.update({alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names})
        if isinstance(node, ast.Import):
            for name, local in ((alias.name, alias.asname) for alias in node.names):
                names[local or name] = name
                names.setdefault(name.split(".")[0], name.split(".")[0])
    return names


def dotted(node: ast.expr, names: dict[str, str]) -> str:
    """`t.jit.load` under `import torch as t` -> torch.jit.load; `?.load` where it does not start with such a name."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value, names)}.{node.attr}"
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
        return names.get(node.id) or (f"builtins.{node.id}" if hasattr(builtins, node.id) else "?")
    return "?"


def is_getattr_of_a_module(node: ast.AST, names: dict[str, str]) -> bool:
    """`getattr(torch, name)`: anything at all, by a name that may be data."""
    called = isinstance(node, ast.Call) and dotted(node.func, names) == "builtins.getattr"
    return called and isinstance(node, ast.Call) and isinstance(node.args[0], ast.Name) and node.args[0].id in names


def broken(tree: ast.AST, file: str) -> set[str]:
    """The banned names that a file uses, whatever it calls them."""
    names = imported(tree)
    used = set(names.values())
    used |= {dotted(node, names) for node in ast.walk(tree) if isinstance(node, ast.Name | ast.Attribute)}
    used -= {name for name in used for where, free in EXCEPTIONS if where == file and f"{name}.".startswith(f"{free}.")}
    below = {name for name in used for banned in BANNED if f"{name}.".startswith(f"{banned}.")}
    methods = {name for name in used if name.split(".")[-1] in BANNED_METHODS}
    return below | methods | {"getattr" for node in ast.walk(tree) if is_getattr_of_a_module(node, names)}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_can_run_code_from_data(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not broken(tree, str(path.relative_to(PACKAGE)))
    assert "_target_" not in path.read_text()
    assert "allow_pickle=True" not in path.read_text()


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from pickle import loads as read",
        "import torch as t; t.load('x')",
        "from torch import load",
        "from torch import jit; jit.load('x')",
        "import numpy as np; np.load('x', allow_pickle=True)",
        "from numpy import load",
        "eval('1')",
        "run = exec",
        "__import__('os')",
        "import importlib; importlib.import_module('x')",
        "from importlib import import_module",
        "import runpy",
        "import marshal, shelve",
        "import yaml; yaml.unsafe_load('x')",
        "from os import system",
        "import os as o; o.system('x')",
        "import os; os.execvp('x', [])",
        "import subprocess",
        "import joblib; joblib.load('x')",
        "import dill",
        "import torch; getattr(torch, 'load')('x')",
        "import os; getattr(os, name)('x')",
        "from hydra.utils import instantiate",
        "import hydra; hydra.utils.instantiate({})",
        "from omegaconf import OmegaConf; OmegaConf.load('x')",
        "from torchvision.datasets import CIFAR10",
        "import builtins; builtins.eval('1')",
        "self.accelerator.load_state('x')",
        "def f(loader): return loader.unsafe_load('x')",
        "def f():\n    import ctypes",
    ],
)
def test_the_bans_can_fail(code: str) -> None:
    assert broken(ast.parse(code), "generate.py")


def test_the_exceptions_are_needed() -> None:
    """An exception that no file uses any more is a hole."""
    for file, name in EXCEPTIONS:
        assert broken(ast.parse((PACKAGE / file).read_text()), "another.py"), f"{file} does not use {name}"


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda p: str(p.relative_to(CONFIGS)))
def test_configs_name_rows_never_code(path: Path) -> None:
    text = path.read_text()
    assert "_target_" not in text
    assert "diffgen." not in text
    assert "oc.env" not in text


def test_the_check_can_fail(tmp_path: Path) -> None:
    """A file that breaks the rules is seen to break them."""
    path = tmp_path / "bad.py"
    path.write_text(
        "import pickle\nfrom diffgen.training import trainer\ndef f():\n    from hydra.utils import instantiate\n"
    )
    assert set(imports(path)) == {"pickle", "diffgen.training.trainer", "hydra.utils.instantiate"}
    assert rank("training") > rank("diffusion")
    with pytest.raises(AssertionError, match="is no room"):
        rank("utils")
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == {"b", "c"}
