"""Studies: a driver that wakes, harvests, decides and submits; ``ems tune``, and ``ems.study()`` for programs."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ems.study.session import Study


class _Callable(ModuleType):
    """Python binds this package to ``ems.study`` as soon as it is imported, in place of the function of that name."""

    def __call__(self, name: str, space: Any = None, **options: Any) -> Study:
        """See :func:`ems.study.session.study`."""
        from ems.study import session  # noqa: PLC0415  # who wants a driver needs no session

        return session.study(name, space, **options)


sys.modules[__name__].__class__ = _Callable
