"""From where SSH gets in: this computer's public address, as the internet sees it."""

from __future__ import annotations

import re
import secrets
import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv4Address

from ems.errors import ProviderError

ANYWHERE = "anywhere"
# Google's name servers answer this name with the address that asks them
# (https://developers.google.com/speed/public-dns/faq): one datagram, no account, no web page
_SERVER, _NAME = ("ns1.google.com", 53), "o-o.myaddr.l.google.com"
_TXT, _IN = 16, 1


def sources(ssh_from: Sequence[str]) -> list[str]:
    """Return the address ranges that SSH may come from.

    Parameters
    ----------
    ssh_from
        What the definition says; empty: only from here.

    Raises
    ------
    ProviderError
        If nothing is said and this computer's public address cannot be found out.
    """
    if ANYWHERE in ssh_from:
        return ["0.0.0.0/0"]
    return list(ssh_from) or [f"{own_address()}/32"]


def own_address(server: tuple[str, int] = _SERVER, timeout_s: float = 3.0, tries: int = 3) -> str:
    """Return the public IPv4 address of this computer, as a name server on the internet sees it.

    Raises
    ------
    ProviderError
        If no answer comes, or one that is no public address.
    """
    said = "no answer"
    for _ in range(tries):
        try:
            address = IPv4Address(_ask(server, timeout_s))
        except (OSError, ValueError) as error:
            said = str(error) or type(error).__name__
            continue
        if address.is_global:
            return str(address)
        said = f"it is seen as {address}, which is no public address"
    raise ProviderError(
        f"this computer's public address cannot be found out ({said})",
        "say from where SSH gets in, `ssh_from: 192.0.2.7/32` under `provider:` in the definition, or `anywhere`",
    )


def _ask(server: tuple[str, int], timeout_s: float) -> str:
    """Return the address in a TXT record that a name server makes for who asks (RFC 1035)."""
    number = secrets.token_bytes(2)
    labels = b"".join(bytes([len(part)]) + part.encode() for part in _NAME.split("."))
    query = number + struct.pack(">5H", 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack(">2H", _TXT, _IN)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(timeout_s)
        sock.connect(server)  # the kernel then drops what others send
        sock.send(query)
        answer = sock.recv(512)
    texts = re.findall(rb"\d{1,3}(?:\.\d{1,3}){3}", answer[len(query) :])
    if answer[:2] != number or not texts:
        raise ValueError("the name server's answer holds no address")
    return str(texts[0].decode())
