"""Values of a counter, computed in a thread before they are asked for."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class Ahead(Generic[T]):
    """A function of 0, 1, 2, ... whose next value is computed in a thread while the caller uses this one.

    The thread starts when the first value is asked for, which the caller computes itself, and has ended when the
    block `with Ahead(...) as values` is left, also by an exception.
    """

    def __init__(self, make: Callable[[int], T], count: int) -> None:
        """Nothing is computed before it is asked for.

        Args:
            make: number -> value, the same whoever asks and when.
            count: Values from this number on are not computed ahead.
        """
        self.make, self.count = make, count
        self.thread = ThreadPoolExecutor(1, "ahead")  # it starts with the first task
        self.begun: dict[int, Future[T]] = {}

    def __call__(self, number: int) -> T:
        """The value of a number, in whatever order they are asked for; what `make` raises is raised here."""
        begun, following = self.begun.get(number), number + 1
        if following not in self.begun:
            self.begun = {following: self.thread.submit(self.make, following)} if following < self.count else {}
        return begun.result() if begun else self.make(number)

    def __enter__(self) -> "Ahead[T]":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Wait for what has begun; nobody wants it any more."""
        self.thread.shutdown(cancel_futures=True)
