"""The text of the running Python's own help: an English corpus that every installation has."""

import platform
from typing import Literal

from diffgen.core.errors import DataError
from diffgen.data import corpus
from diffgen.data.base import DATASETS
from diffgen.data.corpus import Corpus
from diffgen.data.text import Text, check, kind_of, of_split, parts

SYMBOLS = 256
"""Characters with a symbol of their own: more than there are."""


@DATASETS.register("python_docs")
def python_docs(*, length: int, split: Literal["train", "test"], held_out: float) -> Text:
    """What `help()` says of Python's language, as characters: its topics in the order of their names.

    Args:
        length: Tokens of a sequence.
        split: Which part.
        held_out: Share of the text, its end, that is the test split.

    Raises:
        UsageError: A setting is out of range.
        DataError: This Python was installed without its help.
    """
    check(length, held_out)
    found = topics()
    train, _ = parts(found.text, held_out)
    return of_split(found, kind_of(train, "character", SYMBOLS, None), length, split, held_out)


def topics() -> Corpus:
    """All topics as one text; each version of Python has another."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise DataError("this Python was installed without its help, pydoc_data: dataset=text reads a file") from None
    version = platform.python_version()
    return Corpus(
        corpus.joined([topics[name] for name in sorted(topics)]),
        f"the help of Python {version}, {len(topics)} topics",
        (f"Python's help differs between versions: figures are for {version}",),
    )
