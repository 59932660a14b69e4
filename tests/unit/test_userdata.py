"""User-data: plain cloud-config, small, and no value in it is more than a value."""

from __future__ import annotations

import base64
import gzip
import json
import secrets
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ems.cluster import shipped, userdata
from ems.cluster.definition import Definition
from ems.cluster.keys import HostKey
from ems.errors import ClusterError

HOST_KEY = HostKey(
    6 * ("no key, but as many lines of its length: ".ljust(70, ".") + "\n"),
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILVlEgi1K93yRoUe4nIE24e/Yl0QJGZC3ZZmNz6CSBdf",
)
LOGIN = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGo8MdIJu6boYTZ815RebDu9lxkSau8Upi9UX1SYC9O/"
FINGERPRINT, INCARNATION = "4749b494bee49c3b949796eba6596c67", "0123456789abcdef" * 2


def define(name: str = "demo", **more: Any) -> Definition:
    nodes = {"gpu": {"gpus": 4, "gpu_type": "a100", "cpus": 4, "mem_gb": 2}, "cpu": {}}
    return Definition.model_validate({"name": name, "provider": "container", "nodes": nodes} | more)


def compute(definition: Definition, kind: str = "gpu", number: int = 1, **more: Any) -> dict[str, Any]:
    name = f"{definition.name}-{kind}-{number:03d}"
    facts = {"incarnation": INCARNATION, "munge": FINGERPRINT} | more
    text = userdata.compute_user_data(definition, name, kind, HOST_KEY, [LOGIN], **facts)
    assert text.startswith("#cloud-config\n")
    assert len(text.encode()) <= 4096
    found: dict[str, Any] = yaml.safe_load(text)
    return found


def files(config: dict[str, Any]) -> dict[str, bytes]:
    return {
        each["path"]: gzip.decompress(base64.b64decode(each["content"]))
        if each.get("encoding") == "gz+b64"
        else each["content"].encode()
        for each in config["write_files"]
    }


def test_a_compute_node_is_told_what_it_is() -> None:
    config = compute(define(), is_share_mounted=False, controller="10.0.0.2")
    assert config["hostname"] == "demo-gpu-001"
    assert json.loads(files(config)["/etc/ems/node.json"]) == {
        "name": "demo-gpu-001",
        "role": "compute",
        "kind": "gpu",
        "cluster": "demo",
        "controller": "demo-controller",
        "address": "10.0.0.2",
        "gpus": 4,
        "slurmd": "Feature=gpu Gres=gpu:a100:4 CPUs=4 RealMemory=1945",
        "munge": FINGERPRINT,
        "incarnation": INCARNATION,
        "share": "nfs",
    }


def test_what_the_definition_does_not_say_slurmd_finds_out() -> None:
    facts = json.loads(files(compute(define(), "cpu"))["/etc/ems/node.json"])
    assert (facts["slurmd"], facts["gpus"], facts["share"]) == ("Feature=cpu", 0, "volume")


def test_a_compute_node_gets_the_script_by_which_it_boots_and_runs_it() -> None:
    config = compute(define())
    roles = shipped.templates() / "roles" / "slurm_compute" / "files"
    written = files(config)
    assert written["/usr/local/sbin/ems-node-boot"] == (roles / "ems-node-boot").read_bytes()
    assert written["/etc/systemd/system/ems-node-boot.service"] == (roles / "ems-node-boot.service").read_bytes()
    modes = {each["path"]: each.get("permissions") for each in config["write_files"]}
    assert modes["/usr/local/sbin/ems-node-boot"] == "0755"
    assert config["runcmd"][-1] == ["systemctl", "enable", "--now", "--no-block", "ems-node-boot.service"]


def test_the_largest_node_fits() -> None:
    long = define("a" * 31, nodes={"g" * 16: {"gpus": 16, "gpu_type": "t" * 31, "cpus": 512, "mem_gb": 24000}})
    compute(long, "g" * 16, 999, controller="2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", is_share_mounted=False)


def test_user_data_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ClusterError, match="longer than 4096 bytes"):
        compute(define(), controller=secrets.token_hex(4000))


def test_the_host_key_is_the_one_known_before_the_first_login() -> None:
    for config in (compute(define()), yaml.safe_load(userdata.controller_user_data(define(), HOST_KEY, [LOGIN]))):
        assert config["ssh_keys"] == {"ed25519_private": HOST_KEY.private, "ed25519_public": HOST_KEY.public}
        assert b"PasswordAuthentication no\n" in files(config)["/etc/ssh/sshd_config.d/10-ems.conf"]


def test_the_login_user_may_log_in_and_become_root_on_the_controller() -> None:
    config = yaml.safe_load(userdata.controller_user_data(define(login_user="me"), HOST_KEY, [LOGIN]))
    (user,) = config["users"]
    assert (user["name"], user["uid"], user["ssh_authorized_keys"]) == ("me", 2000, [LOGIN])
    assert user["lock_passwd"] is True


def test_keys_that_do_not_fit_are_left_out_but_never_the_first() -> None:
    many = [LOGIN, *(f"ssh-rsa {'A' * 700}{number:04d}" for number in range(100))]
    text = userdata.controller_user_data(define(), HOST_KEY, many)
    kept = yaml.safe_load(text)["users"][0]["ssh_authorized_keys"]
    assert len(text.encode()) <= 16 * 1024
    assert kept == many[: len(kept)]
    assert 10 < len(kept) < 100
    with pytest.raises(ClusterError, match="longer than"):
        userdata.controller_user_data(define(), HOST_KEY, ["ssh-rsa " + "A" * 20000])


@given(st.text(max_size=200))
def test_no_value_is_more_than_a_value(hostile: str) -> None:
    """Whatever an address or a key holds: YAML reads it back as it was, and nothing beside it appears."""
    plain, config = compute(define()), compute(define(), controller=hostile[:100])
    assert json.loads(files(config)["/etc/ems/node.json"])["address"] == hostile[:100]
    assert plain.keys() == config.keys()
    assert len(plain["write_files"]) == len(config["write_files"])
    text = userdata.controller_user_data(define(), HOST_KEY, [LOGIN, hostile])
    assert yaml.safe_load(text)["users"][0]["ssh_authorized_keys"] == [LOGIN, hostile]


def test_the_private_key_is_in_no_text_about_it() -> None:
    assert "PRIVATE" not in repr(HOST_KEY)
    assert "PRIVATE" not in str(HOST_KEY)
