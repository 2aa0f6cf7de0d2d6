"""The rows that the book stands on: whole, of a known commit, each with all it depends on."""

import pytest

from gleak_core import studies
from gleak_core.files import ROOT
from gleak_core.studies import inputs, scoreboard
from gleak_core.studies.store import RESULTS, Store, word

RECORDED = [study for study in studies.STUDIES.values() if Store(study).path.exists()]


def test_every_table_belongs_to_a_study() -> None:
    known = {Store(study).path for study in studies.STUDIES.values()}
    assert set(RESULTS.glob("*/*.csv")) <= known
    assert [study.id for study in RECORDED]  # the label tables at least


@pytest.mark.parametrize("study", RECORDED, ids=lambda study: study.id)
def test_rows_say_where_they_come_from(study: studies.Study) -> None:
    store = Store(study)
    rows, known = store.rows(), store.inputs()
    assert set(rows["profile"]) == {"paper"}
    assert not [c for c in set(rows["commit"]) if "modified" in c or c == "unknown"]
    assert set(rows["key"]) == set(known)
    for key, some in rows.groupby("key"):
        assert inputs.key(known[key]) == key
        at = {name: word(value) for name, value in known[key]["cell"].items()}
        assert all({n: word(row[n]) for n in at} == at for row in some.to_dict("records"))
        assert sorted(some["seed"]) == list(range(len(some)))


@pytest.mark.parametrize("study", RECORDED, ids=lambda study: study.id)
def test_no_data_or_path_of_a_machine_is_recorded(study: studies.Study) -> None:
    for path in (Store(study).path, Store(study).path.with_suffix(".inputs.json")):
        text = path.read_text(encoding="utf-8")
        assert str(ROOT) not in text
        assert "absent" not in text


def test_the_label_tables_are_there_in_full() -> None:
    for name in ("gen.table3", "gen.table4"):
        line = scoreboard.line(name, folder=RESULTS)
        assert line.verdict in ("reproduced", "partly", "not reproduced"), line.why
        assert line.rows.groupby("key").size().min() == 31
        assert line.rows.groupby("key").ngroups == len(studies.find(name).cells)
