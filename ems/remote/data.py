"""Data sets on another machine: rsync brings them, the far side checks that they are what was sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from ems import dataset
from ems.executor.base import writing_to
from ems.remote.client import Agent
from ems.remote.site import Operation, Site


def _names(site: Site, _: dict[str, Any], __: bytes) -> dict[str, str]:
    """Return the data sets here: name -> hash."""
    return dataset.names(site.root)


def _expect(site: Site, args: dict[str, Any], _: bytes) -> str | None:
    """Return the folder into which a content is to be sent; None where it is here already."""
    if dataset.place(site.root, args["content"]).exists():
        return None
    folder = dataset.arrival(site.root, args["content"])
    with writing_to(site.root):
        folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def _settle(site: Site, args: dict[str, Any], _: bytes) -> None:
    """Take in what came, under its name."""
    dataset.settle(site.root, args["content"], args["name"])


TABLE: dict[str, Operation] = {"data_names": _names, "data_expect": _expect, "data_settle": _settle}


def names(agent: Agent) -> dict[str, str]:
    """Return the data sets of a target: name -> hash."""
    return dict(agent.call("data_names"))


def push(agent: Agent, folder: Path, content: str, name: str, progress: Callable[[str], None]) -> bool:
    """Bring a folder to a target under a name; return whether anything had to be sent.

    Parameters
    ----------
    content
        Its hash (:func:`ems.dataset.digest`).
    progress
        Called with how far rsync is, in its words.

    Raises
    ------
    ConnectionFailedError
        If the connection breaks. What came is kept: the next push goes on from there.
    TargetError
        If the folder changed while it was sent.
    """
    into = cast("str | None", agent.call("data_expect", content=content))
    if into is not None:
        agent.target.host.send(folder, into, progress)
    agent.call("data_settle", content=content, name=name)
    return into is not None
