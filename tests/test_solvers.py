"""The solvers: against scipy, botorch and torch, and as a pool whose trials never meet."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from gleak_core import pool
from gleak_core.descent import DIRECTIONS, Descent
from gleak_core.lbfgs import LBFGS
from gleak_core.pool import Evaluate, Method, State, minimise
from gleak_core.solvers import SOLVERS, method, published_lbfgs

F64 = torch.float64


class Rosenbrock:
    """Σ 100(z_{i+1} − z_i²)² + (1 − z_i)²: a bent valley whose bottom is at 1."""

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        rise, gap = z[:, 1:] - z[:, :-1] ** 2, 1 - z[:, :-1]
        g = torch.zeros_like(z)
        g[:, 1:] += 200 * rise
        g[:, :-1] += -400 * rise * z[:, :-1] - 2 * gap
        return (100 * rise**2 + gap**2).sum(1), g

    def compact(self, keep: Tensor) -> "Rosenbrock":
        return self


@dataclass
class Quadratics:
    """½(z − c)ᵀA(z − c), another A and c for each trial; `broken` trials turn to NaN there."""

    A: Tensor  # (T, n, n)
    c: Tensor  # (T, n)
    broken: Tensor | None = None  # (T,)

    @classmethod
    def draw(cls, trials: int, n: int, *, cond: float = 100.0, seed: int = 0) -> "Quadratics":
        stream = torch.Generator().manual_seed(seed)
        Q = torch.linalg.qr(torch.randn(trials, n, n, generator=stream, dtype=F64))[0]
        d = torch.logspace(0, math.log10(cond), n, dtype=F64)
        return cls(Q * d @ Q.mT, torch.randn(trials, n, generator=stream, dtype=F64))

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        e = z - self.c
        g = (self.A @ e[..., None])[..., 0]
        f = (e * g).sum(1) / 2
        return (f if self.broken is None else torch.where(self.broken, torch.nan, f)), g

    def compact(self, keep: Tensor) -> "Quadratics":
        broken = None if self.broken is None else self.broken[keep]
        return Quadratics(self.A[keep], self.c[keep], broken)


def starts(trials: int, n: int, seed: int = 0) -> Tensor:
    return torch.randn(trials, n, generator=torch.Generator().manual_seed(seed), dtype=F64)


# --- L-BFGS against others --------------------------------------------------------------------


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 100),
    history=st.integers(1, 8),
    n=st.integers(2, 7),
    bent=st.booleans(),
)
def test_full_steps_follow_torch_step_by_step(seed: int, history: int, n: int, bent: bool) -> None:
    problem = Rosenbrock() if bent else Quadratics.draw(3, n, seed=seed)
    z, steps = starts(3, n, seed), 9
    ours = minimise(problem, z, LBFGS(history, rule="none"), steps=steps, every=1, width=3)
    for t in range(3):
        one = problem.compact(torch.tensor([t]))
        for k in range(1, steps):
            x = z[t : t + 1].clone().requires_grad_()
            torchs = torch.optim.LBFGS(
                [x], history_size=history, max_iter=k, max_eval=10**6,
                tolerance_grad=0, tolerance_change=0,
            )  # fmt: skip

            def closure(x: Tensor = x, one: Rosenbrock | Quadratics = one) -> Tensor:
                value, x.grad = one.value_and_grad(x.detach())
                return value[0]

            torchs.step(closure)  # pyright: ignore[reportArgumentType]
            value = one.value_and_grad(x.detach())[0][0]
            # Chaos doubles a rounding error in every step of a bent valley.
            if value < 1e8:
                torch.testing.assert_close(ours.curve[k, t], value, rtol=1e-5, atol=1e-12)
                torch.testing.assert_close(ours.frames[k, t], x.detach()[0], rtol=1e-5, atol=1e-8)


def test_armijo_reaches_what_scipy_reaches() -> None:
    """Band: in the median no more than half as many evaluations again as scipy's line search."""
    z = starts(24, 6)
    ours = minimise(Rosenbrock(), z, LBFGS(10), steps=400, every=0, stop=1e-16)
    counts = []
    for row, loss in zip(z.numpy(), ours.loss.tolist(), strict=True):

        def both(x: np.ndarray) -> tuple[float, np.ndarray]:
            f, g = Rosenbrock().value_and_grad(torch.from_numpy(x)[None])
            return float(f), g[0].numpy()

        theirs = optimize.minimize(
            both, row, jac=True, method="L-BFGS-B", options={"maxcor": 10, "ftol": 0, "gtol": 1e-9}
        )
        counts.append(theirs.nfev)
        # There is a second minimum, at 3.97, and either may be found.
        assert loss < 1e-16 or abs(loss - 3.9739) < 1e-3
    assert float(ours.evaluations.double().median()) < 1.5 * float(np.median(counts))


def test_armijo_agrees_with_botorchs_batched_lbfgs() -> None:
    with warnings.catch_warnings():
        # botorch 0.18 (2026-11) scripts functions on import, which torch 2.14 deprecates.
        warnings.simplefilter("ignore")
        from botorch.optim.batched_lbfgs_b import fmin_l_bfgs_b_batched
    convex = Quadratics.draw(5, 12, cond=1e3, seed=3)
    for problem, n in ((convex, 12), (Rosenbrock(), 4)):
        z = starts(5, n, 1) / 2 + 0.5
        ours = minimise(problem, z, LBFGS(10), steps=600, every=0, width=5)

        def both(x: np.ndarray, batch_indices: list[int] | None = None, problem=problem):
            rows = torch.as_tensor(batch_indices if batch_indices is not None else range(len(x)))
            f, g = problem.compact(rows).value_and_grad(torch.from_numpy(x))
            return f.numpy(), g.numpy()

        x, f, _ = fmin_l_bfgs_b_batched(
            both, z.numpy().copy(), factr=0, pgtol=1e-10, pass_batch_indices=True
        )
        np.testing.assert_allclose(ours.loss.numpy(), f, atol=1e-9)
        np.testing.assert_allclose(ours.z.numpy(), x, atol=1e-5)


@settings(max_examples=8, deadline=None)
@given(
    n=st.integers(1, 12), trials=st.integers(1, 5), cond=st.floats(1, 1e4), seed=st.integers(0, 99)
)
def test_armijo_solves_quadratics_and_never_rises(
    n: int, trials: int, cond: float, seed: int
) -> None:
    problem = Quadratics.draw(trials, n, cond=cond, seed=seed)
    solution = minimise(problem, starts(trials, n, seed), LBFGS(20), steps=300, every=0)
    torch.testing.assert_close(solution.z, problem.c, rtol=0, atol=1e-5)
    assert float(solution.curve.nan_to_num(-1).diff(dim=0).max()) <= 0
    assert (solution.loss == solution.curve.nan_to_num(torch.inf).min(0).values).all()


def test_in_float32_a_trial_that_can_fall_no_further_stops_by_itself() -> None:
    problem = Quadratics.draw(2, 5)
    single = Quadratics(problem.A.float(), problem.c.float())
    solution = minimise(single, torch.zeros(2, 5), LBFGS(5), steps=2000, every=0)
    assert int(solution.evaluations.max()) < 500
    torch.testing.assert_close(solution.z, single.c, rtol=1e-3, atol=1e-3)


def test_a_cliff_shortens_the_step_and_is_survived() -> None:
    class Log(Quadratics):
        """−log z + z, not a number from 0 down: the first full step falls off."""

        def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
            return (z - z.log()).sum(1), 1 - 1 / z

        def compact(self, keep: Tensor) -> "Log":
            return self

    nothing = torch.zeros(0)
    begin = torch.tensor([[30.0, 0.01], [5.0, 5.0]], dtype=F64)
    solution = minimise(Log(nothing, nothing), begin, LBFGS(5, rate=50.0), steps=200, every=0)
    torch.testing.assert_close(solution.z, torch.ones(2, 2, dtype=F64), rtol=1e-5, atol=1e-5)
    assert solution.finite.all()


# --- the pool ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [n for n in SOLVERS if n != "published_lbfgs"])
def test_trials_do_not_meet(name: str) -> None:
    """Alone, side by side or in a narrow pool: the same way, for every method."""
    trials = 7
    problem, z = Quadratics.draw(trials, 4, cond=5.0), starts(trials, 4)
    way = method(name, steps=24, rate=0.1, history=5)
    wide = minimise(problem, z, way, steps=24, every=4, width=trials)
    for width in (1, 2, 3):
        narrow = minimise(problem, z, way, steps=24, every=4, width=width)
        for field in ("z", "loss", "curve", "frames"):
            torch.testing.assert_close(
                getattr(narrow, field), getattr(wide, field), rtol=1e-9, atol=1e-12, equal_nan=True
            )
        assert torch.equal(narrow.evaluations, wide.evaluations)


def test_a_place_that_falls_free_is_taken_by_the_next() -> None:
    """Easy trials end early; the pool never holds more than its width, nor runs half empty."""
    held: list[int] = []

    class Watched(Quadratics):
        def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
            held.append(len(z))
            return super().value_and_grad(z)

        def compact(self, keep: Tensor) -> "Watched":
            return Watched(self.A[keep], self.c[keep])

    drawn = Quadratics.draw(40, 6, cond=1e3)
    z = starts(40, 6)
    z[::2] = drawn.c[::2]  # every second trial begins at its minimum
    solution = minimise(
        Watched(drawn.A, drawn.c), z, LBFGS(6), steps=200, width=8, every=0, stop=1e-12
    )
    assert max(held) <= 8
    assert (solution.loss < 1e-12).all()
    assert int(solution.evaluations[::2].max()) <= 9 < int(solution.evaluations[1::2].min())
    assert sum(held) < 1.5 * int(solution.evaluations.sum())


def test_a_group_begins_together() -> None:
    """Wherever trials end early, nobody begins without its neighbours."""
    begun: list[list[int]] = []

    class Watched(Quadratics):
        def compact(self, keep: Tensor) -> Quadratics:
            begun.append(keep.tolist())
            return super().compact(keep)

    drawn = Quadratics.draw(21, 6, cond=1e3)
    z = starts(21, 6)
    z[::2] = drawn.c[::2]
    problem = Watched(drawn.A, drawn.c)
    minimise(problem, z, LBFGS(6), steps=100, width=9, together=3, every=0, stop=1e-12)
    seen: set[int] = set()
    for places in begun:
        new = sorted(set(places) - seen - {-1})
        assert new == list(range(len(seen), len(seen) + len(new))) and len(new) % 3 == 0
        seen.update(new)
    assert len(seen) == 21


def test_every_trial_has_its_own_stop() -> None:
    problem = Quadratics.draw(2, 6, cond=1e3)
    stops = torch.tensor([1e-1, 1e-12], dtype=F64)
    solution = minimise(problem, starts(2, 6), LBFGS(6), steps=300, every=1, stop=stops)
    assert solution.evaluations[0] < solution.evaluations[1]
    assert (solution.loss.double() < stops).all()
    last = int(solution.evaluations[0]) - 1
    assert (
        solution.curve[: last + 1, 0].isfinite().all()
        and solution.curve[last + 1 :, 0].isnan().all()
    )
    # A trial that has ended stands still.
    assert torch.equal(solution.frames[last + 2, 0], solution.z[0])


@pytest.mark.parametrize("name", [n for n in SOLVERS if n != "published_lbfgs"])
def test_what_is_not_finite_ends_alone(name: str) -> None:
    problem = Quadratics.draw(3, 4)
    broken = replace(problem, broken=torch.tensor([False, True, False]))
    way = method(name, steps=16, rate=0.01, history=5)
    solution = minimise(broken, starts(3, 4), way, steps=16, every=8)
    healthy = minimise(problem, starts(3, 4), way, steps=16, every=8)
    assert solution.finite.tolist() == [True, False, True]
    assert solution.loss[1] == torch.inf and torch.equal(solution.z[1], starts(3, 4)[1])
    for t in (0, 2):
        assert torch.equal(solution.z[t], healthy.z[t])
    assert solution.frames.isfinite().all()


def test_frames_and_curve_are_of_the_steps_they_name() -> None:
    problem = Quadratics.draw(2, 3, cond=3.0)
    way = Descent(rate=0.1, steps=10, direction="plain")
    solution = minimise(problem, starts(2, 3), way, steps=10, every=4, width=1)
    assert solution.frame_steps.tolist() == [0, 4, 8, 10]
    z = starts(2, 3)
    for step in range(11):
        f, g = problem.value_and_grad(z)
        torch.testing.assert_close(solution.curve[step], f)
        if step in (0, 4, 8, 10):
            torch.testing.assert_close(solution.frames[[0, 4, 8, 10].index(step)], z)
        z = z - 0.1 * g
    assert minimise(problem, starts(2, 3), way, steps=10, every=0).frame_steps.tolist() == [0, 10]


def test_progress_counts_every_trial_to_the_end() -> None:
    seen: list[tuple[int, int]] = []
    minimise(
        Quadratics.draw(3, 3), starts(3, 3), LBFGS(3), steps=16, every=8, width=2,
        progress=lambda done, total, best: seen.append((done, total)),
    )  # fmt: skip
    assert seen[-1] == (48, 48) and [d for d, _ in seen] == sorted(d for d, _ in seen)


def test_bad_settings_are_refused() -> None:
    problem, z = Quadratics.draw(1, 2), starts(1, 2)
    with pytest.raises(ValueError, match="width 8 does not divide into groups of 3"):
        minimise(Quadratics.draw(3, 3), starts(3, 3), LBFGS(3), steps=2, width=8, together=3)
    with pytest.raises(ValueError, match="width must be at least 1"):
        minimise(problem, z, LBFGS(), steps=1, width=0)
    for steps, every in ((0, 1), (1, -1)):
        with pytest.raises(ValueError, match="steps must be at least 1"):
            minimise(problem, z, LBFGS(), steps=steps, every=every)
    with pytest.raises(ValueError, match="did you mean 'armijo'"):
        LBFGS(rule="armjo")
    with pytest.raises(ValueError, match="must be positive"):
        LBFGS(history=0)
    with pytest.raises(ValueError, match="rate must be positive"):
        Descent(rate=0, steps=1)
    with pytest.raises(ValueError, match="did you mean 'sign'"):
        Descent(rate=1, steps=1, direction="sing")
    with pytest.raises(ValueError, match="did you mean 'adam'"):
        method("adm", steps=1, rate=1)


# --- first-order methods ----------------------------------------------------------------------


def test_adam_follows_torch() -> None:
    problem, z = Quadratics.draw(2, 5), starts(2, 5)
    ours = minimise(problem, z, Descent(rate=0.05, steps=30), steps=30, every=1)
    x = z.clone().requires_grad_()
    adam = torch.optim.Adam([x], lr=0.05)
    for step in range(30):
        torch.testing.assert_close(ours.frames[step], x.detach(), rtol=1e-9, atol=1e-12)
        x.grad = problem.value_and_grad(x.detach())[1]
        adam.step()


def test_signed_adam_follows_torch_with_its_drops_and_box() -> None:
    """Geiping et al. 2020: Adam on signs, a tenth of the rate at 3/8, 5/8 and 7/8, clipped."""
    problem, z = Quadratics.draw(2, 5), starts(2, 5).clamp(0, 1)
    way = method("signed_adam", steps=40, rate=0.1, pixels=4)
    ours = minimise(problem, z, way, steps=40, every=1)
    x = z.clone().requires_grad_()
    adam = torch.optim.Adam([x], lr=0.1)
    drops = torch.optim.lr_scheduler.MultiStepLR(adam, [15, 25, 35], gamma=0.1)
    for step in range(40):
        torch.testing.assert_close(ours.frames[step], x.detach(), rtol=1e-9, atol=1e-12)
        x.grad = problem.value_and_grad(x.detach())[1].sign()
        adam.step()
        drops.step()
        with torch.no_grad():
            x[:, :4].clamp_(0, 1)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_first_step_is_what_its_name_says(direction: str) -> None:
    problem, z = Quadratics.draw(3, 6), starts(3, 6)
    g = problem.value_and_grad(z)[1]
    expected = {
        "plain": g,
        "sign": g.sign(),
        "normalised": g / g.norm(dim=1, keepdim=True) * math.sqrt(6),
        "adam": g.sign(),  # the first step of Adam forgets the length
    }[direction]
    way = Descent(rate=0.01, steps=2, direction=direction)
    solution = minimise(problem, z, way, steps=2, every=1)
    torch.testing.assert_close(solution.frames[1], z - 0.01 * expected, rtol=1e-6, atol=1e-8)


def test_normalised_descent_stands_still_where_there_is_no_slope() -> None:
    problem = Quadratics.draw(1, 4)
    way = Descent(rate=0.1, steps=4, direction="normalised")
    solution = minimise(problem, problem.c.clone(), way, steps=4, every=0)
    assert torch.equal(solution.z, problem.c) and solution.finite.all()


def test_the_best_iterate_is_kept_where_the_loss_rises() -> None:
    problem = Quadratics.draw(1, 3, cond=1.0)
    way = Descent(rate=2.5, steps=6, direction="plain")  # overshoots, and grows
    solution = minimise(problem, starts(1, 3), way, steps=6, every=1)
    assert solution.curve[-1, 0] > solution.curve[0, 0] == solution.loss[0]
    assert torch.equal(solution.z, starts(1, 3))


# --- interrupted ------------------------------------------------------------------------------


@dataclass
class Interrupted:
    """A problem whose `after`-th evaluation is met by a Ctrl-C; all that shared `left` count."""

    problem: Quadratics
    left: list[int]

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        self.left[0] -= 1
        if self.left[0] < 0:
            raise KeyboardInterrupt
        return self.problem.value_and_grad(z)

    def compact(self, keep: Tensor) -> "Interrupted":
        return Interrupted(self.problem.compact(keep), self.left)


@pytest.mark.parametrize("name", ["lbfgs", "plain_lbfgs", "adam", "published_lbfgs"])
@pytest.mark.parametrize("after", [0, 1, 2, 7, 23, 24, 25, 40, 57])
def test_an_interrupt_keeps_the_best_of_every_trial(name: str, after: int) -> None:
    """Whenever it comes: 5 trials, 2 at a time, of 20 steps."""
    problem, z = Quadratics.draw(5, 8, cond=300.0), starts(5, 8)
    hurried, options = Interrupted(problem, [after]), dict[str, Any](steps=20, every=4)
    if name == "published_lbfgs":
        solution = published_lbfgs(hurried, z, inner=2, on_interrupt="keep", **options)
    else:
        way = method(name, steps=20, rate=0.1, history=5)
        solution = minimise(hurried, z, way, width=2, on_interrupt="keep", **options)
    begun = solution.evaluations > 0
    first = problem.value_and_grad(z)[0]
    assert solution.interrupted.any()
    assert torch.equal(solution.z[~begun], z[~begun])
    assert (solution.loss[~begun] == torch.inf).all() and solution.interrupted[~begun].all()
    # What is told of a picture is true of it, and no worse than its start.
    torch.testing.assert_close(solution.loss[begun], problem.value_and_grad(solution.z)[0][begun])
    assert (solution.loss[begun] <= first[begun]).all()
    known = solution.curve.nan_to_num(torch.inf).amin(0)
    assert (solution.loss <= known).all()
    assert not solution.frames.isnan().any()
    torch.testing.assert_close(solution.frames[-1], solution.z)
    if after == 57 and name in ("lbfgs", "adam"):  # two times 21 evaluations: two pairs have ended
        assert solution.interrupted.tolist() == [False] * 4 + [True]


def test_an_interrupt_goes_through_unless_it_may_be_kept() -> None:
    problem, z = Quadratics.draw(2, 4), starts(2, 4)
    with pytest.raises(KeyboardInterrupt):
        minimise(Interrupted(problem, [5]), z, LBFGS(3), steps=20)
    with pytest.raises(KeyboardInterrupt):
        published_lbfgs(Interrupted(problem, [5]), z, steps=20)
    for run in (
        lambda: minimise(problem, z, LBFGS(3), steps=2, on_interrupt="kepe"),
        lambda: published_lbfgs(problem, z, steps=2, on_interrupt="kepe"),
    ):
        with pytest.raises(ValueError, match="did you mean 'keep'"):
            run()


def test_steps_since_the_last_look_are_not_lost() -> None:
    problem, z = Quadratics.draw(3, 8, cond=300.0), starts(3, 8)
    whole = minimise(problem, z, LBFGS(5), steps=8, every=1)
    hurried = Interrupted(problem, [6])  # the first evaluation, and five of eight steps
    solution = minimise(hurried, z, LBFGS(5), steps=8, every=0, on_interrupt="keep")
    torch.testing.assert_close(solution.loss, whole.curve[5])
    torch.testing.assert_close(solution.z, whole.frames[5])


def test_an_interrupt_while_trials_begin_leaves_them_at_their_start() -> None:
    class Slow(LBFGS):
        def begin(self, z: Tensor, f: Tensor, g: Tensor) -> State:
            raise KeyboardInterrupt

    problem, z = Quadratics.draw(2, 4), starts(2, 4)
    solution = minimise(problem, z, Slow(3), steps=8, on_interrupt="keep")
    assert torch.equal(solution.z, z) and solution.evaluations.tolist() == [1, 1]
    assert torch.equal(solution.loss, problem.value_and_grad(z)[0])


def test_what_the_progress_had_seen_is_kept() -> None:
    """An interrupt from the callback comes right after a look: nothing at all is lost."""
    problem, z = Quadratics.draw(3, 8, cond=300.0), starts(3, 8)

    def progress(done: int, total: int, loss: float) -> None:
        if done == 3 * 12:
            raise KeyboardInterrupt

    solution = minimise(
        problem, z, LBFGS(5), steps=40, every=4, progress=progress, on_interrupt="keep"
    )
    whole = minimise(problem, z, LBFGS(5), steps=12, every=4)
    assert torch.equal(solution.z, whole.z) and torch.equal(solution.loss, whole.loss)
    assert torch.equal(solution.curve[:13], whole.curve)
    assert torch.equal(solution.frames[:3], whole.frames[:3])
    assert solution.interrupted.all() and not whole.interrupted.any()
    assert solution.evaluations.tolist() == [13, 13, 13]


# --- ready for a GPU --------------------------------------------------------------------------


class NoReading(TorchDispatchMode):
    """Fails on what would make a GPU wait: reading a value, or a shape that depends on one."""

    HOST = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique", "item")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.HOST, f"the loop reads back: {name}"
        if name in ("index", "index_put_", "_unsafe_index"):  # a mask as an index is a nonzero
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "indexed by a mask"
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", [n for n in SOLVERS if n != "published_lbfgs"])
def test_no_step_reads_a_value_back(name: str) -> None:
    problem, z = Quadratics.draw(3, 4), starts(3, 4)
    way = method(name, steps=5, rate=0.1, history=3)
    state: State = way.begin(z, *problem.value_and_grad(z))
    with NoReading():
        for _ in range(5):
            state = way.advance(state, problem.value_and_grad)
    assert state["f"].isfinite().all()


def test_the_check_notices_a_step_that_reads() -> None:
    with pytest.raises(AssertionError, match="reads back"), NoReading():
        bool(torch.ones(2).sum() > 1)
    with pytest.raises(AssertionError, match="indexed by a mask"), NoReading():
        torch.ones(2)[torch.tensor([True, False])]


def test_a_step_is_the_same_dict_of_shapes() -> None:
    """A captured graph writes a step's results over its inputs: shapes and types must agree."""
    problem, z = Quadratics.draw(3, 4), starts(3, 4)
    for name in SOLVERS:
        if name != "published_lbfgs":
            way = method(name, steps=5, rate=0.1, history=3)
            state = way.begin(z, *problem.value_and_grad(z))
            after = way.advance(dict(state), problem.value_and_grad)
            assert {k: (v.shape, v.dtype) for k, v in after.items()} == {
                k: (v.shape, v.dtype) for k, v in state.items()
            }


@pytest.mark.parametrize("name", [n for n in SOLVERS if n != "published_lbfgs"])
def test_steps_written_over_their_inputs_are_the_same_steps(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a captured graph does, without a GPU: every tensor of the state keeps its memory."""

    def captured(way: Method, state: State, evaluate: Evaluate) -> Callable[[State], State]:
        def replay(_: State) -> State:
            for name, after in way.advance(dict(state), evaluate).items():
                if after is not state[name]:
                    state[name].copy_(after)
            return state

        return replay

    problem, z = Quadratics.draw(3, 4), starts(3, 4)
    way = method(name, steps=12, rate=0.5, history=3)
    plain = minimise(problem, z, way, steps=12, every=1, width=2)
    monkeypatch.setattr(pool, "_plain", captured)
    written = minimise(problem, z, way, steps=12, every=1, width=2)
    torch.testing.assert_close(written.frames, plain.frames, rtol=0, atol=0)
    assert torch.equal(written.loss, plain.loss)


# --- the published loop -----------------------------------------------------------------------


def test_the_published_loop_minimises_and_reports_what_broke() -> None:
    drawn = Quadratics.draw(3, 5, cond=1.0)
    problem = replace(drawn, broken=torch.tensor([False, True, False]))
    seen: list[tuple[int, int]] = []
    solution = published_lbfgs(
        problem,
        torch.zeros(3, 5, dtype=F64),
        steps=4,
        every=2,
        progress=lambda done, total, loss: seen.append((done, total)),
    )
    torch.testing.assert_close(solution.z[[0, 2]], drawn.c[[0, 2]])
    assert solution.finite.tolist() == [True, False, True]
    assert solution.loss[1] == torch.inf and torch.equal(solution.z[1], torch.zeros(5).double())
    assert torch.isnan(solution.curve[1:, 1]).all()
    assert seen[-1] == (12, 12)
    with pytest.raises(ValueError, match="at least 1"):
        published_lbfgs(problem, torch.zeros(3, 5), steps=0)


def test_a_trial_of_the_published_loop_stops_where_the_attacker_would() -> None:
    drawn = Quadratics.draw(2, 3, cond=1.0)
    begin = torch.stack([drawn.c[0], torch.zeros(3, dtype=F64)])
    solution = published_lbfgs(drawn, begin, steps=5, stop=1e-9)
    assert int(solution.evaluations[0]) == 1
    assert solution.loss.max() < 1e-9
    assert not torch.isnan(solution.frames).any()


def test_plain_lbfgs_is_the_published_loop_side_by_side() -> None:
    """20 inner iterations are 20 steps; the loop evaluates once more at the head of each."""
    problem, z = Quadratics.draw(3, 6, cond=30.0), starts(3, 6)
    loop = published_lbfgs(problem, z, steps=1, inner=8)
    batched = minimise(problem, z, LBFGS(100, rule="none"), steps=8, every=8)
    torch.testing.assert_close(batched.curve[-1], loop.curve[-1], rtol=1e-9, atol=1e-12)


def test_a_restart_forgets_all_that_went_before() -> None:
    """After eight refused steps a trial goes on exactly as one that begins where it stands."""
    problem, way = Quadratics.draw(2, 6, cond=1e3), LBFGS(4)
    z = starts(2, 6)
    state = way.begin(z, *problem.value_and_grad(z))
    for _ in range(9):  # the history has gone round once
        state = way.advance(state, problem.value_and_grad)
    there = state["z"].clone()
    for _ in range(8):
        state = way.advance(state, lambda z: (torch.full((2,), torch.inf, dtype=F64), z))
    fresh = way.begin(there, *problem.value_and_grad(there))
    for _ in range(12):
        torch.testing.assert_close(state["z"], fresh["z"], rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(state["d"], fresh["d"], rtol=1e-6, atol=1e-9)
        state = way.advance(state, problem.value_and_grad)
        fresh = way.advance(fresh, problem.value_and_grad)
    assert not torch.allclose(state["z"], there)


def test_a_direction_that_goes_up_is_given_up() -> None:
    """Rounding can make one; here it is made by hand, on a slope that never bends."""
    c, way = torch.tensor([[3.0, -4.0]], dtype=F64), LBFGS(3)
    z = torch.zeros(1, 2, dtype=F64)
    state = way.begin(z, (c * z).sum(1), c)
    state["gamma"] = -state["gamma"]
    state = way.advance(state, lambda z: ((c * z).sum(1), c.expand_as(z)))
    assert torch.equal(state["d"], -c)


class Waves:
    """Σ 1 + cos z: curved downwards around 0, where torch keeps no pair either."""

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return (1 + z.cos()).sum(1), -z.sin()

    def compact(self, keep: Tensor) -> "Waves":
        return self


def test_full_steps_keep_no_pair_of_negative_curvature() -> None:
    z = torch.tensor([[0.1, -0.2, 0.05]], dtype=F64)
    ours = minimise(Waves(), z, LBFGS(5, rule="none"), steps=6, every=1)
    for k in range(1, 6):
        x = z.clone().requires_grad_()
        torchs = torch.optim.LBFGS(
            [x], history_size=5, max_iter=k, max_eval=99, tolerance_grad=0, tolerance_change=0
        )

        def closure(x: Tensor = x) -> Tensor:
            value, x.grad = Waves().value_and_grad(x.detach())
            return value[0]

        torchs.step(closure)  # pyright: ignore[reportArgumentType]
        torch.testing.assert_close(ours.frames[k, 0], x.detach()[0], rtol=1e-9, atol=1e-12)


def test_a_pair_of_negative_curvature_leaves_the_history_alone() -> None:
    problem, way = Quadratics.draw(1, 5), LBFGS(4)
    z = starts(1, 5)
    state = way.begin(z, *problem.value_and_grad(z))
    for _ in range(4):
        state = way.advance(state, problem.value_and_grad)
    names = ("pairs", "SY", "YY", "gamma", "valid", "head")
    before = {n: state[n].clone() for n in names}
    assert before["valid"].any()
    bent = state["g"] - state["t"][:, None] * state["d"]  # y = −s
    after = way.advance(state, lambda z: (state["f"] - 10, bent))
    assert after["f"] < state["f"]
    for n in names:
        assert torch.equal(after[n], before[n]), n
