"""How EC2 calls the distributions' own images: whose they are, and what their names begin with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

# https://wiki.debian.org/Cloud/AmazonEC2Image, https://documentation.ubuntu.com/aws/aws-how-to/instances/find-ubuntu-images/
DISTRIBUTIONS = {
    "debian:12": ("136693071363", "debian-12-{arch}-*"),
    "debian:13": ("136693071363", "debian-13-{arch}-*"),
    "ubuntu:24.04": ("099720109477", "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-{arch}-server-*"),
}
_ARCHITECTURES = {"x86_64": "amd64", "arm64": "arm64"}


def find_image(pages: Callable[..., list[Any]], image: str, architectures: Sequence[str]) -> Any | None:
    """Return what EC2 says of an image: the newest of a distribution, or the one of that id; None: there is none.

    Parameters
    ----------
    pages
        Asks EC2: action, key of the list, parameters.
    architectures
        Those that the machine's size has.
    """
    usable = [each for each in architectures if each in _ARCHITECTURES]
    if not usable:
        return None
    filters = [{"Name": "architecture", "Value": usable[:1]}, {"Name": "state", "Value": ["available"]}]
    if image in DISTRIBUTIONS:
        owner, pattern = DISTRIBUTIONS[image]
        filters.append({"Name": "name", "Value": [pattern.format(arch=_ARCHITECTURES[usable[0]])]})
        found = pages("DescribeImages", "imagesSet", Owner=[owner], Filter=filters)
    else:
        filters.append({"Name": "image-id", "Value": [image]})
        found = pages("DescribeImages", "imagesSet", Filter=filters)
    return max(found, key=lambda each: str(each["creationDate"]), default=None)
