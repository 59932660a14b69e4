"""The executor of a target on another machine: the same eight verbs, done there."""

from __future__ import annotations

import platform
import zlib
from collections.abc import Collection, Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ems import root
from ems.errors import EmsError, NotFoundError
from ems.executor.base import Check, Limits, Submission, writing_to
from ems.model import Experiment, JobInfo, Json, Resources, State
from ems.node import feed, records
from ems.node.records import ExperimentFiles, Record
from ems.remote import wire
from ems.remote.client import Agent
from ems.remote.push import push


class RemoteExecutor:
    """Runs experiments through the executor of another machine.

    What was submitted there lies in the mirror as well, written before the other side hears of it. So :meth:`submit`
    carries on after any break: it sends what the other side turns out to lack.

    Parameters
    ----------
    agent
        Who does it there.
    mirror
        The root on this side.
    """

    def __init__(self, agent: Agent, mirror: Path) -> None:
        self.agent = agent
        self.mirror = mirror

    @property
    def name(self) -> str:
        """The name of the executor there: ``slurm`` or ``here``."""
        return self.agent.target.executor

    def check(self, resources: Resources) -> None:
        """See :meth:`Executor.check`; the root there is looked at, too."""
        self.agent.call("check", resources=asdict(resources))

    def limits(self) -> Limits:
        """See :meth:`Executor.limits`."""
        return Limits(**self.agent.call("limits"))

    def script(self, experiment: Experiment, chunk: Record) -> str:
        """See :meth:`Executor.script`."""
        return str(self.agent.call("script", experiment=asdict(experiment), chunk=chunk))

    def submit(self, experiment: Experiment, files: ExperimentFiles) -> Submission:  # noqa: ARG002  # the Protocol's
        """See :meth:`Executor.submit`; asks nothing where nothing waits."""
        chunks = [records.read_json(files.chunk(number)) for number in feed.waiting(files)]
        if not chunks:
            return Submission([])
        answer = self._ask("submit", files, chunks=chunks)
        with writing_to(self.mirror):
            if "instead" in answer:
                _replace_chunks(files, answer["instead"])
            self._keep_jobs(files, answer["jobs"])
        if "error" in answer:
            raise wire.as_error(answer["error"])
        submitted = [(int(chunk), str(job)) for chunk, job in answer["submitted"]]
        return Submission(submitted, answer["waiting_chunks"], answer["refusal"])

    def refresh(self, jobs: Iterable[str]) -> dict[str, JobInfo]:
        """See :meth:`Executor.refresh`."""
        found = self.agent.call("refresh", jobs=sorted(jobs))
        return {job: JobInfo(**{**info, "state": State(info["state"])}) for job, info in found.items()}

    def cancel(self, jobs: Iterable[str]) -> None:
        """See :meth:`Executor.cancel`."""
        self.agent.call("cancel_jobs", jobs=sorted(jobs))

    def hold(self, jobs: Iterable[str], release: bool = False) -> None:
        """See :meth:`Executor.hold`."""
        self.agent.call("hold_jobs", jobs=sorted(jobs), release=release)

    def doctor(self) -> list[Check]:
        """See :meth:`Executor.doctor`; the way there comes first."""
        target = self.agent.target
        way = Check("ssh", True, f"{platform.node()} to {target.host.destination}, ems of the same version there")
        found = [Check(**each) for each in self.agent.call("doctor")]
        hint = f"make room there, or put it elsewhere: ems cluster connect {target.name} … --root FOLDER"
        return [way, *(replace(each, hint=hint) if each.name == "root" and not each.ok else each for each in found)]

    # -- experiments as a whole: what touches their files must be done where these are ------------------------------

    def cancel_runs(self, files: ExperimentFiles, indices: Collection[int] | None = None) -> None:
        """Cancel an experiment, or some of its runs; see :func:`ems.executor.control.cancel`."""
        answer = self._ask("cancel", files, indices=None if indices is None else sorted(indices))
        with writing_to(self.mirror):
            self._keep_jobs(files, answer["jobs"])
            if indices is None:
                _cancel_waiting(files)

    def hold_runs(self, files: ExperimentFiles, indices: Collection[int] | None = None, release: bool = False) -> None:
        """Hold or release an experiment, or some of its runs; see :func:`ems.executor.control.hold`."""
        chosen = None if indices is None else sorted(indices)
        self._ask("hold", files, indices=chosen, release=release)
        mark = Path(feed.hold_path(files))
        if chosen is None and release:
            mark.unlink(missing_ok=True)
        elif chosen is None:
            mark.touch()

    def remove(self, files: ExperimentFiles) -> int:
        """Cancel an experiment and delete its files on both sides; return the bytes that were freed there."""
        with writing_to(self.mirror):
            _cancel_waiting(files)  # first, so that what is gone there is not sent anew if this breaks off
        freed = int(self.agent.call("remove", id=files.id))
        root.delete(files)
        return freed

    def study(self, files: ExperimentFiles, **args: Any) -> dict[str, Any]:
        """Have a study looked after there; see :func:`ems.study.far.attend`."""
        return self._ask("study", files, **args)

    def find_python(self, python: str | None) -> str:
        """Return the Python that runs get there: the one named, the target's own, or what ``python3`` means there."""
        return str(self.agent.call("python", python=python or self.agent.target.python))

    def check_container(self, image: str) -> None:
        """See that containers can be started there, as far as that can be known before."""
        self.agent.call("check_container", image=image)

    def build_environment(self, snapshot: str, python: str | None) -> str:
        """Return the Python of the environment of a snapshot's lock file, which is built there where it is new."""
        self.push(snapshot)
        based_on = python or self.agent.target.python
        return str(self.agent.call("build_environment", snapshot=snapshot, python=based_on))

    def surroundings(self, python: str) -> dict[str, Json]:
        """Return what is around the code there: Python, packages, platform, variables."""
        found: dict[str, Json] = self.agent.call("surroundings", python=python)
        return found

    def push(self, snapshot: str) -> None:
        """See that the other side has a snapshot."""
        if self.agent.call("lacks", snapshots=[snapshot]):
            push(self.mirror / "snapshots.git", self.agent.target, snapshot)

    def _ask(self, do: str, files: ExperimentFiles, **args: Any) -> dict[str, Any]:
        """Have something done with an experiment, having sent what the other side says that it lacks for it."""
        sent: set[str] = set()
        while True:
            answer: dict[str, Any] = self.agent.call(do, id=files.id, **args)
            lacking = answer.get("lacks")
            if lacking is None:
                return answer
            if lacking in sent:
                name = self.agent.target.name
                raise EmsError(f"{name} loses what it is sent: the {lacking} of {files.id}", "ems doctor")
            sent.add(lacking)
            self._send(lacking, files)

    def _send(self, lacking: str, files: ExperimentFiles) -> None:
        spec = records.read_json(files.spec)
        if spec is None:
            raise NotFoundError(f"the files of {files.id} are neither here nor on {self.agent.target.name}")
        self.push(spec["snapshot"])
        if lacking == "experiment":
            content = root.pack(files)
            sizes = [(name, len(data)) for name, data in content.items()]
            self.agent.call("take_in", zlib.compress(b"".join(content.values()), 1), id=files.id, files=sizes)

    def _keep_jobs(self, files: ExperimentFiles, jobs: dict[str, Record]) -> None:
        """Note in the mirror which job each chunk became."""
        for number, record in jobs.items():
            path = files.chunk(int(number), "job")
            if records.read_json(path) != record:
                records.write_atomic(path, records.dump(record))


def _cancel_waiting(files: ExperimentFiles) -> None:
    """Have nothing sent any more that the other side has never heard of."""
    for number in feed.waiting(files):
        feed.record_job(files, number, feed.CANCELLED)


def _replace_chunks(files: ExperimentFiles, others: dict[str, Record]) -> None:
    """Forget what was queued here while ``others`` were queued there, from whose first number on the two differ."""
    for number in feed.waiting(files):
        if number >= min(map(int, others)):
            Path(files.chunk(number)).unlink(missing_ok=True)
    for name, chunk in others.items():
        records.write_atomic(files.chunk(int(name)), records.dump(chunk))
