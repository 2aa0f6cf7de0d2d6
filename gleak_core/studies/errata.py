"""Inconsistencies in the four sources, each with the computation that shows it.

An erratum is no verdict on a result: it says that two things in one text cannot both be right.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from gleak_core import papers

__all__ = ["ERRATA", "Erratum"]


@dataclass(frozen=True)
class Erratum:
    """What a source says, and what computing it again shows."""

    id: str
    result: str
    place: str
    says: str
    shows: Callable[[], str]
    reading: str


def _column(result: str, metric: str, **where: object) -> dict[tuple[object, ...], float]:
    """Return the printed values of a metric by the keys that `where` leaves open."""
    found = {}
    for cell in papers.find(result).cells:
        if metric in cell.values and all(cell.at[k] == v for k, v in where.items()):
            found[tuple(v for k, v in cell.at.items() if k not in where)] = cell.values[metric]
    return found


def _db(mse: float) -> float:
    return -10 * math.log10(mse)


def _ssim_arrow() -> str:
    said = []
    for result in ("gen.table1", "gen.table2", "gen.table5"):
        mse, ssim = (list(_column(result, m).values()) for m in ("mse", "ssim"))
        best, worst = int(np.argmin(mse)), int(np.argmax(mse))
        said.append(f"{ssim[best]:.3g} and {ssim[worst]:.3g} in {papers.find(result).place}")
    return f"Where the MSE is smallest and largest, SSIM is {_list(said)}."


def _tv_l2() -> str:
    mse, psnr = (_column("gen.table2", m) for m in ("mse", "psnr"))
    gaps = {k[0]: psnr[k] - _db(v) for k, v in mse.items()}
    odd = gaps.pop("tv+l2")
    tenth = psnr["tv+l2",] - _db(mse["tv+l2",] / 10)
    return (
        f"The printed MSE is {_db(mse['tv+l2',]):.2f} dB, the PSNR {psnr['tv+l2',]:.2f} dB: "
        f"{odd:.1f} dB apart, where the other rows differ by {min(gaps.values()):.1f} to "
        f"{max(gaps.values()):.1f} dB. A tenth of the MSE would differ by {tenth:.1f} dB."
    )


def _equal_rows() -> str:
    rows = [
        _column("gen.table4", "accuracy", dataset=d, rep_amount=4) for d in ("CIFAR-10", "ImageNet")
    ]
    equal = sum(rows[0][k] == rows[1][k] for k in rows[0])
    return f"{equal} of {len(rows[0])} cells of the two data sets agree in every digit."


def _swapped_means() -> str:
    from gleak_core import starts

    shape = (64, 1, 3, 32, 32)
    named = {"U(0,1)": "uniform", "N(½,1)": "normal_half", "N(0,1)": "normal",
             "U(−½,½)": "uniform_centred"}  # fmt: skip
    means = [f"{float(starts.make(start, shape, seed=0).mean()):.2f} for {name}"
             for name, start in named.items()]  # fmt: skip
    return (
        f"Drawn {64 * 3 * 32 * 32} times, the means are {_list(means)}. The text counts N(0,1) to "
        "those with mean ½, and N(½,1) to those with mean 0."
    )


def _too_few_classes() -> str:
    cells = _column("gen.table4", "accuracy", dataset="CIFAR-10")
    labels = {(rep, batch): int(batch) // int(rep) for rep, batch in cells}  # type: ignore[call-overload]
    over = [n for n in labels.values() if n > 10]
    return (
        f"{len(over)} of the {len(labels)} CIFAR-10 cells need more than its ten labels, up to "
        f"{max(over)}."
    )


def _too_few_pictures() -> str:
    most = max(int(str(k[0])) for k in _column("gen.table3", "accuracy", method="General leakage"))
    return f"A repetition of {most} needs {most + 1} pictures of one class; 5 were sampled."


def _batches() -> str:
    values = list(_column("gen.table3", "accuracy").values())
    whole = [n for n in range(1, 101) if sum(_is_share(v, 16 * n) for v in values) >= 16]
    odd = [v for v in values if not _is_share(v, 16 * whole[0])]
    return (
        f"{len(values) - len(odd)} of the {len(values)} values are, to rounding, multiples of one "
        f"in {16 * whole[0]}, so of {whole[0]} batches of 16; {_list(odd)} "
        f"{'is' if len(odd) == 1 else 'are'} not."
    )


def _is_share(percent: float, of: int) -> bool:
    return abs(round(percent / 100 * of) / of * 100 - percent) < 0.006


def _psnr_drops() -> str:
    psnr, mse = (_column("gen.table1", m, method="General leakage") for m in ("psnr", "mse"))
    return (
        f"From 3 to 4 updates the MSE falls from {mse[3,]:g} to {mse[4,]:g}, and the PSNR falls "
        f"too, from {psnr[3,]:.2f} to {psnr[4,]:.2f} dB."
    )


def _same_terms() -> str:
    psnr = _column("gen.table2", "psnr")
    with_one = [psnr[k,] for k in ("tv+clip", "tv+scale", "tv+clip+scale")]
    return (
        f"The rows with clip, scale or both differ by {max(with_one) - min(with_one):.1g} dB, "
        f"and each is {with_one[0] - psnr['tv',]:.2f} dB above TV alone."
    )


def _ssim_formula() -> str:
    from gleak_core import data

    picture = data.sample("photographs", 1, seed=0).images[0].double()
    mean, var = float(picture.mean()), float(picture.var(correction=0))
    c1, c2 = 0.01**2, 0.03**2
    above = (2 * mean * mean + c1) + (2 * var + c2)
    below = (mean * mean * 2 + c1) * (2 * var + c2)
    return f"A photograph against itself gives {above / below:.2f} by the printed formula, not 1."


def _root_or_not() -> str:
    mse = _column("cpl.table1", "mse")[1, 1]
    return (
        f"Were the {mse:g} of batch 1 and one iteration a root, the MSE would be {mse * mse:.2g}, "
        f"and {_db(mse * mse):.0f} dB do not go with a printed SSIM of "
        f"{_column('cpl.table1', 'ssim')[1, 1]:g}; {_db(mse):.0f} dB do. The sum is missing, too."
    )


def _loss_falls() -> str:
    mse = _column("cpl.table1", "mse")
    said = [
        f"from {mse[batch, 5]:g} to {mse[batch, 20]:g} at batch {batch}" for batch in (5, 10, 20)
    ]
    return f"Between 5 and 20 client iterations the MSE falls: {_list(said)}."


def _other_sets() -> str:
    table = papers.find("cpl.table1").cells
    there = [sorted({int(c.at[k]) for c in table}) for k in ("batch", "client_iterations")]
    lacking = [sorted({*text} - {*have}) for text, have in
               zip(((1, 5, 10, 15), (5, 10, 15, 50, 100)), there, strict=True)]  # fmt: skip
    return (
        f"Table 1 has batches {_list(there[0])} and iterations {_list(there[1])}: it lacks the "
        f"batch {_list(lacking[0])} and the iterations {_list(lacking[1])} of the text."
    )


def _gap(protocol: str) -> list[float]:
    cafe, geiping = (
        _column(f"cafe.table2{protocol}", "psnr", loss=loss)
        for loss in ("CAFE", "Geiping et al. 2020")
    )
    return [cafe[k] - geiping[k] for k in cafe]


def _which_gap() -> str:
    hfl, vfl = np.mean(_gap("a")), np.mean(_gap("b"))
    return f"The mean gap is {vfl:.1f} dB in VFL and {hfl:.1f} dB in HFL."


def _close_cosine() -> str:
    cafe = _column("cafe.table2b", "psnr", loss="CAFE")
    cosine = _column("cafe.table2b", "psnr", loss="CAFE with cosine similarity")
    return "In VFL it loses " + _list(
        [f"{cafe[k] - cosine[k]:.2f} dB on {k[0]}" for k in cafe]
    ) + "."  # fmt: skip


def _linnaeus() -> str:
    cells = _column("cafe.table1a", "iterations", method="CAFE", dataset="Linnaeus")
    shares = [f"{int(str(batch)) * value:.1f}" for (batch,), value in cells.items()]
    return f"Iterations per picture times the batch: {_list(shares)}, the same total each time."


def _list(words: Sequence[object]) -> str:
    said = [str(word) for word in words]
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} and {said[-1]}"


ERRATA: tuple[Erratum, ...] = (
    Erratum(
        "gen-ssim-arrow",
        "gen.table1",
        "Tables 1, 2 and 5",
        "SSIM carries an arrow that says: lower is better.",
        _ssim_arrow,
        "Higher is better, as the definition in the same paper says.",
    ),
    Erratum(
        "gen-tv-l2",
        "gen.table2",
        "Table 2, row +tv+l2",
        "MSE 0.123710 beside a PSNR of 21.97 dB.",
        _tv_l2,
        "We read 0.012371.",
    ),
    Erratum(
        "gen-same-terms",
        "gen.table2",
        "Table 2",
        "Clip and scale are two terms, and both help.",
        _same_terms,
        "Either both terms did the same in these runs, or one of them did nothing.",
    ),
    Erratum(
        "gen-equal-rows",
        "gen.table4",
        "Table 4, repeat amount 4",
        "Two data sets of different sizes and numbers of classes.",
        _equal_rows,
        "One of the two rows is a copy of the other; we test both against it.",
    ),
    Erratum(
        "gen-classes",
        "gen.table4",
        "Table 4, CIFAR-10",
        "Each label stands two or four times, in batches of up to 256.",
        _too_few_classes,
        "We start again with the first label when all ten are used.",
    ),
    Erratum(
        "gen-pictures",
        "gen.table3",
        "Table 3 and the set-up",
        "Five ImageNet pictures of each of 200 classes, and up to eight extra copies of a label.",
        _too_few_pictures,
        "Other pictures were used, or some stood twice in a batch.",
    ),
    Erratum(
        "gen-batches",
        "gen.table3",
        "Table 3",
        "The number of batches is not stated.",
        _batches,
        "We take as many trials.",
    ),
    Erratum(
        "gen-means",
        "gen.fig3",
        "Text on Figure 3",
        "The starts with mean one half are N(0,1) and U(0,1).",
        _swapped_means,
        "We take the claim to be about the means, not about the names.",
    ),
    Erratum(
        "gen-updates",
        "gen.table1",
        "Table 1, 3 and 4 updates",
        "Several updates give better pictures, by all measures.",
        _psnr_drops,
        "The PSNR is a mean of decibels, which one bad picture can lower: it needs no error.",
    ),
    Erratum(
        "cpl-ssim",
        "cpl.table1",
        "Section 3.2.3",
        "SSIM is printed with a plus between the two factors of its numerator.",
        _ssim_formula,
        "We use the product, as Wang et al. 2004 define it.",
    ),
    Erratum(
        "cpl-mse",
        "cpl.asr",
        "Section 3.2.2",
        "MSE is called the root mean square error, and its formula is (x − x_rec)² divided by N.",
        _root_or_not,
        "We use the mean of the squares over all pixels, without a root.",
    ),
    Erratum(
        "cpl-loss",
        "cpl.table1",
        "Section 4.4, first observation",
        "The loss rises as the client iterations increase.",
        _loss_falls,
        "True of SSIM nearly throughout, and of the MSE only for single pictures.",
    ),
    Erratum(
        "cpl-sets",
        "cpl.fig4",
        "Sections 3.1.3 and 4.3",
        "Batches of 1, 5, 10 and 15; 5, 10, 15, 50 and 100 client iterations.",
        _other_sets,
        "The figures and the table come from different runs; each is answered by itself.",
    ),
    Erratum(
        "cafe-gap",
        "cafe.table2b",
        "Section 4.3",
        "In VFL the gap to the loss of Geiping et al. is said to be larger than in VFL.",
        _which_gap,
        "HFL is meant.",
    ),
    Erratum(
        "cafe-cosine",
        "cafe.table2b",
        "Section 4.3",
        "With cosine similarity the PSNR stays close to that of CAFE.",
        _close_cosine,
        "Not so on CIFAR-10.",
    ),
    Erratum(
        "cafe-linnaeus",
        "cafe.table1a",
        "Table 1a, Linnaeus",
        "Iterations per leaked picture, measured for four batch sizes.",
        _linnaeus,
        "The column is one number divided by the batch: the speed per picture is not measured, "
        "it follows from the number of pictures.",
    ),
)
