"""Paths as people type them at a shell, and as a command that is printed spells them."""

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffgen.core.errors import require

PLAIN = re.compile(r"(?!(null|true|false|nan|inf)$)(\.{0,2}/|[a-z_])[\w./-]*", re.ASCII | re.IGNORECASE)
"""Text that the grammar of overrides reads as itself: no number, no word of YAML's, nothing that needs quotes."""

NAMES = ("label",)
"""Settings whose texts are names, of classes, say, and never paths."""


def quoted(text: str) -> str:
    r"""A text as a value of an override, in quotes unless the grammar reads it as it is.

    Backslashes count double before a quote and at the end, as in Hydra's grammar, and before `${`, as in OmegaConf's.
    """
    if PLAIN.fullmatch(text):
        return text
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return '"' + re.sub(r'(\\*)("|$)', lambda m: 2 * m[1] + ("\\" + m[2] if m[2] else ""), text) + '"'


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


def at_home(value: Any, key: str = "") -> Any:
    """A config, or a part of it, with `~` and `~user` at the beginning of its texts as those people's folders.

    Raises:
        UsageError: There is no such user; the sentence names the key.
    """
    if isinstance(value, Mapping):
        return {name: at_home(item, f"{key}.{name}".lstrip(".")) for name, item in value.items()}
    if isinstance(value, list):
        return [at_home(item, key) for item in value]
    if not isinstance(value, str) or not value.startswith("~") or key in NAMES:
        return value
    home = os.path.expanduser(value)  # noqa: PTH111  Path's would raise where nobody has that name
    require(home != value, f"{key}={value!r}: no user here has that name; a folder called so is ./{value}")
    return home
