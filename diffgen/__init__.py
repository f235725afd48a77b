"""diffgen: config-driven training and sampling of diffusion and flow-matching image models.

From Python: `run = diffgen.load(PATH)` and `run = diffgen.train([...])`; see docs/python.md.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffgen.api import Run, load, train

__all__ = ["Run", "load", "train"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What is used brings torch and Hydra with it; to import diffgen costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'diffgen' has no attribute {name!r}")
    from diffgen import api

    return vars(api)[name]


def __dir__() -> list[str]:
    """What a notebook offers."""
    return [*__all__, "__version__"]
