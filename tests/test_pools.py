"""What rounds of a standing model send, computed once for each item: the same as real rounds."""

import pytest
import torch
from support import random_batch

from gleak_core import cafe, clients, models, pools, samplers
from gleak_core.observation import MissingCapability

SMALL = {"widths": (4, 6), "hidden": (16, 12)}


@pytest.mark.parametrize("kind", ["horizontal", "vertical"])
def test_the_messages_are_those_of_the_protocol(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "CHUNK", 4)
    own, picks = random_batch(10), samplers.independent(10, 3, 30)
    if kind == "vertical":
        net = models.vertical_net(5, size=8, vector=8, **SMALL)  # type: ignore[arg-type]
        real = clients.vertical(net, own, picks=picks)
        layers = [*(f"workers.{m}.hidden.0.bias" for m in range(4)), "server.bias"]
    else:
        net = models.cafe_net(5, size=8, **SMALL)  # type: ignore[arg-type]
        real = clients.horizontal(net, [own], picks=picks[:, None])
        layers = ["hidden.0.bias", "head.bias"]
    seen = pools.rounds(net, own, picks, layers=layers)
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
    seen = pools.rounds(
        net,
        random_batch(6),
        samplers.fixed(6, 2, 9),
        layers=["head.bias"],
        give=("image_shape", "batch_size"),
    )
    assert seen.rounds[0].weights is None
    with pytest.raises(MissingCapability, match="batch_indices"):
        seen.need("batch_indices", by="the test")
