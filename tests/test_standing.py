"""What rounds of a standing model send, computed once for each item: the same as real rounds."""

import pytest
import torch
from support import random_batch

from gleak_core import cafe, clients, models, samplers, standing
from gleak_core.observation import MissingCapability

SMALL = {"widths": (4, 6), "hidden": (16, 12)}


@pytest.mark.parametrize("kind", ["horizontal", "vertical"])
def test_the_messages_are_those_of_the_protocol(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standing, "CHUNK", 4)
    own, picks = random_batch(10), samplers.independent(10, 3, 30)
    if kind == "vertical":
        net = models.vertical_net(5, size=8, vector=8, **SMALL)  # type: ignore[arg-type]
        real = clients.vertical(net, own, picks=picks)
        layers = [*(f"workers.{m}.hidden.0.bias" for m in range(4)), "server.bias"]
    else:
        net = models.cafe_net(5, size=8, **SMALL)  # type: ignore[arg-type]
        real = clients.horizontal(net, [own], picks=picks[:, None])
        layers = ["hidden.0.bias", "head.bias"]
    seen = standing.rounds(net, own, picks, layers=layers)
    assert len(seen.rounds) == len(real.rounds)
    for one, other in zip(seen.rounds, real.rounds, strict=True):
        assert set(one.update) == set(layers)
        for name in layers:
            assert torch.allclose(one.update[name], other.update[name], atol=1e-7)
    ledger = cafe.Ledger()
    ledger.add(seen)
    ledger.solve()
    ledger.add(real)
    assert torch.equal(ledger.items().labels, own.labels)


def test_what_is_not_granted_is_not_there() -> None:
    net = models.cafe_net(5, size=8, **SMALL)  # type: ignore[arg-type]
    seen = standing.rounds(
        net,
        random_batch(6),
        samplers.fixed(6, 2, 9),
        layers=["head.bias"],
        give=("image_shape", "batch_size"),
    )
    assert seen.rounds[0].weights is None
    with pytest.raises(MissingCapability, match="batch_indices"):
        seen.need("batch_indices", by="the test")


@pytest.mark.parametrize(
    ("picks", "give", "words"),
    [
        (torch.tensor([[0, 6]]), ("weights",), "lie in 0…5"),
        (torch.tensor([[-1, 0]]), ("weights",), "lie in 0…5"),
        (torch.tensor([0, 1]), ("weights",), "rounds, batch"),
        (torch.tensor([[0, 1]]), ("weigths",), "did you mean 'weights'"),
        (torch.tensor([[0, 1]]), ("oracle_labels",), "unknown capability of standing rounds"),
    ],
)
def test_what_cannot_be_is_refused(picks: torch.Tensor, give: tuple[str, ...], words: str) -> None:
    net = models.cafe_net(5, size=8, **SMALL)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=words):
        standing.rounds(net, random_batch(6), picks, layers=["head.bias"], give=give)


def test_only_what_is_given_is_granted() -> None:
    net, picks = models.cafe_net(5, size=8, **SMALL), samplers.fixed(6, 2, 3)  # type: ignore[arg-type]
    seen = standing.rounds(net, random_batch(6), picks, layers=["head.bias"], give=("weights",))
    assert list(seen.given) == ["weights"]
