"""The comparison viewer, packed: what the page is given is what was recorded, and nothing else."""

import base64
import html
import io
import json
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import made_up_run
from torch import Tensor

from gleak_core import figures
from gleak_core.observation import Reconstruction
from gleak_core.publish import sanitise

PRIVATE = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
NOT_CLEARED = made_up_run(PRIVATE, far=0.5, seed=1)


def runs() -> dict[tuple[str, str], Reconstruction]:
    return {("CPL", "level-2"): made_up_run(PRIVATE, attack="CPL"), ("DLG", "N(0, 1)"): NOT_CLEARED}


def content(shown: figures.Scrubber) -> dict[str, Any]:
    [packed] = re.findall(r'data-scrubber="([^"]*)"', shown.html)
    return json.loads(html.unescape(packed))


def unpacked(film: dict[str, Any], height: int = 8, width: int = 8) -> Tensor:
    """Return what the page will show, (n, N, C, H, W) in eight bits."""
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(film["sheet"]))))
    rows = torch.from_numpy(pixels)[torch.tensor(film["tiles"])]  # (N, n, H·W[, C])
    return rows.reshape(*rows.shape[:2], height, width, -1).movedim(-1, 2).swapaxes(0, 1)


def eight_bits(images: Tensor) -> Tensor:
    return (images.double().clamp(0, 1) * 255).round().to(torch.uint8)


def with_history(run: Reconstruction, **changes: Any) -> Reconstruction:
    return replace(run, history=replace(run.history, **changes))


@pytest.mark.parametrize("channels", [1, 3])
def test_the_page_holds_every_frame_to_the_last_bit(channels: int) -> None:
    private = torch.rand(2, channels, 5, 7, generator=torch.Generator().manual_seed(0))
    run = made_up_run(private)
    packed = content(figures.scrubber({"DLG": run}, private, alt="a"))
    assert (packed["height"], packed["width"]) == (5, 7)
    assert packed["steps"] == packed["runs"][0]["at"] == list(range(0, 101, 10))
    assert unpacked(packed["runs"][0], 5, 7).equal(eight_bits(run.history.frames[:, :, 0]))
    assert unpacked(packed["private"], 5, 7)[0].equal(eight_bits(private))


def test_a_tile_that_stands_still_is_stored_once() -> None:
    frames = NOT_CLEARED.history.frames.clone()
    frames[5:] = frames[5]
    [film] = content(
        figures.scrubber({"DLG": with_history(NOT_CLEARED, frames=frames)}, PRIVATE, alt="a")
    )["runs"]
    assert [len(set(tiles)) for tiles in film["tiles"]] == [6, 6, 6]


def test_runs_meet_at_the_steps_of_both_and_show_their_last_frame() -> None:
    short = made_up_run(PRIVATE, steps=50, every=25)
    packed = content(figures.scrubber({"long": NOT_CLEARED, "short": short}, PRIVATE, alt="a"))
    assert packed["steps"] == [0, 10, 20, 25, 30, 40, 50, 60, 70, 80, 90, 100]
    long_film, short_film = packed["runs"]
    assert long_film["at"] == [0, 10, 20, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    assert short_film["at"] == [0, 0, 0, 25, 25, 25, *[50] * 6]
    assert unpacked(short_film)[4].equal(eight_bits(short.history.frames[1, :, 0]))
    assert short_film["ended"] == [[50, "solved"]] * 3


def test_of_many_steps_the_early_ones_and_both_ends_are_kept() -> None:
    steps = content(
        figures.scrubber({"DLG": made_up_run(PRIVATE, every=1)}, PRIVATE, count=12, alt="a")
    )["steps"]
    assert len(steps) <= 12 and (steps[0], steps[-1]) == (0, 100)
    assert np.diff(steps)[0] < np.diff(steps)[-1]


def test_the_measures_are_those_of_the_frame_shown() -> None:
    [film] = content(figures.scrubber({"DLG": NOT_CLEARED}, PRIVATE, alt="a"))["runs"]
    frames = NOT_CLEARED.history.frames[:, :, 0].double().clamp(0, 1)
    error = (frames - PRIVATE).square().mean((2, 3, 4)).T
    assert torch.tensor(film["mse"]).double().allclose(error, rtol=1e-3)
    assert torch.tensor(film["psnr"]).double().allclose(-10 * error.log10(), rtol=1e-3)
    losses = NOT_CLEARED.history.loss[::10].T
    assert torch.tensor(film["loss"]).allclose(losses, rtol=1e-3)


def test_exact_recovery_is_a_hundred_decibels_not_infinity() -> None:
    [film] = content(figures.scrubber({"DLG": made_up_run(PRIVATE)}, PRIVATE, alt="a"))["runs"]
    assert film["psnr"][0][-1] == 100


def test_a_trial_that_ended_shows_its_best_and_says_so() -> None:
    loss = NOT_CLEARED.history.loss.clone()
    loss[34:, 1] = math.nan
    run = replace(
        with_history(NOT_CLEARED, loss=loss),
        loss=torch.tensor([0.1, 0.2, 0.3]),
        status=("failed", "diverged", "failed"),
    )
    [film] = content(figures.scrubber({"DLG": run}, PRIVATE, alt="a"))["runs"]
    assert film["ended"] == [[100, "failed"], [33, "diverged"], [100, "failed"]]
    assert film["loss"][1][4:] == [0.2] * 7
    assert film["loss"][0][-1] == 0.1 and film["loss"][0][-2] > 0.2


def test_a_frame_that_is_not_finite_becomes_a_tile_of_its_own() -> None:
    frames = NOT_CLEARED.history.frames.clone()
    frames[3:, 1, :, :, 0, 0], frames[3:, 2] = math.nan, math.inf
    [film] = content(
        figures.scrubber({"DLG": with_history(NOT_CLEARED, frames=frames)}, PRIVATE, alt="a")
    )["runs"]
    shown = unpacked(film)
    assert shown[3, 1].equal(shown[5, 2]) and shown[3, 1].unique().tolist() == [89, 217]
    assert not shown[3, 0].equal(shown[3, 1])
    for measure in ("mse", "psnr", "loss"):
        assert [v is None for v in film[measure][1]] == [False] * 3 + [True] * 8
        assert None not in film[measure][0]


def test_images_of_one_batch_are_aligned() -> None:
    one = made_up_run(PRIVATE)
    mixed = torch.tensor([2, 0, 1])
    run = replace(
        with_history(
            one,
            frames=one.history.frames.swapaxes(1, 2)[:, :, mixed],
            loss=one.history.loss[:, :1],
        ),
        images=one.images.swapaxes(0, 1)[:, mixed],
        loss=one.loss[:1],
        status=("solved",),
    )
    batch, each = (content(figures.scrubber({"x": r}, PRIVATE, alt="a")) for r in (run, one))
    assert batch == each


def test_trials_can_be_chosen() -> None:
    packed = content(
        figures.scrubber(runs(), PRIVATE[[2, 0]], trials=[2, 0], names=["cat", "dog"], alt="a")
    )
    assert packed["images"] == ["cat", "dog"]
    assert unpacked(packed["runs"][1])[:, 0].equal(eight_bits(NOT_CLEARED.history.frames[:, 2, 0]))


def test_the_same_viewer_is_the_same_bytes() -> None:
    one, two = (figures.scrubber(runs(), PRIVATE, alt="a", caption="b") for _ in range(2))
    assert one == two


def test_no_name_becomes_markup_and_the_gate_lets_it_through() -> None:
    name = "<b>\"x\" & 'y'</b>"
    shown = figures.scrubber(
        {(name, name): NOT_CLEARED, ("DLG", ""): NOT_CLEARED},
        PRIVATE,
        names=[name] * 3,
        alt=name,
        caption=name,
    )
    assert sanitise.markup_problems(shown.html) == []
    assert "<b>" not in shown.html and shown.html.count("<") == 5
    packed = content(shown)
    assert (packed["runs"][0]["attack"], packed["runs"][0]["start"]) == (name, name)
    assert packed["images"] == [name] * 3


def test_without_scripts_there_is_a_filmstrip_with_words() -> None:
    shown = figures.scrubber(runs(), PRIVATE, alt="noise becomes a cat", caption="A cat.")
    assert re.search(
        r'<img src="data:image/png;base64,[^"]+" alt="noise becomes a cat">', shown.html
    )
    assert "<figcaption>A cat.</figcaption>" in shown._repr_html_()
    assert repr(shown) == "Scrubber: noise becomes a cat"


def test_a_viewer_of_noise_stays_below_a_megabyte() -> None:
    private = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    four = {f"run {k}": made_up_run(private, every=1, far=0.6, seed=k) for k in range(4)}
    assert len(figures.scrubber(four, private, alt="a").html) < 950_000


TWO = {"a": NOT_CLEARED, "b": made_up_run(PRIVATE[:2])}
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no runs": ({"runs": {}}, r"needs runs: pass \{\(attack, start\): reconstruction\}"),
    "other trials": ({"runs": TWO}, r"a holds images \(3, 1, .* and b \(2, 1, .*the same batch"),
    "no frames": (
        {"runs": {("DLG", "N"): made_up_run(PRIVATE, every=100)}},
        "DLG, N kept 2 frames of 101 steps: run the attack with every=",
    ),
    "too few private": ({"private": PRIVATE[:2]}, r"private images of shape \(3, 3, 8, 8\), got"),
    "another size": ({"private": PRIVATE[..., :4]}, "pass the ones attacked, in their order"),
    "no such trial": ({"trials": [3]}, "trials must lie in 0…2"),
    "no trial": ({"trials": []}, "trials must lie in 0…2"),
    "too few names": ({"names": ["x"]}, "3 images need 3 names, got 1"),
    "one step": ({"count": 1}, "at least 2 steps"),
    "no words": ({"alt": " "}, "needs alt text"),
    "two channels": (
        {"runs": {"a": made_up_run(PRIVATE[:, :2])}, "private": PRIVATE[:, :2]},
        "1 or 3 channels, got 2",
    ),
    "one frame": (
        {
            "runs": {
                "a": with_history(
                    NOT_CLEARED,
                    steps=torch.arange(1),
                    loss=NOT_CLEARED.history.loss[:1],
                    frame_steps=torch.arange(1),
                    frames=NOT_CLEARED.history.frames[:1],
                )
            }
        },
        "nothing to scrub over",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_its_cure(case: str) -> None:
    wrong, said = BAD[case]
    given: dict[str, Any] = {"runs": runs(), "private": PRIVATE, "alt": "a"} | wrong
    with pytest.raises(ValueError, match=said):
        figures.scrubber(given.pop("runs"), given.pop("private"), **given)
