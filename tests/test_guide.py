"""The guide from the article to the code does as it says, and its pages and the README's say the same in both languages."""

import contextlib
import io
import itertools
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from test_docs import anchors
from torch import nn

from diffgen.data.mixture import Mixture, mixture
from diffgen.diffusion import transitions
from diffgen.diffusion.schedules import RectifiedFlow

ROOT = Path(__file__).parents[1]
GUIDE = ROOT / "docs" / "from-the-article.md"
FEW_STEPS = ROOT / "docs" / "few-steps.md"
PAIRS = {
    ROOT / "README.md": ROOT / "docs" / "zh" / "README.md",
    **{page: ROOT / "docs" / "zh" / page.name for page in (GUIDE, FEW_STEPS)},
}
ENGLISH = {chinese: english for english, chinese in PAIRS.items()}
AUTOENCODERS = "### 9.1"
"""The section whose commands are a test of their own."""

SHORT = {
    "train": ["train.images=64", "train.minutes=null", "preview.n=4", "sampler.steps=5"],
    "sample": ["n=8"],
    "eval": ["n=4"],
    "export": [],
    "tune": ["tune.n=4"],
}
"""What makes a command quick, by its name."""

FEATURES = ["n=64"]
"""The same for figures that compare pictures: they need more than a few."""


class Block(NamedTuple):
    """A fenced block of a page."""

    section: str
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """All of them, in order, with the heading that they stand under."""
    found, section = [], ""
    for part in re.split(r"^(#{2,} [^\n]*|```\w*\n.*?```)$", page.read_text(), flags=re.DOTALL | re.MULTILINE):
        if part.startswith("#"):
            section = part
        elif part.startswith("```"):
            language, _, text = part.removeprefix("```").removesuffix("```").partition("\n")
            found.append(Block(section, language, text))
    return found


def commands(text: str) -> list[list[str]]:
    """The command lines of a block, as a shell would see them."""
    return [words for line in text.splitlines() if (words := shlex.split(line, comments=True))]


def run(command: Callable[..., Any], words: list[str], folder: Path) -> None:
    """Run a command in short, and look for what it says it writes."""
    program, *arguments = words
    name = program.removeprefix("diffgen-")
    compares = name == "eval" and any("fd" in word for word in arguments)
    short = [] if "--cfg" in arguments else FEATURES if compares else SHORT[name]  # nothing stands behind --cfg
    if "method=vae" in arguments:
        short = [each for each in short if not each.startswith("sampler.")]  # an autoencoder decodes in one step
    done = command(name, *arguments, *short)
    assert done.code == 0, f"{' '.join(words)}: {done.err}"
    for word in arguments:
        key, _, value = word.partition("=")
        if key == "run_dir":
            assert list((folder / value).glob("checkpoints/*/model.safetensors")), words
        if key == "out":
            assert list((folder / value).iterdir()), words


def numbers(text: str) -> list[float]:
    """Those that stand alone; 0.0122 and 4,096, but not those of x0 and 1e5."""
    return [float(number.replace(",", "")) for number in re.findall(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?![\w])", text)]


def words(text: str) -> list[str]:
    """What is between the numbers."""
    return re.sub(r"-?\d[\d,.]*", " ", text).split()


# --- what the guide runs --------------------------------------------------------------------------------------------


def test_the_commands_run(command: Callable[..., Any], tmp_path: Path) -> None:
    lines = [
        line
        for block in blocks(GUIDE)
        if block.language == "bash" and not block.section.startswith(AUTOENCODERS)
        for line in commands(block.text)
    ]
    assert len(lines) >= 20
    for line in lines:
        run(command, line, tmp_path)


@pytest.mark.parametrize("data", [["dataset=digits"]], ids=" ".join)
def test_the_commands_of_autoencoders_run(command: Callable[..., Any], data: list[str], tmp_path: Path) -> None:
    """On data that need no download."""
    from PIL import Image

    (tmp_path / "three" / "images").mkdir(parents=True)  # which the guide has drawn before
    Image.new("L", (8, 8), 128).save(tmp_path / "three" / "images" / "000000.png")
    (block,) = [b for b in blocks(GUIDE) if b.language == "bash" and b.section.startswith(AUTOENCODERS)]
    lines = commands(block.text)
    assert len(lines) == 5
    for line in lines:
        instead = [word for word in line if word != "dataset=mnist"]
        run(command, instead + data if instead != line else line, tmp_path)


def test_python_prints_what_the_guide_says() -> None:
    """What is computed to the digit, and what is learned to a quarter."""
    found, space, said = blocks(GUIDE), dict[str, Any](), 0
    for block, shown in itertools.pairwise(found):
        if block.language != "python":
            continue
        with torch.random.fork_rng(), contextlib.redirect_stdout(io.StringIO()) as out:
            exec(block.text, space)
        printed, said = out.getvalue(), said + 1
        assert not shown.language and words(printed) == words(shown.text)
        rel = 0.25 if "torch.manual_seed" in block.text else 1e-12
        assert numbers(printed) == pytest.approx(numbers(shown.text), rel=rel)
    assert said == 3


# --- formulas and figures of the guide ------------------------------------------------------------------------------


def test_formulas_of_the_straight_path() -> None:
    """What the guide writes out for 1 - t and t, against the functions that it names."""
    line = RectifiedFlow(shift=1.0, t_min=0.001, t_max=1.0)
    s, t = torch.rand(2, 100, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).sort(0).values
    gain, variance = (1 - t) / (1 - s), (t - s) * (t + s - 2 * s * t) / (1 - s) ** 2
    torch.testing.assert_close(transitions.transition(line, s, t), (gain, variance))
    assert (transitions.transition(line, t, s)[1] < 0).all()
    c_x = (1 - t) * s**2 / ((1 - s) * t**2)
    c_0, v = 1 - s - c_x * (1 - t), s**2 * (t - s) * (t + s - 2 * s * t) / (t**2 * (1 - s) ** 2)
    torch.testing.assert_close(transitions.posterior(line, s, t), (c_x, c_0, v))
    torch.testing.assert_close(c_0**2 / (2 * v), (transitions.snr(line, s) - transitions.snr(line, t)) / 2)
    h = 1e-6  # a small step is one of dx = -x / (1 - t) dt + sqrt(2 t / (1 - t)) dw
    gain, variance = transitions.transition(line, s, s + h)
    torch.testing.assert_close((gain - 1) / h, -1 / (1 - s), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(variance / h, 2 * s / (1 - s), rtol=1e-3, atol=1e-3)
    x, sides = torch.linspace(-2, 2, 9, dtype=torch.float64), torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    chance = torch.softmax(-((x - 0.3 * sides) ** 2) / (2 * 0.7**2), 0)[0]  # at t = 0.7, of data at 1 and -1
    torch.testing.assert_close(chance, 1 / (1 + torch.exp(-2 * 0.3 * x / 0.7**2)))


def articles_network(vectors: Mixture, losses: list[float]) -> nn.Module:
    """Train the article's network with its program, in batches of 128."""
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    data = vectors.values.split(128)
    for epoch in range(100):
        total = 0.0
        for x in data:
            optimizer.zero_grad()
            x_noise = (1 - epoch / 100) * x + epoch / 100 * torch.randn_like(x)
            loss = nn.MSELoss()(model(x_noise), x)
            loss.backward()
            optimizer.step()
            total += loss.item()
        losses.append(total / len(data))
    return model


def rows(page: Path, section: str) -> dict[str, list[float]]:
    """Tables of numbers under a heading: what stands first in a row -> the rest of it."""
    text = page.read_text().partition(f"### {section} ")[2].partition("\n### ")[0]
    cells = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in re.findall(r"^\|.*$", text, re.MULTILINE)
    ]
    return {first: numbers(" ".join(rest)) for first, *rest in cells if numbers(" ".join(rest))}


def test_the_articles_program_does_what_the_guide_says() -> None:
    vectors, losses, table = mixture(n=8192, dim=10, components=4, std=0.5, seed=0), list[float](), rows(GUIDE, "5.2")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = articles_network(vectors, losses)
        with torch.no_grad():
            x_test = torch.randn(1, 10)
            reconstructed = model(0.01 * x_test + 0.99 * torch.randn_like(x_test))
    assert [losses[int(epoch) - 1] for epoch in table["epoch"]] == pytest.approx(table["loss"], rel=0.1)
    x0, z = vectors.pairs(4096)
    guess = (vectors.means.mean(0) - x0).square().mean()
    for t in (0.1, 0.5, 0.9):
        x_t = (1 - t) * x0 + t * z
        with torch.no_grad():
            error = (model(x_t.float()) - x0).square().mean()
        best = (vectors.posterior_mean(x_t, torch.tensor(1 - t), torch.tensor(t)) - x0).square().mean()
        assert [float(error), float(best)] == pytest.approx(table[str(t)], rel=0.05)
    assert float(guess) == pytest.approx(0.80, abs=0.005)
    shown = re.findall(r"^(?:reconstructed|mean of data) +(.*)$", GUIDE.read_text(), re.MULTILINE)
    assert reconstructed.dtype == torch.float32 and reconstructed.shape == (1, 10)
    assert reconstructed[0].tolist() == pytest.approx(numbers(shown[0]), abs=0.1)
    assert vectors.values.mean(0).tolist() == pytest.approx(numbers(shown[1]), abs=0.006)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_tutorial_prints_what_the_guide_says(command: Callable[..., Any]) -> None:
    (line,) = [line for b in blocks(GUIDE) for line in commands(b.text) if "experiment=tutorial" in line]
    done = command("train", *line[1:])
    assert done.code == 0, done.err
    (shown,) = [b.text for b in blocks(GUIDE) if b.text.startswith("epoch 1 ")]
    for text in shown.splitlines():
        if match := re.match(r"(epoch \d+)  loss (.*)", text):
            (loss,) = re.findall(rf"^{match[1]} .*  loss ([\d.]+)", done.out, re.MULTILINE)
            assert float(loss) == pytest.approx(float(match[2]), rel=0.05)
        elif numbers(text):
            like = [out for out in done.out.splitlines() if words(out) == words(text)]
            assert any(numbers(out) == pytest.approx(numbers(text), rel=0.1) for out in like), text


# --- both languages -------------------------------------------------------------------------------------------------


class Section(NamedTuple):
    """What does not depend on the language, of what stands under one heading."""

    level: int
    number: str
    blocks: list[tuple[str, list[str]]]
    formulas: list[str]
    spans: Counter[str]
    targets: Counter[str]
    numbers: Counter[str]
    rows: list[int]


def uncommented(text: str) -> list[str]:
    """Lines without comments, and without what stands before them."""
    return [re.sub(r"(^|\s+)#( .*)?$", "", line) for line in text.splitlines()]


def target(page: Path, link: str) -> str:
    """Where a link leads, and to which of its headings; a page in Chinese counts as the one that it is of."""
    if "://" in link:
        return link
    path, _, anchor = link.partition("#")
    file = (page.parent / path).resolve() if path else page
    heading = anchors(file).index(anchor) if anchor else None
    return f"{ENGLISH.get(file, file).relative_to(ROOT)} {heading}"


def sections(page: Path) -> Iterator[Section]:
    """A page, heading by heading."""
    parts = re.split(r"^(```.*?^```)$", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    fenced = [part for part in parts if part.startswith("```")]
    marked = "".join("\n@fenced\n" if part.startswith("```") else part for part in parts)
    for text in re.split(r"^(?=#+ )", marked, flags=re.MULTILINE)[1:]:
        heading = text.splitlines()[0]
        mine = [fenced.pop(0) for _ in re.findall("^@fenced$", text, re.MULTILINE)]
        formulas = re.findall(r"^    (.*)$", text, re.MULTILINE)
        prose = re.sub(r"^    .*$|^@fenced$", "", text, flags=re.MULTILINE)
        spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
        prose = re.sub(r"`[^`]+`", "", prose)
        links = re.findall(r"\]\(([^)\s]+)\)", prose)
        prose = re.sub(r"\]\([^)\s]+\)", "]", prose)
        yield Section(
            level=len(heading) - len(heading.lstrip("#")),
            number=(re.findall(r"^#+ ([\d.]+)", heading) or [""])[0],
            blocks=[(block.splitlines()[0], uncommented(block)) for block in mine],
            formulas=formulas,
            spans=Counter(spans),
            targets=Counter(target(page, link) for link in links),
            numbers=spelled(prose),
            rows=[line.count("|") for line in prose.splitlines() if line.startswith("|")],
        )


SCALES = {"million": 1_000_000, "万": 10_000, "亿": 100_000_000}


def spelled(prose: str) -> Counter[str]:
    """Its numbers: 0.0122, 8x8, 2020; 1.2 million is 120 万."""
    prose = re.sub(r"([\d.]+) and ([\d.]+) million", r"\1 million and \2 million", prose)
    found = re.findall(r"(\d(?:[\d,.]*\d)?)(?: (million|万|亿))?", prose)
    return Counter(f"{float(n.replace(',', '')) * SCALES[s]:.0f}" if s else n for n, s in found)


def test_scales_of_numbers() -> None:
    assert (
        spelled("1.2 and 0.8 million, 8x8")
        == spelled("120 万与 80 万，8x8")
        == Counter(["1200000", "800000", "8", "8"])
    )


@pytest.mark.parametrize("english", PAIRS, ids=lambda page: page.name)
def test_both_languages_say_the_same(english: Path) -> None:
    ours, theirs = list(sections(english)), list(sections(PAIRS[english]))
    assert [(s.level, s.number) for s in ours] == [(s.level, s.number) for s in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert our == their


@pytest.mark.parametrize(
    ("change", "to"),
    [
        ("s = 0 it is", "s = 1 it is"),
        ("run_dir=moons", "run_dir=moon"),
        ("variance = (t - s)", "variance = (s - t)"),
        ("images/moons.png", "images/digits.png"),
        ("`method=edm`", "`method=flow`"),
        ("### 2.3", "## 2.3"),
        ("(../README.md#start)", "(../README.md)"),
    ],
)
def test_a_difference_is_noticed(change: str, to: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ROOT / "docs" / "changed.md"
    text = GUIDE.read_text()
    assert change in text
    read = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda self: text.replace(change, to) if self == page else read(self))
    assert list(sections(page)) != list(sections(GUIDE))


@pytest.mark.parametrize("english", PAIRS, ids=lambda page: page.name)
def test_the_other_language_is_chinese(english: Path) -> None:
    """More than a few words of each are in its own language."""
    hanzi = {page: len(re.findall(r"[\u4e00-\u9fff]", page.read_text())) for page in (english, PAIRS[english])}
    assert hanzi[english] < 10 and hanzi[PAIRS[english]] > 500
