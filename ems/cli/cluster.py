"""``ems cluster …``: the group; its commands register themselves from the modules ``cluster_*.py``."""

from __future__ import annotations

from typing import Annotated

import typer

from ems.cli.app import CLUSTERS, group

SECTIONS = LIFE, LOOK, REACH, CONNECT, DEFINE = (
    "Life of a cluster",
    "Look",
    "Reach it",
    "Clusters made by others",
    "Definitions",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The cluster's name.", show_default=False)]

command = group(
    CLUSTERS,
    "cluster",
    "Make and delete SLURM clusters, or use one that exists.",
    SECTIONS,
    "ems cluster start local",
    "ems cluster connect uni me@login.example.org",
    "ems cluster stop local",
)
