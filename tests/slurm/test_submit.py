"""What ``ems parrun`` says and does around a submission to a real SLURM."""

from __future__ import annotations

import re
import sys

WORDS = ("--on", "slurm", "--python", sys.executable)


def test_wait_exits_1_if_a_run_failed_and_says_how_to_rerun_it(lab):
    lab.write("train.py", "import sys\nprint('acc=1')\nif sys.argv[2] == '1':\n    raise ValueError('too hot')\n")
    said = lab.ems("parrun", "train.py", "--set", "i=0..2", *WORDS, "--wait", code=1)
    assert re.search(r"submitted array job \d+ in .* you may close the laptop", said.stdout)
    assert "1 failed" in said.stdout
    assert "ValueError" in said.stdout
    assert re.search(r"ems rerun \S+ ", said.stdout)
    [(experiment,)] = lab.query("SELECT id FROM experiments")
    assert lab.states(experiment) == {0: "COMPLETED", 1: "FAILED", 2: "COMPLETED"}
    assert {m["acc"] for m in lab.metrics(experiment).values()} == {1}


def test_what_completed_before_is_not_submitted_again(lab):
    lab.write("train.py", "print('acc=1')")
    lab.ems("parrun", "train.py", "--set", "i=0..2", *WORDS, "--wait")
    lab.slurm.wait_for_empty_queue()  # a job ends a moment after its run
    assert "nothing to do" in lab.ems("parrun", "train.py", "--set", "i=0..2", *WORDS).stdout
    assert lab.slurm.queue() == []
    experiment = lab.parrun("train.py", "--set", "i=0..4")
    lab.slurm.wait_for_empty_queue()
    lab.harvest()
    params = lab.query("SELECT params FROM runs WHERE experiment_id = ? ORDER BY idx", experiment)
    assert params == [('{"i":3}',), ('{"i":4}',)]


def test_dry_run_submits_nothing_and_shows_the_script_that_is_submitted(lab):
    lab.write("train.py", "print('acc=1')")
    words = ("parrun", "train.py", "--set", "i=0..2", "--gres", "gpu:1", "--time", "10", *WORDS, "--again")
    shown = lab.ems(*words, "--dry-run").stdout
    assert lab.slurm.queue() == []
    assert lab.query("SELECT count(*) FROM experiments") == [(0,)]
    assert "0.5 = 3 runs x 1 GPU x 10" in shown
    lab.ems(*words)
    [(experiment,)] = lab.query("SELECT id FROM experiments")
    script = (lab.project / ".ems" / "experiments" / experiment / "chunks" / "1.sh").read_text()

    def plain(text):
        return re.sub(r"\b[0-9a-f]{8}\b", "ID", text)

    options = [line for line in script.splitlines() if line.startswith(("#SBATCH", "exec"))]
    assert len(options) > 5
    assert [line for line in options if plain(line) not in plain(shown)] == []
    lab.slurm.wait_for_empty_queue()
