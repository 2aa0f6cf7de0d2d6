"""L-BFGS on the trials axis: T minimisations of n numbers each, one evaluation per event.

Every trial has its own history, step length, curvature and restarts. One event is one batched
evaluation, after which each trial accepts or rejects its own step: nobody waits for another
trial's line search. Nothing in `advance` reads a number back to the host.

The direction comes from the compact form of the inverse Hessian (Byrd, Nocedal & Schnabel 1994,
Eq. 3.1): two passes over the history, and triangular solves of the history's own size.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from gleak_core.errors import choose
from gleak_core.pool import Evaluate, State

__all__ = ["LBFGS"]

_ARMIJO = 1e-4
_PATIENCE = 8  # rejected steps in a row before the history is thrown away
_FLAT = 1e-7  # the tolerance_grad of torch.optim.LBFGS
_CURVED = 1e-6  # a pair must have sᵀy above this share of ‖s‖‖y‖


@dataclass(frozen=True)
class LBFGS:
    """Batched L-BFGS.

    `rule="armijo"` takes a step only if the value falls enough, else shortens it by quadratic
    interpolation: the value never rises. `rule="none"` takes every step, as `torch.optim.LBFGS`
    does by default and as DLG was published; it follows that optimiser step by step.
    """

    history: int = 40
    rate: float = 1.0
    rule: str = "armijo"

    def __post_init__(self) -> None:
        choose("rule", self.rule, ("armijo", "none"))
        if self.history < 1 or self.rate <= 0:
            raise ValueError(
                f"history and rate must be positive, got {self.history} and {self.rate}"
            )

    def floats(self, n: int) -> int:
        """Return how many numbers of state one trial of n unknowns needs."""
        return (2 * self.history + 9) * n + 4 * self.history**2

    def begin(self, z: Tensor, f: Tensor, g: Tensor) -> State:
        """Return the state of fresh trials at z (T, n)."""
        (trials, n), m = z.shape, self.history
        state = {
            "z": z,
            "f": f,
            "g": g,
            "best": z,
            "lowest": f,
            "finite": f.isfinite(),
            "pairs": z.new_zeros(trials, 2 * m, n),  # the rows S, then the rows Y
            "head": z.new_zeros(trials, dtype=torch.long),  # where the next pair goes
            "rejected": z.new_zeros(trials, dtype=torch.long),
            "stalled": z.new_zeros(trials, dtype=torch.bool),
        }
        return state | self._forgotten(trials, z) | self._downhill(g)

    def advance(self, state: State, evaluate: Evaluate) -> State:
        """Return the state after one evaluation per trial; `pairs` is changed in place."""
        z, f, g, t, slope = (state[k] for k in ("z", "f", "g", "t", "slope"))
        step = t[:, None] * state["d"]
        moved = z + step
        value, gradient = evaluate(moved)
        finite = value.isfinite() & gradient.isfinite().all(1)
        accept = finite
        if self.rule == "armijo":
            # Strictly lower: where rounding hides the slope, equal values would go on for ever.
            accept = finite & (value <= f + _ARMIJO * t * slope) & (value < f)
        change = gradient - g
        keep = accept[:, None]
        state = dict(
            state,
            z=torch.where(keep, moved, z),
            g=torch.where(keep, gradient, g),
            f=torch.where(accept, value, f),
        )
        direction = self._remember(state, step, change, accept)
        downhill = (direction * state["g"]).sum(1)

        if self.rule == "none":
            # As torch.optim.LBFGS: full steps for ever; a trial that blew up stays where it was.
            lower = finite & (value < state["lowest"])
            # Where saturated sigmoids leave no slope, that optimiser stands still for ever; so
            # does a full step that moves nothing, as it brings no new pair either.
            flat = state["g"].abs().amax(1) <= _FLAT
            flat |= finite & (t == self.rate) & (moved == z).all(1)
            return dict(
                state,
                d=direction,
                t=torch.full_like(t, self.rate),
                slope=downhill,
                stalled=state["stalled"] | flat,
                best=_where(lower, moved, state["best"]),
                lowest=torch.where(lower, value, state["lowest"]),
                finite=state["finite"] & finite,
            )

        rejected = torch.where(accept, 0, state["rejected"] + 1)
        lost = accept & ~(downhill < 0)  # not a direction of descent (or not a number)
        tired = rejected == _PATIENCE
        again = lost | tired
        fresh = self._forgotten(len(z), z) | self._downhill(state["g"])
        for name in ("SY", "YY", "valid", "gamma"):
            state[name] = _where(again, fresh[name], state[name])
        # The minimum of the parabola through f, its slope, and the value that was refused.
        shorter = -slope * t * t / (2 * (value - f - slope * t))
        shorter = torch.where(shorter.isfinite(), shorter, 0.1 * t)
        shorter = shorter.clamp(min=0.1 * t, max=0.5 * t)
        ahead = torch.where(accept, torch.full_like(t, self.rate), shorter)
        return dict(
            state,
            best=state["z"],  # the value never rises
            lowest=state["f"],
            d=_where(again, fresh["d"], _where(accept, direction, state["d"])),
            t=torch.where(again, fresh["t"], ahead),
            slope=torch.where(again, fresh["slope"], torch.where(accept, downhill, slope)),
            rejected=rejected,
            # Even the steepest descent from here fails: as low as this precision goes.
            stalled=state["stalled"] | (rejected >= 3 * _PATIENCE),
        )

    def _downhill(self, g: Tensor) -> State:
        """Return a first step: along −g, as long as `torch.optim.LBFGS` makes it."""
        t = (1 / g.abs().sum(1)).clamp(max=1) * self.rate
        return {"d": -g, "t": t.nan_to_num(self.rate), "slope": -(g * g).sum(1)}

    def _forgotten(self, trials: int, like: Tensor) -> State:
        """Return an empty history: small matrices that stand for the identity."""
        m, wide = self.history, {"dtype": torch.float64, "device": like.device}
        return {
            "SY": torch.eye(m, **wide).expand(trials, m, m).contiguous(),  # sᵢᵀyⱼ
            "YY": torch.zeros(trials, m, m, **wide),  # yᵢᵀyⱼ
            "gamma": torch.ones(trials, **wide),  # H₀ = γ·1
            "valid": torch.zeros(trials, m, dtype=torch.bool, device=like.device),
        }

    def _remember(self, state: State, s: Tensor, y: Tensor, accept: Tensor) -> Tensor:
        """Put the pair (s, y) into the history and return the direction −Hg."""
        m, g, pairs, head = self.history, state["g"], state["pairs"], state["head"]
        sy, yy = (s * y).sum(1), (y * y).sum(1)
        if self.rule == "none":
            curved = sy > 1e-10
        else:
            curved = sy > _CURVED * (s * s).sum(1).sqrt() * yy.sqrt()
        new = accept & curved
        rows, n = torch.arange(len(s), device=s.device), s.shape[1]
        for offset, vector in ((0, s), (m, y)):
            at = (head + offset)[:, None, None].expand(-1, 1, n)
            old = pairs.gather(1, at)
            pairs.scatter_(1, at, torch.where(new[:, None, None], vector[:, None], old))
        slot = (torch.arange(m, device=s.device) == head[:, None]) & new[:, None]  # (T, m)
        valid = state["valid"] | slot
        # The history stands on the right: the other way round is several times slower.
        dots = torch.stack([s, y, g], 1) @ pairs.transpose(1, 2)  # (T, 3, 2m)
        dots = torch.where(valid.repeat(1, 2)[:, None], dots, 0).double()
        with_s, with_y, with_g = dots.unbind(1)
        SY, YY = state["SY"].clone(), state["YY"].clone()
        SY[rows, head] = torch.where(new[:, None], with_s[:, m:], SY[rows, head])
        SY[rows, :, head] = torch.where(new[:, None], with_y[:, :m], SY[rows, :, head])
        YY[rows, head] = torch.where(new[:, None], with_y[:, m:], YY[rows, head])
        YY[rows, :, head] = torch.where(new[:, None], with_y[:, m:], YY[rows, :, head])
        gamma = torch.where(new, sy.double() / yy.double(), state["gamma"])
        head = torch.where(new, (head + 1) % m, head)
        state.update(SY=SY, YY=YY, gamma=gamma, head=head, valid=valid)

        order = (head[:, None] + torch.arange(m, device=s.device)) % m  # oldest first
        R = SY.gather(1, order[:, :, None].expand(-1, -1, m))
        R = R.gather(2, order[:, None].expand(-1, m, -1)).triu()
        along = with_g[:, :m].gather(1, order)[..., None]  # Sᵀg
        u = torch.linalg.solve_triangular(R, along, upper=True)
        back = torch.zeros_like(order, dtype=u.dtype).scatter(1, order, u[..., 0])  # ring order
        q = gamma[:, None] * ((YY @ back[..., None])[..., 0] - with_g[:, m:])
        diagonal = R.diagonal(dim1=1, dim2=2)[..., None]
        v = torch.linalg.solve_triangular(
            R.mT, diagonal * u + q.gather(1, order)[..., None], upper=False
        )
        v = torch.zeros_like(back).scatter(1, order, v[..., 0])
        weight = torch.cat([v, -gamma[:, None] * back], 1)
        weight = torch.where(valid.repeat(1, 2), weight, 0).to(s.dtype)
        return -(weight[:, None] @ pairs)[:, 0] - gamma[:, None].to(s.dtype) * g


def _where(mask: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(mask.view(-1, *[1] * (no.dim() - 1)), yes, no)
