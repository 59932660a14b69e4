"""Kill -9 at every step of handing a chunk over; many at once. sbatch and squeue are scripts that keep a book.

The same is done with a real SLURM in tests/slurm/test_executor.py.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ems.node import feed, records
from ems.node.records import ExperimentFiles

SBATCH = """#!/bin/sh
if [ -e "$BOOK.slow" ]; then
    touch "$BOOK.asked"
    while [ -e "$BOOK.slow" ]; do sleep 0.02; done
fi
if [ -e "$BOOK.full" ]; then
    echo "sbatch: error: AssocMaxSubmitJobLimit" >&2
    exit 1
fi
for last; do :; done  # the script's path
echo "$last" >> "$BOOK"
wc -l < "$BOOK"
"""
SQUEUE = """#!/bin/sh
for last; do :; done  # --name=ems-EXP.C
name="${last#--name=ems-}"
grep -n "/${name%.*}/chunks/${name##*.}.sh$" "$BOOK" | cut -d: -f1
exit 0
"""
# Python tells an audit hook before it opens, links, removes or locks a file and before it starts a process.
KILLED_AT = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from ems.node import feed
from ems.node.records import ExperimentFiles
left = int(sys.argv[4])

def hook(event, args):
    global left
    if event in ("open", "os.link", "os.remove", "os.rename", "os.listdir", "fcntl.flock", "subprocess.Popen"):
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(hook)
feed.feed(ExperimentFiles(sys.argv[2], sys.argv[3]))
os._exit(0)
"""
SOURCE = str(Path(__file__).parents[2])
LIMIT_S = 120.0


@pytest.fixture
def book(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the stand-in scheduler was handed, a line each."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE)):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    # the machine's own sacct, if there is one, has no controller to ask
    monkeypatch.setattr(feed.shutil, "which", lambda name: None)
    monkeypatch.setenv("BOOK", str(tmp_path / "book"))
    (tmp_path / "book").touch()
    return tmp_path / "book"


@pytest.fixture
def files(tmp_path: Path) -> ExperimentFiles:
    return make_experiment(tmp_path / "root", "7f3a9c21", 2)


def make_experiment(root: Path, name: str, chunks: int) -> ExperimentFiles:
    files = ExperimentFiles(root, name)
    Path(files.chunks).mkdir(parents=True)
    for number in range(1, chunks + 1):
        chunk = {"chunk": number, "start": 0, "stop": 3, "tasks": 3, "created_at": records.now()}
        records.write_atomic(files.chunk(number), records.dump(chunk))
        Path(files.chunk(number, "sh")).write_text("#!/bin/sh\n#SBATCH --array=0-2\n")
    return files


def feed_killed_at(files: ExperimentFiles, step: int) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-I", "-c", KILLED_AT, SOURCE, files.root, files.id, str(step)]
    return subprocess.Popen(argv, stderr=subprocess.DEVNULL)


def settle(files: ExperimentFiles, limit_s: float = LIMIT_S) -> None:
    """Feed as later commands do, until nothing waits."""
    deadline = time.monotonic() + limit_s
    while feed.waiting(files):
        feed.feed(files)
        assert time.monotonic() < deadline, os.listdir(files.chunks)


def test_killed_at_every_step_each_chunk_is_handed_over_once(tmp_path: Path, book: Path) -> None:
    steps = 0
    while True:
        files = make_experiment(tmp_path / "root", f"e{steps}", 2)
        status = feed_killed_at(files, steps).wait(LIMIT_S)
        settle(files)
        taken = [Path(line).name for line in book.read_text().splitlines() if f"/e{steps}/" in line]
        assert sorted(taken) == ["1.sh", "2.sh"], f"killed at step {steps}"
        # the book's line number is the job's id: what is recorded is what was taken
        lines = book.read_text().splitlines()
        for number in (1, 2):
            assert lines[int(feed.job_of(files, number) or 0) - 1] == files.chunk(number, "sh")
        steps += 1
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert steps > 20, "the hook saw nothing"


def test_killed_while_sbatch_asks(files: ExperimentFiles, book: Path) -> None:
    slow, asked = Path(f"{book}.slow"), Path(f"{book}.asked")
    slow.touch()
    submitter = feed_killed_at(files, 10**6)
    wait_for(asked.exists)
    submitter.kill()
    submitter.wait()
    assert feed.feed(files) == [], "sbatch lives on without its parent: nobody else may ask now"
    slow.unlink()
    settle(files)
    assert len(book.read_text().splitlines()) == 2


def test_many_at_once(files: ExperimentFiles, book: Path) -> None:
    feeders = [feed_killed_at(files, 10**6) for _ in range(6)]
    assert [feeder.wait(LIMIT_S) for feeder in feeders] == [0] * 6
    settle(files)
    assert len(book.read_text().splitlines()) == 2


def test_a_full_queue_and_then_room(files: ExperimentFiles, book: Path) -> None:
    full = Path(f"{book}.full")
    full.touch()
    with pytest.raises(feed.RefusedError) as refused:
        feed.feed(files)
    assert refused.value.is_full
    assert feed.waiting(files) == [1, 2]
    full.unlink()
    assert [number for number, _ in feed.feed(files)] == [1, 2]


def test_an_sbatch_that_never_answers_is_ended_and_asked_about(
    files: ExperimentFiles, book: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Path(f"{book}.slow")
    slow.touch()
    monkeypatch.setattr(feed, "_TIMEOUT_S", 0.3)
    with pytest.raises(feed.UnsureError, match="no answer"):
        feed.feed(files)
    assert feed.waiting(files) == [1, 2]
    slow.unlink()
    monkeypatch.setattr(feed, "_TIMEOUT_S", 30)
    settle(files)
    assert len(book.read_text().splitlines()) == 2


def test_cancelled_in_doubt_is_not_lost(files: ExperimentFiles, book: Path) -> None:
    Path(files.chunk(1, "intent")).write_text("{}")  # killed after sbatch had answered
    book.write_text(files.chunk(1, "sh") + "\n")
    feed.cancel_waiting(files)
    assert [feed.job_of(files, number) for number in (1, 2)] == ["1", feed.CANCELLED]


def test_held_chunks_stay_back(files: ExperimentFiles, book: Path) -> None:
    hold = Path(files.dir, "hold")
    hold.touch()
    assert feed.feed(files) == []
    hold.unlink()
    assert len(feed.feed(files)) == 2


def test_the_last_run_feeds_the_next_chunk(files: ExperimentFiles, book: Path) -> None:
    feed.feed(files, [1])
    assert feed.waiting(files) == [2]
    full = Path(f"{book}.full")
    full.touch()
    for index in (0, 1):
        feed.after_run(files, 1, index)
    assert feed.waiting(files) == [2]
    full.unlink()
    feed.after_run(files, 1, 2)
    assert feed.waiting(files) == []
    assert len(book.read_text().splitlines()) == 2


def wait_for(condition: object, limit_s: float = LIMIT_S) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]  # a callable
        assert time.monotonic() < deadline
        time.sleep(0.01)
