"""Figures and tables: never without words, no markup from a string, the same bytes twice."""

import html.parser
import io
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from gleak_core import figures
from gleak_core.observation import History, Reconstruction


def picture(figure: figures.Figure) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(figure.png)).convert("RGB"))


def found(trials: int = 2) -> Reconstruction:
    frames = torch.rand(6, trials, 1, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return Reconstruction(
        images=frames[-1],
        labels=None,
        loss=torch.zeros(trials),
        status=("solved",) * trials,
        history=History(torch.arange(51), torch.rand(51, trials), torch.arange(0, 60, 10), frames),
        evaluations=torch.ones(trials),
        seconds=0.0,
        attack="DLG",
    )


def test_a_figure_without_alt_text_cannot_be_made() -> None:
    with pytest.raises(ValueError, match="needs alt text"):
        figures.filmstrip(found(), alt="  ")


def test_the_words_reach_the_page_with_the_picture() -> None:
    figure = figures.filmstrip(found(), alt="noise becomes a cat", caption="A cat.")
    data, metadata = figure._repr_mimebundle_()
    assert metadata["image/png"] == {"alt": "noise becomes a cat", "caption": "A cat."}
    assert data["text/plain"] == "Figure: noise becomes a cat"


def test_the_same_figure_is_the_same_bytes() -> None:
    one, two = (figures.filmstrip(found(), alt="a").png for _ in range(2))
    assert one == two
    assert b"matplotlib" not in one.lower()


def test_before_after_shows_the_pixels() -> None:
    red = torch.zeros(1, 3, 8, 8)
    red[:, 0] = 1
    blue = red.flip(1)
    shown = picture(figures.before_after(red, blue, alt="red above blue")).reshape(-1, 3)
    assert (shown == [255, 0, 0]).all(1).sum() > 1000 and (shown == [0, 0, 255]).all(1).sum() > 1000
    with pytest.raises(ValueError, match="must match"):
        figures.before_after(red, blue[:, :, :4], alt="a")


@pytest.mark.parametrize("columns", [1, 2, 8])
def test_a_row_label_is_not_cut_off(columns: int) -> None:
    images = torch.ones(columns, 1, 4, 4)
    shown = picture(figures.before_after(images, images, alt="white, so only labels have ink"))
    assert (shown[:, :3] == 255).all() and (shown < 128).any()


def test_pixels_that_are_not_numbers_become_grey_not_an_error() -> None:
    broken = torch.full((1, 3, 8, 8), torch.nan)
    shown = picture(figures.before_after(broken, broken, alt="grey")).reshape(-1, 3)
    assert (abs(shown.astype(int) - 127) <= 1).all(1).sum() > 1000


def test_a_filmstrip_begins_at_the_start_and_ends_at_the_last_frame() -> None:
    plain = figures.strip({"a": [torch.zeros(1, 4, 4)] * 3}, alt="three", titles=["x", "y", "z"])
    assert picture(plain).shape[1] > picture(plain).shape[0]
    with pytest.raises(ValueError, match="3 columns need 3 titles"):
        figures.strip({"a": [torch.zeros(1, 4, 4)] * 3}, alt="three", titles=["x"])
    assert figures.filmstrip(found(), alt="a", private=torch.zeros(1, 3, 8, 8)).png


def test_curves_survive_trials_that_ended() -> None:
    y = torch.rand(10, 4)
    y[5:, 2] = torch.nan
    y[8:] = torch.nan
    figure = figures.curves({"DLG": (range(10), y)}, alt="falls", xlabel="x", ylabel="y", log=True)
    assert picture(figure).std() > 0
    assert figures.loss_curves({"DLG": found()}, alt="falls").png


class Tags(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)


def test_a_table_escapes_every_string() -> None:
    evil = "<script>alert(1)</script>"
    shown = figures.table(pd.DataFrame({evil: [evil]}), caption=evil)
    parser = Tags()
    parser.feed(shown._repr_html_())
    assert "script" not in parser.seen and parser.seen.count("td") == 1
    assert evil in repr(shown)  # plain text shows it as it is


def test_a_table_rounds_numbers_and_shows_gaps() -> None:
    frame = pd.DataFrame({"a": [0.123456, None], "n": [3, 4]})
    shown = figures.table(frame, caption="c", digits=3)
    assert shown.rows == (("0.123", "3"), ("—", "4"))
    assert repr(shown).splitlines() == ["c", "a      n", "-----  -", "0.123  3", "—      4"]


def test_a_paper_table_never_leaves_a_verdict_blank() -> None:
    row = {
        "id": "dlg.w3-labels",
        "what": "label accuracy of DLG",
        "published": 79,
        "ours": 83.0,
        "interval": (70.0, 92.0),
        "n": 20,
    }
    shown = figures.paper_table([row], caption="c")
    assert shown.rows[0] == (
        "dlg.w3-labels", "label accuracy of DLG", "79", "83", "70 to 92", "20",
        "reduced run: no verdict",
    )  # fmt: skip
    with pytest.raises(ValueError, match="lacks interval"):
        figures.paper_table([{k: v for k, v in row.items() if k != "interval"}], caption="c")
    with pytest.raises(ValueError, match="lacks n"):
        figures.paper_table([{k: v for k, v in row.items() if k != "n"}], caption="c")


def test_saving_is_whole_or_not_at_all(tmp_path) -> None:
    figure = figures.filmstrip(found(), alt="a")
    path = figure.save(tmp_path / "out" / "a.png")
    assert path.read_bytes() == figure.png
    assert [p.name for p in path.parent.iterdir()] == ["a.png"]


def cells(x: list) -> pd.DataFrame:
    n = len(x)
    return pd.DataFrame(
        {"x": x, "kind": ["a", "b"] * (n // 2), "ours": [0.5] * n, "low": [0.4] * n, "high": 0.7}
    )


@pytest.mark.parametrize("x", [[0.1, 0.1, 1.0, 1.0], ["none", "none", "half", "half"]])
def test_intervals_are_drawn_over_numbers_and_over_names(x: list) -> None:
    options: Any = {"alt": "Two series.", "xlabel": "x", "ylabel": "y"}
    whole = figures.intervals(cells(x), "x", by="kind", **options)
    narrow = figures.intervals(cells(x).assign(low=0.5, high=0.5), "x", by="kind", **options)
    assert whole.png != narrow.png
    assert whole.png == figures.intervals(cells(x), "x", by="kind", **options).png
    points = figures.intervals(cells(x), "x", by="kind", joined=False, **options)
    assert (points.png == whole.png) == isinstance(x[0], str)


def test_intervals_refuse_what_cannot_be_drawn() -> None:
    options: Any = {"alt": "Nothing.", "xlabel": "x", "ylabel": "y"}
    with pytest.raises(ValueError, match="the frame lacks scale: it has x, kind, ours, low, high"):
        figures.intervals(cells([1, 2]), "scale", **options)
    with pytest.raises(ValueError, match="nothing to draw"):
        figures.intervals(cells([]), "x", **options)


def test_a_heat_map_shows_every_trial() -> None:
    frame = pd.DataFrame([[10.0, 20.0], [30.0, math.nan]], index=["a", "b"])
    options: Any = {"alt": "Four trials.", "label": "PSNR in dB", "xlabel": "pictures"}
    whole = figures.heat_map(frame, **options)
    assert whole.png == figures.heat_map(frame, limits=(10, 30), **options).png
    assert whole.png != figures.heat_map(frame.fillna(10.0), **options).png
    assert whole.png != figures.heat_map(frame, limits=(0, 60), **options).png
    with pytest.raises(ValueError, match="nothing to draw"):
        figures.heat_map(frame.head(0), **options)
