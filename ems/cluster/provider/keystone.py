"""OpenStack's services through libcloud's connections: who we are from clouds.yaml, one token for all of them.

libcloud's own driver logs in once for each of five services, knows neither projects by id nor application credentials
by name, and loses Keystone's words; its sockets, requests and token handling are what is used here.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Any, TypeAlias

import libcloud.security
import yaml
from libcloud.common.base import Response
from libcloud.common.openstack import OpenStackBaseConnection
from libcloud.common.openstack_identity import OpenStackIdentity_3_0_Connection

from ems.cluster.provider.backoff import Backoff
from ems.cluster.provider.base import RefusalCause
from ems.errors import ProviderError

#: An answer's content.
Answer: TypeAlias = Any

#: Where a controller has the credentials that it makes machines by, and what its cloud is called there.
OWN_FILE, OWN_NAME = "/etc/ems/clouds.yaml", "ems"
_TIMEOUT_S = 60
_RENEWAL_S = 60.0
_PATHS = {"network": "/v2.0", "image": "/v2"}  # what an endpoint of the catalogue may leave out
_TYPES = {"volume": ("volumev3", "block-storage", "volume")}  # by what names a service is in the catalogue
_HINT = "name a `cloud` of your clouds.yaml in the definition, or `source` your openrc.sh"
_HINTS = {
    RefusalCause.PERMISSION: "check the credentials in clouds.yaml: `openstack token issue` tries them",
    RefusalCause.QUOTA: "have fewer or smaller nodes, or ask for more; `openstack limits show --absolute` shows it",
    RefusalCause.STOCKOUT: "another `size` or zone in the definition may have room",
}


class ApiError(ProviderError):
    """What a service says that it does not do."""

    def __init__(self, service: str, status: int, kind: str, message: str) -> None:
        super().__init__(f"OpenStack ({service}) says: {message}")
        self.status = status
        self.kind = kind
        self.hint = _HINTS.get(self.cause, "")

    @property
    def cause(self) -> RefusalCause:
        """What kind of error it is."""
        if "quota" in f"{self.kind} {self.message}".lower():
            return RefusalCause.QUOTA
        if self.status in {413, 429}:
            return RefusalCause.RATE
        if self.status in {401, 403}:
            return RefusalCause.PERMISSION
        return RefusalCause.INVALID if 400 <= self.status < 500 else RefusalCause.OTHER


class UnreachedError(ProviderError):
    """The connection broke; whether the call was done is not known."""


@dataclass(frozen=True, slots=True)
class Cloud:
    """How a cloud is entered, in the words of clouds.yaml.

    Attributes
    ----------
    auth
        What Keystone is told; not shown by ``repr``.
    """

    name: str
    auth: Mapping[str, str] = field(repr=False)
    region: str | None = None
    interface: str = "public"
    ca_file: str = ""

    @property
    def url(self) -> str:
        """Keystone's address without its version."""
        return str(self.auth["auth_url"]).rstrip("/").removesuffix("/v3")


def cloud(name: str | None = None, auth_url: str | None = None) -> Cloud:
    """Return a cloud of clouds.yaml, or the one that the environment says.

    Raises
    ------
    ProviderError
        If there is none of that name, or none at all.
    """
    wanted = name or os.environ.get("OS_CLOUD")
    if wanted is None and os.environ.get("OS_AUTH_URL"):
        return _of_environment(auth_url)
    there = _clouds()
    if wanted is None and len(there) != 1:
        said = f"which of {', '.join(there)} is not said" if there else "there are no credentials for OpenStack here"
        raise ProviderError(said, _HINT)
    wanted = wanted or next(iter(there))
    if wanted not in there:
        raise ProviderError(f"there is no cloud `{wanted}` in clouds.yaml", f"there are {', '.join(there) or 'none'}")
    return _cloud(wanted, there[wanted], auth_url)


def own_cloud(name: str | None = None, auth_url: str | None = None) -> Cloud:
    """Return what a controller enters its cloud by: the application credential that was made for its cluster.

    Parameters
    ----------
    name
        Does not count: the credential is of one cloud.

    Raises
    ------
    ProviderError
        If it is not there.
    """
    del name
    path = Path(OWN_FILE)
    said = _clouds_in(path).get(OWN_NAME)
    if said is None:
        raise ProviderError(f"this machine has no credentials for OpenStack in {path}", "ems cluster setup makes them")
    return _cloud(OWN_NAME, said, auth_url)


def _cloud(name: str, said: Mapping[str, Any], auth_url: str | None) -> Cloud:
    authority = str(Path(said["cacert"]).expanduser()) if said.get("cacert") else ""
    if authority:
        libcloud.security.CA_CERTS_PATH = authority
    interface = said.get("interface") or "public"
    return _checked(Cloud(name, _auth(said, auth_url), said.get("region_name"), interface, authority))


def _auth(said: Mapping[str, Any], auth_url: str | None) -> dict[str, str]:
    found = {key: str(value) for key, value in (said.get("auth") or {}).items()}
    return found | ({"auth_url": auth_url} if auth_url else {})


def _of_environment(auth_url: str | None) -> Cloud:
    said = {key[3:].lower(): value for key, value in os.environ.items() if key.startswith("OS_") and value}
    region, interface = said.pop("region_name", None), said.pop("interface", "public")
    return _checked(Cloud("environment", said | ({"auth_url": auth_url} if auth_url else {}), region, interface))


def _checked(found: Cloud) -> Cloud:
    if not found.auth.get("auth_url"):
        raise ProviderError(f"the cloud `{found.name}` has no auth_url", "add it in clouds.yaml, below `auth`")
    return found


def _clouds() -> dict[str, dict[str, Any]]:
    """Return the clouds of the first clouds.yaml there is, with the secrets that lie beside it."""
    for path in _files():
        if path.is_file():
            found = _clouds_in(path)
            for name, secret in _clouds_in(path.with_name("secure.yaml")).items():
                if name in found:
                    found[name] = {**found[name], "auth": {**(found[name].get("auth") or {}), **secret.get("auth", {})}}
            return found
    return {}


def _files() -> Iterator[Path]:
    """Return where clouds.yaml may lie, in openstacksdk's order."""
    if os.environ.get("OS_CLIENT_CONFIG_FILE"):
        yield Path(os.environ["OS_CLIENT_CONFIG_FILE"])
    yield Path("clouds.yaml")
    yield Path.home() / ".config" / "openstack" / "clouds.yaml"
    yield Path("/etc/openstack/clouds.yaml")


def _clouds_in(path: Path) -> dict[str, dict[str, Any]]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else None
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        raise ProviderError(f"{path} cannot be read", "`openstack token issue` says what is wrong in it") from None
    found = content.get("clouds") if isinstance(content, dict) else None
    return {name: said for name, said in (found or {}).items() if isinstance(said, dict)}


class Openstack:
    """The services of one cloud; for one thread at a time, but for its ``login``, which all share."""

    def __init__(self, login: Login, backoff: Backoff | None = None) -> None:
        self._login = login
        self._backoff = backoff or Backoff()
        self._services: dict[str, _Service] = {}

    def call(
        self,
        service: str,
        method: str,
        path: str,
        body: object = None,
        *,
        again: bool = True,
        params: Mapping[str, str] | None = None,
    ) -> Answer:
        """Do one thing.

        Parameters
        ----------
        service
            ``compute``, ``network``, ``image`` or ``volume``.
        again
            Whether it may be done twice; else it is not tried again where it may have been done.

        Raises
        ------
        ApiError
            In the service's words.
        UnreachedError
            If the connection breaks, and stays so.
        """
        connection = self._services.setdefault(service, _Service(self._login, service))

        def is_passing(error: Exception) -> bool:
            if isinstance(error, ApiError):
                if error.status == 401:
                    return self._login.renew()
                return error.cause is RefusalCause.RATE or (again and error.status >= 500)
            return again and isinstance(error, UnreachedError)

        return self._backoff.retry(lambda: connection.ask(method, path, body, params), is_passing)

    def listed(self, service: str, path: str, key: str, **params: str) -> list[Answer]:
        """Return the items under ``key`` of all pages of an answer."""
        found: list[Answer] = []
        more = dict(params)
        while True:
            answer = self.call(service, "GET", path, params=more)
            found += answer[key]
            links = answer.get(f"{key}_links") or []
            has_more = any(each.get("rel") == "next" for each in links) or answer.get("next")
            if not has_more or not answer[key]:
                return found
            more["marker"] = str(answer[key][-1]["id"])


class Login:
    """One token and the catalogue of services that came with it, for all threads."""

    def __init__(self, found: Cloud) -> None:
        self.cloud = found
        self._lock = RLock()
        self._identity: _Identity | None = None
        self._renewed_at = -_RENEWAL_S

    def enter(self, service: str) -> tuple[str, str]:
        """Return a token and a service's address."""
        with self._lock:
            identity: Any = self._entered()
            is_keystone = service == "identity"  # whose address is known, be it in the catalogue or not
            url = f"{self.cloud.url}/v3" if is_keystone else self._endpoint(service, identity.urls or [])
            return str(identity.auth_token), url

    def user(self) -> dict[str, Any]:
        """Return who this is: ``id``, ``name``."""
        return dict(self._entered().auth_user_info or {})

    def roles(self) -> list[str]:
        """Return the names of the roles that this is entered in."""
        return [str(each.name) for each in self._entered().auth_user_roles]

    def is_restricted(self) -> bool:
        """Whether this is an application credential that lets make no other one."""
        return self._entered().is_restricted

    def _entered(self) -> _Identity:
        with self._lock:
            if self._identity is None or not _is_valid(self._identity):
                self._identity = _Identity(self.cloud)
                self._identity.authenticate()
            return self._identity

    def renew(self) -> bool:
        """Have another token made, after one was refused; returns whether that may help: not if it was just done."""
        with self._lock:
            before, self._renewed_at = self._renewed_at, time.monotonic()
            self._identity = None
            return self._renewed_at - before > _RENEWAL_S

    def has(self, service: str) -> bool:
        """Whether the cloud has such a service."""
        try:
            self.enter(service)
        except ProviderError:
            return False
        return True

    def _endpoint(self, service: str, catalogue: Sequence[Answer]) -> str:
        for kind in _TYPES.get(service, (service,)):
            for entry in (each for each in catalogue if each["type"] == kind):
                for each in entry["endpoints"]:
                    there = each.get("region_id") or each.get("region")
                    if each["interface"] == self.cloud.interface and self.cloud.region in {None, there}:
                        url, path = str(each["url"]).rstrip("/"), _PATHS.get(service, "")
                        return url if url.endswith(path) else url + path
        where = f" in {self.cloud.region}" if self.cloud.region else ""
        raise ProviderError(f"the cloud `{self.cloud.name}` has no service `{service}`{where}", "check `region_name`")


class _Identity(OpenStackIdentity_3_0_Connection):
    """Keystone, told who we are by all of clouds.yaml's words."""

    is_restricted = False
    auth_user_info: dict[str, Any] | None
    auth_user_roles: Sequence[Any]

    def __init__(self, found: Cloud) -> None:
        super().__init__(found.url, "-", "-", tenant_name="-", timeout=_TIMEOUT_S)  # type: ignore[no-untyped-call]
        self._cloud = found

    def authenticate(self, force: bool = False) -> _Identity:
        """Get a token."""
        del force
        ask: Any = self.request
        try:
            answer = ask("/v3/auth/tokens", data=json.dumps(_request(self._cloud.auth)), method="POST")
        except OSError as error:
            raise UnreachedError(f"Keystone of `{self._cloud.name}` cannot be reached: {error}", _HINT) from error
        if answer.status not in {200, 201}:
            raise ApiError("Keystone", answer.status, *_words(answer.body))
        self._parse_token_response(answer)  # type: ignore[no-untyped-call]  # libcloud gives it no types
        by = json.loads(answer.body)["token"].get("application_credential") or {}
        self.is_restricted = bool(by.get("restricted"))
        return self


def _is_valid(identity: Any) -> bool:
    return bool(identity.is_token_valid())


def _request(auth: Mapping[str, str]) -> dict[str, Any]:
    """Return what Keystone is asked for: https://docs.openstack.org/api-ref/identity/v3/#authentication-and-token-management."""
    secret = auth.get("application_credential_secret")
    if secret:
        told: dict[str, Any] = {"secret": secret}
        if auth.get("application_credential_id"):
            told["id"] = auth["application_credential_id"]
        else:
            told |= {"name": auth.get("application_credential_name"), "user": _named(auth, "user", "username")}
        return {"auth": {"identity": {"methods": ["application_credential"], "application_credential": told}}}
    user = {**_named(auth, "user", "username"), "password": auth.get("password", "")}
    content: dict[str, Any] = {"identity": {"methods": ["password"], "password": {"user": user}}}
    project = _named(auth, "project", "project_name")
    return {"auth": content | ({"scope": {"project": project}} if project else {})}


def _named(auth: Mapping[str, str], thing: str, name: str) -> dict[str, Any]:
    """Return a user or project as Keystone takes it: by id, or by name and domain."""
    if auth.get(f"{thing}_id"):
        return {"id": auth[f"{thing}_id"]}
    if not auth.get(name):
        return {}
    its_id = auth.get(f"{thing}_domain_id") or auth.get("default_domain_id")
    domain = (
        {"id": its_id} if its_id else {"name": auth.get(f"{thing}_domain_name") or auth.get("domain_name", "Default")}
    )
    return {"name": auth[name], "domain": domain}


class _Answer(Response):
    """JSON, and errors in the service's words."""

    def success(self) -> bool:
        return 200 <= int(self.status) < 300

    def parse_body(self) -> Answer:
        try:
            return json.loads(self.body) if self.body else {}
        except ValueError:
            return {}

    def parse_error(self) -> str:
        raise ApiError(getattr(self.connection, "service", ""), int(self.status), *_words(self.body))


def _words(body: object) -> tuple[str, str]:
    """Return what kind of error a body tells, and in what words: each service wraps them in another key."""
    try:
        kind, said = next(iter(json.loads(str(body)).items()))
        if isinstance(said, dict):
            return str(said.get("type") or kind), str(said.get("message") or said)
        return kind, str(said)
    except (ValueError, StopIteration, AttributeError):
        return "", str(body).strip()[:300] or "nothing"


class _Service(OpenStackBaseConnection):
    """The connection to one service."""

    responseCls = _Answer  # noqa: N815  # libcloud's name
    default_content_type = "application/json"
    accept_format = "application/json"  # type: ignore[assignment]  # libcloud's base says None

    def __init__(self, login: Login, service: str) -> None:
        super().__init__(  # type: ignore[no-untyped-call]  # libcloud gives it no types
            "-", "-", ex_force_auth_url=login.cloud.url, ex_force_auth_version="3.x_password", timeout=_TIMEOUT_S
        )
        self.service = service
        self._login = login

    def ask(self, method: str, path: str, body: object, params: Mapping[str, str] | None) -> Answer:
        """Send one request; returns the answer's content, with its ``Location`` where it has one."""
        data = "" if body is None else json.dumps(body)
        request: Any = self.request
        try:
            answer = request(path, params=dict(params or {}), data=data, method=method)
        except OSError as error:
            raise UnreachedError(
                f"OpenStack ({self.service}) cannot be reached: {error}", "check the network"
            ) from error
        place = answer.headers.get("location")
        content = answer.object
        return {**content, "location": place} if place and isinstance(content, dict) else content

    def _populate_hosts_and_request_paths(self) -> None:
        self.auth_token, url = self._login.enter(self.service)
        self._set_up_connection_info(url)  # type: ignore[no-untyped-call]  # libcloud gives it no types
