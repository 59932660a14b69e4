"""What SLURM's commands print, read; the breaker of kinds whose nodes do not come."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ems.cluster.elastic.breaker import BOOTS, REST_S, Breaker
from ems.cluster.elastic.control import Control, Job, parse_jobs, parse_nodes, said
from ems.cluster.elastic.table import Standing, standing
from ems.errors import ClusterError

# SLURM 22.05.8, as it was printed
OFF = (
    "NodeName=c-cpu-001 CoresPerSocket=1  CPUAlloc=0 CPUEfctv=4 CPUTot=4 CPULoad=N/A AvailableFeatures=cpu,fast "
    "ActiveFeatures=cpu,fast Gres=(null) NodeAddr=c-cpu-001 NodeHostName=c-cpu-001 Port=17024  RealMemory=16000 "
    "AllocMem=0 FreeMem=N/A Sockets=4 Boards=1 State=IDLE+CLOUD+POWERED_DOWN ThreadsPerCore=1 TmpDisk=0 Weight=1 "
    "Owner=N/A MCS_label=N/A Partitions=main,night  BootTime=None SlurmdStartTime=None LastBusyTime=Unknown "
    "CfgTRES=cpu=4,mem=16000M,billing=4 AllocTRES= CapWatts=n/a CurrentWatts=0 AveWatts=0 ExtSensorsJoules=n/s "
)
DOWN = (
    "NodeName=c-cpu-002 Arch=x86_64 CoresPerSocket=1  CPUAlloc=0 CPUEfctv=4 CPUTot=4 CPULoad=3.78 "
    "AvailableFeatures=(null) ActiveFeatures=(null) Gres=gpu:a100:4 NodeAddr=10.0.0.7 NodeHostName=box Port=17024 "
    "Version=22.05.8 OS=Linux 6.1 #1 SMP State=none @0  RealMemory=16000 State=DOWN*+CLOUD+POWERING_UP "
    "ThreadsPerCore=1 Partitions=main  BootTime=2026-11-21T19:29:09 SlurmdStartTime=2026-11-21T19:29:10 "
    "LastBusyTime=2026-11-21T19:30:00 ExtSensorsTemp=n/s Reason=ems: quota 'CPUS' [24] State=IDLE [x@y] "
    "[root@2026-11-21T19:31:12] Comment=State=IDLE Partitions=none"
)
# SLURM 23.11.4 (Ubuntu 24.04): powered down, but asked for its answer; 24.11.5 (Debian 13): its machine was gone
MUTE_23_11 = (
    "NodeName=c-gpu-002 CoresPerSocket=1  CPUAlloc=0 CPUEfctv=4 CPUTot=4 CPULoad=0.00 AvailableFeatures=gpu "
    "ActiveFeatures=gpu Gres=gpu:4 NodeAddr=c-gpu-002 NodeHostName=c-gpu-002  RealMemory=1945 AllocMem=0 FreeMem=N/A "
    "Sockets=4 Boards=1 State=IDLE+CLOUD+POWERED_DOWN+NOT_RESPONDING ThreadsPerCore=1 TmpDisk=0 Weight=1 Owner=N/A "
    "MCS_label=N/A Partitions=gpu  BootTime=None SlurmdStartTime=None LastBusyTime=Unknown ResumeAfterTime=None "
    "CfgTRES=cpu=4,mem=1945M,billing=4,gres/gpu=4 AllocTRES= CapWatts=n/a CurrentWatts=0 AveWatts=0 "
    "ExtSensorsJoules=n/a ExtSensorsWatts=0 ExtSensorsTemp=n/a"
)
LOST_24_11 = (
    "NodeName=c-gpu-001 Arch=x86_64 CoresPerSocket=1  CPUAlloc=0 CPUEfctv=4 CPUTot=4 CPULoad=11.33 "
    "AvailableFeatures=gpu ActiveFeatures=gpu Gres=gpu:4 NodeAddr=10.89.2.14 NodeHostName=c-gpu-001 Version=24.11.5 "
    "OS=Linux 6.18.44 #1 SMP PREEMPT_DYNAMIC @0  RealMemory=1945 AllocMem=0 FreeMem=11229 Sockets=4 Boards=1 "
    "State=DOWN+CLOUD+NOT_RESPONDING ThreadsPerCore=1 TmpDisk=0 Weight=1 Owner=N/A MCS_label=N/A Partitions=gpu  "
    "BootTime=2026-11-21T23:01:23 SlurmdStartTime=2026-11-21T23:01:23 LastBusyTime=2026-11-21T23:06:06 "
    "ResumeAfterTime=None CfgTRES=cpu=4,mem=1945M,billing=4,gres/gpu=4 AllocTRES= CurrentWatts=0 AveWatts=0 "
    "Reason=ems: its machine is gone [root@2026-11-21T23:08:12]"
)


def test_nodes_are_read_as_slurm_prints_them() -> None:
    text = f"{OFF}\n{DOWN}\n\nslurm_load_node: a warning\n"
    nodes = parse_nodes(text)
    off, down = nodes["c-cpu-001"], nodes["c-cpu-002"]
    assert (off.state, off.reason, off.features) == ("IDLE+CLOUD+POWERED_DOWN", "", ("cpu", "fast"))
    assert (off.partitions, off.booted_at, off.busy_at) == (("main", "night"), None, None)
    assert (down.address, down.partitions, down.features) == ("10.0.0.7", ("main",), ())
    assert (down.reason, down.reason_by) == ("ems: quota 'CPUS' [24] State=IDLE [x@y]", "root")
    assert down.booted_at == datetime(2026, 11, 21, 19, 29, 9).astimezone()
    assert not off.is_busy


def test_nodes_are_read_as_newer_versions_print_them() -> None:
    nodes = parse_nodes(f"{LOST_24_11}\n{MUTE_23_11}\n")
    lost, mute = nodes["c-gpu-001"], nodes["c-gpu-002"]
    assert (standing(lost), lost.address, lost.reason) == (Standing.DOWN, "10.89.2.14", "ems: its machine is gone")
    assert (lost.features, lost.partitions) == (("gpu",), ("gpu",))
    assert lost.busy_at == datetime(2026, 11, 21, 23, 6, 6).astimezone()
    assert (standing(mute), mute.address, mute.busy_at) == (Standing.MUTE, "c-gpu-002", None)


def test_what_is_cut_off_or_unknown_does_not_stop_the_reading() -> None:
    assert parse_nodes("No nodes in the system\n") == {}
    assert parse_nodes("NodeName=x")["x"].base == "UNKNOWN"


@settings(max_examples=30, deadline=None)
@given(st.text("ab =[]@\t|", max_size=30))
def test_words_of_people_do_not_pass_for_those_of_slurm(words: str) -> None:
    line = OFF + f"Reason={words} State=DOWN NodeAddr=evil [me@2026-11-21T19:31:12] Comment={words} State=DOWN"
    node = parse_nodes(line)["c-cpu-001"]
    assert (node.base, node.address, node.reason_by) == ("IDLE", "c-cpu-001", "me")


def test_jobs_are_read_and_what_is_no_line_of_a_job_is_left_out() -> None:
    row = ["7_3", "RUNNING", "ada", "main", "None", "c-cpu-[001-002]", "(null)", "gpu:1", "my job", "(null)"]
    rows = ["\x1f".join(row), "\x1f".join([*row[:5], "", "cpu", "N/A", "", "a comment"]), "slurm_load_jobs: a warning"]
    first, second = parse_jobs("\n".join(rows))
    assert first == Job(
        "7_3", "RUNNING", "ada", "my job", "main", "None", ("c-cpu-001", "c-cpu-002"), features="", gres="gpu:1"
    )
    assert (second.nodes, second.features, second.gres, second.comment) == ((), "cpu", "", "a comment")


def test_words_of_a_cloud_become_one_line_that_slurm_takes() -> None:
    assert said(" quota\n'CPUS'\texceeded ") == "quota 'CPUS' exceeded"
    assert len(said("x" * 5000)) == 240


def test_without_slurm_an_order_says_so() -> None:
    with pytest.raises(ClusterError, match="there is no scontrol on this machine"):
        Control({"PATH": "/nowhere"}).release(["c-cpu-001"])
    assert Control({"PATH": "/nowhere"}).release([]) == {}


# -- the breaker ------------------------------------------------------------------------------------------------------


def fail(breaker: Breaker, times: int, now: float = 0.0, kind: str = "gpu") -> None:
    for number in range(times):
        breaker.booted(kind, f"c-{kind}-{number:03d}", registered=False, now=now)


def test_ten_boots_in_a_row_that_never_register_shut_a_kind_and_one_node_tries_after_a_rest() -> None:
    breaker = Breaker()
    fail(breaker, BOOTS - 1)
    breaker.booted("gpu", "c-gpu-001", registered=True, now=0)
    fail(breaker, BOOTS - 1)
    assert breaker.shut(0) == {}
    assert breaker.admit("gpu", ["a", "b"], 0) == ["a", "b"]
    fail(breaker, 1)
    assert breaker.shut(0)["gpu"].reason == "10 boots in a row never registered, c-gpu-000 was the last"
    assert breaker.admit("gpu", ["a"], REST_S - 1) == []
    assert breaker.admit("cpu", ["a"], 0) == ["a"]

    assert breaker.shut(REST_S) == {}
    assert breaker.admit("gpu", ["c-gpu-003", "c-gpu-002"], REST_S) == ["c-gpu-002"]
    assert breaker.admit("gpu", ["c-gpu-004"], REST_S + 1) == []
    assert "c-gpu-002 tries" in breaker.shut(REST_S + 1)["gpu"].reason
    breaker.booted("gpu", "c-gpu-002", registered=False, now=REST_S + 60)
    assert breaker.shut(2 * REST_S + 59)["gpu"].reason.startswith("11 boots")
    assert breaker.admit("gpu", ["c-gpu-002"], 2 * REST_S + 60) == ["c-gpu-002"]
    breaker.booted("gpu", "c-gpu-002", registered=True, now=2 * REST_S + 100)
    assert breaker.admit("gpu", ["a", "b"], 2 * REST_S + 100) == ["a", "b"]


def test_a_trial_that_comes_to_nothing_is_followed_by_another() -> None:
    breaker = Breaker()
    fail(breaker, BOOTS)
    for rest in (1, 2, 3):
        assert breaker.admit("gpu", ["c-gpu-001"], rest * REST_S) == ["c-gpu-001"]
        assert breaker.admit("gpu", ["c-gpu-002"], rest * REST_S + 1) == []


def test_what_the_cloud_says_shuts_a_kind_for_a_time_and_never_for_less_than_it_is() -> None:
    breaker = Breaker()
    breaker.close("gpu", "sold out", 600, now=0)
    breaker.close("gpu", "busy", 60, now=10)
    assert (breaker.shut(599)["gpu"].reason, breaker.shut(600)) == ("sold out", {})
    breaker.booted("gpu", "a", registered=True, now=100)  # one that was made before
    assert breaker.admit("gpu", ["b"], 200) == []
    assert breaker.admit("gpu", ["b", "c"], 600) == ["b", "c"]
    fail(breaker, BOOTS, now=700)
    breaker.open("cpu")
    assert breaker.shut(700)
    breaker.open()
    assert breaker.admit("gpu", ["b", "c"], 701) == ["b", "c"]


def test_the_breaker_outlives_its_service_and_damage() -> None:
    breaker = Breaker()
    fail(breaker, BOOTS, now=100)
    fail(breaker, 3, kind="cpu")
    breaker.close("big", "no quota", 600, now=100)
    kept = json.loads(json.dumps(breaker.as_json(100)))
    again = Breaker.from_json(kept)
    assert again.shut(100) == breaker.shut(100)
    assert again.admit("gpu", ["a", "b"], 100 + REST_S) == ["a"]
    fail(again, 7, kind="cpu")
    assert "cpu" in again.shut(0)
    for damage in (None, [], {"shut": 3}, {"failed": "x", "shut": None, "is_tripped": True}, {"failed": 1, "shut": {}}):
        assert Breaker.from_json({**kept, "gpu": damage}).shut(100).keys() == {"big"}
    assert breaker.as_json(1e9).keys() == {"gpu", "cpu"}
    assert datetime.fromtimestamp(breaker.shut(100)["gpu"].until, UTC) == datetime.fromtimestamp(100 + REST_S, UTC)
