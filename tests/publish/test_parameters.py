"""Parameters: what the page shows is what ran, or nothing runs."""

import nbformat
import pytest
from hypothesis import given
from hypothesis import strategies as st
from publish.small_project import notebook

from gleak_core.publish.parameters import Declared, ParameterError, declared, parse, resolve


def cell(source: str, chapter: str = "01_a") -> Declared:
    return declared(chapter, notebook(parameters=source))


BASE = 'profile = "smoke"  # the profile\n'


def test_reads_literals_with_and_without_types() -> None:
    found = cell(BASE + 'seed = 0\nrate: float = 1e-3\nstarts = ("a", "ü")\nnothing = None\n')
    assert dict(found.values) == {
        "profile": "smoke", "seed": 0, "rate": 1e-3, "starts": ("a", "ü"), "nothing": None,
    }  # fmt: skip


def test_rewriting_keeps_comments_layout_and_unicode() -> None:
    found = cell(BASE + 'name = "naïve"; seed = 0  # ⇐ seed\nrates = [\n    1,\n]\n')
    changed = {**found.values, "seed": 7, "rates": [2, 3], "profile": "quick"}
    assert found.rewrite(changed) == (
        'profile = "quick"  # the profile\nname = "naïve"; seed = 7  # ⇐ seed\nrates = [2, 3]\n'
    )
    assert found.rewrite(found.values) == found.source


@given(
    st.one_of(
        st.integers(), st.booleans(), st.text(), st.floats(allow_nan=False, allow_infinity=False)
    )
)
def test_what_is_written_is_what_is_read_back(value: object) -> None:
    found = cell(BASE + f"x = {type(value)()!r}  # ü\ny = 2\n")
    again = cell(found.rewrite({**found.values, "x": value}))
    assert again.values == {"profile": "smoke", "x": value, "y": 2}
    assert type(again.values["x"]) is type(value)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("seed = 0", "no parameter 'profile'"),
        (BASE + "import os", "may only hold `name = literal` lines, and this is none: import os"),
        (BASE + "seed = 1 + seed", "this is none: seed = 1"),
        (BASE + "seed = 1\nseed = 2", "sets 'seed' twice"),
        (BASE + "a, b = 1, 2", "this is none: a, b"),
        (BASE + "seed =", "is not Python"),
    ],
)
def test_a_cell_that_is_more_than_literals_is_refused(source: str, said: str) -> None:
    with pytest.raises(ParameterError, match=said.replace("(", r"\(")):
        cell(source)


def test_exactly_one_parameters_cell() -> None:
    with pytest.raises(ParameterError, match="has 2 cells tagged 'parameters'"):
        declared("01_a", notebook("x = 1", tags={1: ["parameters"]}))
    with pytest.raises(ParameterError, match="has 0 cells"):
        declared("01_a", nbformat.v4.new_notebook())


CHAPTERS = [
    cell(BASE + 'device = "auto"\nseed = 0\nrate = 0.1\nfast = False\nstart = "normal"\n', "01_a"),
    cell(BASE + "seed = 5\nrounds = 3\n", "02_b"),
]


def fit(profile: str = "smoke", device: str = "cpu", **params: object) -> dict[str, dict]:
    return resolve(CHAPTERS, params, profile=profile, device=device)


def test_defaults_profile_and_device() -> None:
    values = fit("quick")
    assert values["01_a"] == {
        "profile": "quick", "device": "cpu",
        "seed": 0, "rate": 0.1, "fast": False, "start": "normal",
    }  # fmt: skip
    assert values["02_b"] == {"profile": "quick", "seed": 5, "rounds": 3}


def test_a_parameter_applies_where_it_is_known() -> None:
    values = fit(rounds=4, seed=9)
    assert values["02_b"] == {"profile": "smoke", "seed": 9, "rounds": 4}
    assert "rounds" not in values["01_a"]


def test_an_int_becomes_a_float_and_nothing_else_changes_type() -> None:
    assert repr(fit(rate=1)["01_a"]["rate"]) == "1.0"


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"sed": 1}, "unknown parameter 'sed': did you mean 'seed'?"),
        ({"seed": 1.0}, "'seed' of 01_a is a whole number (default 0), got 1.0"),
        ({"seed": True}, "is a whole number (default 0), got True"),
        ({"fast": 1}, "is True or False (default False), got 1"),
        ({"rate": "high"}, "is a number (default 0.1), got 'high'"),
        ({"rate": float("inf")}, "must be finite, got inf"),
        ({"start": 3}, "is a text (default 'normal'), got 3"),
        ({"profile": "quick"}, "use --profile"),
        ({"device": "cpu"}, "use --device"),
    ],
)
def test_what_does_not_fit_is_refused(params: dict, said: str) -> None:
    with pytest.raises(ParameterError) as refusal:
        fit(**params) if not params.keys() & {"profile", "device"} else resolve(
            CHAPTERS, params, profile="smoke", device="cpu"
        )
    assert said in str(refusal.value)


def test_all_problems_are_said_at_once() -> None:
    with pytest.raises(ParameterError) as refusal:
        fit(sed=1, rate="x")
    assert "sed" in str(refusal.value)
    assert "rate" in str(refusal.value)


def test_unknown_profile() -> None:
    with pytest.raises(ValueError, match="unknown profile 'smok': did you mean 'smoke'"):
        fit("smok")


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("seed=3", 3), ("rate=2", 2.0), ("rate=1e-4", 1e-4), ("fast=True", True),
        ("start=level-2", "level-2"), ("start=1", "1"), ("start='a b'", "a b"),
        ("start=a=b", "a=b"),
    ],
)  # fmt: skip
def test_the_command_line_is_read_against_the_default(typed: str, value: object) -> None:
    name = typed.partition("=")[0]
    found = fit(**parse([typed]))["01_a"][name]
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("typed", ["fast=yes", "seed=many", "seed=1.5", "seed="])
def test_the_command_line_is_held_to_the_type(typed: str) -> None:
    with pytest.raises(ParameterError, match="give it"):
        fit(**parse([typed]))


@pytest.mark.parametrize("typed", ["seed", "=3", "my seed=3"])
def test_an_assignment_needs_a_name_and_a_value(typed: str) -> None:
    with pytest.raises(ParameterError, match="is not name=value"):
        parse([typed])
