"""Application credentials of OpenStack: by one a cluster's controller makes machines, instead of by a user's password.

Each is restricted, so that nobody makes another one by it, and has the one role that making servers needs where there
is such a role. See https://docs.openstack.org/api-ref/identity/v3/#application-credentials.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ems.cluster.provider import stackthings as things
from ems.cluster.provider.base import CLUSTER, INCARNATION, Resource, Thing
from ems.cluster.provider.keystone import OWN_FILE, OWN_NAME, Answer, ApiError, Login
from ems.errors import ProviderError

_CA_FILE = "/etc/ems/cloud-ca.pem"
_ENOUGH = ("member", "_member_")  # roles that may make servers, and nothing of an administrator's
_PREFIX = "credential/"
_HINT = "name a `cloud` in the definition whose clouds.yaml has a password, or an unrestricted application credential"


class Credentials:
    """The application credentials of whoever logs in.

    Parameters
    ----------
    call
        Asks a service, see :class:`~.keystone.Openstack`.
    """

    def __init__(self, login: Login, call: Callable[..., Answer]) -> None:
        self._login = login
        self._call = call

    @property
    def _path(self) -> str:
        return f"/users/{self._login.user()['id']}/application_credentials"

    def check(self) -> str:
        """Return by whom one would be made.

        Raises
        ------
        ProviderError
            If the credentials here do not let make any.
        """
        if self._login.is_restricted():
            cloud = self._login.cloud.name
            raise ProviderError(f"the credentials of `{cloud}` may not make any for the controller", _HINT)
        self._call("identity", "GET", self._path)
        return f"an application credential of {self._login.user().get('name', 'yours')}'s is made for the controller"

    def make(self, labels: Mapping[str, str]) -> dict[str, str]:
        """Make the credential of a cluster; one that is there goes, since nobody tells its secret again.

        Returns
        -------
        dict
            The files that a controller needs, for its root alone: path -> content.

        Raises
        ------
        ProviderError
            If the credentials here do not let make any.
        """
        self.check()
        name = f"ems-{labels[CLUSTER]}-{labels[INCARNATION][:8]}"
        roles = [{"name": each} for each in self._login.roles() if each in _ENOUGH]
        wish = {"name": name, "description": things.described(labels), "unrestricted": False}
        wish |= {"roles": roles[:1]} if roles else {}
        for each in self._listed():
            if each["name"] == name:
                self._forget(each["id"])
        made = self._call("identity", "POST", self._path, {"application_credential": wish}, again=False)
        return self._files(made["application_credential"])

    def resources(self) -> Sequence[Resource]:
        """Return those that carry labels."""
        try:
            found = self._listed()
        except ApiError as error:
            if error.status in {403, 404}:  # a cloud that has none, or lets nobody look: then there is none of ours
                return []
            raise
        return [
            Resource(Thing.KEY, f"{_PREFIX}{each['id']}", each["name"], things.labels_in(each.get("description")))
            for each in found
        ]

    def destroy(self, resources: Sequence[Resource]) -> None:
        """Delete credentials; that one is gone is no error."""
        for each in resources:
            self._forget(each.id.removeprefix(_PREFIX))

    def _listed(self) -> list[Any]:
        return list(self._call("identity", "GET", self._path)["application_credentials"])

    def _forget(self, its_id: str) -> None:
        try:
            self._call("identity", "DELETE", f"{self._path}/{its_id}")
        except ApiError as error:
            if error.status != 404:
                raise

    def _files(self, made: Answer) -> dict[str, str]:
        cloud = self._login.cloud
        auth = {"auth_url": f"{cloud.url}/v3"}
        auth |= {f"application_credential_{key}": str(made[key]) for key in ("id", "secret")}
        said: dict[str, object] = {"auth_type": "v3applicationcredential", "auth": auth, "interface": cloud.interface}
        said |= {"region_name": cloud.region} if cloud.region else {}
        files = {}
        if cloud.ca_file:
            said["cacert"] = _CA_FILE
            files[_CA_FILE] = Path(cloud.ca_file).read_text(encoding="utf-8")
        return {OWN_FILE: yaml.safe_dump({"clouds": {OWN_NAME: said}}), **files}
