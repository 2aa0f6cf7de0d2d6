from itertools import permutations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gleak_core.alignment import SIMILARITIES, align, mse, psnr, reorder, ssim


def images(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def shuffled(n: int, seed: int) -> Tensor:
    return torch.randperm(n, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_a_shuffled_batch_is_put_in_order(similarity: str) -> None:
    true = images(6, 3, 9, 9)
    place = shuffled(6, seed=2)
    found = (true + 0.05 * images(6, 3, 9, 9, seed=1))[place]
    order = align(found, true, similarity=similarity)
    assert torch.equal(place[order], torch.arange(6))
    assert order.dtype == torch.int64
    assert mse(reorder(found, order), true).max() < 0.01


@pytest.mark.parametrize(
    ("similarity", "measure"),
    [("psnr", psnr), ("mse", lambda a, b: -mse(a, b)), ("ssim", ssim)],
)
def test_the_sum_of_similarities_is_the_largest_of_all_permutations(similarity, measure) -> None:
    for seed in range(5):
        found, true = images(4, 1, 7, 8, seed=seed), images(4, 1, 7, 8, seed=100 + seed)
        best = max(measure(found[list(p)], true).sum().item() for p in permutations(range(4)))
        order = align(found, true, similarity=similarity)
        assert sorted(order.tolist()) == [0, 1, 2, 3]
        assert measure(found[order], true).sum().item() == pytest.approx(best, rel=1e-12)


def test_every_trial_is_matched_on_its_own() -> None:
    true = images(5, 3, 8, 8)
    places = torch.stack([shuffled(5, seed=s) for s in range(7)])  # (T, B)
    found = true[places]
    order = align(found, true)
    assert order.shape == (7, 5)
    assert torch.equal(reorder(found, order), true.expand(7, -1, -1, -1, -1))
    assert torch.equal(reorder(places, order), torch.arange(5).expand(7, 5))
    for t in range(7):
        assert torch.equal(order[t], align(found[t], true))
    assert torch.equal(align(true, found), places)
    several = align(found[:6].view(2, 3, 5, 3, 8, 8), true)
    assert torch.equal(several, order[:6].view(2, 3, 5))


def test_labels_unique_on_both_sides_are_pinned_and_the_rest_is_optimised() -> None:
    true = images(4, 3, 8, 8)
    found = true[[1, 0, 3, 2]]  # by likeness: order 1 0 3 2
    assert align(found, true).tolist() == [1, 0, 3, 2]
    # 7 and 8 are unique on both sides: their images are matched by label, against all likeness.
    labels = torch.tensor([7, 8, 5, 5])
    assert align(found, true, labels, labels).tolist() == [0, 1, 3, 2]
    # 8 is unique among the true labels only, so its image takes part in the optimisation.
    assert align(found, true, torch.tensor([7, 8, 8, 5]), labels).tolist()[0] == 0
    assert align(found, true, torch.tensor([8, 8, 5, 5]), labels).tolist() == [1, 0, 3, 2]
    # Labels on one side say nothing.
    assert align(found, true, found_labels=labels).tolist() == [1, 0, 3, 2]


def test_labels_that_are_not_unique_do_not_bind() -> None:
    """As in the paper: an image of another label may be matched if it is the more similar one."""
    true = images(4, 3, 8, 8)
    labels = torch.tensor([1, 1, 2, 2])
    assert align(true[[2, 3, 0, 1]], true, labels, labels).tolist() == [2, 3, 0, 1]


def test_pinning_works_per_trial_and_broadcasts_the_true_labels() -> None:
    true = images(2, 3, 8, 8)
    found = true[[1, 0]].expand(2, -1, -1, -1, -1)
    labels = torch.tensor([[4, 5], [5, 4]])
    assert align(found, true, labels, torch.tensor([4, 5])).tolist() == [[0, 1], [1, 0]]


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    similarity=st.sampled_from(sorted(SIMILARITIES)),
    broken=st.sets(st.integers(0, 5), max_size=3),
    coarse=st.booleans(),
    labelled=st.booleans(),
)
def test_the_order_of_the_found_images_never_matters(
    size: int, seed: int, similarity: str, broken: set[int], coarse: bool, labelled: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    true, found = torch.rand((2, size, 1, 7, 7), generator=generator)
    labels = torch.randint(0, 4, (2, size), generator=generator)
    if coarse:  # flat images of two greys: many ties
        found = (found[:, :, :1, :1] > 0.5).float().expand(-1, -1, 7, 7).clone()
    for i in broken & set(range(size)):
        found[i] = torch.nan
    place = torch.randperm(size, generator=generator)
    one, two = labels if labelled else (None, None)
    first = reorder(found, align(found, true, one, two, similarity))
    again = None if one is None else one[place]
    second = reorder(found[place], align(found[place], true, again, two, similarity))
    torch.testing.assert_close(first, second, rtol=0, atol=0, equal_nan=True)


def test_between_equal_sums_the_order_of_the_found_images_does_not_decide() -> None:
    # True images differ in one pixel, found ones in another: both matchings come to the same sum,
    # and exactly so, because 3² + 4² = 5².
    true, found = torch.zeros(2, 2, 1, 8, 8)
    true[1, 0, 0, 0], found[1, 0, 3, 3] = 4 / 8, 3 / 8
    first = reorder(found, align(found, true, similarity="mse"))
    second = reorder(found.flip(0), align(found.flip(0), true, similarity="mse"))
    assert torch.equal(first, second) and not torch.equal(first[0], first[1])


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_broken_images_take_the_places_that_others_leave(similarity: str, bad: float) -> None:
    true = images(5, 3, 8, 8)
    place = shuffled(5, seed=3)
    found = true[place] + 0.01
    found[1, 0, 0, 0] = bad
    found[4] = bad
    order = align(found, true, similarity=similarity)
    assert sorted(order.tolist()) == list(range(5))
    for j, i in enumerate(order.tolist()):
        assert i in (1, 4) or int(place[i]) == j


def test_exact_recoveries_can_be_matched() -> None:
    true = images(3, 3, 8, 8)
    assert align(true, true).tolist() == [0, 1, 2]
    assert align(true.flip(0), true).tolist() == [2, 1, 0]
    twins = true[[0, 0, 1]]
    assert torch.equal(reorder(twins.flip(0), align(twins.flip(0), twins)), twins)


@pytest.mark.parametrize(("similarity", "scale"), [("psnr", 1e-4), ("mse", 1e-9)])
def test_tiny_differences_are_not_lost_to_cancellation(similarity: str, scale: float) -> None:
    true = 0.5 + scale * images(8, 3, 8, 8)
    place = shuffled(8, seed=5)
    found = true[place] + scale / 100
    assert torch.equal(place[align(found, true, similarity=similarity)], torch.arange(8))


def test_gradients_and_half_precision_do_not_disturb() -> None:
    true = images(3, 3, 8, 8)
    assert align(true.flip(0).half().requires_grad_(), true.float()).tolist() == [2, 1, 0]


def test_refusals() -> None:
    true = images(3, 3, 8, 8)
    with pytest.raises(
        ValueError, match=r"equally many found and true images .* got \(2, 3, 8, 8\)"
    ):
        align(true[:2], true)
    with pytest.raises(ValueError, match="agree in their last dimensions"):
        align(images(3, 3, 8, 9), true)
    with pytest.raises(ValueError, match="equally many"):
        align(true[0], true[0])
    with pytest.raises(ValueError, match="did you mean 'psnr'"):
        align(true, true, similarity="psrn")
    with pytest.raises(ValueError, match="true images hold non-finite pixels"):
        align(true, true / 0)
    with pytest.raises(ValueError, match=r"3 found images need 3 labels, got \(2,\)"):
        align(true, true, torch.tensor([1, 2]), torch.tensor([1, 2, 3]))
