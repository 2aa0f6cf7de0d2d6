"""The label tables: batches as the captions have them, and what each rule can and cannot read."""

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gleak_core.studies import general, runner
from gleak_core.studies.batches import repeated
from gleak_core.studies.study import Cell


def counts(labels: torch.Tensor) -> list[int]:
    return sorted(Counter(labels.tolist()).values(), reverse=True)


@settings(max_examples=20, deadline=None)
@given(times=st.lists(st.integers(1, 5), min_size=1, max_size=8), seed=st.integers(0, 1000))
@pytest.mark.parametrize("name", ["faces", "photographs"])
def test_labels_repeat_as_often_as_asked(name: str, times: list[int], seed: int) -> None:
    batch = repeated(name, times, seed=seed, size=8)
    assert counts(batch.labels) == sorted(times, reverse=True)
    # Different pictures, whatever their label: a picture twice would be another experiment.
    assert len(set(batch.indices.tolist())) == sum(times)
    assert torch.equal(batch.labels, repeated(name, times, seed=seed, size=8).labels)


def test_neighbouring_classes_become_one_and_the_number_of_classes_stays() -> None:
    batch = repeated("faces", (9, 1, 1), seed=3, size=8)
    first = int(batch.labels[0])
    assert batch.indices[:9].tolist() == list(range(first, first + 9))
    assert first % 9 == 0
    assert len(batch.classes) == 100


def test_labels_start_again_when_all_are_used() -> None:
    batch = repeated("photographs", (2,) * 16, seed=0, size=8)  # ten classes
    assert counts(batch.labels) == [4] * 6 + [2] * 4


def test_too_many_labels_are_refused() -> None:
    with pytest.raises(ValueError, match="make 11 groups of 9: 12 different labels are too many"):
        repeated("faces", (9,) * 12, seed=0)


def accuracies(measure, seeds: Sequence[int] = range(6), **cell: str | int) -> list[dict]:
    whole: Cell = {"network": "untrained", "dataset": "faces", "weights": "U(±½)", **cell}
    return list(measure(whole, seeds, "cpu"))


@pytest.mark.parametrize("repetition", [0, 3, 8])
def test_grad_inversion_loses_every_extra_copy(repetition: int) -> None:
    """It gives each class once: with r extra copies at most 16 − r of 16 labels can be right."""
    found = accuracies(general.table3, method="GradInversion", repetition=repetition)
    best = 100 * (16 - repetition) / 16
    assert all(row["accuracy"] <= best for row in found)
    assert sum(row["accuracy"] for row in found) / len(found) > best - 5


@pytest.mark.parametrize("method", ["General leakage", "bias gradient"])
def test_counting_does_not(method: str) -> None:
    found = accuracies(general.table3, method=method, repetition=8)
    assert sum(row["accuracy"] for row in found) / len(found) > 90
    assert {row["status"] for row in found} <= {"solved", "failed"}


def test_the_second_table_reads_by_both_rules() -> None:
    found = accuracies(general.table4, dataset="photographs", rep_amount=4, batch=32)
    assert all(min(row["accuracy"], row["accuracy_bias"]) > 80 for row in found)
    whole = [row for row in found if row["accuracy"] == 100]
    assert all(row["status"] == "solved" for row in whole)
    assert all(row["status"] == "failed" for row in found if row not in whole)


def test_a_seed_is_a_trial_of_its_own_and_does_not_move() -> None:
    [one] = accuracies(general.table4, [4], dataset="photographs", rep_amount=2, batch=64)
    several = accuracies(general.table4, [3, 4], dataset="photographs", rep_amount=2, batch=64)
    assert several[1] == one


def test_smoke_needs_no_download() -> None:
    frame = runner.measure(general.STUDIES[0], profile="smoke", device="cpu", trials=1)
    assert len(frame) == 9
    assert frame["accuracy"].between(0, 100).all()
