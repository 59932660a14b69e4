"""What ships with ems beside its code: the templates of nodes and the definitions of clusters.

In a wheel both lie inside the package; in a checkout they are read in place.
"""

from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent


def templates() -> Path:
    """Return the folder that holds ``site.yml`` and the roles."""
    inside = _PACKAGE / "templates"
    return inside if inside.is_dir() else _PACKAGE.parent / "templates"


def definitions() -> Path:
    """Return the folder of the shipped ``NAME.yaml``."""
    inside = _PACKAGE / "cluster_definitions"
    return inside if inside.is_dir() else _PACKAGE.parent / "cluster"
