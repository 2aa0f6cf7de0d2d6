"""The published numbers against the papers' own text, and the rules of the verdicts."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from gleak_core import files, papers
from gleak_core.errors import GleakError

TEXTS = files.ROOT.parent / "shared" / "papers"
needs_texts = pytest.mark.skipif(
    not TEXTS.is_dir(), reason="the papers' texts are not handed out with the project"
)
RESULTS = [papers.find(name) for name in papers.ids()]
PRINTED = [result for result in RESULTS if result.cells]

# Where a result's numbers stand in its source, from one phrase to the next.
PASSAGES = {
    "dlg.fig1": ("Figure 1: Deep Leakage", "Source:"),
    "dlg.w3-labels": ("the accuracy drops to", "and it gets worse"),
    "cpl.table1": ("Table 1. SSIM and MSE", "fore making all"),
    "cpl.fig10": ("Finally, we see the evidence", "it is plausible"),
    "gen.table1": ("Table 1: Comparison of", "\tBatch Si"),
    "gen.table2": ("Table 2: Ablation", "Table 3: The"),
    "gen.table3": ("Table 3: The comparison", "Table 4: Label"),
    "gen.table4": ("Table 4: Label accuracy", "Impact of Labels"),
    "gen.table5": ("Table 5: Compare", "Figure 5: Batch"),
    "gen.onewrong": ("only one image is incorrectly labeled", "In addition"),
    "cafe.table1a": ("Table 1: CAFE vs DLG", "(a) Comparison"),
    "cafe.table1b": ("Table 1: CAFE vs DLG", "(a) Comparison"),
    "cafe.table2a": ("PSNR Datasets Loss", "(a) HFL"),
    "cafe.table2b": ("PSNR Datasets Loss", "(a) HFL"),
    "cafe.table3a": ("PSNR Datasets Batch size", "(a) HFL (4 workers"),
    "cafe.table3b": ("Batch size\t\t\t\t\t\t\n8", "(b) VFL (4 workers"),
    "cafe.table4": ("Table 4: PSNR via", "4.3 CAFE IN VFL"),
    "cafe.fig3": ("Under CAFE, PSNR reaches", "where the private"),
}
# The copy takes this table apart, column by column and across a figure: only its numbers are left.
SCRAMBLED = {"cafe.table4"}
# The numbers in a passage that are no values: headings and the cells that name a row.
LABELS = {
    "cpl.table1": r"^Table.*$|^\d+\t\d+\t",
    "gen.table1": r"^Table.*$|\(\d Updates\)",
    "gen.table2": r"^Table.*$|^\+tv\S*",
    "gen.table3": r"^Table.*$|^Repetition.*$",
    "gen.table4": r"^Table.*$|^Dataset.*$|^(CIFAR-10|ImageNet)?\t\d(?=\t)",
    "gen.table5": r"^Table.*$|^(Repetition|Rep Amount) \d",
    "cafe.table1a": r"^Table.*$|^1\(DLG\)|^\d+×4|CI(FAR|EAD)[- ]\d+|^\(b\).*$",
    "cafe.table2a": r"CIFAR-\d+|\(\(8\)\)|2020",
    "cafe.table3a": r"CIFAR-\d+|^\d+ per worker",
    "cafe.table3b": r"^\d+\t",
}
# Two tables side by side share a passage.
BESIDE = {"cafe.table1a": "cafe.table1b", "cafe.table2a": "cafe.table2b"}
# The copy gives GradInversion's MSE twice, and its PSNR not at all.
SURPLUS = {"gen.table1": 1}


def read(result: papers.Result) -> str:
    text = (TEXTS / papers.source(result.id).text).read_text(encoding="utf-8")
    start, end = PASSAGES[result.id]
    assert text.count(start) >= 1, f"{result.id}: the text has no {start!r}"
    begin = text.index(start)
    return text[begin : text.index(end, begin + len(start))]


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"\d+(?:\.\d+)?", text)]


def in_print_order(result: papers.Result) -> list[float]:
    """Return a result's values in the order in which its source prints them."""
    rows = [list(cell.values.values()) for cell in result.cells]
    if result.id == "gen.table5":  # a printed cell holds a pair of rows
        pairs = zip(rows[::2], rows[1::2], strict=True)
        rows = [list(itertools.chain(*zip(a, b, strict=True))) for a, b in pairs]
    return [value for row in rows for value in row]


def agrees(values: Sequence[float], found: Sequence[float], *, scrambled: bool) -> bool:
    if scrambled:
        return not Counter(values) - Counter(found)
    rest = iter(found)
    return all(any(value == other for other in rest) for value in values)


@needs_texts
def test_every_target_has_its_result_and_no_other() -> None:
    rows = re.findall(r"^\| ([a-z]+\..*?) \|", (TEXTS / "TARGETS.md").read_text(), flags=re.M)
    assert papers.ids() == tuple(name for row in rows for name in row.split(" / "))
    assert len(papers.ids()) == len(set(papers.ids())) > 50


@needs_texts
@pytest.mark.parametrize("result", PRINTED, ids=lambda r: r.id)
def test_every_value_stands_in_the_source(result: papers.Result) -> None:
    values, found = in_print_order(result), numbers(read(result))
    assert agrees(values, found, scrambled=result.id in SCRAMBLED), f"{values} against {found}"


@needs_texts
@pytest.mark.parametrize("name", sorted(LABELS))
def test_every_printed_value_is_taken(name: str) -> None:
    body = re.sub(LABELS[name], "", read(papers.find(name)), flags=re.M)
    taken = in_print_order(papers.find(name))
    if name in BESIDE:
        taken += in_print_order(papers.find(BESIDE[name]))
    assert len(numbers(body)) == len(taken) + SURPLUS.get(name, 0)
    assert set(numbers(body)) == set(taken)


def test_every_table_is_checked_for_completeness() -> None:
    tables = {result.id for result in PRINTED if ".table" in result.id}
    assert tables == set(LABELS) | set(BESIDE.values()) | SCRAMBLED
    assert {result.id for result in PRINTED} == set(PASSAGES)


@needs_texts
@pytest.mark.parametrize("result", PRINTED, ids=lambda r: r.id)
def test_a_broken_digit_is_seen(result: papers.Result) -> None:
    found, scrambled = numbers(read(result)), result.id in SCRAMBLED
    for k, value in enumerate(values := in_print_order(result)):
        digits = str(value).removesuffix(".0")
        other = float(f"{digits[:-1]}{(int(digits[-1]) + 5) % 10}")
        broken = [*values[:k], other, *values[k + 1 :]]
        assert not agrees(broken, found, scrambled=scrambled), f"{value} passes as {other}"


@needs_texts
@pytest.mark.parametrize(
    "result",
    [r for r in PRINTED if r.id not in SCRAMBLED and len(in_print_order(r)) > 1],
    ids=lambda r: r.id,
)
def test_two_values_in_each_others_place_are_seen(result: papers.Result) -> None:
    values, found = in_print_order(result), numbers(read(result))
    k = next(k for k in range(len(values) - 1) if values[k] != values[k + 1])
    values[k], values[k + 1] = values[k + 1], values[k]
    assert not agrees(values, found, scrambled=False)


# --- What the papers print wrongly -----------------------------------------------------------


def printed(name: str, metric: str, **at: papers.Scalar) -> float:
    value = papers.find(name).published(metric, **at)
    assert value is not None
    return value


def test_one_mse_of_table_2_disagrees_with_its_own_psnr() -> None:
    """A mean of PSNRs lies above the PSNR of the mean MSE: by 2 to 3 dB here, once by 13."""

    def gap(row: str) -> float:
        mse = printed("gen.table2", "mse", regularisers=row)
        return printed("gen.table2", "psnr", regularisers=row) + 10 * math.log10(mse)

    rows = [str(cell.at["regularisers"]) for cell in papers.find("gen.table2").cells]
    assert printed("gen.table2", "mse", regularisers="tv+l2") == 0.1237_10
    assert gap("tv+l2") == pytest.approx(12.9, abs=0.05)
    assert all(2 < gap(row) < 3 for row in rows if row != "tv+l2")
    # One misplaced zero explains it.
    assert 2 < gap("tv+l2") + 10 * math.log10(0.012371 / 0.123710) < 3


def test_two_rows_of_table_4_agree_in_every_digit() -> None:
    result = papers.find("gen.table4")
    rows = [
        [c.values["accuracy"] for c in result.cells if (c.at["dataset"], c.at["rep_amount"]) == row]
        for row in (("CIFAR-10", 4), ("ImageNet", 4), ("CIFAR-10", 2), ("ImageNet", 2))
    ]
    assert rows[0] == rows[1] and rows[2] != rows[3] and len(rows[0]) == 7


def test_table_4_has_cells_for_which_cifar_10_has_too_few_classes() -> None:
    cells = [c for c in papers.find("gen.table4").cells if c.at["dataset"] == "CIFAR-10"]
    labels = [float(c.at["batch"]) / float(c.at["rep_amount"]) for c in cells]
    assert sum(n > 10 for n in labels) == 7 and max(labels) == 128


def test_table_3_needs_more_pictures_of_a_class_than_were_sampled() -> None:
    counts = {int(c.at["repetition"]) + 1 for c in papers.find("gen.table3").cells}
    assert max(counts) == 9 > 5  # "five for each of 200 categories"


def test_table_1_ranks_four_updates_by_psnr_otherwise_than_by_the_rest() -> None:
    at = [{"method": "General leakage", "updates": n} for n in (3, 4)]
    psnr, mse, ssim = (
        [printed("gen.table1", metric, **where) for where in at]
        for metric in ("psnr", "mse", "ssim")
    )
    assert psnr[0] > psnr[1] and mse[0] > mse[1] and ssim[0] < ssim[1]
    assert papers.find("gen.table1").published("psnr", method="GradInversion", updates=1) is None


def test_cpls_loss_does_not_rise_with_client_iterations_as_its_text_says() -> None:
    for batch in (5, 10, 20):
        at_5, at_20 = (
            printed("cpl.table1", "mse", batch=batch, client_iterations=n) for n in (5, 20)
        )
        assert at_5 > 2 * at_20


def test_the_cosine_loss_is_not_close_on_cifar_10_as_cafes_text_says() -> None:
    at = [{"loss": loss, "dataset": "CIFAR-10"} for loss in ("CAFE", "CAFE with cosine similarity")]
    ours, cosine = (printed("cafe.table2b", "psnr", **where) for where in at)
    assert ours - cosine == pytest.approx(12.35)


def test_cafes_iterations_on_linnaeus_are_one_number_divided_by_the_batch() -> None:
    cells = [c for c in papers.find("cafe.table1a").cells if c.at["dataset"] == "Linnaeus"]
    totals = [c.values["iterations"] * float(c.at["batch"]) for c in cells if c.at["batch"] != 1]
    assert totals == pytest.approx([380] * 4, abs=0.5)


@needs_texts
def test_the_slips_of_the_texts_are_there() -> None:
    general = (TEXTS / "general-leakage.txt").read_text(encoding="utf-8")
    assert len(re.findall(r"SSIM\}? \\downarrow", general)) == 3  # Tables 1, 2 and 5
    assert r"mean value of 0.5 ($\mathcal{N}(0,1)$" in general  # the starts are swapped
    cpl = (TEXTS / "cpl-vs-dlg.txt").read_text(encoding="utf-8")
    assert r"C_1) + (2\sigma_{xy}" in cpl and "MSE or the root mean square error" in cpl
    cafe = (TEXTS / "cafe.txt").read_text(encoding="utf-8")
    assert "much larger than the one in VFL" in cafe  # said of VFL: HFL is meant


# --- The rules -------------------------------------------------------------------------------


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    def ranks(values: Sequence[float]) -> list[float]:
        return [sum(w < v for w in values) + (values.count(v) - 1) / 2 for v in values]

    a, b = ranks(list(x)), ranks(list(y))
    middle = (len(a) - 1) / 2
    cross = sum((i - middle) * (j - middle) for i, j in zip(a, b, strict=True))
    size = math.prod(math.sqrt(sum((i - middle) ** 2 for i in r)) for r in (a, b))
    return cross / size if size else 0.0


def without(at: Mapping[str, Any], keys: Sequence[str]) -> tuple[tuple[str, Any], ...]:
    return tuple((key, value) for key, value in at.items() if key not in keys)


def judged_on_print(result: papers.Result, rule: papers.Rule) -> list[bool]:
    """Return whether the printed values meet a rule, once per cell, pair or group it speaks of."""
    cells = [
        c
        for c in result.cells
        if rule.metric in c.values and all(c.at.get(k) in v for k, v in rule.where.items())
    ]
    value = {tuple(c.at.items()): c.values[rule.metric] for c in cells}
    sign = 1 if result.metrics[rule.metric].better == "higher" else -1
    if rule.kind == "bound":
        low = -math.inf if rule.at_least is None else rule.at_least
        high = math.inf if rule.at_most is None else rule.at_most
        return [low <= v <= high for v in value.values()]
    if rule.kind == "order":
        assert rule.first is not None and rule.second is not None
        first, second = dict(rule.first), dict(rule.second)
        ends = [
            {
                without(c.at, list(end)): value[tuple(c.at.items())]
                for c in cells
                if all(c.at.get(k) == v for k, v in end.items())
            }
            for end in (first, second)
        ]
        both = ends[0].keys() & ends[1].keys()
        return [sign * (ends[0][k] - ends[1][k]) > rule.margin for k in both]
    if rule.kind == "trend":
        assert rule.along is not None
        groups: dict[Any, list[tuple[float, float]]] = {}
        for c in cells:
            point = (float(c.at[rule.along]), c.values[rule.metric])
            groups.setdefault(without(c.at, [rule.along]), []).append(point)
        lines = [[*zip(*points, strict=True)] for points in groups.values() if len(points) > 1]
        return [follows(rule, line) for line in lines]
    return [True] * bool(value)  # close and rank: print agrees with itself


def follows(rule: papers.Rule, points: Sequence[Sequence[float]]) -> bool:
    if rule.direction == "flat":
        assert rule.within is not None
        return max(points[1]) - min(points[1]) <= rule.within
    rho = spearman(*points)
    return (rho if rule.direction == "rising" else -rho) >= 0.8 - 1e-9


def rules() -> Iterator[tuple[papers.Result, papers.Rule]]:
    return ((result, rule) for result in RESULTS for rule in result.rules)


def test_print_meets_its_own_rules() -> None:
    """A rule is the source's claim: where the source prints cells, they have to meet it."""
    judged = 0
    for result, rule in rules():
        if verdicts := judged_on_print(result, rule):
            judged += 1
            assert sum(verdicts) >= rule.share * len(verdicts), f"{result.id}: {rule.says}"
    assert judged > 40


def test_every_kind_of_rule_is_used_and_no_result_has_too_many() -> None:
    assert {rule.kind for _, rule in rules()} == {"close", "order", "rank", "trend", "bound"}
    for result in RESULTS:
        assert 1 <= len(result.rules) <= 4 or result.not_testable
        assert len({rule.says for rule in result.rules}) == len(result.rules)


def test_a_rule_selects_what_print_can_name() -> None:
    """A misspelt value would select nothing, silently: compare with print what is printed."""
    for result, rule in rules():
        assert all(rule.where.values()), f"{result.id}: {rule.says}"
        if rule.along:
            assert not any(isinstance(cell.at[rule.along], str) for cell in result.cells)
            assert not any(isinstance(v, str) for v in rule.where.get(rule.along, ()))
        for key in set(rule.where) & set(result.keys):
            known = {cell.at[key] for cell in result.cells}
            if rule.kind in ("close", "rank"):
                assert set(rule.where[key]) <= known, f"{result.id}: {rule.says}"
            for value, other in itertools.product(rule.where[key], known):
                assert isinstance(value, str) == isinstance(other, str), f"{result.id}: {key}"


def test_a_metric_means_the_same_everywhere() -> None:
    for result, other in itertools.combinations(RESULTS, 2):
        for name in result.metrics.keys() & other.metrics.keys():
            a, b = result.metrics[name], other.metrics[name]
            assert (a.unit, a.better) == (b.unit, b.better), f"{name} of {result.id}, {other.id}"


def test_sources_are_in_the_bibliography() -> None:
    known = (files.ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    for prefix in ("dlg", "cpl", "gen", "cafe"):
        assert f"{{{papers.source(prefix).key}," in known


# --- The module ------------------------------------------------------------------------------


def test_a_published_number_is_asked_for_by_its_place() -> None:
    table = papers.find("gen.table3")
    assert table.published("accuracy", method="General leakage", repetition=8) == 99.60
    assert table.published("accuracy", method="General leakage", repetition=9) is None
    assert (
        table.published("accuracy", method="General leakage", repetition=8, network="untrained")
        == 99.60
    )
    assert (
        table.published("accuracy", method="General leakage", repetition=8, network="trained")
        is None
    )
    with pytest.raises(ValueError, match=r"unknown metric of gen\.table3 'acuracy': did you mean"):
        table.published("acuracy", method="General leakage", repetition=8)
    with pytest.raises(ValueError, match=r"unknown key of gen\.table3 'batch'"):
        table.published("accuracy", batch=8)
    with pytest.raises(ValueError, match=r"a cell of gen\.table3 also needs repetition"):
        table.published("accuracy", method="General leakage")


def test_sources_are_found_by_result_and_by_prefix() -> None:
    assert papers.source("gen.table3") is papers.source("gen")
    assert papers.source("cafe.z").text == "cafe.txt"
    for name in ("gen.tabel3", "geng"):
        with pytest.raises(GleakError, match=f"unknown result '{name}'"):
            papers.source(name)
    with pytest.raises(GleakError, match=r"did you mean 'gen\.table3'"):
        papers.find("gen.tabel3")


SAMPLE = """
[source]
key = "k2021"
title = "T"
text = "t.txt"
chapter = "01_t"

[[result]]
id = "t.table1"
title = "A table"
place = "Table 1"
claim = "Large is better."
keys = ["size"]
stated = []
open = []
columns = ["size", "psnr"]
cells = [[1, 10.0], [2, nan], [3, 30.0]]
headline = { metric = "psnr", at = { size = 3 } }
ours_keys = { network = "untrained" }
metrics.psnr = { unit = "dB", better = "higher", statistic = "mean" }
metrics.count = { unit = "", better = "none", statistic = "mean" }
rule = [
  { says = "close", kind = "close", metric = "psnr", where = { size = [1, 3] }, within = 3 },
  { says = "order", kind = "order", metric = "psnr", first = { size = 3 }, second = { size = 1 } },
  { says = "trend", kind = "trend", metric = "psnr", along = "size", direction = "rising" },
  { says = "bound", kind = "bound", metric = "count", at_least = 1 },
]
"""
RANK = '  { says = "rank", kind = "rank", metric = "psnr", at_least = 0.8 },\n]\n'


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "paper.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_sample_is_right(tmp_path: Path) -> None:
    source, (result,) = papers.load(written(tmp_path, SAMPLE))
    assert source.key == "k2021" and result.rules[0].where == {"size": (1, 3)}
    assert result.published("psnr", size=1) == 10 and result.published("psnr", size=2) is None
    assert result.rules[1].share == 1 and result.rules[1].margin == 0


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("[source]", "[sources]", "unknown field of the file 'sources': did you mean 'source'"),
        ('key = "k2021"\n', "", "source needs key"),
        ('title = "A table"', 'titel = "A table"', "unknown field of t.table1 'titel'"),
        ('claim = "Large is better."\n', "", "t.table1 needs claim"),
        ("stated = []", 'stated = "no"', "stated of t.table1 must be a list, not 'no'"),
        ('place = "Table 1"', "place = true", "place of t.table1 must be text, not True"),
        ('kind = "bound"', 'kind = "bond"', "unknown kind of rule of t.table1 'bond'"),
        ('metric = "count"', 'metric = "cuont"', "unknown metric of t.table1 'cuont'"),
        ('columns = ["size", "psnr"]', 'columns = ["size", "ssim"]', "metric of t.table1 'ssim'"),
        ("[1, 10.0]", "[1]", "cell [1] of t.table1 has 1 entries for 2 columns"),
        ("[1, 10.0]", '[1, "ten"]', "cell [1, 'ten'] of t.table1 needs numbers behind its keys"),
        ("[1, 10.0]", "[3, 10.0]", "cell of t.table1 {'size': 3} stands twice"),
        ('keys = ["size"]', 'keys = ["width"]', "columns of t.table1 must begin with its keys"),
        ('network = "untrained"', 'size = "untrained"', "key of t.table1 'size' stands twice"),
        ('direction = "rising"', 'direction = "up"', "unknown direction of a rule of kind trend"),
        ('direction = "rising"', 'direction = "flat"', "needs within if it is flat, and only then"),
        ('along = "size"', 'along = "width"', "unknown key of t.table1 'width'"),
        ("where = { size =", "where = { sise =", "unknown key of t.table1 'sise'"),
        ("first = { size = 3 }", "first = { width = 3 }", "unknown key of t.table1 'width'"),
        ("first = { size = 3 }", 'first = { network = "x" }', "first and second to give the same"),
        ("first = { size = 3 }", "first = { size = 1 }", "to give the same keys other values"),
        ("first = { size = 3 }, ", "", "a rule of kind order of t.table1 needs first"),
        ('"order", metric = "psnr"', '"order", metric = "count"', "and count has none"),
        ("within = 3", "share = 0.5", "needs exactly one of within and factor"),
        ("within = 3", "within = 3, factor = 2", "needs exactly one of within and factor"),
        ("within = 3", "within = 3, share = 1.5", "must lie in (0, 1], not 1.5"),
        ("within = 3", 'within = "3"', "must be a number, not '3'"),
        ("size = [1, 3]", "size = 2", "selects 0 printed values, and needs 1"),
        ("size = [1, 3]", 'network = "trained"', "selects 0 printed values, and needs 1"),
        ("]\n", RANK, "a rule of kind rank of t.table1 selects 2 printed values, and needs 3"),
        ('"trend", kind', '"order", kind', "rule of t.table1 'order' stands twice"),
        ('{ metric = "psnr", at', '{ metric = "ssim", at', "unknown metric of t.table1 'ssim'"),
        (
            "at = { size = 3 }",
            "at = { width = 3 }",
            "headline of t.table1 must name a cell",
        ),
        ('better = "none"', 'better = "more"', "unknown better of count of t.table1 'more'"),
        ('"higher", statistic = "mean"', '"higher", statistic = "sum"', "unknown statistic"),
        ('unit = "dB", ', "", "metric psnr of t.table1 needs unit"),
        ("ours_keys", 'not_testable = "no"\nours_keys', "either a rule or the reason"),
        ("[source]", "[source", "cannot use the published numbers in"),
        ("[[result]]", "[result]", "result of the file must be a list"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    assert old in SAMPLE
    head, _, tail = SAMPLE.rpartition(old) if old == "]\n" else SAMPLE.partition(old)
    with pytest.raises(GleakError, match=re.escape(sentence)):
        papers.load(written(tmp_path, head + new + tail))


def test_a_result_without_rules_says_why(tmp_path: Path) -> None:
    head, _, _ = SAMPLE.partition("rule = [")
    with pytest.raises(GleakError, match="needs either a rule or the reason"):
        papers.load(written(tmp_path, head))
    reason = head.replace("ours_keys", 'not_testable = "no data"\nours_keys')
    (result,) = papers.load(written(tmp_path, reason))[1]
    assert result.not_testable == "no data" and not result.rules


def test_an_identifier_stands_once(tmp_path: Path) -> None:
    again = SAMPLE + SAMPLE[SAMPLE.index("[[result]]") :]
    with pytest.raises(GleakError, match=r"identifier 't\.table1' stands twice"):
        papers.load(written(tmp_path, again))
    with pytest.raises(GleakError, match="cannot use the published numbers in"):
        papers.load(tmp_path / "none.toml")


@pytest.mark.parametrize(
    ("name", "words"),
    [("psnr", "PSNR"), ("success_rate", "share leaked"), ("label_accuracy", "label accuracy")],
)
def test_a_measure_is_called_by_words(name: str, words: str) -> None:
    assert papers.Metric(name, "", "higher", "mean").words == words
