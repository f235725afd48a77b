"""The time that a run has taken, and the pace between two lines of its log."""

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Seconds of training.

    Attributes:
        seconds: In all parts of the run, as they were last read or agreed on.
    """

    def __init__(self) -> None:
        """Count nothing yet."""
        self.seconds = self.before = 0.0
        self.start(0)

    def go_on(self, seconds: float) -> None:
        """Take in what earlier parts of the run took."""
        self.seconds = self.before = seconds

    def start(self, images: int) -> None:
        """Count this part of the run, which stands at so many images, from here."""
        self.started = self.line_at = time.monotonic()
        self.line_images = images

    def read(self) -> float:
        """Seconds up to now, by this process's clock."""
        return self.before + time.monotonic() - self.started

    @contextmanager
    def apart(self, *, counts: bool) -> Iterator[None]:
        """What is done inside is no training: images/s leave it out, and the run's time too unless it `counts`."""
        began = time.monotonic()
        try:
            yield
        finally:
            taken = time.monotonic() - began
            self.line_at += taken
            self.started += 0 if counts else taken

    def pace(self, images: int) -> float | None:
        """Images/s since the last line of the log, if there were any; the next line counts from here."""
        now, seen = time.monotonic(), images - self.line_images
        pace = seen / max(now - self.line_at, 1e-9) if seen else None
        self.line_at, self.line_images = now, images
        return pace
