"""Failed runs grouped by cause, and the command that reruns them."""

from __future__ import annotations

import pytest

from ems.harvest.failures import Failure, group, normalize
from ems.model import Resources


def error(message: str, line: int = 41, kind: str = "RuntimeError") -> dict[str, str]:
    frames = (
        f'Traceback (most recent call last):\n  File "/r/1/files/train.py", line {line}, in <module>\n{kind}: {message}'
    )
    return {"type": kind, "message": message, "where": f"train.py:{line}", "traceback": frames}


def test_the_same_traceback_is_one_cause_whatever_its_numbers_and_directories() -> None:
    failures = [
        Failure(
            i,
            {"lr": i},
            f"RuntimeError: {i} MiB in /tmp/{i}/x.bin (train.py:41)",
            "",
            error(f"{i} MiB in /tmp/{i}/x.bin"),
        )
        for i in (7, 3, 5)
    ]
    (only,) = group(failures, "7f3a9c21")
    assert (only.count, only.example, only.example_params, only.indices) == (3, 3, {"lr": 3}, (3, 5, 7))
    assert only.rerun_command == "ems rerun 7f3a9c21 --failed"


def test_another_line_or_type_is_another_cause() -> None:
    failures = [
        Failure(0, {}, "RuntimeError: x (train.py:41)", "", error("x")),
        Failure(1, {}, "RuntimeError: x (train.py:42)", "", error("x", 42)),
        Failure(2, {}, "ValueError: x (train.py:41)", "", error("x", kind="ValueError")),
        Failure(3, {}, "ValueError: x (train.py:41)", "", error("x", kind="ValueError")),
    ]
    groups = group(failures, "abc")
    assert [each.indices for each in groups] == [(2, 3), (0,), (1,)]
    assert groups[0].rerun_command == "ems rerun abc/{2,3}"
    assert groups[1].rerun_command == "ems rerun abc/0"


def test_the_same_word_of_slurm_is_one_cause_and_asks_for_more() -> None:
    failures = [Failure(i, {}, "out of memory", "OUT_OF_MEMORY") for i in range(3)]
    (only,) = group(failures, "abc", Resources(mem="16G"))
    assert only.cause == "out of memory"
    assert only.rerun_command == "ems rerun abc --failed --mem 32G"


@pytest.mark.parametrize(
    ("asked", "more"),
    [("30", "60"), ("10:30", "00:21:00"), ("01:30:00", "03:00:00"), ("20:00:00", "1-16:00:00"), ("1-12", "3-00:00:00")],
)
def test_a_time_limit_is_doubled(asked: str, more: str) -> None:
    (only,) = group([Failure(0, {}, "time limit", "TIMEOUT")], "abc", Resources(time=asked))
    assert only.rerun_command == f"ems rerun abc --failed --time {more}"


def test_a_limit_that_cannot_be_read_is_left_alone() -> None:
    (only,) = group([Failure(0, {}, "time limit", "TIMEOUT")], "abc", Resources(time="UNLIMITED"))
    assert only.rerun_command == "ems rerun abc --failed"


def test_the_command_reruns_just_the_runs_of_the_cause() -> None:
    failures = [Failure(i, {}, "a") for i in (0, 1, 2, 5, 7)]
    (only,) = group(failures, "abc", n_cancelled=1)  # --failed would rerun what was cancelled too
    assert only.rerun_command == "ems rerun abc/{0..2,5,7}"
    (many,) = group([Failure(i, {}, "a") for i in range(0, 500, 2)], "abc", n_cancelled=1)
    assert many.rerun_command == "ems rerun abc --failed"


def test_without_reason_something_is_still_said() -> None:
    assert group([Failure(0, {}, "")], "abc")[0].cause == "unknown cause"
    assert group([], "abc") == []


def test_normalize_keeps_words() -> None:
    assert normalize("rank 3 of job 0x7f00 at /a/b/c.py lost 1e-5") == "rank # of job … at c.py lost #"


def test_a_missing_package_is_not_mended_by_running_again() -> None:
    missing = error("No module named 'sklearn'", kind="ModuleNotFoundError")
    [found] = group([Failure(0, {}, "ModuleNotFoundError", "FAILED", missing)], "abc")
    assert "--env auto" in found.advice
    [other] = group([Failure(0, {}, "ValueError", "FAILED", error("x", kind="ValueError"))], "abc")
    assert other.advice == ""
