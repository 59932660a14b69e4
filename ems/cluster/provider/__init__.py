"""What makes the machines of a cluster: one Protocol, an implementation for each kind of provider."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from ems.errors import ClusterError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ems.cluster.definition import ProviderSection
    from ems.cluster.provider.base import Provider

_EXTRA = ("libcloud", "google", "requests")  # modules that the extra `cluster` brings


def connect(
    section: ProviderSection, notify: Callable[[str], None] = lambda _text: None, *, as_instance: bool = False
) -> Provider:
    """Return the provider that a definition speaks of; its library is imported here, and no sooner.

    Parameters
    ----------
    notify
        Is told of what takes long, e.g. that an image is made.
    as_instance
        Whether this is a machine of the cluster, which acts by its own rights, and by no user's credentials.

    Raises
    ------
    ClusterError
        Its library is not installed.
    """
    with needed():
        return _connect(section, notify, as_instance)


@contextmanager
def needed() -> Iterator[None]:
    """Say what to install where a library of clouds is imported and not there.

    Raises
    ------
    ClusterError
        It is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _EXTRA:
            raise
        raise ClusterError("what clusters need is not installed", "pip install 'ems[cluster]'") from None


def _connect(section: ProviderSection, notify: Callable[[str], None], as_instance: bool) -> Provider:
    if section.kind == "gce":
        from ems.cluster.provider.gce import GceProvider  # noqa: PLC0415

        return GceProvider(section, notify, as_instance=as_instance)
    if section.kind == "aws":
        from ems.cluster.provider.aws import AwsProvider  # noqa: PLC0415

        return AwsProvider(section, notify, as_instance=as_instance)
    if section.kind == "openstack":
        from ems.cluster.provider.openstack import OpenstackProvider  # noqa: PLC0415

        return OpenstackProvider(section, notify, as_instance=as_instance)
    from ems.cluster.provider.container import ContainerProvider  # noqa: PLC0415

    return ContainerProvider(section, notify, as_instance=as_instance)
