"""What to ask for now, by what is known: promotions first, then new trials, at last the confirmation of the best.

`decide` is a pure function of the problem and its trials, and every proposal is drawn by (seed of the search, number of
the trial): a decision that is made again is the same, and `replay` proves of a search that it was made like that.

Of a budget of epochs nothing is begun that it does not pay as far as the top rung: a configuration that stops below
says nothing about those above. So its last part goes on those that are well on their way, best first, and no segment
is ever paid by half.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from ems.search import confirm, fidelity, groups, schedulers
from ems.search.problem import Problem
from ems.search.rungs import Entry, budgets, charge, entries, seed_of
from ems.search.schedulers import Curves
from ems.search.trial import Decision, Decisions, Origin, Outcome, Promote, Proposal, Start, Trial

_LOST_NEEDS = 10  # trials lost with their machines before more of them than of others end a search


def decide(
    problem: Problem,
    trials: Sequence[Trial],
    free: int,
    n_asked: int,
    curves: Curves | None = None,
    *,
    spent: float = 0.0,
) -> Decisions:
    """Decide what to ask for now.

    Parameters
    ----------
    trials
        All so far, as they are known now.
    free
        How many segments may be asked for now.
    n_asked
        Number that the next trial gets; those of the proposals follow in their order.
    curves
        Of running trials, for scheduler ``stop``.
    spent
        Share of the budgets that is used up, of those that only who runs the trials can measure (hours, money): from 1
        on nothing more is asked for, and the last ``problem.confirm`` of it is the confirmation's.

    Returns
    -------
    Decisions
        At most ``free`` starts and promotions, promotions first, and any number of stops. ``finished`` is said only
        when nothing is pending.
    """
    view = _View(problem, tuple(sorted(trials, key=lambda each: each.number)), spent)
    stops = schedulers.stops(problem, view.trials, curves)
    reason = _breaks_off(view)
    if reason:
        return Decisions(stops, "" if view.is_pending else reason)
    wake = _Wake(view, free, n_asked)
    wake.promote(schedulers.promotions(problem, view.race, closed=not wake.has_room))
    wake.replicate()
    wake.start()
    if not wake.actions and not view.is_pending and free > 0:
        wake.promote(schedulers.promotions(problem, view.race, closed=True))
        if not wake.actions:
            wake.promote(schedulers.finale(problem, view.race, wake.left))
        if not wake.actions:
            reason = wake.confirm()
    return Decisions([*stops, *wake.actions], "" if wake.actions or free <= 0 else reason)


@dataclass(frozen=True)
class _View:
    """What is known now, and what follows from it alone."""

    problem: Problem
    trials: tuple[Trial, ...]
    spent: float

    @cached_property
    def race(self) -> list[Entry]:
        return entries(self.problem, self.trials)

    @property
    def is_pending(self) -> bool:
        return any(each.is_pending for each in self.trials)

    @cached_property
    def searched(self) -> list[Trial]:
        """Trials of the search itself: neither given nor of the confirmation."""
        return [each for each in self.trials if each.origin not in (Origin.GIVEN, Origin.CONFIRM)]

    @property
    def epochs_left(self) -> float:
        """What the search may spend still, beside owed replicates and the confirmation; infinite without a budget."""
        if self.problem.epochs is None or self.problem.fidelity is None:
            return math.inf
        owed = sum(each.missing * budgets(self.problem)[each.rung] for each in self.race)
        return self.problem.epochs * (1 - self.problem.confirm) - charge(self.problem, self.searched) - owed

    @property
    def trials_left(self) -> float:
        """How many trials the search may begin still, beside the replicates that it owes."""
        if self.problem.trials is None:
            return math.inf
        made = sum(each.outcome is not Outcome.LOST for each in self.searched)
        return self.problem.trials - confirm.reserved(self.problem) - made - sum(each.missing for each in self.race)


def _breaks_off(view: _View) -> str:
    """Say why nothing more is asked for whatever the search would want; empty while there is no reason."""
    lost = sum(each.outcome is Outcome.LOST for each in view.trials)
    if lost >= _LOST_NEEDS and 2 * lost > len(view.trials):
        return (
            f"{lost} of {len(view.trials)} trials were lost with their machines, each after several tries: "
            "nothing more is asked for until the machines are well."
        )
    return "The budget is spent." if view.spent >= 1 else ""


@dataclass
class _Wake:
    """The actions chosen so far, and what is left after them."""

    view: _View
    free: int
    n_asked: int
    actions: list[Promote | Start] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.left = self.view.epochs_left
        self.room = self.view.trials_left if self.view.spent < 1 - self.view.problem.confirm else 0.0

    @property
    def problem(self) -> Problem:
        """What is searched for."""
        return self.view.problem

    @property
    def n_free(self) -> int:
        """How many more segments may be asked for."""
        return self.free - len(self.actions)

    # Promotions ---------------------------------------------------------------------------------------------------

    def promote(self, due: Sequence[Promote]) -> None:
        """Take promotions in their order, as long as the budget pays them to the top; all replicates or none."""
        rungs = budgets(self.problem)
        config_of = {number: each.config for each in self.view.race for number in each.numbers}
        owed = Counter(config_of[each.number] for each in due)
        for each in due:
            config = config_of[each.number]
            if self.n_free > 0 and owed[config] * (rungs[-1] - rungs[each.rung - 1]) <= self.left:
                self.actions.append(each)
                self.left -= rungs[each.rung] - rungs[each.rung - 1]
                owed[config] -= 1

    # New trials ---------------------------------------------------------------------------------------------------

    def replicate(self) -> None:
        """Begin the replicates that configurations lack; their configuration's beginning has reserved them."""
        by_number = {each.number: each for each in self.view.trials}
        for entry in self.view.race:
            first = by_number[entry.config]
            for index in range(self.problem.seeds - entry.missing, self.problem.seeds):
                if self.n_free > 0:
                    self._begin(Proposal(first.params, Origin.REPLICATE), index, entry)

    def _begin(self, proposal: Proposal, index: int, entry: Entry, config: int | None = None) -> None:
        config = entry.config if config is None else config
        self.actions.append(
            Start(proposal, seed_of(self.problem, index), config, entry.group, entry.bracket, entry.rung)
        )

    @property
    def has_room(self) -> bool:
        """Whether the budgets pay another configuration, all its replicates to the top."""
        seeds, whole = self.problem.seeds, budgets(self.problem)[-1] * self.problem.seeds
        return self.room >= seeds and self.left >= whole + self._kept(whole)

    def _kept(self, whole: float) -> float:
        """Return the epochs left to other groups that have nobody at the top: one way each, within half of them all."""
        problem = self.problem
        if problem.epochs is None or not problem.groups:
            return 0.0
        there = {each.group for each in self.view.race if each.rung == problem.n_rungs - 1 and not each.state.is_bad}
        others = max(0, len(set(problem.groups) - there) - 1)
        return max(0.0, min(others * whole, problem.epochs * (1 - problem.confirm) / 2 - whole))

    def start(self) -> None:
        """Begin new configurations: the groups and brackets first, then what the sampler proposes for each."""
        slots = self._slots()
        wanted: dict[tuple[str | None, int], list[int]] = {}
        for number, slot in slots.items():
            wanted.setdefault((slot.group, slot.rung), []).append(number)
        found: dict[int, Proposal] = {}
        pending = list(self.view.trials)
        for (group, rung), numbers in wanted.items():
            for number, proposal in zip(
                numbers, fidelity.propose(self.problem, pending, numbers, group, rung), strict=False
            ):
                found[number] = proposal
                pending.append(Trial(number, proposal.params, group=group, rung=rung))
        for number in sorted(found):
            config = self.n_asked + sum(isinstance(each, Start) for each in self.actions)
            for index in range(self.problem.seeds):
                if self.n_free > 0:
                    proposal = found[number] if index == 0 else replace(found[number], origin=Origin.REPLICATE)
                    self._begin(proposal, index, slots[number], config)

    def _slots(self) -> dict[int, Entry]:
        """Settle what is begun, by number: group, bracket and rung of each, still without params."""
        problem, slots = self.problem, dict[int, Entry]()
        n_free, number = self.n_free, self.n_asked + sum(isinstance(each, Start) for each in self.actions)
        if problem.mode == "sync" and problem.scheduler in ("none", "stop"):
            n_free = 0 if self.view.is_pending or self.actions else min(n_free, problem.parallel)
        for group in groups.choices(problem, self.view.trials, self.n_asked):
            if n_free <= 0 or not self.has_room:
                break
            race = [each for each in (*self.view.race, *slots.values()) if each.group == group]
            bracket = schedulers.next_bracket(problem, race)
            rung = schedulers.first_rung(problem, bracket)
            slots[number] = Entry(number, (number,), group, bracket, rung, Outcome.PENDING, ())
            self.left -= budgets(self.problem)[rung] * problem.seeds
            self.room -= problem.seeds
            n_free -= problem.seeds
            number += problem.seeds
        return slots

    # The end ------------------------------------------------------------------------------------------------------

    def confirm(self) -> str:
        """Begin replicates of the best where nothing else is left to do; returns why the search is finished if so."""
        problem, n_total = self.problem, math.inf
        if problem.trials is not None:
            n_total = problem.trials - sum(each.outcome is not Outcome.LOST for each in self.view.searched)
        if problem.epochs is not None and problem.fidelity is not None:
            n_total = min(n_total, (problem.epochs - charge(problem, self.view.searched)) // budgets(problem)[-1])
        starts, said = confirm.confirmations(problem, self.view.trials, n_total)
        self.actions += starts[: self.n_free]
        return " ".join(filter(None, (self._why(), said)))

    def _why(self) -> str:
        """Say what ended the search."""
        problem, made = self.problem, sum(each.outcome is not Outcome.LOST for each in self.view.searched)
        if groups.is_exhausted(problem, self.view.trials):
            return f"Every configuration of the space has been tried, in {made} trials."
        if self.view.trials_left < problem.seeds:
            unpaid = int(self.view.trials_left)
            rest = f"; the {unpaid} left would be no whole configuration of {problem.seeds} seeds" if unpaid > 0 else ""
            return f"All {made} trials of the search were made{rest}."
        if problem.epochs is not None and not self.has_room:
            top, name = budgets(problem)[-1], (problem.fidelity and problem.fidelity.name) or "epochs"
            spent = charge(problem, self.view.searched)
            return f"The search spent {spent:g} {name}; what is left takes no further configuration to {top:g}."
        if self.room <= 0:
            return "The budget of the search is spent."
        return f"No further configuration was found that the constraints allow, after {made} trials."


def replay(problem: Problem, trials: Sequence[Trial], spent: Mapping[int, float] | None = None) -> list[str]:
    """Decide each wake of a search again, by what was known then, and say where that differs from what was asked.

    Empty for a search that was made by `decide` alone, however often its driver was killed or its wakes repeated.
    Stops are not looked at: the curves of that time are not kept.

    Parameters
    ----------
    trials
        As they stand now; ``asked``, ``told`` and ``history`` tell what was known when.
    spent
        Share of the measured budgets at each wake, as `decide` was given it. Where none is given and no other budget
        ends the search, nothing new was begun after the last wake that did so.

    Returns
    -------
    list of str
        A sentence a wake that cannot be explained, in order.
    """
    own = [each for each in trials if each.origin is not Origin.GIVEN]
    given = [each for each in trials if each.origin is Origin.GIVEN]
    begun = {each.number: (each.history[0] if each.history else (each.asked, each.told))[0] for each in own}
    last = max((begun[each.number] for each in own if each.origin is not Origin.CONFIRM), default=-1)
    is_measured = problem.trials is None and problem.epochs is None
    differences = []
    for wake in sorted({asked for each in own for asked, _ in (*each.history, (each.asked, each.told))}):
        known = [then for each in own if (then := as_of(each, wake)) is not None]
        actual = _asked_in(own, wake)
        n_asked = 1 + max((each.number for each in known), default=-1)
        share = (1 - problem.confirm) if is_measured and wake > last else 0.0
        share = share if spent is None else spent.get(wake, share)
        decided = decide(problem, [*given, *known], len(actual), n_asked, spent=share)
        expected = {_words(each, n_asked + index) for index, each in enumerate(_starts_first(decided.actions))}
        if expected != actual:
            missing, more = sorted(expected - actual), sorted(actual - expected)
            differences.append(
                f"wake {wake} asked for {'; '.join(more) or 'nothing else'} where {'; '.join(missing) or 'no more'} "
                "follows from what was known"
            )
    return differences


def as_of(trial: Trial, wake: int) -> Trial | None:
    """Return a trial as it was known when a wake decided; None where it had not been asked for."""
    segments = (*trial.history, (trial.asked, trial.told))
    index = max((at for at, (asked, _) in enumerate(segments) if asked < wake), default=None)
    if index is None:
        return None
    (asked, told), is_newest = segments[index], index + 1 == len(segments)
    rung = trial.rung - (len(segments) - 1 - index)
    outcome = trial.outcome if is_newest else Outcome.OK
    if told < 0 or told > wake:
        outcome = Outcome.PENDING
    values = trial.values[: rung + (outcome is Outcome.OK)] if index or outcome is not Outcome.PENDING else ()
    return replace(
        trial, rung=rung, outcome=outcome, values=values, asked=asked, told=told, history=segments[:index], cost=0.0
    )


def _asked_in(trials: Sequence[Trial], wake: int) -> set[str]:
    """Return what a wake asked for, in words."""
    found = set()
    for trial in trials:
        segments = (*trial.history, (trial.asked, trial.told))
        for index, (asked, _) in enumerate(segments):
            rung = trial.rung - (len(segments) - 1 - index)
            if asked == wake and index:
                found.add(_words(Promote(trial.number, rung), trial.number))
            elif asked == wake:
                proposal = Proposal(trial.params, trial.origin)
                start = Start(proposal, trial.seed, trial.config, trial.group, trial.bracket, rung)
                found.add(_words(start, trial.number))
    return found


def _starts_first(actions: Sequence[Decision]) -> list[Start | Promote]:
    """Return starts, which are numbered in their order, then promotions; stops are left out."""
    starts = [each for each in actions if isinstance(each, Start)]
    return [*starts, *(each for each in actions if isinstance(each, Promote))]


def _words(action: Start | Promote, number: int) -> str:
    if isinstance(action, Promote):
        return f"trial {action.number} to rung {action.rung}"
    config = number if action.config in (None, -1) else action.config
    params = json.dumps(action.proposal.params, sort_keys=True)
    where = f"{action.group or ''} {action.bracket}.{action.rung}".strip()
    return f"trial {number} ({action.proposal.origin} of {config}, seed {action.seed}, {where}) with {params}"
