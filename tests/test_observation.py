"""The observation: what it grants, what it refuses, and what it says in words."""

import pytest
import torch
from torch import nn

from gleak_core import attacks, clients, labels, models
from gleak_core.data import Batch
from gleak_core.errors import GleakError
from gleak_core.observation import (
    Given,
    History,
    MissingCapability,
    Observation,
    Reconstruction,
    Round,
    bare,
)


def reconstruction(loss: list[float], **changes) -> Reconstruction:
    t = len(loss)
    settings = {
        "images": torch.arange(t).double().view(t, 1, 1, 1, 1),
        "labels": torch.arange(t).view(t, 1),
        "loss": torch.tensor(loss),
        "status": ("solved",) * t,
        "history": History(
            steps=torch.arange(2),
            loss=torch.zeros(2, t),
            frame_steps=torch.arange(2),
            frames=torch.arange(t).double().view(1, t, 1, 1, 1, 1).expand(2, -1, -1, -1, -1, -1),
        ),
        "evaluations": torch.full((t,), 10),
        "seconds": 1.0,
        "attack": "DLG",
    }
    return Reconstruction(**{**settings, **changes})


def test_the_threat_model_in_words(tiny_net: nn.Module, tiny_batch: Batch) -> None:
    give = ("weights", "batch_size", "oracle_labels")
    text = repr(clients.fedsgd(tiny_net, tiny_batch, give=give))
    assert text.startswith("Threat model: FedSGD")
    entries = sum(p.numel() for p in tiny_net.parameters())
    assert f"{entries:,} numbers in 8 tensors" in text
    assert "given      batch_size = 4: the number of images behind each message" in text
    assert "ORACLE     oracle_labels: the private labels (no real attacker has this)" in text
    assert "image_shape" in text.split("not given")[1]
    assert "defence    none" in text


def test_a_missing_capability_is_refused_with_its_cure(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch, give=("image_shape",))
    with pytest.raises(MissingCapability, match=r"DLG needs weights .*give=\(…, 'weights'\)"):
        seen.weights(by="DLG")
    with pytest.raises(ValueError, match="did you mean 'batch_size'"):
        seen.need("batchsize", by="DLG")


def test_the_architecture_carries_no_weights(tiny_net: nn.Module) -> None:
    stripped = bare(tiny_net)
    assert all(p.is_meta for p in stripped.parameters())
    assert not any(p.is_meta for p in tiny_net.parameters())  # and the client keeps his
    assert "seed" in str(tiny_net.drawn) and not stripped.drawn  # a seed is as good as weights


def test_without_withdraws(tiny_net, tiny_batch) -> None:
    blind = clients.fedsgd(tiny_net, tiny_batch).without("weights")
    assert blind.rounds[0].weights is None and blind.given.weights is None
    with pytest.raises(MissingCapability):
        blind.weights(by="DLG")


def test_only_keeps_whole_layers(tiny_net, tiny_batch) -> None:
    seen = clients.fedsgd(tiny_net, tiny_batch)
    assert set(seen.only("head").rounds[0].update) == {"head.weight", "head.bias"}
    assert "layers head" in repr(seen.only("head"))
    with pytest.raises(ValueError, match="did you mean 'head'"):
        seen.only("haed")
    with pytest.raises(GleakError, match="last fully connected layer"):
        seen.only("features.0").head()


def test_select_and_restarts_repeat_trials_and_their_weights(tiny_net, tiny_batch) -> None:
    give = (*clients.HONEST, "oracle_labels")
    seen = clients.several(tiny_net, tiny_batch, updates=2, rate=0.1, each=True, give=give)
    twice = seen.restarts(2)
    assert twice.trials == 8
    first, again = seen.rounds[1], twice.rounds[1]
    assert first.weights is not None and again.weights is not None
    for name in first.update:
        assert torch.equal(again.update[name][5], first.update[name][2])
        assert torch.equal(again.weights[name][5], first.weights[name][2])
    assert twice.given.oracle_labels is not None
    assert twice.given.oracle_labels[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    with pytest.raises(ValueError, match="trials must lie in 0…3"):
        seen.select([4])
    with pytest.raises(ValueError, match="trials must lie in 0…3"):
        seen.select([-1])


def test_inconsistent_observations_cannot_be_made(tiny_net, tiny_batch) -> None:
    good = clients.fedsgd(tiny_net, tiny_batch)
    update = good.rounds[0].update

    def make(net=None, update=update, given=None, weights=good.rounds[0].weights) -> Observation:
        return Observation(
            architecture=net or bare(tiny_net),
            rounds=(Round(update, weights),),
            given=given or Given(weights=True),
            protocol="test",
        )

    make()
    with pytest.raises(ValueError, match="must carry no weights"):
        make(net=tiny_net)
    with pytest.raises(ValueError, match="come with a grant"):
        make(given=Given(batch_size=1))
    with pytest.raises(ValueError, match="unknown parameter"):
        make(update={**update, "images": tiny_batch.images[None]})
    with pytest.raises(ValueError, match="trials first"):
        make(update={**update, "head.weight": update["head.weight"][:, :-1]})
    with pytest.raises(ValueError, match="at least one message"):
        Observation(bare(tiny_net), (), Given(), "test")


def test_best_keeps_the_lowest_loss_and_pays_for_all() -> None:
    found = reconstruction([3.0, 1.0, float("nan"), 2.0]).best(2)
    assert found.images.flatten().tolist() == [1, 3]
    assert found.labels is not None and found.labels.flatten().tolist() == [1, 3]
    assert found.history.frames[0].flatten().tolist() == [1, 3]
    assert found.evaluations.tolist() == [20, 20]
    with pytest.raises(ValueError, match="do not divide"):
        found.best(3)


def test_a_reconstruction_says_how_it_went() -> None:
    found = reconstruction([1.0, 2.0], status=("solved", "diverged"))
    assert repr(found) == (
        "DLG: 2 trials of 1 image, 1 solved, 1 diverged; 20 evaluations in 1.0 s"
    )
    with pytest.raises(ValueError, match="one status per trial"):
        reconstruction([1.0], status=("great",))


def test_the_head_is_the_last_layer_and_never_another(tiny_batch) -> None:
    net = models.cafe_net(classes=5, size=8).double()
    seen = clients.fedsgd(net, tiny_batch, each=True)
    assert seen.head() == ("head.weight", "head.bias")
    with pytest.raises(GleakError, match="last fully connected layer"):
        labels.idlg(seen.only("hidden"))


def test_several_messages_are_not_taken_for_one(tiny_net, tiny_batch) -> None:
    seen = clients.several(tiny_net, tiny_batch, updates=3, rate=0.1, each=True)
    for attack in (attacks.dlg, attacks.idlg):
        with pytest.raises(GleakError, match=r"has 3: choose one with seen.message\(0\)"):
            attack(seen, steps=1)
    second = seen.message(1)
    assert torch.equal(second.rounds[0].update["head.bias"], seen.rounds[1].update["head.bias"])
    assert attacks.idlg(second, steps=1).trials == 4
    with pytest.raises(ValueError, match="message must lie in 0…2"):
        seen.message(3)


def test_restarts_leave_the_indices_of_the_rounds_alone(tiny_net, tiny_batch) -> None:
    seen = clients.horizontal(tiny_net, [tiny_batch[:2], tiny_batch[2:]]).restarts(3)
    assert seen.trials == 3 and seen.given.batch_indices is not None
    assert seen.given.batch_indices.tolist() == [[0, 1, 2, 3]]
