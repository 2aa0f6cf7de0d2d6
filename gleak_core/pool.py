"""A pool of trials: as many at once as memory allows, and the next one in when one is done.

The pool owns everything that needs the host: who has finished, who comes next, what is recorded.
Between two looks a method only advances, and reads nothing back.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from gleak_core.errors import choose

__all__ = [
    "ON_INTERRUPT",
    "Evaluate",
    "Method",
    "Objective",
    "Progress",
    "Solution",
    "State",
    "minimise",
]

ON_INTERRUPT = ("raise", "keep")
"""What Ctrl-C does: end everything, or end the search and return the best so far."""

State = dict[str, Tensor]
"""What a method remembers, trials first.

Every method has z and f, where it is; best and lowest, the best it has seen; and the flags
`stalled` (no step helps any more) and `finite`.
"""
Evaluate = Callable[[Tensor], tuple[Tensor, Tensor]]
Progress = Callable[[int, int, float], None]
"""Called with (steps done, steps in all, best loss so far)."""


class Objective(Protocol):
    """What a solver needs of a problem with T independent trials."""

    def value_and_grad(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (T,) and gradients (T, n)."""
        ...

    def compact(self, keep: Tensor) -> "Objective":
        """Return the problem for the trials in `keep` only."""
        ...


class Method(Protocol):
    """A way to go down: from a state and one evaluation per trial to the next state."""

    def floats(self, n: int) -> int:
        """Return how many numbers of state one trial of n unknowns needs."""
        ...

    def begin(self, z: Tensor, f: Tensor, g: Tensor) -> State:
        """Return the state of fresh trials."""
        ...

    def advance(self, state: State, evaluate: Evaluate) -> State:
        """Return the state after one evaluation, without reading anything back."""
        ...


@dataclass(frozen=True)
class Solution:
    """The best iterate of each trial, and the way there.

    A trial that an interrupt kept from beginning is at its start, with loss ∞ and no evaluation.
    """

    z: Tensor  # (T, n)
    loss: Tensor  # (T,)
    first_loss: Tensor  # (T,)
    steps: Tensor  # (S,)
    curve: Tensor  # (S, T); NaN after a trial has ended
    frame_steps: Tensor  # (F,)
    frames: Tensor  # (F, T, n)
    evaluations: Tensor  # (T,)
    finite: Tensor  # (T,) False where the iteration blew up
    interrupted: Tensor  # (T,) True where Ctrl-C came before the trial's own end


def minimise(
    objective: Objective,
    z: Tensor,
    method: Method,
    *,
    steps: int,
    width: int = 16,
    together: int = 1,
    every: int = 10,
    stop: float | Tensor = 0.0,
    progress: Progress | None = None,
    on_interrupt: str = "raise",
) -> Solution:
    """Run a method from every row of z, at most `width` trials at a time.

    Trials begin in groups of `together` neighbours, for an objective that looks at its group.

    A step is one evaluation. A trial ends after `steps` of them, when its loss falls below `stop`
    (one number, or one for each trial), when no step helps any more, or when it is not finite.
    Frames are kept every `every` steps (0: only the first and the last).

    With `on_interrupt="keep"` a Ctrl-C ends the search and not the program: the best of every trial
    is returned, the curve up to the last look. A second one is no longer held up.
    """
    choose("on_interrupt", on_interrupt, ON_INTERRUPT)
    record = Record(z, steps=steps, every=every, stop=stop)
    if width < 1:
        raise ValueError(f"width must be at least 1, got {width}")
    if together < 1 or width % together:
        raise ValueError(f"width {width} does not divide into groups of {together}")
    # The pool looks at every recorded step, and at the last one.
    look = max(d for d in range(1, 9) if math.gcd(every, steps) % d == 0)
    # Regrouping copies histories and targets: it has to free some of the places to be worth it.
    slack = max(1, width // (2 if z.is_cuda else 4))
    ids, state, waiting = torch.empty(0, dtype=torch.long), State(), 0
    held = ids, state  # replaced as one: an interrupt never finds a state with others' ids
    advance: Callable[[State], State] | None = None
    try:
        while True:
            stay = (ids >= 0).nonzero()[:, 0]
            free = (width - len(stay)) // together * together
            enter = waiting < len(z) and free >= max(slack, together)
            if advance is None or enter or len(ids) - len(stay) >= slack or not len(stay):
                new = torch.arange(waiting, min(len(z), waiting + free))
                waiting += len(new)
                ids = torch.cat([ids[stay], new])
                if not len(ids):
                    return record.solution()
                state = {k: v[stay.to(z.device)] for k, v in state.items()}
                if len(new):
                    begun = _begin(objective, z, method, new, record)
                    state = {k: torch.cat([state[k], v]) if state else v for k, v in begun.items()}
                held = ids, state
                problem = objective.compact(ids.to(z.device))
                prepare = _captured if z.is_cuda else _plain
                advance = prepare(method, state, problem.value_and_grad)
            values = []
            for _ in range(look):
                state = advance(state)
                held = ids, state
                values.append(state["f"].clone())
            ended = record.look(ids, state, torch.stack(values))
            ids = torch.where(ended, -1, ids)
            held = ids, state
            if progress is not None:
                progress(record.done, steps * len(z), record.lowest)
    except KeyboardInterrupt:
        if on_interrupt == "raise":
            raise
        record.keep(*held)
        return record.solution()


def _begin(objective: Objective, z: Tensor, method: Method, new: Tensor, record: "Record") -> State:
    where = new.to(z.device)
    f, g = objective.compact(where).value_and_grad(z[where])
    record.begin(new, f)
    # A start without a finite loss stands still until the next look, and ends there.
    finite = f.isfinite() & g.isfinite().all(1)
    state = method.begin(z[where], f, torch.where(finite[:, None], g, 0))
    # A captured step writes into these: what begins as one tensor, as z and best do, must part.
    return {name: value.clone() for name, value in (state | {"finite": finite}).items()}


def _plain(method: Method, state: State, evaluate: Evaluate) -> Callable[[State], State]:
    return lambda state: method.advance(state, evaluate)


def _captured(method: Method, state: State, evaluate: Evaluate) -> Callable[[State], State]:
    """Capture one step in a CUDA graph: a hundred small kernels for the price of one launch."""
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):  # warm up on copies: `advance` may change its input in place
        for _ in range(2):
            method.advance({k: v.clone() for k, v in state.items()}, evaluate)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        after = method.advance(dict(state), evaluate)
        for name, value in state.items():
            if after[name] is not value:
                value.copy_(after[name])

    def replay(_: State) -> State:
        graph.replay()
        return state

    return replay


class Record:
    """What is written down on the way, by trial and step."""

    def __init__(self, z: Tensor, *, steps: int, every: int, stop: float | Tensor) -> None:
        if steps < 1 or every < 0:
            raise ValueError(f"steps must be at least 1 and every at least 0, got {steps}, {every}")
        trials, n = z.shape
        self.marks = sorted({0, *(range(every, steps, every) if every else ()), steps})
        self.steps = steps
        self.enough = torch.as_tensor(stop, dtype=torch.float64).cpu().expand(trials)
        self.z, self.loss = z.clone(), torch.full((trials,), torch.inf, dtype=z.dtype)
        self.curve = torch.full((steps + 1, trials), torch.nan, dtype=z.dtype)
        self.frames = torch.empty((len(self.marks), trials, n), dtype=z.dtype)
        self.frames[0] = z.cpu()
        self.taken = torch.zeros(trials, dtype=torch.long)  # steps
        self.begun = torch.zeros(trials, dtype=torch.bool)
        self.over = torch.zeros(trials, dtype=torch.bool)
        self.finite = torch.ones(trials, dtype=torch.bool)

    @property
    def done(self) -> int:
        """The steps taken or saved by now: a trial that has ended has taken all of its own."""
        return int(torch.where(self.over, self.steps, self.taken).sum())

    @property
    def lowest(self) -> float:
        """The best loss so far of any trial."""
        return float(self.loss.min())

    def begin(self, ids: Tensor, f: Tensor) -> None:
        """Write down the first loss of trials."""
        self.curve[0, ids] = f.cpu()
        self.loss[ids] = _or_inf(f.cpu())
        self.begun[ids] = True

    def look(self, ids: Tensor, state: State, values: Tensor) -> Tensor:
        """Write down the last `len(values)` steps; return which places hold a trial that ended."""
        held = ids >= 0
        mine, look = ids[held], len(values)
        rows = self.taken[mine] + torch.arange(1, look + 1)[:, None]  # (look, trials)
        self.curve[rows, mine] = values.cpu()[:, held]
        self.taken[mine] += look
        self.finite[mine] &= state["finite"].cpu()[held]
        self.loss[mine] = _or_inf(state["lowest"].cpu()[held])
        for mark, step in enumerate(self.marks[:-1]):
            if len(here := (held & (self.taken[ids] == step)).nonzero()[:, 0]):
                self.frames[mark, ids[here]] = state["z"][here.to(values.device)].cpu()
        ended = held & (
            (self.taken[ids] >= self.steps)
            | state["stalled"].cpu()
            | ~self.finite[ids]
            | (self.loss[ids].double() < self.enough[ids])
        )
        if ended.any():
            self._take(ids, ended, state)
            self.over[ids[ended]] = True
        return ended

    def keep(self, ids: Tensor, state: State) -> None:
        """Write down the best of trials that an interrupt found on their way."""
        held = ids >= 0
        if held.any():
            self.loss[ids[held]] = _or_inf(state["lowest"].cpu()[held])
            self._take(ids, held, state)

    def _take(self, ids: Tensor, which: Tensor, state: State) -> None:
        at, trials = (i.to(self.z.device) for i in (which.nonzero()[:, 0], ids[which]))
        better = state["lowest"][at].isfinite()[:, None]
        self.z[trials] = torch.where(better, state["best"][at], self.z[trials])

    def solution(self) -> Solution:
        """Return all of it; a trial that ended early stands still in the frames that remain."""
        for mark, step in enumerate(self.marks):
            late = (self.taken < step) | (step == self.steps)
            self.frames[mark, late] = self.z.cpu()[late]
        return Solution(
            z=self.z,
            loss=self.loss,
            first_loss=self.curve[0],
            steps=torch.arange(self.steps + 1),
            curve=self.curve,
            frame_steps=torch.tensor(self.marks),
            frames=self.frames,
            evaluations=self.taken + self.begun,
            finite=self.finite,
            interrupted=~self.over,
        )


def _or_inf(loss: Tensor) -> Tensor:
    return loss.nan_to_num(torch.inf, torch.inf, torch.inf)
