"""What every cloud's provider does, against a stand-in over real HTTP: the contract, each fault, nothing left behind.

Nobody answers SSH on the stand-ins' machines: what a cluster does once they run is tested with containers.
"""

from __future__ import annotations

import base64
import dataclasses
import email
import json
import os
import re
import signal
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from clouds.benches import LABELS, Bench, Client, made, refused

from ems.cli.cluster_gc import remind
from ems.cluster import gc, images, lifecycle
from ems.cluster.definition import Definition
from ems.cluster.fleet import Fleet, known
from ems.cluster.provider import aws, awskeys, base, connect, waiting
from ems.cluster.provider.base import Delegator, MachineRequest, MachineState, Provider, RefusalCause, Resource, Thing
from ems.cluster.record import Files, Phase
from ems.errors import ClusterError, ProviderError

pytestmark = pytest.mark.timeout(900)  # one that hangs shows where, instead of holding up all others
NOW = timedelta()


def clear(bench: Bench, provider: Provider) -> None:
    """Delete everything, again, and have the stand-in count what is left."""
    everything = provider.list(LABELS)
    provider.destroy(everything)
    assert provider.list(LABELS) == []
    assert bench.cloud.left() == []
    provider.destroy(everything)


# -- the contract -------------------------------------------------------------------------------------------------


def test_machines_are_made_found_stopped_saved_and_deleted(bench: Bench) -> None:
    provider = bench.provider()
    wanted = [bench.controller(), *bench.nodes(3)]
    provider.check(wanted)
    assert bench.cloud.left() == []
    assert all(each.is_good for each in provider.findings(wanted))
    provider.prepare(LABELS)
    first = made(provider.create(wanted))
    assert [each.name for each in first] == [each.name for each in wanted]
    assert {each.state for each in first} == {MachineState.RUNNING}
    assert all(each.address and each.created_at for each in first)
    assert len({each.address for each in first}) == 4
    assert first[0].ssh_address
    assert [each.size for each in first[:2]] == list(bench.sizes)
    assert all(each.labels.items() >= wish.labels.items() for each, wish in zip(first, wanted, strict=True))

    before = bench.names()
    provider.prepare(LABELS)
    assert made(bench.provider().create(wanted)) == first  # as another command does it
    assert bench.names() == before
    found = provider.list(LABELS)
    assert {Thing.MACHINE, Thing.RULE} <= {each.thing for each in found}
    assert {each.name: each for each in found}[first[2].name] == first[2]
    assert all(each.labels.items() >= LABELS.items() for each in found)
    assert first[0] in provider.list()
    assert provider.list({**LABELS, base.INCARNATION: "b" * 32}) == []
    assert first[0].name in {each.name for each in provider.list({base.NODE: "demo-controller"})}

    provider.stop(first[:1])
    provider.stop(first[:1])
    [stopped] = [each for each in provider.list(LABELS) if each.name == "demo-controller"]
    assert stopped.state is MachineState.STOPPED
    provider.start([stopped])
    [started] = [each for each in provider.list(LABELS) if each.name == "demo-controller"]
    assert (started.state, started.address) == (MachineState.RUNNING, first[0].address)

    image = provider.save_image(first[1], "demo-gpu-image", {**LABELS, base.IMAGE: "0123"})
    assert image.id in {each.id for each in provider.list({base.IMAGE: "0123"})}
    assert provider.save_image(first[1], "demo-gpu-image", {**LABELS, base.IMAGE: "0123"}).id == image.id
    [born] = made(provider.create([replace(bench.nodes(4)[3], image=image.id)]))
    assert born.name == "demo-gpu-004"
    provider.destroy([first[2]])
    assert "demo-gpu-002" not in bench.names()
    assert made(provider.create(wanted))[2].name == "demo-gpu-002"
    assert bench.names() == ["demo-controller", *(f"demo-gpu-{number:03d}" for number in range(1, 5))]
    bench.is_sound()
    clear(bench, provider)


def test_what_belongs_to_another_incarnation_is_refused(bench: Bench) -> None:
    provider = bench.provider()
    provider.prepare(LABELS)
    made(provider.create([bench.controller()]))
    others = {**LABELS, base.INCARNATION: "f" * 32}
    [taken] = refused(provider.create([bench.controller(labels={**bench.controller().labels, **others})]))
    assert "not of this cluster" in taken.reason
    with pytest.raises(ProviderError, match="not of this cluster"):
        provider.prepare(others)
    clear(bench, provider)


def test_what_cannot_be_had_is_said_before_anything_is_made(bench: Bench) -> None:
    provider = bench.provider()
    for wish, said in (
        (bench.controller(image="fedora:99"), "fedora:99"),
        (bench.controller(size="colossal.1"), "colossal"),
    ):
        with pytest.raises(ProviderError, match=said) as caught:
            provider.check([wish])
        assert caught.value.hint
    with pytest.raises(ProviderError, match="mars-1") as caught:
        bench.provider(zones=["mars-1"]).check([bench.controller()])
    assert bench.zones[0] in caught.value.hint
    assert not all(each.is_good for each in provider.findings([bench.controller(image="fedora:99")]))
    assert bench.cloud.left() == []


def test_wrong_credentials_are_said_at_once_in_the_clouds_words(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: dict[str, Any] = {}
    if bench.kind == "gce":
        said, words = {"credentials": str(bench.cloud.credentials(tmp_path, is_good=False))}, "Invalid JWT Signature"
    elif bench.kind == "aws":
        Path(os.environ["AWS_SHARED_CREDENTIALS_FILE"]).write_text(
            "[lab]\naws_access_key_id = AKIAWRONG\naws_secret_access_key = secret\n"
        )
        words = "not able to validate the provided access credentials"
    else:
        said, words = {"cloud": "other"}, "requires authentication"
    with pytest.raises(ProviderError, match=words) as caught:
        bench.provider(**said).check([bench.controller()])
    assert caught.value.hint
    assert "secret" not in f"{caught.value.message}{caught.value.hint}"


def test_a_thousand_machines_are_a_handful_of_calls(bench: Bench) -> None:
    if bench.kind == "aws":
        count = 60  # moto takes 15 s for a thousand; the number of calls grows with every 500
    else:
        count = 999
        getattr(bench.cloud, "quotas", {})["NVIDIA_T4_GPUS"] = 5000
    provider = bench.provider()
    provider.prepare(LABELS)
    _ = provider.traits
    bench.cloud.calls.clear()
    assert len(made(provider.create(bench.nodes(count)))) == count
    found = provider.list(LABELS)
    assert len([each for each in found if each.thing is Thing.MACHINE]) == count
    assert len({each.name for each in found if each.thing is Thing.MACHINE}) == count
    assert len(bench.cloud.calls) < 60
    bench.is_sound()


def test_ssh_gets_in_from_where_the_definition_says_now(bench: Bench) -> None:
    bench.provider().prepare(LABELS)
    bench.provider(ssh_from="198.51.100.0/24").prepare(LABELS)  # the laptop is somewhere else today
    if bench.kind == "gce":
        ranges = bench.cloud.things["/global/firewalls/ems-demo-ssh"]["sourceRanges"]
    elif bench.kind == "aws":
        [group] = [
            each for groups in bench.cloud.backend.groups.values() for each in groups.values() if "demo" in each.name
        ]
        ranges = [rule.ip_range["CidrIp"] for rule in group.ingress_rules if str(rule.to_port) == "22"]
    else:
        rules = bench.cloud.neutron["security_group_rule"].values()
        ranges = [each["remote_ip_prefix"] for each in rules if each.get("port_range_max") == 22]
        assert [each for each in rules if each.get("remote_group_id")]
    assert ranges == ["198.51.100.0/24"]


# -- what goes wrong ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["rate", "error", "raise"])
def test_what_passes_is_asked_again_and_counts_once(bench: Bench, fault: str) -> None:
    provider = bench.provider()
    bench.cloud.faults[fault] = 1
    provider.prepare(LABELS)
    bench.cloud.faults[fault] += 2
    assert len(made(provider.create([bench.controller(), *bench.nodes(2)]))) == 3
    assert bench.cloud.faults[fault] == 0
    assert bench.names() == ["demo-controller", "demo-gpu-001", "demo-gpu-002"]
    bench.cloud.faults[fault] = 1
    clear(bench, provider)


def test_refusals_say_why_where_and_stop_nobody_else(bench: Bench) -> None:
    provider = bench.provider(zones=list(bench.zones))
    provider.prepare(LABELS)
    first, second = bench.zones
    bench.cloud.faults[f"exhausted:{second}"] = 1
    one, *others = provider.create([bench.controller(zone=first), *bench.nodes(2, zone=second)])
    assert isinstance(one, Resource)
    for each in refused(others):
        assert (each.cause, each.zone) == (RefusalCause.STOCKOUT, second)
        assert each.reason
    assert bench.names() == ["demo-controller"]  # what came to nothing is not left lying about
    bench.cloud.faults["quota"] = 1
    [quota] = refused(provider.create(bench.nodes(1, zone=first)))
    assert quota.cause is RefusalCause.QUOTA
    assert quota.hint
    assert len(made(provider.create(bench.nodes(2, zone=first)))) == 2
    clear(bench, provider)


def test_slow_operations_and_late_listings_are_waited_for(bench: Bench) -> None:
    bench.cloud.operation_s, bench.cloud.late_s = 0.4, 0.8
    provider = bench.provider()
    provider.prepare(LABELS)
    wanted = [bench.controller(), *bench.nodes(2)]
    first = made(provider.create(wanted))
    assert {each.address for each in made(provider.create(wanted))} == {each.address for each in first}
    assert len(bench.names()) == 3
    bench.is_sound()
    clear(bench, provider)


def test_a_machine_that_is_lost_is_made_anew(bench: Bench) -> None:
    provider = bench.provider()
    provider.prepare(LABELS)
    wanted = [bench.controller(), *bench.nodes(3)]
    first = made(provider.create(wanted))
    bench.cloud.lose("demo-gpu-002")
    assert "demo-gpu-002" not in {each.name for each in provider.list(LABELS)}
    again = made(provider.create(wanted))
    assert [one.id == other.id for one, other in zip(first, again, strict=True)] == [
        True,
        True,
        bench.kind == "gce",
        True,
    ]
    bench.is_sound()
    clear(bench, provider)


# -- a cluster's life, and a client that is killed ----------------------------------------------------------------


@pytest.fixture
def cluster(bench: Bench, project: Path, monkeypatch: pytest.MonkeyPatch) -> Definition:
    """A definition in the project; waits are short, but longer than a listing is late here."""
    monkeypatch.setattr(lifecycle, "_LATE_S", 0.3)
    monkeypatch.setattr(gc, "_AGAIN_S", 0.3)
    monkeypatch.setattr(waiting, "_LOOK_S", 0.1)
    from ems.cluster import catalog

    nodes = {"gpu": {"count": 2, "size": bench.sizes[1], **bench.node}, "cpu": {"count": 1, "size": bench.sizes[0]}}
    content = {"provider": bench.said, "controller": {"size": bench.sizes[0]}, "nodes": nodes}
    (project / "cluster").mkdir()
    (project / "cluster" / "lab.yaml").write_text(json.dumps(content))
    return catalog.load("lab", project)


_WANTED = ["lab-controller", "lab-cpu-001", "lab-gpu-001", "lab-gpu-002"]


def started(definition: Definition) -> Fleet:
    fleet = lifecycle.begin("lab", definition, {})
    lifecycle.start(fleet, setup=False)
    return fleet


def locked(definition: Definition) -> None:
    with Files("lab").locked():
        started(definition)


def cleaned(definition: Definition, **how: Any) -> int:
    """Delete what is left, as ``ems cluster gc`` does; returns how much it was."""
    return sum(gc.delete(each) for each in gc.leftovers(definition, young=NOW, **how))


def test_start_resize_pause_resume_and_stop_leave_nothing(bench: Bench, cluster: Definition) -> None:
    fleet = started(cluster)
    assert bench.names() == _WANTED
    keys = {name: each.labels[base.HOST_KEY] for name, each in fleet.machines().items()}
    assert keys["lab-gpu-001"] == keys["lab-gpu-002"] != keys["lab-controller"]
    assert fleet.provider.traits.network
    assert images._request(fleet, "gpu").lease_s == images.LEASE_S  # it ends itself, should its maker be killed
    lifecycle.change(fleet, (*fleet.record.wanted, "lab-gpu-003"))
    assert "lab-gpu-003" in bench.names()
    lifecycle.change(fleet, ("lab-gpu-001", "lab-gpu-003"), now=True)
    assert bench.names() == ["lab-controller", "lab-gpu-001", "lab-gpu-003"]
    bench.cloud.lose("lab-gpu-003")
    lifecycle.make(fleet)
    assert bench.names() == ["lab-controller", "lab-gpu-001", "lab-gpu-003"]
    lifecycle.pause(fleet)
    assert bench.names() == ["lab-controller"]
    assert known("lab").record.phase is Phase.PAUSED
    assert gc.leftovers(cluster, young=NOW) == []  # a cluster that is paused is none that was left
    bench.is_sound()
    assert lifecycle.stop(fleet) > 0
    assert bench.cloud.left() == []


@pytest.mark.parametrize("bench", ["openstack"], indirect=True)  # the one that may have no zones
def test_where_there_are_no_zones_the_next_size_is_tried(bench: Bench, cluster: Definition) -> None:
    content = cluster.model_dump(mode="json")
    content["nodes"]["cpu"]["size"] = [*reversed(bench.sizes)]
    fleet = started(Definition.model_validate(content))
    assert fleet.machines()["lab-cpu-001"].size == bench.sizes[1]
    bench.cloud.faults["stockout"] = 1
    lifecycle.change(fleet, (*fleet.record.wanted, "lab-cpu-002"))
    assert fleet.machines()["lab-cpu-002"].size == bench.sizes[0]
    assert fleet.record.left_out == {}


def test_killed_at_each_line_of_the_journal_nothing_is_left_after_gc(bench: Bench, cluster: Definition) -> None:
    """Every start is a new one, for gc has deleted all of the one before.

    One cloud is for all lines. The others are for those that say that something is done: it is, and nobody wrote it
    down. (Before a line that begins something the cloud is as it was after the line before.)
    """
    bench.cloud.late_s = 0.2
    line, code = 0, -1
    while code:
        line += 1 if bench.kind == "gce" else 2
        code = Client(lambda: locked(cluster), line).wait()
        assert code in {0, -signal.SIGKILL}
        bench.is_sound()
        if code:
            if bench.cloud.left():
                assert gc.leftovers(cluster) == []  # somebody may be at it yet
            cleaned(cluster)
            assert bench.cloud.left() == [], line
    assert line > 4
    assert bench.names() == _WANTED
    lifecycle.stop(known("lab"))
    assert bench.cloud.left() == []


@pytest.mark.parametrize("bench", ["aws", "openstack"], indirect=True)  # of gce's own tests one is this, and more
def test_killed_at_each_change_of_the_cloud_it_goes_on_and_doubles_nothing(
    bench: Bench, cluster: Definition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change is done once for a client that is killed, and the answer lost; then the next client goes on."""
    bench.cloud.late_s = 0.2
    change, turn, code = bench.cloud._change, 0, -1
    running: list[Client] = []

    def deadly(*args: Any) -> Any:
        answer = change(*args)
        if running:
            running.pop().kill()
        return answer

    monkeypatch.setattr(bench.cloud, "_change", deadly)
    while code:
        turn += 1
        assert turn < 30
        client = Client(lambda: locked(cluster))
        running[:] = [client]
        code = client.wait()
        bench.is_sound()
    assert turn > 4
    assert bench.names() == _WANTED
    running.clear()
    lifecycle.stop(known("lab"))
    assert bench.cloud.left() == []


# -- a controller that makes machines itself ----------------------------------------------------------------------

_WORKS_AS = {"gce": {"service_account": "default"}, "aws": {"instance_profile": "ems-controller"}, "openstack": {}}


def test_a_controller_makes_machines_by_its_own_rights(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    laptop = bench.provider(**_WORKS_AS[bench.kind])
    laptop.prepare(LABELS)
    files = {}
    if isinstance(laptop, Delegator):
        assert "of me's" in laptop.may_delegate()
        laptop.delegate(LABELS)
        files = laptop.delegate(LABELS)  # the answer to the first may have been lost
        [kept] = bench.cloud.credentials.values()
        assert (kept["unrestricted"], kept["roles"]) == (False, ["member"])
        [key] = [each for each in laptop.list(LABELS) if each.thing is Thing.KEY]
        assert key.labels.items() >= LABELS.items()
    is_told = bench.provider(as_instance=True)
    with pytest.MonkeyPatch.context() as patch:
        bench.become_machine(tmp_path, patch)
        for name in ("AWS_SHARED_CREDENTIALS_FILE", "OS_CLIENT_CONFIG_FILE"):
            patch.delenv(name, raising=False)
        with pytest.raises(ProviderError, match=r"as no service account|has no role|has no credentials") as caught:
            is_told.list(LABELS)
        assert caught.value.hint
        [gate] = made(laptop.create([bench.controller()]))
        bench.hand_over(files)
        patch.setenv("AWS_ACCESS_KEY_ID", "AKIAWRONG")  # none of these counts
        patch.setenv("GOOGLE_CLOUD_PROJECT", "another")
        machine = bench.provider(as_instance=True, **({"region": None} if bench.kind == "aws" else {}))
        bench.cloud.callers.clear()
        nodes = bench.nodes(2)
        machine.check(nodes)
        assert [each.name for each in made(machine.create(nodes))] == ["demo-gpu-001", "demo-gpu-002"]
        assert gate.name in {each.name for each in machine.list(LABELS)}
        assert Thing.KEY not in {each.thing for each in machine.list(LABELS)}  # which is not its own to delete
        if isinstance(machine, Delegator):
            with pytest.raises(ProviderError, match="may not make any for the controller"):
                machine.delegate(LABELS)
        machine.destroy([each for each in machine.list(LABELS) if each.name == "demo-gpu-001"])
        assert bench.names() == ["demo-controller", "demo-gpu-002"]
        assert set(bench.cloud.callers) == {"machine"}
    clear(bench, laptop)


# -- what is left over --------------------------------------------------------------------------------------------


def test_gc_takes_what_nobody_needs_and_nothing_else(
    ems: Any, bench: Bench, cluster: Definition, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOOGLE_APPLICATION_CREDENTIALS",):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")  # this computer is none of Google's
    fleet = started(cluster)
    assert gc.leftovers(cluster, young=NOW) == []  # it waits for its set-up, and need not be reached from here
    with pytest.raises(KeyError), fleet.journal.step("setup"):
        raise KeyError
    [cut] = gc.leftovers(cluster, young=NOW)
    assert (cut.cluster, cut.why) == ("lab", "its start was cut off")
    fleet.update(phase=Phase.READY)  # while somebody thinks about what gc asks
    with pytest.raises(ClusterError, match="taken up lab"):
        gc.delete(cut)
    assert bench.names() == _WANTED
    provider = connect(cluster.provider)
    mine = {**LABELS, base.OWNER: fleet.record.labels()[base.OWNER]}
    provider.prepare(mine)
    node = replace(bench.nodes(1)[0], labels={**bench.nodes(1)[0].labels, **mine})
    made(provider.create([node]))
    others = {**LABELS, base.CLUSTER: "theirs", base.INCARNATION: "c" * 32}
    provider.prepare(others)

    assert gc.leftovers(cluster) == []  # all of it is young
    [left] = gc.leftovers(cluster, young=NOW)
    assert (left.cluster, left.why) == ("demo", "its controller is gone")
    assert left.counts()["machine"] == 1
    [gate] = made(provider.create([bench.controller(labels={**bench.controller().labels, **mine})]))
    with pytest.raises(ClusterError, match="taken up demo"):
        gc.delete(left)
    provider.destroy([gate])
    [left] = gc.leftovers(cluster, young=NOW)
    both = gc.leftovers(cluster, young=NOW, everyone=True)
    assert {each.cluster for each in both} == {"demo", "theirs"}

    with pytest.MonkeyPatch.context() as patch:
        said: list[str] = []
        patch.setattr("ems.cli.render.note", lambda *lines: said.extend(lines))
        patch.setattr(gc.leftovers, "__kwdefaults__", {**gc.leftovers.__kwdefaults__, "young": NOW})
        remind(cluster)
        assert said == [f"{len(left.things)} resources left over of demo: ems cluster gc"]
    # `lab`: what this computer's containers are is not for this test to touch
    listed = json.loads(ems("cluster", "gc", "lab", "--older-than", "0", "--json").stdout)
    assert [each["cluster"] for each in listed] == ["demo"]
    shown = ems("cluster", "gc", "lab", "--older-than", "0", code=2)
    assert "1 machine" in shown.stdout
    assert "--yes" in shown.stderr
    assert bench.names() == sorted([*_WANTED, "demo-gpu-001"])
    ems("cluster", "gc", "lab", "--all", "--older-than", "0", "--yes")
    assert bench.names() == _WANTED
    assert "nothing is left" in ems("cluster", "gc", "lab", "--all", "--older-than", "0").stdout
    assert known("lab").record.phase is Phase.READY

    bench.cloud.lose("lab-controller")
    cleaned(cluster)
    assert bench.cloud.left() == []
    assert Files("lab").load() is None


def test_requests_of_one_call_know_their_names_by_their_place() -> None:
    from ems.cluster.provider import bulk

    names = ["a-gpu-001", "a-gpu-002", "a-gpu-003", "a-gpu-007"]
    assert bulk.encode(names) == "a-gpu- 001-003 007"
    assert bulk.decode(bulk.encode(names)) == names
    assert bulk.decode("a-controller") == ["a-controller"]
    assert bulk.name_at(bulk.encode(names), 3) == "a-gpu-007"
    assert bulk.name_at(bulk.encode(names), 4) == ""
    odd = [f"a-gpu-{number:03d}" for number in range(1, 999, 2)]
    wish = MachineRequest("", "debian:12", "", {})
    parts = bulk.groups([replace(wish, name=name) for name in odd] + [replace(wish, name="a-gpu-002", gpus=1)], 500)
    assert [each.name for part in parts for each in part] == [*odd, "a-gpu-002"]
    assert all(len(bulk.encode([each.name for each in part])) <= 255 for part in parts)
    assert dataclasses.asdict(wish)["name"] == ""


# -- what one cloud alone has -------------------------------------------------------------------------------------


@pytest.mark.parametrize("bench", ["aws"], indirect=True)
def test_ec2_is_asked_for_what_the_definition_says(bench: Bench) -> None:
    provider = bench.provider(instance_profile="ems-controller", tags={"Team": "vision"})
    provider.prepare(LABELS)
    wanted = bench.nodes(2, spot=True, lease_s=7200, disk_gb=80, disk_type="gp2")
    bench.cloud.most_per_call = 1  # capacity for one at a time
    made(provider.create([bench.controller(), *wanted]))
    runs = [each for action, each in bench.cloud.calls if action == "RunInstances" and "DryRun" not in each]
    [gate] = [each for each in runs if each["InstanceType"] == "m7i.large"]
    nodes = [each for each in runs if each["InstanceType"] == "g4dn.xlarge"]
    assert [each["MaxCount"] for each in nodes] == ["2", "1"]  # the rest is asked for again
    assert gate["IamInstanceProfile.Name"] == "ems-controller"
    assert gate["InstanceInitiatedShutdownBehavior"] == "stop"
    assert "InstanceMarketOptions.MarketType" not in gate
    assert (gate["MetadataOptions.HttpTokens"], gate["ImageId"]) == ("required", "ami-0deb1200000000001")
    node = nodes[0]
    assert "IamInstanceProfile.Name" not in node
    assert node["InstanceMarketOptions.MarketType"] == "spot"
    assert node["InstanceInitiatedShutdownBehavior"] == "terminate"
    assert (node["BlockDeviceMapping.1.Ebs.VolumeSize"], node["BlockDeviceMapping.1.Ebs.VolumeType"]) == ("80", "gp2")
    parts = email.message_from_bytes(base64.b64decode(node["UserData"])).get_payload()
    assert [each.get_content_type() for each in parts] == ["text/cloud-config", "text/x-shellscript-per-boot"]
    assert "7200" in parts[1].get_payload()
    tags = {node[key]: node[key.replace(".Key", ".Value")] for key in node if re.match(r"TagSpec.*\.1\.Tag.*Key", key)}
    assert tags.items() >= {"Team": "vision", base.CLUSTER: "demo", "ems-nodes": "demo-gpu- 001-002"}.items()
    assert {each.spot for each in provider.list(LABELS) if each.name.startswith("demo-gpu")} == {True}
    assert len({each["ClientToken"] for each in runs}) == 3


@pytest.mark.parametrize("bench", ["aws"], indirect=True)
def test_ec2_makes_anew_what_is_long_gone_and_no_double_of_what_is_listed_late(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider = bench.provider()
    provider.prepare(LABELS)
    first = made(provider.create(bench.nodes(2)))
    provider.destroy(first)
    bench.cloud.forget()
    again = made(provider.create(bench.nodes(2)))
    assert not {each.id for each in again} & {each.id for each in first}
    bench.cloud.late_s = 2.0
    late = made(provider.create(bench.nodes(2, user_data="#cloud-config\n# another\n")))
    assert [each.id for each in late] == [each.id for each in again]
    bench.cloud.late_s = 0.0
    monkeypatch.setattr(aws, "_LISTED_S", 0.1)
    provider.destroy(again)
    bench.cloud.forget()
    anew = made(provider.create(bench.nodes(2, user_data="#cloud-config\n# another\n")))
    assert not {each.id for each in anew} & {each.id for each in again}
    monkeypatch.setattr(awskeys.Keys, "is_fresh", lambda _keys: False)  # a login's last an hour
    path = Path(os.environ["AWS_SHARED_CREDENTIALS_FILE"])
    path.write_text(path.read_text().replace("AKIATESTING", "AKIAWRONG"))
    with pytest.raises(ProviderError, match="not able to validate"):
        provider.list()
    bench.is_sound()


@pytest.mark.parametrize("bench", ["aws"], indirect=True)
def test_ec2_nodes_that_come_and_go_all_day_cost_no_more_calls_each_time(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aws, "_GENERATIONS", 3)
    provider = bench.provider()
    provider.prepare(LABELS)
    for _ in range(5):
        provider.destroy(made(provider.create(bench.nodes(2))))
        bench.cloud.forget()  # it lists what is gone for an hour, and knows tokens for a day
    assert bench.names() == []


@pytest.mark.parametrize("bench", ["openstack"], indirect=True)
def test_openstack_is_asked_for_what_the_definition_says(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(os.environ["OS_CLIENT_CONFIG_FILE"])
    login = {"auth_url": bench.cloud.url, "application_credential_id": "a1", "application_credential_secret": "secret"}
    path.write_text(json.dumps({"clouds": {"only": {"auth_type": "v3applicationcredential", "auth": login}}}))
    provider = bench.provider(cloud=None, labels={"team": "vision"}, images={"debian:12": "debian-13-generic"})
    assert "only" in provider.findings([bench.controller()])[0].said
    provider.prepare(LABELS)
    [gate] = made(provider.create([bench.controller(disk_gb=200)]))
    [server] = bench.cloud.servers.values()
    assert (
        server["metadata"].items() >= {"team": "vision", base.CLUSTER: "demo", "ems-nodes": "demo-controller"}.items()
    )
    assert gate.ssh_address in {each["floating_ip_address"] for each in bench.cloud.neutron["floatingip"].values()}
    with pytest.raises(ProviderError, match="spot machine, and OpenStack has none"):
        provider.check([bench.controller(spot=True)])
    bench.cloud.most_servers = 2
    with pytest.raises(ProviderError, match="quota of 2 servers has 1 left, and 3 are needed"):
        provider.check(bench.nodes(3))
    path.write_text(json.dumps({"clouds": {"one": {"auth": login}, "two": {"auth": login}}}))
    with pytest.raises(ProviderError, match="which of one, two is not said"):
        bench.provider(cloud=None).list()
    monkeypatch.setenv("OS_CLIENT_CONFIG_FILE", "/nowhere")
    with pytest.raises(ProviderError, match=r"no credentials|no cloud `lab`"):
        bench.provider().list()


@pytest.mark.parametrize("bench", ["openstack"], indirect=True)
@pytest.mark.parametrize("listed_s", [0.0, 0.4])
def test_openstack_takes_no_server_that_failed_for_the_one_that_is_asked_for(bench: Bench, listed_s: float) -> None:
    provider, cloud, change = bench.provider(), bench.cloud, bench.cloud._change
    provider.prepare(LABELS)
    killed: list[Client] = []

    def answer(*request: Any) -> Any:
        done = change(*request)
        killed[0].kill()
        return done

    cloud.faults[f"exhausted:{bench.zones[0]}"] = 1
    cloud._change = answer
    killed.append(Client(lambda: bench.provider().create(bench.nodes(1, zone=bench.zones[0]))))
    assert killed[0].wait() == -signal.SIGKILL
    cloud._change = change
    cloud.late_s = 1.2
    [failed] = cloud.servers.values()
    failed["_born"] = time.monotonic() - cloud.late_s + listed_s
    [node] = made(provider.create(bench.nodes(1, zone=bench.zones[1])))
    assert (node.zone, node.state) == (bench.zones[1], MachineState.RUNNING)
    assert len(cloud.servers) == 1
    clear(bench, provider)


def test_aws_credentials_are_where_people_have_them(ems: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(ProviderError, match="no credentials for AWS here") as caught:
        awskeys.keys()
    assert "aws configure" in caught.value.hint
    unseen = ems("cluster", "gc", "aws", code=1)
    assert "aws was not looked at: there are no credentials" in unseen.stderr
    assert "nothing is left" not in unseen.stdout + unseen.stderr
    answer = {"Version": 1, "AccessKeyId": "AKIAP", "SecretAccessKey": "p", "SessionToken": "t"}
    answer["Expiration"] = "2020-01-01T00:00:00Z"
    (tmp_path / "answer").write_text(json.dumps(answer))
    config = f"[default]\nregion = eu-north-1\n[profile tool]\ncredential_process = cat '{tmp_path}/answer'\n"
    (tmp_path / "config").write_text(f"{config}[profile sso]\nsso_session = x\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    (tmp_path / "secrets").write_text("[default]\naws_access_key_id = AKIAD\naws_secret_access_key = d\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "secrets"))
    assert (awskeys.keys().id, awskeys.region()) == ("AKIAD", "eu-north-1")
    tool = awskeys.keys("tool")
    assert (tool.id, tool.token, tool.is_fresh()) == ("AKIAP", "t", False)
    assert "secret" not in repr(tool)
    assert repr(tool) == "Keys(AKIA…)"
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProviderError, match="needs the `aws` command"):
        awskeys.keys("sso")
    with pytest.raises(ProviderError, match="profile `nobody`"):
        awskeys.keys("nobody")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAE")
    assert awskeys.keys().id == "AKIAE"
    assert awskeys.keys("default").id == "AKIAD"
