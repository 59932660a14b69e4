"""EC2's query API through libcloud's connection: its signatures and sockets, our parameters, answers and errors.

libcloud's own EC2 driver sends requests as URLs, which user-data is too long for, reads answers by one XML namespace
only, and loses the words of most errors; so the connection is its, and what goes through it is not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias
from urllib.parse import urlencode, urlsplit
from xml.etree.ElementTree import XML, Element, ParseError

from libcloud.common.aws import AWSBaseResponse
from libcloud.compute.drivers.ec2 import EC2Connection, EC2NodeDriver

from ems.cluster.provider.awskeys import Keys
from ems.cluster.provider.backoff import Backoff
from ems.cluster.provider.base import RefusalCause
from ems.errors import ProviderError

#: What an answer is made of: text, lists and mappings; an empty list is empty text.
Answer: TypeAlias = Any

_VERSION = "2016-11-15"
_TIMEOUT_S = 60
# The codes of errors: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/errors-overview.html
_STOCKOUT = {
    "InsufficientInstanceCapacity",
    "InsufficientHostCapacity",
    "InsufficientCapacity",
    "InsufficientReservedInstanceCapacity",
    "InsufficientFreeAddressesInSubnet",  # other zones have other subnets
    "SpotMaxPriceTooLow",
    "VolumeTypeNotAvailableInZone",
    "Unsupported",  # this zone does not have this size
}
_RATE = {"RequestLimitExceeded", "Throttling", "ThrottlingException", "EC2ThrottledException"}
_PASSING = {*_RATE, "InternalError", "InternalFailure", "ServiceUnavailable", "Unavailable"}
_PERMISSION = {
    "AuthFailure",
    "Blocked",
    "ExpiredToken",
    "InvalidClientTokenId",
    "OptInRequired",
    "PendingVerification",
    "RequestExpired",
    "SignatureDoesNotMatch",
    "UnauthorizedOperation",
}
_HINTS = {
    RefusalCause.PERMISSION: "check the keys and what they may do; `aws sts get-caller-identity` shows whose they are",
    RefusalCause.QUOTA: "ask for more at https://console.aws.amazon.com/servicequotas, or have fewer or smaller nodes",
    RefusalCause.STOCKOUT: "another zone or `size` in the definition may have some; `spot: false` has more",
}


class ApiError(ProviderError):
    """What EC2 says that it does not do, with its code."""

    def __init__(self, code: str, message: str, status: int) -> None:
        super().__init__(f"EC2 says {code}: {message}" if code else f"EC2 answers {status}: {message}")
        self.code = code
        self.status = status
        self.hint = _HINTS.get(self.cause, "")

    @property
    def cause(self) -> RefusalCause:
        """What kind of error it is."""
        if self.code in _STOCKOUT:
            return RefusalCause.STOCKOUT
        if self.code in _RATE:
            return RefusalCause.RATE
        if self.code in _PERMISSION:
            return RefusalCause.PERMISSION
        if self.code.endswith("LimitExceeded") or self.code == "MaxSpotInstanceCountExceeded":
            return RefusalCause.QUOTA
        return RefusalCause.INVALID if self.code.startswith(("Invalid", "Missing")) else RefusalCause.OTHER

    @property
    def is_missing(self) -> bool:
        """Whether it says that the thing is not there (any more)."""
        return self.code.endswith((".NotFound", ".Unavailable", ".Unknown"))


class _Response(AWSBaseResponse):
    """An answer without its namespaces."""

    def success(self) -> bool:
        return bool(self.status == 200)

    def parse_body(self) -> Answer:
        return _plain(XML(str(self.body)))  # from the cloud itself

    def parse_error(self) -> str:
        try:
            root = XML(str(self.body))  # from the cloud itself
        except ParseError:
            raise ApiError("", str(self.body or self.error)[:500], self.status) from None
        said = {_tag(each): each.text or "" for each in root.iter()}
        raise ApiError(said.get("Code", ""), said.get("Message", str(self.error)), self.status)


class _Connection(EC2Connection):
    responseCls = _Response  # type: ignore[assignment]  # noqa: N815  # libcloud's name; it need not be EC2's own
    version = _VERSION

    def add_default_params(self, params: dict[str, Any]) -> dict[str, Any]:
        """Keep the token out of the URL: it is a header, and signed there."""
        return params


class _Driver(EC2NodeDriver):
    connectionCls = _Connection  # noqa: N815  # libcloud's name


class Ec2:
    """One region's API; for one thread at a time.

    Parameters
    ----------
    endpoint
        Where it answers; None: at Amazon.

    Raises
    ------
    ProviderError
        If there is no such region.
    """

    def __init__(self, keys: Keys, region: str, endpoint: str | None = None, backoff: Backoff | None = None) -> None:
        self._backoff = backoff or Backoff()
        where = urlsplit(endpoint) if endpoint else None
        try:
            self._driver = _Driver(  # type: ignore[no-untyped-call]  # libcloud gives it no types
                keys.id,
                keys.secret,
                secure=where is None or where.scheme == "https",
                host=where.hostname if where else None,
                port=where.port if where else None,
                region=region,
                token=keys.token or None,
                signature_version="4",
                timeout=_TIMEOUT_S,
            )
        except ValueError as error:
            raise ProviderError(f"AWS: {error}", "check `region` in the definition, e.g. us-east-1") from None

    def call(self, action: str, **parameters: object) -> Answer:
        """Do one thing; see the EC2 API reference for actions and parameters.

        It is done again where EC2 has a passing fault or the connection breaks, so it must be harmless twice: what
        makes machines has a client token.

        Raises
        ------
        ApiError
            In EC2's words.
        """
        fields = {"Action": action, "Version": _VERSION, **flat(parameters)}

        def ask() -> Answer:
            connection: Any = self._driver.connection
            headers = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
            try:
                return connection.request("/", data=urlencode(fields), headers=headers, method="POST").object
            except OSError as error:  # requests' own errors are such
                raise UnreachedError(f"EC2 cannot be reached: {error}", "check the network, and `region`") from error

        def is_passing(error: Exception) -> bool:
            if isinstance(error, ApiError):
                is_unknown = error.cause is RefusalCause.OTHER
                return error.code in _PASSING or (is_unknown and (error.status >= 500 or error.status == 429))
            return isinstance(error, UnreachedError)

        return self._backoff.retry(ask, is_passing)

    def pages(self, action: str, key: str, **parameters: object) -> list[Answer]:
        """Return the items under ``key`` of all pages of an answer."""
        found: list[Answer] = []
        token = ""
        while True:
            answer = self.call(action, **parameters, **({"NextToken": token} if token else {}))
            found += answer.get(key) or []
            token = answer.get("nextToken") or ""
            if not token:
                return found


class UnreachedError(ProviderError):
    """The connection broke; whether the call was done is not known."""


def flat(parameters: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Return nested parameters as EC2 takes them: ``{"Filter": [{"Name": "a"}]}`` is ``Filter.1.Name=a``."""
    fields: dict[str, str] = {}
    for name, value in parameters.items():
        key = f"{prefix}{name}"
        if value is None:
            continue
        if isinstance(value, Mapping):
            fields |= flat(value, f"{key}.")
        elif isinstance(value, Sequence) and not isinstance(value, str):
            fields |= flat({str(number): each for number, each in enumerate(value, 1)}, f"{key}.")
        else:
            fields[key] = str(value).lower() if isinstance(value, bool) else str(value)
    return fields


def _tag(element: Element) -> str:
    return element.tag.rpartition("}")[2]


def _plain(element: Element) -> Answer:
    """Return text, or a list where all children are called ``item``, or a mapping."""
    children = list(element)
    if not children:
        return (element.text or "").strip()
    if all(_tag(each) == "item" for each in children):
        return [_plain(each) for each in children]
    return {_tag(each): _plain(each) for each in children}
