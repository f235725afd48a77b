"""The layer picture of docs/architecture.md, read off the import statements."""

import ast
import builtins
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "diffgen"
CONFIGS = PACKAGE.parent / "configs"

LAYERS = [
    {"errors"},
    {"registry", "files", "console", "plots", "signals", "devices"},
    {"settings"},
    {
        "lock",
        "schedules",
        "parameterizations",
        "weightings",
        "optimizers",
        "models",
        "randomness",
        "ema",
        "images",
        "augment",
        "tensor_file",
        "memory",
        "speed",
        "stopwatch",
        "casting",
        "compilation",
        "ahead",
    },
    {"times", "samplers", "datasets"},
    {"denoiser", "checkpoint", "tasks"},
    {"losses", "guidance", "likelihood", "build", "run_directory", "processes", "posthoc"},
    {"sampling", "training_state", "header", "feed", "tally", "writer"},
    {"gradients", "preview", "evaluation"},
    {"assembly"},
    {"trainer"},
    {"generate"},
    {"evaluate"},
    {"cli"},
]
"""A module imports from layers above it in this list, or from its own package; `models` and `datasets` are packages."""

PURE = {
    "errors",
    "registry",
    "schedules",
    "parameterizations",
    "weightings",
    "times",
    "samplers",
    "denoiser",
    "losses",
    "guidance",
    "augment",
}
"""Mathematics and tables: torch and the standard library only."""

OWNERS = {
    "hydra": {"cli"},
    "omegaconf": {"cli"},
    "safetensors": {"tensor_file", "evaluation"},
    "accelerate": {"processes", "evaluation", "assembly", "gradients", "trainer", "generate", "evaluate"},
    "rich": {"console"},
    "sklearn": {"datasets"},
    "torch_fidelity": {"evaluation"},
    "torchvision": {"datasets"},
    "matplotlib": {"plots"},
}
"""Libraries that only these modules know of."""

NO_TORCH = {"errors", "registry", "settings", "files", "console", "cli"}
"""What `--help`, `--cfg job` and a wrong override need; they answer before torch is imported."""

FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    """`diffgen/models/unet.py` -> `models`."""
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


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


def rank(module: str) -> int:
    """Number of a module's layer."""
    for number, layer in enumerate(LAYERS):
        if module in layer:
            return number
    raise AssertionError(f"diffgen.{module} stands in no layer: add it to LAYERS here and to docs/architecture.md")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_import_only_what_is_below_them(path: Path) -> None:
    module = module_of(path)
    if module == "__init__":
        assert not list(imports(path))
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] != "diffgen" or parts[1] in (module, "__version__"):
            continue
        assert rank(parts[1]) < rank(module), f"{module} imports {name}, which is not below it"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_libraries_stay_with_their_owners(path: Path) -> None:
    module = module_of(path)
    for name in imports(path):
        library = name.split(".")[0]
        assert module in OWNERS.get(library, {module}), f"{module} imports {library}"
        if module in PURE:
            assert library in {"torch", "scipy", "diffgen", *sys.stdlib_module_names}, f"{module} imports {library}"


@pytest.mark.parametrize("path", [p for p in FILES if module_of(p) in NO_TORCH], ids=lambda p: p.stem)
def test_what_answers_at_once_does_not_import_torch(path: Path) -> None:
    for name in imports(path, top_only=True):
        parts = name.split(".")
        assert parts[0] not in {"torch", "torchvision", "accelerate", "numpy", "sklearn"}
        assert parts[0] != "diffgen" or parts[1] in {*NO_TORCH, "__version__"}, f"{path} imports {name}"


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
    ("datasets/cifar.py", "torchvision.datasets.CIFAR10"),  # unpickles the official files once their MD5 is right
    ("evaluation/extractors.py", "torch.hub"),  # its download, which checks the SHA-256
    ("evaluation/pictures.py", "numpy.load"),  # allow_pickle=False
    ("memory.py", "ctypes"),  # a setting of the C library's allocator
    ("run_directory.py", "diffgen.checkpoint.load_state"),
    ("trainer.py", "diffgen.checkpoint.load_state"),  # ours
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
    path.write_text("import pickle\nfrom diffgen import trainer\ndef f():\n    from hydra.utils import instantiate\n")
    assert set(imports(path)) == {"pickle", "diffgen.trainer", "hydra.utils.instantiate"}
    assert rank("trainer") > rank("samplers")
    with pytest.raises(AssertionError, match="stands in no layer"):
        rank("utils")
