"""Tables of runs and groups, the best marked, groups against a baseline."""

import math
import random
from dataclasses import replace

import pytest
import scipy.stats

from ems.errors import UsageError
from ems.model import State
from ems.report import Goal, Method, Query, Stat, tabulate
from ems.report.statistics import Estimate
from ems.store import RunRow, Summary

DONE, FAILED, RUNNING, CANCELLED = State.COMPLETED, State.FAILED, State.RUNNING, State.CANCELLED


def row(index, params, state=DONE, exp="7f3a9c21", name="train", **metrics):
    summaries = {key: v if isinstance(v, Summary) else Summary(v, v, v, v, 1, 0.0) for key, v in metrics.items()}
    return RunRow(exp, name, index, params, state, "", 1, "", 1.5, None, "", "n1", "", index, summaries)


def grid():
    """Return lr x seed; acc rises with the seed, run 3 failed."""
    acc = {(0.1, 0): 0.90, (0.1, 1): 0.94, (0.01, 0): 0.98, (0.01, 1): 0.97}
    return [
        row(i, {"lr": lr, "seed": seed, "epochs": 5}, FAILED if i == 3 else DONE, acc=value, loss=1 - value)
        for i, ((lr, seed), value) in enumerate(acc.items())
    ]


def column(table, name):
    return next(each for each in table.columns if each.name == name)


def names(table):
    return [each.name for each in table.columns]


# -- one row a run


def test_by_default_the_run_what_varies_the_metrics_and_the_state_if_it_matters():
    assert names(tabulate(grid(), Query())) == ["run", "lr", "seed", "acc", "loss", "state"]
    assert names(tabulate(grid()[:3], Query())) == ["run", "lr", "seed", "acc", "loss"]


def test_files_get_every_param():
    table = tabulate(grid(), Query(is_wide=True))
    assert names(table) == ["experiment", "run", "lr", "seed", "epochs", "acc", "loss", "state"]
    assert next(table.records()) == {
        "experiment": "7f3a9c21", "run": 0, "lr": 0.1, "seed": 0, "epochs": 5, "acc": 0.9,
        "loss": pytest.approx(0.1), "state": "COMPLETED",
    }  # fmt: skip


def test_best_is_the_highest_acc_and_the_lowest_loss_of_completed_runs():
    table = tabulate(grid(), Query())
    assert column(table, "acc").best == {2}
    assert column(table, "loss").best == {2}
    assert "best: highest acc, lowest loss among completed runs" in table.notes


def test_a_running_run_is_best_only_where_none_has_completed():
    rows = [row(0, {"lr": 1}, RUNNING, acc=0.8), row(1, {"lr": 2}, RUNNING, acc=0.7)]
    assert column(tabulate(rows, Query()), "acc").best == {0}
    assert column(tabulate([*rows, row(2, {}, acc=0.1), row(3, {}, acc=0.2)], Query()), "acc").best == {3}


def test_ties_are_all_best_nan_never_is():
    rows = [row(i, {"i": i}, loss=v) for i, v in enumerate([0.5, math.nan, 0.5, -math.inf, 0.7])]
    assert column(tabulate(rows, Query()), "loss").best == {3}
    assert column(tabulate([rows[0], rows[1], rows[2], rows[4]], Query()), "loss").best == {0, 2}


def test_a_metric_of_unknown_goal_is_not_marked_but_says_how_it_could_be():
    rows = [row(i, {"i": i}, x=float(i)) for i in range(3)]
    table = tabulate(rows, Query())
    assert column(table, "x").best == frozenset()
    assert "to mark the best: --minimize x or --maximize x" in table.notes
    assert column(tabulate(rows, Query(goals={"x": Goal.MINIMIZE})), "x").best == {0}


def test_typed_goals_win_over_guessed_ones():
    assert column(tabulate(grid()[:3], Query(goals={"acc": Goal.MINIMIZE})), "acc").best == {0}


@pytest.mark.parametrize(
    ("stat", "value"), [(Stat.LAST, 3), (Stat.MIN, 1), (Stat.MAX, 5), (Stat.MEAN, 2.5), (Stat.BEST, 1)]
)
def test_stat_chooses_the_value_of_a_run(stat, value):
    table = tabulate([row(0, {}, loss=Summary(3.0, 1.0, 5.0, 2.5, 4, 9))], Query(stat=stat))
    assert column(table, "loss").cells == [value]


def test_stat_best_needs_to_know_which_end_is_good():
    with pytest.raises(UsageError, match="--stat best") as caught:
        tabulate([row(0, {}, x=1.0)], Query(stat=Stat.BEST))
    assert caught.value.hint == "say --minimize x or --maximize x"


def test_missing_metrics_are_empty_and_texts_stay():
    table = tabulate([row(0, {"a": 1}, note="ok"), row(1, {"a": 2}, acc=0.5)], Query())
    assert column(table, "note").cells == ["ok", None]
    assert column(table, "acc").cells == [None, 0.5]


def test_where_keeps_the_columns_that_vary_over_all():
    table = tabulate(grid(), Query(where="lr = 0.01"))
    assert names(table) == ["run", "lr", "seed", "acc", "loss", "state"]
    assert column(table, "run").cells == [2, 3]
    assert table.notes[0] == "train 7f3a9c21: 1 completed, 1 failed (2 of 4 runs: lr = 0.01)"


def test_where_that_nothing_fits_leaves_an_empty_table():
    table = tabulate(grid(), Query(where="lr > 9"))
    assert len(table) == 0
    assert list(table.records()) == []
    assert len(tabulate(grid(), Query(where="lr > 9", by=("lr",)))) == 0


@pytest.mark.parametrize(
    ("sort", "runs"),
    [(("acc",), [0, 1, 3, 2]), (("-acc",), [2, 3, 1, 0]), (("acc desc",), [2, 3, 1, 0]),
     (("lr", "-seed"), [3, 2, 1, 0]), (("epochs",), [0, 1, 2, 3]), (("state", "acc asc"), [0, 1, 2, 3])],
)  # fmt: skip
def test_sort(sort, runs):
    assert column(tabulate(grid(), Query(sort=sort)), "run").cells == runs


def test_what_is_missing_or_nan_sorts_last_both_ways():
    rows = [row(0, {}, x=math.nan), row(1, {}), row(2, {}, x=1.0), row(3, {}, x=2.0)]
    assert column(tabulate(rows, Query(sort=("x",))), "run").cells == [2, 3, 0, 1]
    assert column(tabulate(rows, Query(sort=("-x",))), "run").cells[:2] == [3, 2]


def test_texts_and_numbers_sort_together():
    rows = [row(i, {"p": p}) for i, p in enumerate(["b", 2, "a", 10, [1]])]
    assert column(tabulate(rows, Query(sort=("p",))), "run").cells == [1, 3, 4, 2, 0]


def test_top_without_sort_is_the_best():
    assert column(tabulate(grid(), Query(top=2)), "run").cells == [2, 3]
    assert column(tabulate(grid(), Query(top=1, metrics=("loss",))), "run").cells == [2]
    assert column(tabulate(grid(), Query(top=2, sort=("acc",))), "run").cells == [0, 1]


def test_top_without_any_order_is_refused():
    with pytest.raises(UsageError, match="--top needs an order"):
        tabulate([row(0, {}, x=1.0)], Query(top=1))


def test_columns_are_those_asked_for_in_that_order():
    assert names(tabulate(grid(), Query(columns=("wall_s", "acc", "run")))) == ["wall_s", "acc", "run"]
    assert {"host", "epochs", "reason", "loss"} <= set(names(tabulate(grid(), Query(columns=("all",)))))


@pytest.mark.parametrize(
    "query",
    [Query(metrics=("acuracy",)), Query(by=("lrr",)), Query(sort=("lrr",)), Query(columns=("lrr",)),
     Query(goals={"los": Goal.MINIMIZE}), Query(by=("lr",), sort=("seed",)), Query(by=("lr",), columns=("seed",)),
     Query(by=("acc",)), Query(baseline="lr"), Query(baseline="lr=7"), Query(baseline="ls=7")],
)  # fmt: skip
def test_what_is_not_there_is_named_with_a_hint(query):
    with pytest.raises(UsageError) as caught:
        tabulate(grid(), query)
    assert caught.value.hint


def test_runs_of_several_experiments_have_their_whole_address():
    rows = [row(0, {"lr": 1}, exp="aaaa", name="old"), row(0, {"lr": 1, "wd": 2}, exp="bbbb", name="new")]
    table = tabulate(rows, Query())
    assert names(table) == ["run", "name", "wd"]
    assert table.columns[0].texts == ["aaaa/0", "bbbb/0"]
    assert table.notes[0] == "2 experiments: 2 completed"


def test_no_runs_no_metrics_no_error():
    assert len(tabulate([], Query())) == 0
    assert names(tabulate([row(0, {"lr": 1}, State.PENDING)], Query())) == ["run", "state"]


# -- one row a group


def test_groups_have_mean_interval_n_and_failures():
    table = tabulate(grid(), Query(by=("lr",)))
    assert names(table) == ["lr", "n", "acc", "loss", "failed"]
    assert column(table, "lr").cells == [0.01, 0.1]
    assert column(table, "n").cells == [1, 2]
    low, high = scipy.stats.t.interval(0.95, 1, 0.92, scipy.stats.sem([0.90, 0.94]))
    assert column(table, "acc").cells[1] == Estimate(pytest.approx(0.92), pytest.approx(low), pytest.approx(high), 2)
    assert column(table, "failed").cells == [1, 0]
    assert column(table, "failed").texts == ["1 of 2", "0"]
    assert column(table, "acc").best == {0}


def test_a_grouped_table_says_which_interval_over_what():
    assert "mean ± 95 % CI by Student's t, over seed (2)" in tabulate(grid(), Query(by=("lr",))).notes
    notes = tabulate(grid(), Query(by=("epochs",), method=Method.BOOTSTRAP, stat=Stat.MIN)).notes
    assert any("min value of each run by bootstrap (BCa, 10,000 resamples), over lr (2) x seed (2)" in n for n in notes)
    assert any("too narrow" in note for note in notes)


def test_runs_that_repeat_another_are_told_of():
    rows = grid()
    again = [replace(each, exp_id="ffffffff") for each in rows]
    said = tabulate([*rows, *again], Query(by=("lr",))).notes
    assert any("3 repeat the params" in note for note in said)
    assert not any("repeat the params" in note for note in tabulate(rows, Query(by=("lr",))).notes)


def test_failed_runs_are_in_no_mean_and_the_table_says_how_to_rerun_them():
    notes = tabulate(grid(), Query(by=("lr",))).notes
    assert any(note.endswith("ems rerun 7f3a9c21 --failed") for note in notes)


def test_running_and_cancelled_runs_are_counted_apart():
    rows = [row(0, {"lr": 1}, acc=0.5), row(1, {"lr": 1}, RUNNING, acc=0.1), row(2, {"lr": 1}, CANCELLED)]
    table = tabulate(rows, Query(by=("lr",)))
    assert (column(table, "n").cells, column(table, "failed").cells, column(table, "other").cells) == ([1], [0], [2])
    assert column(table, "acc").cells[0].mean == 0.5


def test_a_diverged_run_does_not_hide_the_others():
    table = tabulate([row(i, {"s": i, "k": 1}, loss=v) for i, v in enumerate([1.0, 3.0, math.inf])], Query(by=("k",)))
    assert column(table, "loss").cells[0].mean == 2.0
    assert "loss: 1 nan or inf in no mean" in table.notes


def test_groups_of_texts_keep_the_order_of_the_sweep_those_of_numbers_rise():
    rows = [row(i, {"opt": o, "lr": lr}, acc=0.5) for i, (o, lr) in enumerate([("sgd", 10), ("adam", 9), ("sgd", 9.5)])]
    assert column(tabulate(rows, Query(by=("opt",))), "opt").cells == ["sgd", "adam"]
    assert column(tabulate(rows, Query(by=("lr",))), "lr").cells == [9, 9.5, 10]
    both = tabulate(rows, Query(by=("opt", "lr")))
    assert list(zip(column(both, "opt").cells, column(both, "lr").cells, strict=True)) == [
        ("sgd", 9.5), ("sgd", 10), ("adam", 9),
    ]  # fmt: skip


def test_groups_can_be_sorted_cut_and_narrowed():
    table = tabulate(grid(), Query(by=("lr",), sort=("-lr",), columns=("acc", "lr")))
    assert (names(table), column(table, "lr").cells) == (["acc", "lr"], [0.1, 0.01])
    assert column(tabulate(grid(), Query(by=("lr",), top=1)), "lr").cells == [0.01]
    assert column(tabulate(grid(), Query(by=("lr",), sort=("acc",))), "acc").best == {1}


def test_records_of_groups_are_flat_and_plain():
    record = list(tabulate(grid(), Query(by=("lr",), metrics=("acc",))).records())[1]
    assert list(record) == ["lr", "n", "acc", "acc_ci_low", "acc_ci_high", "acc_n", "failed"]
    assert record["acc_n"] == 2


def test_a_param_called_n_does_not_lose_its_column():
    table = tabulate([row(i, {"n": n}, acc=0.5) for i, n in enumerate([10, 10, 20])], Query(by=("n",)))
    assert names(table)[:2] == ["n", "n_runs"]
    assert list(next(table.records()).items())[:2] == [("n", 10), ("n_runs", 2)]


def test_groups_may_be_of_facts():
    assert column(tabulate(grid(), Query(by=("state",))), "state").cells == ["COMPLETED", "FAILED"]


# -- against a baseline


def seeds(n=6):
    """Return opt x lr x seed, where adam is better than sgd by 0.02 on every seed, and seeds differ by far more."""
    noise = random.Random(1)
    rows = []
    for seed in range(n):
        base = noise.uniform(0.5, 0.9)
        for opt, gain in (("sgd", 0.0), ("adam", 0.02), ("lion", 0.0)):
            params = {"opt": opt, "seed": seed}
            rows.append(row(len(rows), params, acc=base + gain + noise.gauss(0, 0.003)))
    return rows


def test_baseline_pairs_runs_of_the_same_seed():
    rows = seeds()
    table = tabulate(rows, Query(baseline="opt=sgd"))
    assert names(table) == ["opt", "n", "acc", "acc_difference", "acc_effect", "acc_p", "failed"]
    acc = {o: [r.metrics["acc"].last for r in rows if r.params["opt"] == o] for o in ("sgd", "adam", "lion")}
    theirs = scipy.stats.ttest_rel(acc["adam"], acc["sgd"])
    p_lion = scipy.stats.ttest_rel(acc["lion"], acc["sgd"]).pvalue
    assert column(table, "acc_p").cells == [None, pytest.approx(2 * theirs.pvalue), pytest.approx(p_lion)]
    difference = column(table, "acc_difference")
    assert difference.texts == ["baseline", "", ""]
    interval = theirs.confidence_interval()
    assert (difference.cells[1].low, difference.cells[1].high) == pytest.approx((interval.low, interval.high))
    # means alone could not tell them apart: seeds differ by far more than optimizers do
    sgd, adam, _ = column(table, "acc").cells
    assert adam.low < sgd.mean
    assert column(table, "acc_p").cells[1] < 0.01


def test_the_note_says_what_was_tested():
    (note,) = [n for n in tabulate(seeds(), Query(baseline="opt=sgd")).notes if "baseline" in n]
    assert "6 pairs of the same seed" in note
    assert "paired t test" in note
    assert "Holm-corrected for 2 tests" in note
    assert "Cohen's d_z" in note


def test_only_shared_seeds_are_compared():
    rows = [r for r in seeds() if not (r.params["opt"] == "adam" and r.params["seed"] in (0, 1))]
    table = tabulate(rows, Query(baseline="opt=sgd"))
    pairs = {o: c.n for o, c in zip(column(table, "opt").cells, column(table, "acc_difference").cells, strict=True)}
    assert pairs == {"sgd": 0, "lion": 6, "adam": 4}
    assert any("4 to 6 pairs" in note for note in table.notes)


def test_groups_that_share_no_seed_have_no_test():
    rows = [row(i, {"opt": o, "seed": i}, acc=0.5 + i / 10) for i, o in enumerate(["a", "a", "b", "b"])]
    table = tabulate(rows, Query(baseline="opt=a"))
    assert column(table, "acc_p").cells == [None, None]
    assert column(table, "acc_difference").cells[1].mean is None


def test_each_group_meets_the_baseline_of_its_own_kind():
    gain = {("sgd", 1): 0.0, ("sgd", 2): 0.1, ("adam", 1): 0.2, ("adam", 2): 0.4}
    rows = [
        row(i * 3 + seed, {"opt": o, "batch": b, "seed": seed}, acc=0.1 * seed + v + 0.001 * (seed == 1) * b)
        for i, ((o, b), v) in enumerate(gain.items())
        for seed in range(3)
    ]
    table = tabulate(rows, Query(by=("opt", "batch"), baseline="opt=sgd"))
    differences = [cell.mean for cell in column(table, "acc_difference").cells]
    assert differences[:2] == [None, None]
    assert differences[2:] == pytest.approx([0.2, 0.3])


def test_repeats_of_one_seed_are_one_pair():
    rows = [row(i, {"opt": o, "seed": s}, acc=a) for i, (o, s, a) in enumerate(
        [("a", 0, 0.1), ("a", 0, 0.3), ("b", 0, 0.5), ("a", 1, 0.2), ("b", 1, 0.6)]
    )]  # fmt: skip
    cell = column(tabulate(rows, Query(baseline="opt=a")), "acc_difference").cells[1]
    assert (cell.n, cell.mean) == (2, pytest.approx(0.35))


@pytest.mark.parametrize(
    ("value", "typed"),
    [(0.001, "1e-3"), (0.001, "0.0010"), (5, "5.0"), (True, "true"), ("a b", "'a b'"), (None, "null")],
)
def test_a_baseline_is_found_however_its_value_is_written(value, typed):
    rows = [row(i, {"p": p, "seed": i // 2}, acc=0.1 * i) for i, p in enumerate([value, "other", value, "other"])]
    table = tabulate(rows, Query(baseline=f"p={typed}"))
    assert "baseline" in column(table, "acc_difference").texts


def test_a_baseline_needs_something_to_pair_by():
    rows = [row(i, {"lr": lr}, acc=0.5) for i, lr in enumerate([0.1, 0.2])]
    with pytest.raises(UsageError, match="nothing pairs the runs") as caught:
        tabulate(rows, Query(baseline="lr=0.1"))
    assert "seed" in caught.value.hint


def test_a_baseline_of_several_metrics_corrects_over_all_tests():
    rows = [row(r.index, r.params, acc=r.metrics["acc"].last, f1=r.metrics["acc"].last ** 2) for r in seeds()]
    table = tabulate(rows, Query(baseline="opt=sgd", metrics=("acc", "f1")))
    assert {"acc_p", "f1_p"} <= set(names(table))
    assert any("Holm-corrected for 4 tests" in note for note in table.notes)
