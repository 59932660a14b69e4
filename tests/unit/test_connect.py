"""What SLURM says of its partitions, which wheels a machine takes, how ssh is told of one."""

from __future__ import annotations

import pytest

from ems.cluster.connect import Partition, host_of, parse_partitions
from ems.cluster.install import platforms
from ems.errors import UsageError


def test_partitions_are_joined_from_the_kinds_of_their_nodes() -> None:
    text = (
        "cpu|cpu*|up|10|32|128000|(null)|1:00:00|2-00:00:00\n"
        "gpu|gpu|up|2|64+|515000|gpu:a100:4(S:0-1),shard:8|n/a|infinite\n"
        "gpu|gpu|up|1|128|1031000|gpu:h100:8|n/a|infinite\n"
        "old|old|down|3|8|16000|gpu:4|n/a|30:00\n"
        "a line of another kind\n"
    )
    cpu, gpu, old = parse_partitions(text)
    assert cpu == Partition("cpu", True, True, 10, 32, 128_000, (), "1:00:00", "2-00:00:00")
    assert gpu == Partition(
        "gpu", False, True, 3, 128, 1_031_000, ("gpu:a100:4", "shard:8", "gpu:h100:8"), "n/a", "infinite"
    )
    assert (old.is_up, old.gres) == (False, ("gpu:4",))


@pytest.mark.parametrize(
    ("machine", "libc", "first", "last"),
    [
        ("x86_64", ["glibc", "2.36"], "manylinux_2_36_x86_64", "manylinux1_x86_64"),
        ("aarch64", ["glibc", "2.17"], "manylinux_2_17_aarch64", "manylinux1_aarch64"),
        ("x86_64", ["", ""], "musllinux_1_2_x86_64", "musllinux_1_1_x86_64"),
    ],
)
def test_the_platforms_of_a_machine_are_those_up_to_its_libc(
    machine: str, libc: list[str], first: str, last: str
) -> None:
    found = platforms({"machine": machine, "libc": libc})
    assert (found[0], found[-1]) == (first, last)
    assert "manylinux_2_37_x86_64" not in found


def test_ssh_options_are_what_ssh_takes() -> None:
    host = host_of("me@login", ("ProxyJump=me@gate", "-p 2222 -4", "User=it's $(me)"))
    assert host.options == ("-o", "ProxyJump=me@gate", "-p", "2222", "-4", "-o", "User=it's $(me)")
    assert host.identity is None, "the user's own keys and agent"
    assert "BatchMode=yes" not in host.argv(["true"]), "ssh may ask for a password"


@pytest.mark.parametrize(
    "destination",
    ["", "-oProxyCommand=touch pwned", "me@a b", "me@a\nb", "ssh://me@a:22", "me@a:22", "me@::1", "me@a/b"],
)
def test_what_is_no_destination_is_refused(destination: str) -> None:
    with pytest.raises(UsageError, match="is no login node"):
        host_of(destination)


def test_an_option_that_cannot_be_read_is_said() -> None:
    with pytest.raises(UsageError, match="No closing quotation"):
        host_of("me@login", ("-p '22",))
