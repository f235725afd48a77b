"""Each metric moves the right way when real images are damaged; `scripts/metric_response.py` writes the table."""

import sys

import pytest
from cases import CONFIGS

sys.path.insert(0, str(CONFIGS.parent / "scripts"))

import metric_response as script

NAMES = [name for name, _, _ in script.COLUMNS]


@pytest.fixture(scope="module")
def rows() -> dict[str, dict[str, float]]:
    return {damage: dict(zip(NAMES, values, strict=True)) for damage, values in script.response(epochs=8).items()}


NOISE = ["held-out images", "noise, 5 %", "noise, 20 %"]


@pytest.mark.parametrize("metric", ["Frechet distance", "kernel distance x 1000"])
def test_distances_grow_with_noise_blur_and_missing_classes(rows, metric):
    values = [rows[damage][metric] for damage in NOISE]
    assert values == sorted(values)
    floor = rows["held-out images"][metric]
    for damage in ("blur, light", "no threes", "10 images, 30 times"):
        assert rows[damage][metric] > 1.3 * floor, damage
    assert rows["training images"][metric] < floor


def test_quality_falls_with_noise_and_blur(rows):
    for metric in ("inception score", "precision", "density", "agreement"):
        for damage in ("noise, 20 %", "blur, light"):
            assert rows[damage][metric] < 0.95 * rows["held-out images"][metric], (metric, damage)


def test_variety_falls_with_repetition_and_quality_does_not(rows):
    few, floor = rows["10 images, 30 times"], rows["held-out images"]
    assert few["recall"] == 0
    assert few["coverage"] < 0.2 * floor["coverage"]
    assert few["precision"] > 0.7 * floor["precision"]


def test_a_missing_class_costs_recall_and_inception_score_alone(rows):
    less, floor = rows["no threes"], rows["held-out images"]
    assert less["recall"] < floor["recall"] - 0.02
    assert less["inception score"] < floor["inception score"] - 0.2
    assert less["precision"] > floor["precision"] - 0.05


def test_copies_are_told_and_nothing_else_is(rows):
    assert {damage: row["copies"] for damage, row in rows.items() if row["copies"]} == {"training images": 1.0}


def test_only_agreement_looks_at_labels(rows):
    mixed, floor = rows["labels mixed up"], rows["held-out images"]
    assert {name for name in NAMES if mixed[name] != floor[name]} == {"agreement"}
    assert mixed["agreement"] < 0.25


@pytest.mark.slow
def test_features_without_labels_answer_to_damage():
    from rotation_response import response

    found = response(script.digits(split="train"), script.digits(split="test"), epochs=2)
    floor = found["held-out images"]
    for kinds in (["noise, 2 %", "noise, 5 %", "noise, 20 %"], ["blur, light", "blur, twice"]):
        values = [floor, *(found[kind] for kind in kinds)]
        assert values == sorted(values)
    for kind in ("a tenth with shuffled rows", "a tenth of the images, 10 times", "10 images, repeated"):
        assert found[kind] > 1.3 * floor, kind
    assert found["as many training images"] < floor
