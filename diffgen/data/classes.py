"""Names of classes: their order, and which class a value means."""

from collections.abc import Iterable, Sequence

from diffgen.core.errors import DataError


def sort_names(names: Iterable[str]) -> tuple[str, ...]:
    """Each name once, in order: numbers first and as numbers, so that 2 comes before 10, then words."""

    def rank(name: str) -> tuple[bool, int, str]:
        number = _whole(name)
        return number is None, number or 0, name

    return tuple(sorted(set(names), key=rank))


def number_of(value: object, classes: Sequence[str], count: int | None = None) -> int | None:
    """The number of the class that a value means: a name first, whatever the value's type, else a number.

    A folder called 3 is what `3` asks for, wherever it stands in the order; a number counts only where no class is
    called so.

    Args:
        value: As YAML, JSON or a file of labels has it: text, a number, true or false.
        classes: Their names; empty where they have none.
        count: How many there are, if they have no names.

    Returns:
        The number, or None if the value means no class.
    """
    text = str(value)
    same = [i for i, name in enumerate(classes) if name == text]
    if isinstance(value, bool):  # `true` and `True` are one value in YAML
        same = same or [i for i, name in enumerate(classes) if name.casefold() == text.casefold()]
    if same:
        return same[0]
    number = None if isinstance(value, bool) else _whole(text.removesuffix(".0"))
    return number if number is not None and number < (count or len(classes)) else None


def renumber(own: Sequence[str], known: Sequence[str], what: str, *, by_number: bool = False) -> list[int]:
    """The numbers in `known` of the classes `own`, by name.

    Args:
        own: Names of the classes of some examples.
        known: Names of the classes that they are to be told by.
        what: Which examples, for the sentence.
        by_number: Whether a name may be the number of a class, where no class is called by a number.

    Raises:
        DataError: One is no known class.
    """
    numbers, by_number = [], by_number and not any(_whole(name) is not None for name in known)
    for name in own:
        number = number_of(name, known)
        if number is None or not (by_number or name in known):
            raise DataError(f"{what}: {name!r} is named as no class; the classes are [{', '.join(known)}]")
        numbers.append(number)
    return numbers


def _whole(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else None
