"""Values of a counter are computed in a thread before they are asked for, and the thread ends."""

import threading

import pytest

from diffgen.core.ahead import Ahead


def threads() -> int:
    """Those that compute ahead."""
    return sum(thread.name.startswith("ahead") for thread in threading.enumerate())


class Squares:
    """number -> its square, and who computed it."""

    def __init__(self) -> None:
        self.computed: list[tuple[int, bool]] = []

    def __call__(self, number: int) -> int:
        self.computed.append((number, threading.current_thread() is threading.main_thread()))
        if number == 7:
            raise ValueError("seven")
        return number**2


def test_all_but_the_first_are_computed_in_the_thread() -> None:
    squares = Squares()
    with Ahead(squares, 6) as values:
        assert [values(number) for number in range(6)] == [0, 1, 4, 9, 16, 25]
    assert sorted(squares.computed) == [(0, True), *((number, False) for number in range(1, 6))]


def test_whatever_the_order_the_values_are_right() -> None:
    with Ahead(lambda number: number**2, 6) as values:
        order = [2, 2, 3, 5, 0, 1, 4, 3, 8, 9]
        assert [values(number) for number in order] == [number**2 for number in order]


def test_the_next_value_is_computed_while_this_one_is_used() -> None:
    begun = threading.Event()
    with Ahead(lambda number: begun.set() if number == 4 else None, 9) as values:
        values(3)
        assert begun.wait(timeout=60)


def test_what_is_never_asked_starts_no_thread() -> None:
    with Ahead(abs, 5):
        assert threads() == 0
    with Ahead(abs, 5) as values:
        values(4)
        assert threads() == 0, "there is no next one"


def test_an_error_is_raised_where_the_value_is_asked_for() -> None:
    with Ahead(Squares(), 9) as values:
        assert values(6) == 36
        with pytest.raises(ValueError, match="seven"):
            values(7)
        assert values(8) == 64
    assert threads() == 0


def test_the_thread_ends_with_the_block() -> None:
    with pytest.raises(KeyError), Ahead(abs, 9) as values:
        values(0)
        assert threads() == 1
        raise KeyError
    assert threads() == 0
