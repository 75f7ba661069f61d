"""Likely label errors: folds, what is listed, and the table that `resplit` takes."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fsl_dist.data.catalogue import Catalogue
from fsl_dist.data.ingest.resplit import ResplitOptions, resplit
from fsl_dist.evaluation.label_errors import (
    FOLDS,
    deal_folds,
    find_suspects,
    least_odds,
    predict_out_of_sample,
    write_label_errors,
)
from fsl_dist.heads.fitting import Embedded


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 6)), min_size=1, max_size=60), st.integers(0, 3))
def test_folds_divide_no_unit_and_spread_every_class(rows: list[tuple[int, int]], seed: int) -> None:
    labels, units = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True))
    folds = deal_folds(labels, units, seed)
    assert ((folds >= 0) & (folds < FOLDS)).all()
    assert folds.tolist() == deal_folds(labels, units, seed).tolist()
    for label in np.unique(labels):
        own = labels == label
        is_one_unit = len(np.unique(units[own])) == 1 and units[own][0] >= 0
        # An image without a unit is one of its own.
        parts = len(np.unique(units[own & (units >= 0)])) + int((own & (units < 0)).sum())
        if is_one_unit:
            continue
        for unit in np.unique(units[own & (units >= 0)]):
            of_unit = own & (units == unit)
            assert len(np.unique(folds[of_unit])) == 1
        pure = all(len(np.unique(labels[units == unit])) == 1 for unit in np.unique(units[own]) if unit >= 0)
        if pure and parts > 1:
            assert len(np.unique(folds[own])) > 1


def test_a_class_of_one_unit_is_divided() -> None:
    folds = deal_folds(np.zeros(10, dtype=np.int64), np.full(10, 7))
    assert len(np.unique(folds)) == FOLDS


def blobs(seed: int, per_class: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(4), per_class)
    centres = 4 * np.eye(4, 12)
    return (centres[labels] + rng.normal(size=(len(labels), 12))).astype(np.float32), labels


@pytest.mark.parametrize(("num_classes", "kind"), [(4, "logistic"), (4000, "knn")])
def test_changed_labels_are_listed_and_their_classes_suggested(num_classes: int, kind: str) -> None:
    vectors, labels = blobs(0)
    noisy, changed = labels.copy(), np.arange(0, 160, 32)
    noisy[changed] = (labels[changed] + 1) % 4
    # 0.1 s are too few for logistic regression of 4,000 classes, enough for the vote of neighbours.
    classes = np.arange(num_classes)
    seconds = None if kind == "logistic" else 0.1
    found = predict_out_of_sample(Embedded(np.arange(160), vectors, noisy), classes, seconds=seconds)
    assert found is not None
    assert found.head.kind == kind
    assert found.is_judged.all()
    suspects = find_suspects(found.probabilities, noisy)
    assert len(suspects.rows) >= len(changed) / 2
    assert set(suspects.rows) <= set(changed)
    assert (suspects.suggested == labels[suspects.rows]).all()
    assert suspects.is_confident.any()


def test_without_time_nothing_is_judged() -> None:
    vectors, labels = blobs(0)
    assert predict_out_of_sample(Embedded(np.arange(160), vectors, labels), np.arange(4), seconds=0.0) is None


def test_an_image_without_others_of_its_class_is_not_judged() -> None:
    vectors, labels = blobs(1, per_class=6)
    labels = labels.copy()
    labels[0] = 9
    found = predict_out_of_sample(Embedded(np.arange(24), vectors, labels), np.array([0, 1, 2, 3, 9]))
    assert found is not None
    assert not found.is_judged[0]
    assert found.is_judged[1:].all()


def test_suspects_are_ranked_by_odds() -> None:
    probabilities = np.array([[0.5, 0.5, 0.0], [0.01, 0.98, 0.01], [0.002, 0.9, 0.098], [0.13, 0.87, 0.0]])
    assert least_odds(3) == 7
    assert least_odds(100) == 20
    suspects = find_suspects(probabilities, np.zeros(4, dtype=np.int64))
    assert suspects.rows.tolist() == [2, 1]
    assert suspects.suggested.tolist() == [1, 1]


def test_resplit_takes_the_table(digits: Path, tmp_path: Path) -> None:
    import shutil

    data = tmp_path / "data"
    shutil.copytree(digits, data)
    before = Catalogue.open(data)
    keys = before.keys(np.arange(before.num_samples))
    ids = np.array([5, 2])
    suggested = (before.labels[ids] + 3) % before.num_classes
    probability = np.full(before.num_samples, np.nan)
    probability[ids] = [0.9, 0.8]
    table = tmp_path / "label_errors.csv"
    write_label_errors(table, before, ids, suggested, probability)
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows[:2]] == [keys[5], keys[2]]
    assert [row["probability"] for row in rows[:3]] == ["0.9000", "0.8000", ""]
    report = resplit(data, ResplitOptions(table=str(table), key_column="key", label_column="suggested"))
    assert not report.bad_samples
    after = Catalogue.open(data)
    assert after.num_samples == before.num_samples
    names = {
        key: after.label_name(int(label))
        for key, label in zip(after.keys(np.arange(len(after))), after.labels, strict=True)
    }
    for sample, key in enumerate(keys):
        label = suggested[list(ids).index(sample)] if sample in ids else before.labels[sample]
        assert names[key] == before.label_name(int(label))
    sides = dict(zip(after.keys(np.arange(len(after))), after.splits.tolist(), strict=True))
    assert [sides[key] for key in keys] == before.splits.tolist()
