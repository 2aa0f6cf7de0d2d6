"""The results on disk: whole rows, one writer, nothing lost."""

import errno
import os
from pathlib import Path

import pandas as pd
import pytest
from studies import toy

from gleak_core.errors import GleakError
from gleak_core.studies import runner
from gleak_core.studies.store import Store, word

ABOUT = {
    "status": "solved", "evaluations": 1, "seconds": 0.5, "profile": "paper", "device": "cpu",
    "key": "k1", "hardware": "CPU", "torch": "2", "python": "3", "gleak": "0", "commit": "abc",
    "date": "2026-01-01",
}  # fmt: skip


def row(a: int, seed: int, value: float = 1.0, **other: object) -> dict[str, object]:
    return {"a": a, "seed": seed, "value": value, **ABOUT, **other}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(toy.toy(), tmp_path)


def fill(store: Store, *rows: dict[str, object]) -> None:
    with store.writing() as writer:
        writer.append(rows)


def test_rows_come_back(store: Store) -> None:
    assert store.rows().empty
    fill(store, row(1, 0, 0.123456789), row(1, 1, float("inf")), row(2, 0, float("nan")))
    frame = store.rows()
    assert frame["value"].tolist()[:2] == [0.123457, float("inf")]
    assert pd.isna(frame["value"][2])
    assert frame["seed"].tolist() == [0, 1, 0]
    assert list(frame.columns) == list(store.columns)


@pytest.mark.parametrize("name", ["evaluations", "seed", "value"])
def test_a_key_that_is_a_column_of_every_row_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"has the key {name}, which is a column of every row"):
        Store(toy.toy(cells=[{name: 1}]), tmp_path)


def test_words_that_pandas_takes_for_nothing_survive(tmp_path: Path) -> None:
    named = Store(toy.toy(cells=[{"defence": "None"}, {"defence": "NA"}]), tmp_path)
    with named.writing() as writer:
        for name in ("None", "NA"):
            writer.append([{"defence": name, "seed": 0, "value": 1, **ABOUT}])
    assert named.rows()["defence"].tolist() == ["None", "NA"]


def test_a_torn_line_is_left_out_and_then_cut_off(store: Store) -> None:
    fill(store, row(1, 0), row(1, 1))
    whole = store.path.read_bytes()
    store.path.write_bytes(whole + b"2,0,1,sol")
    assert len(store.rows()) == 2
    fill(store, row(3, 0))
    assert store.rows()["a"].tolist() == [1, 1, 3]
    assert store.path.read_bytes().startswith(whole)
    assert b"sol\n" not in store.path.read_bytes()


def test_a_full_disk_leaves_the_table_as_it_was(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(store, row(1, 0))
    before = store.path.read_bytes()

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(GleakError, match=r"cannot write .*free some space; what was finished"):
        fill(store, row(2, 0))
    assert store.path.read_bytes() == before


def test_a_new_metric_keeps_the_old_rows(store: Store, tmp_path: Path) -> None:
    fill(store, row(1, 0, 7.0))
    wider = Store(toy.toy(metrics=("more", "value")), tmp_path)
    assert wider.rows()["more"].isna().all()
    with wider.writing() as writer:
        writer.append([row(2, 0, 8.0, more=3.0)])
    frame = wider.rows()
    assert frame["value"].tolist() == [7.0, 8.0]
    assert pd.isna(frame["more"][0])
    assert frame["more"][1] == 3.0


def test_a_metric_may_be_a_column_that_every_row_has(tmp_path: Path) -> None:
    timed = toy.toy(metrics=("value", "seconds"))
    store = Store(timed, tmp_path)
    assert store.columns.count("seconds") == 1
    runner.run([timed], device="cpu", folder=tmp_path, trials=1)
    assert (store.rows()["seconds"] >= 0).all()
    assert list(runner.measure(timed, device="cpu").columns).count("seconds") == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("x,y\n1,2\n", r"lacks the columns a, commit, .* move it away .* or restore it from git"),
        ("", None),
    ],
)
def test_a_file_that_is_no_table_is_named(store: Store, text: str, words: str | None) -> None:
    store.path.parent.mkdir(parents=True)
    store.path.write_text(text)
    if words is None:
        assert store.rows().empty
        return
    with pytest.raises(GleakError, match=words):
        store.rows()


def test_an_unknown_status_and_column_are_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="a row has the columns extra, which its study lacks"):
        fill(store, row(1, 0, extra=1))
    fill(store, row(1, 0, status="fine"))
    with pytest.raises(GleakError, match="rows of status fine: a status is one of solved"):
        store.rows()


def test_damaged_inputs_are_named(store: Store) -> None:
    with store.writing() as writer:
        writer.describe("k1", {"cell": {"a": 1}})
        writer.describe("k1", {"cell": {"a": 2}})  # a key never changes its meaning
    assert store.inputs() == {"k1": {"cell": {"a": 1}}}
    for text in ("{", "[]", "null"):
        store.path.with_suffix(".inputs.json").write_text(text)
        with pytest.raises(GleakError, match="is damaged"):
            store.inputs()


def test_a_column_that_the_study_lacks_is_not_dropped(store: Store, tmp_path: Path) -> None:
    fill(store, row(1, 0))
    narrower = Store(toy.toy(metrics=("other",)), tmp_path)
    with pytest.raises(GleakError, match="has the columns value, so it holds another grid"):
        fill(narrower)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (",0,1,", ",abc,1,", "something else where a number should be"),
        (",0,1,", ",0,oops,", "something else where a number should be"),
        (",paper,", ",papr,", "rows of profile papr: a profile is one of smoke"),
    ],
)
def test_damaged_rows_are_named(store: Store, old: str, new: str, words: str) -> None:
    fill(store, row(1, 0))
    text = store.path.read_text()
    assert old in text
    store.path.write_text(text.replace(old, new))
    with pytest.raises(GleakError, match=words):
        store.rows()


def test_an_interrupted_trial_hides_none_that_was_finished(store: Store) -> None:
    fill(store, row(1, 0), row(1, 0, status="interrupted"))
    assert store.rows()["status"].tolist() == ["solved"]


def test_fewer_trials_replace_none_of_more(store: Store) -> None:
    fill(store, row(1, 0), row(1, 1), row(1, 0, key="k2"))
    with store.writing() as writer:
        writer.tidy({"k2": {"a": 1, "profile": "paper", "device": "cpu"}})
    assert len(store.rows()) == 3


def test_tidying_drops_only_what_a_complete_measurement_replaces(store: Store) -> None:
    fill(store, row(1, 0), row(2, 0), row(1, 0, key="k2"), row(2, 0, key="k3"),
         row(1, 0, profile="quick", key="k4"))  # fmt: skip
    with store.writing() as writer:
        for key in ("k1", "k2", "k3", "k4"):
            writer.describe(key, {})
        writer.tidy({"k2": {"a": 1, "profile": "paper", "device": "cpu"}})
    assert store.rows()[["a", "key"]].to_numpy().tolist() == [
        [2, "k1"], [1, "k2"], [2, "k3"], [1, "k4"],
    ]  # fmt: skip
    assert set(store.inputs()) == {"k1", "k2", "k3", "k4"}


@pytest.mark.parametrize(
    ("value", "text"),
    [(1, "1"), (1.0, "1"), (0.1, "0.1"), (1e-5, "1e-05"), ("x", "x"), (True, "True"),
     (None, ""), (float("nan"), ""), (float("-inf"), "-inf")],
)  # fmt: skip
def test_words(value: object, text: str) -> None:
    assert word(value) == text
