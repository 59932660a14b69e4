"""Arrays of runs on a real SLURM: devices, limits, cancelling."""

from __future__ import annotations

from collections import Counter
from itertools import groupby, pairwise
from operator import itemgetter

import pytest

GPU_SCRIPT = """
import json, os, sys, time
time.sleep(0.2)
devices = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
with open("results.json", "w") as file:
    json.dump({"devices": len(devices), "device": devices[0] if devices else "none", "i": int(sys.argv[2])}, file)
"""

GREEDY_SCRIPT = """
import sys
held = [bytearray(b"x" * 2**20) for _ in range(500 if sys.argv[2] == "1" else 1)]
print("acc=1")
"""

# runs until the file `go` is there, or for ten minutes
WAITING_SCRIPT = """
import os, sys, time
print("started", flush=True)
go = os.path.join(os.environ["EMS_ROOT"], "go")
for _ in range(12_000):
    if os.path.exists(go):
        break
    time.sleep(0.05)
"""


def test_each_of_50_runs_has_a_gpu_of_its_own(lab):
    lab.write("train.py", GPU_SCRIPT)
    experiment = lab.parrun("train.py", "--set", "i=0..49", "--gres", "gpu:1")
    lab.slurm.wait_for_empty_queue()
    lab.harvest()

    assert lab.states(experiment) == dict.fromkeys(range(50), "COMPLETED")
    metrics = lab.metrics(experiment)
    assert [metrics[index]["i"] for index in range(50)] == list(range(50))
    assert {metric["devices"] for metric in metrics.values()} == {1}
    attempts = lab.attempts(experiment)
    assert all(len(each) == 1 for each in attempts.values())
    assert {len(each[0]["gpus"].split(",")) for each in attempts.values()} == {1}
    assert len({each[0]["job"].split("_")[0] for each in attempts.values()}) == 1, "one array job"

    uses = sorted((a["host"], a["gpus"], a["started_at"], a["ended_at"]) for each in attempts.values() for a in each)
    devices = {key: list(group) for key, group in groupby(uses, key=itemgetter(0, 1))}
    assert set(devices) == {(node, str(gpu)) for node in lab.slurm.node_names for gpu in range(lab.slurm.gpus)}
    shared = [pair for each in devices.values() for pair in pairwise(each) if pair[0][3] > pair[1][2]]
    assert not shared, "a device was used by two runs at a time"


def test_experiment_larger_than_an_array_may_be(lab):
    lab.write("train.py", "print('acc=1')")
    with lab.slurm.configured(MaxArraySize=21):
        experiment = lab.parrun("train.py", "--set", "i=0..49")
        lab.slurm.wait_for_empty_queue()
    lab.harvest()
    assert lab.states(experiment) == dict.fromkeys(range(50), "COMPLETED")
    jobs = [each[0]["job"].split("_") for each in lab.attempts(experiment).values() if len(each) == 1]
    assert len(jobs) == 50, "each run ran once"
    sizes = sorted(len(list(group)) for _, group in groupby(sorted(jobs), key=itemgetter(0)))
    assert sizes == [8, 21, 21]
    assert max(int(task) for _, task in jobs) == 20


def test_experiment_larger_than_the_submit_limit_feeds_itself(lab):
    """No ems command runs between the submission and the end: workers hand over what waits."""
    lab.write("train.py", "print('acc=1')")
    with lab.slurm.limits(MaxSubmitJobs=9):
        experiment = lab.parrun("train.py", "--set", "i=0..29")
        runs = [lab.run_dir(experiment, index) / "attempts" / "1.json" for index in range(30)]
        lab.wait_until(lambda: all(path.exists() for path in runs), 300, "the last chunk")
        lab.slurm.wait_for_empty_queue()
    lab.harvest()
    assert lab.states(experiment) == dict.fromkeys(range(30), "COMPLETED")
    attempts = lab.attempts(experiment)
    assert all(len(each) == 1 for each in attempts.values())
    jobs = [each[0]["job"].split("_")[0] for each in attempts.values()]
    assert max(jobs.count(job) for job in jobs) <= 4


def test_full_queue_is_fed_by_the_next_command(lab):
    lab.write("train.py", "print('acc=1')")
    with lab.slurm.limits(MaxSubmitJobs=6):
        others = lab.slurm.run("sbatch", "--parsable", "--array=0-5", "-o/dev/null", "--wrap", "exec sleep 300")
        experiment = lab.parrun("train.py", "--set", "i=0..3")
        lab.harvest()
        assert lab.states(experiment) == dict.fromkeys(range(4), "PENDING")
        assert "1 array job to submit" in lab.ems("status").stdout
        lab.slurm.run("scancel", others)
        lab.slurm.wait_for_empty_queue()
        lab.ems("status")
        lab.wait_for_states(experiment, "COMPLETED")
    assert all(len(each) == 1 for each in lab.attempts(experiment).values())


def test_scancel_and_ems_cancel_of_one_run_leave_the_others(lab):
    lab.write("train.py", WAITING_SCRIPT)
    experiment = lab.parrun("train.py", "--set", "i=0..3", "--grace", "2")
    lab.wait_for_start(experiment, 0, 1, 2, 3)
    lab.harvest()
    assert lab.states(experiment) == dict.fromkeys(range(4), "RUNNING")

    lab.slurm.run("scancel", lab.attempts(experiment)[1][0]["job"])
    lab.ems("cancel", f"{experiment}/2")
    lab.wait_until(lambda: len(lab.slurm.queue()) == 2, 120, "end of the cancelled")
    lab.harvest()
    assert lab.states(experiment) == {0: "RUNNING", 1: "CANCELLED", 2: "CANCELLED", 3: "RUNNING"}

    (lab.project / ".ems" / "go").touch()
    lab.slurm.wait_for_empty_queue()
    lab.harvest()
    assert lab.states(experiment) == {0: "COMPLETED", 1: "CANCELLED", 2: "CANCELLED", 3: "COMPLETED"}
    assert [len(each) for each in lab.attempts(experiment).values()] == [1, 1, 1, 1], "nothing was requeued"


def test_cancel_of_what_is_pending_and_running(lab):
    lab.write("train.py", WAITING_SCRIPT)
    experiment = lab.parrun("train.py", "--set", "i=0..19", "--max-parallel", "2", "--grace", "2")
    lab.wait_for_start(experiment, 0, 1)
    lab.ems("cancel", experiment)
    lab.slurm.wait_for_empty_queue()
    lab.harvest()
    assert lab.states(experiment) == dict.fromkeys(range(20), "CANCELLED")


def test_max_parallel_bounds_the_runs_at_a_time(lab):
    lab.write("train.py", WAITING_SCRIPT)
    experiment = lab.parrun("train.py", "--set", "i=0..5", "--max-parallel", "2")
    lab.wait_for_start(experiment, 0, 1)
    (lab.project / ".ems" / "go").touch()
    lab.slurm.wait_for_empty_queue()
    lab.harvest()
    spans = [(a["started_at"], a["ended_at"]) for each in lab.attempts(experiment).values() for a in each]
    assert len(spans) == 6
    assert max(sum(start <= at < end for start, end in spans) for at, _ in spans) == 2


def test_pack_shares_an_array_task(lab):
    """4 runs at a time in each of 3 array tasks of 2 GPUs: each run sees one of them."""
    lab.write("train.py", GPU_SCRIPT)
    experiment = lab.parrun("train.py", "--set", "i=0..11", "--pack", "4", "--gres", "gpu:2")
    lab.slurm.wait_for_empty_queue()
    lab.harvest()
    assert lab.states(experiment) == dict.fromkeys(range(12), "COMPLETED")
    attempts = lab.attempts(experiment)
    assert all(len(each) == 1 for each in attempts.values())
    runs = Counter(each[0]["job"] for each in attempts.values())
    assert len(runs) <= 3
    assert {metric["devices"] for metric in lab.metrics(experiment).values()} == {1}
    used = {(each[0]["job"], lab.metrics(experiment)[index]["device"]) for index, each in attempts.items()}
    # one that comes late may find a single run left, or none
    assert len(used) == sum(min(2, n) for n in runs.values()), "both GPUs of each array task are used"


def test_over_its_memory_is_out_of_memory(lab):
    if not lab.slurm.enforce_memory:
        pytest.skip("no v1 memory controller: SLURM 22.05 cannot tell OUT_OF_MEMORY here")
    lab.write("train.py", GREEDY_SCRIPT)
    experiment = lab.parrun("train.py", "--set", "i=0..2", "--mem", "60M")
    lab.slurm.wait_for_empty_queue()
    said = lab.harvest().stdout
    assert lab.states(experiment) == {0: "COMPLETED", 1: "FAILED", 2: "COMPLETED"}
    assert "out of memory" in said.lower().replace("_", " ")
    attempt = lab.attempts(experiment)[1][-1]
    assert "memory" in attempt["reason"].lower()
    assert attempt["signal"] == "SIGKILL"

    lab.ems("rerun", experiment, "--failed", "--mem", "800M")
    lab.slurm.wait_for_empty_queue()
    lab.harvest()
    assert lab.states(experiment) == dict.fromkeys(range(3), "COMPLETED")
    assert [len(each) for each in lab.attempts(experiment).values()] == [1, 2, 1]


def test_worker_killed_before_it_could_record_gets_its_state_from_slurm(lab):
    lab.write("train.py", WAITING_SCRIPT)
    experiment = lab.parrun("train.py", "--set", "i=0..1")
    lab.wait_for_start(experiment, 0, 1)
    lab.harvest()
    lab.slurm.run("scancel", "--signal=KILL", "--batch", lab.attempts(experiment)[0][0]["job"])
    lab.wait_until(lambda: len(lab.slurm.queue()) == 1, 120, "end of the killed one")
    (lab.project / ".ems" / "go").touch()
    lab.slurm.wait_for_empty_queue()

    def settled():
        lab.harvest()
        return lab.states(experiment) == {0: "FAILED", 1: "COMPLETED"}

    lab.wait_until(settled, 120, "state from SLURM")
    [(slurm_state, reason)] = lab.query(
        "SELECT slurm_state, reason FROM runs WHERE experiment_id = ? AND idx = 0", experiment
    )
    assert slurm_state == "FAILED"
    assert reason


def test_accounting_away(lab):
    """Without slurmdbd there is no sacct and no sacctmgr; slurmctld knows enough."""
    lab.write("train.py", WAITING_SCRIPT)
    lab.slurm.stop_accounting()
    experiment = lab.parrun("train.py", "--set", "i=0..1")
    lab.wait_for_start(experiment, 0, 1)
    lab.harvest()
    assert lab.states(experiment) == {0: "RUNNING", 1: "RUNNING"}
    (lab.project / ".ems" / "go").touch()
    lab.slurm.wait_for_empty_queue()
    lab.harvest()
    assert lab.states(experiment) == {0: "COMPLETED", 1: "COMPLETED"}


def test_suspended_is_not_the_end(lab):
    lab.write("train.py", WAITING_SCRIPT)
    experiment = lab.parrun("train.py", "--set", "i=0..1")
    lab.wait_for_start(experiment, 0, 1)
    lab.harvest()
    job = lab.attempts(experiment)[0][0]["job"]
    lab.slurm.run("scontrol", "suspend", job)
    lab.harvest()
    assert set(lab.states(experiment).values()) <= {"RUNNING", "PENDING"}
    words = lab.query("SELECT slurm_state FROM runs WHERE experiment_id = ? ORDER BY idx", experiment)
    assert words == [("SUSPENDED",), ("RUNNING",)]
    lab.slurm.run("scontrol", "resume", job)
    (lab.project / ".ems" / "go").touch()
    lab.slurm.wait_for_empty_queue()
    lab.harvest()
    assert lab.states(experiment) == {0: "COMPLETED", 1: "COMPLETED"}


def test_what_sbatch_refuses_is_said_in_its_words_and_nothing_is_submitted(lab):
    lab.write("train.py", "print('acc=1')")
    said = lab.ems("parrun", "train.py", "--set", "i=0..3", "--on", "slurm", "--partition", "nonesuch", code=1)
    assert "invalid partition" in said.stderr.lower()
    assert "hint:" in said.stderr
    said = lab.ems("parrun", "train.py", "--set", "i=0..3", "--on", "slurm", "--gres", "gpu:99", code=1)
    assert "node configuration is not available" in said.stderr.lower()
    assert lab.query("SELECT count(*) FROM experiments") == [(0,)]
    assert lab.slurm.queue() == []
