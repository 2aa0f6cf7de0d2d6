"""The measurements of the critique of DLG: what a seed stands for, and what a row says of it."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import forgotten, measures_what_it_names, random_batch, rebuilt
from torch import Tensor
from torch.nn import functional as F

from gleak_core import clients, data, metrics, models, papers, solvers, training
from gleak_core.data import Batch
from gleak_core.defences import Defence, ErrorFeedback
from gleak_core.errors import GleakError
from gleak_core.observation import Observation, Reconstruction, Status
from gleak_core.studies import dlg_attacks, dlg_defences, dlg_doubts, dlg_text, trials
from gleak_core.studies.dlg import STUDIES
from gleak_core.studies.study import Cell, Study
from gleak_core.training import Stage

BY_ID = {study.id: study for study in STUDIES}
FEW = 3  # evaluations
MEASURES = ("mse", "psnr", "success_rate", "iterations")


def smooth(n: int, size: int, *, seed: int, labels: Sequence[int] | None = None) -> Batch:
    """Return pictures of a few soft patches, some dark and some bright, with ten classes."""
    g = torch.Generator().manual_seed(seed)
    coarse = torch.rand((n, 3, 4, 4), generator=g) * torch.rand((n, 1, 1, 1), generator=g)
    known = torch.randint(10, (n,), generator=g) if labels is None else torch.tensor(labels)
    images = F.interpolate(coarse, (size, size), mode="bilinear")
    return Batch(images, known, tuple("0123456789"), "made up", torch.arange(n))


def sample(name: str, n: int | None = None, *, size: int = 32, seed: int = 0, labels=None) -> Batch:
    """Stand for `data.sample` where no data set is at hand."""
    count = len(labels) if labels is not None else n or 1
    return smooth(count, size, seed=seed, labels=labels)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of our own for every data set, and attacks that hardly begin."""
    monkeypatch.setattr(data, "sample", sample)
    few: dict[str, Any] = {"steps": FEW, "every": 1}
    monkeypatch.setattr(dlg_attacks, "published", lambda **o: trials.published(**{**o, **few}))
    for room in (dlg_attacks, dlg_defences, dlg_doubts):
        monkeypatch.setattr(room, "ours", lambda **o: trials.ours(**{**o, **few}))


@pytest.fixture
def quick_training(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    both = smooth(16, 32, seed=0), smooth(20, 32, seed=1)
    small: Callable[..., list[Stage]] = training.train

    def train(*args: Any, **options: Any) -> list[Stage]:
        return small(*args, **{"batch_size": 4, **options})

    monkeypatch.setattr(dlg_defences.training, "train", train)
    monkeypatch.setattr(dlg_defences, "_split", lambda: both)
    monkeypatch.setattr(dlg_defences, "EPOCHS", 1)
    remembered = dlg_defences._life, dlg_defences._accuracy
    with forgotten(*remembered):
        yield


# --- what a seed stands for -------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    seeds=st.lists(st.integers(0, 100), unique=True, min_size=1).map(sorted),
    cuts=st.lists(st.integers(0, 40)),
    size=st.integers(1, 25),
)
def test_the_group_of_a_seed_does_not_depend_on_the_block(seeds, cuts, size: int) -> None:
    def told(blocks: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
        return [(n, s) for block in blocks for n, some in trials.groups(block, size) for s in some]

    edges = [0, *sorted(min(cut, len(seeds)) for cut in cuts), len(seeds)]
    blocks = [seeds[a:b] for a, b in pairwise(edges)]
    assert told(blocks) == told([seeds]) == [(seed // size, seed) for seed in seeds]
    numbers = [number for number, _ in trials.groups(seeds, size)]
    assert len(numbers) == len(set(numbers))  # all of a group side by side


def test_twenty_neighbours_share_a_network() -> None:
    assert list(trials.groups(range(18, 42))) == [
        (0, [18, 19]),
        (1, list(range(20, 40))),
        (2, [40, 41]),
    ]


def test_a_seed_is_a_picture_and_a_start_whatever_its_block() -> None:
    seeds = [5, 0, 31]
    batch = trials.pictures("photographs", seeds, side=16)
    start = trials.begin("normal", seeds, (3, 5, 5), batch=2)
    assert (len(batch), start.shape) == (3, (3, 2, 3, 5, 5))
    for k, seed in enumerate(seeds):
        alone = trials.pictures("photographs", [seed], side=16)
        for part in ("images", "labels", "indices"):
            assert torch.equal(getattr(batch[k], part), getattr(alone, part))
        assert torch.equal(start[k], trials.begin("normal", [seed], (3, 5, 5), batch=2)[0])
    assert len(set(batch.indices.tolist())) == 3
    assert not torch.equal(start[0], start[1])


# --- the row of a trial -----------------------------------------------------------------------


def test_a_row_says_how_close_and_how_soon() -> None:
    """By trial: never leaked; at step 40; exact from the start; at step 50; too late; broken."""
    batch = random_batch(6)
    batch = replace(batch, images=0.2 + 0.6 * batch.images)
    off = batch.images + 0.1
    at = [0, 40, 50, 90]
    soon = [9, 40, 0, 50, 90, 9]  # 9: never
    frames = torch.stack(
        [
            torch.where(torch.tensor([step >= s and s != 9 for s in soon]).view(-1, 1, 1, 1),
                        batch.images, off)
            for step in at
        ]
    )  # fmt: skip
    frames[-1, 5, 0, 0, 0] = math.nan
    status: list[Status] = ["failed", "solved", "solved", "interrupted", "solved", "diverged"]
    found = rebuilt(frames[-1][:, None], frames[:, :, None], at, status)
    assert trials.leaked(found, batch) == [-1, 40, 0, 50, 90, -1]
    rows = list(trials.attempts(found, batch, *MEASURES, budget=3, per=20))
    assert [row["iterations"] for row in rows] == [4, 2, 0, 3, 4, 4]
    assert [row["status"] for row in rows] == status
    assert [row["success_rate"] for row in rows] == [0, 1, 1, 1, 1, 0]
    assert [row["evaluations"] for row in rows] == [7, 8, 9, 10, 11, 12]
    assert rows[0]["mse"] == pytest.approx(0.01, rel=1e-5)
    assert rows[0]["psnr"] == pytest.approx(20, rel=1e-5)
    assert rows[1]["mse"] == 0
    assert rows[1]["psnr"] == metrics.PSNR_CAP
    assert math.isnan(rows[5]["mse"])
    for row in trials.attempts(found, batch, "psnr"):
        assert list(row) == ["psnr", "status", "evaluations"]


def test_a_leak_is_seen_on_clipped_pictures() -> None:
    white = replace(random_batch(1), images=torch.ones(1, 3, 8, 8))
    found = rebuilt(torch.full((1, 1, 3, 8, 8), 7.0))
    assert trials.leaked(found, white) == [0]
    [row] = trials.attempts(found, white, *MEASURES)
    assert (row["mse"], row["iterations"]) == (0, 0)


@pytest.mark.parametrize("seeds", [[1, 2], [3, 4, 5], [8]])
def test_a_trial_of_a_batch_is_its_own_picture(seeds: list[int]) -> None:
    """The attack finds the pictures in another order, each at another distance and time."""
    batch = random_batch(3, size=8)
    batch = replace(batch, images=0.1 + 0.5 * batch.images)
    near = [0.001, 0.02, 0.3]
    order = [2, 0, 1]  # found picture k is private picture order[k]
    final = torch.stack([batch.images[j] + near[j] for j in order])
    middle = torch.stack([batch.images[j] + (0.02 if j == 1 else 0.3) for j in order])
    frames = torch.stack([torch.zeros_like(final), middle, final])
    found = replace(
        rebuilt(final[None], frames[:, None], [0, 20, 40]), labels=batch.labels[order][None]
    )
    cell = {"batch": 3}
    rows = list(dlg_attacks._judged(found, 0, batch, seeds, cell, *MEASURES, per=20, budget=2))
    mine = [seed % 3 for seed in seeds]
    assert [row["mse"] for row in rows] == pytest.approx([near[j] ** 2 for j in mine], rel=1e-4)
    assert [row["iterations"] for row in rows] == [{0: 2, 1: 1, 2: 3}[j] for j in mine]
    assert [row["success_rate"] for row in rows] == [float(j < 2) for j in mine]
    assert {(row["status"], row["evaluations"]) for row in rows} == {("solved", 7)}


def test_of_a_large_batch_eight_pictures_are_judged() -> None:
    cell = {"batch": 16}
    assert list(dlg_attacks._batches(cell, range(6, 17))) == [
        (0, [6, 7]),
        (1, list(range(8, 16))),
        (2, [16]),
    ]
    assert dlg_attacks._all(cell, 1) == range(16, 32)
    assert list(dlg_attacks._batches({"batch": 2}, [0, 1, 2])) == [(0, [0, 1]), (1, [2])]
    batch = smooth(16, 8, seed=0)
    batch = replace(batch, images=0.5 * batch.images)
    off = torch.arange(16).view(-1, 1, 1, 1) / 100
    found = rebuilt((batch.images + off)[None])
    rows = list(dlg_attacks._judged(found, 0, batch, [9, 12, 15], cell, "mse"))
    assert [math.sqrt(row["mse"]) for row in rows] == pytest.approx([0.01, 0.04, 0.07], rel=1e-3)


# --- the attack -------------------------------------------------------------------------------

PHOTOGRAPHS: Cell = {"dataset": "photographs", "start": "U(0,1)"}


@pytest.mark.parametrize(
    ("study", "cell"),
    [
        ("dlg.fig1", {**PHOTOGRAPHS, "weights": "U(±¼)", "activation": "ReLU", "width": 12}),
        ("dlg.c1-datasets", PHOTOGRAPHS),
        ("dlg.w3-labels", {**PHOTOGRAPHS, "method": "DLG"}),
        ("dlg.w3-labels", {**PHOTOGRAPHS, "method": "iDLG"}),
    ],
)
def test_rows_come_in_the_order_of_their_seeds(
    study: str, cell: Cell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On two networks; and a seed's row is the same if it is measured alone."""
    one: dict[str, Any] = {"steps": 1, "every": 1}
    monkeypatch.setattr(dlg_attacks, "published", lambda **o: trials.published(**{**o, **one}))
    measure = BY_ID[study].measure
    assert measure is not None
    seeds = [18, 19, 20, 22]
    rows = list(measure(cell, seeds, "cpu"))
    assert len(rows) == 4
    for seed, row in zip(seeds, rows, strict=True):
        assert set(papers.find(study).metrics) <= set(row)
        [alone] = measure(cell, [seed], "cpu")
        # A few side by side are evaluated in another order of sums than many.
        assert alone == {k: pytest.approx(v, rel=1e-3) if k == "mse" else v
                         for k, v in row.items()}  # fmt: skip
    if "mse" in rows[0]:
        values = [row["mse"] for row in rows]
        assert all(abs(a - b) > 0.02 * a for i, a in enumerate(values) for b in values[:i])


@pytest.mark.parametrize("method", ["DLG", "iDLG"])
def test_a_label_is_right_or_wrong(method: str, made_up, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other label that the attack names is another one."""
    monkeypatch.setattr(trials, "SHARED", 20)
    seeds = range(4)
    truth = trials.pictures("MNIST", seeds, side=32).labels
    wrong = torch.tensor([0, 1, 0, 1])
    told = ((truth + wrong) % 10)[:, None]
    name = "idlg" if method == "iDLG" else "dlg"
    if method == "iDLG":
        monkeypatch.setattr(dlg_attacks.labels, name, lambda seen: told)
    else:
        found = replace(rebuilt(torch.zeros(4, 1, 3, 32, 32)), labels=told)
        monkeypatch.setattr(dlg_attacks.attacks, name, lambda seen, **_: found)
    cell = {"method": method, "dataset": "MNIST", "start": "N(0,1)"}
    rows = list(dlg_attacks.known_labels(cell, seeds, "cpu"))
    assert [row["accuracy"] for row in rows] == [100, 0, 100, 0]


def test_a_cell_decides_the_network_and_the_start(made_up, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Observation, dict[str, Any]]] = []

    def watch(observed: Observation, **options: Any) -> Reconstruction:
        seen.append((observed, options))
        return rebuilt(options["start"])

    monkeypatch.setattr(dlg_attacks.attacks, "dlg", watch)
    for weights, activation, width in (("U(±½)", "sigmoid", 12), ("PyTorch's default", "ReLU", 48)):
        cell = {"dataset": "CIFAR-10", "start": "N(0,1)", "weights": weights,
                "activation": activation, "width": width}  # fmt: skip
        list(dlg_attacks.filmstrip(cell, [20], "cpu"))
        observed, options = seen[-1]
        how: dict[str, Any] = {"scale": 0.5} if weights == "U(±½)" else {"init": "pytorch"}
        net = models.lenet(10, activation=activation.lower(), width=width, seed=1, **how)
        for name, w in net.state_dict().items():
            held = observed.rounds[0].weights
            assert held is not None and torch.equal(held[name], w)
        assert torch.equal(options["start"], trials.begin("normal", [20], (3, 32, 32)))
        assert options["stop"] == dlg_attacks.WEIGHTS[weights][1]
        assert options["solver"] == "plain_lbfgs"


# --- defences ---------------------------------------------------------------------------------


def _noisy(cell: Cell) -> str:
    if cell["clip"]:
        return f"DP C={cell['clip']} z={cell['scale']:g}"
    return f"{cell['noise']} std {cell['scale']}"


NAMES: dict[str, Callable[[Cell], str]] = {
    "dlg.c6-noise": _noisy,
    "dlg.c7-precision": lambda cell: {
        "single": "none", "half": "fp16", "bfloat16": "bf16", "int8": "int8"
    }[str(cell["precision"])],
    "dlg.c8-pruning": lambda cell: f"prune {cell['pruned']} %" if cell["pruned"] else "none",
    "dlg.w4-overclaim": lambda cell: f"prune {cell['pruned']} %",
}  # fmt: skip


@pytest.mark.parametrize("study", NAMES)
def test_a_cell_names_its_defence(study: str) -> None:
    seen: dict[Any, Cell] = {}
    for cell in BY_ID[study].cells:
        guard, items = dlg_defences._guard(cell), dlg_defences._training(cell)
        assert guard.name == NAMES[study](cell)
        assert (items == ()) == (guard.name == "none")
        assert dlg_defences._guard(dict(items)).name == guard.name
        # Two cells share a training if and only if they differ by the attacker alone.
        assert dlg_defences._training({**cell, "attacker": "mask-aware"}) == items
        same = {k: v for k, v in cell.items() if k != "attacker"}
        assert seen.setdefault(items, same) == same
    cells = {tuple((k, v) for k, v in c.items() if k != "attacker") for c in BY_ID[study].cells}
    assert len(seen) == len(cells)


def test_protection_is_free_up_to_two_points(made_up, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainings 0 to 2 cost 1.9, 2.1 and −3 points; every other trial leaks."""
    asked = []

    def accuracy(items: Any, number: int, device: str) -> float:
        asked.append((number, items))
        return 60.0 if not items else 60.0 - (1.9, 2.1, -3.0)[number]

    def attempts(*_: Any, **__: Any) -> Iterator[dict[str, Any]]:
        yield from ({"success_rate": float(k % 2)} for k in range(2))

    monkeypatch.setattr(dlg_defences, "_accuracy", accuracy)
    monkeypatch.setattr(dlg_defences, "attempts", attempts)
    monkeypatch.setattr(dlg_defences.attacks, "dlg", lambda *_, **__: None)
    cell = {"pruned": 20, "feedback": "on", "attacker": "as published"}
    for number, expected in ((0, [1, 0]), (1, [0, 0]), (2, [1, 0])):
        seeds = [10 * number + 3, 10 * number + 4]
        rows = list(dlg_defences.defended(cell, seeds, "cpu"))
        assert [row["free_protection"] for row in rows] == expected
        assert [row["test_accuracy"] for row in rows] == [60.0 - (1.9, 2.1, -3.0)[number]] * 2
    defence = ("pruned", 20), ("feedback", "on")
    assert set(asked) == {(number, what) for number in range(3) for what in (defence, ())}


def test_the_attack_meets_the_defended_gradients(made_up, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Observation, dict[str, Any]]] = []

    def watch(seen: Observation, **options: Any) -> Reconstruction:
        told.append((seen, options))
        return rebuilt(options["start"])

    monkeypatch.setattr(dlg_defences, "_accuracy", lambda *_: 50.0)
    monkeypatch.setattr(dlg_defences.attacks, "dlg", watch)
    for attacker in ("as published", "mask-aware"):
        list(dlg_defences.defended({"pruned": 70, "attacker": attacker}, [0, 1], "cpu"))
    for masked, (seen, options) in zip((False, True), told, strict=True):
        assert options["masked"] == masked
        flat = torch.cat([g.flatten(1) for g in seen.rounds[0].update.values()], 1)
        assert flat.eq(0).double().mean().item() == pytest.approx(0.7, abs=1e-3)


def test_a_training_that_diverges_is_no_better_than_a_guess(
    quick_training, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dlg_defences, "EPOCHS", 3)
    assert dlg_defences._accuracy((("noise", "Gaussian"), ("scale", 1e30)), 0, "cpu") == 10

    def broken(*_: Any, **__: Any) -> list[Stage]:
        raise GleakError("the training has diverged")

    monkeypatch.setattr(dlg_defences.training, "train", broken)
    assert dlg_defences._accuracy((), 0, "cpu") == 10


def test_a_training_is_done_once_and_with_feedback_of_its_own(
    quick_training, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Callable[[], Defence]] = []

    def train(model: Any, *_: Any, defence: Callable[[], Defence], **__: Any) -> list[Stage]:
        made.append(defence)
        return [Stage(1, 0.0, float(len(made)), {})]

    monkeypatch.setattr(dlg_defences.training, "train", train)
    pruning = (("pruned", 20),)
    for _ in range(2):
        assert dlg_defences._accuracy(pruning, 0, "cpu") == 1
        assert dlg_defences._accuracy(pruning, 1, "cpu") == 2
        assert dlg_defences._accuracy((*pruning, ("feedback", "on")), 0, "cpu") == 3
    assert len(made) == 3
    assert made[0]().name == "prune 20 %" and not isinstance(made[0](), ErrorFeedback)
    first, second = made[2](), made[2]()
    assert isinstance(first, ErrorFeedback) and isinstance(second, ErrorFeedback)
    assert first is not second and first.inner.name == "prune 20 %"


def test_a_network_is_attacked_at_its_stage(
    made_up, quick_training, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[dict[str, Tensor]] = []

    def watch(seen: Observation, **options: Any) -> Reconstruction:
        assert seen.rounds[0].weights is not None
        held.append(seen.rounds[0].weights)
        return rebuilt(options["start"])

    monkeypatch.setattr(dlg_defences.attacks, "dlg", watch)
    monkeypatch.setattr(dlg_defences, "STAGES", (0, 1, 2))
    for epochs in (0, 1, 2):
        list(dlg_defences.while_training({"epochs": epochs}, [20], "cpu"))
    begun = models.lenet(10, seed=1).state_dict()
    assert all(torch.equal(held[0][n], w) for n, w in begun.items())
    assert all(not torch.equal(held[1][n], w) for n, w in begun.items())
    assert all(not torch.equal(held[1][n], w) for n, w in held[2].items())


# --- the threat model -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [cell["weights"] for cell in BY_ID["dlg.w2-threat"].cells])
def test_the_message_fits_the_weights_held_only_where_they_are_exact(
    kind: str, made_up, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dlg_doubts, "EPOCH", 3 * dlg_doubts.PER_STEP + 5)
    batch = smooth(2, 32, seed=5)
    seen, held = dlg_doubts._overheard(kind, batch, 3, "cpu")
    net = models.lenet(10, seed=3)
    own = all(torch.equal(held[n], w) for n, w in net.state_dict().items())
    assert own == (kind not in ("wrong", "none"))
    net.load_state_dict(held)
    there = clients.fedsgd(net, batch, each=True).rounds[0].update
    off = max(
        float((g - there[n]).norm() / there[n].norm()) for n, g in seen.rounds[0].update.items()
    )
    if kind == "exact":
        assert off == 0
    else:
        assert off > 1e-3
    victim = seen.rounds[0].weights
    assert victim is not None
    begun = models.lenet(10, seed=3).state_dict()
    moved = any(not torch.equal(victim[n], w) for n, w in begun.items())
    assert moved == (kind in ("1 step old", "10 steps old", "stale"))


def test_older_weights_are_further_away(made_up) -> None:
    batch, apart = smooth(1, 32, seed=5), []
    for kind in ("exact", "1 step old", "10 steps old"):
        seen, held = dlg_doubts._overheard(kind, batch, 0, "cpu")
        victim = seen.rounds[0].weights
        assert victim is not None
        apart.append(sum(float((victim[n] - w).square().sum()) for n, w in held.items()))
    assert apart[0] == 0 < apart[1] < apart[2]


# --- lock-step --------------------------------------------------------------------------------


def pair(seed: int, *, same: bool) -> Batch:
    return smooth(2, 16, seed=seed, labels=[3, 3] if same else [3, 7])


@pytest.mark.parametrize(
    ("update", "labels", "collapses"),
    [("joint", "same", True), ("joint", "different", False), ("independent", "same", True)],
)
def test_what_begins_alike_stays_alike_where_nothing_tells_it_apart(
    update: str, labels: str, collapses: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dlg_doubts, "_pair", pair)
    monkeypatch.setattr(trials, "_OURS", {**trials._OURS, "steps": 150})
    cell = {"update": update, "starts": "identical", "labels": labels}
    rows = list(dlg_doubts.lockstep(cell, [0, 1], "cpu"))
    assert [row["duplicates"] for row in rows] == [float(collapses)] * 2
    if collapses:
        assert [row["success_rate"] for row in rows] == [0, 0]


def test_starts_are_apart_a_little_apart_or_alike() -> None:
    seeds, shape = [4, 9], (3, 6, 6)
    apart = {k: dlg_doubts._starts(k, seeds, shape) for k in ("random", "similar", "identical")}
    for kind, two in apart.items():
        assert two.shape == (2, 2, *shape)
        assert torch.equal(two[1], dlg_doubts._starts(kind, [9], shape)[0])
        assert torch.equal(two[:, 0], apart["random"][:, 0])
    far = {kind: float((two[:, 0] - two[:, 1]).abs().max()) for kind, two in apart.items()}
    assert far["identical"] == 0
    assert 0 < far["similar"] <= dlg_doubts.SIMILAR / 2
    assert far["random"] > 0.5


def test_the_labels_of_a_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "sample", sample)
    for seed in range(100):
        assert dlg_doubts._pair(seed, same=True).labels.tolist() == [seed % 10] * 2
        one, other = dlg_doubts._pair(seed, same=False).labels.tolist()
        assert (one == seed % 10) and (one != other or seed >= 90)


@dataclass(frozen=True)
class Bowl:
    """Half the squared distance from a centre, for each trial its own."""

    centre: Tensor  # (T, n)

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return (z - self.centre).square().sum(1) / 2, z - self.centre

    def compact(self, keep: Tensor) -> "Bowl":
        return Bowl(self.centre[keep])


def test_in_a_turn_only_some_unknowns_move() -> None:
    centre = torch.arange(12.0).view(3, 4) + 1
    moves = torch.tensor([0.0, 0, 1, 1])
    turn = dlg_doubts._Turn(Bowl(centre), moves)
    value, slope = turn.value_and_grad(torch.zeros(3, 4))
    assert torch.equal(value, centre.square().sum(1) / 2)
    assert torch.equal(slope, -centre * moves)
    some = turn.compact(torch.tensor([2]))
    assert torch.equal(some.value_and_grad(torch.zeros(1, 4))[1], -centre[2:] * moves)
    method = solvers.method("lbfgs", steps=20, rate=1.0)
    z = solvers.minimise(turn, torch.zeros(3, 4), method, steps=20, every=0, width=2).z
    torch.testing.assert_close(z, centre * moves)


@pytest.mark.parametrize("turns", [1, 2, 4])
def test_pictures_move_in_turns(turns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dlg_doubts, "BUDGET", turns * dlg_doubts.INNER // 2)
    moved: list[list[float]] = []
    real = solvers.minimise

    def watch(objective: Any, z: Tensor, *args: Any, **options: Any) -> Any:
        step = real(objective, z, *args, **options)
        moved.append((step.z - z).unflatten(1, (2, -1)).abs().amax((0, 2)).tolist())
        return step

    monkeypatch.setattr(dlg_doubts.solvers, "minimise", watch)
    net = models.lenet(10, size=16, scale=0.25, seed=0)
    seen = trials.side_by_side([clients.fedsgd(net, pair(s, same=False)) for s in (0, 1)])
    known = torch.tensor([[3, 7], [3, 7]])
    first = dlg_doubts._starts("random", [0, 1], (3, 16, 16))
    found, spent, status = dlg_doubts._in_turns(seen, known, first)
    assert [[m > 0 for m in both] for both in moved] == [[True, False], [False, True]] * (
        turns // 2
    ) + [[True, False]] * (turns % 2)
    assert torch.equal(found[:, 1], first[:, 1].float()) == (turns == 1)
    assert not torch.equal(found[:, 0], first[:, 0].float())
    assert len(spent) == len(status) == 2
    assert set(status) <= {"solved", "failed"}


def test_observations_are_stacked_as_trials() -> None:
    net = models.lenet(10, size=16, scale=0.25, seed=0)
    each = [clients.fedsgd(net, pair(s, same=False)) for s in range(3)]
    seen = trials.side_by_side(each)
    assert seen.trials == 3
    for t, one in enumerate(each):
        for name, g in one.rounds[0].update.items():
            assert torch.equal(seen.rounds[0].update[name][t : t + 1], g)


# --- prior knowledge --------------------------------------------------------------------------


def test_a_property_is_seen_on_the_copy(made_up, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dlg_doubts, "SHADOWS", 30)
    seeds = range(6)
    batch = trials.pictures("CIFAR-10", seeds, side=32)
    copies = batch.images.clone()
    level = sample("cifar10", 30, seed=2**20).images.mean((1, 2, 3)).median()
    bright = copies.mean((1, 2, 3)) > level
    assert 0 < bright.sum() < 6
    copies[1] = 0.0 if bright[1] else 1.0
    monkeypatch.setattr(dlg_doubts.attacks, "dlg", lambda *_, **__: rebuilt(copies[:, None]))
    rows = list(dlg_doubts.prior_knowledge({"method": "DLG"}, seeds, "cpu"))
    assert [row["accuracy"] for row in rows] == [100, 0, 100, 100, 100, 100]
    assert [row["success_rate"] for row in rows] == [1, 0, 1, 1, 1, 1]


def test_a_property_is_inferred_without_a_copy(made_up, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dlg_doubts, "SHADOWS", 80)
    rows = list(dlg_doubts.prior_knowledge({"method": "property inference"}, range(20), "cpu"))
    assert len(rows) == 20
    assert {row["success_rate"] for row in rows} == {0}
    assert {row["accuracy"] for row in rows} <= {0.0, 100.0}
    assert sum(row["accuracy"] for row in rows) / 20 >= 75


@pytest.mark.parametrize("study", [s for s in STUDIES if "test_accuracy" in s.metrics])
def test_trainings_are_counted_as_often_as_they_are_made(study: Study) -> None:
    shared = papers.find(study.id).metrics["test_accuracy"].shared
    assert shared == (trials.SHARED if study.id == "dlg.c9-untrained" else dlg_defences.TOLD)


# --- all of them ------------------------------------------------------------------------------


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.id)
def test_every_study_measures_what_it_names(
    study: Study, made_up, quick_training, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first and its last cell, two trials of them, with hardly any steps."""
    if study.id == "dlg.c5-text":
        pytest.importorskip("transformers", reason="the extra [text] is not installed")
    monkeypatch.setattr(dlg_text, "BUDGET", FEW)
    monkeypatch.setattr(dlg_doubts, "BUDGET", dlg_doubts.INNER)
    monkeypatch.setattr(dlg_doubts, "SHADOWS", 20)
    monkeypatch.setattr(dlg_doubts, "EPOCH", dlg_doubts.PER_STEP)
    monkeypatch.setattr(dlg_doubts, "_pair", pair)
    limits = {
        "success_rate": (0, 1), "free_protection": (0, 1), "duplicates": (0, 1),
        "accuracy": (0, 100), "test_accuracy": (0, 100), "token_accuracy": (0, 100),
    }  # fmt: skip
    measures_what_it_names(study, limits)
