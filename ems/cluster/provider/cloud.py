"""What the providers of clouds have in common: how they are made, and how they look before anything is made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from ems.cluster.provider.backoff import Backoff
from ems.cluster.provider.base import Finding, MachineRequest
from ems.errors import ProviderError

S = TypeVar("S")


class CloudProvider(Generic[S]):
    """The beginning of a provider; see :class:`~.base.Provider` and :class:`~.base.Inspector`.

    Parameters
    ----------
    section
        What the definition says of its provider.
    notify
        Is told of what takes long.
    backoff
        How calls are tried again.
    as_instance
        Whether this is a machine of the cloud's that acts by its own rights: no user's credentials are looked for.
    """

    def __init__(
        self,
        section: S,
        notify: Callable[[str], None] = lambda _text: None,
        backoff: Backoff | None = None,
        *,
        as_instance: bool = False,
    ) -> None:
        self.section = section
        self.notify = notify
        self._backoff = backoff or Backoff()
        self._as_instance = as_instance

    def check(self, requests: Sequence[MachineRequest]) -> None:
        """Find out what can be wrong before anything is made; the first of it is raised.

        Raises
        ------
        ProviderError
            If these machines cannot be had, and the hint that mends it.
        """
        for found in self._looks(requests):
            if not found.is_good:
                raise ProviderError(found.said, found.hint)

    def findings(self, requests: Sequence[MachineRequest]) -> list[Finding]:
        """Return everything that :meth:`check` looks at, what is wrong among it."""
        return list(self._looks(requests))

    def _looks(self, requests: Sequence[MachineRequest]) -> Iterator[Finding]:
        """Yield what is looked at, in the order in which it matters."""
        raise NotImplementedError

    def _each(self, looks: Sequence[tuple[str, Callable[[], str]]], last: frozenset[str]) -> Iterator[Finding]:
        """Yield what looks find; after a bad one of ``last`` the others would only say the same again."""
        for subject, look in looks:
            try:
                yield Finding(subject, look())
            except ProviderError as error:
                yield Finding(subject, error.message, is_good=False, hint=error.hint)
                if subject in last:
                    return
