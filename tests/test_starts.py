"""Dummy starts: their ranges, their patterns exactly, and what a seed fixes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gleak_core import starts

COMPOSED = [f"{p}:{r}" for p in starts.PATTERNS for r in starts.RANGES]
NAMES = [*starts.STARTS, *COMPOSED]
SIDES = st.integers(1, 19)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=10, deadline=None)
@given(h=SIDES, w=SIDES, b=st.integers(1, 2), first=st.integers(1, 4), seed=st.integers(0, 99))
def test_a_trial_does_not_depend_on_those_after_it(name, h, w, b, first, seed) -> None:
    five = starts.make(name, (5, b, 3, h, w), seed=seed)
    assert torch.equal(five[:first], starts.make(name, (first, b, 3, h, w), seed=seed))
    stream = torch.Generator().manual_seed(seed)
    chunks = [starts.make(name, (t, b, 3, h, w), seed=stream) for t in (first, 5 - first)]
    assert torch.equal(five, torch.cat(chunks))


@pytest.mark.parametrize("name", NAMES)
def test_every_start_is_float64_and_leaves_the_global_stream_alone(name: str) -> None:
    before = torch.get_rng_state()
    drawn = starts.make(name, (2, 3, 1, 7, 6), seed=1)
    assert drawn.dtype == torch.float64 and drawn.shape == (2, 3, 1, 7, 6)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", NAMES)
def test_seeds_differ_unless_the_start_is_flat(name: str) -> None:
    one, two = (starts.make(name, (2, 2, 3, 8, 8), seed=s) for s in (1, 2))
    assert torch.equal(one, two) == (name in {"black", "white", "flat_grey"})


@pytest.mark.parametrize(("name", "value"), [("black", 0.0), ("white", 1.0), ("flat_grey", 0.5)])
def test_flat_starts_are_flat(name: str, value: float) -> None:
    assert (starts.make(name, (2, 1, 3, 5, 4)) == value).all()


@pytest.mark.parametrize("pattern", ["", "random:", "level-1:", "level-2:"])
@pytest.mark.parametrize(
    ("span", "mean", "deviation", "low", "high"),
    [
        ("uniform", 0.5, 12**-0.5, 0.0, 1.0),
        ("uniform_centred", 0.0, 12**-0.5, -0.5, 0.5),
        ("normal", 0.0, 1.0, -7.0, 7.0),
        ("normal_half", 0.5, 1.0, -6.5, 7.5),
        ("grey", 0.5, 0.2, -0.9, 1.9),
    ],
)
def test_ranges(pattern, span, mean, deviation, low, high) -> None:
    """Band: mean and deviation of 12 000 independent numbers, 5 standard errors of the mean."""
    side = {"level-1:": 128, "level-2:": 256}.get(pattern, 64)  # as many independent numbers
    drawn = starts.make(pattern + span, (1, 1, 3, side, side), seed=3)
    band = 5 * deviation / 12_000**0.5
    assert float(drawn.mean()) == pytest.approx(mean, abs=band)
    assert float(drawn.std()) == pytest.approx(deviation, abs=band)
    assert low <= float(drawn.min()) < mean - deviation
    assert mean + deviation < float(drawn.max()) < high


def test_one_trial_is_what_torch_draws() -> None:
    """DLG's own `torch.randn`, and the same whatever the shape: label logits are no pictures."""
    for shape in ((1, 2, 3, 8, 8), (1, 4, 5), (1, 7)):
        stream = torch.Generator().manual_seed(5)
        wanted = torch.randn(shape, generator=stream, dtype=torch.float64)
        assert torch.equal(starts.make("normal", shape, seed=5), wanted)


def half(n: int) -> int:
    return (n + 1) // 2


def tiled(block: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """Read the block at row i mod its height, column j mod its width."""
    rows, columns = (torch.arange(n) % m for n, m in zip((h, w), block.shape[-2:], strict=True))
    return block[..., rows, :][..., columns]


@settings(max_examples=40, deadline=None)
@given(h=SIDES, w=SIDES, span=st.sampled_from(sorted(starts.RANGES)), seed=st.integers(0, 99))
def test_patterns_repeat_exactly_and_no_more_than_that(h, w, span, seed) -> None:
    shape = (2, 2, 3, h, w)
    one = starts.make(f"level-1:{span}", shape, seed=seed)
    a, b = half(h), half(w)
    assert torch.equal(one, tiled(one[..., :a, :b], h, w))
    assert one.unique().numel() == 12 * a * b  # every image and channel has its own numbers
    two = starts.make(f"level-2:{span}", shape, seed=seed)
    quadrant = two[..., :a, :b]
    assert torch.equal(two, tiled(quadrant, h, w))
    c, d = half(a), half(b)
    assert torch.equal(quadrant, tiled(quadrant[..., :c, :d], a, b))
    assert two.unique().numel() == 12 * c * d
    # The numbers themselves are those of the range: pattern and range come apart.
    assert torch.equal(two[..., :c, :d], starts.make(span, (2, 2, 3, c, d), seed=seed))


def test_a_pattern_alone_is_of_u01() -> None:
    for level in ("level-1", "level-2"):
        alone, spelt = (starts.make(n, (2, 1, 3, 8, 8)) for n in (level, f"{level}:uniform"))
        assert torch.equal(alone, spelt)
    for span in starts.RANGES:
        plain, spelt = (starts.make(n, (2, 1, 3, 8, 8)) for n in (span, f"random:{span}"))
        assert torch.equal(plain, spelt)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("unifrom", "unknown start 'unifrom': did you mean 'uniform'"),
        ("level2", "did you mean 'level-2'"),
        ("level-3:normal", "unknown pattern 'level-3': did you mean"),
        ("level-2:norml", "unknown range 'norml': did you mean 'normal'"),
        ("level-2:", "unknown range ''"),
        ("black:normal", "unknown pattern 'black'"),
        ("random", "needs its range: 'random:normal'"),
    ],
)
def test_an_unknown_start_is_refused_with_a_hint(name: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        starts.make(name, (1, 1, 3, 8, 8))


@pytest.mark.parametrize("shape", [(4,), (1, 4), (1, 2, 5), (1, 3, 8, 8)])
def test_a_pattern_needs_a_picture(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"repeats quadrants.*pass \(T, B, C, H, W\)"):
        starts.make("level-2", shape)


def test_every_start_says_in_words_what_it_is() -> None:
    words = [start.words for start in starts.STARTS.values()]
    assert len(set(words)) == len(words) and all("20" in w or "ours" in w for w in words)
    assert not any(":" in name for name in starts.STARTS)
    assert "N(0, 1)" in starts.find("level-2:normal").words
