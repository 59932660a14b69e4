"""A budget kept by the array tasks of a real SLURM: who waits for others, and what happens when it is spent."""

from __future__ import annotations

import json

# runs until the file `go` or `go-INDEX` is there
WAITING_SCRIPT = """
import os, sys, time
print("started", flush=True)
names = ["go", "go-" + os.environ["EMS_INDEX"]]
for _ in range(12_000):
    if any(os.path.exists(os.path.join(os.environ["EMS_ROOT"], name)) for name in names):
        break
    time.sleep(0.05)
print("acc=1")
"""


def test_tasks_wait_in_the_queue_for_what_others_do_not_take(lab):
    """Half an hour of one CPU is put aside for each of three runs; the fourth fits only once one has ended early."""
    lab.write("train.py", WAITING_SCRIPT)
    sweep = ("--set", "i=0..7", "--time", "30", "--cpus", "1")
    experiment = lab.parrun("train.py", *sweep, "--budget", "1.5cpuh")
    root = lab.run_dir(experiment, 0).parents[3]
    lab.wait_for_start(experiment, 0, 1, 2)
    job = lab.slurm.run("squeue", "-h", "-o", "%F").split()[0]
    assert "ArrayTaskThrottle=3" in lab.slurm.run("scontrol", "show", "job", job)

    (root / "go-0").touch()
    lab.wait_until(lambda: "ArrayTaskThrottle=2" in lab.slurm.run("scontrol", "show", "job", job), 180, "the throttle")
    lab.wait_until(lambda: "Restarts=1" in lab.slurm.run("scontrol", "show", "job", f"{job}_3"), 180, "the requeue")
    assert not (lab.run_dir(experiment, 3) / "attempts").exists(), "a run that waits for means was begun"
    lab.harvest()
    states = lab.states(experiment)
    assert states == {0: "COMPLETED", 1: "RUNNING", 2: "RUNNING", **dict.fromkeys(range(3, 8), "PENDING")}

    (root / "go").touch()
    lab.wait_until(lambda: all(lab.run_dir(experiment, i).exists() for i in (4, 5, 6, 7)), 300, "the others")
    # SLURM lets what is requeued wait a while, which may be over by now
    lab.slurm.run("scontrol", "update", f"JobId={job}_3", "StartTime=now", check=False)
    lab.slurm.wait_for_empty_queue()
    lab.harvest()
    assert lab.states(experiment) == dict.fromkeys(range(8), "COMPLETED")
    assert all(len(each) == 1 for each in lab.attempts(experiment).values())


def test_what_a_spent_budget_leaves_out_takes_no_node(lab):
    lab.write("train.py", "import time\ntime.sleep(1)\nprint('acc=1')")
    words = ("--set", "i=0..19", "--cpus", "1", "--max-parallel", "1", "--budget", f"{2.5 / 3600:.9f}cpuh")
    experiment = lab.parrun("train.py", *words)
    lab.slurm.wait_for_empty_queue()
    lab.harvest()
    states = lab.states(experiment)
    done = sum(state == "COMPLETED" for state in states.values())
    assert done in (1, 2)
    assert set(states.values()) == {"COMPLETED", "CANCELLED"}
    attempts = lab.attempts(experiment)
    assert sum(map(len, attempts.values())) == done + 1, "the first that is refused cancels the others"
    rows = json.loads(lab.ems("report", experiment, "--columns", "all", "--json").stdout)
    assert {row["reason"] for row in rows if row["state"] == "CANCELLED"} == {"budget"}
    status = json.loads(lab.ems("status", experiment, "--json").stdout)[0]
    assert (status["cancelled"], status["budget"]["refused"]) == (20 - done, 20 - done)
