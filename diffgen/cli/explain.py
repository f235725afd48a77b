"""Hydra's errors in one sentence each, which names the key, the value and what could have stood there."""

import difflib
import re
import shlex
from collections.abc import Iterator
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from diffgen.cli.configs import PLUGGED, compose_group, defaults, groups
from diffgen.core.errors import UsageError, unknown
from diffgen.core.paths import quoted, setting

FEW = 3
"""Settings of one name that a hint still lists."""

SEVERAL = ("logger",)
"""Groups of which several rows may be chosen."""

WITHOUT_TABLE = ("experiment", "method", "recipe")
"""Groups to which no plugin can add."""

OF_HYDRA = ("documentation", "http", "full_key:", "object_type=")
"""What stands in lines of an error that help nobody."""

NO_CHOICE = r"(null|true|false|[-+.\d]*|\{.*)"
"""What Hydra would take for something else than a row's name, and answer with a traceback."""


def explain(name: str, error: Exception, arguments: list[str]) -> str:
    """One sentence for an error of Hydra's, naming key, value and choices.

    Args:
        name: The top-level config, `train`, `sample` or `eval`.
        error: What Hydra or OmegaConf raised.
        arguments: What was typed.
    """
    text = str(error)
    if match := re.search(r"Could not override '([^']+)'", text):
        return _unknown_key(name, match[1], arguments)
    if match := re.search(r"Could not (?:find|load) '([^']+)'", text):  # load: one of a list
        group, _, choice = match[1].partition("/")
        return unknown_choice(group, choice)
    if isinstance(error, OverrideParseException):
        return unreadable(error.override, arguments)
    if match := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.+)'", text):
        return _several(match[1])
    if match := re.search(r"Multiple values for (\w+)", text):
        return f"{match[1]} is given with a +; write {match[1]}=... to choose another one"
    if match := re.search(r"Interpolation key '([^']+)' not found", text):
        return f"${{{match[1]}}} names a setting that is not there; as text it is written \\${{{match[1]}}}"
    if match := re.search(r"Missing mandatory value: (\S+)", text):
        key = getattr(error, "full_key", None) or match[1]
        return f"{key} has no value: give {key}=..."
    lines = [line.strip() for line in text.splitlines() if line.strip() and not any(word in line for word in OF_HYDRA)]
    return " ".join(lines[:2]) or type(error).__name__


# --- choices ----------------------------------------------------------------------------------------------------------


def check_choice(group: str, value: str) -> None:
    """Require of what is typed for a group that it can be a row's name.

    Raises:
        UsageError: It is a number, null, a list where one row is wanted, or the like.
    """
    listed = value.startswith("[") and group not in SEVERAL
    if listed or re.fullmatch(NO_CHOICE, value, re.IGNORECASE):
        raise UsageError(unknown_choice(group, value))


def unknown_choice(group: str, choice: str) -> str:
    """The sentence for a row that a group does not have."""
    sentence = unknown(f"{group}={choice!r}", groups().get(group, []))
    enough = PLUGGED or group in WITHOUT_TABLE or "did you mean" in sentence
    return sentence if enough else f"{sentence}; a part of a plugin needs plugins=[...]"


# --- values -----------------------------------------------------------------------------------------------------------


def unreadable(override: str, arguments: list[str]) -> str:
    """The sentence for an override that the grammar cannot read: how that very value is spelled."""
    key, equals, value = override.partition("=")
    if key in groups():
        return unknown_choice(key, value)
    spelled = _spelled(key, value, swept=bool({"-m", "--multirun"} & set(arguments)))
    sentence = f"cannot read {override!r}: settings are KEY=VALUE, with lists as 'KEY=[1,2]'"
    if not equals or not _readable(spelled):
        return sentence
    return f"{sentence} and quotes inside quotes around a text like this one, {shlex.quote(spelled)}"


def _spelled(key: str, value: str, *, swept: bool) -> str:
    """The override with quotes around what is not readable: the items of a list or a sweep, or the whole."""
    is_list = len(value) > 1 and value[0] == "[" and value[-1] == "]"
    inside = value[1:-1] if is_list else value
    items = inside.split(",") if is_list or swept else [inside]
    text = ",".join(item if _readable(f"x={item}") else quoted(_bare(item)) for item in items)
    return f"{key}=[{text}]" if is_list else f"{key}={text}"


def _bare(text: str) -> str:
    """A text without the quotes around it."""
    match = re.fullmatch(r"(['\"])(.*)\1", text.strip(), re.DOTALL)
    return match[2] if match else text


def _readable(override: str) -> bool:
    try:
        OverridesParser.create().parse_override(override)
    except HydraException:
        return False
    return True


def _several(override: str) -> str:
    """The sentence for commas, or a range, where there is no sweep."""
    key, _, value = override.partition("=")
    ways = "add -m to run them one after the other, or write a list as"
    as_list, as_text = shlex.quote(f"{key}=[{value}]"), setting(key, value)
    return f"{override} gives several values: {ways} {as_list}, or one text as {as_text}"


# --- keys -------------------------------------------------------------------------------------------------------------


def _unknown_key(name: str, key: str, arguments: list[str]) -> str:
    """A wrong key: its neighbours if it stands in a known group, else the groups; and the nearest of all keys."""
    overrides = [arg for arg in arguments if "=" in arg and not arg.startswith("-")]
    try:
        config = defaults(name, [o for o in overrides if o.split("=")[0] != key])
    except (HydraException, OmegaConfBaseException):
        config = defaults(name, [])
    parent, _, leaf = key.rpartition(".")
    place = config
    for part in parent.split(".") if parent else []:
        place = place.get(part) if isinstance(place, dict) else None
    if parent and isinstance(place, dict):
        near = difflib.get_close_matches(leaf, list(place), n=1, cutoff=0.5)
        hint = f" (did you mean {parent}.{near[0]}?)" if near else ""
        if place.get("name") == "auto":
            return _of_a_choice(parent, leaf, sorted(place))
        return f"{key} is unknown; {parent} has [{', '.join(sorted(place))}]{hint}"
    group, _, choice = parent.partition(".")
    if choice in groups().get(group, []):
        return f"{key} is unknown: to change more of {choice}, name it too: {group}=[{choice}] {key}=..."
    top = sorted({*config, *(g for g in groups() if g in config or (g == "experiment" and name == "train"))})
    return f"{key} is unknown; choose one of [{', '.join(top)}]{_meant(parent, leaf, config, top)}"


def _of_a_choice(group: str, leaf: str, known: list[str]) -> str:
    """The sentence for a setting that no choice of a group has in common: which of them has it, if any."""
    key, choices = f"{group}.{leaf}", [choice for choice in groups()[group] if choice != "auto"]
    owners = [choice for choice in choices if leaf in compose_group(group, choice)]
    has = f"is a setting of [{', '.join(owners)}] alone" if owners else f"is unknown; {group} has [{', '.join(known)}]"
    return f"{key} {has}; to change more of a {group}, name it too: {group}={(owners or choices)[0]} {key}=..."


def _meant(parent: str, leaf: str, config: dict[str, Any], top: list[str]) -> str:
    """A hint: the settings called `leaf`, wherever they stand, if they are few; else the nearest name at the top."""
    meant = [name for name in _names(config) if name.endswith(f".{leaf}")]
    if not 1 <= len(meant) <= FEW:
        near = difflib.get_close_matches(parent or leaf, top, n=1)
        meant = [f"{name}.{leaf}" if parent else name for name in near]
    return f" (did you mean {' or '.join(meant)}?)" if meant else ""


def _names(config: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Full names of all settings: train, train.images, ..."""
    for key, value in config.items():
        yield prefix + key
        if isinstance(value, dict):
            yield from _names(value, f"{prefix}{key}.")
