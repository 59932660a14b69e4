"""SLURM's words for the state of a job, mapped explicitly: nothing is "done" because it is not "running".

Words and codes are those of "Job State Codes" (https://slurm.schedmd.com/job_state_codes.html) and of squeue(1).
"""

from __future__ import annotations

from ems.model import State

# A word is PENDING where the run will (still) start by itself or when somebody releases it, RUNNING where it holds
# its resources, and finished only where SLURM will not touch the job again. PREEMPTED, NODE_FAIL and the like are what
# is left of a job that was *not* requeued; a requeued one is PENDING, REQUEUED or COMPLETING in the queue.
_WORDS = {
    "PENDING": State.PENDING,
    "CONFIGURING": State.PENDING,  # has nodes, which still boot: the script has not started
    "POWER_UP_NODE": State.PENDING,
    "EXPEDITING": State.PENDING,
    "REQUEUED": State.PENDING,
    "REQUEUE_FED": State.PENDING,
    "REQUEUE_HOLD": State.PENDING,
    "RESV_DEL_HOLD": State.PENDING,
    "SPECIAL_EXIT": State.PENDING,  # requeued and held, for a reason of the site
    "RUNNING": State.RUNNING,
    "COMPLETING": State.RUNNING,
    "RESIZING": State.RUNNING,
    "SIGNALING": State.RUNNING,
    "STAGE_OUT": State.RUNNING,
    "STOPPED": State.RUNNING,
    "SUSPENDED": State.RUNNING,
    "UPDATE_DB": State.RUNNING,
    "COMPLETED": State.COMPLETED,
    "CANCELLED": State.CANCELLED,
    "BOOT_FAIL": State.FAILED,
    "DEADLINE": State.FAILED,
    "FAILED": State.FAILED,
    "LAUNCH_FAILED": State.FAILED,
    "NODE_FAIL": State.FAILED,
    "OUT_OF_MEMORY": State.FAILED,
    "PREEMPTED": State.FAILED,
    "RECONFIG_FAIL": State.FAILED,
    "TIMEOUT": State.FAILED,
    "REVOKED": State.UNKNOWN,  # a sibling cluster of a federation runs it: this one cannot say
}
_CODES = {
    "BF": "BOOT_FAIL",
    "CA": "CANCELLED",
    "CD": "COMPLETED",
    "CF": "CONFIGURING",
    "CG": "COMPLETING",
    "DL": "DEADLINE",
    "F": "FAILED",
    "LF": "LAUNCH_FAILED",
    "NF": "NODE_FAIL",
    "OOM": "OUT_OF_MEMORY",
    "PD": "PENDING",
    "PR": "PREEMPTED",
    "PU": "POWER_UP_NODE",
    "R": "RUNNING",
    "RD": "RESV_DEL_HOLD",
    "RF": "REQUEUE_FED",
    "RH": "REQUEUE_HOLD",
    "RQ": "REQUEUED",
    "RS": "RESIZING",
    "RV": "REVOKED",
    "S": "SUSPENDED",
    "SE": "SPECIAL_EXIT",
    "SI": "SIGNALING",
    "SO": "STAGE_OUT",
    "ST": "STOPPED",
    "TO": "TIMEOUT",
}


def spell_out(word: str) -> str:
    """Return SLURM's long word for what squeue, sacct or scontrol printed, without what follows it.

    ``"CANCELLED by 1000"`` -> ``"CANCELLED"``, ``"CG"`` -> ``"COMPLETING"``, ``"OUT_OF_ME+"`` (sacct cuts at the width
    of a column) -> ``"OUT_OF_MEMORY"``; an unknown word comes back as it is.
    """
    first = (word.split() or [""])[0].upper()
    if first.endswith("+"):
        fits = [known for known in _WORDS if known.startswith(first[:-1])]
        first = fits[0] if len(fits) == 1 else first
    return _CODES.get(first, first)


def from_slurm(word: str) -> State:
    """Return the state for SLURM's word, compact code or ``"CANCELLED by UID"``; UNKNOWN for any other."""
    return _WORDS.get(spell_out(word), State.UNKNOWN)
