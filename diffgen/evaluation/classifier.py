"""A small convolutional classifier that diffgen trains itself: features and labels without a download.

It is trained on real images by a fixed recipe and a seed; its weights are one plain safetensors file. Distances in its
features are not those of Inception and compare only with others from the same file, which is why every extractor has a
hash.
"""

import copy
import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from diffgen.core.errors import CheckpointError, DataError, require
from diffgen.core.files import write_atomically
from diffgen.core.randomness import data_order, generator
from diffgen.data import Source
from diffgen.data.base import in_order
from diffgen.data.images import to_float
from diffgen.data.splits import Splits
from diffgen.nets.optimizers import eager
from diffgen.storage.checkpoint import check_fit
from diffgen.storage.tensor_file import digest

BATCH = 128
PEAK_LR = 0.1
WARMUP = 0.25
"""Share of the steps in which the learning rate rises; it then falls to 0."""
SAMPLED = 64
"""Examples by which a data set that is not in memory is known."""


class Classifier(nn.Module):
    """Four 3x3 convolutions with batch norm, the last one residual; the first two halve a side of 8 pixels or more.

    Tensors of the file: `convs.{0..3}.weight` of shapes [w, C, 3, 3], [2w, w, 3, 3], [4w, 2w, 3, 3], [4w, 4w, 3, 3];
    `norms.{0..3}.{weight, bias, running_mean, running_var}` of the widths and `num_batches_tracked`; `head.weight`
    [classes, 4w] and `head.bias`. The width w, C and the number of classes are read off these shapes.
    """

    def __init__(self, channels: int, num_classes: int, width: int) -> None:
        """Build the network, with features of size 4 width."""
        super().__init__()
        widths = [channels, width, 2 * width, 4 * width, 4 * width]
        self.channels = channels
        self.convs = nn.ModuleList([nn.Conv2d(a, b, 3, padding=1, bias=False) for a, b in pairwise(widths)])
        self.norms = nn.ModuleList([nn.BatchNorm2d(b) for b in widths[1:]])
        self.head = nn.Linear(4 * width, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] -> the pooled last feature map [B, 4 width]."""
        h = x
        for number, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            residual = h if number == 3 else 0
            h = F.relu(norm(conv(h))) + residual
            if number < 2 and min(h.shape[-2:]) >= 8:
                h = F.max_pool2d(h, 2)
        return h.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] in [-1, 1] -> logits [B, classes]."""
        return self.head(self.features(x))


def train_classifier(source: Source, *, width: int, epochs: int, seed: int, device: torch.device) -> Classifier:
    """Train a classifier; the same weights each time on one kind of device with one number of threads.

    SGD with Nesterov momentum and one cycle of the learning rate (Smith & Topin 2018), and shifts by up to an eighth of
    the image, which suit digits and photographs alike.

    Raises:
        DataError: The images have no labels.
        UsageError: A number is out of range.
    """
    require(1 <= width <= 1024, f"width={width} must be in [1, 1024]")
    require(1 <= epochs <= 10_000, f"epochs={epochs} must be in [1, 10000]")
    if source.shape.num_classes < 2:
        raise DataError("a classifier needs images of at least two classes, and these have no labels")
    model = _initial(source, width, seed).to(device)
    total = math.ceil(epochs * len(source) / BATCH)
    optimizer = eager(torch.optim.SGD)(model.parameters(), PEAK_LR, momentum=0.9, nesterov=True, weight_decay=5e-4)
    rise = max(1, round(WARMUP * total))
    cycle = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / rise, (total - step) / max(1, total - rise))
    )
    with torch.backends.cudnn.flags(enabled=True, deterministic=True):  # else it may add up gradients in any order
        for step, (pixels, labels) in enumerate(source.batches(_epochs(len(source), total, seed), device)):
            x = shift(to_float(pixels), generator("cpu", seed, "shift", step))
            F.cross_entropy(model(x), labels, ignore_index=-1).backward()
            optimizer.step()
            optimizer.zero_grad()
            cycle.step()
    return model.eval().requires_grad_(False)


def _initial(source: Source, width: int, seed: int) -> Classifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Classifier(source.shape.channels, source.shape.num_classes, width)


def _epochs(n: int, steps: int, seed: int) -> Iterator[Tensor]:
    return (data_order(seed, n, step * BATCH, BATCH) for step in range(steps))


def shift(x: Tensor, rng: torch.Generator) -> Tensor:
    """Each image [B, C, H, W] moved by up to an eighth of its sides, filled with -1 (black) at the rim."""
    batch, _, height, width = x.shape
    padding = (height // 8, width // 8)
    padded = F.pad(x, (padding[1], padding[1], padding[0], padding[0]), value=-1.0)
    rows, columns = (
        (torch.randint(2 * pad + 1, (batch, 1), generator=rng) + torch.arange(side)).to(x.device)
        for pad, side in zip(padding, (height, width), strict=True)
    )
    images = torch.arange(batch, device=x.device)[:, None, None]
    return padded[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


# --- what labels are worth ----------------------------------------------------------------------------------------


@torch.inference_mode()
def accuracy(model: Classifier, source: Source, device: torch.device) -> float:
    """Share of the images that the classifier labels right."""
    hits = [model(to_float(pixels)).argmax(1) == labels for pixels, labels in in_order(source, len(source), device)]
    return float(torch.cat(hits).cpu().double().mean())


def class_agreement(logits: Tensor, labels: Tensor) -> Tensor:
    """Share of the images of each class that a classifier takes for that class.

    Args:
        logits: Of generated images, by a classifier that their model never saw, [n, k].
        labels: The classes they were asked to be, int64 [n].

    Returns:
        float64 [k]; NaN for a class of which there is no image.
    """
    hits = (logits.argmax(1) == labels).double()
    k = logits.shape[1]
    return hits.new_zeros(k).index_add(0, labels, hits) / torch.bincount(labels, minlength=k)


def classification_accuracy_score(
    samples: Source, test: Source, *, width: int, epochs: int, seed: int, device: torch.device
) -> float:
    """Accuracy on real images of a classifier trained on generated ones (Ravuri & Vinyals 2019).

    Read it beside the same with real training images: the gap is what the samples lack.
    """
    model = train_classifier(samples, width=width, epochs=epochs, seed=seed, device=device)
    return accuracy(model, test, device)


# --- kept in a cache ----------------------------------------------------------------------------------------------


def trained_here(
    name: str, splits: Splits, cache: Path, device: torch.device, width: int, epochs: int, seed: int
) -> tuple[Classifier, str, dict[str, object]]:
    """The classifier of a data set, trained if the cache does not hold it.

    Args:
        name: What its file is called, before what it was made of and how.
        splits: It is trained on the one, and its accuracy is that on the other, or on the first where there is none.
        cache: A folder for this data set and no other.
        device: Where to train and run.
        width: See `Classifier`.
        epochs: See `train_classifier`.
        seed: See `train_classifier`.

    Returns:
        As `load_classifier`; of the facts, `test_accuracy` is of held-out images, and `train_accuracy` stands where
        there are none.

    Raises:
        CheckpointError: The file in the cache is damaged, or of other data.
    """
    source, recipe = splits.train, {"width": width, "epochs": epochs, "seed": seed}
    path = cache / f"{name}-{identity(source)}-{width}-{epochs}-{seed}.safetensors"
    if not path.exists():
        save_classifier(train_classifier(source, **recipe, device=device), path, {"images": len(source), **recipe})
    try:
        model, checksum, facts = load_classifier(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}; delete it, and it is made again") from None
    if (model.channels, model.head.out_features) != (source.shape.channels, source.shape.num_classes):
        raise CheckpointError(f"classifier {path} was trained on another data set: delete it, or use another folder")
    judge, key = (source, "train_accuracy") if splits.test is None else (splits.test, "test_accuracy")
    if facts.get("accuracy_of") != identity(judge):
        facts = {key: value for key, value in facts.items() if not key.endswith("_accuracy")}
        facts |= {key: accuracy(copy.deepcopy(model).to(device), judge, device), "accuracy_of": identity(judge)}
        save_classifier(model, path, facts)
    return model, checksum, facts


def identity(source: Source) -> str:
    """Twelve letters that differ between data sets; of one that is not in memory, those of a few of its examples."""
    if known := getattr(source, "digest", None):
        return str(known[:12])
    some = torch.arange(0, len(source), max(1, len(source) // SAMPLED))
    total = hashlib.sha256(str(len(source)).encode())
    for tensor in next(source.batches(iter([some]), torch.device("cpu"))):
        total.update(tensor.contiguous().numpy().data)
    return total.hexdigest()[:12]


# --- files --------------------------------------------------------------------------------------------------------


def save_classifier(model: Classifier, path: Path, facts: Mapping[str, object]) -> None:
    """Write the weights, with facts (test accuracy, recipe) and their SHA-256 as metadata."""
    weights = {key: value.cpu().contiguous() for key, value in model.state_dict().items()}
    metadata = {"library": "diffgen", "facts": json.dumps(facts), "sha256": digest(weights, "")}
    write_atomically(path, save(weights, metadata))


def load_classifier(path: Path) -> tuple[Classifier, str, dict[str, object]]:
    """Read a classifier from a file of diffgen's or of anyone's that holds the tensors `Classifier` lists.

    Returns:
        The classifier in evaluation mode on the CPU, the SHA-256 of its weights, and its facts (empty in a plain file).

    Raises:
        CheckpointError: The file is missing, damaged, or holds other tensors.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no iterator)
        facts = json.loads(metadata.get("facts", "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise CheckpointError(f"classifier {path} cannot be read: {error}") from None
    first, head = weights.get("convs.0.weight"), weights.get("head.weight")
    if first is None or head is None or first.ndim != 4 or head.ndim != 2:
        raise CheckpointError(f"classifier {path} lacks convs.0.weight or head.weight: it is another network")
    checksum = digest(weights, "")
    if metadata.get("sha256", checksum) != checksum:
        raise CheckpointError(f"classifier {path} is damaged: its weights do not match their checksum")
    with torch.device("meta"):
        model = Classifier(first.shape[1], head.shape[0], first.shape[0])
    check_fit(model, weights, path)
    model.load_state_dict(weights, assign=True)
    return model.eval().requires_grad_(False), checksum, facts
