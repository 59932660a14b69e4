"""Google's API as this program needs it: libcloud's connection sends, google-auth says who we are.

libcloud's driver takes about ten calls for a machine, writes tokens to the disk and does not know application default
credentials; what is used of it is the connection, its address and its reading of errors.
"""

from __future__ import annotations

import json
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.error import HTTPError
from urllib.parse import urlsplit

import google.auth
import google.auth.transport.requests
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError
from google.oauth2 import service_account
from libcloud.common.google import GoogleBaseConnection, GoogleBaseError, GoogleResponse
from libcloud.common.types import LibcloudError
from libcloud.compute.drivers.gce import GCEConnection, GCEResponse
from requests.exceptions import RequestException

from ems.cluster.provider import metadata
from ems.cluster.provider.backoff import Backoff
from ems.cluster.provider.base import RefusalCause
from ems.cluster.provider.pool import Drivers
from ems.errors import ProviderError

if TYPE_CHECKING:
    from ems.cluster.definition import GceSection

_SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_TIMEOUT_S = 60
_POLL_S, _LONGEST_POLL_S, _OPERATION_S = 0.5, 5.0, 600.0
_COMPUTE, _RESOURCES = "www.googleapis.com", "cloudresourcemanager.googleapis.com"
_ACCOUNTS = "iam.googleapis.com"
_ACT_AS = "iam.serviceAccounts.actAs"
_RATE = {"rateLimitExceeded", "userRateLimitExceeded", "RATE_LIMIT_EXCEEDED", "backendError"}
_CAUSES = {
    "QUOTA_EXCEEDED": RefusalCause.QUOTA,
    "quotaExceeded": RefusalCause.QUOTA,
    "ZONE_RESOURCE_POOL_EXHAUSTED": RefusalCause.STOCKOUT,
    "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS": RefusalCause.STOCKOUT,
    "resourceNotReady": RefusalCause.RATE,
    "forbidden": RefusalCause.PERMISSION,
    "PERMISSIONS_ERROR": RefusalCause.PERMISSION,
    "insufficientPermissions": RefusalCause.PERMISSION,
    "accessNotConfigured": RefusalCause.PERMISSION,
    "authError": RefusalCause.PERMISSION,
    "invalid": RefusalCause.INVALID,
    "badRequest": RefusalCause.INVALID,
}
_METADATA = "169.254.169.254"  # metadata.google.internal, whatever DNS and /etc/hosts say
_RENEWAL_S = 225.0  # before a token ends; the server gives another one from five minutes before
#: What helps where a controller may not make machines.
OWN_HINT = "say `service_account: default` under `provider:` in the definition, and start the cluster anew"
_LOGIN = "gcloud auth application-default login, or name a key file as `credentials` in the definition"


class ApiError(ProviderError):
    """An error of Google's, in its own words.

    Parameters
    ----------
    code
        Google's word for it: ``quotaExceeded``, ``ZONE_RESOURCE_POOL_EXHAUSTED``.
    status
        Of HTTP; 0 where none came.
    """

    def __init__(self, message: str, code: str = "", status: int = 0, hint: str = "") -> None:
        super().__init__(message, hint)
        self.code = code
        self.status = status

    @property
    def cause(self) -> RefusalCause:
        """What helps."""
        if self.is_passing:
            return RefusalCause.RATE
        known = {401: RefusalCause.PERMISSION, 403: RefusalCause.PERMISSION, 400: RefusalCause.INVALID}
        return _CAUSES.get(self.code) or known.get(self.status, RefusalCause.OTHER)

    @property
    def is_passing(self) -> bool:
        """Whether to ask again may help; never for what is sold out or more than the quota."""
        if self.code in _CAUSES:
            return False
        return self.code in _RATE or self.status in {0, 429, 500, 502, 503, 504}


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an operation failed, in Google's words."""

    code: str
    message: str
    cause: RefusalCause

    @property
    def is_there(self) -> bool:
        """Whether nothing was to be made: it was there already."""
        return self.code in {"RESOURCE_ALREADY_EXISTS", "alreadyExists"}


class _Identity(Protocol):
    """Who we are: one token for all connections."""

    @property
    def project(self) -> str | None:
        """The project that the credentials are of, as far as they say."""
        ...

    @property
    def access_token(self) -> str:
        """A token that is valid for now; what libcloud's connection asks for."""
        ...


class _Account:
    """A user, or a service account with a key file."""

    def __init__(self, path: str | None) -> None:
        self._lock = threading.Lock()
        self._credentials: Any
        self.project: str | None
        try:
            if path is None:
                self._credentials, self.project = google.auth.default(scopes=[_SCOPE])
            else:
                self._credentials, self.project = _from_key_file(Path(path).expanduser())
        except DefaultCredentialsError as error:
            # where there are none, Google says but a link; where a file is missing or broken, which
            why = "here" if "default credentials were not found" in str(error) else f"that work: {_first_line(error)}"
            raise ProviderError(f"there are no credentials for Google {why}", _LOGIN) from None

    @property
    def access_token(self) -> str:
        with self._lock:
            if not self._credentials.valid:
                try:
                    self._credentials.refresh(google.auth.transport.requests.Request())
                except (GoogleAuthError, ValueError) as error:
                    raise ApiError(
                        f"Google does not take these credentials: {_first_line(error)}", "authError", 401, _LOGIN
                    ) from None
            return str(self._credentials.token)


class _Machine:
    """A machine of Google's, which acts as the service account that it was given.

    See https://cloud.google.com/compute/docs/access/authenticate-workloads#applications
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._token, self._ends = "", 0.0

    @property
    def project(self) -> str:
        return self._told("project/project-id")

    @property
    def access_token(self) -> str:
        with self._lock:
            if time.monotonic() > self._ends - _RENEWAL_S:
                said = json.loads(self._told("instance/service-accounts/default/token"))
                self._token, self._ends = said["access_token"], time.monotonic() + float(said["expires_in"])
            return self._token

    def _told(self, path: str) -> str:
        host = os.environ.get("GCE_METADATA_HOST", _METADATA)
        try:
            return metadata.ask(f"http://{host}/computeMetadata/v1/{path}", {"Metadata-Flavor": "Google"})
        except HTTPError as error:
            if error.code == 404:
                said = "this machine works as no service account of Google's"
                raise ApiError(said, "authError", 401, OWN_HINT) from None
            raise ApiError(f"Google does not tell this machine who it is: {error}", "", error.code) from None
        except OSError as error:
            raise ApiError(f"Google does not tell this machine who it is: {_first_line(error)}") from None


def _from_key_file(path: Path) -> tuple[Any, str | None]:
    """Return what a service account's key file says; of another kind it is not taken, since it may run commands.

    Raises
    ------
    ProviderError
        If it is none.
    """
    try:
        load: Any = service_account.Credentials.from_service_account_file  # it has no types
        found = load(str(path), scopes=[_SCOPE])
    except (OSError, ValueError, GoogleAuthError) as error:
        raise ProviderError(
            f"{path} is no key file of a service account: {_first_line(error)}", "leave `credentials` out, or name one"
        ) from None
    return found, found.project_id


class _Response(GCEResponse):
    """libcloud's answer, but for operations that failed: it would raise their first error and lose the rest."""

    def parse_body(self) -> Any:
        parse: Any = super(GoogleResponse, self).parse_body if self.status == 200 else super().parse_body
        body = parse()
        return body if isinstance(body, dict) else {}


class _Connection(GCEConnection):
    """libcloud's connection with one identity for all, and no token on the disk."""

    responseCls = _Response  # noqa: N815 - the name that libcloud looks for
    timeout = _TIMEOUT_S
    request: Any  # libcloud gives it no types

    def __init__(self, identity: _Identity, prefix: str, host: str, endpoint: str | None) -> None:
        parts = urlsplit(endpoint or f"https://{host}")
        is_secure = parts.scheme == "https"
        port = parts.port or (443 if is_secure else 80)
        # GoogleBaseConnection would ask for a token of its own here
        begin: Any = super(GoogleBaseConnection, self).__init__
        begin("", "", secure=is_secure, host=parts.hostname, port=port)
        self.oauth2_credential: Any = identity
        self.request_path = f"{parts.path.rstrip('/')}{prefix}"
        self.gce_params = None


class Api:
    """The calls of a project.

    Safe to call from several threads. Passing faults are tried again; what is posted twice for that counts once.

    Parameters
    ----------
    section
        What the definition says of its provider.
    as_instance
        Whether this is a machine of Google's, which acts as its service account.

    Raises
    ------
    ProviderError
        If there are no credentials, or no project.
    """

    def __init__(self, section: GceSection, backoff: Backoff | None = None, *, as_instance: bool = False) -> None:
        self._endpoint = section.endpoint
        self._identity = _Machine() if as_instance else _Account(section.credentials)
        self._backoff = backoff or Backoff()
        said = section.project or (None if as_instance else os.environ.get("GOOGLE_CLOUD_PROJECT"))
        self.project = said or self._identity.project or ""
        if not self.project:
            raise ProviderError(
                "the credentials name no project of Google's",
                "say `project:` under `provider:` in the definition, or export GOOGLE_CLOUD_PROJECT",
            )
        self._compute = self._drivers(f"/compute/v1/projects/{self.project}", _COMPUTE)
        self._resources = self._drivers(f"/v1/projects/{self.project}", _RESOURCES)
        self._accounts = self._drivers("/v1/projects/-/serviceAccounts", _ACCOUNTS)

    def get(self, path: str, params: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return what is at a path of this project, or of another one (``projects/debian-cloud/...``)."""
        if path.startswith("projects/"):
            path = f"https://{_COMPUTE}{urlsplit(self._endpoint or '').path.rstrip('/')}/compute/v1/{path}"
        return self._call(self._compute, "GET", path, params or {})

    def find(self, path: str) -> dict[str, Any] | None:
        """Return what is at a path, or None where nothing is."""
        try:
            return self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Have something made or done; returns the operation. It counts once, however often it has to be sent."""
        return self._call(self._compute, "POST", path, {"requestId": str(uuid.uuid4())}, body or {})

    def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Have something changed; returns the operation."""
        return self._call(self._compute, "PATCH", path, {"requestId": str(uuid.uuid4())}, body)

    def delete(self, path: str) -> dict[str, Any] | None:
        """Have something deleted; returns the operation, or None where it is gone already."""
        try:
            return self._call(self._compute, "DELETE", path, {"requestId": str(uuid.uuid4())})
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    def granted(self, permissions: Sequence[str]) -> set[str]:
        """Return which of these permissions we have in this project."""
        body = {"permissions": list(permissions)}
        answer = self._call(self._resources, "POST", ":testIamPermissions", {}, body)
        return set(answer.get("permissions", ()))

    def may_act_as(self, account: str) -> bool:
        """Whether we may have machines work as a service account."""
        body = {"permissions": [_ACT_AS]}
        answer = self._call(self._accounts, "POST", f"/{account}:testIamPermissions", {}, body)
        return _ACT_AS in answer.get("permissions", ())

    def roles(self, member: str) -> set[str]:
        """Return the roles that somebody has in this project, but for those that are inherited."""
        answer = self._call(self._resources, "POST", ":getIamPolicy", {}, {})
        return {str(each["role"]) for each in answer.get("bindings", ()) if member in each.get("members", ())}

    def items(self, path: str, filter_: str = "") -> Iterator[dict[str, Any]]:
        """Yield everything of a listing, or of one over all zones (``/aggregated/...``), page by page."""
        params = {"maxResults": "500", **({"filter": filter_} if filter_ else {})}
        kind = path.rsplit("/", 1)[1]
        while True:
            page = self.get(path, params)
            found = page.get("items", [])
            scopes = found if isinstance(found, dict) else {"": {kind: found}}
            for name, scope in scopes.items():
                if (scope.get("warning") or {}).get("code") == "UNREACHABLE":
                    page["unreachables"] = [name]
                yield from scope.get(kind, ())
            if page.get("unreachables"):  # who believed that nothing is there would make it twice, or leave it behind
                where = _last(page["unreachables"][0])
                raise ApiError(f"Google cannot say now what is in {where}", "backendError", 503)
            if not (token := page.get("nextPageToken")):
                return
            params = {**params, "pageToken": token}

    def wait(self, operation: Mapping[str, Any], limit_s: float = _OPERATION_S) -> dict[str, Any]:
        """Wait until an operation has ended, well or not; returns it.

        Raises
        ------
        ProviderError
            If it takes longer than ``limit_s``.
        """
        pause_s, deadline = _POLL_S, time.monotonic() + limit_s
        while operation["status"] != "DONE":
            if time.monotonic() > deadline:
                name = f"{operation.get('operationType')} of {_last(operation.get('targetLink'))}"
                raise ProviderError(f"Google has not ended the {name} after {limit_s:.0f} s", "try again")
            self._backoff.sleep(pause_s)
            pause_s = min(pause_s * 1.5, _LONGEST_POLL_S)
            operation = self.get(_path_of(operation))
        return dict(operation)

    def done(self, operation: Mapping[str, Any] | None, limit_s: float = _OPERATION_S) -> None:
        """Wait until an operation has succeeded.

        Raises
        ------
        ApiError
            If it fails.
        """
        for fault in faults_of(self.wait(operation, limit_s)) if operation else ():
            raise ApiError(fault.message, fault.code, 200)

    def sleep(self, seconds: float) -> None:
        """Wait between two looks."""
        self._backoff.sleep(seconds)

    def _drivers(self, prefix: str, host: str) -> Drivers[_Connection]:
        return Drivers(lambda: _Connection(self._identity, prefix, host, self._endpoint))

    def _call(
        self,
        drivers: Drivers[_Connection],
        method: str,
        path: str,
        params: Mapping[str, str],
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        def call() -> dict[str, Any]:
            with drivers.one() as connection:
                return _sent(lambda: connection.request(path, params=dict(params), data=body, method=method))

        return self._backoff.retry(call, lambda error: isinstance(error, ApiError) and error.is_passing)


def faults_of(operation: Mapping[str, Any]) -> list[Fault]:
    """Return why an operation that has ended failed; nothing where it did not."""
    errors = (operation.get("error") or {}).get("errors") or ()
    found = [(str(each.get("code", "")), str(each.get("message", ""))) for each in errors]
    return [Fault(code, said or code, _CAUSES.get(code, RefusalCause.OTHER)) for code, said in found]


def _sent(send: Callable[[], Any]) -> dict[str, Any]:
    """Return the answer of a call; whatever goes wrong is an error in Google's words."""
    try:
        answer = send().object
    except GoogleBaseError as error:
        value: Any = error.value
        said = value.get("message", "") if isinstance(value, dict) else str(value)
        status = int(error.http_code or 0)
        hint = _LOGIN if status == 401 else ""
        raise ApiError(_first_line(said) or f"HTTP {status}", str(error.code or ""), status, hint) from None
    except (OSError, RequestException, LibcloudError) as error:
        raise ApiError(f"Google's API cannot be reached: {_first_line(error)}") from None
    return answer if isinstance(answer, dict) else {}


def _path_of(operation: Mapping[str, Any]) -> str:
    """Return where an operation is asked for."""
    for scope in ("zone", "region"):
        if scope in operation:
            return f"/{scope}s/{_last(operation[scope])}/operations/{operation['name']}"
    return f"/global/operations/{operation['name']}"


def _last(url: object) -> str:
    return str(url or "").rsplit("/", 1)[-1]


def _first_line(error: object) -> str:
    if isinstance(error, GoogleAuthError) and error.args:
        error = error.args[0]
    lines = str(error).strip().splitlines()
    return lines[0][:400] if lines else ""
