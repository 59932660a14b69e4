"""What Ansible is told, and what of its answers reaches the user; Ansible itself runs in tests/slurm."""

from __future__ import annotations

import json
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from ems.cluster import provision, shipped
from ems.cluster.definition import Definition
from ems.errors import ClusterError
from ems.ssh import Host

CONTENT = {
    "name": "demo",
    "provider": "container",
    "nodes": {"gpu": {"gpus": 4, "cpus": 4, "mem_gb": 2}, "cpu": {"cpus": 2, "mem_gb": 1}},
}


def definition(**changes: object) -> Definition:
    return Definition.model_validate({**CONTENT, **changes})


def run(folder: Path, **variables: object) -> provision._Run:
    host = Host("ems@10.0.0.1", 2222, folder / "key with space", folder / "known_hosts", "demo-controller")
    return provision._Run(folder, "demo-controller", "controller", host, variables, {})


def test_image_key_is_the_same_for_what_is_the_same() -> None:
    first, second = definition(), definition(name="other", partitions={"p": {"nodes": ["gpu"]}})
    assert provision.image_key(first, "gpu") == provision.image_key(second, "gpu")
    assert provision.image_key(first, "gpu") == provision.image_key(first, "cpu")
    assert provision.image_key(first, "gpu") != provision.image_key(first, "controller")


@pytest.mark.parametrize("changes", [{"packages": ["htop"]}, {"image": "debian:13"}, {"cuda": "12-6"}])
def test_image_key_changes_with_what_is_installed(changes: dict[str, object]) -> None:
    assert provision.image_key(definition(), "gpu") != provision.image_key(definition(**changes), "gpu")


def test_cuda_and_accounting_change_only_the_images_that_get_them() -> None:
    plain = definition()
    assert provision.image_key(plain, "cpu") == provision.image_key(definition(cuda="12-6"), "cpu")
    assert provision.image_key(plain, "gpu") == provision.image_key(definition(accounting=False), "gpu")
    assert provision.image_key(plain, "controller") != provision.image_key(definition(accounting=False), "controller")


def test_image_key_changes_with_a_role(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    before = {kind: provision.image_key(definition(), kind) for kind in ("gpu", "controller")}
    shutil.copytree(shipped.templates(), tmp_path / "templates")
    monkeypatch.setattr(shipped, "templates", lambda: tmp_path / "templates")
    assert provision.image_key(definition(), "gpu") == before["gpu"]
    role = tmp_path / "templates" / "roles" / "slurm_compute"
    (role / "files" / "ems-node").write_text("run from the share")
    assert provision.image_key(definition(), "gpu") == before["gpu"]
    (role / "tasks" / "main.yml").write_text("[]\n")
    assert provision.image_key(definition(), "gpu") != before["gpu"]
    assert provision.image_key(definition(), "controller") == before["controller"]


def test_packed_templates_are_the_same_bytes_and_hold_hooks(tmp_path: Path) -> None:
    hook = tmp_path / "mine.yml"
    hook.write_text("- hosts: all\n")
    packed = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        packed.append(provision._pack_templates(tmp_path / name, {"before-000.yml": hook}))
    assert packed[0].read_bytes() == packed[1].read_bytes()
    with tarfile.open(packed[0]) as tar:
        assert {"site.yml", "hooks/before-000.yml"} <= set(tar.getnames())
        assert tar.getmember("roles/slurm_compute/files/ems-node").mode == 0o755
        assert {member.mtime for member in tar.getmembers()} == {0}


def test_a_hook_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"gone\.yml is not there"):
        provision._hooks(definition(hooks={"before": str(tmp_path / "gone.yml")}))


def test_what_ansible_is_told_is_for_nobody_else(tmp_path: Path) -> None:
    with provision._folder(tmp_path) as folder:
        run(folder, ems_cluster="demo")._write()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        told = folder / "env" / "extravars"
        assert stat.S_IMODE(told.stat().st_mode) == 0o600
        assert json.loads(told.read_text()) == {"ems_cluster": "demo"}
        inventory = json.loads((folder / "inventory" / "hosts.json").read_text())
        assert inventory["controller"]["hosts"]["demo-controller"] == {
            "ansible_host": "10.0.0.1",
            "ansible_user": "ems",
        }
    assert not list(tmp_path.iterdir())


def test_ansible_reaches_a_machine_as_strictly_as_ssh_does(tmp_path: Path) -> None:
    import shlex

    words = shlex.split(run(tmp_path)._environ()["ANSIBLE_SSH_ARGS"])
    assert words == run(tmp_path).host.options_of_ssh()
    assert "StrictHostKeyChecking=yes" in words


@pytest.mark.parametrize(
    ("result", "message"),
    [
        ({"msg": "no such\n package"}, "no such package"),
        ({"msg": "\x1b[0;1;31mUnit is masked.\x1b[0m"}, "Unit is masked."),
        ({"msg": "non-zero return code", "stderr": "slurmctld: fatal"}, "slurmctld: fatal"),
        (
            {
                "msg": "non-zero return code",
                "stderr": "Shared connection to 10.0.0.1 closed.\r\n",
                "stdout": "fatal: x",
            },
            "fatal: x",
        ),
        ({"msg": "All items completed", "results": [{"msg": "fine"}, {"failed": True, "msg": "bad"}]}, "bad"),
        ({"censored": "the output has been hidden"}, "the output has been hidden"),
        ({}, "it gave no reason"),
    ],
)
def test_a_failed_task_says_why_in_a_line(result: dict[str, object], message: str) -> None:
    assert provision._message(result) == message


def test_events_become_progress_and_the_first_failure_an_error(tmp_path: Path) -> None:
    told: list[provision.Progress] = []
    this = run(tmp_path)
    data = {"host": "demo-controller", "role": "munge", "task": "Copy the key"}
    for kind, result in (
        ("playbook_on_task_start", {}),
        ("runner_on_ok", {"changed": True}),
        ("runner_on_failed", {"msg": "disk full"}),
        ("runner_on_failed", {"msg": "later"}),
    ):
        this._take({"event": kind, "event_data": {**data, "res": result}}, told.append, 0.0)
    assert [each.status for each in told] == ["running", "changed", "failed", "failed"]
    error = this._error("ems cluster setup demo")
    assert error.message == "setting up demo-controller failed at `Copy the key`: disk full"
    assert error.hint == "ems cluster setup demo"


def tasks() -> list[dict[str, Any]]:
    """Return every task of every role, in order."""
    files = sorted(shipped.templates().glob("roles/*/tasks/*.yml"))
    return [task for path in files for each in yaml.safe_load(path.read_text()) for task in each.get("block") or [each]]


@pytest.mark.parametrize("secret", ["ems_munge_key", "ems_rights"])
def test_every_task_that_names_a_secret_logs_nothing(secret: str) -> None:
    found = [task for task in tasks() if secret in json.dumps(task)]
    assert found
    assert all(task.get("no_log") for task in found)


@pytest.mark.parametrize(
    ("file", "state", "unit"),
    [
        ("/etc/ssh/sshd_config.d/", "reloaded", "ssh"),
        ("ems_rights", "restarted", "emsd"),
        ("emsd.service", "restarted", "emsd"),
    ],
)
def test_a_service_reads_what_was_put_there_for_it(file: str, state: str, unit: str) -> None:
    """Where it does not begin with that anyway: it goes on by what it has read before."""
    [bring] = [task for task in tasks() if file in json.dumps(task)]
    units = [task for task in tasks() if task.get("ansible.builtin.systemd_service", {}).get("name") == unit]
    assert any(f"{bring['register']} is changed" in json.dumps(task) and state in json.dumps(task) for task in units)
