"""The cluster of the tests is a real one, and leaves nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ems.cluster import usage
from ems.cluster.cost import By, costs, grouped
from ems.cluster.energy import factors
from ems.cluster.ledger import Event, Span
from ems.cluster.usage import Usage


def mentioning(text: str) -> list[str]:
    """Command lines of the processes that mention ``text``."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if text in line and int(entry.name) != os.getpid():
            found.append(line)
    return found


def test_nodes_have_gpus_and_jobs_are_accounted(slurm, testbed, tmp_path):
    job = slurm.run(
        *("sbatch", "--parsable", "--array=0-3", "--gres=gpu:1", f"--output={tmp_path}/%a"),
        *("--wrap", "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES"),
    )
    slurm.wait_for_empty_queue()
    seen = [(tmp_path / str(task)).read_text().split() for task in range(4)]
    assert all(node in slurm.node_names and gpu in "0123" and len(gpu) == 1 for node, gpu in seen)

    def states():
        return slurm.run("sacct", "-n", "-X", "-P", "-j", job, "-o", "state").split()

    testbed.wait_until(lambda: states() == ["COMPLETED"] * 4, 180, "accounting")


def test_what_jobs_cost_is_what_accounting_says_they_had(slurm, testbed, tmp_path):
    """Who has a part of a node's CPUs pays that part of its price for that while; the rest is idle."""
    submit = ("sbatch", "--parsable", "--cpus-per-task=2", "--job-name=ems-7f3a9c21.0", f"--output={tmp_path}/out")
    job = slurm.run(*submit, "--wrap", "sleep 2")
    slurm.wait_for_empty_queue()

    def ours():
        said = slurm.run("sh", "-s", stdin=usage.SCRIPT)
        uses = [each for each in usage.parse(said, datetime.now(UTC)).uses if each.job == job]
        return [each for each in uses if each.end is not None]

    testbed.wait_until(lambda: len(ours()) == 1, 180, "accounting")
    [use] = ours()
    assert (use.experiment, use.user, len(use.nodes)) == ("7f3a9c21", "root", 1)
    assert use.cpus >= 2
    begin, end = use.begin - timedelta(hours=1), use.end + timedelta(hours=1)
    machine = Event("i", use.nodes[0], "gpu", "", "", False, 8.0, 0, "", 8, "start", begin.isoformat(), "eve")
    found = grouped(costs([Span(machine, end)], Usage((use,)), factors(None), end), By.EXPERIMENT)
    hours = (use.end - use.begin) / timedelta(hours=1)
    assert hours >= 1 / 3600
    assert found["7f3a9c21"].usd == pytest.approx(use.cpus * hours)
    assert found["idle"].usd == pytest.approx(8.0 * (2 + hours) - use.cpus * hours)


def test_submit_limit_is_enforced_and_taken_away(slurm):
    submit = ("sbatch", "--parsable", "--array=0-4", "--output=/dev/null", "--wrap", "true")
    with slurm.limits(MaxSubmitJobs=3), pytest.raises(RuntimeError, match="AssocMaxSubmitJobLimit"):
        slurm.run(*submit)
    slurm.run(*submit)
    slurm.wait_for_empty_queue()


def test_lost_node_takes_its_jobs_along(slurm, testbed, tmp_path):
    """That SLURM finds out, and requeues, is seen in test_requeue.py."""
    out, waited = tmp_path / "out", tmp_path / "waited"
    waited.touch()
    slurm.run("sbatch", f"--output={out}", "--wrap", f"echo $SLURMD_NODENAME; exec tail -f {waited}")
    testbed.wait_until(lambda: mentioning(f"tail -f {waited}") != [], 180, "start")
    slurm.kill_node(out.read_text().strip())
    assert not mentioning(f"tail -f {waited}")


def test_second_cluster_beside_the_first_ends_with_its_killed_holder(slurm, testbed):
    """Two at once do not disturb each other, and kill -9 of the holder leaves no process and no file."""
    command = [sys.executable, testbed.__file__, "--", "sh", "-c"]
    job, held = (f"sleep 4321{number}.{os.getpid()}" for number in (1, 2))  # as in no other process here
    with subprocess.Popen(
        [*command, f"sbatch --output=/dev/null --wrap 'exec {job}'; echo $SLURM_CONF; exec {held}"],
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert "Submitted" in holder.stdout.readline()
        folder = str(Path(holder.stdout.readline().strip()).parent)
        assert folder != str(slurm.dir)
        testbed.wait_until(lambda: mentioning(job) != [], 180, "job on the second cluster")
        holder.send_signal(signal.SIGKILL)
    for trace in (folder, job, held):
        testbed.wait_until(lambda trace=trace: not mentioning(trace), 180, f"end of {trace}")
    testbed.wait_until(lambda: not Path(folder).exists(), 180, "removal of the folder")
    slurm.run("squeue")


def test_job_over_its_memory_is_out_of_memory(slurm, testbed, tmp_path):
    if not slurm.enforce_memory:
        pytest.skip("no v1 memory controller: SLURM 22.05 cannot tell OUT_OF_MEMORY here")
    greedy = "held = [bytearray(b'x' * 2**20) for _ in range(500)]"
    job = slurm.run(
        *("sbatch", "--parsable", "--mem=40M", f"--output={tmp_path}/out"),
        "--wrap",
        f'exec {sys.executable} -c "{greedy}"',
    )
    slurm.wait_for_empty_queue()

    def state():
        return slurm.run("sacct", "-n", "-X", "-P", "-j", job, "-o", "state")

    testbed.wait_until(lambda: state() == "OUT_OF_MEMORY", 180, "accounting")


def test_reaper_kills_orphans_too(testbed, tmp_path):
    """What a daemon starts and disowns ends with it: this is why a killed node loses its jobs."""
    orphan = tmp_path / "orphan"
    orphan.touch()
    daemon = testbed.Daemon(
        ["sh", "-c", f"setsid tail -f {orphan} & exec sleep 43214"], dict(os.environ), tmp_path / "log"
    )
    testbed.wait_until(lambda: mentioning(f"tail -f {orphan}") != [], 180, "start")
    daemon.kill()
    assert not mentioning(f"tail -f {orphan}")
    assert not daemon.is_alive


def test_reaper_ends_when_its_daemon_does(testbed, tmp_path):
    daemon = testbed.Daemon(["sh", "-c", "exit 3"], dict(os.environ), tmp_path / "log")
    testbed.wait_until(lambda: not daemon.is_alive, 180, "end")
    daemon.kill()  # which is no error


@pytest.mark.parametrize(("required", "outcome"), [("", "skipped=1"), ("slurm", "errors=1")])
def test_without_slurm_tests_are_skipped_unless_it_is_required(testbed, tmp_path, required, outcome):
    for name in ("conftest.py", "testbed.py", "reaper.py"):
        source = Path(testbed.__file__).with_name(name).read_text()
        (tmp_path / name).write_text(source.replace('"munged", "mariadbd"', '"no-such-program"'))
    (tmp_path / "test_one.py").write_text("def test_one(testbed): pass")
    options = ("-p", "no:cacheprovider", "-o", "markers=slurm", "-rA", "--rootdir", str(tmp_path), str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        env={**os.environ, "EMS_REQUIRE": required},
        capture_output=True,
        text=True,
    )
    kind, number = outcome.split("=")
    assert f"{number} {kind.removesuffix('s') if kind == 'errors' else kind}" in done.stdout, done.stdout
    assert "needs no-such-program; as root on Debian or Ubuntu: sh tests/slurm/install.sh" in done.stdout
    assert done.returncode == (1 if required else 0)
