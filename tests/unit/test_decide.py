"""What is asked for next: any course of events, every scheduler, every budget."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ems.search.decide import as_of, decide, replay
from ems.search.problem import Fidelity, Problem
from ems.search.rungs import charge, entries, incumbents
from ems.search.space import Categorical, Int, Real, SearchSpace
from ems.search.trial import Decisions, Origin, Outcome, Promote, Start, Stop, Trial

EPOCHS = Fidelity("epochs", 1, 27, 3)
WIDE = SearchSpace(
    (
        Real("lr", 1e-4, 1.0, "log"),
        Int("units", 2, 64),
        Categorical("opt", ("adam", "sgd")),
        Real("momentum", 0.0, 0.9, when="opt == 'sgd'"),
    ),
    ("lr * units < 20",),
)
FEW = SearchSpace((Int("a", 1, 3), Categorical("b", ("x", "y"))))


def loss(trial: Trial, rung: int) -> float:
    """A loss that falls with every rung, and depends a little on the seed."""
    params = trial.params
    level = abs(math.log10(params["lr"]) + 2) + params["units"] / 64 if "lr" in params else float(params["a"])
    return level + 3.0 / (1 + rung) + 0.01 * math.sin(97 * trial.seed + 13 * level)


@dataclass
class Study:
    """A driver without a cluster: decides, and has fate decide what becomes of what it asked for."""

    problem: Problem
    seed: int = 0
    crash: float = 0.0
    lost: float = 0.0
    trials: dict[int, Trial] = field(default_factory=dict)
    wake: int = 0
    finished: str = ""
    spent: dict[int, float] = field(default_factory=dict)

    def share(self) -> float:
        """What a clock would say: of use where no other budget ends the search."""
        is_measured = self.problem.trials is None and self.problem.epochs is None
        return self.spent.setdefault(self.wake, min(1.0, self.wake / 30) if is_measured else 0.0)

    def run(self, most: int = 600) -> Study:
        rng = np.random.default_rng(self.seed)
        while not self.finished and self.wake < most:
            free = int(rng.integers(0, 2)) + self.problem.parallel - sum(t.is_pending for t in self.trials.values())
            self.ask(max(0, free))
            self.wake += 1
            pending = [each for each in self.trials.values() if each.is_pending]
            assert pending or self.finished or free <= 0, "nothing runs, nothing is asked for, and nothing is finished"
            for index in rng.permutation(len(pending))[: rng.integers(0, 4)]:
                self.tell(pending[index], rng)
        return self

    def ask(self, free: int) -> Decisions:
        known = list(self.trials.values())
        decided = decide(self.problem, known, free, len(known), spent=self.share())
        asked = [each for each in decided.actions if not isinstance(each, Stop)]
        assert len(asked) <= free
        again = decide(self.problem, known[::-1], free, len(known), spent=self.share())
        assert again == decided, "a wake that is repeated decides the same"
        assert asked == sorted(asked, key=lambda each: isinstance(each, Start)), "promotions go first"
        for action in asked:
            self.carry_out(action)
        if decided.finished:
            assert not any(each.is_pending for each in known)
            assert not asked
            assert not decided.finished[0].islower()
            assert decided.finished.endswith(".")
        self.finished = decided.finished
        return decided

    def carry_out(self, action: Start | Promote | Stop) -> None:
        if isinstance(action, Start):
            number = len(self.trials)
            config = number if action.config is None else action.config
            self.trials[number] = Trial(
                number, action.proposal.params, action.seed, config, action.group, action.bracket, action.rung,
                origin=action.proposal.origin, asked=self.wake,
            )  # fmt: skip
        elif isinstance(action, Promote):
            trial = self.trials[action.number]
            assert trial.outcome is Outcome.OK, "only what went well goes on"
            assert action.rung == trial.rung + 1 < self.problem.n_rungs
            history = (*trial.history, (trial.asked, trial.told))
            self.trials[action.number] = replace(
                trial, rung=action.rung, outcome=Outcome.PENDING, history=history, asked=self.wake, told=-1
            )

    def tell(self, trial: Trial, rng: np.random.Generator) -> None:
        fate = rng.random()
        outcome, values = Outcome.OK, (*trial.values, *[math.nan] * (trial.rung - len(trial.values)))
        if fate < self.crash:
            outcome = Outcome(rng.choice([Outcome.CRASHED, Outcome.OOM, Outcome.DIVERGED]))
        elif fate < self.crash + self.lost:
            outcome = Outcome.LOST
        else:
            values = (*values, loss(trial, trial.rung))
        self.trials[trial.number] = replace(trial, outcome=outcome, values=values, told=self.wake)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    scheduler = draw(st.sampled_from(["asha", "hyperband", "bohb", "none", "stop"]))
    budget = draw(st.sampled_from(["trials", "epochs", "both", "hours"]))
    return Problem(
        draw(st.sampled_from([WIDE, FEW])),
        sampler=draw(st.sampled_from(["random", "random", "sobol", "grid", "tpe"])),
        scheduler=scheduler,
        mode=draw(st.sampled_from(["async", "sync"])),
        fidelity=EPOCHS if budget in ("epochs", "both") or draw(st.booleans()) else None,
        parallel=draw(st.integers(1, 6)),
        trials=draw(st.integers(6, 40)) if budget in ("trials", "both") else None,
        epochs=draw(st.integers(120, 400)) if budget in ("epochs", "both") else None,
        seeds=draw(st.sampled_from([1, 1, 3])),
        confirm=draw(st.sampled_from([0.0, 0.3])),
        groups=draw(st.sampled_from([(), (), ("north", "south")])),
        seed=draw(st.integers(0, 3)),
    )


@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.generate])  # to shrink takes minutes
@given(problems(), st.integers(0, 10**6), st.sampled_from([0.0, 0.3]), st.sampled_from([0.0, 0.15]))
def test_any_course_of_events_stays_in_the_space_and_in_the_budget_and_ends(problem, seed, crash, lost):
    study = Study(problem, seed, crash, lost).run()
    trials = list(study.trials.values())
    assert study.finished, "every budget ends"
    assert all(problem.space.is_valid(each.params) for each in trials)
    firsts = [each for each in trials if each.config == each.number]
    assert len({(each.group, problem.space.key(each.params)) for each in firsts}) == len(firsts), "no point twice"
    for each in trials:
        assert each.params == study.trials[each.config].params
        assert each.group in (problem.groups or (None,))
    pairs = Counter((each.config, each.seed) for each in trials)
    assert set(pairs.values()) == {1}, "no replicate twice"
    counted = [each for each in trials if each.outcome is not Outcome.LOST]
    assert problem.trials is None or len(counted) <= problem.trials
    assert problem.epochs is None or charge(problem, trials) <= problem.epochs + 1e-6
    assert replay(problem, trials, study.spent) == []


@pytest.mark.parametrize(("scheduler", "sampler", "groups"), [("asha", "gp", ("a", "b")), ("none", "ts", ())])
def test_a_search_by_model_is_replayed_and_asks_for_no_point_twice(scheduler, sampler, groups):
    problem = Problem(
        WIDE,
        sampler,
        scheduler,
        fidelity=Fidelity("epochs", 1, 9, 3),
        parallel=3,
        trials=16,
        confirm=0.2,
        groups=groups,
    )
    study = Study(problem, 1, crash=0.15).run()
    trials = list(study.trials.values())
    assert study.finished
    assert replay(problem, trials) == []
    models = [each for each in trials if each.origin is Origin.MODEL]
    assert models, "a model has proposed"
    assert all(WIDE.is_valid(each.params) for each in trials)
    firsts = [each for each in trials if each.config == each.number]
    assert len({(each.group, WIDE.key(each.params)) for each in firsts}) == len(firsts)
    tampered = [replace(each, params={**each.params, "lr": 0.0123}) if each is models[0] else each for each in trials]
    said = replay(problem, tampered)
    assert said, "a point that does not follow is told"
    assert f"wake {models[0].asked}" in said[0]


# Promotion, by hand ------------------------------------------------------------------------------------------------


def trial(number: int, *values: float, outcome: Outcome = Outcome.OK, rung: int | None = None, **more) -> Trial:
    rung = len(values) - (outcome is Outcome.OK) if rung is None else rung
    return Trial(
        number, {"a": 1 + number % 3, "b": "x"}, config=number, rung=rung, outcome=outcome, values=values, **more
    )


def race(scheduler: str = "asha", **more) -> Problem:
    return Problem(WIDE, "random", scheduler, fidelity=EPOCHS, parallel=9, seed=1, **more)


def promoted(problem: Problem, trials: list[Trial], free: int = 9) -> list[tuple[int, int]]:
    actions = decide(problem, trials, free, len(trials)).actions
    return [(each.number, each.rung) for each in actions if isinstance(each, Promote)]


def test_asha_promotes_the_best_third_of_each_rung_as_soon_as_it_has_arrived():
    low = [trial(n, 10.0 - n) for n in range(9)]
    assert promoted(race(), low[:2]) == []
    assert promoted(race(), low[:3]) == [(2, 1)]
    assert promoted(race(), low) == [(8, 1), (7, 1), (6, 1)]
    high = [
        trial(8, 2.0, 99.0),
        trial(7, 3.0, 50.0),
        trial(6, 4.0, 70.0),
        *low[:6],
        *(trial(n, 20.0) for n in (9, 10, 11)),
    ]
    assert promoted(race(), high) == [(7, 2), (5, 1)], "highest rung first; 99 epochs' values are not held against 1's"
    assert promoted(race(), high, free=1) == [(7, 2)]
    assert promoted(race(), [*low[:8], trial(8, 2.0, outcome=Outcome.PENDING, rung=1)]) == [(7, 1), (6, 1)]


def test_newcomers_that_beat_those_before_wait_for_their_share_of_the_rung():
    """Else a search that learns carries all of them up: each is the best so far."""
    gone = [trial(0, 9.0, 9.0), trial(1, 8.0, 8.0)]
    better = [trial(n, 9.0 - n) for n in range(2, 8)]
    assert promoted(race(), [*gone, *better]) == [(7, 1)], "two of eight have gone on already: the best of all, alone"
    best_gone = [*gone, trial(8, 0.5, outcome=Outcome.PENDING, rung=1)]
    assert promoted(race(), [*best_gone, *better]) == [], "three of nine"
    assert promoted(race(), [*best_gone, *better, *(trial(n, 9.5) for n in (9, 10, 11))]) == [(7, 1)], "four of twelve"
    all_begun = promoted(race(trials=9), [*best_gone, *better])
    assert all_begun == [(7, 1), (6, 1)], "where nothing new begins, the best third of all go on"


def test_failures_fill_a_rung_and_lost_trials_do_not():
    ok, crashed = [trial(0, 5.0)], [trial(n, outcome=Outcome.CRASHED) for n in (1, 2)]
    assert promoted(race(), ok + crashed) == [(0, 1)], "a rung of crashes does not stall"
    assert promoted(race(), [trial(n, outcome=Outcome.CRASHED) for n in range(9)]) == []
    lost = [trial(n, outcome=Outcome.LOST) for n in (1, 2)]
    assert promoted(race(), ok + lost) == []
    gone_later = [trial(0, 1.0, outcome=Outcome.LOST, rung=1), *(trial(n, float(n + 1)) for n in (1, 2, 3))]
    assert promoted(race(), gone_later) == [(1, 1)], "its place goes to the next best"


def test_a_synchronous_rung_is_filled_and_finished_before_it_promotes():
    problem = race(mode="sync")
    full = [trial(n, 30.0 - n) for n in range(27)]
    assert promoted(problem, full[:26]) == []
    assert promoted(problem, [*full[:26], trial(26, outcome=Outcome.PENDING)]) == []
    assert promoted(problem, full) == [(26, 1), (25, 1), (24, 1), (23, 1), (22, 1), (21, 1), (20, 1), (19, 1), (18, 1)]
    starts = [each for each in decide(problem, full[:25], 9, 25).actions if isinstance(each, Start)]
    assert [each.bracket for each in starts] == [0, 0, 1, 1, 1, 1, 1, 1, 1], "idle workers begin the next bracket"


def test_hyperband_begins_brackets_at_every_rung_in_their_proportions():
    problem = replace(race("hyperband", trials=60), parallel=60)
    starts = [each for each in decide(problem, [], 60, 0).actions if isinstance(each, Start)]
    assert all(each.rung == each.bracket for each in starts)
    count = Counter(each.bracket for each in starts)
    assert [count[kind] for kind in range(4)] == [31, 14, 8, 5 + 2] or sorted(count.values(), reverse=True)[0] > 25
    sync = [each.bracket for each in decide(replace(problem, mode="sync"), [], 60, 0).actions]
    assert Counter(sync) == {0: 27, 1: 12, 2: 6, 3: 4, 4: 11}, "27, 12, 6 and 4 of table 1 of the paper, then again"


def test_what_is_left_of_a_budget_takes_the_best_to_the_top_and_begins_nothing_that_it_cannot_pay():
    few = [trial(n, float(n)) for n in range(2)]
    assert promoted(race(trials=2), few) == [(0, 1)], "nobody is due, and one is taken to the top"
    there = [trial(0, 4.0, 3.0, 2.0, 1.0), trial(1, 5.0)]
    decided = decide(race(trials=2), there, 9, 2)
    assert decided == Decisions([], "All 2 trials of the search were made.")
    assert promoted(race(epochs=54), there) == [(1, 1)], "26 epochs are left, which pay the whole way"
    decided = decide(race(epochs=53), there, 9, 2)
    assert decided.finished == "The search spent 28 epochs; what is left takes no further configuration to 27."


def test_replicates_share_seeds_go_up_together_and_are_ranked_by_their_mean():
    problem = race(seeds=2, trials=12)
    starts = [each for each in decide(problem, [], 3, 0).actions if isinstance(each, Start)]
    assert [(each.config, each.seed) for each in starts] == [(0, 1), (0, 2), (2, 1)]
    pairs = [
        replace(trial(2 * n + k, float(n) + (9.0 if k and not n else 0.0)), config=2 * n, seed=1 + k)
        for n in range(3) for k in range(2)
    ]  # fmt: skip
    assert promoted(problem, pairs) == [(2, 1), (3, 1)], "trial 0 was lucky once"
    half = [*pairs[:2], replace(pairs[2], rung=1, outcome=Outcome.PENDING), *pairs[3:]]
    assert promoted(problem, half) == [(3, 1)], "what could not be promoted at once follows"
    owed = decide(problem, pairs[:5], 1, 5).actions
    assert [(each.config, each.seed, each.proposal.origin) for each in owed] == [(4, 2, Origin.REPLICATE)]


def test_more_lost_than_ended_trials_end_a_search_and_a_measured_budget_does():
    lost = [trial(n, outcome=Outcome.LOST) for n in range(10)]
    assert "lost with their machines" in decide(race(trials=60), lost, 9, 10).finished
    assert decide(race(), [trial(0, 1.0, outcome=Outcome.PENDING, rung=1)], 9, 1, spent=1.0) == Decisions([], "")
    assert decide(race(), [trial(0, 1.0)], 9, 1, spent=1.0) == Decisions([], "The budget is spent.")
    late = decide(race(confirm=0.2), [trial(n, float(n)) for n in range(3)], 9, 3, spent=0.85).actions
    assert late == [Promote(0, 1)], "nothing new is begun in the confirmation's share"


# Stopping ------------------------------------------------------------------------------------------------------------


def test_bad_trials_are_stopped_at_a_rung_that_their_curves_pass():
    problem = race("stop")
    ended = [trial(n, *(float(n + 3 - k) for k in range(4))) for n in range(3)]
    running = [trial(n, outcome=Outcome.PENDING, rung=3) for n in (3, 4, 5)]
    curves = {3: [(1, 9.0), (2, 8.0), (3, 8.0)], 4: [(1, 1.0), (3, 0.5)], 5: [(0.5, 70.0)]}
    stops = [each for each in decide(problem, ended + running, 0, 6, curves).actions if isinstance(each, Stop)]
    assert [each.number for each in stops] == [3]
    assert stops[0].reason == "place 5 of the 5 that came to epochs=3; 1 in 3 goes on"
    blind = Problem(WIDE, "random", "stop", parallel=9)
    curves = {n: [(1, 5.0 - n), (2, 4.0 - n)] for n in range(6)}
    stops = decide(blind, [trial(n, outcome=Outcome.PENDING) for n in range(6)], 0, 6, curves).actions
    assert [each.number for each in stops] == [0, 1, 2], "worse than the median of the others' means"


# The confirmation -----------------------------------------------------------------------------------------------------


def confirmed(values: dict[int, list[float]], found: dict[int, float], trials: int = 40) -> Decisions:
    """The decision after a race with these values, between configurations whose search came to ``found``."""
    known = [Trial(n, {"a": n % 3 + 1, "b": "x"}, 1, n, outcome=Outcome.OK, values=(v,)) for n, v in found.items()]
    for config, each in values.items():
        known += [
            Trial(
                len(known) + k,
                known[config].params,
                2 + k,
                config,
                outcome=Outcome.OK,
                values=(v,),
                origin=Origin.CONFIRM,
            )
            for k, v in enumerate(each)
        ]
    share = (trials - len(found)) / trials
    problem = Problem(WIDE, "random", parallel=50, trials=trials, confirm=share, seed=1)
    return decide(problem, known, 50, len(known))


def test_two_race_on_fresh_paired_seeds_until_one_is_better():
    found = {n: float(n) for n in range(30)}
    first = confirmed({}, found, 50).actions
    assert all(isinstance(each, Start) and each.proposal.origin is Origin.CONFIRM for each in first)
    assert [(each.config, each.seed) for each in first] == [(c, s) for s in range(2, 12) for c in (0, 1)]
    luck = [0.3, -0.2, 0.1, -0.4, 0.25, 0.05, -0.15, 0.35]
    clear = confirmed({0: [5.0 + e for e in luck], 1: [1.0 + e + 0.01 * e * e for e in luck]}, found, 50)
    assert clear.finished.endswith("Trial 1 is better than trial 0, the next best, by 8 paired runs.")
    even = confirmed({0: [1.0 + e for e in luck], 1: [1.01 - e for e in luck]}, found, 46)
    assert "Trial 1 leads trial 0, the next best, in 8 paired runs: not enough to claim" in even.finished
    open_ = confirmed({0: [1.0 + e for e in luck], 1: [1.01 - e for e in luck]}, found, 50).actions
    assert [(each.config, each.seed) for each in open_] == [(c, s) for s in (10, 11) for c in (0, 1)]


def test_of_three_that_race_who_is_likely_worse_drops_out():
    found = {n: float(n) for n in range(25)}
    luck = np.random.default_rng(0).normal(size=4)
    values = {0: luck, 1: luck + 0.01 * np.sin(9 * np.arange(4)), 2: luck + 50 + 0.01 * np.cos(np.arange(4))}
    more = confirmed({config: list(map(float, each)) for config, each in values.items()}, found, 49).actions
    assert Counter(each.config for each in more) == {0: 6, 1: 6}
    assert min(each.seed for each in more) == 6


# What a report says --------------------------------------------------------------------------------------------------


def test_each_rung_has_its_own_incumbent_and_its_own_past():
    problem = race()
    trials = [trial(0, 5.0, 4.0), trial(1, 1.0), trial(2, 3.0, 2.0), trial(3, outcome=Outcome.CRASHED)]
    assert [(each.rung, each.config, each.value) for each in incumbents(problem, trials)] == [(0, 1, 1.0), (1, 2, 2.0)]
    went = replace(trial(0, 5.0, 4.0), asked=7, told=9, history=((2, 5),))
    assert as_of(went, 2) is None
    assert as_of(went, 4).is_pending
    assert as_of(went, 7).values == (5.0,)
    assert as_of(went, 8).outcome is Outcome.PENDING
    assert as_of(went, 9).values == (5.0, 4.0)
    assert [each.state for each in entries(problem, trials)][-1] is Outcome.CRASHED
