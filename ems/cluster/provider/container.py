"""The provider `container`: a cluster's machines are containers on this computer."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING

from libcloud.compute.base import Node, NodeImage, NodeSize, StorageVolume
from libcloud.compute.types import NodeState

from ems.cluster.provider import bulk, enginesocket
from ems.cluster.provider.base import (
    CLEAN_SCRIPT,
    CLUSTER,
    ROLE,
    MachineRequest,
    MachineState,
    Refusal,
    Resource,
    Thing,
    Traits,
    controllers_first,
)
from ems.cluster.provider.driver import ContainerNodeDriver, labels_of
from ems.cluster.provider.engine import find
from ems.cluster.provider.enginesocket import Service
from ems.cluster.provider.images import DISTRIBUTIONS, base_image, has_image, image_name
from ems.cluster.provider.pool import side_by_side
from ems.errors import ProviderError

if TYPE_CHECKING:
    from ems.cluster.definition import ContainerSection

_IMAGE_GB, _MACHINE_GB = 1.5, 0.3  # what a base image takes while it is made, and a machine that does nothing
_STATES = {
    NodeState.PENDING: MachineState.STARTING,
    NodeState.STARTING: MachineState.STARTING,
    NodeState.RUNNING: MachineState.RUNNING,
    NodeState.STOPPING: MachineState.STOPPING,
    NodeState.STOPPED: MachineState.STOPPED,
    NodeState.PAUSED: MachineState.STOPPED,
    NodeState.ERROR: MachineState.FAILED,
}


@dataclass(frozen=True, slots=True)
class _Names:
    """What the machines of a cluster share; deterministic."""

    network: str
    home: str
    opt: str

    @classmethod
    def of(cls, cluster: str) -> _Names:
        return cls(f"ems-{cluster}", f"ems-{cluster}-home", f"ems-{cluster}-opt")

    def volumes(self) -> dict[str, str]:
        return {self.home: "/home", self.opt: "/opt/ems"}


class ContainerProvider:
    """Machines that are containers with systemd, by docker or podman; see :class:`~.base.Provider`.

    Parameters
    ----------
    section
        What the definition says of its provider.
    notify
        Is told of what takes long.
    as_instance
        Whether this runs on a cluster's controller, and the engine is that of the computer around it.
    """

    traits = Traits(
        has_shared_volume=True,
        has_images=True,
        stop_keeps_address=False,
        has_names=True,
        is_free=True,
        cleans_images=True,
    )

    def __init__(
        self,
        section: ContainerSection,
        notify: Callable[[str], None] = lambda _text: None,
        *,
        as_instance: bool = False,
    ) -> None:
        self.section = section
        self.notify = notify
        self.outer = enginesocket.here() if as_instance else None
        self.driver = ContainerNodeDriver(self.outer or find(section.engine))
        self.traits = replace(type(self).traits, client=self.driver.engine.name)

    def check(self, requests: Sequence[MachineRequest]) -> None:
        """Find out what can be wrong before anything is made: image, size, GPUs, address range, disk."""
        for request in requests:
            _check_name(request)
            self._check_image(request.image)
        if self.outer is not None:  # of the computer around this machine nothing more can be seen
            return
        if self.section.real_gpus:
            _check_gpus(requests)
        self._check_subnet({_Names.of(request.labels[CLUSTER]).network for request in requests})
        self._check_disk(requests)

    def prepare(self, labels: dict[str, str]) -> None:
        """Make the network and the volumes of /home and /opt/ems, unless they are there."""
        names = _Names.of(labels[CLUSTER])
        networks = {name: found for name, found, _ in self.driver.ex_list_networks({})}
        if names.network in networks:
            bulk.check_owner(names.network, networks[names.network], labels)
        else:
            self.driver.ex_create_network(names.network, self.section.subnet, labels)
        volumes = {each.name: labels_of(each) for each in self.driver.list_volumes()}
        for name in names.volumes():
            if name in volumes:
                bulk.check_owner(name, volumes[name], labels)
            else:
                self.driver.create_volume(0, name, ex_labels=labels)

    def make_images(self, images: Sequence[str]) -> None:
        """Have the images of distributions: a controller that makes nodes cannot make those, too."""
        for image in DISTRIBUTIONS.keys() & set(images):
            base_image(self.driver.engine, image, self.notify)

    def create(self, requests: Sequence[MachineRequest]) -> list[Resource | Refusal]:
        """Make containers side by side; see :meth:`.base.Provider.create`."""
        images: dict[str, str | Refusal] = {}
        for request in requests:
            if request.image not in images:
                images[request.image] = self._image(request)
        return side_by_side(lambda request: self._create(request, images[request.image]), requests)

    def list(self, labels: dict[str, str] | None = None) -> list[Resource]:
        """Return what carries labels: containers, networks, volumes, images."""
        wanted = labels or {}
        listings = (self._machines, self._networks, self._volumes, self._images)
        found = [each for part in side_by_side(lambda do: do(wanted), listings) for each in part]
        return [each for each in found if CLUSTER in each.labels and wanted.items() <= each.labels.items()]

    def destroy(self, resources: Sequence[Resource]) -> None:
        """Delete resources, containers first."""
        side_by_side(self._destroy, [each for each in resources if each.thing is Thing.MACHINE])
        side_by_side(self._destroy, [each for each in resources if each.thing is not Thing.MACHINE])
        if self.outer is None:
            for cluster in {each.labels[CLUSTER] for each in resources if _is_base(each)}:
                Service(cluster).forget()
        self.driver.engine.release()

    def start(self, machines: Sequence[Resource]) -> None:
        """Boot containers that are stopped, controllers first."""
        for group in controllers_first(machines):
            side_by_side(self._start, group)

    def stop(self, machines: Sequence[Resource]) -> None:
        """Shut containers down, controllers last."""
        for group in reversed(controllers_first(machines)):
            side_by_side(lambda each: self.driver.stop_node(self._node(each)), group)
        if self.outer is None:
            for each in filter(_is_base, machines):
                Service(each.labels[CLUSTER]).end()

    def save_image(self, machine: Resource, name: str, labels: dict[str, str]) -> Resource:
        """Make an image of a container without what is its alone; it is stopped for it."""
        node = self._node(machine)
        if machine.state is MachineState.STOPPED:
            self.driver.start_node(node)
        self.driver.ex_run(node, CLEAN_SCRIPT)
        self.driver.stop_node(node)
        image = self.driver.create_image(node, name, ex_labels=labels)
        return Resource(Thing.IMAGE, image.id, name, dict(labels))

    def _start(self, machine: Resource) -> None:
        node = self._node(machine)
        if self.outer is None and enginesocket.is_mounted(self.driver.ex_mounts(node)):
            Service(machine.labels[CLUSTER]).have(self.driver.engine, self.driver.ex_image_of(node))
        self.driver.start_node(node)

    def _machines(self, wanted: dict[str, str]) -> Sequence[Resource]:
        return [_resource(node) for node in self.driver.list_nodes(wanted)]

    def _networks(self, wanted: dict[str, str]) -> Sequence[Resource]:
        found = self.driver.ex_list_networks(wanted)
        return [Resource(Thing.NETWORK, name, name, labels) for name, labels, _ in found]

    def _volumes(self, wanted: dict[str, str]) -> Sequence[Resource]:
        found = self.driver.list_volumes(wanted)
        return [Resource(Thing.VOLUME, each.id, each.name, labels_of(each)) for each in found]

    def _images(self, wanted: dict[str, str]) -> Sequence[Resource]:
        found = self.driver.list_images(ex_labels=wanted)
        return [Resource(Thing.IMAGE, each.id, _short(each.id), each.extra) for each in found]

    def _create(self, request: MachineRequest, image: str | Refusal) -> Resource | Refusal:
        if isinstance(image, Refusal):
            return Refusal(request.name, image.reason, image.hint)
        try:
            machine = _resource(self._found(request) or self._boot(request, image))
            if self._sees_engine(request):
                # only now: while there is no container, podman's namespace may go, and with it the service
                Service(request.labels[CLUSTER]).have(self.driver.engine, image)
        except ProviderError as error:
            return Refusal(request.name, error.message, error.hint)
        return machine

    def _found(self, request: MachineRequest) -> Node | None:
        """Return the container that is there already; one that never ran, of a start that was cut off, is deleted."""
        found = self.driver.ex_get_node(request.name)
        if found is None:
            return None
        bulk.check_owner(request.name, labels_of(found), request.labels)
        if found.state != NodeState.PENDING:
            return found
        self.driver.destroy_node(found)
        return None

    def _sees_engine(self, request: MachineRequest) -> bool:
        return request.is_trusted and self.outer is None

    def _boot(self, request: MachineRequest, image: str) -> Node:
        names = _Names.of(request.labels[CLUSTER])
        ram = int((request.mem_gb or 0) * 1024)
        options = ["--publish=127.0.0.1::22"] * request.is_public
        files: dict[str, str] = {}
        if self._sees_engine(request):
            options += enginesocket.options(self.driver.engine, request.labels[CLUSTER])
            files = {enginesocket.FACTS: enginesocket.told(self.driver.engine, image)}
        try:
            return self.driver.create_node(
                request.name,
                NodeSize("", "", ram, 0, 0, 0.0, self.driver, extra={"cpus": request.cpus}),
                NodeImage(image, image, self.driver),
                ex_userdata=request.user_data,
                ex_labels=request.labels,
                ex_network=names.network,
                ex_volumes=names.volumes(),
                ex_options=[*options, *self._gpu_options(request.gpus), *self.section.options],
                ex_files=files,
            )
        except ProviderError:
            half_made = self.driver.ex_get_node(request.name)
            if half_made is not None and half_made.state != NodeState.RUNNING:
                self.driver.destroy_node(half_made)
            raise

    def _gpu_options(self, count: int) -> Sequence[str]:
        if self.section.real_gpus and count:
            return self.driver.engine.dialect.gpus(count)
        return [f"--device=/dev/null:/dev/nvidia{index}" for index in range(count)]

    def _destroy(self, resource: Resource) -> None:
        if resource.thing is Thing.MACHINE:
            self.driver.destroy_node(self._node(resource))
        elif resource.thing is Thing.NETWORK:
            self.driver.ex_destroy_network(resource.id)
        elif resource.thing is Thing.VOLUME:
            self.driver.destroy_volume(StorageVolume(resource.id, resource.name, 0, self.driver))
        elif resource.thing is Thing.IMAGE:
            self.driver.delete_image(NodeImage(resource.id, resource.name, self.driver))

    def _node(self, machine: Resource) -> Node:
        return Node(machine.id, machine.name, NodeState.UNKNOWN, [], [], self.driver)

    def _image(self, request: MachineRequest) -> str | Refusal:
        try:
            if request.image not in DISTRIBUTIONS:
                self._check_image(request.image)
                return request.image
            if self.outer is not None:
                return self._image_around(self.outer.images[request.image], request.image)
            return base_image(self.driver.engine, request.image, self.notify)
        except ProviderError as error:
            return Refusal(request.name, error.message, error.hint)

    def _image_around(self, name: str, distribution: str) -> str:
        """Return the image of a distribution, which only the computer around this machine can make."""
        if not has_image(self.driver.engine, name):
            raise ProviderError(
                f"there is no image of {distribution} on the computer of this cluster",
                "bake its nodes: ems cluster bake",
            )
        return name

    def _check_image(self, image: str) -> None:
        if image not in DISTRIBUTIONS and not has_image(self.driver.engine, image):
            known = ", ".join(DISTRIBUTIONS)
            raise ProviderError(f"there is no image `{image}` on this computer", f"distributions are {known}")

    def _check_subnet(self, own: set[str]) -> None:
        if self.section.subnet is None:
            return
        wanted = ip_network(self.section.subnet)
        for name, _, ranges in self.driver.ex_list_networks(None):
            for each in ranges:
                taken = ip_network(each)
                if name not in own and taken.version == wanted.version and taken.overlaps(wanted):
                    raise ProviderError(
                        f"the address range {wanted} is taken: network `{name}` has {taken}",
                        "give the provider another `subnet` in the definition, or none: the engine then chooses",
                    )

    def _check_disk(self, requests: Sequence[MachineRequest]) -> None:
        folder = self.driver.engine.store()
        if not requests or not folder.exists():  # the engine is in a virtual machine
            return
        missing = {each.image for each in requests if each.image in DISTRIBUTIONS}
        missing = {each for each in missing if not has_image(self.driver.engine, image_name(each))}
        needed = _IMAGE_GB * len(missing) + sum(request.disk_gb or _MACHINE_GB for request in requests)
        free = shutil.disk_usage(folder).free / 1024**3
        if free < needed:
            raise ProviderError(
                f"{folder} has {free:.1f} GB free, and {len(requests)} machines need {needed:.1f} GB",
                "free some space, or ask for fewer nodes or less `disk_gb`",
            )


def _check_name(request: MachineRequest) -> None:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", request.name):
        raise ProviderError(f"`{request.name}` cannot be the name of a machine")
    if request.size is not None:
        raise ProviderError(
            f"{request.name}: containers have no sizes, so none called `{request.size}`", "give `cpus` and `mem_gb`"
        )


def _check_gpus(requests: Sequence[MachineRequest]) -> None:
    there = len([path for path in Path("/dev").glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()])
    wanted = max((request.gpus for request in requests), default=0)
    if wanted > there:
        raise ProviderError(
            f"a node is to have {wanted} GPUs, and this computer has {there}",
            "lower `gpus`, or leave `real_gpus` out: nodes then get device files without a GPU behind them",
        )


def _resource(node: Node) -> Resource:
    return Resource(
        thing=Thing.MACHINE,
        id=str(node.id),
        name=node.name,
        labels=labels_of(node),
        state=_STATES.get(node.state, MachineState.UNKNOWN),
        address=node.private_ips[0] if node.private_ips else "",
        ssh_address=node.public_ips[0] if node.public_ips else "",
        ssh_port=node.extra["ssh_port"] or 22,
        created_at=node.created_at,
    )


def _short(image: str) -> str:
    return image.removeprefix("localhost/").removesuffix(":latest")


def _is_base(resource: Resource) -> bool:
    """Whether a cluster without this can do nothing by itself any more."""
    return resource.thing is Thing.NETWORK or resource.labels.get(ROLE) == "controller"
