"""The seam between an experiment and what runs it: eight methods, two implementations, one contract test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from ems.errors import TargetError
from ems.model import Experiment, JobInfo, Resources
from ems.node.records import ExperimentFiles, Record


@dataclass(frozen=True, slots=True)
class Limits:
    """What the scheduler takes at a time; None where it sets no bound."""

    max_array_size: int  # tasks of one array job
    max_submit: int | None = None  # array tasks of the user that may be queued or running together


@dataclass(frozen=True, slots=True)
class Submission:
    """What a call of :meth:`Executor.submit` did."""

    submitted: Sequence[tuple[int, str]] = ()  # (chunk, job), in order
    waiting_chunks: int = 0  # not handed over yet; the chunk before or the next `ems` command does
    refusal: str = ""  # why not, in the scheduler's words; empty where it refused nothing


@dataclass(frozen=True, slots=True)
class Check:
    """One line of ``ems doctor``."""

    name: str
    ok: bool
    message: str
    hint: str = field(default="")


class Executor(Protocol):
    """Runs the chunks of an experiment: on this machine or through SLURM.

    Jobs are named by strings: ``1842_3`` (array task), ``1842`` (all its tasks), ``here-4711-…`` (a pool of workers).
    """

    @property
    def name(self) -> str:
        """``here`` or ``slurm``."""
        ...

    def check(self, resources: Resources) -> None:
        """Find out early whether these resources can be had at all.

        Raises
        ------
        ExecutorError
            If not, in the scheduler's words where it has some.
        """
        ...

    def limits(self) -> Limits:
        """Ask how large chunks may be."""
        ...

    def script(self, experiment: Experiment, chunk: Record) -> str:
        """Return exactly what would be run to start ``chunk``."""
        ...

    def submit(self, experiment: Experiment, files: ExperimentFiles) -> Submission:
        """Hand over every chunk of the experiment that was not yet, each exactly once whatever was killed before.

        Idempotent and cheap where nothing waits. A full queue is not an error: chunks then wait.

        Raises
        ------
        ExecutorError
            If the scheduler cannot be reached or refuses for good; what was handed over stays so.
        """
        ...

    def refresh(self, jobs: Iterable[str]) -> dict[str, JobInfo]:
        """Return what the scheduler says of ``jobs``, and of each task of an array named as a whole.

        A constant number of calls, whatever the number of jobs. What the scheduler does not know is left out: absence
        is not a state.

        Raises
        ------
        ExecutorError
            If the scheduler cannot be reached.
        """
        ...

    def cancel(self, jobs: Iterable[str]) -> None:
        """End jobs; those that have ended already are no error."""
        ...

    def hold(self, jobs: Iterable[str], release: bool = False) -> None:
        """Let nothing more of ``jobs`` start (what runs goes on), or with ``release`` let it start again."""
        ...

    def doctor(self) -> list[Check]:
        """Look at everything that this executor needs, and say how to mend what is missing."""
        ...


def resources_of(experiment: Experiment, chunk: Record) -> Resources:
    """Return what the runs of a chunk ask for: the experiment's resources, but for what a rerun asked instead."""
    instead = {key: value for key, value in (chunk.get("resources") or {}).items() if value is not None}
    return replace(experiment.resources, **instead)


@contextlib.contextmanager
def writing_to(root: Path) -> Iterator[None]:
    """Turn a full disk and the like into one clear sentence.

    Raises
    ------
    TargetError
        If ``root`` cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise TargetError(
            f"{root} cannot be written: {error.strerror}",
            "free some space (ems rm EXP) or set another `root:`; what was submitted stays so",
        ) from error
