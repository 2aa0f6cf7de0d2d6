"""What a participant computes and shares.

Each protocol takes a model and private data and returns an `Observation`: the messages, and the
capabilities named in `give`. The loss is the mean cross-entropy over the batch, as in the papers.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from gleak_core.data import Batch
from gleak_core.defences import Defence
from gleak_core.errors import GleakError, choose
from gleak_core.models import VerticalNet, split
from gleak_core.observation import CAPABILITIES, Given, Observation, Round, Update, Weights, bare

__all__ = [
    "HONEST",
    "fedavg",
    "fedsgd",
    "gradient",
    "horizontal",
    "local_steps",
    "several",
    "vertical",
]

HONEST = ("weights", "image_shape", "batch_size")
"""What an honest-but-curious server knows in every one of the four papers."""


def gradient(model: nn.Module, weights: Weights, images: Tensor, labels: Tensor) -> Update:
    """Return the gradient of the mean loss of one batch with respect to every parameter."""
    trainable = {n: weights[n] for n, _ in model.named_parameters()}
    fixed = {n: w for n, w in weights.items() if n not in trainable}

    def loss(w: Weights) -> Tensor:
        return F.cross_entropy(functional_call(model, {**w, **fixed}, (images,)), labels)

    return grad(loss)(trainable)


def fedsgd(
    model: nn.Module,
    batch: Batch,
    *,
    each: bool = False,
    defence: Defence | None = None,
    give: Iterable[str] = HONEST,
    seed: int = 0,
) -> Observation:
    """Share the gradient of one batch (FedSGD; McMahan et al. 2017).

    With `each=True` every image is a batch of one and a trial of its own. `seed` drives the
    defence's noise.
    """
    weights = _weights(model)
    images, labels = _trials(batch, each, weights)  # (T, B, C, H, W), (T, B)
    update = _per_trial(gradient, model)(_expand(weights, len(images)), images, labels)
    return _observe(
        model,
        [(update, weights)],
        batch,
        images,
        labels,
        protocol="FedSGD, one gradient",
        defence=defence,
        give=give,
        seed=seed,
    )


def local_steps(
    model: nn.Module,
    batch: Batch,
    *,
    steps: int,
    rate: float,
    share: Literal["mean", "last"] = "mean",
    each: bool = False,
    defence: Defence | None = None,
    give: Iterable[str] = (*HONEST, "local_steps"),
    seed: int = 0,
) -> Observation:
    """Share a gradient after `steps` full-batch local steps (CPL's "client iterations").

    `share="mean"` sends the mean of the gradients on the way, which is (W⁰ − Wᴸ)/(ηL);
    `share="last"` sends the gradient of the last step. The attacker holds W⁰ in both.
    """
    choose("share", share, ("mean", "last"))
    _positive(steps=steps, rate=rate)
    start = _weights(model)
    images, labels = _trials(batch, each, start)
    step = _per_trial(gradient, model)
    weights, total, last = _expand(start, len(images)), None, None
    for _ in range(steps):
        last = step(weights, images, labels)
        total = last if total is None else {n: total[n] + g for n, g in last.items()}
        weights = _descend(weights, last, rate)
    assert total is not None and last is not None  # steps ≥ 1
    update = last if share == "last" else {n: g / steps for n, g in total.items()}
    return _observe(
        model,
        [(update, start)],
        batch,
        images,
        labels,
        protocol=f"FedSGD, {share} gradient of several local steps",
        defence=defence,
        give=give,
        seed=seed,
        known={"learning_rate": rate, "local_steps": steps},
    )


def fedavg(
    model: nn.Module,
    batch: Batch,
    *,
    epochs: int = 1,
    batch_size: int | None = None,
    rate: float = 0.1,
    shuffle: bool = True,
    each: bool = False,
    defence: Defence | None = None,
    give: Iterable[str] = (*HONEST, "learning_rate", "local_steps"),
    seed: int = 0,
) -> Observation:
    """Share the weights after local epochs of mini-batch SGD (FedAvg; McMahan et al. 2017).

    A defence acts on the change of the weights, which is what a client would compress or perturb.
    `local_steps` counts every optimiser step: T in Geng et al. 2021, Eq. 22.
    """
    _positive(epochs=epochs, rate=rate)
    start = _weights(model)
    images, labels = _trials(batch, each, start)
    count = images.shape[1]
    size = count if batch_size is None else batch_size
    if not 1 <= size <= count:
        raise ValueError(
            f"local batch_size must lie in 1…{count} (the client's images), got {size}"
        )
    step, weights, taken = _per_trial(gradient, model), _expand(start, len(images)), 0
    order = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        turn = torch.randperm(count, generator=order) if shuffle else torch.arange(count)
        for pick in turn.split(size):
            weights = _descend(weights, step(weights, images[:, pick], labels[:, pick]), rate)
            taken += 1
    change = {n: weights[n] - start[n] for n, _ in model.named_parameters()}
    return _observe(
        model,
        [(change, start)],
        batch,
        images,
        labels,
        protocol="FedAvg, weights after local epochs of mini-batch SGD",
        defence=defence,
        give=give,
        seed=seed,
        known={"learning_rate": rate, "local_steps": taken},
        kind="weights",
    )


def several(
    model: nn.Module,
    batch: Batch,
    *,
    updates: int,
    rate: float = 0.1,
    each: bool = False,
    defence: Defence | None = None,
    give: Iterable[str] = HONEST,
    seed: int = 0,
) -> Observation:
    """Share the gradients of the same batch at successive weights (Geng et al. 2021, Alg. 2).

    The client steps by its own gradient between two messages; a defence touches the messages only.
    """
    _positive(updates=updates, rate=rate)
    start = _weights(model)
    images, labels = _trials(batch, each, start)
    step, weights, messages = _per_trial(gradient, model), _expand(start, len(images)), []
    for _ in range(updates):
        update = step(weights, images, labels)
        # Buffers stay as they are: no trials axis, which only parameters grow.
        messages.append((update, {n: w if n in update else start[n] for n, w in weights.items()}))
        weights = _descend(weights, update, rate)
    return _observe(
        model,
        messages,
        batch,
        images,
        labels,
        protocol="FedSGD, several gradients of the same batch, a step between them",
        defence=defence,
        give=give,
        seed=seed,
        known={"learning_rate": rate},
    )


def horizontal(
    model: nn.Module,
    workers: Sequence[Batch],
    *,
    picks: Tensor | None = None,
    rate: float = 0.0,
    defence: Defence | None = None,
    give: Iterable[str] = (*HONEST, "batch_indices"),
    seed: int = 0,
) -> Observation:
    """Share the mean of the workers' gradients, worker m using its own data (CAFE, Eq. 9-10).

    `picks` (R, M, B) says which of its items each worker takes in each round (default: one round
    with everything). The server steps by `rate` between rounds; 0 keeps the model as it is, which
    CAFE's attack assumes outside §4.4. A defence acts at each worker, before the aggregation.
    """
    weights = _weights(model)
    sizes = {len(w) for w in workers}
    if not workers or (picks is None and len(sizes) != 1):
        raise ValueError("horizontal workers need data, and equally much unless picks= says which")
    if picks is None:
        picks = torch.arange(len(workers[0])).expand(1, len(workers), -1)
    if picks.dim() != 3 or picks.shape[1] != len(workers):
        raise ValueError(
            f"picks must be (rounds, {len(workers)} workers, batch), got {tuple(picks.shape)}"
        )
    for m, worker in enumerate(workers):
        _inside(picks[:, m], len(worker), f"worker {m}'s items")
    noise = torch.Generator(_device(weights)).manual_seed(seed)
    step, messages = _per_trial(gradient, model), []
    for pick in picks:  # (M, B)
        batches = [
            _trials(w[p.tolist()], False, weights) for w, p in zip(workers, pick, strict=True)
        ]
        images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
        update = step(_expand(weights, len(workers)), images, labels)  # trials axis: the workers
        if defence is not None:
            update = defence(update, noise)
        mean = {n: g.mean(0) for n, g in update.items()}
        messages.append(({n: g[None] for n, g in mean.items()}, weights))
        weights = _descend(weights, mean, rate)
    offset = torch.tensor([0, *(len(w) for w in workers[:-1])]).cumsum(0)
    indices = (picks + offset[:, None]).flatten(
        1
    )  # (R, M·B) into the workers' data, one after another
    everything = _concatenate(workers)
    return _observe(
        model,
        messages,
        everything,
        *_trials(everything, False, weights),
        protocol=f"horizontal, mean gradient of {len(workers)} workers, {len(picks)} rounds",
        defended=defence,
        give=give,
        seed=seed,
        known={"batch_indices": indices, "batch_size": indices.shape[1]},
    )


def vertical(
    model: nn.Module,
    batch: Batch,
    *,
    picks: Tensor | None = None,
    rate: float = 0.0,
    defence: Defence | None = None,
    give: Iterable[str] = (*HONEST, "batch_indices"),
    seed: int = 0,
) -> Observation:
    """Share the gradients of workers who each hold one patch of every image (CAFE, Alg. 1).

    `model` is a `models.vertical_net`. Each worker turns its patch into a vector; the server puts
    its layer on top and returns to each worker the gradient of that worker's vector.
    `picks` (R, B) says which items take part in each round; the server steps by `rate` between
    rounds, and 0 keeps the model as it is. A defence acts on the messages only.
    """
    if not isinstance(model, VerticalNet):
        raise ValueError(
            "the vertical protocol needs a model in parts: pass models.vertical_net(…)"
        )
    weights = _weights(model)
    if picks is None:
        picks = torch.arange(len(batch))[None]
    if picks.dim() != 2:
        raise ValueError(f"picks must be (rounds, batch), got {tuple(picks.shape)}")
    _inside(picks, len(batch), "the workers' items")
    images, labels = _trials(batch, False, weights)
    messages = []
    for pick in picks:
        update = _vertical_gradient(model, weights, images[0, pick], labels[0, pick])
        messages.append(({n: g[None] for n, g in update.items()}, weights))
        weights = _descend(weights, update, rate)
    return _observe(
        model,
        messages,
        batch,
        images,
        labels,
        protocol=f"vertical, gradients of all parties, {len(picks)} rounds",
        defence=defence,
        give=give,
        seed=seed,
        known={"batch_indices": picks, "batch_size": picks.shape[1]},
    )


def _vertical_gradient(
    model: VerticalNet, weights: Weights, images: Tensor, labels: Tensor
) -> Update:
    """Run one round of the protocol, each party seeing only what it is sent."""
    nets, server = list(model.workers), model.server
    own = [_part(weights, f"workers.{m}") for m in range(len(nets))]
    patches = split(images, len(nets))  # M × (B, C, h, w)
    sent, backward = [], []
    for net, w, patch in zip(nets, own, patches, strict=True):
        answer = torch.func.vjp(lambda w, net=net, x=patch: functional_call(net, w, (x,)), w)
        sent.append(answer[0])
        backward.append(answer[1])

    def loss(w: Weights, vectors: list[Tensor]) -> Tensor:
        return F.cross_entropy(functional_call(server, w, (torch.cat(vectors, 1),)), labels)

    of_server, returned = grad(loss, argnums=(0, 1))(_part(weights, "server"), sent)
    update = {f"server.{n}": g for n, g in of_server.items()}
    for m, (pull, back) in enumerate(zip(backward, returned, strict=True)):
        update |= {f"workers.{m}.{n}": g for n, g in pull(back)[0].items()}
    return {n: update[n] for n, _ in model.named_parameters()}


# --- shared by the protocols ------------------------------------------------------------------


def _weights(model: nn.Module) -> Weights:
    """Return detached copies of parameters and buffers: later training cannot reach back."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {n: w.detach().clone() for n, w in state.items()}


def _device(weights: Weights) -> torch.device:
    return next(iter(weights.values())).device


def _part(weights: Weights, prefix: str) -> Weights:
    return {
        n.removeprefix(f"{prefix}."): w for n, w in weights.items() if n.startswith(f"{prefix}.")
    }


def _expand(weights: Weights, trials: int) -> Weights:
    return {n: w.expand(trials, *w.shape) for n, w in weights.items()}


def _descend(weights: Weights, update: Update, rate: float) -> Weights:
    return {n: w - rate * update[n] if n in update else w for n, w in weights.items()}


def _per_trial(function: Callable[..., Update], model: nn.Module) -> Callable[..., Update]:
    """Map a one-batch computation over the trials axis of weights, images and labels."""
    return vmap(lambda w, x, y: function(model, w, x, y))


def _trials(batch: Batch, each: bool, weights: Weights) -> tuple[Tensor, Tensor]:
    like = next(w for w in weights.values() if w.is_floating_point())
    images, labels = batch.images.to(like), batch.labels.to(like.device)
    if each:
        return images[:, None], labels[:, None]  # (N, 1, C, H, W), (N, 1)
    return images[None], labels[None]  # (1, B, C, H, W), (1, B)


def _concatenate(batches: Sequence[Batch]) -> Batch:
    first = batches[0]
    return Batch(
        images=torch.cat([b.images for b in batches]),
        labels=torch.cat([b.labels for b in batches]),
        classes=first.classes,
        name=first.name,
        indices=torch.cat([b.indices for b in batches]),
    )


def _observe(
    model: nn.Module,
    messages: Sequence[tuple[Update, Weights]],
    batch: Batch,
    images: Tensor,
    labels: Tensor,
    *,
    protocol: str,
    give: Iterable[str],
    seed: int,
    defence: Defence | None = None,
    defended: Defence | None = None,
    known: dict[str, object] | None = None,
    kind: Literal["gradient", "weights"] = "gradient",
) -> Observation:
    """Defend the messages, then let through what is granted and nothing else.

    `defended` names a defence that has already acted (at each worker).
    """
    give = tuple(give)
    for name in give:
        choose("capability", name, CAPABILITIES)
    facts: dict[str, object] = {
        "weights": True,
        "image_shape": tuple(images.shape[2:]),
        "batch_size": images.shape[1],
        "oracle_labels": labels,
        "oracle_tv_level": _tv(images),
        **(known or {}),
    }
    if "oracle_inputs" in give:
        facts["oracle_inputs"] = _inputs(model, images)
    if "oracle_logits" in give:
        with torch.no_grad():
            facts["oracle_logits"] = model(images.flatten(0, 1)).unflatten(0, images.shape[:2])
    impossible = [n for n in give if n not in facts]
    if impossible:
        raise ValueError(f"{protocol}: this protocol has no {impossible[0]} to give")
    noise = torch.Generator(images.device).manual_seed(seed)
    rounds = []
    for update, weights in messages:
        sent = update if defence is None else defence(update, noise)
        if kind == "weights":
            sent = {n: weights[n] + change for n, change in sent.items()}
        rounds.append(Round(_detached(sent), weights if "weights" in give else None))
    shown = defence or defended
    return Observation(
        architecture=bare(model),
        rounds=tuple(rounds),
        given=Given(**{n: facts[n] for n in give}),  # pyright: ignore[reportArgumentType]
        protocol=protocol,
        kind=kind,
        defence=shown.describe() if shown is not None else "none",
    )


def _detached(update: Update) -> Update:
    return {n: g.detach() for n, g in update.items()}


def _tv(images: Tensor) -> Tensor:
    """Return the total variation of each image (CAFE, §3.3): sums of absolute differences."""
    down = images.diff(dim=-2).abs().sum((-3, -2, -1))
    across = images.diff(dim=-1).abs().sum((-3, -2, -1))
    return down + across  # (T, B)


def _inputs(model: nn.Module, images: Tensor) -> Tensor:
    """Return the inputs of the first fully connected layer (CAFE's Z), (T, B, P)."""
    # In the vertical protocol every worker has a first layer of its own: Z is all of them in turn.
    nets = model.workers if isinstance(model, VerticalNet) else [model]
    first = [next((m for m in net.modules() if isinstance(m, nn.Linear)), None) for net in nets]
    if None in first:
        raise GleakError("this model has no fully connected layer, so no oracle_inputs to give")
    caught: list[Tensor] = []
    hooks = [
        layer.register_forward_pre_hook(lambda _, args: caught.append(args[0].detach()))
        for layer in first
        if layer is not None
    ]
    try:
        with torch.no_grad():
            model(images.flatten(0, 1))
    finally:
        for hook in hooks:
            hook.remove()
    return torch.cat([z.flatten(1) for z in caught], 1).unflatten(0, images.shape[:2])


def _positive(**numbers: float) -> None:
    for name, number in numbers.items():
        if not number > 0:
            raise ValueError(f"{name} must be positive, got {number}")
        if name != "rate" and not isinstance(number, int):
            raise ValueError(f"{name} must be a whole number, got {number}")


def _inside(picks: Tensor, count: int, what: str) -> None:
    if picks.numel() == 0 or int(picks.min()) < 0 or int(picks.max()) >= count:
        raise ValueError(f"picks must lie in 0…{count - 1} ({what})")
