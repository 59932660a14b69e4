"""Containers that boot systemd as the nodes of a libcloud driver: what libcloud has for clouds, on this computer.

User-data reaches cloud-init as on a machine without a network of its own: as a seed (NoCloud) in the container's
file system, put there between its creation and its first start.
"""

from __future__ import annotations

import io
import json
import re
import tarfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from libcloud.compute.base import Node, NodeDriver, NodeImage, NodeSize, StorageVolume
from libcloud.compute.types import NodeState

from ems.cluster.provider.engine import Engine

#: The label that names the labels of a resource: what a container has besides is its image's.
LABELS = "ems-labels"
_SEED = "var/lib/cloud/seed/nocloud"
_SSH = "22/tcp"
_IN_USE = re.compile(r"in use by|is being used by")  # podman's words, docker's words
_STATES = {
    "configured": NodeState.PENDING,
    "created": NodeState.PENDING,
    "initialized": NodeState.STARTING,
    "restarting": NodeState.STARTING,
    "running": NodeState.RUNNING,
    "paused": NodeState.PAUSED,
    "stopping": NodeState.STOPPING,
    "removing": NodeState.STOPPING,
    "exited": NodeState.STOPPED,
    "stopped": NodeState.STOPPED,
    "dead": NodeState.ERROR,
}


class ContainerNodeDriver(NodeDriver):
    """A libcloud driver whose nodes are containers.

    Parameters
    ----------
    engine
        What makes the containers.
    """

    name = "Containers"
    website = "https://github.com/apache/libcloud"
    type = "container"
    features = {"create_node": []}  # noqa: RUF012  # the name and kind that libcloud's base class has

    def __init__(self, engine: Engine) -> None:
        super().__init__(key="", secure=False)  # type: ignore[no-untyped-call]  # libcloud gives it no types
        self.engine = engine

    def create_node(
        self,
        name: str,
        size: NodeSize,
        image: NodeImage,
        location: object = None,
        auth: object = None,
        *,
        ex_userdata: str = "",
        ex_labels: Mapping[str, str] | None = None,
        ex_network: str | None = None,
        ex_volumes: Mapping[str, str] | None = None,
        ex_options: Sequence[str] = (),
        ex_files: Mapping[str, str] | None = None,
    ) -> Node:
        """Create a container and boot it.

        Parameters
        ----------
        size
            Its ``ram`` is in MB, ``extra["cpus"]`` a number; 0 or none: no limit.
        image
            Its id is the image's name.
        location, auth
            Containers have neither.
        ex_userdata
            What cloud-init executes at the first boot.
        ex_volumes
            Volume's name -> where it is mounted.
        ex_options
            Further options of the engine's ``create``.
        ex_files
            Path, without the first slash -> text, of files that only root may read.
        """
        del location, auth
        words = ["--pull=never", "--name", name, "--hostname", name, "--stop-signal=SIGRTMIN+3", "--shm-size=1g"]
        words += [*self.engine.adapt(str(image.id)), *label_options(ex_labels or {}), *ex_options]
        if self.engine.has_limits:
            words += [f"--memory={size.ram}m"] if size.ram else []
            cpus = size.extra.get("cpus")
            words += [f"--cpus={min(cpus, self.engine.most_cpus())}"] if cpus else []
        if ex_network:
            words += ["--network", ex_network]
        for volume, path in (ex_volumes or {}).items():
            words += ["--volume", f"{volume}:{path}"]
        container = self.engine.call("create", *words, str(image.id), "/sbin/init").split()[-1]
        files = {**(ex_files or {}), **_seed(name, container, ex_userdata)}
        self.engine.call("cp", "-", f"{container}:/", data=_packed(files))
        self.engine.call("start", container)
        return self._nodes([container])[0]

    def list_nodes(self, ex_labels: Mapping[str, str] | None = None) -> list[Node]:
        """Return the containers that carry labels."""
        return self._nodes(self.engine.ids("ps", "-aq", *_filters(ex_labels or {})))

    def ex_get_node(self, name: str) -> Node | None:
        """Return the container of that name, whoever made it."""
        found = self._nodes([name])
        return next((node for node in found if node.name == name), None)

    def destroy_node(self, node: Node) -> bool:
        """End and delete a container; that it is gone is no error."""
        self.engine.forget(*self.engine.dialect.remove, _id(node))
        return True

    def start_node(self, node: Node) -> bool:
        """Boot a container that was stopped."""
        self.engine.adapt(self.ex_image_of(node))  # after a restart of this computer what podman needs is gone
        self.engine.call("start", _id(node))
        return True

    def stop_node(self, node: Node) -> bool:
        """Shut systemd down; after 30 s it is ended."""
        self.engine.call("stop", "-t", "30", _id(node))
        return True

    def list_images(self, location: object = None, *, ex_labels: Mapping[str, str] | None = None) -> list[NodeImage]:
        """Return the images that were made of nodes; one whose name another took has its id for a name."""
        del location
        ids = self.engine.ids("images", "-q", *_filters(ex_labels or {}))
        found = self._inspect("image", sorted(set(ids)))
        tags = [(tag, each) for each in found for tag in each.get("RepoTags") or [each["Id"]]]
        return [NodeImage(tag, tag, self, _own(_labels(each))) for tag, each in tags]

    def list_sizes(self, location: object = None) -> list[NodeSize]:
        """Return nothing: containers have no sizes."""
        del location
        return []

    def create_image(  # type: ignore[override]  # libcloud says a list of images; its drivers return one
        self, node: Node, name: str, description: str | None = None, *, ex_labels: Mapping[str, str] | None = None
    ) -> NodeImage:
        """Make an image of a container's file system."""
        del description
        changes = [f"LABEL {key}={json.dumps(value)}" for key, value in _marked(ex_labels or {}).items()]
        words = [word for change in changes for word in ("--change", change)]
        reference = f"localhost/{name}:latest"
        self.engine.call("commit", *words, _id(node), reference)
        return NodeImage(reference, reference, self, dict(ex_labels or {}))

    def delete_image(self, node_image: NodeImage) -> bool:
        """Delete an image; one that is gone, or that a container runs from, is no error: the latter stays."""
        return self.engine.forget("image", "rm", node_image.id or node_image.name, unless=_IN_USE)

    def create_volume(
        self,
        size: int,
        name: str,
        location: object = None,
        snapshot: object = None,
        *,
        ex_labels: Mapping[str, str] | None = None,
    ) -> StorageVolume:
        """Make a volume; containers' volumes have no size."""
        del size, location, snapshot
        self.engine.call("volume", "create", *label_options(ex_labels or {}), name)
        return self._volume(name, dict(ex_labels or {}))

    def list_volumes(self, ex_labels: Mapping[str, str] | None = None) -> list[StorageVolume]:
        """Return the volumes that carry labels."""
        found = self._listed("volume", _filters(ex_labels or {}))
        return [self._volume(each["Name"], _own(_labels(each))) for each in found]

    def destroy_volume(self, volume: StorageVolume) -> bool:
        """Delete a volume; that it is gone is no error."""
        self.engine.forget("volume", "rm", volume.id)
        return True

    def ex_create_network(self, name: str, subnet: str | None, labels: Mapping[str, str]) -> None:
        """Make a network whose containers find each other by name."""
        self.engine.call("network", "create", *label_options(labels), *(["--subnet", subnet] if subnet else []), name)

    def ex_list_networks(self, labels: Mapping[str, str] | None) -> list[tuple[str, dict[str, str], list[str]]]:
        """Return name, labels and address ranges of the networks that carry labels; None: of all, whoever made them."""
        found = self._listed("network", [] if labels is None else _filters(labels))
        return [(_field(each, "Name"), _own(_labels(each)), _ranges(each)) for each in found]

    def ex_destroy_network(self, name: str) -> None:
        """Delete a network; that it is gone is no error."""
        self.engine.forget("network", "rm", name)

    def ex_mounts(self, node: Node) -> list[str]:
        """Return the paths at which something is mounted in a container."""
        found = self._inspect("container", [_id(node)])
        return [str(mount["Destination"]) for each in found for mount in each.get("Mounts") or ()]

    def ex_image_of(self, node: Node) -> str:
        """Return the id of the image that a container was made from; empty if it is gone."""
        return next((str(each["Image"]) for each in self._inspect("container", [_id(node)])), "")

    def ex_run(self, node: Node, script: str) -> None:
        """Run a shell script in a container, as root."""
        self.engine.call("exec", _id(node), "sh", "-c", script)

    def _volume(self, name: str, labels: dict[str, str]) -> StorageVolume:
        return StorageVolume(name, name, 0, self, extra={"labels": labels})

    def _listed(self, thing: str, filters: Sequence[str]) -> list[Any]:
        return self._inspect(thing, self.engine.ids(thing, "ls", "-q", *filters))

    def _inspect(self, thing: str, ids: Sequence[str]) -> list[Any]:
        """Return what the engine says of each that is there; what was deleted in the meantime is left out."""
        if not ids:
            return []
        found = list(self.engine.ask(thing, "inspect", *ids))
        if len(found) < len(ids) > 1:
            found = [part for each in ids for part in self.engine.ask(thing, "inspect", each)]
        return found

    def _nodes(self, ids: Sequence[str]) -> list[Node]:
        return [self._node(each) for each in self._inspect("container", ids)]

    def _node(self, found: dict[str, Any]) -> Node:
        networks = (found.get("NetworkSettings") or {}).get("Networks") or {}
        addresses = [each["IPAddress"] for each in networks.values() if each.get("IPAddress")]
        published = ((found.get("NetworkSettings") or {}).get("Ports") or {}).get(_SSH) or []
        return Node(
            id=found["Id"],
            name=found["Name"].removeprefix("/"),
            state=_STATES.get(found["State"]["Status"], NodeState.UNKNOWN),
            public_ips=["127.0.0.1"] if published else [],
            private_ips=addresses,
            driver=self,
            extra={
                "labels": _own(_labels(found)),
                "ssh_port": int(published[0]["HostPort"]) if published else None,
            },
            created_at=_moment(found.get("Created")),
        )


def _moment(said: str | None) -> datetime | None:
    """Read when a container was made: to the nanosecond, which Python does not know."""
    return datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", said)) if said else None


def _id(node: Node) -> str:
    return str(node.id or node.name)


def label_options(labels: Mapping[str, str]) -> list[str]:
    """Return the engine's options for labels."""
    return [word for key, value in _marked(labels).items() for word in ("--label", f"{key}={value}")]


def labels_of(thing: Node | StorageVolume) -> dict[str, str]:
    """Return the labels of a container or volume of this driver."""
    return dict((thing.extra or {})["labels"])


def _marked(labels: Mapping[str, str]) -> dict[str, str]:
    return {**labels, LABELS: ".".join(sorted(labels))}


def _own(labels: Mapping[str, str]) -> dict[str, str]:
    """Return the labels that a resource was given itself, without those of what it was made from."""
    keys = labels.get(LABELS, "").split(".")
    return {key: labels[key] for key in keys if key in labels}


def _filters(labels: Mapping[str, str]) -> list[str]:
    wanted = [f"label={LABELS}", *(f"label={key}={value}" for key, value in labels.items())]
    return [word for each in wanted for word in ("--filter", each)]


def _labels(found: Mapping[str, Any]) -> dict[str, str]:
    """Return labels where `inspect` of either engine has them."""
    config = found.get("Config") or {}
    return dict(config.get("Labels") or found.get("Labels") or found.get("labels") or {})


def _field(found: Mapping[str, Any], key: str) -> str:
    return str(found.get(key) or found.get(key.lower()) or "")


def _ranges(network: Mapping[str, Any]) -> list[str]:
    docker = (network.get("IPAM") or {}).get("Config") or []
    return [str(_field(each, "Subnet")) for each in [*docker, *(network.get("subnets") or [])]]


def _seed(name: str, instance: str, user_data: str) -> dict[str, str]:
    """Return the files of cloud-init's seed, which holds the machine's host key."""
    meta_data = f"instance-id: i-{instance[:32]}\nlocal-hostname: {name}\n"
    return {f"{_SEED}/meta-data": meta_data, f"{_SEED}/user-data": user_data}


def _packed(files: Mapping[str, str]) -> bytes:
    """Return an archive of files that only root may read."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, text in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(text.encode()), 0o600
            archive.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()
