"""The measurements of general deep leakage: whole batches, and what is judged of them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support import forgotten, measures_what_it_names, rebuilt
from torch import Tensor
from torch.nn import functional as F

from gleak_core import attacks, clients, data, labels, metrics, models, starts, training
from gleak_core.data import Batch
from gleak_core.observation import Observation, Reconstruction
from gleak_core.studies import (
    general_attacks,
    general_controls,
    general_forms,
    general_fused,
    general_labels,
    general_large,
    general_repeats,
    general_rivals,
    general_solvers,
    general_updates,
    general_weights,
)
from gleak_core.studies.general_attacks import BATCH, CLASSES, EACH, METHODS, TARGETS, Victims
from gleak_core.studies.general_images import STUDIES
from gleak_core.studies.study import Study

FEW = 4  # evaluations
PICTURES = 397  # of a set with ten classes
NAMES = tuple(f"class {k}" for k in range(CLASSES * EACH))


def picture(k: int, size: int) -> Tensor:
    """Return a soft picture of its own for every number."""
    coarse = torch.rand((1, 3, 4, 4), generator=torch.Generator().manual_seed(k))
    return F.interpolate(coarse, (size, size), mode="bilinear")[0]


def sample(
    name: str,
    n: int = 1,
    *,
    size: int = 32,
    seed: int = 0,
    labels: Sequence[int] | None = None,
    balanced: bool = True,
) -> Batch:
    """Stand for `data.sample`: one picture of each class of ImageNet, ten classes elsewhere."""
    many = len(NAMES) if name == "imagenet" else 10
    known = [(seed + 3 * k) % many for k in range(n)] if labels is None else list(labels)
    indices = [k if many > 10 else (seed + 7 * j) % PICTURES for j, k in enumerate(known)]
    images = torch.stack([picture(k, size) for k in indices])
    return Batch(images, torch.tensor(known), NAMES[:many], name, torch.tensor(indices))


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pictures of our own, attacks that hardly begin, networks that are not wide."""
    monkeypatch.setattr(data, "sample", sample)
    monkeypatch.setattr(general_attacks, "WIDE", 4)
    monkeypatch.setattr(general_large, "LARGE", 16)
    few = dict.fromkeys(general_attacks.EVALUATIONS, FEW)
    for module in (general_attacks, general_weights):
        monkeypatch.setattr(module, "EVALUATIONS", few)
    short = {
        name: made._replace(epochs=min(3, made.epochs))
        for name, made in general_labels.NETWORKS.items()
    }
    few_pictures = {"PICTURES": 390, "TEST": 70, "PUBLIC": 100}
    own = {"EVALUATIONS": FEW, "LONG": 3, "NETWORKS": short}
    for name, value in (own | few_pictures).items():
        monkeypatch.setattr(general_labels, name, value)
    monkeypatch.setattr(general_rivals, "_STEPS", FEW)
    monkeypatch.setattr(data, "load", lambda name: SimpleNamespace(labels=range(1000)))
    remembered = general_attacks.restored, general_labels._trained, general_labels._parts
    with forgotten(*remembered):
        yield


# --- the client's side ------------------------------------------------------------------------


@pytest.mark.parametrize("times", [(1,) * BATCH, (4, *[1] * 12), (2,) * 8, (4,) * 4])
def test_a_label_stands_as_often_as_asked(times: Sequence[int], made_up) -> None:
    for seed in range(5):
        batch = general_attacks.grouped(times, seed, 16)
        assert len(batch) == sum(times) and len(batch.classes) == CLASSES
        counts = torch.bincount(batch.labels, minlength=CLASSES)
        assert sorted(counts[counts > 0].tolist()) == sorted(times)
        assert len(batch.indices.unique()) == len(batch)  # no picture twice
        assert torch.equal(batch.labels, batch.indices // EACH)


def test_batches_with_repeated_labels_share_their_first_pictures(made_up) -> None:
    one, two = (general_attacks.grouped(times, 3, 16) for times in ((1, 1), (2, 1)))
    assert torch.equal(one.images[0], two.images[0])


@pytest.mark.parametrize("updates", [1, 3])
def test_messages_of_several_clients_lie_side_by_side(updates: int, made_up) -> None:
    victims = Victims("CIFAR-10", (1, 1))
    own, seen = victims.share(2, [20, 21, 22], "cpu", updates=updates)
    assert len(seen.rounds) == updates and seen.trials == 3
    net = models.lenet(10, seed=2)
    for t, batch in enumerate(own):
        alone = clients.several(net, batch, updates=updates)
        for k, (ours, single) in enumerate(zip(seen.rounds, alone.rounds, strict=True)):
            assert ours.weights is not None and single.weights is not None
            for name, update in single.update.items():
                torch.testing.assert_close(ours.update[name][t : t + 1], update)
                held = ours.weights[name][t] if k else ours.weights[name]
                torch.testing.assert_close(held, single.weights[name][0])


# --- the attacker's side ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ({"regularisers": "tv", "tv": "mean", "terms": "as printed"}, {"tv_mean": 0.5}),
        ({"regularisers": "tv+l2", "tv": "sum", "terms": "as printed"},
         {"tv_sum": 0.5, "l2": 0.1}),
        ({"regularisers": "tv+clip+scale", "tv": "mean", "terms": "as printed"},
         {"tv_mean": 0.5, "clip": 100, "scale": 100}),
        ({"regularisers": "tv+l2+clip+scale", "tv": "mean", "terms": "squared"},
         {"tv_mean": 0.5, "l2": 0.1, "clip_squared": 100, "scale_squared": 100}),
    ],
)  # fmt: skip
def test_regularisers_are_those_of_the_table(cell: Any, expected: dict[str, float]) -> None:
    assert general_attacks.penalties(cell) == expected


@pytest.mark.parametrize("name", general_attacks.STARTS)
def test_starts_have_the_range_of_their_name(name: str) -> None:
    drawn = starts.make(general_attacks.STARTS[name], (1, 1, 3, 64, 64), seed=1)
    assert abs(float(drawn.mean()) - (0.5 if name in ("U(0,1)", "N(0.5,1)") else 0.0)) < 0.02
    assert abs(float(drawn.std()) - (1.0 if name.startswith("N") else 12**-0.5)) < 0.02


@pytest.mark.parametrize("count", [1, 4, BATCH])
def test_so_many_labels_are_wrong_and_those_are_absent(count: int, made_up) -> None:
    batch = general_attacks.grouped((1,) * BATCH, 5, 16)
    given = general_attacks.mislabelled(batch, count, 5)
    assert (given != batch.labels).sum() == count and torch.equal(
        given[count:], batch.labels[count:]
    )
    assert not set(given[:count].tolist()) & set(batch.labels.tolist())


def test_an_attack_is_given_wrong_labels_only_where_asked(made_up) -> None:
    victims = Victims("ImageNet", (1,) * BATCH)
    own, told = general_attacks.restored(victims, METHODS[1], 0, (0, 1), "cpu", wrong=3)
    assert told.labels is not None
    for t, batch in enumerate(own):
        assert (told.labels[t] != batch.labels).tolist() == [True] * 3 + [False] * 13
    own, right = general_attacks.restored(victims, METHODS[1], 0, (0, 1), "cpu", wrong=0)
    assert right.labels is not None
    assert torch.equal(right.labels, torch.stack([batch.labels for batch in own]))


@pytest.mark.parametrize("method", METHODS)
def test_each_method_reads_labels_by_its_own_rule(method: str, made_up) -> None:
    victims = Victims("ImageNet", (2,) * 8)
    own, found = general_attacks.restored(victims, method, 0, (0, 1, 2, 3), "cpu")
    assert found.labels is not None
    right = metrics.label_accuracy(found.labels, torch.stack([batch.labels for batch in own]))
    assert (right > 0.9).all() if method == METHODS[1] else (right <= 0.5).all()


# --- the judge's side -------------------------------------------------------------------------


def test_a_trial_is_the_mean_of_its_pictures(made_up) -> None:
    own = [general_attacks.grouped((1,) * 4, seed, 16) for seed in (0, 1)]
    images = torch.stack([own[0].images[[2, 0, 3, 1]], own[1].images * 0.9])
    found = replace(
        rebuilt(images), labels=torch.stack([own[0].labels[[2, 0, 3, 1]], own[1].labels])
    )
    first, second = general_attacks.measures(found, own, "mse", "psnr", "ssim", "accuracy")
    assert (first["mse"], first["psnr"], first["accuracy"]) == (0, metrics.PSNR_CAP, 100)
    assert second["mse"] == pytest.approx(float((0.1 * own[1].images).square().mean()), rel=1e-5)
    assert set(first) == {"mse", "psnr", "ssim", "accuracy", "status", "evaluations"}
    assert (first["evaluations"], second["evaluations"]) == (7, 8)


def replaced(monkeypatch: pytest.MonkeyPatch, own: list[Batch], found: Reconstruction) -> None:
    monkeypatch.setattr(general_attacks, "restored", lambda *_, **__: (own, found))


def test_pinned_labels_put_a_batch_in_order(made_up, monkeypatch: pytest.MonkeyPatch) -> None:
    own = [general_attacks.grouped((1,) * BATCH, 0, 16)]
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(2))
    # So poor that pixels tell nothing: every picture is the same.
    grey = own[0].images.mean(0, keepdim=True).expand(BATCH, -1, -1, -1)
    poor = replace(rebuilt(grey[None]), labels=own[0].labels[order][None])
    good = replace(rebuilt(own[0].images[order][None]), labels=own[0].labels[order][None])

    def rows(found: Reconstruction) -> dict[str, dict[str, Any]]:
        replaced(monkeypatch, own, found)
        cells = {way: {"alignment": way, "similarity": "PSNR"} for way in general_attacks.ALIGNED}
        return {way: next(general_attacks.aligned(c, [0], "cpu")) for way, c in cells.items()}

    blurred, sharp = rows(poor), rows(good)
    assert sharp["none"]["accuracy"] < 50 and sharp["assignment"]["accuracy"] == 100
    assert sharp["none"]["psnr"] < 30 and sharp["assignment"]["psnr"] == metrics.PSNR_CAP
    assert blurred["assignment, labels pinned"]["accuracy"] == 100
    assert blurred["assignment"]["accuracy"] < 50


def test_a_blend_is_of_two_pictures_of_one_label_or_of_two(made_up) -> None:
    batch = general_attacks.grouped((2,) * 4, 0, 8)
    own, same, other = (general_attacks.blend(batch.images, target) for target in TARGETS)
    assert torch.equal(own, batch.images)
    torch.testing.assert_close(same[0], (batch.images[0] + batch.images[1]) / 2)
    torch.testing.assert_close(same[0], same[1])
    for j in range(8):
        found = [
            k
            for k in range(8)
            if torch.allclose(other[j], (batch.images[j] + batch.images[k]) / 2, atol=1e-6)
        ]
        assert len(found) == 1 and batch.labels[found[0]] != batch.labels[j]


def test_only_pictures_with_right_labels_count_where_asked(
    made_up, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = [general_attacks.grouped((1,) * BATCH, 0, 16)]
    images = own[0].images.clone()
    images[:4] = 0
    found = replace(rebuilt(images[None]), labels=general_attacks.mislabelled(own[0], 4, 0)[None])
    replaced(monkeypatch, own, found)
    right, every = (
        next(general_attacks.wrong({"wrong_labels": 4, "pictures": which}, [0], "cpu"))
        for which in ("right labels", "all")
    )
    assert (right["mse"], right["psnr"]) == (0, metrics.PSNR_CAP)
    assert every["mse"] > 0.01


def test_runs_that_several_cells_look_at_are_made_once(
    made_up, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    real = attacks.general

    def general(seen: Observation, **options: Any) -> Reconstruction:
        calls.append(options)
        return real(seen, **options)

    monkeypatch.setattr(attacks, "general", general)
    for target in TARGETS:
        cell = {"method": METHODS[1], "target": target}
        assert len(list(general_attacks.fused(cell, [0, 1], "cpu"))) == 2
    assert len(calls) == 1


# --- labels that are counted ------------------------------------------------------------------

SETTING = {
    "network": "ReLUs, untrained",
    "rule": general_labels.BY_BIAS,
    "batch": 8,
    "dummies": general_labels.OWN,
    "labels": general_labels.COME,
    "pictures": general_labels.CLIENTS,
}


def counted(seeds: Sequence[int], **changed: Any) -> list[Any]:
    return list(general_labels.counted({**SETTING, **changed}, seeds, "cpu"))


@pytest.mark.parametrize("network", general_labels.NETWORKS)
def test_with_the_private_pictures_for_dummies_every_label_is_read(network: str, made_up) -> None:
    rows = counted(range(5), network=network)
    assert [row["accuracy"] for row in rows] == [100] * 5
    assert [row["status"] for row in rows] == ["solved"] * 5
    assert all(row["off"] == 0 for row in rows)


@pytest.mark.parametrize("rule", general_labels.RULES)
def test_labels_are_counted_as_the_library_counts_them(rule: str, made_up) -> None:
    """With as many dummies as pictures, which is all that `refine` takes."""
    net = models.lenet(10, seed=1, activation="relu", init="kaiming")
    batch, dummies = sample("cifar10", 8, seed=3), sample("cifar10", 8, seed=40).images
    seen = clients.fedsgd(net, batch)
    found = general_labels._read(rule, seen, net, dummies)
    assert torch.equal(
        found, labels.refine(seen, dummies[None], rule=general_labels.RULES[rule])[0]
    )


def test_nobody_has_anothers_pictures(made_up) -> None:
    parts = general_labels._parts()
    everybodys = torch.cat([part.indices for part in parts])
    assert len(everybodys.unique()) == len(everybodys) == general_labels.PICTURES
    assert [len(part) for part in parts[1:]] == [general_labels.TEST, general_labels.PUBLIC]
    for who, part in zip((general_labels.CLIENTS, general_labels.HELD_OUT), parts, strict=False):
        batch = general_labels._private({**SETTING, "pictures": who}, 3)
        assert set(batch.indices.tolist()) <= set(part.indices.tolist())
    seen = clients.fedsgd(models.lenet(10), parts[0][:8])
    for kind, n in general_labels.OTHERS.items():
        found, _ = general_labels._dummies(kind, seen, parts[0][:8], "bias", 3)
        assert found is not None and len(found) == min(n, general_labels.PUBLIC)
        assert not torch.isin(found.flatten(1).sum(1), parts[0].images.flatten(1).sum(1)).any()


@pytest.mark.parametrize("seed", range(5))
def test_labels_come_as_they_are_or_each_once(seed: int, made_up) -> None:
    come = general_labels._private(SETTING, seed)
    once = general_labels._private({**SETTING, "labels": general_labels.ONCE}, seed)
    assert len(come) == len(once) == len(once.labels.unique()) == 8
    assert torch.equal(come.indices[:1], once.indices[:1])  # the same order, what repeats left out


@pytest.mark.parametrize(("kind", "rounds"), general_labels.COPIES.items())
def test_a_reconstruction_is_one(
    kind: str, rounds: int, made_up, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = spied(monkeypatch)
    batch = sample("cifar10", 4, seed=3)
    seen = clients.fedsgd(models.lenet(10), batch)
    found, psnr = general_labels._dummies(kind, seen, batch, "bias", 3)
    start = starts.make("uniform", (1, 4, 3, 32, 32), seed=3)[0].float()
    assert found is not None and found.shape == start.shape and not torch.equal(found, start)
    assert found.min() >= 0 and found.max() <= 1 and 0 < psnr < 40
    assert (told[0]["labels"], told[0]["rounds"]) == ("bias", rounds)


def test_how_far_p_is_off(made_up) -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.sure = torch.nn.Parameter(torch.tensor(100.0))

        def forward(self, x: Tensor) -> Tensor:  # sure of class 0 where it is dark
            dark = x.mean((1, 2, 3)) < 0.5
            return self.sure * torch.stack([dark, ~dark], 1).float()

    dark, bright = torch.zeros(2, 3, 4, 4), torch.ones(2, 3, 4, 4)
    net: Any = Net()
    assert general_labels._apart(net, dark, dark) == 0
    assert general_labels._apart(net, dark, bright) == pytest.approx(1)
    assert general_labels._apart(net, dark, torch.cat([dark, bright])) == pytest.approx(0.5)


@pytest.mark.parametrize("dummies", general_labels.DUMMIES)
def test_labels_are_counted_with_all_dummies(dummies: str, made_up) -> None:
    for network in ("ReLUs, 2 epochs", "sigmoids, untrained"):
        for row in counted([0, 1], network=network, batch=4, dummies=dummies):
            assert set(row) == {"accuracy", "off", "psnr", "test", "status", "evaluations"}
            assert 0 <= row["accuracy"] <= 100 and 0 <= row["off"] <= 100
            assert math.isnan(row["psnr"]) == (dummies not in general_labels.COPIES)
            assert math.isnan(row["test"]) == ("untrained" in network)


def test_a_network_is_looked_at_at_two_moments_of_one_training(made_up) -> None:
    early, late, raw = (
        general_labels._network(f"ReLUs, {when}", 0, "cpu")[0].state_dict()["head.weight"]
        for when in ("2 epochs", "30 epochs", "untrained")
    )
    assert not torch.equal(early, late) and not torch.equal(early, raw)
    own, test, _ = general_labels._parts()
    made = general_labels.NETWORKS["ReLUs, 30 epochs"]
    net = models.lenet(10, seed=0, **made.form)
    [last] = training.train(net, own, test, epochs=general_labels.LONG, rate=made.rate)
    assert torch.equal(late, last.weights["head.weight"])


def test_signs_name_every_class_once_and_no_other(made_up) -> None:
    """iDLG's argument for a batch: where p is small, the rows of the classes there are negative."""
    batch = sample("cifar10", 6, labels=[3, 3, 3, 7, 7, 1])
    found = general_labels._signs(clients.fedsgd(models.lenet(10, init="pytorch"), batch))
    assert sorted(found.tolist()) == [-1, -1, -1, 1, 3, 7]


def test_rules_that_need_no_dummies(made_up) -> None:
    none = {"dummies": general_labels.NO}
    for row in counted(range(3), rule=general_labels.LOWEST, **none):
        assert 0 < row["accuracy"] <= 100 and math.isnan(row["off"])
    for row in counted(range(3), rule=general_labels.SIGNS, batch=64, **none):
        assert row["accuracy"] <= 100 * 10 / 64 and math.isnan(row["off"])
    even = counted(range(8), rule=general_labels.EVEN, batch=64, **none)
    assert 60 < sum(row["accuracy"] for row in even) / 8 < 95  # what is there to be had for nothing


def test_sums_of_tanh_may_mislead(made_up) -> None:
    """Even with the true p: their input of the last layer has either sign, and any sum."""
    by_sum, by_bias = (
        [row["accuracy"] for row in counted(range(5), network="tanh, untrained", rule=rule)]
        for rule in general_labels.RULES
    )
    assert by_bias == [100] * 5
    assert sum(by_sum) < 500


# --- all of them ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("updates", "equal", "spent"), [(1, "steps", 13), (4, "steps", 52), (4, "evaluations", 16)]
)
def test_several_updates_cost_as_much_as_they_are_given(
    updates: int, equal: str, spent: int, made_up, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(general_attacks, "EVALUATIONS", {"CIFAR-10": 12})
    cell = {"updates": updates, "equal": equal, "rate": 0.1}
    rows = list(general_attacks.at_equal_cost(cell, [0, 1], "cpu"))
    assert [row["evaluations"] for row in rows] == [spent] * 2  # one more is the start's


def test_after_one_local_step_the_average_update_is_the_gradient(made_up) -> None:
    def alike(epochs: int, rate: float) -> list[float]:
        how = {"surrogate": general_attacks.AVERAGE, "labels": general_attacks.INFERRED}
        cell = {"epochs": epochs, "rate": rate, **how}
        return [row["cosine"] for row in general_weights.from_weights(cell, [0, 1], "cpu")]

    assert alike(1, 0.1) == pytest.approx([1, 1], abs=1e-4)
    assert all(0 < far < near < 1 for far, near in zip(alike(8, 1.0), alike(8, 0.01), strict=True))


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.id)
def test_every_study_measures_what_it_names(study: Study, made_up) -> None:
    limits = {
        "mse": (0, 1), "ssim": (-1, 1), "accuracy": (0, 100), "psnr": (0, math.inf),
        "cosine": (-1, 1.001),
    }  # fmt: skip
    measures_what_it_names(study, limits)


# --- the rivals, term by term -----------------------------------------------------------------


def rival(attack: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Reconstruction, dict[str, Any]]:
    """Return what an attack makes of two batches, and how it was called."""
    told: dict[str, Any] = {}
    for name in ("general", "grad_inversion", "inverting_gradients"):
        called = getattr(attacks, name)

        def spy(seen: Observation, _called=called, **options: Any) -> Reconstruction:
            told.update(options)
            return _called(seen, **options)

        monkeypatch.setattr(attacks, name, spy)
    own = Victims("CIFAR-10", (1,) * 4).batches([0, 1])
    normed = "BatchNorm" in attack
    net = general_rivals.normed(0, 10) if normed else models.lenet(10, width=4)
    seen = general_attacks.side_by_side([clients.fedsgd(net, batch) for batch in own])
    tries = 4 if "four" in attack else 1
    return general_rivals._attacked(attack, seen, [0, 1], tries), told


@pytest.mark.parametrize(
    ("attack", "terms"),
    [
        ("GradInversion, one start", {"tv_mean", "l2"}),
        ("GradInversion, four starts", {"tv_mean", "l2"}),
        ("GradInversion, a group of four", {"tv_mean", "l2", "group"}),
        ("GradInversion, BatchNorm term", {"tv_mean", "l2", "batch_norm"}),
    ],
)
def test_a_rival_has_the_terms_of_its_name(
    attack: str, terms: set[str], made_up, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, told = rival(attack, monkeypatch)
    assert set(told["penalties"]) == terms and told["steps"] == FEW
    assert found.trials == (8 if "four" in attack else 2)


def test_the_first_start_of_a_batch_is_that_of_every_attack(
    made_up, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("Inverting Gradients", "GradInversion, four starts", "General leakage, four starts")
    alone, four, ours = (rival(name, monkeypatch)[1]["start"] for name in names)
    assert torch.equal(four[::4], alone) and torch.equal(ours, four)
    assert len({float(one.sum()) for one in four}) == 8  # and the others are others


def test_a_group_pulls_its_starts_together(made_up, monkeypatch: pytest.MonkeyPatch) -> None:
    def spread(attack: str) -> float:
        images = rival(attack, monkeypatch)[0].images.unflatten(0, (2, 4))
        return float(images.var(1).mean())

    monkeypatch.setattr(general_rivals, "CONSENSUS", 10.0)
    monkeypatch.setattr(general_rivals, "_STEPS", 10)
    free, pulled = spread("GradInversion, four starts"), spread("GradInversion, a group of four")
    assert pulled < 0.9 * free


def test_four_starts_cost_four_times_as_much(made_up, monkeypatch: pytest.MonkeyPatch) -> None:
    def cost(attack: str) -> list[Any]:
        cell = {"network": "LeNet", "attack": attack}
        return [row["evaluations"] for row in general_rivals.measured(cell, [0, 1], "cpu")]

    once, often = cost("GradInversion, one start"), cost("GradInversion, four starts")
    assert often == [4 * one for one in once]


def test_the_statistics_are_those_of_pictures_and_are_handed_out(made_up) -> None:
    net = general_rivals.normed(3, 10)
    same = general_rivals.normed(3, 10)
    held = dict(net.named_buffers())
    for name, value in same.named_buffers():
        assert torch.equal(value, held[name])
    images = sample("cifar10", general_rivals.SEEN_BEFORE, seed=2**20 + 3).images
    first = net.get_submodule("0")(images)
    torch.testing.assert_close(held["1.running_mean"], first.mean((0, 2, 3)), rtol=1e-4, atol=1e-4)
    assert not net.training


def test_only_the_optimisers_are_exchanged(made_up, monkeypatch: pytest.MonkeyPatch) -> None:
    """Labels, starts, terms and evaluations stay each attack's own."""
    told: list[dict[str, Any]] = []
    for name in ("general", "grad_inversion"):
        real = getattr(attacks, name)

        def spy(seen: Any, real: Any = real, name: str = name, **options: Any) -> Any:
            told.append({"attack": name, **options})
            return real(seen, **options)

        monkeypatch.setattr(attacks, name, spy)
    monkeypatch.setattr(general_attacks, "EVALUATIONS", {"CIFAR-10": 12})
    monkeypatch.setattr(general_solvers, "EVALUATIONS", {"CIFAR-10": 12})
    for attack in general_solvers.SWAPPED:
        assert len(list(general_solvers.swapped({"attack": attack}, [0, 1], "cpu"))) == 2
    own, other = told
    assert (own["attack"], own["solver"], own["rate"]) == ("general", "adam", 0.1)
    assert (other["attack"], other["solver"], other["rate"]) == (
        "grad_inversion", "plain_lbfgs", 0.5,
    )  # fmt: skip
    assert torch.equal(own["start"], other["start"]) and own["steps"] == other["steps"]


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_the_difference_is_one_for_the_pictures_and_nothing_for_their_blend(share: float) -> None:
    true = sample("cifar10", 6, seed=1).images
    fused = general_attacks.blend(true, general_attacks.TARGETS[1])
    found = torch.lerp(fused, true, share)
    assert general_fused.difference(found, true) == pytest.approx(share, abs=1e-6)


def spied(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Record what the paper's attack is given, and have it hardly begin."""
    told: list[dict[str, Any]] = []
    real: Any = attacks.general

    def spy(seen: Any, **options: Any) -> Any:
        gradient = torch.cat([g.flatten(1) for g in seen.gradient().values()], 1)
        told.append({"gradient": gradient, **options})
        return real(seen, **(options | {"steps": FEW}))

    monkeypatch.setattr(attacks, "general", spy)
    return told


def alike(told: Sequence[dict[str, Any]]) -> bool:
    """Say whether all calls were given the same, tensors by their values."""
    first, *others = told
    return all(
        one.keys() == first.keys()
        and all(
            torch.equal(value, one[name]) if isinstance(value, torch.Tensor) else value == one[name]
            for name, value in first.items()
        )
        for one in others
    )


def test_fusions_change_one_thing_at_a_time(made_up, monkeypatch: pytest.MonkeyPatch) -> None:
    """The weight of total variation and the evaluations, and neither batch nor start nor rate."""
    told = spied(monkeypatch)
    for cell in (
        {"pictures": 4, "tv": 0.0, "budget": 600},
        {"pictures": 4, "tv": 0.5, "budget": 600},
        {"pictures": 4, "tv": 0.5, "budget": 2400},
    ):
        assert len(list(general_fused.pairs(cell, [0, 1], "cpu"))) == 2
    assert [one.pop("penalties") for one in told] == [{}, {"tv_mean": 0.5}, {"tv_mean": 0.5}]
    assert [one.pop("steps") for one in told] == [600, 600, 2400]
    assert alike(told)


@pytest.mark.parametrize("fused", [True, False])
def test_blends_are_told_from_the_pictures_in_whatever_order_they_come(
    fused: bool, made_up, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = {"pictures": 4, "tv": 0.05, "budget": FEW}
    own = Victims("ImageNet", (2, 2)).batches([0, 1])
    true = torch.stack([batch.images for batch in own])
    if fused:
        true = torch.stack([general_attacks.blend(x, general_attacks.TARGETS[1]) for x in true])
    real: Any = attacks.general

    def answer(seen: Any, **options: Any) -> Any:
        found = real(seen, **options)
        order = torch.tensor([1, 0, 3, 2])
        labels = torch.stack([batch.labels for batch in own])
        return replace(found, images=true[:, order].to(found.images), labels=labels[:, order])

    monkeypatch.setattr(attacks, "general", answer)
    for row in general_fused.pairs(cell, [0, 1], "cpu"):
        near, far = ("to_the_blend", "psnr") if fused else ("psnr", "to_the_blend")
        assert row[near] > 80 > 40 > row[far]
        assert row["difference"] == pytest.approx(0 if fused else 1, abs=1e-5)


def test_the_clip_term_is_changed_in_one_way_at_a_time(
    made_up, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = spied(monkeypatch)
    for cell in general_forms.STUDIES[0].cells:
        for row in general_forms.formed(cell, [0, 1], "cpu"):
            assert 0 <= row["outside"] <= 100
    first = [one.pop("penalties") for one in told]
    assert all(one.pop("tv_mean") == 0.5 for one in first)
    squares = 100.0 * 4 * 3 * 32 * 32
    assert first == [
        {}, {"clip": 100.0}, {"clip": 1.0}, {"clip": 0.01}, {"clip_squared": squares},
        {"clip_squared": 100.0}, *([{}, {"clip": 100.0}] * 3),
    ]  # fmt: skip
    as_it_is, line, norms, both = told[:6], told[6:8], told[8:10], told[10:]
    for one in (*line, *both):
        assert (one["solver"], one["rate"]) == ("lbfgs", 1.0)
        one |= {name: told[0][name] for name in ("solver", "rate")}
    for one in (*norms, *both):
        assert one.pop("distance") == "l2_per_layer"
    assert alike([*as_it_is, *line, *norms, *both])


def test_priors_change_beside_one_update_and_several(
    made_up, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the same evaluations and rate, from the same start; the same gradient comes first."""
    told = spied(monkeypatch)
    study, sixteen = general_updates.STUDIES
    for cell in study.cells:
        for row in general_updates.weighed(cell, [0, 1], "cpu"):
            assert row["evaluations"] % int(cell["updates"]) == 0
    assert [one.pop("penalties") for one in told] == [
        {"tv_mean": cell["tv"]} for cell in study.cells
    ]
    for cell, one in zip(study.cells, told, strict=True):
        assert one.pop("steps") * int(cell["updates"]) == cell["budget"]
    assert alike(told)
    told.clear()
    for cell in sixteen.cells:
        assert len(list(general_updates.of_sixteen(cell, [0], "cpu"))) == 1
    assert [one.pop("penalties") for one in told] == [
        {"tv_mean": cell["tv"]} for cell in sixteen.cells
    ]
    assert alike(told)


def test_sixteen_lighter_are_the_batches_of_the_table(made_up) -> None:
    """With the table's own weight a trial is the table's."""
    ours = general_updates.of_sixteen({"updates": 2, "tv": general_attacks.TV}, [1], "cpu")
    theirs = general_attacks.several({"method": METHODS[1], "updates": 2}, [1], "cpu")
    for mine, printed in zip(ours, theirs, strict=True):
        assert {mine["psnr"], mine["ssim"]} == {printed["psnr"], printed["ssim"]}


@pytest.mark.parametrize("surrogate", [general_attacks.AVERAGE, general_attacks.SIMULATED])
@pytest.mark.parametrize("which", [general_attacks.INFERRED, general_attacks.GRANTED])
def test_a_control_is_the_figure_but_for_what_it_changes(
    surrogate: str, which: str, made_up
) -> None:
    cell = {"surrogate": surrogate, "labels": which, "epochs": 2, "rate": 0.1}
    [figure] = general_weights.from_weights(cell, [1], "cpu")
    same = {**cell, "tv": general_weights.TV, "steps": FEW}
    [ours] = general_controls.from_weights(same, [1], "cpu")
    alone = {"seconds", "cosine", "grey"}
    own = Victims("CIFAR-10", (1,) * general_attacks.EIGHT).batches([1])[0].images
    apart = (own - 0.5).square().mean((1, 2, 3))
    assert ours["grey"] == pytest.approx(float((-10 * apart.log10()).mean()), rel=1e-5)
    assert {k: v for k, v in ours.items() if k not in alone} == {
        k: v for k, v in figure.items() if k not in alone
    }
    [heavy] = general_controls.from_weights({**same, "tv": 5.0}, [1], "cpu")
    [longer] = general_controls.from_weights({**same, "steps": 2 * FEW}, [1], "cpu")
    assert heavy["psnr"] != ours["psnr"] != longer["psnr"]
    assert longer["evaluations"] > ours["evaluations"]


def test_large_pictures_have_a_network_each_and_weights_of_their_own(
    made_up, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trial is the table's attack; what a cell names is all that changes."""
    told, made, real = spied(monkeypatch), [], models.lenet

    def lenet(classes: int, **how: Any) -> models.Network:
        made.append((how["seed"], how["scale"]))
        return real(classes, **how)

    monkeypatch.setattr(models, "lenet", lenet)
    victims = Victims("ImageNet", (1,) * BATCH, 16)
    own, seen = victims.share(2, [2], "cpu")
    [table] = general_attacks.measures(general_attacks.general(seen, [2], "ImageNet"), own, "psnr")
    same = {"side": 16, "bound": 0.25, "tv": 0.5, "history": 20, "steps": FEW}
    [ours] = general_large.restored(same, [2], "cpu")
    assert ours["psnr"] == table["psnr"]
    assert alike(told)
    for other in ({"bound": 0.1}, {"tv": 4.0}, {"side": 24}):
        [changed] = general_large.restored(same | other, [2], "cpu")
        assert changed["psnr"] != ours["psnr"]
    list(general_large.restored(same | {"steps": 7, "history": 3}, [2], "cpu"))
    assert (told[-1]["steps"], told[-1]["history"]) == (7, 3)
    [figure] = STUDIES[0].cells
    assert len(list(general_large.restored({**figure, "steps": FEW}, [0, 1], "cpu"))) == 2
    assert [(one["penalties"]["tv_mean"], one["history"]) for one in told[-2:]] == 2 * [(0.1, 100)]
    assert made == [(2, 0.25)] * 2 + [(2, 0.1)] + [(2, 0.25)] * 3 + [(0, 1 / 16), (1, 1 / 16)]


def test_only_the_labels_are_the_rivals(made_up, monkeypatch: pytest.MonkeyPatch) -> None:
    """The batches of Table 5, its start and terms; a rule that names each class once."""
    [study], told = general_repeats.STUDIES, spied(monkeypatch)
    for cell in study.cells:
        how = {"setting": cell["setting"], "count": int(cell["count"])}
        [ours] = general_repeats.misread(how, [3], "cpu")
        unique = how == {"setting": "repetition", "count": 0}
        if unique:
            rows = general_attacks.several({"method": METHODS[1], "updates": 1}, [3], "cpu")
        else:
            rows = general_attacks.duplicates({"method": METHODS[1], **how}, [3], "cpu")
        assert len(list(rows)) == 1
        changed, printed = told[-2:]
        assert changed.pop("labels") == "grad_inversion"
        assert alike([changed, printed])
        repeats = general_repeats.times(**how)
        assert ours["accuracy"] <= 100 * len(repeats) / BATCH


def test_angles_have_a_weight_of_their_own_beside_them(
    made_up, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = spied(monkeypatch)
    cell = {"epochs": 2, "rate": 0.1, "surrogate": general_attacks.AVERAGE}
    for which in (general_attacks.INFERRED, general_attacks.GRANTED):
        assert len(list(general_weights.from_weights({**cell, "labels": which}, [0], "cpu"))) == 1
    assert [one["penalties"] for one in told] == [{"tv_mean": 0.05}] * 2
    assert ["labels" in one for one in told] == [False, True]
