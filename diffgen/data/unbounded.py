"""Pillow without its own limit of pixels; ours is `dataset.max_pixels`."""

from threading import Lock

from PIL import Image


class _Unbounded:
    """Without Pillow's own limit of pixels, which has no name that a user could type; for any number of threads."""

    def __init__(self) -> None:
        self.lock, self.inside, self.before = Lock(), 0, Image.MAX_IMAGE_PIXELS

    def __enter__(self) -> None:
        with self.lock:
            if not self.inside:
                self.before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self.inside += 1

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.inside -= 1
            if not self.inside:
                Image.MAX_IMAGE_PIXELS = self.before


UNBOUNDED = _Unbounded()
