"""The script of a job that comes again, run by a real shell; SLURM's commands are stand-ins that keep a queue."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from ems.executor import recurring
from ems.executor.recurring import Recurring
from ems.model import Resources

COMMANDS = {
    "sbatch": """
if [ -e "$QUEUE/full" ]; then
    echo x >> "$QUEUE/refused"
    [ "$(wc -l < "$QUEUE/refused")" -lt 3 ] && { echo "sbatch: error: MaxSubmitJobsPerUser" >&2; exit 1; }
fi
job=$((100 + $(ls "$QUEUE" | grep -c '^[0-9]')))
echo "$*" > "$QUEUE/$job"
echo $job
""",
    "squeue": """
echo "$*" >> "$QUEUE/asked"
for job in $(ls "$QUEUE" | grep '^[0-9]'); do
    case "$*" in *"-j $job "*) echo $job ;; *-u*) echo "$job|PENDING|BeginTime|N/A" ;; esac
done
""",
    "scontrol": 'echo "$*" >> "$QUEUE/updated"',
    "scancel": 'for job in "$@"; do rm -f "$QUEUE/$job"; done',
}


@pytest.fixture
def queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder, programs = tmp_path / "queue", tmp_path / "bin"
    folder.mkdir()
    programs.mkdir()
    for name, text in COMMANDS.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    monkeypatch.setenv("QUEUE", str(folder))
    monkeypatch.setattr(recurring, "_REFUSED_S", 0)
    return folder


def jobs(queue: Path) -> list[str]:
    return sorted(path.name for path in queue.glob("[0-9]*"))


def begin(job: Recurring, number: str, queue: Path) -> int:
    """Let a job of the queue run to its end."""
    (queue / number).unlink(missing_ok=True)
    env = {**os.environ, "SLURM_JOB_ID": number}
    return subprocess.run(["bash", job.path("sh")], env=env, check=False, timeout=120).returncode


def test_one_successor_waits_whatever_becomes_of_the_job(queue: Path, tmp_path: Path) -> None:
    job = Recurring(tmp_path, "driver", "ems-tune-1")
    job.write(["sh", "-c", "exit 3"], Resources(), 300)
    job.submit(0.0)
    job.submit(0.0)
    assert jobs(queue) == ["100"], "it is there already"
    assert (job.successor(), begin(job, "100", queue)) == ("100", 3)
    (after,) = jobs(queue)
    assert job.successor() == after
    assert "--begin=now+300" in (queue / after).read_text()
    assert not (queue / "updated").exists()

    asked = (queue / "asked").read_text()
    begin(job, "99", queue)  # requeued from a lost node, or doubled
    assert jobs(queue) == [after], "the one that waits is enough"
    assert (queue / "asked").read_text() != asked

    os.rename(job.path("job"), job.path("job.called"))  # a run has called it forward
    job.write(["sh", "-c", "kill -9 $$"], Resources(), 300)
    begin(job, after, queue)
    (last,) = jobs(queue)
    assert (queue / "updated").read_text() == f"update JobId={last} StartTime=now+2\n", "killed, it comes again at once"


def test_a_refused_successor_is_asked_for_until_it_is_taken_but_not_at_the_end(queue: Path, tmp_path: Path) -> None:
    job = Recurring(tmp_path, "driver", "ems-tune-1")
    job.write(["true"], Resources(), 300)
    job.submit(0.0)
    (queue / "full").touch()
    begin(job, "100", queue)
    assert len((queue / "refused").read_text().split()) == 3
    assert len(jobs(queue)) == 1
    assert job.successor() == jobs(queue)[0]
    assert "--begin=now+2" in (queue / jobs(queue)[0]).read_text()

    (queue / "refused").unlink()
    (last,) = jobs(queue)
    job.write(["rm", str(job.path("job"))], Resources(), 300)  # as the last wake of a study does
    begin(job, last, queue)
    assert jobs(queue) == []


def test_the_end_takes_what_waits_out_of_the_queue(queue: Path, tmp_path: Path) -> None:
    job = Recurring(tmp_path, "driver", "ems-tune-1")
    job.write(["true"], Resources(), 300)
    job.submit(60.0)
    job.end()
    assert (jobs(queue), job.successor()) == ([], "")
