"""The scoreboard: a verdict for what was measured in full, and none for anything else."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from studies import toy

from gleak_core import papers, studies
from gleak_core.papers import Cell, Headline, Metric, Result, Rule
from gleak_core.statistics import Estimate
from gleak_core.studies import runner, scoreboard, store

RULES = (
    Rule("Every value is within 10 of print", "close", "value", {}, within=10.0),
    Rule("It rises", "trend", "value", {}, along="a", direction="rising"),
)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A scoreboard of one result: values near 100, 200 and 300, as the toy study gives them."""

    def make(study=None, rules: tuple[Rule, ...] = RULES, not_testable: str = "") -> None:
        study = study or toy.toy(trials={"smoke": 2, "quick": 3, "paper": 20}, block=10)
        cells = tuple(Cell({"a": a}, {"value": 100.0 * a + 8}) for a in (1, 2, 3))
        metrics = {"value": Metric("value", "x", "higher", "mean")}
        result = Result("toy.table1", "A table", "Table 1", "Numbers.", ("a",), (), (), (), cells,
                        Headline("value", {"a": 2}), metrics, rules, {}, not_testable)  # fmt: skip
        monkeypatch.setattr(studies, "STUDIES", {"toy.table1": study})
        monkeypatch.setattr(papers, "find", lambda name: result)
        monkeypatch.setattr(papers, "ids", lambda: ("toy.table1",))

    return make


def measure(folder: Path, **options: Any) -> None:
    [study] = studies.STUDIES.values()
    runner.run([study], device="cpu", folder=folder, **options)


def test_a_complete_run_that_meets_its_rules_is_reproduced(board, tmp_path: Path) -> None:
    board()
    measure(tmp_path)
    line = scoreboard.line("toy.table1", folder=tmp_path)
    assert (line.verdict, line.why) == ("reproduced", "2 of 2 rules are met")
    assert line.ours is not None
    assert (line.published, line.ours.value, line.ours.n) == (208.0, 209.5, 20)
    assert line.ours.low < 209.5 < line.ours.high
    assert line.profile == "paper"
    assert line.older == ""


def test_another_attack_than_the_source_s_reproduces_nothing(
    board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board()
    measure(tmp_path)
    monkeypatch.setattr(studies, "INSTEAD", {"toy.table1": "by magic"})
    line = scoreboard.line("toy.table1", folder=tmp_path)
    assert (line.verdict, line.why) == ("partly", "2 of 2 rules are met, by magic")


def test_another_data_set_than_the_source_s_reproduces_nothing_either(
    board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board()
    [study] = studies.STUDIES.values()
    board(replace(study, reads=lambda _: ("digits",)))
    measure(tmp_path)
    monkeypatch.setattr(studies, "STAND_INS", {"toy.table1": {"digits": "with drawn digits"}})
    line = scoreboard.line("toy.table1", folder=tmp_path)
    assert (line.verdict, line.why) == ("partly", "2 of 2 rules are met, with drawn digits")
    monkeypatch.setattr(studies, "STAND_INS", {"toy.table1": {"photographs": "with photographs"}})
    assert scoreboard.line("toy.table1", folder=tmp_path).verdict == "reproduced"


def test_what_stands_in_is_of_a_result_that_there_is() -> None:
    for instead in (studies.INSTEAD, studies.STAND_INS):
        assert set(instead) <= set(papers.ids()) & set(studies.STUDIES)
    linnaeus = {s.id for s in studies.STUDIES.values() if "Linnaeus 5" in " ".join(s.deviations)}
    assert set(studies.STAND_INS) == {name for name in linnaeus if name.startswith("cafe.")}


def test_nothing_measured_is_not_yet_run(board, tmp_path: Path) -> None:
    board()
    line = scoreboard.line("toy.table1", folder=tmp_path)
    assert (line.verdict, line.why, line.ours) == ("not yet run", "not yet run", None)


@pytest.mark.parametrize("profile", ["smoke", "quick"])
def test_a_reduced_run_supports_no_verdict(board, profile: str, tmp_path: Path) -> None:
    board()
    measure(tmp_path, profile=profile)
    line = scoreboard.line("toy.table1", folder=tmp_path)
    assert line.verdict == "not yet run"
    assert f"only a {profile} run is there" in line.why
    assert line.ours is not None
    assert line.record()["profile"] == profile


def test_the_paper_profile_goes_before_a_reduced_one(board, tmp_path: Path) -> None:
    board()
    measure(tmp_path)
    measure(tmp_path, profile="quick")
    assert scoreboard.line("toy.table1", folder=tmp_path).profile == "paper"


def test_a_grid_with_gaps_is_not_yet_run(board, tmp_path: Path) -> None:
    board()
    [whole] = studies.STUDIES.values()
    board(replace(whole, cells=whole.cells[:2]))
    measure(tmp_path)
    board(whole)
    line = scoreboard.line("toy.table1", folder=tmp_path)
    assert (line.verdict, line.why) == ("not yet run", "only 2 of 3 cells are measured")


def test_what_need_not_be_there_caps_the_verdict(board, tmp_path: Path) -> None:
    """A cell whose data set not everybody has: without it a result is reproduced in part."""
    board()
    [needed] = studies.STUDIES.values()
    whole = replace(needed, optional={"a": (3,)})
    some = (replace(RULES[0], where={"a": (1, 2)}), RULES[1])

    def judged(folder: str, *there: int) -> tuple[str, str]:
        board(replace(whole, cells=tuple({"a": a} for a in there)))
        measure(tmp_path / folder)
        board(whole, some)
        line = scoreboard.line("toy.table1", folder=tmp_path / folder)
        return line.verdict, line.why

    told = "2 of 2 rules are met, without 3, which was not at hand"
    assert judged("without", 1, 2) == ("partly", told)
    assert judged("gap", 1, 3) == ("not yet run", "only 2 of 3 cells are measured")
    assert judged("whole", 1, 2, 3) == ("reproduced", "2 of 2 rules are met")
    close, trend = RULES  # what fails on the cells that are there fails without the others
    board(whole, rules=(replace(close, within=1.0), replace(trend, direction="falling")))
    line = scoreboard.line("toy.table1", folder=tmp_path / "without")
    assert line.verdict == "not reproduced" and "without 3" in line.why


def test_a_question_of_ours_is_measured_and_not_judged(board, tmp_path: Path) -> None:
    board()
    [study] = studies.STUDIES.values()
    own = replace(study, asks={"value": Metric("value", "m", "higher", "median")})
    board(replace(own, cells=own.cells[:2]))
    measure(tmp_path)
    board(own)
    gap = scoreboard.line("toy.table1", folder=tmp_path)
    assert (gap.verdict, gap.why) == ("not yet run", "only 2 of 3 cells are measured")
    board(own)
    measure(tmp_path)
    line = scoreboard.line("toy.table1", folder=tmp_path)
    assert line.verdict == "measured" and "ours" in line.why
    assert {cell["published"] for cell in line.cells()} == {None}
    assert line.metric("value").unit == "m" and line.result.rules == ()


def test_a_question_names_what_it_measures() -> None:
    with pytest.raises(ValueError, match="asks for other, not what it measures"):
        toy.toy(asks={"other": Metric("other", "", "higher", "mean")})


def test_few_trials_are_not_called_reproduced(board, tmp_path: Path) -> None:
    board()
    measure(tmp_path, trials=19)
    line = scoreboard.line("toy.table1", folder=tmp_path)
    assert line.verdict == "partly"
    assert line.why == "2 of 2 rules are met, with 19 trials in a cell: 20 are asked for"


@pytest.mark.parametrize(
    ("within", "direction", "verdict"),
    [(10.0, "falling", "partly"), (1.0, "rising", "partly"), (1.0, "falling", "not reproduced")],
)
def test_rules_decide(board, within: float, direction: str, verdict: str, tmp_path: Path) -> None:
    close, trend = RULES
    board(rules=(replace(close, within=within), replace(trend, direction=direction)))
    measure(tmp_path)
    line = scoreboard.line("toy.table1", folder=tmp_path)
    assert line.verdict == verdict
    assert [f.met for f in line.findings] == [within == 10.0, direction == "rising"]


def test_what_cannot_be_tested_says_why(board, tmp_path: Path) -> None:
    board(not_testable="its weights are lost")
    line = scoreboard.line("toy.table1", folder=tmp_path)
    assert (line.verdict, line.why) == ("not testable here", "its weights are lost")


def test_measurements_of_different_code_never_mix_in_a_cell(board, tmp_path: Path) -> None:
    """A second measurement that was broken off does not dilute the first."""
    board()
    measure(tmp_path)
    [whole] = studies.STUDIES.values()
    board(replace(whole, measure=toy.not_finite))

    def two(tasks):
        yield from runner.here(tasks[:1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path, execute=two)
    line = scoreboard.line("toy.table1", folder=tmp_path)
    assert line.verdict == "reproduced"
    assert line.why == "2 of 2 rules are met; the library has changed since"
    assert len(line.rows) == 60
    assert "studies.toy:count is gone" in line.older
    assert line.record()["older"] == line.older


def test_cells_of_different_code_are_not_compared(board, tmp_path: Path) -> None:
    """A re-run that was broken off between two cells."""
    board()
    measure(tmp_path)
    [whole] = studies.STUDIES.values()
    board(replace(whole, measure=toy.not_finite, cells=whole.cells[:1]))
    measure(tmp_path)
    board(replace(whole, measure=toy.not_finite))
    line = scoreboard.line("toy.table1", folder=tmp_path)
    assert line.verdict == "not yet run"
    assert line.why == "its cells were measured with 2 states of the code: run it again"


def test_cells_that_the_grid_has_no_more_do_not_count(board, tmp_path: Path) -> None:
    board(toy.toy(cells=[{"a": a} for a in (1, 2, 9)]))
    measure(tmp_path)
    board(toy.toy())
    line = scoreboard.line("toy.table1", folder=tmp_path)
    assert (line.verdict, line.why) == ("not yet run", "only 2 of 3 cells are measured")


def test_one_trial_condemns_nothing(board, tmp_path: Path) -> None:
    close, trend = RULES
    board(rules=(replace(close, within=1.0), replace(trend, direction="falling")))
    measure(tmp_path, trials=1)
    line = scoreboard.line("toy.table1", folder=tmp_path)
    assert line.verdict == "not yet run"
    assert "with 1 trials in a cell: 20 are asked for" in line.why


def test_devices_and_interrupted_trials_do_not_mix(board, tmp_path: Path) -> None:
    """A few trials of a GPU, and one that was broken off, beside a whole run of a CPU."""
    board()
    measure(tmp_path)
    [study] = studies.STUDIES.values()
    kept = store.Store(study, tmp_path)
    some = kept.rows().iloc[:3].to_dict("records")
    with kept.writing() as writer:
        writer.append([{**row, "device": "cuda", "key": "gpu", "value": 0.0} for row in some])
        writer.append([{**some[0], "seed": 99, "value": 0.0, "status": "interrupted"}])
    line = scoreboard.line("toy.table1", folder=tmp_path)
    assert len(line.rows) == 60
    assert line.rows["value"].min() == 100
    assert line.verdict == "reproduced"


def test_a_reading_is_what_is_compared(board, tmp_path: Path) -> None:
    cells = [{"a": a, "b": b} for a in (1, 2, 3) for b in ("theirs", "ours")]
    both = toy.toy(cells=cells, reading={"b": "ours"}, trials=dict.fromkeys(studies.PROFILES, 20))
    board(both)
    measure(tmp_path)
    line = scoreboard.line("toy.table1", folder=tmp_path)
    assert line.ours is not None and line.ours.n == 20
    printed = {(cell["a"], cell["b"]): cell["published"] for cell in line.cells()}
    assert printed[1, "ours"] == 108
    assert printed[1, "theirs"] is None


def test_the_record_is_json_with_nothing_that_is_not_finite(board, tmp_path: Path) -> None:
    board(toy.toy(toy.not_finite))
    measure(tmp_path)
    record = scoreboard.line("toy.table1", folder=tmp_path).record()
    text = json.dumps(record, allow_nan=False)
    wanted = {"id", "published", "ours", "n", "interval", "verdict", "profile", "device", "seconds"}
    assert wanted <= set(json.loads(text))
    assert record["ours"] is None
    assert record["n"] == 6
    assert record["cells"][0]["failed"] == 6


def test_every_result_of_the_papers_has_a_line() -> None:
    lines = scoreboard.lines()
    assert [line.id for line in lines] == list(papers.ids())
    assert {line.verdict for line in lines} <= set(scoreboard.VERDICTS)
    some = scoreboard.lines(["gen"])
    assert {line.id.partition(".")[0] for line in some} == {"gen"}
    with pytest.raises(ValueError, match=r"unknown result 'gen.tabel3': did you mean 'gen.table3'"):
        scoreboard.lines(["gen.tabel3"])


def test_the_readers_are_told_the_same_verdicts() -> None:
    """`book/read` explains every word that the scoreboard uses."""
    from gleak_core.files import ROOT

    text = (ROOT / "book" / "read.md").read_text(encoding="utf-8")
    for verdict in scoreboard.VERDICTS:
        assert f">{verdict.removesuffix(' here')}" in text, verdict


@pytest.mark.parametrize("value", [6.19018e-8, 0.000588, 53.8822, 1234567.0])
def test_a_small_error_is_not_shown_as_none(value: float) -> None:
    shown = scoreboard._estimate(Estimate(value, value, math.inf, 40, 0))
    assert shown["ours"] == pytest.approx(value, rel=1e-5)
    assert shown["interval"][1] is None  # JSON knows no infinity
