"""What a search knows and says: trials that were made, proposals of trials to make, decisions about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TypeAlias

from ems.model import Params


class Outcome(StrEnum):
    """How the newest segment of a trial stands. All but PENDING and OK are bad news, never a number."""

    PENDING = "pending"  # proposed, queued or running
    OK = "ok"
    CRASHED = "crashed"
    DIVERGED = "diverged"  # NaN or infinite
    TIMEOUT = "timeout"
    OOM = "oom"
    STOPPED = "stopped"  # ended on purpose because it was bad; its values count
    LOST = "lost"  # of the machine's fault, given up after retries: says nothing about the params

    @property
    def is_bad(self) -> bool:
        """Whether the params are to blame: what a feasibility model learns from."""
        return self in (Outcome.CRASHED, Outcome.DIVERGED, Outcome.TIMEOUT, Outcome.OOM)


class Origin(StrEnum):
    """Why a trial was proposed."""

    INITIAL = "initial"  # of the initial design
    MODEL = "model"
    RANDOM = "random"  # a share that no model chooses
    REPLICATE = "replicate"  # the same configuration with another seed
    CONFIRM = "confirm"  # a replicate of the confirmation at the end
    GIVEN = "given"  # told from outside, or of another study (warm start)


@dataclass(frozen=True, slots=True)
class Trial:
    """One evaluation so far. A trial is a run: ``number`` is the run's index.

    Attributes
    ----------
    config
        Number of the first trial with the same params (replicates differ by seed only); its own where it is the first.
    rung
        That its newest segment leads to; 0 without fidelities.
    outcome
        Of that segment.
    values
        Objective at the end of each rung that it completed, lowest first, minimised; ``len(values)`` is ``rung + 1``
        where the newest segment is OK, else ``rung``. NaN for rungs below the one that it began at, unless its curve
        tells them; of a STOPPED one, the rungs that it had passed.
    asked, told
        Wake in which its newest segment was asked for, and in which its outcome came in (-1: not yet). What was known
        when a proposal was made can be told from these, so that a search can be replayed.
    history
        ``(asked, told)`` of each segment before the newest, oldest first.
    cost
        What it has used so far, in the unit of the budget (epochs, seconds…); 0 where unknown.
    """

    number: int
    params: Params
    seed: int = 0
    config: int = -1
    group: str | None = None
    bracket: int = 0
    rung: int = 0
    outcome: Outcome = Outcome.PENDING
    values: tuple[float, ...] = ()
    origin: Origin = Origin.MODEL
    asked: int = 0
    told: int = -1
    cost: float = 0.0
    history: tuple[tuple[int, int], ...] = ()

    @property
    def is_pending(self) -> bool:
        """Whether a segment of it is queued or running."""
        return self.outcome is Outcome.PENDING


@dataclass(frozen=True, slots=True)
class Proposal:
    """Params that a sampler proposes.

    Attributes
    ----------
    mean, sd
        What the model predicts there, in units of the objective; None where no model chose.
    acquisition
        Its value of the acquisition function, for display; None likewise.
    """

    params: Params
    origin: Origin = Origin.MODEL
    mean: float | None = None
    sd: float | None = None
    acquisition: float | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """Decision: begin a new trial at the lowest rung of a bracket."""

    proposal: Proposal
    seed: int
    config: int | None = None  # None: a configuration of its own
    group: str | None = None
    bracket: int = 0
    rung: int = 0


@dataclass(frozen=True, slots=True)
class Promote:
    """Decision: have a trial go on from its checkpoint to the next rung."""

    number: int
    rung: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Decision: cancel a running trial that will not be among the best."""

    number: int
    reason: str


Decision: TypeAlias = "Start | Promote | Stop"


@dataclass(frozen=True, slots=True)
class Decisions:
    """What to do now; ``finished`` says why nothing more will ever be decided, empty while that is not so."""

    actions: Sequence[Decision] = field(default=())
    finished: str = ""
