"""What clouds have in common: where to try next, when to ask again, what machines cost, from where SSH gets in."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ems.cluster import forecast, price
from ems.cluster.definition import ContainerSection, Definition
from ems.cluster.failover import BACKOFF_S, Failover
from ems.cluster.images import LEASE_S
from ems.cluster.provider import address, connect, gcewords, googleapi, pricing
from ems.cluster.provider.backoff import Backoff
from ems.cluster.provider.base import CLEAN_SCRIPT, CLUSTER, KIND, MachineRequest, MachineState, Resource, Thing
from ems.cluster.provider.lease import leased
from ems.cluster.provider.pool import Drivers, side_by_side
from ems.errors import ClusterError, ProviderError, UsageError


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


# -- where to try next ------------------------------------------------------------------------------------------


def test_all_zones_are_tried_for_a_size_before_the_next_size() -> None:
    clock = Clock()
    failover = Failover(clock=clock)
    assert failover.places(["a", "b"], ["big", "small"]) == [
        ("a", "big"),
        ("b", "big"),
        ("a", "small"),
        ("b", "small"),
    ]
    failover.refused(("a", "big"))
    assert failover.places(["a", "b"], ["big"]) == [("b", "big")]
    assert failover.opens_in(["a", "b"], ["big"]) == 0
    assert failover.opens_in(["a"], ["big"]) == BACKOFF_S
    clock.now += BACKOFF_S
    assert failover.places(["a"], ["big"]) == [("a", "big")]
    assert failover.places([], []) == [(None, None)]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.floats(0, 700)), max_size=12))
@settings(max_examples=40)
def test_no_place_is_tried_within_its_back_off_and_every_place_after_it(refusals: list[tuple[str, str, float]]) -> None:
    clock = Clock()
    failover = Failover(clock=clock)
    last: dict[tuple[str | None, str | None], float] = {}
    for zone, size, pause_s in refusals:
        failover.refused((zone, size))
        last[zone, size] = clock.now
        clock.now += pause_s
        open_ = failover.places("abc", "xy")
        every = [(zone, size) for size in "xy" for zone in "abc"]
        assert open_ == [each for each in every if clock.now - last.get(each, -1e9) >= BACKOFF_S]
        wait_s = failover.opens_in("abc", "xy")
        assert (wait_s == 0) == bool(open_)
        assert wait_s <= BACKOFF_S


# -- when to ask again ------------------------------------------------------------------------------------------


def test_what_passes_is_asked_again_with_growing_waits_and_a_bound() -> None:
    waits: list[float] = []
    backoff = Backoff(first_s=1, longest_s=8, total_s=60, sleep=waits.append)
    tries = iter(range(100))

    def call() -> int:
        if next(tries) < 5:
            raise OSError("busy")
        return 7

    assert backoff.retry(call, lambda error: isinstance(error, OSError)) == 7
    assert len(waits) == 5
    assert all(0 <= wait <= min(8, 2**number) for number, wait in enumerate(waits))

    def never() -> None:
        raise OSError("busy")

    waits.clear()
    with pytest.raises(OSError, match="busy"):
        backoff.retry(never, lambda _error: True)
    assert 0 < sum(waits) <= 60
    waits.clear()
    with pytest.raises(OSError, match="busy"):
        backoff.retry(never, lambda _error: False)
    assert waits == []


def test_a_driver_has_one_user_at_a_time_and_is_used_again() -> None:
    made: list[object] = []

    def make() -> object:
        made.append(object())
        return made[-1]

    drivers = Drivers(make)
    together = threading.Barrier(4, timeout=120)

    def use(_: int) -> object:
        with drivers.one() as driver:
            together.wait()
            return driver

    assert len(set(map(id, side_by_side(use, range(4), at_once=4)))) == 4
    with drivers.one() as again:
        assert again in made
    assert len(made) == 4


# -- what machines cost -----------------------------------------------------------------------------------------


def cluster(**more: Any) -> Definition:
    content = {"name": "demo", "provider": {"kind": "gce"}, "controller": {"size": "e2-standard-2"}, **more}
    return Definition.model_validate(
        {"nodes": {"gpu": {"size": "n1-standard-4", "gpus": 2, "gpu_type": "t4"}}} | content
    )


def test_a_price_is_the_size_and_its_gpus_and_never_nothing() -> None:
    on_demand, spot = cluster(), cluster(nodes={"gpu": {"size": "n1-standard-4", "gpus": 2, "spot": True}})
    assert price.of_kind(on_demand, "gpu") == pytest.approx(4 * 0.031611 + 15 * 0.004237 + 2 * 0.35)
    assert price.of_kind(spot, "gpu") == pytest.approx(4 * 0.006655 + 15 * 0.000892 + 2 * 0.11)
    assert price.of_kind(cluster(nodes={"big": {"size": "x9-mega-1"}}), "big") is None
    assert price.of_kind(cluster(nodes={"big": {"size": "x9-mega-1"}}, prices={"x9-mega-1": 3.5}), "big") == 3.5
    own = cluster(prices={"n1-standard-4": 0.1, "t4": 0.2})
    assert price.of_kind(own, "gpu") == pytest.approx(0.1 + 2 * 0.2)
    built_in = cluster(nodes={"gpu": {"size": "g2-standard-4", "gpus": 1, "gpu_type": "l4"}})
    assert price.of_kind(built_in, "gpu") == 0.7068
    assert price.of_kind(cluster(nodes={"gpu": {"cpus": 4, "mem_gb": 16}}), "gpu") == pytest.approx(
        4 * 0.02181159 + 16 * 0.00292353
    )
    elsewhere = cluster(provider={"kind": "gce", "region": "europe-west6"})
    assert price.of_kind(elsewhere, "gpu") is None, "a GPU's price is known for some regions only"
    assert pricing.listed("gce", "europe-west6", "c2-standard-4", spot=False) is None, "0 in the table is not known"
    assert pricing.listed("aws", "us-west-2", "g5.xlarge", spot=False) is None
    assert pricing.listed("aws", "us-east-1", "m5.large", spot=False) == 0.096


def test_a_sum_with_an_unknown_price_is_unknown() -> None:
    found = forecast.forecast(cluster(), {"gpu": 3})
    assert found.price_per_hour == pytest.approx(0.06701142 + 3 * price.of_kind(cluster(), "gpu"))  # type: ignore[operator]  # it is known
    assert found.price_per_gpu_hour == pytest.approx(found.price_per_hour / 6)  # type: ignore[operator]
    unknown = forecast.forecast(cluster(nodes={"gpu": {"size": "x9-mega-1", "gpus": 8}}), {})
    assert (unknown.price_per_hour, unknown.price_per_gpu_hour) == (None, None)
    with pytest.raises(UsageError, match="no kind of node `cpu`"):
        forecast.forecast(cluster(), {"cpu": 1})
    cards = {"machineType": "u/n1-standard-8", "guestAccelerators": [{"acceleratorType": "u/nvidia-tesla-t4"}]}
    cards["guestAccelerators"][0]["acceleratorCount"] = 2  # type: ignore[index]
    machine = gcewords.machine_of({"name": "theirs-x-001", "zone": "z", "status": "RUNNING", **cards})
    bare = 8 * 0.031611 + 30 * 0.004237
    assert price.of_machines(cluster(), [machine]) == pytest.approx(bare + 2 * 0.35), "of whatever definition it is"
    built_in = gcewords.machine_of(
        {"name": "a", "zone": "z", "status": "RUNNING", **cards, "machineType": "g2-standard-4"}
    )
    assert price.of_machines(cluster(), [built_in]) == 0.7068
    unsized = Resource(Thing.MACHINE, "1", "theirs-gpu-001", {CLUSTER: "theirs", KIND: "gpu"}, MachineState.RUNNING)
    assert price.of_machines(cluster(), [unsized, machine]) is None
    mine = price.of_machines(cluster(), [replace(unsized, labels={CLUSTER: "demo", KIND: "gpu"})])
    assert mine == price.of_kind(cluster(), "gpu")


# -- what Google is told ----------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from(["gpu", "cpu"]), st.booleans()), max_size=30))
@settings(max_examples=30)
def test_each_machine_is_in_one_call_with_those_that_are_alike(wishes: list[tuple[str, bool]]) -> None:
    requests = [
        MachineRequest(f"demo-{kind}-{number:03d}", "debian:12", "", {CLUSTER: "demo", KIND: kind}, spot=spot)
        for number, (kind, spot) in enumerate(wishes)
    ]
    groups = gcewords.alike(requests)
    assert sorted(each.name for group in groups for each in group) == sorted(each.name for each in requests)
    assert len(groups) == len({(kind, spot) for kind, spot in wishes})
    assert all(len({(each.labels[KIND], each.spot) for each in group}) == 1 for group in groups)


@pytest.mark.parametrize(
    ("wish", "size", "accelerator"),
    [
        ({}, "e2-standard-2", ""),
        ({"gpus": 1}, "n1-standard-4", "nvidia-tesla-t4"),
        ({"gpus": 1, "gpu_type": "v100", "size": "n1-standard-8"}, "n1-standard-8", "nvidia-tesla-v100"),
        ({"gpus": 8, "gpu_type": "a100", "size": "a2-highgpu-8g"}, "a2-highgpu-8g", ""),
        ({"cpus": 3}, "e2-custom-4-16384", ""),
        ({"cpus": 4, "mem_gb": 6.1}, "e2-custom-4-6144", ""),
        ({"cpus": 8, "gpus": 2, "gpu_type": "t4"}, "custom-8-32768", "nvidia-tesla-t4"),
    ],
)
def test_sizes_and_gpus_are_google_s(wish: dict[str, Any], size: str, accelerator: str) -> None:
    request = MachineRequest("demo-gpu-001", "debian:12", "", {}, **wish)
    assert (gcewords.size_of(request), gcewords.accelerator_of(request)) == (size, accelerator)


def test_no_image_holds_the_lease_of_the_machine_it_is_of() -> None:
    """Machines of such an image would end at once, or never."""
    said = leased(MachineRequest("demo-bake-gpu", "debian:12", "#cloud-config\n", {}, lease_s=LEASE_S))
    path = re.search(r"^f=(\S+)$", said, re.MULTILINE)
    assert path is not None
    assert path[1] in CLEAN_SCRIPT.split()
    assert str(LEASE_S) in said


def test_a_machine_asks_for_a_new_token_before_the_old_one_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, asked = Clock(), list[str]()

    def ask(url: str, headers: dict[str, str], method: str = "GET") -> str:
        assert (headers, method) == ({"Metadata-Flavor": "Google"}, "GET")
        asked.append(url.partition("/computeMetadata/v1/")[2])
        if len(asked) == 3:
            raise ConnectionRefusedError("nobody answers")
        return json.dumps({"access_token": f"t{len(asked)}", "expires_in": 600, "token_type": "Bearer"})

    monkeypatch.setattr(googleapi.metadata, "ask", ask)
    monkeypatch.setattr(googleapi.time, "monotonic", clock)
    machine = googleapi._Machine()
    assert [machine.access_token, machine.access_token] == ["t1", "t1"]
    clock.now += 400  # Google's own server gives another one from five minutes before
    assert machine.access_token == "t2"
    clock.now += 400
    with pytest.raises(googleapi.ApiError, match="does not tell this machine who it is: nobody answers") as caught:
        _ = machine.access_token
    assert caught.value.is_passing, "a server that restarts is asked again"
    assert machine.access_token == "t4"
    assert set(asked) == {"instance/service-accounts/default/token"}


def test_what_somebody_else_described_is_none_of_ours() -> None:
    link = {"selfLink": "https://www.googleapis.com/compute/v1/projects/p/global/networks/ems-x", "name": "ems-x"}
    for text in ("", "my own network", "[1, 2]", '{"team": "vision"}'):
        assert gcewords.described(Thing.NETWORK, {**link, "description": text}) is None
    ours = gcewords.described(Thing.NETWORK, {**link, "description": gcewords.description({CLUSTER: "x"})})
    assert ours is not None
    assert (ours.id, ours.labels) == ("/global/networks/ems-x", {CLUSTER: "x"})


# -- from where SSH gets in -------------------------------------------------------------------------------------


def answering(answer: bytes) -> tuple[str, int]:
    """Return the address of a name server that gives one answer, once."""
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", 0))

    def serve() -> None:
        with server:
            query, who = server.recvfrom(512)
            server.sendto(query + answer, who)

    threading.Thread(target=serve, daemon=True).start()
    port: int = server.getsockname()[1]
    return "127.0.0.1", port


def test_the_own_address_is_what_the_internet_sees() -> None:
    good = answering(b"\xc0\x0c\0\x10\0\1\0\0\0\x3c\0\x0b\x0a93.184.21.7")
    assert address.own_address(good, timeout_s=120, tries=1) == "93.184.21.7"
    for answer, said in ((b"\x0a10.1.2.3", "no public address"), (b"", "holds no address")):
        with pytest.raises(ProviderError, match=said) as caught:
            address.own_address(answering(answer), timeout_s=120, tries=1)
        assert "ssh_from" in caught.value.hint
    assert address.sources(["192.0.2.0/24"]) == ["192.0.2.0/24"]
    assert address.sources(["anywhere"]) == ["0.0.0.0/0"]


def test_a_definition_of_a_cloud_says_what_is_wrong(tmp_path: Path) -> None:
    from ems.cluster import catalog
    from ems.errors import ConfigError

    (tmp_path / "cluster").mkdir()
    path = tmp_path / "cluster" / "mine.yaml"
    for text, said, hint in (
        (
            "provider: {kind: gce, regoin: x}\nnodes: {gpu: {}}",
            "unknown key `provider.regoin`",
            "did you mean `region`?",
        ),
        (
            "provider: {kind: gce, ssh_from: home}\nnodes: {gpu: {}}",
            "`provider.ssh_from` should be an address range",
            "",
        ),
        ("provider: {kind: gce, labels: {ems-id: x}}\nnodes: {gpu: {}}", "not begin with ems-", ""),
        ("provider: gce\nnodes: {gpu: {min: 2}}", "`nodes.gpu` has a min without a max", "say `max`"),
        ("provider: {kind: gcee}\nnodes: {gpu: {}}", "`provider.kind` should be one of", "did you mean `gce`?"),
        ("provider: gce\nnodes: {gpu: {}}\nprices: {x: -1}", "`prices.x` should be greater", ""),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError, match=r"mine\.yaml line \d") as caught:
            catalog.load("mine", tmp_path)
        assert said in caught.value.message
        assert hint in caught.value.hint


def test_without_its_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ems.cluster.provider.container", raising=False)
    monkeypatch.setitem(sys.modules, "libcloud.compute.base", None)
    with pytest.raises(ClusterError, match="is not installed") as caught:
        connect(ContainerSection())
    assert "ems[cluster]" in caught.value.hint
