"""Damage and hostile values for `fuzz.py`: strategies that draw them, and functions that put them into files."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

RAW = ["1e400", "-1e400", "NaN", "-Infinity", "1" * 5000, "1e-400", '"\\ud800"', "[" * 2000, '{"a":1,"a":2}', "\ufeff1"]
"""What `json.dumps` would not write; stands in a tree as `Raw`."""


@dataclass(frozen=True)
class Raw:
    """JSON text to be written as it is."""

    text: str


WORDS = [
    "",
    "auto",
    "name",
    "unet",
    "heun",
    "\0",
    "\x1b[2J",
    "\u202e",
    "../../x",
    "${oc.env:HOME}",
    "_target_",
    "х" * 300,
]
EXTREMES = [0, -1, 1, 2**31, 2**63, 10**9, 10**400, 1e308, 5e-324, -0.0, 1e14, 1e-300, 0.5, 999999999999999]

numbers = st.one_of(
    st.sampled_from(EXTREMES),
    st.floats(0, 1),
    st.integers(-4, 100),
    st.floats(-1e15, 1e15),
    st.integers(-(10**15), 10**15),
)
leaves = st.one_of(
    numbers, st.booleans(), st.none(), st.sampled_from(WORDS), st.text(max_size=8), st.sampled_from(RAW).map(Raw)
)
values = st.one_of(
    leaves,
    st.recursive(
        leaves,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
        max_leaves=8,
    ),
    st.integers(1, 2000).map(lambda depth: Raw("[" * depth + "]" * depth)),
)
keys = st.one_of(st.sampled_from(["name", "x", "", "_target_", "../x", "__metadata__"]), st.text(max_size=4))
where = st.integers(0, 10**6)
alike = st.tuples(st.just("alike"), where, numbers, st.just(""))
other = st.one_of(
    st.tuples(st.just("set"), where, values, st.just("")),
    st.tuples(st.just("delete"), where, st.none(), st.just("")),
    st.tuples(st.just("add"), where, values, keys),
)
edits = st.lists(alike | other, min_size=1, max_size=4)
settings = st.lists(alike, min_size=1, max_size=4) | st.lists(alike | alike | other, min_size=1, max_size=2)


def places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a tree."""
    if isinstance(tree, dict | list):
        for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
            yield tree, key
            yield from places(tree[key])


def edited(tree: Any, changes: list[tuple[str, int, Any, str]]) -> Any:
    """A copy of a tree with some values set, deleted or added; `alike` turns numbers into numbers only."""
    tree = json.loads(json.dumps(tree))
    for kind, place, value, name in changes:
        there = list(places(tree))
        if kind == "alike":
            there = [(c, k) for c, k in there if isinstance(c[k], int | float) and not isinstance(c[k], bool)]
        if not there:
            continue
        container, key = there[place % len(there)]
        if kind == "delete":
            del container[key]
        elif kind == "add" and isinstance(container, dict):
            container[name] = value
        else:
            container[key] = value
    return tree


def dump(tree: Any) -> str:
    """JSON text, with every `Raw` as it is."""
    raw: list[str] = []

    def mark(value: Raw) -> str:
        raw.append(value.text)
        return f"@raw{len(raw) - 1}@"

    text = json.dumps(tree, default=mark)
    for i, insert in enumerate(raw):
        text = text.replace(f'"@raw{i}@"', insert)
    return text


chunks = st.binary(max_size=16) | st.sampled_from([b"\0" * 8, b"\xff" * 8, b'"', b"{", b"}", b"\x7f\xc0", b"1" * 5000])
byte_edits = st.lists(
    st.tuples(st.sampled_from(["flip", "cut", "insert", "overwrite", "copy", "delete"]), where, where, chunks),
    min_size=1,
    max_size=6,
)


def mangled(data: bytes, changes: list[tuple[str, int, int, bytes]]) -> bytes:
    """Bytes with flips, cuts, insertions and splices; even places fall into the first part, where headers are."""
    for kind, first, second, chunk in changes:
        size = max(len(data), 1)
        at = first // 2 % (size if first % 2 else min(size, 64 if first % 4 else 4000))
        length = second % 64
        if kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ (1 << second % 8)]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at]
        elif kind == "insert":
            data = data[:at] + chunk + data[at:]
        elif kind == "overwrite":
            data = data[:at] + chunk + data[at + len(chunk) :]
        elif kind == "copy":
            data = data[:at] + data[second % size :][:length] + data[at + length :]
        elif kind == "delete":
            data = data[:at] + data[at + length :]
    return data
