"""The provider `gce`: a cluster's machines are virtual ones of Google Compute Engine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ems.cluster.provider.base import MachineRequest, Refusal, Resource, Traits
from ems.errors import ProviderError

if TYPE_CHECKING:
    from ems.cluster.definition import GceSection


class GceProvider:
    """Virtual machines of Google Compute Engine; see :class:`~.base.Provider`."""

    traits = Traits(has_shared_volume=False, has_images=True, stop_keeps_address=False, has_names=False)

    def __init__(self, section: GceSection, notify: Callable[[str], None] = lambda _text: None) -> None:
        self.section = section
        self.notify = notify

    def check(self, requests: Sequence[MachineRequest]) -> None:
        raise ProviderError("the provider `gce` is not there yet")

    def prepare(self, labels: dict[str, str]) -> None:
        raise NotImplementedError

    def create(self, requests: Sequence[MachineRequest]) -> list[Resource | Refusal]:
        raise NotImplementedError

    def list(self, labels: dict[str, str] | None = None) -> list[Resource]:
        raise ProviderError("the provider `gce` is not there yet")

    def destroy(self, resources: Sequence[Resource]) -> None:
        raise NotImplementedError

    def start(self, machines: Sequence[Resource]) -> None:
        raise NotImplementedError

    def stop(self, machines: Sequence[Resource]) -> None:
        raise NotImplementedError

    def save_image(self, machine: Resource, name: str, labels: dict[str, str]) -> Resource:
        raise NotImplementedError
