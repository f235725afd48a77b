"""The operators of a pass, counted, and the data of CIFAR-10 as a config names them."""

from collections import Counter
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

CIFAR = {
    "kind": {"name": "pixels", "background": "white", "range": None},
    "size": [3, 32, 32],
    "num_classes": 10,
    "augment_labels": 0,
    "classes": [],
}


class Counting(TorchDispatchMode):
    """Counts operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[func.name()] += 1
        return func(*args, **(kwargs or {}))
