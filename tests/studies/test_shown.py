"""What chapters show of the records: every number from a row, and its origin beside it."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from studies import toy

from gleak_core import figures, papers, studies
from gleak_core.papers import Cell, Headline, Metric, Result, Rule
from gleak_core.studies import grid, recorded, runner, scoreboard

NAME = "toy.table1"


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A study of three cells of which two are printed; nothing is measured yet."""
    metrics = {"value": Metric("value", "x", "higher", "mean")}
    cells = tuple(Cell({"a": a}, {"value": 100.0 * a}) for a in (1, 2))
    rules = (Rule("It is near print", "close", "value", {}, within=20.0),)
    result = Result(NAME, "A table", "Table 1", "Numbers.", ("a",), (), (), (), cells,
                    Headline("value", {"a": 2}), metrics, rules, {})  # fmt: skip
    study = toy.toy(trials={"smoke": 2, "quick": 3, "paper": 20}, block=10)
    monkeypatch.setattr(studies, "STUDIES", {NAME: study})
    monkeypatch.setattr(papers, "find", lambda name: result)
    monkeypatch.setattr(papers, "ids", lambda: (NAME,))
    line = scoreboard.line
    monkeypatch.setattr(scoreboard, "line", lambda name, **_: line(name, folder=tmp_path))
    monkeypatch.setattr(recorded, "home", lambda profile: tmp_path)
    monkeypatch.setattr(recorded, "_LINES", {})
    return tmp_path


def measure(folder: Path, **options: Any) -> None:
    runner.run([*studies.STUDIES.values()], device="cpu", folder=folder, **options)


def test_a_table_has_a_row_for_each_cell_and_says_where_it_comes_from(shown: Path) -> None:
    measure(shown)
    table = recorded.table(NAME, caption="Values.")
    assert table.columns == ("a", "published value (x)", "value (x)", "n", "not solved")
    assert [row[0] for row in table.rows] == ["1", "2", "3"]
    assert table.rows[1][1] == "200"
    assert table.rows[1][2].startswith("210 [")  # the mean of 200 … 219 is 209.5
    assert table.rows[2][1] == "—"
    assert [row[3] for row in table.rows] == ["20"] * 3
    assert table.caption.startswith(
        "Values. Medians, means or rates with 95 % intervals; 60 trials"
    )
    assert "profile paper" in table.caption


def test_rows_stand_as_in_the_grid_however_they_came(shown: Path) -> None:
    """Two processes write a block each when it is done: the order of the file is chance."""
    measure(shown)
    [path] = shown.rglob("*.csv")
    head, *lines = path.read_text().splitlines()
    path.write_text("\n".join([head, *reversed(lines)]) + "\n")
    table = recorded.table(NAME, caption="Values.")
    assert [row[0] for row in table.rows] == ["1", "2", "3"]
    assert recorded.cells(NAME, a=(2, 3))["a"].tolist() == [2, 3]
    assert recorded.trials(NAME, "value")["a"].tolist() == [1] * 20 + [2] * 20 + [3] * 20


def test_cells_can_be_chosen_by_one_value_or_several(shown: Path) -> None:
    measure(shown)
    assert recorded.cells(NAME, a=2)["ours"].tolist() == [209.5]
    chosen = recorded.cells(NAME, a=(1, 3))
    assert chosen["a"].tolist() == [1, 3]
    assert [*chosen["low"]] < [*chosen["ours"]]
    assert [*chosen["ours"]] < [*chosen["high"]]
    with pytest.raises(ValueError, match=r"toy\.table1 has no key 'b': choose among a"):
        recorded.cells(NAME, b=1)


def test_a_key_with_one_value_has_no_column(shown: Path) -> None:
    measure(shown)
    assert "a" not in recorded.table(NAME, caption="One.", a=2).columns
    assert "a" not in recorded.table(NAME, caption="All.", drop=("a",)).columns


def test_the_values_of_a_key_stand_side_by_side(
    shown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wide = replace(
        studies.STUDIES[NAME], cells=grid(a=(1, 2), b=("x", "y")) + grid(a=(3,), b=("y",))
    )
    monkeypatch.setattr(studies, "STUDIES", {NAME: wide})
    assert "not yet run" in recorded.spread(NAME, "value", "b", caption="Both.").rows[0][0]
    measure(shown)
    table = recorded.spread(NAME, "value", "b", caption="Both.")
    assert table.columns == ("a", "x", "y", "n")
    assert [row[0] for row in table.rows] == ["1", "2", "3"]
    assert table.rows[1][1] == table.rows[1][2] != table.rows[0][1]
    assert table.rows[1][1].startswith("210 [")  # as in `table`
    assert (table.rows[2][1], table.rows[2][3]) == ("—", "20")
    assert table.caption.startswith("Both. Medians, means or rates with 95 % intervals; 100 trials")
    some = recorded.spread(NAME, "value", "a", b="y", drop=("b",), caption="One.")
    assert some.columns == ("1", "2", "3", "n") and len(some.rows) == 1
    with pytest.raises(ValueError, match="unknown key 'c'"):
        recorded.spread(NAME, "value", "c", caption="None.")
    with pytest.raises(ValueError, match="unknown metric 'worth'"):
        recorded.spread(NAME, "worth", "b", caption="None.")


def test_what_is_not_measured_says_how_it_would_be(shown: Path) -> None:
    table = recorded.table(NAME, caption="Values.")
    assert table.rows == (("not yet run: `gleak study toy.table1` measures it",),)
    assert recorded.cells(NAME).empty
    assert "not yet run" in recorded.verdict(NAME)
    assert recorded.source(NAME).startswith("Not yet run")


def test_a_verdict_names_each_rule(shown: Path) -> None:
    measure(shown)
    first, rule = recorded.verdict(NAME).splitlines()
    assert first == "toy.table1: reproduced (1 of 1 rules are met)"
    assert rule.startswith("  ✓ It is near print: 2 of 2 cells")


def test_failures_are_counted_and_gaps_are_shown(
    shown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = toy.toy(toy.not_finite, trials={"smoke": 2, "quick": 3, "paper": 20}, block=10)
    monkeypatch.setattr(studies, "STUDIES", {NAME: bad})
    measure(shown)
    table = recorded.table(NAME, caption="Values.")
    assert {row[2] for row in table.rows} == {"—"}
    assert {row[4] for row in table.rows} == {"20"}


def test_a_result_is_judged_once_until_its_records_change(
    shown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged, line = list[str](), scoreboard.line
    monkeypatch.setattr(scoreboard, "line", lambda name: judged.append(name) or line(name))
    assert recorded.cells(NAME).empty and recorded.cells(NAME).empty and len(judged) == 1
    measure(shown)
    assert len(recorded.cells(NAME)) == len(recorded.cells(NAME)) == 3
    assert len(judged) == 2


def test_cells_of_one_measure_and_the_only_cell(shown: Path) -> None:
    measure(shown)
    assert len(recorded.cells(NAME, "value")) == 3
    assert recorded.cells(NAME, "another").empty
    assert float(recorded.one(NAME, "value", a=2)["ours"]) == 209.5
    with pytest.raises(ValueError, match=r"toy\.table1 has 2 cells of value with a \(1, 2\), not"):
        recorded.one(NAME, "value", a=(1, 2))


def test_the_board_has_a_row_for_each_result(shown: Path) -> None:
    [row] = recorded.board(NAME, caption="Verdicts.").rows
    assert row[2:6] == ("200 x", "—", "0", "not yet run")
    measure(shown)
    [row] = recorded.board("toy", caption="Verdicts.").rows
    assert row[:2] == (NAME, "A table: value")
    assert row[3].startswith("210 [") and row[4] == "20"
    assert row[5] == scoreboard.line(NAME).verdict


def test_every_trial_is_there(shown: Path) -> None:
    assert recorded.trials(NAME, "value").empty
    measure(shown)
    found = recorded.trials(NAME, "value", a=(1, 2))
    assert [*found.columns] == ["a", "seed", "value"] and len(found) == 40
    of_two: Any = found[found["a"].map(int) == 2]
    assert of_two["value"].sub(of_two["seed"].astype(float)).eq(200).all()
    with pytest.raises(ValueError, match="no key 'b'"):
        recorded.trials(NAME, "value", b=1)


def test_trials_of_one_network_count_once(shown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert recorded.by_network(NAME, "value", 10).empty
    measure(shown)
    found: Any = recorded.by_network(NAME, "value", 10)
    assert found.index.name == "a" and [*found.columns] == [0, 1]
    assert found.loc[2].tolist() == [204.5, 214.5]  # seeds 0 … 9, and 10 … 19
    assert recorded.by_network(NAME, "value", 5, a=2).to_numpy().tolist() == [[202, 207, 212, 217]]
    rows = pd.DataFrame({"a": [1, 1, 2, 2], "seed": [0, 1, 0, 1], "value": [1, float("nan"), 3, 5]})
    monkeypatch.setattr(recorded, "trials", lambda *_: rows)
    failed: Any = recorded.by_network(NAME, "value", 2)[0]
    assert math.isnan(failed[1]) and failed[2] == 4


def test_figures_are_drawn_of_what_is_recorded_and_say_so_where_nothing_is(shown: Path) -> None:
    words: Any = {"alt": "Three cells.", "xlabel": "a", "caption": "Values."}
    empty = recorded.intervals(NAME, "value", "a", ylabel="y", **words)
    assert isinstance(empty, figures.Table) and "not yet run" in repr(empty)
    assert repr(recorded.heat_map(NAME, "value", "a", label="x", **words)) == repr(empty)
    measure(shown)
    drawn = recorded.intervals(NAME, "value", "a", ylabel="y", **words)
    assert isinstance(drawn, figures.Figure) and "60 trials" in drawn.caption
    some = recorded.intervals(NAME, "value", "a", ylabel="y", **words, a=(1, 2))
    assert isinstance(some, figures.Figure) and some.png != drawn.png
    maps = [
        recorded.heat_map(NAME, "value", "a", label="x", of=of, limits=(0, 400), **words)
        for of in (None, lambda frame: frame / 2)
    ]
    assert all(isinstance(one, figures.Figure) for one in maps)
    assert maps[0] != maps[1]


def test_too_few_values_have_no_interval_in_a_table() -> None:
    cell = {"ours": 32.25, "low": -math.inf, "high": math.inf, "n": 2}
    assert recorded._interval(cell) == "32.2 (of 2)"
    assert (
        recorded._interval({**cell, "low": 31, "high": 33.5}) == "32.2 [31,\N{NO-BREAK SPACE}33.5]"
    )


def test_pairs_say_how_far_one_setting_is_ahead(shown: Path) -> None:
    assert recorded.ahead(NAME, "value", {"a": 2}, {"a": 1}) is None
    measure(shown)
    ahead = recorded.ahead(NAME, "value", {"a": 2}, {"a": 1})
    assert ahead is not None
    assert (ahead.value, ahead.low, ahead.high, ahead.n) == (100, 100, 100, 20)
    behind = recorded.ahead(NAME, "value", {"a": 1}, {"a": 2})
    assert behind is not None and behind.value == -100


def test_pairs_of_two_studies_are_of_one_seed(shown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each study has a key of its own; a side that is not one row for each seed is refused."""
    measure(shown)
    frames = {
        NAME: pd.DataFrame(
            {"a": 2, "b": [1, 1, 2, 2], "seed": [0, 1, 0, 1], "value": [5.0, 7, 0, 0]}
        ),
        "other": pd.DataFrame({"c": 3, "seed": [1, 0], "value": [1.0, 2]}),
    }

    def trials(name: str, metric: str, **where: int) -> pd.DataFrame:
        some: Any = frames[name]
        for key, value in where.items():
            some = some[some[key] == value]
        return some

    monkeypatch.setattr(recorded, "trials", trials)
    ahead = recorded.ahead(NAME, "value", {"b": 1}, {"c": 3}, against="other")
    assert ahead is not None and (ahead.value, ahead.n) == (4.5, 2)  # 5 - 2 and 7 - 1
    with pytest.raises(ValueError, match="not a one-to-one merge"):
        recorded.ahead(NAME, "value", {"a": 2}, {"c": 3}, against="other")


def test_a_lower_error_is_ahead_by_decades(shown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure(shown)
    result = papers.find(NAME)
    lower = replace(result, metrics={"value": replace(result.metrics["value"], better="lower")})
    monkeypatch.setattr(papers, "find", lambda name: lower)
    recorded._LINES.clear()
    frames = {1: [1e-1] * 3, 2: [1e-3, 1e-4, float("nan")]}

    def trials(name: str, metric: str, *, a: int) -> pd.DataFrame:
        return pd.DataFrame({"a": a, "seed": range(3), metric: frames[a]})

    monkeypatch.setattr(recorded, "trials", trials)
    ahead = recorded.ahead(NAME, "value", {"a": 2}, {"a": 1}, decades=True)
    assert ahead is not None
    assert (ahead.value, ahead.n, ahead.failed) == (pytest.approx(2.0), 3, 1)
