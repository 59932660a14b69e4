"""What a real SLURM does with nodes that come and go, by the orders of the service; see also test_elastic_worlds.py."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from ems.cluster.elastic.control import Control
from ems.cluster.elastic.table import Standing, standing
from ems.errors import ClusterError

KINDS = {"cpu": {"min": 0, "max": 4, "cpus": 2, "mem_gb": 4}}
WHY = 'ems: sold out, says "the cloud": State=IDLE [x@y]'


@pytest.fixture(scope="module")
def bed(testbed: ModuleType, elastic: ModuleType, cloud: ModuleType) -> Iterator[Any]:
    """A SLURM without the service; nodes stay for a while."""
    options = {"SuspendTime": 600, "ResumeTimeout": 180}
    with elastic.bed(testbed, cloud, KINDS, options=options) as bed:
        yield bed


class Desk:
    """The door, and what it shows."""

    def __init__(self, bed: Any, wait: Any) -> None:
        self.bed, self.control, self._wait = bed, Control(bed.environment()), wait
        self.names = [bed.node("cpu", number) for number in range(1, 5)]

    def standing(self, name: str, closed: str = "") -> Standing:
        return standing(self.control.nodes()[name], closed=closed)

    def wait(self, name: str, found: Standing, limit_s: float = 240) -> None:
        self._wait(lambda: self.standing(name) is found, limit_s, f"{name} {found}")

    def wait_for_resume(self, *names: str) -> None:
        """Wait until ResumeProgram was called: SLURM only knows machines that have booted after that."""

        def is_called() -> bool:
            nodes = self.control.nodes()
            return all("POWERING_UP" in nodes[name].flags for name in names)

        self._wait(is_called, 240, f"ResumeProgram of {names}")

    @contextmanager
    def machines(self, *names: str) -> Iterator[dict[str, Any]]:
        """Have machines boot; yields what they run, by name."""
        running = {name: self.bed._boot(name) for name in names}
        try:
            yield running
        finally:
            for each in running.values():
                each.kill()

    def configure(self, **options: object) -> None:
        """Have slurmctld read its file again, with other lines."""
        self.bed.options.update(options)
        self.bed._write_slurm_conf()
        self.bed.run("scontrol", "reconfigure")

    def job(self, *options: str) -> str:
        return str(self.bed.run("sbatch", "--parsable", "--output=/dev/null", *options, "--wrap", "sleep 600"))


@pytest.fixture
def desk(bed: Any, testbed: ModuleType) -> Desk:
    """The door to it."""
    return Desk(bed, testbed.wait_until)


def test_nodes_go_through_their_standings_as_ordered(desk: Desk) -> None:
    first, second, third, fourth = desk.names
    control = desk.control
    assert {desk.standing(name) for name in desk.names} == {Standing.RESTING}
    jobs = [desk.job(f"--nodelist={name}", f"--comment={name} | x") for name in (first, second)]
    assert control.power_up([third]) == {}
    desk.wait_for_resume(first, second, third)
    with desk.machines(first, third) as machines:
        # one that comes, is powered down, and up again while its machine is still the same
        desk.wait(third, Standing.IDLE)
        assert control.nodes()[third].booted_at is not None
        assert control.power_down([third], force=True) == {}

        # one that is given up before it has come, and is held, so that its job cannot ask for it again
        desk.configure(SuspendTimeout=600)
        assert control.jobs()[0].nodes
        assert control.down([second], WHY) == {}
        assert control.nodes()[second].reason == WHY
        assert control.power_down([second]) == {}
        desk.wait(second, Standing.GOING)
        assert desk.standing(second, "sold out") is Standing.CLOSING
        assert control.down([second], WHY) == {}
        assert desk.standing(second, "sold out") is Standing.GOING
        desk.configure(SuspendTimeout=3)
        desk.wait(third, Standing.RESTING)
        assert control.power_up([third]) == {}
        desk.wait(second, Standing.DOWNED)
        assert desk.standing(second, "sold out") is Standing.HELD
        assert {job.id: job.state for job in control.jobs()}[jobs[1]] == "PENDING", "its job is queued again"
        assert control.comment(jobs, "sold out\n in   all zones") == {}
        assert {job.comment for job in control.jobs()} == {"sold out in all zones"}
        assert "AdminComment=sold out in all zones" in desk.bed.run("scontrol", "show", "job", jobs[1])
        assert control.release([second]) == {}
        assert desk.standing(second) in {Standing.RESTING, Standing.COMING}
        desk.bed.run("scancel", jobs[1])

        # one that works, and whose machine vanishes: its job is queued again at once
        desk.wait(first, Standing.BUSY)
        machines.pop(first).kill()
        assert control.down([first], "ems: its machine is gone") == {}
        assert desk.standing(first) is Standing.DOWN
        assert control.power_down([first]) == {}
        assert {job.id: job.state for job in control.jobs()}[jobs[0]] == "PENDING"
        desk.bed.run("scancel", jobs[0])
        desk.wait(first, Standing.RESTING)

        # one that SLURM would never use again; one that somebody keeps
        desk.bed.run("scontrol", "update", f"nodename={fourth}", "state=noresp")
        assert desk.standing(fourth) is Standing.MUTE
        assert control.power_down([fourth], force=True) == {}
        desk.wait(fourth, Standing.RESTING)
        desk.bed.run("scontrol", "update", f"nodename={fourth}", "state=drain", "reason=the fan is loud")
        assert desk.standing(fourth) is Standing.PARKED
        assert control.release([fourth, first]) == {}
        assert desk.standing(fourth) is Standing.RESTING

        desk.configure(ResumeTimeout=5)
        desk.wait(third, Standing.MUTE)  # a machine from before has not registered again
    assert control.nodes()[third].reason == "ResumeTimeout reached"
    desk.configure(ResumeTimeout=180)
    for name in (second, third):
        if desk.standing(name) is not Standing.RESTING:
            assert control.power_down([name], force=True) == {}
        desk.wait(name, Standing.RESTING)


def test_one_refusal_does_not_spoil_the_others_and_jobs_are_told_apart(desk: Desk, tmp_path: Path) -> None:
    refused = desk.control.down([desk.names[0], "nobody", desk.names[1]], "ems: test")
    assert list(refused) == ["nobody"]
    assert "Invalid node name" in refused["nobody"]
    assert [desk.standing(name) for name in desk.names[:3]] == [Standing.DOWNED, Standing.DOWNED, Standing.RESTING]
    assert list(desk.control.release([*desk.names[:2], "nobody"])) == ["nobody"]
    assert {desk.standing(name) for name in desk.names} == {Standing.RESTING}

    array = desk.job("--hold", "--array=3-4", "--constraint=cpu", "--job-name=a b")
    jobs = desk.control.jobs()
    assert [(job.id, job.state, job.name, job.features, job.nodes) for job in jobs] == [
        (f"{array}_{task}", "PENDING", "a b", "cpu", ()) for task in (3, 4)
    ]
    assert desk.control.comment([f"{array}_4"], "moved") == {}
    assert {job.id: job.comment for job in desk.control.jobs()} == {f"{array}_3": "", f"{array}_4": "moved"}
    assert "Invalid partition" in desk.control.move(f"{array}_4", "nowhere")[f"{array}_4"]
    desk.bed.run("scancel", array)

    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=nobody\nNoSuchWord=1\n")
    nobody = Control({**desk.bed.environment(), "SLURM_CONF": str(conf)})
    with pytest.raises(ClusterError, match="SLURM does not answer scontrol"):
        nobody.nodes()
