"""The textbook attacks: the objective against plain autograd, the label rule exactly, success."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support import random_batch

from gleak_core import attacks, clients, data, defences, labels, metrics, models, starts
from gleak_core.device import tolerance
from gleak_core.errors import GleakError
from gleak_core.objectives import GradientMatch
from gleak_core.observation import MissingCapability, Observation

CLOSE = tolerance(torch.float64)


def test_the_objective_vanishes_at_the_private_image_and_only_there(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch)
    objective = GradientMatch.of(seen, labels=tiny_batch.labels[None], by="test")
    truth = tiny_batch.images[None].double()
    value, gradient = objective.value_and_grad(objective.dummies.pack(truth, truth))
    assert float(value) < 1e-28 and float(gradient.abs().max()) < 1e-12
    nudged, _ = objective.value_and_grad(objective.dummies.pack(truth + 1e-2, truth))
    assert float(nudged) > 1e-10


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    classes=st.integers(2, 30),
    activation=st.sampled_from(["sigmoid", "relu"]),
)
@example(seed=33, classes=2, activation="relu")  # every feature is dead: no weight says anything
def test_idlg_reads_every_label(seed: int, classes: int, activation: str) -> None:
    net = models.lenet(classes=classes, size=8, width=4, activation=activation, seed=seed)
    batch = random_batch(6, classes=classes, seed=seed)
    seen = clients.fedsgd(net.double(), batch, each=True)
    dead = (seen.gradient()["head.weight"] == 0).all(-1).all(-1)  # (T,)
    assert torch.equal(labels.idlg(seen)[~dead, 0], batch.labels[~dead])
    assert activation == "relu" or not dead.any()


def test_idlg_refuses_a_batch(tiny_net, tiny_batch) -> None:
    with pytest.raises(ValueError, match=r"label of one image, this batch has 4.*each=True"):
        attacks.idlg(clients.fedsgd(tiny_net, tiny_batch), steps=1)


def test_an_attack_without_weights_refuses(tiny_net, tiny_batch) -> None:
    blind = clients.fedsgd(tiny_net, tiny_batch, each=True).without("weights")
    for attack in (attacks.dlg, attacks.idlg):
        with pytest.raises(MissingCapability, match="needs weights"):
            attack(blind, steps=1)


@pytest.mark.parametrize("attack", [attacks.dlg, attacks.idlg, attacks.cpl])
def test_the_engine_leaks_photographs(attack) -> None:
    """Band: all but one of 4 photographs at 16 px, and nothing that blows up."""
    batch = data.sample("photographs", n=4, size=16, seed=3)
    net = models.lenet(classes=len(batch.classes), size=16, seed=3)
    seen = clients.fedsgd(net, batch, each=True)
    found = attack(seen, seed=3, every=0, penalties={})
    score = metrics.score(found, batch)
    assert int((score.psnr >= 30).sum()) >= 3, score
    assert "diverged" not in found.status


@pytest.mark.parametrize(
    ("attack", "options", "least"),
    [
        (attacks.general, {}, 20.0),
        (attacks.cpl, {}, 30.0),
        (attacks.grad_inversion, {"trials": 2, "steps": 700}, 25.0),
        (attacks.inverting_gradients, {"steps": 400}, 15.0),
    ],
)
def test_recipes_leak_as_they_are_shipped(attack, options, least: float) -> None:
    """Band: the median of four photographs at 16 px; 8 to 10 dB are what mid-grey would get."""
    batch = data.sample("photographs", n=4, size=16, seed=3)
    net = models.lenet(classes=len(batch.classes), size=16, seed=3)
    seen = clients.fedsgd(net, batch, each=True)
    found = attack(seen, seed=3, every=0, **options).best(options.get("trials", 1))
    score = metrics.score(found, batch)
    assert float(score.psnr.median()) >= least, score
    assert "diverged" not in found.status


@pytest.mark.parametrize("distance", ["squared_l2", "l2_per_layer", "relative_l2", "cosine"])
def test_solved_means_that_gradients_agree_whatever_was_minimised(
    distance: str, tiny_net, tiny_batch
) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, each=True)
    there: dict[str, Any] = {
        "start": tiny_batch.images[:, None],
        "labels": tiny_batch.labels[:, None],
    }
    options: dict[str, Any] = {"distance": distance, "steps": 1, "every": 0}
    assert set(attacks.idlg(seen, **there, **options).status) == {"solved"}
    there["start"] = 1 - there["start"]
    assert "solved" not in attacks.idlg(seen, **there, **options).status


def test_labels_that_are_none_are_refused(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, give=("weights", "image_shape", "batch_size"))
    true = tiny_batch.labels[None]
    for wrong, said in (
        (true + 1000, "class numbers from 0 to"),
        (true.double(), "torch.float64"),
        (true[:, :1], "one label for each image"),
        ([[1]], r"torch\.tensor"),
    ):
        with pytest.raises(ValueError, match=said):
            attacks.idlg(seen, labels=wrong)  # pyright: ignore[reportArgumentType]


def test_messages_of_different_batches_are_not_matched_by_one(tiny_net, tiny_batch) -> None:
    picks = torch.tensor([[[0]], [[1]]])  # two rounds, each with another item
    seen = clients.horizontal(tiny_net, [tiny_batch], picks=picks)
    with pytest.raises(GleakError, match=r"different ones: choose one with seen\.message\(0\)"):
        attacks.general(seen, labels="joint")


def test_an_oracle_label_is_of_the_items_in_the_batch(tiny_net, tiny_batch) -> None:
    give = (*clients.HONEST, "batch_indices", "oracle_labels")
    items = [tiny_batch]
    one = clients.horizontal(tiny_net, items, picks=torch.tensor([[[1]]]), give=give)
    found = attacks.idlg(one, labels="oracle", steps=1)
    assert found.labels is not None
    assert found.labels.tolist() == [[int(tiny_batch.labels[1])]]


def test_a_group_runs_whole_or_not_at_all(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, each=True)
    options: dict[str, Any] = {"trials": 5, "steps": 10, "every": 0, "penalties": {"group": 1.0}}
    wide = attacks.grad_inversion(seen, **options)
    alone = attacks.grad_inversion(seen.select([0]), **options)
    torch.testing.assert_close(wide.images[:5], alone.images, rtol=1e-4, atol=1e-4)
    with pytest.raises(GleakError, match=r"all 5 trials of a message at once.*raise budget="):
        attacks.grad_inversion(seen, **options, budget=1)


def test_the_recursion_refuses_what_it_does_not_use(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, each=True)
    with pytest.raises(ValueError, match=r"the recursion has no trials.*polish="):
        attacks.analytic(seen, trials=5)
    with pytest.raises(ValueError, match=r"the recursion has no steps.*polish= says"):
        attacks.analytic(seen, polish=3, steps=5)
    with pytest.raises(ValueError, match="did you mean 'trials'"):
        attacks.analytic(seen, trails=5)  # pyright: ignore[reportCallIssue]


def test_frames_are_thinned_before_they_fill_the_memory(tiny_net, tiny_batch, monkeypatch) -> None:
    from gleak_core import engine

    seen = clients.fedsgd(tiny_net, tiny_batch, each=True).select([0])
    five = 5 * seen.gradient()["head.bias"].element_size() * tiny_batch.images[0].numel()
    monkeypatch.setattr(engine, "BUDGET", five)
    found = attacks.idlg(seen, steps=60, stop=0.0, budget=1)
    assert found.history.frame_steps.tolist() == [0, 20, 40, 60]
    with pytest.raises(GleakError, match="record fewer"):
        attacks.idlg(seen, steps=60, every=1, budget=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trials": 0}, "trials must be a whole number and at least 1, got 0"),
        ({"trials": 2.0}, r"trials must be a whole number and at least 1, got 2\.0"),
        ({"steps": 2.5}, "steps must be a whole number"),
        ({"history": -1}, "history must be a whole number"),
        ({"penalties": {"tv_mien": 0.0}}, "did you mean 'tv_mean'"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said: str, tiny_net, tiny_batch) -> None:
    with pytest.raises(ValueError, match=said):
        attacks.idlg(clients.fedsgd(tiny_net, tiny_batch, each=True), **options)


def test_rounds_are_counted_from_one(tiny_net, tiny_batch) -> None:
    with pytest.raises(ValueError, match="rounds must be at least 1"):
        attacks.general(clients.fedsgd(tiny_net, tiny_batch), rounds=0)


def test_many_starts_fit_into_one_chunk(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, each=True).select([0, 1])
    found = attacks.idlg(seen, trials=50, steps=2, every=0, seed=1)
    assert found.trials == 100
    alone = attacks.idlg(seen, trials=50, steps=2, every=0, seed=1, budget=1)
    torch.testing.assert_close(alone.images, found.images)
    assert found.best(50).trials == 2


def test_a_thousand_starts_run_in_the_memory_of_one_chunk(
    tiny_net, tiny_batch, monkeypatch
) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, each=True).select([0])
    held, evaluate = [], GradientMatch.value_and_grad

    def counting(self: GradientMatch, z: torch.Tensor):
        held.append((len(z), len(next(iter(self.target.values())))))
        return evaluate(self, z)

    monkeypatch.setattr(GradientMatch, "value_and_grad", counting)
    found = attacks.idlg(seen, trials=1000, steps=1, every=0)
    assert found.trials == 1000
    assert max(max(sizes) for sizes in held) == 32
    assert sum(rows for rows, _ in held) == 2 * 1000  # each start, and each step


def test_an_unknown_option_is_refused(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, each=True)
    with pytest.raises(ValueError, match="did you mean 'steps'"):
        attacks.dlg(seen, stepps=3)  # pyright: ignore[reportCallIssue]


@pytest.mark.parametrize("name", sorted(attacks.ATTACKS))
def test_a_recipe_explains_itself(name: str) -> None:
    text = attacks.explain(name)
    if name == "analytic":
        assert "equations" in text and "One image" in text
        return
    assert attacks.PUBLISHED[name].title in text and "published" in text and "solver" in text


def test_the_recursion_is_an_attack_and_a_start() -> None:
    batch = data.sample("photographs", n=2, size=16, seed=3)
    net = models.lenet(classes=len(batch.classes), size=16, seed=3).double()
    seen = clients.fedsgd(net, batch, each=True)
    for found in (attacks.analytic(seen), attacks.analytic(seen, polish=2, every=0)):
        assert metrics.score(found, batch).psnr.min() > 60 and set(found.status) == {"solved"}


@pytest.mark.parametrize(("attack", "least"), [(attacks.dlg, 2), (attacks.idlg, 3)])
def test_the_attack_leaks_photographs(attack, least: int) -> None:
    """Band: of 4 photographs at 16 px and 10 steps, DLG leaks at least 2 to 30 dB, iDLG 3.

    When written, over 4 seeds: DLG 12 of 16 (the others blew up), iDLG 16 of 16.
    """
    batch = data.sample("photographs", n=4, size=16, seed=3)
    net = models.lenet(classes=len(batch.classes), size=16, seed=3)
    seen = clients.fedsgd(net, batch, each=True)
    found = attack(seen, published=True, start="uniform", steps=10, seed=3)
    score = metrics.score(found, batch)
    assert int((score.psnr >= 30).sum()) >= least, score
    solved = [t for t, s in enumerate(found.status) if s == "solved"]
    assert all(found.labels[t] == batch.labels[t] and score.psnr[t] >= 30 for t in solved)


def test_an_attack_is_the_same_from_the_same_seed(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, each=True)
    one, two = (attacks.dlg(seen, steps=3, seed=4) for _ in range(2))
    other = attacks.dlg(seen, steps=3, seed=5)
    assert torch.equal(one.images, two.images) and torch.equal(one.loss, two.loss)
    assert not torch.equal(one.history.frames[0], other.history.frames[0])


def test_history_holds_the_start_and_the_last_step(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch)
    found = attacks.dlg(seen, start="uniform", steps=7, every=3, seed=4)
    assert found.history.frame_steps.tolist() == [0, 3, 6, 7]
    start = starts.make("uniform", (1, 4, 3, 8, 8), seed=4)
    assert torch.equal(found.history.frames[0], start)
    assert found.history.loss.shape == (8, 1)
    assert float(found.loss) == float(found.history.loss.nan_to_num(torch.inf).min())


def test_a_diverged_trial_says_so(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, each=True)
    update = seen.rounds[0].update
    update["head.bias"][1] = torch.nan
    found = attacks.dlg(seen, steps=2, start="uniform")
    assert found.status[1] == "diverged" and torch.isfinite(found.images).all()


@pytest.mark.parametrize("norm", [1e-3, 1e-2])
def test_a_small_gradient_is_not_solved_by_having_none(norm: float) -> None:
    """A dummy without a gradient is within ‖∇W‖² of a clipped one: that is no success."""
    batch = data.sample("photographs", n=2, size=16, seed=3)
    net = models.lenet(classes=10, size=16, seed=3)
    seen = clients.fedsgd(net, batch, each=True, defence=defences.clip(norm))
    found = attacks.idlg(seen, start="uniform", steps=5, seed=3)
    score = metrics.score(found, batch)
    assert not any(s == "solved" and p < 18 for s, p in zip(found.status, score.psnr, strict=True))
    assert "solved" not in attacks.idlg(seen, start="uniform", steps=1, seed=3).status


class Hurry:
    """A progress callback that is met by a Ctrl-C once `after` steps are done."""

    def __init__(self, after: int) -> None:
        self.after, self.calls = after, 0

    def __call__(self, done: int, total: int, loss: float) -> None:
        self.calls += 1
        if done >= self.after:
            raise KeyboardInterrupt


def test_an_interrupted_attack_says_so_and_keeps_what_it_found(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, each=True)
    # A budget for one trial at a time: the last ones never begin.
    options: dict[str, Any] = {"steps": 40, "every": 8, "seed": 1, "budget": 1}
    whole = attacks.idlg(seen, **options)
    with pytest.raises(KeyboardInterrupt):
        attacks.idlg(seen, **options, progress=Hurry(56))
    found = attacks.idlg(seen, **options, progress=Hurry(56), on_interrupt="keep")
    assert found.status[0] == whole.status[0] != "interrupted"
    assert found.status[1:] == ("interrupted",) * 3
    assert torch.equal(found.images[0], whole.images[0])
    assert found.loss[1] < found.history.loss[0, 1] and found.loss[2:].isinf().all()
    assert found.evaluations.tolist()[2:] == [0, 0] and torch.isfinite(found.images).all()


def test_an_interrupt_ends_all_rounds(tiny_net, tiny_batch) -> None:
    seen, hurry = clients.fedsgd(tiny_net, tiny_batch), Hurry(1)
    found = attacks.general(seen, rounds=3, steps=9, every=3, progress=hurry, on_interrupt="keep")
    assert hurry.calls == 1 and found.status == ("interrupted",)


def test_solved_does_not_ask_what_the_penalties_say(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, each=True)
    there: dict[str, Any] = {
        "start": tiny_batch.images[:, None],
        "labels": tiny_batch.labels[:, None],
    }
    # A rate that moves nothing: the penalty's pull must not take the dummy off its place.
    found = attacks.idlg(seen, **there, penalties={"l2": 1.0}, steps=1, every=0, rate=1e-9)
    assert found.loss.min() > 1 and set(found.status) == {"solved"}


def test_the_same_angle_is_not_yet_the_same_gradient(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, each=True, defence=defences.clip(1e-2))
    there: dict[str, Any] = {
        "start": tiny_batch.images[:, None],
        "labels": tiny_batch.labels[:, None],
    }
    found = attacks.idlg(seen, **there, distance="cosine", steps=1, every=0)
    assert found.loss.max() < 1e-9 and "solved" not in found.status


def scaled(seen: Observation, *factors: float) -> Observation:
    """The first message with each trial's numbers multiplied."""
    (only,) = seen.rounds
    update = {
        n: g * torch.tensor(factors).to(g).view(-1, *[1] * (g.dim() - 1))
        for n, g in only.update.items()
    }
    return replace(seen, rounds=(replace(only, update=update),))


def test_solved_is_relative_to_the_message_under_any_distance(tiny_net, tiny_batch) -> None:
    """Off by a ten-thousandth: far in numbers where gradients are large, near as a share."""
    seen = scaled(clients.fedsgd(tiny_net, tiny_batch, each=True), *[1 + 1e-4] * 4)
    there: dict[str, Any] = {
        "start": tiny_batch.images[:, None],
        "labels": tiny_batch.labels[:, None],
    }
    found = attacks.idlg(seen, **there, distance="cosine", steps=1, every=0)
    assert set(found.status) == {"solved"}


def test_every_start_of_a_message_has_its_label_start_and_scale(tiny_net, tiny_batch) -> None:
    """Starts of one message are neighbours: 0 0 0 1 1 1, never 0 1 0 1 0 1."""
    seen = scaled(clients.fedsgd(tiny_net, tiny_batch, each=True).select([0, 1]), 1.0, 1e6)
    start = 1 - tiny_batch.images[:2, None]
    options: dict[str, Any] = {"labels": tiny_batch.labels[:2, None], "steps": 3, "every": 1}
    found = attacks.idlg(seen, **options, start=start, trials=3)
    assert found.labels is not None
    assert found.labels[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    torch.testing.assert_close(found.history.frames[0], start.repeat_interleave(3, 0).double())
    # By the huge scale of the other message a trial of the first would be solved at once.
    assert found.evaluations.tolist()[:3] == [4, 4, 4] and "solved" not in found.status


def test_a_stop_is_a_share_of_what_no_gradient_has(tiny_net, tiny_batch) -> None:
    seen = scaled(clients.fedsgd(tiny_net, tiny_batch, each=True).select([0, 1]), 1e-4, 1.0)
    found = attacks.idlg(seen, start="uniform", steps=3, every=1, stop=10.0)
    assert found.evaluations.tolist() == [4, 2]


def test_several_messages_are_matched_on_average(tiny_net, tiny_batch) -> None:
    seen = clients.several(tiny_net, tiny_batch, updates=3, rate=2.0)
    known = tiny_batch.labels[None]
    found = attacks.general(seen, labels=known, penalties={}, steps=1, every=0, seed=1)
    each = [GradientMatch.of(seen, labels=known, by="test", round=r) for r in range(3)]
    z = each[0].dummies.pack(found.history.frames[0].double())
    apart = torch.cat([m.value_and_grad(z)[0] for m in each])
    assert apart.std() > 1e-2 * apart.mean()  # or one would pass for all
    torch.testing.assert_close(found.history.loss[0, 0], apart.mean())


def test_each_message_is_masked_by_what_survived_of_it(tiny_net, tiny_batch) -> None:
    seen = clients.several(tiny_net, tiny_batch, updates=2, rate=2.0, defence=defences.prune(0.5))
    there: dict[str, Any] = {"start": tiny_batch.images[None], "labels": tiny_batch.labels[None]}
    options: dict[str, Any] = {"penalties": {}, "steps": 1, "every": 0}
    found = attacks.general(seen, **there, **options, masked=True)
    assert float(found.history.loss[0]) < 1e-20 and found.status == ("solved",)
    assert attacks.general(seen, **there, **options).history.loss[0] > 1e-9


def test_an_oracle_is_believed(tiny_net, tiny_batch) -> None:
    """Labels that no rule would read off the gradient: were they asked, it would show."""
    seen = clients.fedsgd(tiny_net, tiny_batch, each=True, give=(*clients.HONEST, "oracle_labels"))
    told = (tiny_batch.labels[:, None] + 1) % 5
    seen = replace(seen, given=replace(seen.given, oracle_labels=told))
    found = attacks.idlg(seen, labels="oracle", steps=1).labels
    assert found is not None
    assert torch.equal(found, told)


def test_a_loss_that_ends_above_its_start_has_diverged(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, each=True)
    near = tiny_batch.images[:, None] + 0.05
    options: dict[str, Any] = {"start": near, "solver": "sign_descent", "steps": 4, "every": 0}
    far = attacks.idlg(seen, **options, rate=5.0)
    assert (far.history.loss[-1] > far.history.loss[0]).all()
    assert set(far.status) == {"diverged"}
    assert set(attacks.idlg(seen, **options, rate=1e-4).status) == {"failed"}


def test_an_interrupted_trial_is_not_called_solved(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, each=True)
    found = attacks.idlg(
        seen, start=tiny_batch.images[:, None], stop=0.0, steps=40, every=4,
        progress=Hurry(1), on_interrupt="keep",
    )  # fmt: skip
    assert found.loss.max() < 1e-20 and set(found.status) == {"interrupted"}


@pytest.mark.parametrize("box", [True, False])
def test_the_box_holds_pixels_and_no_labels(box: bool, tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, each=True)
    found = attacks.inverting_gradients(
        seen, labels="joint", start="normal", steps=2, every=1, box=box
    )
    later = found.history.frames[1]
    inside = bool(((later >= 0) & (later <= 1)).all())
    assert inside == box


def test_shared_weights_are_matched_by_angle(tiny_net, tiny_batch) -> None:
    seen = clients.fedavg(tiny_net, tiny_batch)
    given: dict[str, Any] = {"distance": "relative_l2"}
    for said, options in (("cosine_per_layer", {}), ("relative_l2", given)):
        found = attacks.general(seen, steps=1, every=0, **options)
        assert found.settings["distance"] == said
    found = attacks.general(clients.fedsgd(tiny_net, tiny_batch), steps=1, every=0)
    assert found.settings["distance"] == "squared_l2"


def test_labels_are_counted_again_from_the_best_start(tiny_net, tiny_batch, monkeypatch) -> None:
    taken = []
    refine = labels.refine

    def watched(seen, images, **options):
        taken.append(images)
        return refine(seen, images, **options)

    monkeypatch.setattr(labels, "refine", watched)
    seen = clients.fedsgd(tiny_net, tiny_batch)
    options: dict[str, Any] = {"trials": 4, "steps": 3, "every": 0, "start": "normal"}
    seeds = range(6)
    for seed in seeds:
        attacks.general(seen, rounds=2, seed=seed, **options)
    first = [attacks.general(seen, seed=seed, **options) for seed in seeds]
    assert any(int(f.loss.argmin()) for f in first)  # or the first start is always the best
    for images, f in zip(taken, first, strict=True):
        torch.testing.assert_close(images, f.images[f.loss.argmin()][None])
