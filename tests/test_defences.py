import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.optimize import minimize_scalar
from scipy.stats import kstest, laplace, norm
from torch import Tensor

from gleak_core import defences
from gleak_core.defences import Defence, ErrorFeedback
from gleak_core.errors import GleakError

Update = dict[str, Tensor]
ALL: dict[str, Callable[[], Defence]] = {
    "gaussian": lambda: defences.gaussian(std=0.1),
    "laplacian": lambda: defences.laplacian(scale=0.1),
    "half": defences.half,
    "bfloat16": defences.bfloat16,
    "int8": defences.int8,
    "prune": lambda: defences.prune(0.3),
    "prune per layer": lambda: defences.prune(0.3, "layer"),
    "feedback": lambda: ErrorFeedback(defences.prune(0.3)),
    "clip": lambda: defences.clip(0.5),
    "dp": lambda: defences.dp(0.5, 1.1),
    "chain": lambda: defences.clip(0.5) >> defences.half() >> defences.prune(0.1),
    "none": defences.none,
}
SILENT = sorted(set(ALL) - {"gaussian", "laplacian", "dp"})


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def some_update(trials: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32) -> Update:
    shapes = {"conv.weight": (4, 3, 2, 2), "conv.bias": (4,), "scale": (), "head": (5, 7)}
    generator = rng(seed)
    return {
        name: torch.randn((trials, *shape), generator=generator, dtype=dtype)
        for name, shape in shapes.items()
    }


def flat(update: Update) -> Tensor:
    return torch.cat([v.reshape(len(v), -1) for v in update.values()], 1)


def equal(a: Update, b: Update) -> bool:
    return list(a) == list(b) and all(torch.equal(a[n], b[n]) for n in a)


# --- what holds for every defence ------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_the_input_is_left_alone_and_the_form_is_kept(name: str) -> None:
    update, defence = some_update(), ALL[name]()
    before = copy.deepcopy(update)
    sent = defence(update, rng())
    assert equal(update, before)
    assert list(sent) == list(update)
    for key, value in update.items():
        assert sent[key].shape == value.shape and sent[key].dtype == value.dtype
    defence(sent, rng())  # what was sent may be defended again


@pytest.mark.parametrize("name", ALL)
def test_the_seed_decides(name: str) -> None:
    update = some_update()
    assert equal(ALL[name]()(update, rng(1)), ALL[name]()(update, rng(1)))
    assert equal(ALL[name]()(update, rng(1)), ALL[name]()(update, rng(2))) == (name in SILENT)


@pytest.mark.parametrize("name", SILENT)
def test_trials_are_defended_independently(name: str) -> None:
    update = some_update(4)
    together = ALL[name]()(update, rng())
    for t in range(4):
        alone = ALL[name]()({n: v[t : t + 1] for n, v in update.items()}, rng())
        assert equal(alone, {n: v[t : t + 1] for n, v in together.items()})


@pytest.mark.parametrize("name", ["gaussian", "laplacian", "dp"])
def test_noise_differs_between_trials_and_tensors(name: str) -> None:
    update = {"a": torch.zeros(2, 50), "b": torch.zeros(2, 50)}
    sent = ALL[name]()(update, rng())
    rows = [*sent["a"], *sent["b"]]
    assert all(not torch.equal(rows[i], rows[j]) for i in range(4) for j in range(i))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_update_that_is_not_finite_is_refused(name: str, bad: float) -> None:
    update = some_update()
    update["head"][1, 2, 3] = bad
    with pytest.raises(
        GleakError, match="not finite in 'head': the client's training has diverged"
    ):
        ALL[name]()(update, rng())


@pytest.mark.parametrize("name", ALL)
def test_words(name: str) -> None:
    defence = ALL[name]()
    assert defence.name and "\n" not in defence.describe()
    assert len(defence.name) <= len(defence.describe())


@pytest.mark.parametrize("name", ALL)
def test_a_defence_travels_to_another_process(name: str) -> None:
    defence, update = ALL[name](), some_update()
    assert equal(pickle.loads(pickle.dumps(defence))(update, rng()), defence(update, rng()))


def test_a_missing_trials_axis_is_named() -> None:
    with pytest.raises(ValueError, match="share a leading trials axis"):
        defences.half()({"a": torch.zeros(2, 3), "b": torch.zeros(3, 3)}, rng())
    with pytest.raises(ValueError, match="share a leading trials axis"):
        defences.half()({}, rng())


# --- noise -----------------------------------------------------------------------------------


@pytest.mark.parametrize("defence", [defences.gaussian(std=0.3), defences.gaussian(variance=0.09)])
def test_gaussian_is_exactly_update_plus_noise(defence: Defence) -> None:
    update, generator = some_update(dtype=torch.float64), rng(5)
    expected = {
        n: v + 0.3 * torch.randn(v.shape, generator=generator, dtype=v.dtype)
        for n, v in update.items()
    }
    sent = defence(update, rng(5))
    for n in update:
        torch.testing.assert_close(sent[n], expected[n], rtol=1e-14, atol=1e-14)


def test_std_and_variance_are_not_the_same() -> None:
    zeros = {"w": torch.zeros(1, 200_000)}
    by_std = defences.gaussian(std=0.01)(zeros, rng())["w"].std().item()
    by_variance = defences.gaussian(variance=0.01)(zeros, rng())["w"].std().item()
    assert by_std == pytest.approx(0.01, rel=0.01)
    assert by_variance == pytest.approx(0.1, rel=0.01)


def test_gaussian_is_gaussian() -> None:
    noise = defences.gaussian(std=2.0)({"w": torch.zeros(1, 20_000)}, rng())["w"][0]
    assert kstest(noise.numpy(), norm(scale=2.0).cdf).pvalue > 0.01


@pytest.mark.parametrize("way", [{"scale": 0.5}, {"std": 0.5 * 2**0.5}, {"variance": 0.5}])
def test_laplacian_is_laplacian_in_every_way_of_giving_it(way: dict[str, float]) -> None:
    noise = defences.laplacian(**way)({"w": torch.zeros(1, 20_000)}, rng())["w"][0]
    assert kstest(noise.numpy(), laplace(scale=0.5).cdf).pvalue > 0.01
    assert noise.std().item() == pytest.approx(0.5 * 2**0.5, rel=0.03)


def test_noise_strength_must_be_given_once() -> None:
    with pytest.raises(ValueError, match="exactly one of std=, variance=, got none"):
        defences.gaussian()
    with pytest.raises(ValueError, match="got std= and variance="):
        defences.gaussian(std=1, variance=1)
    with pytest.raises(ValueError, match="got scale= and std="):
        defences.laplacian(scale=1, std=1)
    with pytest.raises(ValueError, match="variance must be a number ≥ 0, got -1"):
        defences.gaussian(variance=-1)


def test_describing_noise_spells_out_both() -> None:
    assert defences.gaussian(variance=1e-4).describe() == (
        "Gaussian noise of standard deviation 0.01 (variance 0.0001) on every entry"
    )
    assert "variance 0.5, scale 0.5" in defences.laplacian(scale=0.5).describe()


# --- precision -------------------------------------------------------------------------------


def test_half_and_bfloat16_equal_torch_casts() -> None:
    update = some_update()
    for defence, dtype in ((defences.half(), torch.float16), (defences.bfloat16(), torch.bfloat16)):
        sent = defence(update, rng())
        assert equal(sent, {n: v.to(dtype).float() for n, v in update.items()})
        assert not equal(sent, update)


def test_half_overflow_is_refused_with_the_cure() -> None:
    update = {"w": torch.tensor([[70_000.0]])}
    with pytest.raises(GleakError, match="after fp16 is not finite in 'w': clip it first"):
        defences.half()(update, rng())
    assert (defences.clip(1.0) >> defences.half())(update, rng())["w"].item() == 1.0


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4), min_size=1, max_size=4
    )
)
def test_int8_errs_by_half_a_step_at_most(rows: list[list[float]]) -> None:
    value = torch.tensor(rows, dtype=torch.float64)
    scale = value.abs().amax(1, keepdim=True) / 127
    sent = defences.int8()({"w": value}, rng())["w"]
    # A scale that underflows leaves only zeros: the error is then the (denormal) value itself.
    assert ((sent - value).abs() <= scale / 2 * (1 + 1e-12) + 1e-300).all()
    steps = torch.where(scale > 0, sent / scale, 0.0)
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-9)
    assert steps.abs().max() <= 127 + 1e-9


def test_int8_by_hand() -> None:
    value = torch.tensor([[127.0, -63.4, 0.6, 0.4], [0.0, 0.0, 0.0, 0.0]])
    sent = defences.int8()({"w": value}, rng())["w"]
    assert sent.tolist() == [[127.0, -63.0, 1.0, 0.0], [0.0] * 4]


# --- pruning ---------------------------------------------------------------------------------


@settings(max_examples=80, deadline=None)
@given(
    share=st.integers(0, 100).map(lambda p: p / 100),
    trials=st.integers(1, 3),
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    scope=st.sampled_from(["global", "layer"]),
    ties=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_pruning_zeroes_exactly_the_smallest(
    share: float, trials: int, sizes: list[int], scope: str, ties: bool, seed: int
) -> None:
    generator = rng(seed)
    update = {}
    for i, n in enumerate(sizes):
        value = torch.randn((trials, n), generator=generator)
        update[f"w{i}"] = value.sign() if ties else value
    sent = defences.prune(share, scope)(update, generator)
    groups = [list(update)] if scope == "global" else [[n] for n in update]
    for group in groups:
        before = flat({n: update[n] for n in group})
        after = flat({n: sent[n] for n in group})
        expected = round(share * 100) * before.shape[1] // 100  # in integers: exact
        gone = after == 0
        assert (gone.sum(1) == expected).all()
        assert torch.equal(after[~gone], before[~gone])
        for row, mask in zip(before.abs(), gone, strict=True):
            if mask.any() and not mask.all():
                assert row[mask].max() <= row[~mask].min()


def test_pruning_counts_decimally_and_breaks_ties_by_place() -> None:
    sent = defences.prune(0.29)({"w": torch.ones(1, 100)}, rng())["w"][0]
    assert sent.tolist() == [0.0] * 29 + [1.0] * 71


def test_pruning_globally_is_not_pruning_by_layer() -> None:
    update = {"small": torch.full((1, 4), 0.1), "large": torch.full((1, 4), 5.0)}
    together = defences.prune(0.5)(update, rng())
    assert together["small"].count_nonzero() == 0 and together["large"].count_nonzero() == 4
    each = defences.prune(0.5, "layer")(update, rng())
    assert each["small"].count_nonzero() == 2 and each["large"].count_nonzero() == 2


def test_the_attacker_sees_what_survived() -> None:
    update = some_update()
    masks = defences.surviving(defences.prune(0.25)(update, rng()))
    total = flat(update).shape[1]
    assert (flat(masks).sum(1) == total - total // 4).all()
    assert all(m.dtype == torch.bool and m.shape == update[n].shape for n, m in masks.items())


def test_pruning_refusals() -> None:
    with pytest.raises(ValueError, match=r"share must lie between 0 and 1, got 20: 20 % is"):
        defences.prune(20)
    with pytest.raises(ValueError, match="did you mean 'layer'"):
        defences.prune(0.2, "layers")


@settings(max_examples=40, deadline=None)
@given(share=st.sampled_from([0.1, 0.5, 0.9, 1.0]), seed=st.integers(0, 10**6))
def test_feedback_loses_nothing(share: float, seed: int) -> None:
    generator = rng(seed)
    defence, true, sent = ErrorFeedback(defences.prune(share)), torch.zeros(2, 12), 0
    for _ in range(5):
        # Whole numbers: sums are exact, so the balance must be exact too.
        update = {"w": torch.randint(-50, 50, (2, 12), generator=generator).float()}
        true += update["w"]
        sent = sent + defence(update, generator)["w"]
    assert torch.equal(sent + defence.residual["w"], true)


def test_feedback_sends_in_the_end_what_pruning_never_would() -> None:
    update = {"w": torch.tensor([[1.0, 0.4]])}
    plain, defence = defences.prune(0.5), ErrorFeedback(defences.prune(0.5))
    assert plain(update, rng())["w"].tolist() == [[1.0, 0.0]]
    rounds = [defence(update, rng())["w"][0].tolist() for _ in range(3)]
    torch.testing.assert_close(torch.tensor(rounds), torch.tensor([[1, 0], [1, 0], [0, 1.2]]))


def test_feedback_forgets_on_reset_and_refuses_another_client() -> None:
    defence, update = ErrorFeedback(defences.prune(0.5)), some_update()
    first = defence(update, rng())
    assert not equal(defence(update, rng()), first)
    with pytest.raises(ValueError, match=r"call reset\(\), or use one ErrorFeedback"):
        defence(some_update(trials=2), rng())
    defence.reset()
    assert equal(defence(update, rng()), first)


# --- clipping and differential privacy -------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(bound=st.floats(0.01, 100), seed=st.integers(0, 10**6))
def test_clipping_bounds_the_norm_and_keeps_the_direction(bound: float, seed: int) -> None:
    update = some_update(seed=seed, dtype=torch.float64)
    before, after = flat(update), flat(defences.clip(bound)(update, rng()))
    length = before.norm(dim=1, keepdim=True)
    expected = before * (bound / length).clamp(max=1)
    torch.testing.assert_close(after, expected, rtol=1e-12, atol=1e-14)
    assert (after.norm(dim=1) <= bound * (1 + 1e-12)).all()


def test_clipping_leaves_short_and_zero_updates_alone() -> None:
    update = {"w": torch.tensor([[0.3, 0.4], [0.0, 0.0], [3.0, 4.0]])}
    sent = defences.clip(1.0)(update, rng())["w"]
    torch.testing.assert_close(sent, torch.tensor([[0.3, 0.4], [0.0, 0.0], [0.6, 0.8]]))
    assert torch.equal(sent[:2], update["w"][:2])


def test_dp_is_clipping_then_noise() -> None:
    update = some_update()
    by_hand = defences.gaussian(std=1.5 * 0.4)(defences.clip(0.4)(update, rng()), rng(3))
    assert equal(defences.dp(0.4, 1.5)(update, rng(3)), by_hand)


@pytest.mark.parametrize("z", [0.5, 1.1, 4.0])
@pytest.mark.parametrize("steps", [1, 100])
def test_epsilon_is_the_minimum_over_orders(z: float, steps: int) -> None:
    delta = 1e-5

    def divergence(alpha: float) -> float:
        """Rényi divergence of N(1, z²) from N(0, z²), by quadrature."""

        def integrand(x: float) -> float:
            logs = -(alpha * (x - 1) ** 2 + (1 - alpha) * x**2 + alpha * (alpha - 1)) / (2 * z**2)
            return math.exp(logs) / (z * math.sqrt(2 * math.pi))

        mass = quad(integrand, alpha - 40 * z, alpha + 40 * z, points=[alpha])[0]
        return (math.log(mass) + alpha * (alpha - 1) / (2 * z**2)) / (alpha - 1)

    assert divergence(3.0) == pytest.approx(3 / (2 * z**2), rel=1e-6)
    found = minimize_scalar(
        lambda log: steps * divergence(1 + math.exp(log)) + math.log(1 / delta) / math.exp(log),
        bounds=(-6, 6),
        method="bounded",
        options={"xatol": 1e-8},
    )
    assert defences.dp(1.0, z).epsilon(delta, steps) == pytest.approx(found.fun, rel=1e-6)


def test_epsilon_with_sampling_against_quadrature() -> None:
    z, q, steps, delta = 1.2, 0.05, 200, 1e-5

    def divergence(alpha: int) -> float:
        def integrand(x: float) -> float:
            ratio = (1 - q) + q * math.exp((2 * x - 1) / (2 * z**2))
            return math.exp(-(x**2) / (2 * z**2)) / (z * math.sqrt(2 * math.pi)) * ratio**alpha

        return math.log(quad(integrand, -20, 40, points=[0, alpha], limit=200)[0]) / (alpha - 1)

    by_hand = min(
        steps * divergence(a) + math.log(1 / delta) / (a - 1) for a in range(2, 16)
    )  # the best order lies inside
    dp = defences.dp(1.0, z)
    assert dp.epsilon(delta, steps, q) == pytest.approx(by_hand, rel=1e-6)
    assert dp.epsilon(delta, steps, q) < dp.epsilon(delta, steps) / 5


def test_epsilon_at_the_edges_and_monotone() -> None:
    dp = defences.dp(1.0, 1.0)
    assert dp.epsilon(1e-5, 0) == 0
    assert defences.dp(1.0, 0.0).epsilon(1e-5, 1) == math.inf
    assert dp.epsilon(1e-5, 10) < dp.epsilon(1e-5, 20) < dp.epsilon(1e-9, 20)
    assert dp.epsilon(1e-5, 10, 0.999999) <= dp.epsilon(1e-5, 10)
    with pytest.raises(ValueError, match="delta must lie between 0 and 1, got 1"):
        dp.epsilon(1.0, 1)
    with pytest.raises(ValueError, match="0 < sample_rate ≤ 1"):
        dp.epsilon(1e-5, 1, 0.0)


def test_clipping_refusals() -> None:
    with pytest.raises(ValueError, match="clip must be a positive number, got 0"):
        defences.clip(0)
    with pytest.raises(ValueError, match="noise_multiplier must be a number ≥ 0"):
        defences.dp(1.0, -1.0)


# --- chains ----------------------------------------------------------------------------------


def test_chains_act_in_order() -> None:
    update = some_update()
    a, b, c = defences.prune(0.5), defences.gaussian(std=0.1), defences.int8()
    generator = rng(9)
    by_hand = c(b(a(update, generator), generator), generator)
    assert equal(defences.compose(a, b, c)(update, rng(9)), by_hand)
    assert equal((a >> b >> c)(update, rng(9)), by_hand)
    assert not equal((b >> a >> c)(update, rng(9)), by_hand)
    assert (a >> b).describe() == f"{a.describe()}; then {b.describe()}"


def test_none_shares_everything() -> None:
    update = some_update()
    sent = defences.none()(update, rng())
    assert equal(sent, update) and sent is not update
    assert defences.compose().name == defences.none().describe() == "none"
    assert defences.compose(defences.int8()).name == "int8"
