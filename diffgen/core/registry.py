"""Tables of named parts, and the only way from a config to an object.

A config never names code. It says `name: cosine`; the name is looked up in a table, and the other keys must equal
the keyword-only parameters of the row, in number, name and type. Positional parameters are runtime objects
(a data shape, a batch) and never come from a config.
"""

import inspect
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin, get_type_hints

from diffgen.core.errors import UsageError, require, typed, unknown

Row = TypeVar("Row", bound=Callable[..., Any])


class NoFacts(NamedTuple):
    """What a row declares of itself where nobody asks."""


class Table(dict[str, Callable[..., Any]]):
    """One config group: the rows that `<group>.name` can choose from."""

    def __init__(self, group: str, facts: type[Any] = NoFacts) -> None:
        """Make an empty table.

        Args:
            group: The config group.
            facts: Named tuple of what a row declares of itself, for tests, plots and pages.
        """
        super().__init__()
        self.group, self._kind = group, facts
        self._declared: dict[str, Any] = {}

    @property
    def facts(self) -> dict[str, Any]:
        """What each row declares of itself, by name."""
        return {name: self._declared[name] for name in self}

    def register(self, name: str, **facts: Any) -> Callable[[Row], Row]:
        """Decorator that adds a class or function under `name`, with what it declares of itself.

        Raises:
            UsageError: The name is taken, or the table knows no such fact.
        """
        known = self._kind._fields
        for fact in facts:
            require(fact in known, unknown(f"{self.group}={name!r}: fact={fact!r}", known))

        def add(row: Row) -> Row:
            require(name not in self, f"{self.group}={name!r} is registered twice: give the row another name")
            self[name], self._declared[name] = row, self._kind(**facts)
            return row

        return add

    def joined(self, other: "Table") -> "Table":
        """A table of the rows of both."""
        both = Table(self.group, self._kind)
        both.update({**self, **other})
        both._declared.update({**self._declared, **other._declared})
        return both


def parameters(row: Callable[..., Any]) -> dict[str, Any]:
    """The keyword-only parameters of a row and their types: its YAML keys."""
    target = row.__init__ if inspect.isclass(row) else row
    hints = get_type_hints(target)
    signature = inspect.signature(row)
    return {k: hints.get(k, Any) for k, p in signature.parameters.items() if p.kind is p.KEYWORD_ONLY}


def bind(table: Table, config: object) -> partial[Any]:
    """Look up `config["name"]` and fix its keyword arguments, after checking them against the signature.

    Args:
        table: Where to look.
        config: `{"name": ..., **keywords}`, plain data.

    Returns:
        The row with its settings bound; call it with the runtime objects.

    Raises:
        UsageError: The name or a key is unknown, a key is missing, or a value has the wrong type.
    """
    if not isinstance(config, Mapping) or not isinstance(config.get("name"), str):
        raise UsageError(f"{table.group} must be a mapping with a name; choose one of [{', '.join(sorted(table))}]")
    keywords = dict(config)
    name = keywords.pop("name")
    if name not in table:
        raise UsageError(unknown(f"{table.group}.name={name!r}", table))
    return partial(table[name], **conform(table.group, parameters(table[name]), keywords))


def build(table: Table, config: object, *runtime: object) -> Any:
    """Construct the row that a config names: `bind(table, config)(*runtime)`, with the group in error texts."""
    constructor = bind(table, config)
    try:
        return constructor(*runtime)
    except UsageError as error:
        raise UsageError(f"{table.group}.{str(error).removeprefix(f'{table.group}.')}") from None


def named(table: Table, row: Any) -> dict[str, Any]:
    """The config from which `build` makes an object again whose class is a row, a dataclass of its settings.

    Raises:
        UsageError: Its class is not in the table.
    """
    name = next((name for name, known in table.items() if known is type(row)), None)
    if name is None:
        raise UsageError(f"{type(row).__name__} is not registered as a {table.group}")
    values = {field.name: getattr(row, field.name) for field in fields(row) if field.init}
    return {"name": name, **{key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}}


def conform(prefix: str, hints: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Check that `values` has exactly the keys of `hints`, and convert each value to its type."""
    for key in values:
        if key not in hints:
            choices = ", ".join(sorted(hints)) or "none"
            raise UsageError(f"{prefix}.{key} is not a setting here; its settings are [{choices}]")
    missing = [key for key in hints if key not in values]
    if missing:
        raise UsageError(f"{prefix}.{missing[0]} is missing")
    return {key: convert(f"{prefix}.{key}", value, hints[key]) for key, value in values.items()}


def convert(key: str, value: Any, hint: Any) -> Any:
    """Return `value` as the type `hint`: whole floats pass for ints, ints for floats, lists for tuples.

    Raises:
        UsageError: The value does not fit or is not finite; the sentence names key, value and type.
    """
    origin, args = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _convert_union(key, value, args)
    if origin is Literal:
        if value not in args:
            raise UsageError(unknown(f"{key}={typed(value)}", args))
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(convert(f"{key}[{i}]", item, args[0]) for i, item in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if hint is str and isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # a folder may be called 7
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)  # 1e6 is a float to YAML; people write it for counts
    if hint is float and isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{key}={typed(value)} must be a finite number")
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is not bool and isinstance(value, bool)):
        return value
    raise UsageError(f"{key}={typed(value)} must be {describe(hint)}")


def _convert_union(key: str, value: Any, args: tuple[Any, ...]) -> Any:
    if value is None and type(None) in args:
        return None
    for arg in args:
        try:
            return convert(key, value, arg)
        except UsageError:
            continue
    raise UsageError(f"{key}={typed(value)} must be {' or '.join(describe(arg) for arg in args)}")


def describe(hint: Any) -> str:
    """A type in words: `a number`, `a list of whole numbers`."""
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    if get_origin(hint) is tuple:
        return f"a list ({describe(get_args(hint)[0]).removeprefix('a ')} each)"
    if get_origin(hint) is Literal:
        return f"one of [{', '.join(map(str, get_args(hint)))}]"
    return words.get(hint, str(hint))
