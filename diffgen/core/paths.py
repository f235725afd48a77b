"""Paths as people type them at a shell, and as a command that is printed spells them."""

import os
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diffgen.core.errors import EnvironmentFault, require

PLAIN = re.compile(r"(?!(null|true|false|nan|inf)$)(\.{0,2}/|[a-z_])[\w./-]*", re.ASCII | re.IGNORECASE)
"""Text that the grammar of overrides reads as itself: no number, no word of YAML's, nothing that needs quotes."""

NAMES = ("label",)
"""Settings whose texts are names, of classes, say, and never paths."""

TEXTS = ("task.text", "task.mark")
"""Settings whose texts are text, which may begin with a `~`; one that names a file is asked `named_file`."""


def literal(text: str) -> str:
    """A text as OmegaConf is to be given it, so that no `${` in it is taken for another setting's name."""
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", text)


def quoted(text: str) -> str:
    """A text as a value of an override, in quotes unless Hydra's grammar reads it as it is."""
    if PLAIN.fullmatch(text):
        return text
    # backslashes count double before a quote and at the end, and not elsewhere
    inside = re.sub(r'(\\*)("|$)', lambda m: 2 * m[1] + ("\\" + m[2] if m[2] else ""), literal(text))
    return f'"{inside}"'


def setting(key: str, value: str | Path | Sequence[str]) -> str:
    """`KEY=VALUE` for a command that is pasted into a shell: read by it, then by Hydra, the value is the same again.

    Args:
        key: The setting's name.
        value: A text; a list of them; or a path, which is this very one, also if it begins with a `~` that is no home.
    """
    if isinstance(value, Path):
        value = f"./{value}" if str(value).startswith("~") else str(value)
    spelled = quoted(value) if isinstance(value, str) else f"[{','.join(map(quoted, value))}]"
    return shlex.quote(f"{key}={spelled}")


def walk(value: Any, change: Callable[[str, str], str], key: str = "") -> Any:
    """A config, or a part of it, with each of its texts as `change(key, text)` gives it."""
    if isinstance(value, Mapping):
        return {name: walk(item, change, f"{key}.{name}".lstrip(".")) for name, item in value.items()}
    if isinstance(value, list):
        return [walk(item, change, key) for item in value]
    return change(key, value) if isinstance(value, str) else value


def at_home(key: str, text: str) -> str:
    """A setting's text with `~` or `~user` at its beginning as that person's folder.

    Raises:
        UsageError: There is no such user.
    """
    if not text.startswith("~") or key in (*NAMES, *TEXTS):
        return text
    home = os.path.expanduser(text)  # noqa: PTH111  Path's would raise where nobody has that name
    require(home != text, f"{key}={text!r}: no user here has that name; a folder called so is ./{text}")
    return home


def named_file(text: str) -> str | None:
    """The path of the file that a text names, with `~` as a home; None where it is no file's, and so itself."""
    path = os.path.expanduser(text)  # noqa: PTH111  see at_home
    return path if os.path.isfile(path) else None  # noqa: PTH113  Path's raises of a text that is too long for a name


def is_inside(path: str, folder: str) -> bool:
    """Whether a path is a folder or in it."""
    return Path(path).resolve().is_relative_to(Path(folder).resolve())


def check_folder(key: str, path: object) -> None:
    """Require of a folder to write to that no file stands in its place, or in that of one above it.

    Raises:
        EnvironmentFault: One does; the sentence names the key.
    """
    if not isinstance(path, str):
        return
    for place in (Path(path), *Path(path).parents):
        if place.is_file():
            raise EnvironmentFault(f"cannot write {key}={path!r}: {place} is a file, and a folder is wanted")
