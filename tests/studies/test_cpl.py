"""The measurements of CPL against DLG: what is shared, which ideas attack it, what is judged."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from support import forgotten, measures_what_it_names, rebuilt
from torch.nn import functional as F

from gleak_core import attacks, data, metrics, models, starts, training
from gleak_core.data import Batch
from gleak_core.observation import Observation, Reconstruction
from gleak_core.studies import cpl_attacks, cpl_clients, cpl_judges, cpl_questions, runs, trials
from gleak_core.studies.cpl import STUDIES
from gleak_core.studies.cpl_attacks import (
    METHODS,
    ORACLE,
    OWN,
    PUBLISHED,
    SWAPPED,
    Clients,
)
from gleak_core.studies.study import Row, Study

FEW = 3  # evaluations
CLASSES = 6
EACH = 24  # pictures of a class


class Set:
    """Stand for a data set: `EACH` soft pictures of each class, but only four of the last."""

    labels = torch.arange(CLASSES).repeat_interleave(EACH)[: (CLASSES - 1) * EACH + 4].numpy()

    @classmethod
    def batch(cls, chosen: Sequence[int], size: int) -> Batch:
        coarse = torch.stack(
            [torch.rand((3, 4, 4), generator=torch.Generator().manual_seed(k)) for k in chosen]
        )
        images = F.interpolate(coarse, (size, size), mode="bilinear")
        known = torch.tensor([int(cls.labels[k]) for k in chosen])
        return Batch(images, known, tuple("abcdef"), "made up", torch.tensor(chosen))

    @classmethod
    def sample(
        cls, name: str, n: int = 1, *, size: int = 32, seed: int = 0, labels=None, balanced=True
    ) -> Batch:
        if labels is None:
            return cls.batch([(seed + k) % len(cls.labels) for k in range(n)], size)
        first = int(labels[0]) * EACH
        return cls.batch([first + (seed + k) % EACH for k in range(len(labels))], size)


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pictures of our own for every data set, and attacks that hardly begin."""
    monkeypatch.setattr(data, "sample", Set.sample)
    monkeypatch.setattr(data, "load", lambda name: Set)
    few: dict[str, Any] = {"steps": FEW, "every": 1}
    monkeypatch.setattr(cpl_attacks, "published", lambda **o: trials.published(**{**o, **few}))
    remembered = (
        cpl_attacks._classes,
        cpl_attacks._watched,
        cpl_judges._runs,
        cpl_questions.chosen,
        cpl_questions._trained,
    )
    with forgotten(*remembered):
        yield


# --- the client's side ------------------------------------------------------------------------


def test_a_batch_is_of_one_class_and_holds_the_smaller_ones(made_up) -> None:
    for seed in range(12):
        large = cpl_attacks.of_one_class("LFW", 20, seed)
        small = cpl_attacks.of_one_class("LFW", 5, seed)
        assert len(large.labels.unique()) == 1 and len(large) == 20
        assert torch.equal(large.images[:5], small.images)
        assert large.labels[0] != CLASSES - 1  # which has too few for the largest batch


@pytest.mark.parametrize("half", [0, 1])
def test_half_of_the_classes_is_left_to_others(half: int, made_up) -> None:
    seen = {
        int(cpl_attacks.of_one_class("LFW", 1, seed, half=half).labels[0]) for seed in range(40)
    }
    assert seen == {k for k in range(CLASSES - 1) if k % 2 == half}


@pytest.mark.parametrize("iterations", [1, 3])
def test_what_is_shared_is_the_mean_gradient_on_the_way(iterations: int, made_up) -> None:
    rate = 0.05
    own, seen = Clients(batch=2, iterations=iterations, rate=rate).share(4, [80, 81], "cpu")
    net = models.cpl_lenet(CLASSES, seed=4)
    for t, batch in enumerate(own):
        after = models.cpl_lenet(CLASSES, seed=4)
        for _ in range(iterations):  # gradient descent, written out
            loss = F.cross_entropy(after(batch.images), batch.labels)
            step = torch.autograd.grad(loss, list(after.parameters()))
            with torch.no_grad():
                for weight, slope in zip(after.parameters(), step, strict=True):
                    weight -= rate * slope
        for (name, before), now in zip(net.named_parameters(), after.parameters(), strict=True):
            mean = (before - now).detach() / (rate * iterations)
            torch.testing.assert_close(seen.rounds[0].update[name][t], mean, atol=2e-5, rtol=1e-3)
        (logits,) = seen.need("oracle_logits", by="a test")
        torch.testing.assert_close(logits[t], net(batch.images).detach())


def test_one_dummy_stands_for_the_batch(made_up) -> None:
    _, seen = Clients(batch=3).share(0, [0, 1], "cpu")
    alone = cpl_attacks.one_dummy(seen)
    assert alone.given.batch_size == 1 and seen.given.batch_size == 3
    known, mean = seen.given.oracle_logits, alone.given.oracle_logits
    assert known is not None and mean is not None and mean.shape == (2, 1, CLASSES)
    torch.testing.assert_close(mean[:, 0], known.mean(1))
    assert alone.rounds is seen.rounds


# --- the attacker's side ----------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, made_up) -> list[dict[str, Any]]:
    """What the attack was asked for, each time."""
    calls: list[dict[str, Any]] = []
    real = attacks.dlg

    def dlg(seen: Observation, **options: Any) -> Reconstruction:
        calls.append(options)
        return real(seen, **options)

    monkeypatch.setattr(attacks, "dlg", dlg)
    return calls


@pytest.mark.parametrize("values", [PUBLISHED, SWAPPED])
@pytest.mark.parametrize("method", METHODS)
def test_a_method_has_its_ideas_and_no_others(method: str, values: str, asked) -> None:
    _, seen = Clients().share(0, [3, 5], "cpu")
    cpl_attacks.attack(
        cpl_attacks.one_dummy(seen), METHODS[method], [3, 5], number=0, steps=1, values=values
    )
    [options] = asked
    label, term, start = (
        method == "CPL" or word in method for word in ("label", "loss term", "+ start")
    )
    assert options["labels"] == ("cpl" if label else "joint")
    assert options["penalties"] == ({"oracle_task_loss": 1e-3} if term else {})
    pattern = "level-2" if start else "random"
    drawn = "uniform" if start == (values == PUBLISHED) else "normal"
    for t, seed in enumerate((3, 5)):
        expected = starts.make(f"{pattern}:{drawn}", (1, 1, 3, 32, 32), seed=seed)
        assert torch.equal(options["start"][t], expected[0])


def test_the_loss_term_without_the_oracle_takes_the_label_that_was_read(asked) -> None:
    _, seen = Clients().share(0, [3], "cpu")
    for alpha in (0.5, 0.0):
        cpl_attacks.attack(seen, METHODS["CPL"], [3], number=0, steps=1, term=OWN, alpha=alpha)
    assert [call["penalties"] for call in asked] == [{"task_loss": 0.5}, {}]
    with pytest.raises(ValueError, match="needs a recovered label"):
        cpl_attacks.attack(seen, METHODS["DLG + loss term"], [3], number=0, steps=1, term=OWN)


@pytest.mark.parametrize(
    ("pattern", "published", "swapped"),
    [
        ("random", "random:normal", "random:uniform"),
        ("level-1", "level-1:uniform", "level-1:normal"),
        ("level-2", "level-2:uniform", "level-2:normal"),
        ("black", "black", "black"),
        ("white", "white", "white"),
    ],
)
def test_ranges_are_those_of_the_code_or_swapped(
    pattern: str, published: str, swapped: str
) -> None:
    assert cpl_attacks._start(pattern, PUBLISHED) == published
    assert cpl_attacks._start(pattern, SWAPPED) == swapped
    starts.find(published)


# --- the judge's side -------------------------------------------------------------------------


def test_the_nearest_picture_of_a_batch_counts() -> None:
    batch = Set.batch([0, 30, 60], 32)
    found = torch.stack([batch.images[1], batch.images[2] + 3, torch.full((3, 32, 32), math.nan)])
    error, alike = cpl_attacks.nearest(found, batch)
    assert error[0] == 0 and alike[0] == pytest.approx(1)
    everything = metrics.mse(torch.ones(1, 1, 3, 32, 32), batch.images[None])  # clipped
    assert error[1] == pytest.approx(float(everything.amin()))
    assert 0 < error[2] < 0.5  # not a number: grey


def test_how_early_a_picture_falls() -> None:
    falling = torch.tensor([1e0, 1e-1, 1e-3, 1e-2, 1e-4])  # what is lost again does not count
    assert cpl_attacks._early(falling) == pytest.approx(3 / 4)
    assert cpl_attacks._early(torch.tensor([0.1, 0.2, 0.3])) == 0.0


def test_a_run_drifts_if_a_picture_appeared_and_went_away(
    made_up, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, _ = Clients(batch=2).share(0, [0, 1, 2], "cpu")
    near = torch.stack([batch.images[1] * 0.9 for batch in own])[:, None]  # (T, 1, C, H, W)
    far, noise = torch.zeros_like(near), 0.5 * near
    stays = torch.stack([far[0], near[0], near[0]])
    drifts = torch.stack([far[1], near[1], far[1]])
    never = torch.stack([noise[2], far[2], far[2]])  # only its start is near
    frames = torch.stack([stays, drifts, never], 1)  # (F, T, 1, C, H, W)
    monkeypatch.setattr(
        attacks, "dlg", lambda seen, **options: rebuilt(frames[-1], frames, (0, 1, 2))
    )
    cell = {"batch": 2, "client_iterations": 5, "alpha": "zero", "rate": 0.01}
    found = list(cpl_clients.appearing(cell, [0, 1, 2], "cpu"))
    assert [row["drift"] for row in found] == [0.0, 1.0, 0.0]


def test_training_on_other_pictures_moves_the_weights_that_the_gradient_is_of(
    made_up, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def attack(message, *rest, **options):
        seen.append(message)
        return real(message, *rest, **options)

    real = cpl_clients.attack
    monkeypatch.setattr(cpl_clients, "attack", attack)
    for steps in (0, 3, 3):
        list(cpl_clients.moved({"client_iterations": steps}, [0, 1], "cpu"))
    first, *later = [message.weights(by="the test")["head.weight"] for message in seen]
    assert torch.equal(*later)
    gap = (first - later[0]).abs().max()
    assert 0 < float(gap) <= 3.01 * cpl_clients.STEP  # Adam's first steps are of that length


@pytest.mark.parametrize(("stage", "never"), [("reasonable", 221), ("main features", 31)])
def test_a_large_picture_is_there_or_never(
    stage: str, never: int, made_up, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, _ = Clients(side=128).share(0, [0, 1], "cpu")
    good = torch.stack([batch.images for batch in own])  # (T, 1, C, H, W)
    frames = torch.stack([0 * good, torch.stack([0.98 * good[0], 0 * good[1]])])
    monkeypatch.setattr(attacks, "dlg", lambda seen, **o: rebuilt(frames[1], frames, (0, 45)))
    cell = {"method": "CPL", "stage": stage, "network": "narrow"}
    first, second = cpl_attacks.large(cell, [0, 1], "cpu")
    assert (first["iterations"], second["iterations"]) == (3, never)  # 45 evaluations
    assert first["psnr"] > 30 > second["psnr"]


def test_frames_are_looked_at_and_runs_made_once(made_up, monkeypatch: pytest.MonkeyPatch) -> None:
    own, _ = Clients().share(0, [0], "cpu")
    frames = torch.stack([f * own[0].images[None] for f in (0.0, 0.5, 1.0)])
    calls = []

    def dlg(seen: Observation, **options: Any) -> Reconstruction:
        calls.append(options)
        return rebuilt(frames[-1], frames, (0, 200, 400))

    monkeypatch.setattr(attacks, "dlg", dlg)
    errors = []
    for iteration in (10, 15, 20):
        cell = {"method": "CPL", "iteration": iteration}
        errors += [row["mse"] for row in cpl_attacks.frames(cell, [0], "cpu")]
    assert errors[0] == errors[1] > 0 == errors[2]
    assert len(calls) == 1


def test_success_is_judged_by_all_its_measures(made_up, monkeypatch: pytest.MonkeyPatch) -> None:
    own, _ = Clients().share(0, [0, 1], "cpu")
    good = torch.stack([batch.images for batch in own])  # (T, 1, C, H, W)
    ends = torch.stack([0.99 * good[0], 0 * good[1]])
    frames = torch.stack([0 * good, ends])
    monkeypatch.setattr(attacks, "dlg", lambda seen, **o: rebuilt(ends, frames, (0, 60)))
    leaked, lost = cpl_attacks.success({"method": "CPL"}, [0, 1], "cpu")
    assert (leaked["success_rate"], lost["success_rate"]) == (1.0, 0.0)
    assert (leaked["iterations"], lost["iterations"]) == (3, 301)  # 60 evaluations, and never
    assert leaked["ssim"] > 0.9 > lost["ssim"] and leaked["mse"] < 1e-3 < lost["mse"]


def test_one_trial_of_several_is_whole() -> None:
    images = torch.rand(3, 2, 3, 8, 8)
    labels = torch.arange(6).view(3, 2)
    found = replace(rebuilt(images, status=["solved", "failed", "solved"]), labels=labels)
    one = runs.only(found, 1)
    assert torch.equal(one.images, images[1:2]) and one.status == ("failed",)
    assert one.labels is not None and one.labels.tolist() == [[2, 3]]
    assert one.evaluations.tolist() == [8] and one.history.frames.shape[1] == 1
    assert runs.only(rebuilt(images), 2).labels is None


# --- α and labels -----------------------------------------------------------------------------


def test_alpha_is_chosen_on_other_people(made_up, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def weighted(alpha, steps, term, seeds, device, *, half) -> Iterator[Row]:
        asked.append((alpha, half, min(seeds)))
        for _ in seeds:
            yield {"ssim": -abs(alpha - 1e-2), "mse": 0.0, "status": "solved", "evaluations": 1}

    monkeypatch.setattr(cpl_questions, "_weighted", weighted)
    cell = {"alpha": "tuned", "client_iterations": 10, "term": ORACLE}
    assert len(list(cpl_questions.weighted(cell, range(3), "cpu"))) == 3
    assert [a for a, half, seed in asked if half == 1 and seed >= 2**20] == [*cpl_questions.TRIED]
    assert asked[-1] == (1e-2, 0, 0)


@pytest.mark.parametrize("defence", cpl_questions.DEFENCES)
def test_the_label_of_one_class_is_read_off(defence: str, made_up) -> None:
    cell = {"batch": 5, "network": "untrained", "classes": "one", "defence": defence}
    assert [row["accuracy"] for row in cpl_questions.label(cell, range(6), "cpu")] == [100.0] * 6


def test_of_several_classes_one_is_read(made_up) -> None:
    cell = {"batch": 2, "network": "untrained", "classes": "several", "defence": "none"}
    seeds = [EACH - 1, 2 * EACH - 1]  # neighbours that are of two classes
    assert [row["accuracy"] for row in cpl_questions.label(cell, seeds, "cpu")] == [50.0] * 2


# --- all of them ------------------------------------------------------------------------------


def test_judges_look_at_the_same_runs(made_up) -> None:
    found = {
        name: list(cpl_judges.judges({"batch": 4, "compared_with": name}, range(2), "cpu"))
        for name in cpl_judges.JUDGES
    }
    nearest, first, mean = found.values()
    for a, b, c in zip(nearest, first, mean, strict=True):
        assert a["mse"] < c["mse"]
        assert a["mse"] <= b["mse"]
        assert a["ssim"] >= max(b["ssim"], c["ssim"])
    alone = [
        list(cpl_judges.judges({"batch": 1, "compared_with": name}, range(2), "cpu"))
        for name in cpl_judges.JUDGES
    ]
    assert alone[0] == alone[1] == alone[2]


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.id)
def test_every_study_measures_what_it_names(
    study: Study, made_up, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first and its last cell, two trials of them, with hardly any steps."""
    monkeypatch.setattr(cpl_questions, "OWN_PICTURES", 1)
    monkeypatch.setattr(cpl_questions, "HELD_OUT", 20)
    monkeypatch.setattr(cpl_attacks, "WIDTHS", {"wide": 4, "narrow": 4})
    small = training.train
    monkeypatch.setattr(training, "train", lambda *a, **o: small(*a, **{**o, "epochs": 1}))
    limits = {
        "success_rate": (0, 1), "drift": (0, 1), "early": (0, 1), "accuracy": (0, 100),
        "ssim": (-1, 1), "mse": (0, 1),
    }  # fmt: skip
    measures_what_it_names(study, limits)
