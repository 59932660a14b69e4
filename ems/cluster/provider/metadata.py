"""What a cloud tells a machine of itself, at an address that is this machine's alone: no proxy leads there."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping

_TIMEOUT_S = 2.0


def ask(url: str, headers: Mapping[str, str], method: str = "GET") -> str:
    """Return what is said at an address of a metadata server.

    Raises
    ------
    OSError
        If nobody answers, or an error comes (:class:`urllib.error.HTTPError` is one).
    """
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(url, method=method, headers=dict(headers))  # noqa: S310  # always http
    try:
        with opener.open(request, timeout=_TIMEOUT_S) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        raise
