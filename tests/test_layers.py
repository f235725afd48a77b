"""The layer picture of docs/architecture.md, read off the import statements."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "diffgen"
CONFIGS = PACKAGE.parent / "configs"

LAYERS = [
    {"errors"},
    {"registry", "files", "console", "plots", "signals"},
    {
        "settings",
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
    },
    {"times", "samplers", "datasets"},
    {"denoiser", "checkpoint", "tasks"},
    {"losses", "guidance", "likelihood", "build", "run_directory", "processes"},
    {"sampling", "training_state", "header", "feed", "tally", "writer", "evaluation"},
    {"gradients", "preview"},
    {"trainer"},
    {"generate"},
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
    "safetensors": {"checkpoint", "evaluation"},
    "accelerate": {"processes", "gradients", "trainer", "generate"},
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


BANNED_CALLS = {"eval", "exec", "compile", "__import__", "instantiate"}
BANNED_ATTRIBUTES = {
    ("torch", "load"),
    ("torch", "save"),
    ("hydra", "utils"),
    ("np", "load"),
    ("OmegaConf", "load"),
}
BANNED_MODULES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "importlib"}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_nothing_can_run_code_from_data(path: Path) -> None:
    for name in imports(path):
        plugged = path.name == "plugins.py" and name.startswith("importlib")  # what the command line names
        assert plugged or name.split(".")[0] not in BANNED_MODULES, f"{path} imports {name}"
        assert "instantiate" not in name
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in BANNED_CALLS, f"{path}:{node.lineno} calls {node.func.id}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in BANNED_ATTRIBUTES, f"{path}:{node.lineno}"
    assert "_target_" not in path.read_text()


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
