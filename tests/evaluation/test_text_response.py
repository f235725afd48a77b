"""Each metric of text moves the right way when real text is damaged; `scripts/text_response.py` writes the table."""

import sys

import pytest
from cases import CONFIGS

sys.path.insert(0, str(CONFIGS.parent / "scripts"))

import text_response as script

from diffgen.evaluation.ngrams import NGrams

Rows = dict[str, dict[str, float]]


@pytest.fixture(scope="module")
def rows() -> Rows:
    judged = script.texts(60)
    return script.response(judged, NGrams.fit(judged.stream, judged.vocabulary, longest=5))


NOISE = ["training text", "one character in 20 another", "one in 5", "characters of each sequence shuffled"]


@pytest.mark.parametrize("grams", ["2-grams", "3-grams"])
def test_divergences_grow_with_noise_and_shuffling(rows: Rows, grams: str) -> None:
    values = [rows[damage][grams] for damage in NOISE]
    assert values == sorted(values)
    assert values[-1] > 1.5 * values[0]


def test_single_characters_do_not_see_shuffling(rows: Rows) -> None:
    assert rows[NOISE[-1]]["1-grams"] == pytest.approx(rows[NOISE[0]]["1-grams"])


def test_copies_are_told_by_runs_alone(rows: Rows) -> None:
    for copies in ("training text", "a tenth of the sequences, 10 times"):
        assert (rows[copies]["whole"], rows[copies]["run"]) == (1, script.LENGTH)
    for damage in NOISE[1:]:
        assert rows[damage]["whole"] < 0.1
    runs = [rows[damage]["run"] for damage in NOISE]
    assert runs == sorted(runs, reverse=True)


def test_an_n_gram_model_has_the_n_grams_of_its_text(rows: Rows) -> None:
    """Where they fit into its context; what it writes is new."""
    written, text = rows["made by the n-gram model, context of 2"], rows["training text"]
    assert written["3-grams"] < 1.2 * text["3-grams"]
    assert written["run"] < 0.3 * script.LENGTH
