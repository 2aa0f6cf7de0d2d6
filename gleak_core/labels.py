"""Label rules: private labels out of the last layer's gradient, before any optimisation.

Every rule takes an `Observation` and returns labels (T, B); their order within a batch means
nothing, because a gradient is a sum. Letters (Geng et al. 2021): K = B images, N classes, p the
softmax output (K, N), O the last layer's input (K, M), ∇W (N, M) and ∇b (N,) its gradients.
"""

from collections.abc import Callable, Mapping
from itertools import chain

import torch
from torch import Tensor
from torch.func import functional_call, vmap

from gleak_core import starts
from gleak_core.errors import choose
from gleak_core.observation import Observation

__all__ = [
    "RULES", "assign", "bias", "counts", "cpl", "general", "grad_inversion", "idlg", "refine",
]  # fmt: skip

COUNTED = ("general", "bias")
"""The rules that count images per class, from a guess of p."""


def idlg(seen: Observation) -> Tensor:
    """Return each trial's one label (T, 1): the row with a negative sum (Zhao et al. 2020, Eq. 4).

    The gradient of the last layer's row k is (p_k − y_k)·a, with a ≥ 0 after a sigmoid or a ReLU:
    its sign gives y away. Exact for one image, unless all its features are dead (a ReLU can have
    that) and the gradient of the weights is zero; for more than one image it refuses.
    """
    rows, batch_size = _rows(seen, "iDLG's label rule")
    if batch_size != 1:
        raise ValueError(
            f"iDLG reads the label of one image, this batch has {batch_size}: "
            "use fedsgd(…, each=True), or attacks.dlg, which optimises the labels"
        )
    return rows.sum(-1).argmin(-1, keepdim=True)


def cpl(seen: Observation) -> Tensor:
    """Return the class whose row has the smallest sum, B times: argminᵢ ∇ᵢw (Wei et al. 2020).

    One class for a whole batch: the batches of the paper hold one class only. For any other
    batch at most the commonest class is right.
    """
    rows, batch_size = _rows(seen, "CPL's label rule")
    return rows.sum(-1).argmin(-1, keepdim=True).repeat(1, batch_size)


def grad_inversion(seen: Observation) -> Tensor:
    """Return the B classes whose rows reach lowest, ascending (Yin et al. 2021).

    The minimum over the features keeps the one negative summand of a class visible, where a sum
    would drown it. It gives each class once, so labels must be unique.
    """
    rows, batch_size = _rows(seen, "GradInversion's label rule")
    classes = rows.shape[1]
    if batch_size > classes:
        raise ValueError(
            f"GradInversion gives each label once, and this batch of {batch_size} has only "
            f"{classes} classes: use labels.general or labels.bias, which count"
        )
    return rows.amin(-1).topk(batch_size, largest=False).indices.sort().values


def general(
    seen: Observation, *, dummies: int = 64, start: str = "uniform", seed: int = 0
) -> Tensor:
    """Return labels by counting the images of each class, any number of each (Geng et al. 2021).

    Takes the options of `counts`. Several messages are taken as messages of the same batch, and
    the counts averaged over them.
    """
    return _assigned(seen, "general", _dummies(seen, "general", dummies, start, seed))


def bias(seen: Observation, *, dummies: int = 64, start: str = "uniform", seed: int = 0) -> Tensor:
    """Return labels counted from the bias gradient alone, where O need not be guessed (ours).

    Σₖ y = Σₖ p − K·∇b is exact but for the p of the dummies. Options and several messages as in
    `general`.
    """
    return _assigned(seen, "bias", _dummies(seen, "bias", dummies, start, seed))


def refine(seen: Observation, images: Tensor, *, rule: str = "bias") -> Tensor:
    """Return labels counted again, with reconstructed images (T, B, C, H, W) for dummies (ours).

    One step of the fixed point labels → images → p → labels. With the private images themselves
    rule "bias" is exact; "general" still takes the mean O for every image's.
    """
    shape, size = seen.need("image_shape", "batch_size", by=_by(rule))
    wanted = (seen.trials, size, *shape)
    if tuple(images.shape) != wanted:
        raise ValueError(
            f"images have shape {tuple(images.shape)}, expected {wanted}: pass the images of a "
            "reconstruction of this observation"
        )
    return _assigned(seen, rule, images)


def counts(
    seen: Observation,
    *,
    rule: str = "general",
    dummies: int = 64,
    start: str = "uniform",
    seed: int = 0,
) -> Tensor:
    """Return the number of images of each class (T, N), as real numbers (Geng et al. 2021, Eq. 16).

    Σₖ y ≈ Σₖ p − K·ΔWₙ/Ō with ΔWₙ = Σₘ ∇W and Ō the mean of Σₘ O. Both p and Ō come from dummies,
    fed through the network that the attacker holds.

    Args:
        seen: One message, or several of the same batch, over which the estimates are averaged.
        rule: "general", or "bias" for Σₖ p − K·∇b.
        dummies: How many dummy images to feed.
        start: What they look like, a name that `starts.find` knows.
        seed: Draws them; all trials share them.
    """
    return _counts(seen, rule, _dummies(seen, rule, dummies, start, seed))


def assign(counts: Tensor, batch_size: int) -> Tensor:
    """Return the labels (T, B), ascending, whose counts lie nearest to real ones (T, N).

    Greedy: B times the class with the largest remaining count, less one each time. No integer
    counts that sum to B are nearer in ℓ2.
    """
    if counts.dim() != 2 or batch_size < 1:
        raise ValueError(
            f"counts of shape {tuple(counts.shape)} cannot name {batch_size} images: "
            "pass counts (T, N) and a batch_size of at least 1"
        )
    left, found = counts.clone(), []
    for _ in range(batch_size):
        found.append(left.argmax(-1, keepdim=True))  # (T, 1)
        left.scatter_add_(-1, found[-1], -torch.ones_like(left[:, :1]))
    return torch.cat(found, -1).sort().values


RULES: Mapping[str, Callable[..., Tensor]] = {
    "idlg": idlg,
    "cpl": cpl,
    "grad_inversion": grad_inversion,
    "general": general,
    "bias": bias,
}


def _rows(seen: Observation, by: str) -> tuple[Tensor, int]:
    """Return the last layer's weight gradient (T, N, M) in the only message, and the batch size."""
    seen.one_message(by=by)
    (batch_size,) = seen.need("batch_size", by=by)
    weight, _ = seen.head()
    return seen.gradient(by=by)[weight], batch_size


def _by(rule: str) -> str:
    return f"the label rule {choose('counting rule', rule, COUNTED)!r}"


def _dummies(seen: Observation, rule: str, dummies: int, start: str, seed: int) -> Tensor:
    """Return dummy images (D, C, H, W); more of them only append."""
    (shape,) = seen.need("image_shape", by=_by(rule))
    if dummies < 1:
        raise ValueError(f"dummies must be at least 1, got {dummies}: the default is 64")
    return starts.make(start, (dummies, 1, *shape), seed=seed)[:, 0]


def _assigned(seen: Observation, rule: str, images: Tensor) -> Tensor:
    (batch_size,) = seen.need("batch_size", by=_by(rule))
    return assign(_counts(seen, rule, images), batch_size)


def _counts(seen: Observation, rule: str, images: Tensor) -> Tensor:
    """Return Σₖ y (T, N), with p and Ō of images (D, C, H, W) or (T, D, C, H, W)."""
    by = _by(rule)
    (batch_size,) = seen.need("batch_size", by=by)
    seen.one_batch(by=by)
    weight, offset = seen.head()
    estimates = []
    for r in range(len(seen.rounds)):
        gradient = seen.gradient(r, by=by)
        p, o = _feed(seen, images, r, by)  # (T, N) and (T, 1), or 1 for T
        error = gradient[offset] if rule == "bias" else gradient[weight].sum(-1) / o  # mean of p−y
        estimates.append(batch_size * (p - error))
    return torch.stack(estimates).mean(0)


def _feed(seen: Observation, images: Tensor, r: int, by: str) -> tuple[Tensor, Tensor]:
    """Return the means over images of p, (T, N), and of Σₘ O, (T, 1); T is 1 if trials agree."""
    weights, net = seen.weights(by=by, round=r), seen.architecture
    own = {n: t.dim() for n, t in chain(net.named_parameters(), net.named_buffers())}
    axes = {n: 0 if w.dim() > own.get(n, w.dim()) else None for n, w in weights.items()}
    head, caught = net.get_submodule(seen.head()[0].removesuffix(".weight")), []

    def means(w: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
        p = functional_call(net, w, (x,)).softmax(-1)  # (D, N)
        return p.mean(0), caught.pop().sum(-1).mean(0, keepdim=True)

    images = images.to(seen.rounds[r].update[seen.head()[0]])
    each = 0 if images.dim() == 5 else None
    # A hook, because any model has a last layer's input, and not every model has a name for it.
    with torch.no_grad(), head.register_forward_pre_hook(lambda _, x: caught.append(x[0])):
        if each is None and not any(a == 0 for a in axes.values()):
            p, o = means(weights, images)
            return p[None], o[None]
        return vmap(means, in_dims=(axes, each), chunk_size=64)(weights, images)
