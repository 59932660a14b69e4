"""Runs that SLURM starts again go on from their checkpoint."""

from __future__ import annotations

# counts its epochs in a file of the checkpoint directory; knows nothing of time limits; ends when the test lets it
EPOCHS_SCRIPT = """
import os, pathlib, sys, time
import ems
go = pathlib.Path(os.environ["EMS_ROOT"]) / "go"
epochs = int(sys.argv[2])
state = pathlib.Path(ems.checkpoint()) / "epoch"
first = int(state.read_text()) if state.exists() else 0
for epoch in range(first, epochs):
    ems.log(step=epoch, loss=1 / (epoch + 1))
    print(f"epoch {epoch} of attempt {ems.attempt()}", flush=True)
    aside = state.with_suffix(".new")
    aside.write_text(str(epoch + 1))
    aside.rename(state)
    time.sleep(0.5)
while not go.exists():
    time.sleep(0.05)
print("trained", epochs, flush=True)
"""


def let_end(lab):
    (lab.project / ".ems" / "go").touch()


def curve(lab, experiment, index=0):
    """Steps and values of the loss as the report sees them: of the chain of attempts that led to the end."""
    sql = "SELECT step, value FROM curves WHERE experiment = ? AND run = ? AND metric = 'loss' ORDER BY step, attempt"
    return dict(lab.query(sql, experiment, index))


def assert_all_epochs(lab, experiment, epochs, index=0):
    assert curve(lab, experiment, index) == {epoch: 1 / (epoch + 1) for epoch in range(epochs)}
    log = (lab.run_dir(experiment, index) / "stdout.log").read_text()
    assert [line for line in log.splitlines() if line.startswith("trained")] == [f"trained {epochs}"]


def test_time_limit_requeues_and_resumes_from_the_checkpoint(lab):
    """SLURM counts limits in minutes: a training of 55 s under a limit of 1 min, warned 10 s and more before it."""
    lab.write("train.py", EPOCHS_SCRIPT)
    words = ("--time", "1", "--grace", "5", "--max-requeues", "9")
    experiment = lab.parrun("train.py", "--set", "epochs=110", *words)
    let_end(lab)
    lab.slurm.wait_for_empty_queue(900)
    lab.harvest()
    assert lab.states(experiment) == {0: "COMPLETED"}
    attempts = lab.attempts(experiment)[0]
    assert len(attempts) >= 2
    assert [a["state"] for a in attempts] == ["PENDING"] * (len(attempts) - 1) + ["COMPLETED"]
    assert {a["reason"] for a in attempts[:-1]} == {"time limit"}
    assert len({a["job"] for a in attempts}) == 1, "requeued, not submitted anew"
    assert_all_epochs(lab, experiment, 110)


def test_requeues_at_the_time_limit_are_bounded(lab):
    """The signal that SLURM sends before the limit is sent by hand, to the task that has the id of its array."""
    lab.write("train.py", EPOCHS_SCRIPT)
    experiment = lab.parrun("train.py", "--set", "epochs=1,1000", "--max-requeues", "1", "--grace", "2")
    let_end(lab)
    for attempt in (1, 2):
        log = lab.run_dir(experiment, 1) / "stdout.log"
        lab.wait_until(
            lambda attempt=attempt, log=log: log.exists() and f"of attempt {attempt}" in log.read_text(), 180, "start"
        )
        lab.harvest()
        lab.slurm.run("scancel", "--signal=USR1", "--batch", lab.attempts(experiment)[1][-1]["job"])
    lab.slurm.wait_for_empty_queue()
    lab.harvest()
    assert lab.states(experiment) == {0: "COMPLETED", 1: "FAILED"}
    attempts = lab.attempts(experiment)
    assert [(a["state"], a["reason"]) for a in attempts[1]] == [("PENDING", "time limit"), ("FAILED", "time limit")]
    assert [path.name for path in (lab.run_dir(experiment, 0) / "attempts").iterdir()] == ["1.json"], "was run again"


def test_requeue_by_an_administrator_resumes(lab):
    lab.write("train.py", EPOCHS_SCRIPT)
    experiment = lab.parrun("train.py", "--set", "epochs=24", "--grace", "2")
    lab.wait_for_start(experiment, 0)
    lab.harvest()
    lab.slurm.run("scontrol", "requeue", lab.attempts(experiment)[0][0]["job"])
    let_end(lab)
    lab.slurm.wait_for_empty_queue()
    lab.harvest()
    assert lab.states(experiment) == {0: "COMPLETED"}
    assert [a["state"] for a in lab.attempts(experiment)[0]] == ["PENDING", "COMPLETED"]
    assert_all_epochs(lab, experiment, 24)


def test_lost_node_is_node_fail_and_the_run_goes_on_elsewhere(lab):
    lab.write("train.py", EPOCHS_SCRIPT)
    experiment = lab.parrun("train.py", "--set", "epochs=12,13,14,16")
    lab.wait_for_start(experiment, 0, 1, 2, 3)
    lab.harvest()
    attempts = lab.attempts(experiment)
    lost_node = attempts[0][0]["host"]
    lost = [index for index, each in attempts.items() if each[0]["host"] == lost_node]
    jobs = {attempts[index][0]["job"] for index in lost}

    def requeued():
        queue = {job: state for job, state, _ in lab.slurm.queue()}
        return all(queue.get(job) == "PENDING" for job in jobs)

    [other] = set(lab.slurm.node_names) - {lost_node}
    with lab.slurm.drained(other):  # so that they do not go on before the test has looked
        lab.slurm.kill_node(lost_node)
        lab.wait_until(requeued, 180, "SLURM to miss the node")
        lab.harvest()
        waiting = lab.states(experiment)
        assert {waiting[index] for index in lost} == {"PENDING"}, "NODE_FAIL and requeued is not the end of a run"
    let_end(lab)
    lab.slurm.wait_for_empty_queue()
    lab.harvest()
    assert lab.states(experiment) == dict.fromkeys(range(4), "COMPLETED")
    attempts = lab.attempts(experiment)
    assert all(len(attempts[index]) == 2 for index in lost)
    assert all(len(attempts[index]) == 1 for index in range(4) if index not in lost)
    for index in lost:
        first, last = attempts[index]
        assert first["host"] == lost_node
        assert first["state"] != "COMPLETED"
        assert first["state"] != "RUNNING", "the lost attempt is known to have ended"
        assert last["host"] != lost_node
    for index, epochs in enumerate((12, 13, 14, 16)):
        assert_all_epochs(lab, experiment, epochs, index)


def test_preempted_run_goes_on_when_its_node_is_free_again(lab):
    lab.write("train.py", EPOCHS_SCRIPT)
    experiment = lab.parrun("train.py", "--set", "epochs=30,31", "--grace", "3")
    lab.wait_for_start(experiment, 0, 1)
    urgent = ("--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap", "exec sleep 2")
    job = lab.slurm.run("sbatch", "--parsable", *urgent)
    lab.wait_until(lambda: not lab.slurm.queue(job), 300, "the end of the urgent job")
    let_end(lab)
    lab.slurm.wait_for_empty_queue()
    lab.harvest()
    assert lab.states(experiment) == {0: "COMPLETED", 1: "COMPLETED"}
    for each in lab.attempts(experiment).values():
        assert [a["state"] for a in each] == ["PENDING", "COMPLETED"]
        # SLURM 22.05 tells a preempted job no more than one that an administrator requeues
        assert each[0]["reason"] in ("preempted", "terminated by SLURM")
    assert_all_epochs(lab, experiment, 30, 0)
    assert_all_epochs(lab, experiment, 31, 1)
