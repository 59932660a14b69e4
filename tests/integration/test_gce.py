"""Google Compute Engine over real HTTP, against a stand-in that keeps state, checks requests and fails as told."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import pytest
from clouds import gce
from clouds.benches import LABELS, Client, hurried, made, refused

from ems.cluster import ledger, lifecycle, price
from ems.cluster.definition import Definition, GceSection
from ems.cluster.fleet import Fleet, known
from ems.cluster.provider import base
from ems.cluster.provider.base import MachineRequest, Refusal, RefusalCause, Resource
from ems.cluster.provider.gce import GceProvider
from ems.cluster.record import Files
from ems.errors import ClusterError, ProviderError, UsageError

_A, _B = "us-central1-a", "us-central1-b"


@pytest.fixture
def cloud() -> Iterator[Any]:
    with gce.serve() as cloud:
        yield cloud


def section(cloud: Any, folder: Path, **more: Any) -> GceSection:
    said = {"credentials": str(cloud.credentials(folder)), "endpoint": cloud.url, "ssh_from": "192.0.2.7/32", **more}
    return GceSection.model_validate(said)


@pytest.fixture
def provider(cloud: Any, tmp_path: Path) -> GceProvider:
    return GceProvider(section(cloud, tmp_path, labels={"team": "vision"}), backoff=hurried())


def controller(**changes: Any) -> MachineRequest:
    labels = {**LABELS, base.ROLE: "controller", base.NODE: "demo-controller"}
    wish = MachineRequest("demo-controller", "debian:12", "#cloud-config\n", labels, size="e2-standard-2")
    return replace(wish, is_public=True, is_trusted=True, **changes)


def nodes(count: int, **changes: Any) -> list[MachineRequest]:
    labels = {**LABELS, base.ROLE: "compute", base.KIND: "gpu"}
    wish = MachineRequest("", "ubuntu:24.04", "#cloud-config\n", labels, size="n1-standard-4", gpus=1, gpu_type="t4")
    return [replace(wish, name=f"demo-gpu-{number:03d}", spot=True, **changes) for number in range(1, count + 1)]


# -- what is asked of Google ------------------------------------------------------------------------------------


def test_what_is_asked_for_is_what_the_definition_says(cloud: Any, tmp_path: Path) -> None:
    account = "ems-controller@lab.iam.gserviceaccount.com"
    provider = GceProvider(section(cloud, tmp_path, service_account=account, zones=[_B]), backoff=hurried())
    provider.prepare(LABELS)
    first, second = made(provider.create([controller(lease_s=7200), *nodes(1, disk_gb=80, disk_type="pd-ssd")]))
    gate, node = cloud.things[first.id], cloud.things[second.id]
    assert gate["scheduling"]["maxRunDuration"] == {"seconds": "7200"}
    assert gate["scheduling"]["instanceTerminationAction"] == "DELETE"
    assert gate["scheduling"]["provisioningModel"] == "STANDARD"
    assert [each["email"] for each in gate["serviceAccounts"]] == [account]
    assert "serviceAccounts" not in node
    assert node["scheduling"]["provisioningModel"] == "SPOT"
    assert node["guestAccelerators"] == [{"acceleratorType": "nvidia-tesla-t4", "acceleratorCount": 1}]
    disk = node["disks"][0]["initializeParams"]
    assert (disk["diskSizeGb"], disk["diskType"], disk["labels"][base.CLUSTER]) == ("80", "pd-ssd", "demo")
    items = {each["key"]: each["value"] for each in gate["metadata"]["items"]}
    assert items["user-data"] == "#cloud-config\n"
    assert "install -y --no-install-recommends cloud-init" in items["startup-script"]  # Debian's image has none
    assert "startup-script" not in {each["key"] for each in node["metadata"]["items"]}

    rules = {path.rsplit("/", 1)[1]: each for path, each in cloud.things.items() if "/firewalls/" in path}
    assert rules["ems-demo-ssh"]["sourceRanges"] == ["192.0.2.7/32"]
    assert rules["ems-demo-ssh"]["allowed"] == [{"IPProtocol": "tcp", "ports": ["22"]}]
    assert set(rules["ems-demo-ssh"]["targetTags"]) <= set(gate["tags"]["items"])
    assert not set(rules["ems-demo-ssh"]["targetTags"]) & set(node["tags"]["items"])
    assert rules["ems-demo-inside"]["sourceTags"] == rules["ems-demo-inside"]["targetTags"] == ["ems-demo"]

    moved = GceProvider(section(cloud, tmp_path, ssh_from="198.51.100.0/24"), backoff=hurried())
    moved.prepare(LABELS)  # the laptop is somewhere else today
    assert cloud.things["/global/firewalls/ems-demo-ssh"]["sourceRanges"] == ["198.51.100.0/24"]


# -- what goes wrong --------------------------------------------------------------------------------------------


def test_refusals_say_why_and_stop_nobody_else(cloud: Any, provider: GceProvider) -> None:
    cloud.faults[f"exhausted:{_A}/n1-standard-4"] = 1
    one, *others = provider.create([controller(), *nodes(2, zone=_A)])
    assert isinstance(one, Resource)
    for each in refused(others):
        assert (each.cause, each.zone) == (RefusalCause.STOCKOUT, _A)
        assert "does not have enough resources" in each.reason
        assert "zones" in each.hint
    cloud.faults["mute"] = 1  # it is said of all of them at once
    assert {each.cause for each in refused(provider.create(nodes(2, zone=_A)))} == {RefusalCause.STOCKOUT}
    cloud.faults["unreachable"] = 1
    with pytest.raises(ProviderError, match=r"cannot say now what is in us-central1-a"):
        provider.list(LABELS)  # who took it for empty would leave machines behind
    cloud.faults["partial"] = 1
    *some, other = provider.create(nodes(3, zone=_B))
    assert [each.zone for each in made(some)] == [_B, _B]
    assert isinstance(other, Refusal)
    assert (other.name, other.cause, other.zone) == ("demo-gpu-003", RefusalCause.STOCKOUT, _B)
    provider.destroy(made(some))
    cloud.faults["quota"] = 1
    [quota] = refused(provider.create(nodes(1, zone=_B)))
    assert (quota.cause, "Quota 'CPUS' exceeded" in quota.reason) == (RefusalCause.QUOTA, True)
    assert "console.cloud.google.com" in quota.hint
    [wrong] = refused(provider.create(nodes(1, zone=_B, lease_s=10)))
    assert (wrong.cause, "maxRunDuration" in wrong.reason) == (RefusalCause.INVALID, True)
    stranger = replace(controller(), labels={**LABELS, base.INCARNATION: "c" * 32})
    [taken] = refused(provider.create([stranger]))
    assert "not of this cluster" in taken.reason
    provider.prepare(LABELS)
    with pytest.raises(ProviderError, match="not of this cluster"):
        provider.prepare({**LABELS, base.INCARNATION: "c" * 32})


def test_rights_that_are_taken_away_are_said_in_googles_words(
    cloud: Any, provider: GceProvider, tmp_path: Path
) -> None:
    cloud.lacking.add("compute.instances.create")
    with pytest.raises(ProviderError, match=r"lacks compute\.instances\.create") as caught:
        provider.check([controller()])
    assert "roles/compute.admin" in caught.value.hint
    wrong = section(cloud, tmp_path, credentials=str(cloud.credentials(tmp_path, is_good=False)))
    before = len(cloud.calls)
    with pytest.raises(ProviderError, match="Invalid JWT Signature") as caught:
        GceProvider(wrong).check([controller()])
    assert "gcloud auth application-default login" in caught.value.hint
    assert len(cloud.calls) == before


@pytest.mark.parametrize(
    ("request_", "said", "hint"),
    [
        (controller(image="fedora:99"), "fedora:99", "debian:12"),
        (controller(size="colossal-1"), "colossal-1", "machine-types"),
        (controller(disk_type="pd-stone"), "pd-stone", "pd-ssd"),
        (replace(nodes(1)[0], gpus=9), "9 nvidia-tesla-t4", "accelerator-types"),
        (replace(nodes(1)[0], size="n2-standard-8", gpus=0, spot=False), "N2_CPUS", "quotas"),
    ],
)
def test_what_cannot_be_had_is_said_before_anything_is_made(
    cloud: Any, provider: GceProvider, request_: MachineRequest, said: str, hint: str
) -> None:
    cloud.quotas["N2_CPUS"] = 4
    with pytest.raises(ProviderError, match=said) as caught:
        provider.check([request_])
    assert hint in caught.value.hint
    assert cloud.left() == []


def test_regions_and_zones_that_do_not_exist_are_named(cloud: Any, tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="no region `mars`") as caught:
        GceProvider(section(cloud, tmp_path, region="mars")).check([controller()])
    assert "us-central1" in caught.value.hint
    with pytest.raises(ProviderError, match="no zone `us-central1-z`") as caught:
        GceProvider(section(cloud, tmp_path, zones="us-central1-z")).check([controller()])
    assert _A in caught.value.hint


def test_without_credentials_or_project_it_says_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GCE_METADATA_HOST", "127.0.0.1:1")  # this computer is none of Google's
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("PATH", str(tmp_path))  # no gcloud
    with pytest.raises(ProviderError, match="no credentials for Google") as caught:
        GceProvider(GceSection()).list()
    assert "gcloud auth application-default login" in caught.value.hint
    [found] = GceProvider(GceSection()).findings([controller()])
    assert (found.subject, found.is_good) == ("credentials", False)
    assert found.said == "there are no credentials for Google here"


# -- a cluster's life -------------------------------------------------------------------------------------------

CLUSTER = """
provider: {{kind: gce, credentials: {credentials}, endpoint: "{url}", ssh_from: 192.0.2.7/32}}
image: ubuntu:24.04
controller: {{size: e2-standard-2}}
nodes:
  gpu: {{count: 2, size: [n1-standard-4, n1-standard-8], gpus: 1, gpu_type: t4, spot: true}}
  cpu: {{count: 1, size: e2-standard-4}}
limits: {{max_nodes: 5, max_hours: 12}}
"""


@pytest.fixture
def cluster(cloud: Any, project: Path, tmp_path: Path) -> str:
    """The name of a definition in the project; nobody answers SSH on the machines."""
    cloud.public_ip = lambda _name: "127.77.0.1"
    (project / "cluster").mkdir()
    text = CLUSTER.format(credentials=cloud.credentials(tmp_path), url=cloud.url)
    (project / "cluster" / "lab.yaml").write_text(text)
    return "lab"


def definition(project: Path) -> Definition:
    from ems.cluster import catalog

    return catalog.load("lab", project)


def started(project: Path, **counts: int) -> Fleet:
    fleet = lifecycle.begin("lab", definition(project), counts)
    lifecycle.start(fleet, setup=False)
    return fleet


def locked(project: Path) -> None:
    with Files("lab").locked():
        started(project)


def where(cloud: Any) -> dict[str, str]:
    """Return the stand-in's machines: name -> zone and size."""
    found = {}
    for path, each in cloud.machines().items():
        assert each["name"] not in found, "a machine is there twice"
        found[each["name"]] = f"{path.split('/')[2][-1]} {each['machineType'].rsplit('/', 1)[1]}"
    return found


def test_the_next_zone_then_the_next_size_is_tried(cloud: Any, cluster: str, project: Path) -> None:
    for zone in ("a", "b"):
        cloud.faults[f"exhausted:us-central1-{zone}/n1-standard-4"] = 1
    fleet = started(project)
    assert where(cloud) == {
        "lab-controller": "a e2-standard-2",
        "lab-gpu-001": "a n1-standard-8",  # no GPUs in the zone c
        "lab-gpu-002": "a n1-standard-8",
        "lab-cpu-001": "a e2-standard-4",
    }
    asked = [path for verb, path in cloud.calls if "bulkInsert" in path]
    twin = {**cloud.things["/zones/us-central1-a/instances/lab-gpu-001"], "machineType": "n1-standard-8"}
    cloud._insert(_B, "lab-gpu-001", twin, "")  # as if its making had been taken for failed
    started(project, gpu=3)  # what was sold out is asked again by another command, but not by this one
    assert len([path for verb, path in cloud.calls if "bulkInsert" in path]) > len(asked)
    assert where(cloud)["lab-gpu-001"] == "a n1-standard-8"
    assert price.of_machines(fleet.definition, list(fleet.machines().values())) == pytest.approx(
        0.06701142 + 0.13402284 + 3 * (2 * 0.04 + 0.11), abs=2e-4
    )
    for zone in ("a", "b", "c"):
        cloud.faults[f"exhausted:us-central1-{zone}"] = 1
    outcome = started(project, cpu=2)
    assert "does not have enough resources" in outcome.record.left_out["lab-cpu-002"]
    with pytest.raises(UsageError, match=r"limits\.max_nodes"):
        started(project, gpu=6)


def test_each_machine_is_in_the_ledger_once_whatever_is_killed(
    ems: Any, cloud: Any, cluster: str, project: Path
) -> None:
    fleet = started(project, gpu=2, cpu=1)
    book = ledger.Ledger("lab")
    assert len(ledger.spans(book.events())) == 4
    written = book.path.read_text()
    book.path.unlink()  # the command was killed before it wrote
    fleet = started(project, gpu=2, cpu=1)
    assert ledger.spans(book.events()) == ledger.spans(ledger.parse(written)), "since the cloud made them"
    lifecycle.change(fleet, ("lab-gpu-001", "lab-cpu-001"), now=True)
    [gone] = [each for each in ledger.spans(book.events()) if each.end is not None]
    assert (gone.start.node, gone.start.usd_per_hour, gone.start.spot) == ("lab-gpu-002", 0.15, True)
    found = json.loads(ems("cluster", "cost", "lab", "--json").stdout)
    assert {each["kind"] for each in found["rows"]} == {"controller", "gpu", "cpu"}
    assert sum(each["usd"] for each in found["rows"]) == pytest.approx(found["total"]["usd"])
    assert found["total"]["kwh"] is None, "nobody has said how many CPUs these machines have"

    things = fleet.resources()
    with fleet.journal.step("stop", [each.name for each in things]):  # a stop that is killed when all is deleted
        fleet.provider.destroy(things)
    lifecycle.stop(fleet)
    assert Files("lab").load() is None
    assert {each.start.node: each.end is None for each in ledger.spans(book.events())} == dict.fromkeys(
        ["lab-controller", "lab-gpu-001", "lab-gpu-002", "lab-cpu-001"], False
    )
    shown = ems("cluster", "cost", "lab", "--by", "experiment")
    assert "nothing runs" in shown.stdout
    assert "idle" in shown.stdout
    assert "PUE: 1.09" in shown.stderr
    assert "nothing is written down" in ems("cluster", "cost", "other", code=1).stderr


def test_nothing_is_made_that_would_cost_more_than_the_limit(cloud: Any, cluster: str, project: Path) -> None:
    path = project / "cluster" / "lab.yaml"
    path.write_text(path.read_text().replace("max_hours: 12", "max_hours: 10, max_cost: 4"))
    with pytest.raises(ClusterError, match=r"may cost \$4\.00: \$0\.00 are spent, and 4 machines would cost \$5"):
        started(project, gpu=2, cpu=1)
    assert cloud.left() == []
    fleet = started(project, gpu=2, cpu=0)
    with pytest.raises(ClusterError, match=r"`limits\.max_cost`|may cost"):
        lifecycle.change(fleet, (*fleet.record.wanted, "lab-gpu-003"))
    assert "lab-gpu-003" not in fleet.record.wanted
    lifecycle.change(fleet, ("lab-gpu-001",), now=True)
    unknown = path.read_text().replace("e2-standard-4", "x9-mega-1")
    path.write_text(unknown.replace("max_cost: 4", "max_cost: 1000"))
    lifecycle.stop(fleet)
    with pytest.raises(ClusterError, match="what its machines cost is not known"):
        started(project, gpu=0, cpu=1)


def test_plan_and_check_show_price_and_quota_and_make_nothing(
    ems: Any, cloud: Any, cluster: str, project: Path
) -> None:
    found = json.loads(ems("cluster", "plan", "lab", "--json").stdout)
    gpu = found["lines"][1]
    assert (gpu["count"], gpu["sizes"], gpu["price_per_hour"]) == (2, ["n1-standard-4", "n1-standard-8"], 0.15)
    assert found["price_per_gpu_hour"] == pytest.approx(found["price_per_hour"] / 2)
    assert {each["subject"] for each in found["findings"]} >= {"credentials", "permissions", "quota", "image", "size"}
    shown = ems("cluster", "plan", "lab", "--nodes", "gpu=4")
    assert "a GPU-hour" in shown.stdout
    assert "PREEMPTIBLE_NVIDIA_T4_GPUS: 4 needed, 16 of 16 free" in shown.stderr
    cloud.quotas["PREEMPTIBLE_NVIDIA_T4_GPUS"] = 1
    bad = ems("cluster", "check", "lab", code=1)
    assert "2 needed, 1 of 1 free" in bad.stderr
    assert "quotas" in bad.stderr
    path = project / "cluster" / "lab.yaml"
    path.write_text(path.read_text().replace("size: e2-standard-4", "size: n4-standard-4"))
    assert "unknown" in ems("cluster", "plan", "lab").stdout
    assert cloud.left() == []


# -- a client that is killed ------------------------------------------------------------------------------------


def test_a_killed_start_asks_where_it_had_asked_though_another_zone_is_better_again(
    cloud: Any, cluster: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cloud.faults[f"exhausted:{_A}/n1-standard-4"] = 1
    change, running = cloud._change, list[Client]()

    def deadly(method: str, path: str, body: Any) -> Any:
        answer = change(method, path, body)
        if path == f"/zones/{_B}/instances/bulkInsert":
            running.pop().kill()
        return answer

    monkeypatch.setattr(cloud, "_change", deadly)
    running.append(Client(lambda: locked(project)))
    assert running[0].wait() == -signal.SIGKILL
    unlisted = [each for path, each in cloud.machines().items() if _B in path]
    for each in unlisted:
        each["_made"] = inf

    def lists(method: str, path: str, body: Any) -> Any:
        answer = change(method, path, body)
        for each in unlisted if "bulkInsert" in path else ():  # only once they are asked for
            each["_made"] = 0
        return answer

    monkeypatch.setattr(cloud, "_change", lists)
    cloud.faults.clear()
    [begun] = known("lab").journal.unfinished()
    with known("lab").journal.step(begun, ["lab-gpu-003"]):  # of another machine the answer from there has come since
        pass
    fleet = started(project)
    assert {name: place[0] for name, place in where(cloud).items() if "gpu" in name} == {
        "lab-gpu-001": "b",
        "lab-gpu-002": "b",
    }
    assert all(count == 1 for count in cloud.born.values())
    cloud.faults.update({"busy": 1, "not ready": 1})  # what held machines a moment ago does not go at once
    assert lifecycle.stop(fleet) > 0
    assert not cloud.faults.total()
    assert cloud.left() == []
