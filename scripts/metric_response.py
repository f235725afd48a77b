"""How every metric answers to known damage, on real digits: writes docs/metrics.md.

    python scripts/metric_response.py

The reference is the training split, the extractor a classifier trained on it; the damaged images are held out.
"""

import json
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from diffgen.core.files import write_atomically
from diffgen.data import Images
from diffgen.data.digits import digits
from diffgen.data.splits import Splits
from diffgen.evaluation import metrics
from diffgen.evaluation.classifier import class_agreement
from diffgen.evaluation.extractors import classifier
from diffgen.evaluation.statistics import Moments, frechet_distance

ROOT = Path(__file__).parents[1]
N = 300
"""Images in each set: distances compare only at equal numbers."""

COLUMNS = (
    ("Frechet distance", "lower", ".2f"),
    ("kernel distance x 1000", "lower", ".2f"),
    ("inception score", "higher", ".2f"),
    ("precision", "higher", ".2f"),
    ("recall", "higher", ".2f"),
    ("density", "1", ".2f"),
    ("coverage", "higher", ".2f"),
    ("agreement", "higher", ".2f"),
    ("copies", "0", ".2f"),
)


class Set(NamedTuple):
    """Images uint8 [N, 1, 8, 8] and the labels they are said to have, int64 [N]."""

    pixels: Tensor
    labels: Tensor


def damaged() -> dict[str, Set]:
    """Sets of N images; all but the copies are made of held-out ones."""
    train, test = (
        shuffled(each) for each in (digits(split="train"), digits(split="test"))
    )  # they are in the order of writers
    held_out = Set(test.pixels[:N], test.labels[:N])
    others = (test.labels != 3).nonzero()[:N, 0]
    ten = torch.stack([(test.labels == label).nonzero()[0, 0] for label in range(10)]).repeat(N // 10)
    turned = Set(held_out.pixels, held_out.labels[torch.randperm(N, generator=torch.Generator().manual_seed(1))])
    return {
        "held-out images": held_out,
        "training images": Set(train.pixels[:N], train.labels[:N]),
        "noise, 5 %": Set(noisy(held_out.pixels, 0.05), held_out.labels),
        "noise, 20 %": Set(noisy(held_out.pixels, 0.2), held_out.labels),
        "blur, light": Set(blurred(held_out.pixels), held_out.labels),
        "no threes": Set(test.pixels[others], test.labels[others]),
        f"10 images, {N // 10} times": Set(test.pixels[ten], test.labels[ten]),
        "labels mixed up": turned,
    }


def shuffled(images: Images) -> Images:
    """In a random order, always the same."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(2))
    return Images(images.pixels[order], images.labels[order], images.classes)


def noisy(pixels: Tensor, share: float) -> Tensor:
    """With normal noise of a standard deviation of `share` of the range."""
    noise = torch.randn(pixels.shape, generator=torch.Generator().manual_seed(0))
    return (pixels + 255 * share * noise).round().clamp(0, 255).byte()


def blurred(pixels: Tensor) -> Tensor:
    """Half way to the means over 3x3 pixels."""
    means = F.avg_pool2d(pixels.float(), 3, 1, 1, count_include_pad=False)
    return ((pixels + means) / 2).round().byte()


def response(epochs: int = 15) -> dict[str, list[float]]:
    """The value of each column for each set."""
    reference = digits(split="train")
    splits = Splits.of(reference, digits(split="test"))
    with tempfile.TemporaryDirectory() as cache:
        extract = classifier(splits, Path(cache), torch.device("cpu"), width=16, epochs=epochs, seed=0)
    real, _ = extract(reference.pixels)
    train = reference.pixels.flatten(1)
    return {name: judge(real, train, *extract(each.pixels), each) for name, each in damaged().items()}


def judge(real: Tensor, train: Tensor, features: Tensor, logits: Tensor, images: Set) -> list[float]:
    """One row: the columns in their order; copies are looked for among pixels, all else is in features."""
    distance = frechet_distance(Moments.of(real).gaussian(), Moments.of(features).gaussian())
    copies = metrics.memorisation_ratio(images.pixels.flatten(1), train) < metrics.COPY
    return [
        distance,
        1000 * metrics.kernel_distance(real, features, subsets=50, size=200, seed=0)[0],
        metrics.inception_score(logits, splits=5, seed=0)[0],
        *metrics.precision_recall(real, features, k=3),
        *metrics.density_coverage(real, features, k=5),
        float(class_agreement(logits, images.labels).nanmean()),
        float(copies.double().mean()),
    ]


def table() -> str:
    """The document."""
    names, best = [name for name, _, _ in COLUMNS], [better for _, better, _ in COLUMNS]
    rows = [
        f"| {name} | "
        + " | ".join(f"{value:{form}}" for value, (_, _, form) in zip(values, COLUMNS, strict=True))
        + " |"
        for name, values in response().items()
    ]
    head = [f"| {N} images each | " + " | ".join(names) + " |", "|" + "---|" * (len(names) + 1)]
    return TEXT + "\n".join([*head, "| *better is* | " + " | ".join(best) + " |", *rows]) + "\n"


def without_labels() -> str:
    """The part of the document that is of `rotation`, from what `rotation_response.py` has written."""
    files = [ROOT / "benchmarks" / "results" / f"rotation-{name}.json" for name in UNLABELLED]
    results = [json.loads(file.read_text()) for file in files]
    sets = "; ".join(
        f"{words}: {each['images']:,} images, {each['held_out']:,} held out ({file.name}, {each['machine']})"
        for words, each, file in zip(UNLABELLED.values(), results, files, strict=True)
    )
    found = [each["frechet_distance"] for each in results]
    floors = [each["held-out images"] for each in found]
    shown = [f"{words} (floor {floor:.3g})" for words, floor in zip(UNLABELLED.values(), floors, strict=True)]
    rows = [
        f"| {damage} | " + " | ".join(f"{each[damage] / each['held-out images']:.2f}" for each in found) + " |"
        for damage in found[0]
    ]
    head = [f"| Frechet distance over its floor | {' | '.join(shown)} |", "|" + "---|" * (len(results) + 1)]
    return WITHOUT_LABELS.format(sets=sets) + "\n".join([*head, *rows]) + "\n"


def of_text() -> str:
    """The part of the document that is of text, from what `text_response.py` has written."""
    found = json.loads((ROOT / "benchmarks" / "results" / "text-python_docs.json").read_text())
    forms = {"1-grams": ".3f", "2-grams": ".3f", "3-grams": ".3f", "run": ".1f", "whole": ".2f", "entropy": ".2f"}
    rows = [
        f"| {name} | {' | '.join(f'{values[key]:{form}}' for key, form in forms.items())} |"
        for name, values in found["figures"].items()
    ]
    contexts = ", ".join(f"{bits:.2f}" for bits in found["bits"])
    head = OF_TEXT.format(**{**found, "contexts": contexts})
    names = "1-grams | 2-grams | 3-grams | longest run | whole | entropy"
    return (
        "\n".join([f"{head}| {found['held_out']} sequences | {names} |", "|" + "---|" * (len(forms) + 1), *rows]) + "\n"
    )


def of_clips() -> str:
    """The part of the document that is of clips, from what `clip_response.py` has written."""
    found = json.loads((ROOT / "benchmarks" / "results" / "clips-moving_digits.json").read_text())
    forms = {"fd_frames": ".2f", "fd_pairs": ".2f", "motion": ".2f"}
    forms |= dict.fromkeys(("label", "identity", "shape", "straight"), ".2f")
    rows = [
        f"| {name} | {' | '.join(f'{values[key]:{form}}' for key, form in forms.items())} |"
        for name, values in found["figures"].items()
    ]
    head = OF_CLIPS.format(**found)
    names = "frames | pairs | motion | label | identity | shape | straight"
    return "\n".join([f"{head}| {found['clips']} clips | {names} |", "|" + "---|" * (len(forms) + 1), *rows]) + "\n"


TEXT = """# What the metrics answer to

Written by `python scripts/metric_response.py`: known damage to held-out digits, against the training split. Features
and logits are those of the classifier that `extractor=classifier` trains on the training split. Distances compare only
within one table: they depend on the extractor and on the number of images.

- The first row is the floor: what a perfect model would get. The distances are not 0, since 300 images do not fix a
  Gaussian, and since the extractor has seen the training images and not these; the coverage is not 1, since 300 images
  cannot be near all of 1,437.
- Copied training images get below that floor (the kernel distance below 0: the two sets share images); the last column
  tells them. It is the share of images whose nearest training image is less than a third as far as the second nearest,
  in pixels here (Yoon et al. 2023); `diffgen-eval` compares features.
- Few images, many times, are good images: recall and coverage see it best, precision and density hardly.
- Only the agreement (the mean over classes of the share that the classifier takes for what the label says) looks at
  labels.

Metrics of the model itself look at held-out images and draw none: means over `n` of them, the first two with a
standard error.

- `bits` is for every schedule: bits per dimension along the ODE, of images with uniform noise added to their levels.
- `vlb` is for a schedule that is a table (`ddpm_linear`): the variational bound of the chain that was trained, with
  reverse steps of variance beta_t (Ho et al. 2020, eq. 5). Its parts add up: the prior, L_T; the steps between; and the
  decoder, L_0, a Gaussian whose mass falls into the 256 levels. It needs no added noise, and can be below `bits`.
  Of the steps between, 32 are evaluated for each image, at random and each as likely as its term is large in Gaussian
  images. Their mean is the whole sum, and the standard error counts this chance. On a digits model (100 images, one
  seed) all 999 steps gave 4.91 +- 0.046 bits/dim, 30 chosen so 4.90 +- 0.046, and 30 as likely as each
  other 5.08 +- 0.22.
- `denoising` is the error by noise level, on held-out and on training images: where they part, it has learned by heart.

"""

UNLABELLED = {"digits": "digits", "cifar10": "CIFAR-10, 32x32"}

WITHOUT_LABELS = """
## Without labels

Where the data has no labels, `extractor=auto` is `rotation`: a network that is trained to tell which way up the
training images are (Gidaris et al. 2018). The same kinds of damage by its features, written by
`python scripts/rotation_response.py [FOLDER]`. {sets}.

- It answers to noise (from 5 % on; 2 % it hardly sees), blur, torn and repeated images, more the more there is of them.
- Its floors stand beside it as beside the classifier's: held-out images, and one half of the training images by the
  other.
- Near-copies are looked for in pixels, averaged to at most 32x32: features of turns do not tell one picture from
  another.

"""

OF_TEXT = """
## Of text

Divergences (bits) of sets of text from what is held out of Python's own help, what of them stands in the training text,
and the entropy of their characters. Written by `python scripts/text_response.py` (text-python_docs.json, {machine}):
the help of Python {python}, {characters:,} characters to train on and {held_out} sequences of 128 held out.

- The first row is the floor of divergences: text by the same writers. It is far from 0, since so little text does not
  fix so many n-grams, and since the end of a text is about other things.
- Noise and shuffling are seen best by 3-grams; characters alone do not see shuffling at all.
- Text by an n-gram model has the n-grams of the training text as long as they fit into its context, and so a divergence
  as low as the floor, and reads like nothing: divergences are read beside bits/char, which tell it from text.
- Copies of training text are at the floor, and the columns of runs tell them; few sequences, many times, are above it.

Bits a character of n-gram models with contexts of 0 to 5, on the held-out sequences: {contexts}.

"""


OF_CLIPS = """
## Of clips

Known damage to clips of moving digits that were held out, against the training split. Written by
`python scripts/clip_response.py` (clips-moving_digits.json, {machine}).

- The first row is the floor; the second has digits that the classifier was trained on.
- The distance of single frames is blind to time: shuffled and frozen clips are as good to it as real ones. That of
  pairs is of pictures of what changes from a frame to the next, and sees all that goes wrong in time. Features of two
  frames side by side would not: to a classifier that knows a digit wherever it is, a shuffled clip is as good as a real
  one.
- Clips played backwards are at the floor everywhere, as they should be: digits that bounce move alike both ways.
- `motion` is of how much changes and not of what: another digit from the middle on is one change among five.
- `checks` are of one digit on black: they tell at once what is wrong, and say nothing of other films. `shape` is the
  mean over clips, and two digits are alike by some 0.83: only above that does it say anything.
- `straight` lets a centre be off a path by 0.75 pixels in the root mean square over six frames, so that a little noise
  does not count; clips of few frames that are shuffled pass by chance, and those that stand still do not. One frame too
  late can be within that, and `motion` sees it.

FVD, the Frechet distance of clips over features of I3D (Unterthiner et al. 2018), is what papers print, and is not
computed here. Its weights cannot be redistributed, and its figures mislead. A mild distortion in space costs as much as
one that spoils time altogether (317 and 311 in Ge et al. 2024, arXiv 2404.12391): it looks at content more than at
motion. Its features are not Gaussian, and it takes far more clips than are usually judged to settle (arXiv 2410.05203).
Figures of different papers rarely share the clips and the frame rate that they are of. What stands here is split into
questions that have answers, each beside its floor.

"""


if __name__ == "__main__":
    write_atomically(ROOT / "docs" / "metrics.md", table() + without_labels() + of_text() + of_clips())
