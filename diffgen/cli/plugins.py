"""Parts of your own: modules named on the command line, which add rows to the tables.

`plugins=[my_module, path/to/file.py]` imports them before the config is composed. A row that they register can be
chosen like any other, `schedule=cubic`, with its keyword-only parameters as keys; defaults in the signature stand for
the YAML that the shipped rows have. Only the command line can ask for this, never a checkpoint.
"""

import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from diffgen.cli.configs import compose_group
from diffgen.core.errors import UsageError, require
from diffgen.core.paths import at_home
from diffgen.core.registry import Table

ARGUMENT = re.compile(r"\+{0,2}plugins=")

MODULE = re.compile(r"\w+(\.\w+)*")

SHIPPED: list[set[str]] = []
"""The rows that came with diffgen, of each of `tables.ALL`."""


def named(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The modules and files that a command line names, and its other arguments.

    Raises:
        UsageError: `plugins` is neither a name nor a list of them.
        HydraException: Hydra's grammar cannot read it.
    """
    mine = [argument for argument in arguments if ARGUMENT.match(argument)]
    names = [name for argument in mine for name in _names(argument)]
    return names, [argument for argument in arguments if argument not in mine]


def _names(argument: str) -> list[str]:
    """What one `plugins=...` names: one, several or none."""
    (override,) = OverridesParser.create().parse_overrides([argument])
    if override.is_sweep_override():
        raise UsageError(f"{argument} gives several values: write a list, 'plugins=[{argument.partition('=')[2]}]'")
    value = override.value() or []
    names = value if isinstance(value, list) else [value]
    for name in names:
        require(isinstance(name, str), f"plugins={name!r} must be a module's name, a file that ends in .py, or a list")
    return [at_home("plugins", name) for name in names]


def check(plugins: object, arguments: list[str]) -> None:
    """Require that a composed config names no plugins but those that the command line does.

    Raises:
        UsageError: One stands in a YAML file, where nobody would import it.
    """
    known, _ = named(arguments)
    for name in plugins if isinstance(plugins, list) else [plugins] if plugins else []:
        require(name in known, f"plugins={name!r} of a YAML file is not read: name it on the command line, too")


def load(names: list[str]) -> dict[str, list[str]]:
    """Import modules and give the rows that they register a config each.

    Args:
        names: Modules or files.

    Returns:
        The choices that plugins have added in this process, by group.

    Raises:
        UsageError: A module cannot be found, or fails.
    """
    if not names:
        return {}
    from diffgen.tables import ALL

    if not SHIPPED:
        SHIPPED.extend(set(table) for table in ALL)
    for name in names:
        _add_rows(name, ALL)
    added: dict[str, list[str]] = {table.group: [] for table in ALL}
    for table, shipped in zip(ALL, SHIPPED, strict=True):
        for row in sorted(set(table) - shipped):
            added[table.group].append(row)
            own = signature_defaults(table[row])
            node = {"name": row, **shared_keys(table, own), **own}
            package = f"logger.{row}" if table.group == "logger" else None  # several may be chosen
            ConfigStore.instance().store(group=table.group, name=row, node=OmegaConf.create(node), package=package)
    return added


def _add_rows(name: str, tables: tuple[Table, ...]) -> None:
    """Import one plugin; one that fails half-way leaves no row.

    Raises:
        UsageError: It cannot be found, fails, or adds nothing.
    """
    before = [dict(table) for table in tables]
    try:
        imported = import_module(name)
    except UsageError:
        for table, rows in zip(tables, before, strict=True):
            table.clear()
            table.update(rows)
        raise
    if imported and all(len(table) == len(rows) for table, rows in zip(tables, before, strict=True)):
        raise UsageError(f"plugins: {name} adds no row to any table: is it the module that was meant?")


def shared_keys(table: Table, own: Collection[str]) -> dict[str, Any]:
    """Keys that rows of a table have beside their own: a time grid of Gaussian noise, what a data set holds out."""
    if table.group == "dataset" and "split" not in own:
        from diffgen.data.splits import NOTHING_HELD_OUT

        return dict(NOTHING_HELD_OUT)
    from diffgen.diffusion.samplers import SAMPLERS
    from diffgen.diffusion.samplers.mean_flow import JUMPERS
    from diffgen.sampling.walk import OF_WALK

    if table is not SAMPLERS and table is not JUMPERS:
        return {}

    heun = compose_group("sampler", "heun")
    return {key: heun[key] for key in OF_WALK}


def signature_defaults(row: Callable[..., Any]) -> dict[str, Any]:
    """Keyword-only parameters and their defaults; `???` where one must be given."""
    parameters = inspect.signature(row).parameters.values()
    keys = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    return {p.name: "???" if p.default is p.empty else _plain(p.default) for p in keys}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def import_module(name: str) -> bool:
    """Import a module by its name or its file, once; returns whether it was imported now.

    Raises:
        UsageError: It is not there, or raises, or is one of Python's own.
    """
    if name in sys.stdlib_module_names:
        raise UsageError(f"plugins: {name} is a module of Python's own; a file of yours is plugins=[{name}.py]")
    is_file = name.endswith(".py")
    if not is_file and (not MODULE.fullmatch(name) or Path(name).is_file()):
        what = "is a folder" if Path(name).is_dir() else "is neither a module's name nor a file that ends in .py"
        raise UsageError(f"plugins: {name} {what}: name a file, plugins=[my/part.py], or a module")
    try:
        return _import_file(Path(name).resolve()) if is_file else _import_from_here(name)
    except UsageError as error:
        raise UsageError(f"plugins: {name}: {error}") from None
    except (Exception, SystemExit) as error:  # a script that ends itself would end the command in silence
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(f"plugins: {name} cannot be imported ({reason})") from error


def _import_file(path: Path) -> bool:
    """Under a name that no other module has: a file may be called time.py."""
    name = f"diffgen_plugin_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return False
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)  # dataclasses look for their module there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return True


def _import_from_here(name: str) -> bool:
    """From the working folder, or what is installed; the folder comes last, so that nothing in it hides a library."""
    before, here, known = list(sys.path), str(Path.cwd()), name in sys.modules
    if here not in sys.path:
        sys.path.append(here)
    try:
        importlib.import_module(name)
    except BaseException:
        sys.path[:] = before
        raise
    return not known
