"""What cloud-init does in a machine of a cluster at its first boot: plain ``#cloud-config``, the same in every cloud.

A controller gets what is needed to log in, and no more: Ansible does the rest over SSH. A compute node gets, besides,
``/etc/ems/node.json`` and the script ``ems-node-boot``, by which it sets itself up from the share; nobody logs in to
it for that. Everything is written by a YAML emitter, so that no value can be more than a value. No secret is in it but
the machine's own host key.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Sequence
from typing import Any

import yaml

from ems.cluster import shipped
from ems.cluster.definition import Definition, node_name
from ems.cluster.keys import HostKey
from ems.errors import ClusterError
from ems.model import Json

MAX_COMPUTE = 4096  # bytes; what a node needs is on the share
MAX_CONTROLLER = 16 * 1024  # the least that a cloud takes (EC2)
LOGIN_UID = 2000
BOOT_SCRIPT, BOOT_UNIT = "/usr/local/sbin/ems-node-boot", "ems-node-boot.service"
NODE_FILE = "/etc/ems/node.json"
_MAX_KEYS = 20
# cloud-init's own `ssh_pwauth` restarts sshd after it has let the first ones in; this is there before sshd is
_SSHD_FILE = "/etc/ssh/sshd_config.d/10-ems.conf"
_SSHD = "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin no\n"
_OWN_KEYS = "/etc/ems/authorized_keys"
_MEMORY_SHARE = 0.95  # of what was asked for; the kernel keeps some, and SLURM drains a node that has less than it said


def controller_user_data(
    definition: Definition, host_key: HostKey, authorized_keys: Sequence[str], *, name: str | None = None
) -> str:
    """Return the user-data of the controller, or of another machine that Ansible sets up over SSH.

    Parameters
    ----------
    name
        The machine's; default: the controller's.
    authorized_keys
        The public keys that may log in; those that do not fit are left out, the first never.

    Raises
    ------
    ClusterError
        If it is longer than a cloud takes.
    """
    name = name or node_name(definition.name, "controller")
    for count in range(min(len(authorized_keys), _MAX_KEYS), 0, -1):
        config = _base(definition, name, host_key, authorized_keys[:count])
        facts = {"name": name, "role": "controller"}
        config["write_files"] = [_file(NODE_FILE, json.dumps(facts)), _file(_SSHD_FILE, _SSHD)]
        if len((text := _text(config)).encode()) <= MAX_CONTROLLER:
            return text
    raise ClusterError(f"the user-data of {name} is longer than {MAX_CONTROLLER} bytes", "leave keys out")


def compute_user_data(
    definition: Definition,
    name: str,
    kind: str,
    host_key: HostKey,
    authorized_keys: Sequence[str],
    *,
    incarnation: str,
    munge: str,
    controller: str = "",
    is_share_mounted: bool = True,
) -> str:
    """Return the user-data of a compute node.

    Parameters
    ----------
    name, kind
        The node's, e.g. ``demo-gpu-001`` and ``gpu``; without a name it asks the cloud for the one it was given.
    authorized_keys
        Who may log in even where the share is not there; only the first is put in.
    munge
        The fingerprint that the cluster's munge key has to have.
    controller
        The controller's address; empty where its name is known to every machine.
    is_share_mounted
        Whether machines come with the share (a volume); else they mount it from the controller.

    Raises
    ------
    ClusterError
        If it is longer than :data:`MAX_COMPUTE`.
    """
    facts = node_facts(definition, name, kind) | {
        "incarnation": incarnation,
        "munge": munge,
        "address": controller,
        "share": "volume" if is_share_mounted else "nfs",
    }
    config = _base(definition, name, host_key, ())
    files = shipped.templates() / "roles" / "slurm_compute" / "files"
    config["write_files"] = [
        _packed(
            NODE_FILE, json.dumps(facts, separators=(",", ":"), ensure_ascii=False).encode(), "0644"
        ),  # whatever stands in it, it fits
        _file(_OWN_KEYS, f"{authorized_keys[0]}\n" if authorized_keys else ""),
        _file(_SSHD_FILE, f"{_SSHD}AuthorizedKeysFile .ssh/authorized_keys {_OWN_KEYS}\n"),
        _packed(BOOT_SCRIPT, (files / "ems-node-boot").read_bytes(), "0755"),
        _packed(f"/etc/systemd/system/{BOOT_UNIT}", (files / BOOT_UNIT).read_bytes(), "0644"),
    ]
    config["runcmd"] = [["systemctl", "daemon-reload"], ["systemctl", "enable", "--now", "--no-block", BOOT_UNIT]]
    text = _text(config)
    if len(text.encode()) > MAX_COMPUTE:
        raise ClusterError(f"the user-data of {name or kind} is longer than {MAX_COMPUTE} bytes")
    return text


def node_facts(definition: Definition, name: str, kind: str) -> dict[str, Json]:
    """Return what a compute node is told of itself.

    ``slurmd`` is what it says to SLURM of itself (``slurmd -Z --conf``); empty where SLURM knows that already.
    """
    node = definition.kind(kind)
    words = [f"Feature={kind}"]
    if node.gpus:
        words.append("Gres=" + ":".join(["gpu", *([node.gpu_type] if node.gpu_type else []), str(node.gpus)]))
    if node.cpus is not None:
        words.append(f"CPUs={node.cpus}")
    if node.mem_gb is not None:
        words.append(f"RealMemory={int(node.mem_gb * 1024 * _MEMORY_SHARE)}")
    return {
        "name": name,
        "role": "compute",
        "kind": kind,
        "cluster": definition.name,
        "controller": node_name(definition.name, "controller"),
        "gpus": node.gpus,
        "slurmd": "" if definition.is_elastic else " ".join(words),
    }


def _base(definition: Definition, name: str, host_key: HostKey, authorized_keys: Sequence[str]) -> dict[str, Any]:
    """Return what every machine gets: its name, its host key, the login user."""
    user: dict[str, Any] = {
        "name": definition.login_user,
        "uid": LOGIN_UID,
        "shell": "/bin/bash",
        "sudo": "ALL=(ALL) NOPASSWD:ALL",
        "lock_passwd": True,
    }
    # a compute node's /home is the share's, which may not be there yet
    user |= {"ssh_authorized_keys": list(authorized_keys)} if authorized_keys else {"no_create_home": True}
    return {
        **({"hostname": name} if name else {}),
        "manage_etc_hosts": False,
        "disable_root": True,
        "apt": {"preserve_sources_list": True},  # else Ubuntu without lsb-release gets sources of no release
        "ssh_keys": {"ed25519_private": host_key.private, "ed25519_public": host_key.public},
        "users": [user],
    }


def _file(path: str, content: str) -> dict[str, str]:
    return {"path": path, "content": content}


def _packed(path: str, content: bytes, mode: str) -> dict[str, str]:
    packed = base64.b64encode(gzip.compress(content, mtime=0)).decode()
    return {"path": path, "encoding": "gz+b64", "permissions": mode, "content": packed}


def _text(config: dict[str, Any]) -> str:
    return "#cloud-config\n" + yaml.safe_dump(config, sort_keys=False, width=1 << 20)
