"""Every error that ``ems`` raises on purpose.

EmsError
├── UsageError          exit code 2: what was typed cannot be meant
│   └── ConfigError     a user's file (ems.yaml, sweep file) says something wrong
├── NotFoundError       an experiment, run or file that is not there
├── ScriptError         the user's script cannot be used (syntax, loops)
├── SnapshotError       the code cannot be frozen, checked out or verified
├── StoreError          the SQLite store cannot be opened or is damaged
├── ExecutorError       submitting to, or asking, the scheduler failed
├── TargetError         the target's root cannot be used
├── ConnectionFailedError   another machine cannot be reached, or the connection broke
│   └── HostKeyError    it shows a host key that is not the one known
└── ClusterError        a cluster cannot be made, changed or found
    └── ProviderError   what makes its machines refuses, in its own words

The command line turns each into ``error: message``, an empty line and ``hint: hint`` (see :mod:`ems.cli`).
"""

from __future__ import annotations


class EmsError(Exception):
    """What is wrong with which thing, and the command or edit that mends it.

    Parameters
    ----------
    message
        One sentence without a full stop; names the thing.
    hint
        The command or edit that mends it; empty when there is none.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EmsError):
    """What was typed cannot be meant."""

    exit_code = 2


class ConfigError(UsageError):
    """A user's file says something wrong; the message names file and key."""


class NotFoundError(EmsError):
    """An experiment, run or file that is not there."""


class ScriptError(UsageError):
    """The user's script cannot be used as asked; the message names the line."""


class SnapshotError(EmsError):
    """The code cannot be frozen, checked out or verified."""


class StoreError(EmsError):
    """The SQLite store cannot be opened, is damaged or is newer than this ``ems``."""


class ExecutorError(EmsError):
    """Submitting to, or asking, the scheduler failed; carries its own words."""


class TargetError(EmsError):
    """The target's root cannot be used."""


class ConnectionFailedError(EmsError):
    """Another machine cannot be reached over SSH, or the connection broke; what was done before stays so."""


class HostKeyError(ConnectionFailedError):
    """A machine shows a host key that is not the one known: it is not let in, and waiting does not help."""


class ClusterError(EmsError):
    """A cluster cannot be made, changed or found."""


class ProviderError(ClusterError):
    """What makes a cluster's machines refuses; carries its own words."""
