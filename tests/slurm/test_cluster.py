"""The life of a cluster as a user has it: real machines (containers), one cluster for all tests of this module."""

from __future__ import annotations

import json
import re
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ems.cluster.provider.base import Thing

pytestmark = pytest.mark.timeout(1800)

_KILLER = Path(__file__).parent / "journal_killer"

TRAIN = """
import model
import ems

for lr in [0.1, 0.01]:
    for seed in [0, 1, 2]:
        ems.log(acc=model.accuracy(lr, seed))
"""

# runs until the test lets it end
LONG = """
import os
import time
import ems

for seed in [0, 1, 2, 3]:
    while not os.path.exists(os.path.expanduser("~/go")):
        time.sleep(0.1)
    ems.log(acc=seed)
"""


@pytest.fixture(scope="module")
def desk(desks: ModuleType, baked: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Somebody with a cluster of a controller and two nodes, made from baked images; nothing is left of it."""
    folder = tmp_path_factory.mktemp("desk")
    made = desks.Desk(folder)
    with desks.ssh_agent(made.home) as env:
        made.env.update(env)
        made.agent = env
        try:
            argv = str(folder / "argv")
            made.cluster("start", "--nodes", "2", "--yes", timeout=800, PYTHONPATH=str(_KILLER), EMS_TEST_ARGV=argv)
            made.argv = Path(argv)
            _write_project(made.project)
            yield made
            made.cluster("stop", "--yes", "--images", timeout=400)
            assert made.resources() == []
            assert not made.state.exists()
        finally:
            made.clear()


def _write_project(project: Path) -> None:
    import subprocess

    (project / "train.py").write_text(TRAIN)
    (project / "long.py").write_text(LONG)
    (project / "model.py").write_text("def accuracy(lr, seed):\n    return 0.9 + lr * seed\n")
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "init.defaultBranch=main"]
    for words in (["init", "-q"], ["add", "train.py", "model.py"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *words], cwd=project, check=True)
    (project / "model.py").write_text("def accuracy(lr, seed):\n    return 0.8 + lr * seed\n")  # not committed


@pytest.fixture
def whole(desk: Any, desks: ModuleType) -> Iterator[Callable[..., Any]]:
    """Wait for a condition; the cluster has its two idle nodes before and after the test."""
    yield desks.wait_until
    if desk.nodes() != {"gpu-001": "idle", "gpu-002": "idle"}:
        desk.ems("cancel", "last", code=None)
        desk.cluster("start", "--nodes", "2", "--yes", timeout=800)


def _parrun(desk: Any, *words: str) -> str:
    return str(json.loads(desk.ems("parrun", *words, "--again", "--json").stdout)["experiment"])


def _counts(desk: Any, experiment: str) -> dict[str, int]:
    [found] = json.loads(desk.ems("status", experiment, "--json").stdout)
    words = ("pending", "running", "completed", "failed", "cancelled", "unknown")
    return {word: found[word] for word in words if found[word]}


def _await_idle(desk: Any, desks: ModuleType) -> None:
    """Wait until both nodes are idle: for a moment after a job, or a restart of slurmctld, they are not."""
    desks.wait_until(lambda: desk.nodes() == {"gpu-001": "idle", "gpu-002": "idle"}, 300, "two idle nodes")


def test_a_started_cluster_is_healthy(desk: Any, desks: ModuleType) -> None:
    _await_idle(desk, desks)
    assert "UP" in desk.there("scontrol", "ping")
    said = lambda: desk.there("sacct", "-a", "-X", "-n", "--format=JobName,State")  # noqa: E731
    desks.wait_until(lambda: re.search(r"ems-test.*COMPLETED", said()), 120, "the test job in the accounting")
    assert {each["gres"] for each in desk.status()["nodes"] if each["kind"] == "gpu"} == {"gpu:4"}
    assert json.loads(desk.ems("cluster", "list", "--json").stdout)
    assert desk.machines() == ["controller", "gpu-001", "gpu-002"]


def test_a_sweep_equals_the_same_sweep_here(desk: Any, whole: Callable[..., Any]) -> None:
    reports = []
    for words in (["--gres", "gpu:1"], ["--on", "here"]):
        experiment = _parrun(desk, "train.py", *words)
        whole(lambda e=experiment: _counts(desk, e) == {"completed": 6}, 300, "the end of the sweep")
        desk.ems("harvest")
        found = json.loads(desk.ems("report", experiment, "--metric", "acc", "--by", "lr", "--json").stdout)
        text = re.sub(rf"{experiment}|\d+\.\d+ s", "", json.dumps(found))
        reports.append(text)
    assert reports[0] == reports[1]
    assert "0.8" in reports[0], "the uncommitted change did not travel"


def test_resized_to_three_and_back_without_a_job_lost(desk: Any, whole: Callable[..., Any]) -> None:
    desk.there("rm", "-f", "go")
    experiment = _parrun(desk, "long.py", "--gres", "gpu:3")
    desk.cluster("resize", "3")
    assert desk.machines() == ["controller", "gpu-001", "gpu-002", "gpu-003"]
    whole(lambda: _counts(desk, experiment).get("running") == 3, 300, "a run on each node")
    with ThreadPoolExecutor() as pool:
        leaving = pool.submit(desk.cluster, "resize", "gpu=2")
        try:
            whole(lambda: any("drain" in str(state) for state in desk.nodes().values()), 300, "a node that drains")
        finally:
            desk.there("touch", "go")
        leaving.result()
    assert len(desk.machines()) == 3
    whole(lambda: _counts(desk, experiment) == {"completed": 4}, 300, "the end of all runs")
    desk.ems("harvest")
    runs = json.loads(desk.ems("ls", experiment, "--json").stdout)
    assert {each["attempt"] for each in runs} == {1}, "a run was started again"
    assert len(desk.nodes()) == 2


def test_set_up_again_changes_nothing(desk: Any) -> None:
    assert json.loads(desk.cluster("setup", "--json").stdout)["changed"] == 0


def test_a_node_killed_in_mid_run_has_its_run_finished_elsewhere(desk: Any, whole: Callable[..., Any]) -> None:
    desk.there("rm", "-f", "go")
    experiment = _parrun(desk, "long.py", "--gres", "gpu:4")  # one on each node, two wait
    whole(lambda: _counts(desk, experiment).get("running") == 2, 300, "two runs")
    [lost] = [each for each in desk.resources() if each.name.endswith("gpu-002")]
    desk.provider().destroy([lost])
    desk.there("touch", "go")
    assert "gpu-002" in desk.cluster("status").stderr  # the command that mends it is named
    desk.cluster("start", "--yes", timeout=800)
    whole(lambda: _counts(desk, experiment) == {"completed": 4}, 400, "the end of all runs")
    desk.ems("harvest")
    runs = json.loads(desk.ems("ls", experiment, "--json").stdout)
    assert sorted(each["attempt"] for each in runs) == [1, 1, 1, 2]
    assert desk.machines() == ["controller", "gpu-001", "gpu-002"]


def test_paused_and_resumed(desk: Any, desks: ModuleType, whole: Callable[..., Any], tmp_path: Path) -> None:
    said = lambda: desk.there("sacct", "-a", "-X", "-n", "--format=JobID,State")  # noqa: E731
    whole(lambda: not re.search("PENDING|RUNNING", said()), 300, "the end of all jobs in the accounting")
    before = said().splitlines()
    desk.cluster("pause", "--yes")
    assert {str(each.state) for each in desk.resources() if each.thing is Thing.MACHINE} == {"stopped"}
    assert "is paused" in desk.cluster("start", "--yes", code=1).stderr
    other = desks.Desk(tmp_path, desk.name)
    other.env.update(desk.agent)
    other.cluster("status", "--adopt")  # of a paused cluster as well, which stays so
    assert other.status()["phase"] == "paused"
    assert {str(each.state) for each in desk.resources() if each.thing is Thing.MACHINE} == {"stopped"}
    other.cluster("resume", timeout=800)
    desk.cluster("resume", timeout=800)
    _await_idle(desk, desks)
    after = said().splitlines()
    assert set(map(str.strip, before)) <= set(map(str.strip, after)), "accounting was lost"
    experiment = _parrun(desk, "train.py", "--gres", "gpu:1")
    whole(lambda: _counts(desk, experiment) == {"completed": 6}, 300, "the end of the sweep")


def test_adopted_from_an_empty_state_directory(desk: Any, desks: ModuleType, tmp_path: Path) -> None:
    other = desks.Desk(tmp_path, desk.name)
    other.env.update(desk.agent)
    assert "knows no cluster" in other.cluster("status", code=1).stderr
    other.cluster("status", "--adopt")
    _await_idle(other, desks)
    assert other.there("hostname").strip() == f"{desk.name}-controller"
    kept = [json.loads((each.state / "record.json").read_text()) for each in (desk, other)]
    for key in ("incarnation", "digest", "munge", "wanted", "definition"):
        assert kept[0][key] == kept[1][key]


def test_carried_to_another_laptop(desk: Any, desks: ModuleType, tmp_path: Path) -> None:
    other = desks.Desk(tmp_path / "other", desk.name)
    file = tmp_path / "carried.ems"
    desk.cluster("export", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert "is there already" in desk.cluster("export", str(file), code=1).stderr
    other.ems("cluster", "import", str(file))
    assert other.there("hostname").strip() == f"{desk.name}-controller"
    assert "already" in other.ems("cluster", "import", str(file), code=1).stderr


def test_secrets_are_in_no_output_argv_or_open_file(desk: Any) -> None:
    desk.cluster("setup")
    munge = (desk.state / "munge.key").read_bytes()
    private = [path.read_text() for path in (desk.state / "key", *(desk.state / "hostkeys").glob("*[!b]"))]
    password = desk.there("sudo", "sed", "-n", "s/^StoragePass=//p", "/etc/slurm/slurmdbd.conf").strip()
    desk.said.pop(-2)  # that very command
    assert password
    needles = [password, munge.hex(), munge[:24].hex(), *(text.splitlines()[2] for text in private)]
    heard = "".join(desk.said) + desk.argv.read_text()
    assert [each for each in needles if each in heard] == []
    for path in [desk.state, *desk.state.rglob("*")]:
        if not path.name.endswith(".pub"):
            assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_hostile_words_execute_nothing(desk: Any, tmp_path: Path) -> None:
    words = ["$(touch pwned)", "a'b\"c", "-rf", "new\nline", "; touch pwned"]
    said = desk.there("printf", "<%s>", *words)
    assert said == "".join(f"<{each}>" for each in words)
    name = "$(touch pwned) 'x'.txt"
    (desk.project / name).write_text("kept")
    desk.ems("cluster", "put", name, "--on", desk.name)
    (desk.project / name).unlink()
    desk.ems("cluster", "get", name, "--on", desk.name)
    assert (desk.project / name).read_text() == "kept"
    (desk.project / name).unlink()
    assert "pwned" not in desk.there("find", "/home", "-name", "pwned")
    for hostile in ("$(touch pwned)", "../../etc", "-x"):
        assert desk.ems("cluster", "logs", desk.name, hostile, code=None).returncode in {1, 2}


def test_a_tampered_definition_is_refused(desk: Any) -> None:
    record = desk.state / "record.json"
    before = record.read_text()
    try:
        record.write_text(before.replace('"MaxJobCount": "100000"', '"MaxJobCount": "100001"'))
        assert record.read_text() != before
        said = desk.cluster("setup", code=1).stderr
        assert "is not the one that the cluster was made by" in said
        assert "--adopt" in said
    finally:
        record.write_text(before)


def test_a_tampered_munge_key_is_refused(desk: Any) -> None:
    key = desk.state / "munge.key"
    before = key.read_bytes()
    try:
        key.write_bytes(before[::-1])
        assert "is not the munge key" in desk.cluster("start", "--yes", code=1).stderr
    finally:
        key.write_bytes(before)


def test_another_host_key_is_not_believed(desk: Any) -> None:
    known = desk.state / "known_hosts"
    before = known.read_text()
    lines = [line for line in before.splitlines() if "controller" not in line]
    try:
        known.write_text("\n".join([*lines, f"{desk.name}-controller {lines[0].partition(' ')[2]}"]) + "\n")
        desk.hang_up()
        desk.there("true", code=255)
    finally:
        known.write_text(before)


def test_what_keeps_slurmctld_from_starting_is_said_in_its_own_words(desk: Any, desks: ModuleType) -> None:
    desk.there("sudo", "sh", "-c", "echo SchedulerType=sched/nonsense >> /etc/slurm/slurm.conf")
    desk.there("sudo", "systemctl", "restart", "slurmctld")
    script = "/opt/ems/templates/roles/slurm_controller/files/await-slurmctld"
    done = desk.ems("cluster", "ssh", "--on", desk.name, "--", "sudo", script, code=1)
    assert "slurmctld does not start: " in done.stderr
    assert "sched/nonsense" in done.stderr
    assert json.loads(desk.cluster("setup", "--json").stdout)["changed"] > 0
    _await_idle(desk, desks)


def test_logs_of_controller_and_node(desk: Any) -> None:
    assert "slurmctld" in desk.cluster("logs").stdout
    assert "slurmd" in desk.cluster("logs", "gpu-001").stdout
    assert "has no node" in desk.cluster("logs", "gpu-077", code=1).stderr


def test_a_removed_node_is_not_made_again(desk: Any, desks: ModuleType, whole: Callable[..., Any]) -> None:
    desk.cluster("remove-node", "gpu-001")
    assert desk.machines() == ["controller", "gpu-002"]
    desk.cluster("start", "--yes", timeout=800)
    assert desk.machines() == ["controller", "gpu-002"]
    desk.cluster("resize", "2")
    assert desk.machines() == ["controller", "gpu-001", "gpu-002"]
    _await_idle(desk, desks)
