"""What the far side does for experiments: look, take in, submit, ask, cancel, hold, remove."""

from __future__ import annotations

import os
import platform
import shutil
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ems import environment, provenance, root, snapshot
from ems import harvested as marks
from ems.errors import EmsError, ExecutorError, SnapshotError, TargetError
from ems.executor import control
from ems.executor.base import writing_to
from ems.model import Experiment, Resources
from ems.node import feed, records
from ems.node.records import ExperimentFiles
from ems.remote import wire
from ems.remote.site import Operation, Site

Args = Mapping[str, Any]


def check(site: Site, args: Args, _: bytes) -> None:
    """Say early what cannot be had: the resources, a place to write."""
    root.check(site.root)
    site.executor.check(Resources(**args["resources"]))


def limits(site: Site, _args: Args, _: bytes) -> dict[str, Any]:
    """Return the fields of ``Limits``."""
    return asdict(site.executor.limits())


def script(site: Site, args: Args, _: bytes) -> str:
    """Return what would be run to start a chunk."""
    return site.executor.script(Experiment.load(args["experiment"]), args["chunk"])


def doctor(site: Site, _args: Args, _: bytes) -> list[dict[str, Any]]:
    """Return the fields of each ``Check``."""
    return [asdict(each) for each in site.executor.doctor()]


def python(_: Site, args: Args, _data: bytes) -> str:
    """Return the Python that runs get where no environment is built: the one that is named, if it is there.

    Raises
    ------
    TargetError
        If it is not.
    """
    named = args["python"] or "python3"
    found = shutil.which(os.path.expanduser(named))  # noqa: PTH111  # a bare word stays one
    if found is None:
        raise TargetError(
            f"there is no Python `{named}` on {platform.node()}",
            "name one that is there: --python PATH, or `python:` under `targets:` in ems.yaml",
        )
    return found


def check_container(site: Site, args: Args, _: bytes) -> None:
    """See that this machine can start a container, where it is the one that would."""
    if site.kind == "here":
        environment.check_container(args["image"])


def build_environment(site: Site, args: Args, _: bytes) -> str:
    """Return the Python of the environment that the lock file in a snapshot describes, built here where it is new."""
    code = snapshot.checkout(site.root, args["snapshot"])
    return environment.resolve(code, site.root, python=args["python"] or shutil.which("python3"))


def surroundings(_: Site, args: Args, _data: bytes) -> dict[str, Any]:
    """Return what is around the code here; who asked, and where, is known to the other side."""
    found = provenance.surroundings((), args["python"])
    return {key: found[key] for key in ("python", "packages", "platform", "environment")}


def lacks(site: Site, args: Args, _: bytes) -> list[str]:
    """Return which snapshots are not here, having made the repository that takes them."""
    git_dir = site.root / "snapshots.git"
    snapshot.prepare(git_dir)
    return [each for each in args["snapshots"] if not snapshot.has(git_dir, each)]


def take_in(site: Site, args: Args, data: bytes) -> None:
    """Write the directory of an experiment, whole; one that is here stays as it is."""
    root.check(site.root)
    content, position = {}, 0
    plain = zlib.decompress(data)
    for name, size in args["files"]:
        content[name] = plain[position : position + size]
        position += size
    root.unpack(site.root, site.files(args["id"]).id, content)


def submit(site: Site, args: Args, _: bytes) -> dict[str, Any]:
    """Hand over what the other side believes to be waiting, or say what it has to send first.

    Parameters
    ----------
    args
        ``id``, and ``chunks``: the record of each that has no job over there, ascending. Those that are not here yet
        are written down. Where another laptop was faster, ``instead`` are those that it queued by their numbers.
    """
    files = site.files(args["id"])
    spec = records.read_json(files.spec)
    if spec is None:
        return {"lacks": "experiment"}
    experiment = Experiment.load(spec)
    with writing_to(site.root):
        taken = next((chunk["chunk"] for chunk in args["chunks"] if not _add_chunk(files, chunk)), None)
    if taken is not None:
        error = ExecutorError(
            f"runs of {files.id} were queued by another laptop meanwhile, and none of this one's",
            f"see what is left to do: ems status {files.id}",
        )
        theirs = {number: records.read_json(files.chunk(number)) for number in files.chunk_numbers() if number >= taken}
        jobs = _jobs(files, [*args["chunks"], *({"chunk": number} for number in theirs)])
        return {"jobs": jobs, "instead": theirs, "error": wire.as_record(error)}
    if feed.waiting(files):
        try:
            root.prepare(site.root, experiment.snapshot)
        except SnapshotError:
            if snapshot.has(site.root / "snapshots.git", experiment.snapshot):
                raise
            return {"lacks": "snapshot"}
    try:
        done = site.executor.submit(experiment, files)
    except EmsError as error:  # what was handed over before it stays so, and the other side shall know
        return {"jobs": _jobs(files, args["chunks"]), "error": wire.as_record(error)}
    return {**asdict(done), "jobs": _jobs(files, args["chunks"])}


def refresh(site: Site, args: Args, _: bytes) -> dict[str, Any]:
    """Return what the scheduler says of jobs: job -> fields of ``JobInfo``."""
    return {job: asdict(info) for job, info in site.executor.refresh(args["jobs"]).items()}


def cancel_jobs(site: Site, args: Args, _: bytes) -> None:
    """End jobs by name."""
    site.executor.cancel(args["jobs"])


def hold_jobs(site: Site, args: Args, _: bytes) -> None:
    """Hold or release jobs by name."""
    site.executor.hold(args["jobs"], args["release"])


def cancel(site: Site, args: Args, _: bytes) -> dict[str, Any]:
    """Cancel an experiment or some of its runs; return the jobs of the chunks that are here.

    Of one that is not here all is cancelled by never sending it; that some of its runs are has to be noted here.
    """
    files = site.files(args["id"])
    if not Path(files.spec).exists():
        return {"jobs": {}} if args["indices"] is None else {"lacks": "experiment"}
    control.cancel(site.executor, files, args["indices"])
    return {"jobs": _jobs(files, [{"chunk": number} for number in files.chunk_numbers()])}


def hold(site: Site, args: Args, _: bytes) -> dict[str, Any]:
    """Hold or release an experiment or some of its runs, or say that it has to be sent first."""
    files = site.files(args["id"])
    if not Path(files.spec).exists():
        return {"lacks": "experiment"}
    control.hold(site.executor, files, args["indices"], args["release"])
    return {}


def remove(site: Site, args: Args, _: bytes) -> int:
    """Cancel an experiment and delete its files; return the bytes that were freed."""
    return root.remove(site.executor, site.files(args["id"]))


def _add_chunk(files: ExperimentFiles, chunk: records.Record) -> bool:
    """Write a chunk down unless it is there; return whether it is this one: another is another laptop's rerun."""
    path = files.chunk(int(chunk["chunk"]))
    return records.create_exclusive(path, records.dump(chunk)) or records.read_json(path) == chunk


def _jobs(files: ExperimentFiles, chunks: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    found = {str(chunk["chunk"]): records.read_json(files.chunk(chunk["chunk"], "job")) for chunk in chunks}
    return {number: record for number, record in found.items() if record is not None}


def harvested(site: Site, args: Args, _: bytes) -> None:
    """Write down which runs the other side has harvested: ``runs`` is [index, last attempt] of each."""
    files = site.files(args["id"])
    if records.read_json(files.spec) is not None:  # else it was removed meanwhile
        with writing_to(site.root):
            marks.note(files, {int(index): int(attempt) for index, attempt in args["runs"]})


TABLE: dict[str, Operation] = {
    "check": check,
    "limits": limits,
    "script": script,
    "doctor": doctor,
    "python": python,
    "check_container": check_container,
    "build_environment": build_environment,
    "surroundings": surroundings,
    "lacks": lacks,
    "take_in": take_in,
    "submit": submit,
    "refresh": refresh,
    "cancel_jobs": cancel_jobs,
    "hold_jobs": hold_jobs,
    "cancel": cancel,
    "hold": hold,
    "remove": remove,
    "harvested": harvested,
}
