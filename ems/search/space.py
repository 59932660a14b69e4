"""The space that is searched: dimensions, conditions, constraints."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SearchSpace:
    """Dimensions with the conditions under which they count, and constraints on all of them."""
