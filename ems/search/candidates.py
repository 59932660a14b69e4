"""Points among which an acquisition function looks for its best: all over the space, and around what is good.

Points are arrays (n, d) in the unit cube, NaN where a dimension is inactive, and *settled*: rounded as the space rounds
its params, inside its constraints.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from ems.model import Params
from ems.search.gp import Layout
from ems.search.space import SearchSpace
from ems.search.warp import Array

Mask = npt.NDArray[np.bool_]
Score = Callable[[Array], Array]

N_SOBOL = 1024
N_AROUND = 512  # around the best, over all scales
SCALES = (0.2, 0.05, 0.0125)  # of a side of the cube: standard deviations of steps from the best
N_REFINE = 96  # points a round of local refinement
REFINE_SCALES = (0.1, 0.04, 0.015, 0.006, 0.002)  # one a round
N_CENTRES = 5


@dataclass(frozen=True)
class Ground:
    """A search space as arrays see it."""

    space: SearchSpace
    layout: Layout = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", layout_of(self.space))

    @property
    def n_dimensions(self) -> int:
        """Number of dimensions, d."""
        return self.layout.n_dimensions

    def locate(self, params: Iterable[Params]) -> Array:
        """Return where params lie, (n, d), NaN where a dimension is inactive."""
        rows = [np.where(self.space.active(each), self.space.encode(each), np.nan) for each in params]
        return np.array(rows, dtype=float).reshape(len(rows), self.n_dimensions)

    def params(self, point: Array) -> Params:
        """Return the params at a settled point (d,)."""
        return self.space.decode(np.nan_to_num(point, nan=0.5))

    def settle(self, units: Array) -> Array:
        """Return those of ``units`` (n, d) that are valid, rounded, NaN where inactive: (m, d) with m <= n."""
        snapped = self.space.snap(units)
        snapped = snapped[self.space.allowed(snapped)]
        return np.where(self.space.active_rows(snapped), snapped, np.nan) if any(self.layout.conditional) else snapped

    def scatter(self, count: int, rng: np.random.Generator) -> Array:
        """Return up to ``count`` settled points all over the space: scrambled Sobol (Owen 1998), by the priors."""
        from scipy.stats import qmc  # noqa: PLC0415 - half a second that a report of a study does not need

        sobol = qmc.Sobol(self.n_dimensions, rng=rng).random(count)
        return self.settle(self.space.spread(sobol))

    def perturb(self, centres: Array, scale: float, count: int, rng: np.random.Generator) -> Array:
        """Return up to ``count`` settled points around ``centres`` (k, d), taken in turn.

        Each coordinate moves with a probability such that about three of them do (Regis & Shoemaker 2013, DYCORS,
        section 2.2): a numeric one by a normal step, reflected at the bounds, a categorical one to any choice.
        """
        d = self.n_dimensions
        base = np.resize(centres, (count, d))
        free = rng.random((count, d))
        base = np.where(np.isnan(base), free, base)
        moves = rng.random((count, d)) < max(min(1.0, 3.0 / d), 0.2)
        moves[np.arange(count), rng.integers(d, size=count)] = True
        steps = base + scale * rng.standard_normal((count, d))
        steps = 1.0 - np.abs(1.0 - np.abs(steps) % 2.0)
        choices = np.array(self.layout.levels) > 0
        return self.settle(np.where(moves, np.where(choices, free, steps), base))


def layout_of(space: SearchSpace) -> Layout:
    """Return how points of ``space`` are laid into a Euclidean space."""
    searched = space.searched
    levels = tuple((each.count or 0) if each.kind == "categorical" else 0 for each in searched)
    return Layout(levels, tuple(each.when is not None for each in searched))


@dataclass
class Taken:
    """Points that are not to be proposed again, by their coordinates to nine digits."""

    rows: set[bytes] = field(default_factory=set)

    def add(self, points: Array) -> None:
        """Take points (n, d)."""
        self.rows.update(_rows(points))

    def free(self, points: Array) -> Mask:
        """Return for each of ``points`` (n, d) whether it may be proposed: (n,)."""
        return np.fromiter((row not in self.rows for row in _rows(points)), dtype=bool, count=len(points))


def unique(points: Array) -> Array:
    """Return ``points`` (n, d) without those that were there before, in order."""
    first = {row: index for index, row in reversed(list(enumerate(_rows(points))))}
    return points[sorted(first.values())]


def _rows(points: Array) -> list[bytes]:
    rounded = np.round(np.nan_to_num(points, nan=-1.0), 9) + 0.0  # no negative zero
    return [row.tobytes() for row in rounded]


def pool(ground: Ground, best: Array, rng: np.random.Generator) -> Array:
    """Return candidates (m, d): all over the space, and around ``best`` (k, d) at several scales; no two the same."""
    everywhere = ground.scatter(N_SOBOL, rng)
    near = [ground.perturb(best, scale, N_AROUND // len(SCALES), rng) for scale in SCALES]
    return unique(np.vstack([everywhere, *near]))


def refine(
    ground: Ground,
    start: Array,
    scores: Array,
    score: Score,
    taken: Taken,
    rng: np.random.Generator,
    count: int = N_REFINE,
) -> tuple[Array, float]:
    """Return the best point found from ``start`` (k, d), best first, by rounds of ever smaller steps, and its score.

    Parameters
    ----------
    scores
        Of ``start``, (k,), greatest first.
    score
        What points (m, d) are worth, (m,).
    count
        Points a round.
    """
    centres, worth = start, scores
    for scale in REFINE_SCALES:
        fresh = ground.perturb(centres, scale, count, rng)
        fresh = fresh[taken.free(fresh)]
        if not len(fresh):
            continue
        centres, worth = np.vstack([centres, fresh]), np.concatenate([worth, score(fresh)])
        order = np.argsort(-worth, kind="stable")[: max(1, len(start))]
        centres, worth = centres[order], worth[order]
    return centres[0], float(worth[0])


def best_first(scores: Array, count: int) -> list[int]:
    """Return indices of the ``count`` greatest ``scores``, greatest first."""
    order: list[int] = np.argsort(-scores, kind="stable")[:count].tolist()
    return order
