import pytest
from hypothesis import given
from hypothesis import strategies as st

from gleak_core.errors import GleakError, choose


def test_a_known_name_comes_back() -> None:
    assert choose("start", "uniform", ("normal", "uniform")) == "uniform"


def test_a_near_miss_gets_a_suggestion_and_all_names_sorted() -> None:
    with pytest.raises(ValueError) as refused:
        choose("start", "unifrom", ("uniform", "normal"))
    said = str(refused.value)
    assert said.startswith("unknown start 'unifrom'")
    assert "did you mean 'uniform'?" in said
    assert said.endswith("known: normal, uniform")


def test_a_far_miss_gets_no_suggestion() -> None:
    with pytest.raises(ValueError, match=r"^unknown start 'xyz': known: normal, uniform$"):
        choose("start", "xyz", ("uniform", "normal"))


@given(st.text(), st.lists(st.text(), unique=True))
def test_exactly_the_options_are_accepted(name: str, options: list[str]) -> None:
    if name in options:
        assert choose("thing", name, iter(options)) == name
    else:
        with pytest.raises(ValueError, match="unknown thing"):
            choose("thing", name, iter(options))


def test_a_gleak_error_is_no_value_error() -> None:
    # The command line treats both as the user's; code that catches ValueError must not catch it.
    assert not issubclass(GleakError, ValueError)
