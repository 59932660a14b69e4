"""SLURM's words for states: all of them, each meant to be what it is."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ems.executor.states import from_slurm, spell_out
from ems.model import State

# squeue(1), sacct(1) and "Job State Codes": (word, compact code, state)
EVERY = [
    ("PENDING", "PD", State.PENDING),
    ("CONFIGURING", "CF", State.PENDING),
    ("POWER_UP_NODE", "PU", State.PENDING),
    ("REQUEUED", "RQ", State.PENDING),
    ("REQUEUE_FED", "RF", State.PENDING),
    ("REQUEUE_HOLD", "RH", State.PENDING),
    ("RESV_DEL_HOLD", "RD", State.PENDING),
    ("SPECIAL_EXIT", "SE", State.PENDING),
    ("EXPEDITING", None, State.PENDING),
    ("RUNNING", "R", State.RUNNING),
    ("COMPLETING", "CG", State.RUNNING),
    ("RESIZING", "RS", State.RUNNING),
    ("SIGNALING", "SI", State.RUNNING),
    ("STAGE_OUT", "SO", State.RUNNING),
    ("STOPPED", "ST", State.RUNNING),
    ("SUSPENDED", "S", State.RUNNING),
    ("UPDATE_DB", None, State.RUNNING),
    ("COMPLETED", "CD", State.COMPLETED),
    ("CANCELLED", "CA", State.CANCELLED),
    ("BOOT_FAIL", "BF", State.FAILED),
    ("DEADLINE", "DL", State.FAILED),
    ("FAILED", "F", State.FAILED),
    ("LAUNCH_FAILED", "LF", State.FAILED),
    ("NODE_FAIL", "NF", State.FAILED),
    ("OUT_OF_MEMORY", "OOM", State.FAILED),
    ("PREEMPTED", "PR", State.FAILED),
    ("RECONFIG_FAIL", None, State.FAILED),
    ("TIMEOUT", "TO", State.FAILED),
    ("REVOKED", "RV", State.UNKNOWN),
]


@pytest.mark.parametrize(("word", "code", "state"), EVERY)
def test_every_word_and_code(word: str, code: str | None, state: State) -> None:
    assert from_slurm(word) is state
    assert from_slurm(word.lower()) is state
    assert spell_out(word) == word
    if code is not None:
        assert from_slurm(code) is state
        assert spell_out(code) == word


def test_what_submitit_takes_for_done_is_not() -> None:
    assert not from_slurm("SUSPENDED").is_finished
    assert not from_slurm("CONFIGURING").is_finished
    assert from_slurm("PREEMPTED").is_finished


@pytest.mark.parametrize(
    ("printed", "word"),
    [
        ("CANCELLED by 1000", "CANCELLED"),
        ("CANCELLED+", "CANCELLED"),
        ("OUT_OF_ME+", "OUT_OF_MEMORY"),
        ("REQUEUE+", "REQUEUE+"),  # fits REQUEUED, REQUEUE_FED and REQUEUE_HOLD: not guessed
        ("  RUNNING ", "RUNNING"),
        ("", ""),
    ],
)
def test_words_as_they_are_printed(printed: str, word: str) -> None:
    assert spell_out(printed) == word


@given(st.text())
def test_anything_else_is_unknown_never_done(word: str) -> None:
    known = {name for name, _, _ in EVERY} | {code for _, code, _ in EVERY}
    if spell_out(word) not in known:
        assert from_slurm(word) is State.UNKNOWN
