"""Whether the results of a cluster's runs are safe elsewhere, so that it may be deleted: ``harvest_before_stop``.

``laptop``, the default: every run that was started has been harvested to another machine, as :mod:`ems.harvested` says.
A bucket: rclone copies the experiments there by the machine's own identity, and then compares. ``no``: nobody looks.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ems import harvested
from ems.cluster.elastic.here import FleetHere
from ems.node.records import ExperimentFiles

LAPTOP, NOBODY = "laptop", "no"
_LONGEST = 300  # characters of rclone's words
_TIME = re.compile(r"^\d{4}/\d\d/\d\d \d\d:\d\d:\d\d (?:ERROR *: )?", re.MULTILINE)
_COPY_S = 6 * 3600.0
_ASK_S = 5.0  # so often it is asked, while results are copied, whether somebody needs the cluster again
# what can be made again: checkouts, modules, links; what is not of any experiment
_LEFT_OUT = ("/code/**", "/lib/**", "/views/**", "/pycache/**", "/data/**", "*.aside")
# in users' homes: the root of a cluster's target, and those of projects that live on the cluster
_ROOTS = {"ems", ".ems"}
_DEPTH = 8  # folders below /home in which a root is looked for
_NO_PROJECTS = {"site-packages", "node_modules", "__pycache__"}


def roots(homes: Path) -> list[Path]:
    """Return the roots with experiments below the homes of a cluster's users; links are not followed."""
    found = list[Path]()
    for name, inside, _ in os.walk(homes):
        folder = Path(name)
        here = {each for each in inside if each in _ROOTS and (folder / each / "experiments").is_dir()}
        found += [folder / each for each in here if not (folder / each).is_symlink()]
        is_deep = len(folder.relative_to(homes).parts) >= _DEPTH
        inside[:] = [
            each for each in inside if not (is_deep or each in here or each.startswith(".") or each in _NO_PROJECTS)
        ]
    return sorted(found)


def lacks(fleet: FleetHere, is_needed: Callable[[], bool] = lambda: False) -> str:
    """Have the results be where the definition wants them; return why they are not, empty where they are.

    Parameters
    ----------
    is_needed
        Whether somebody waits meanwhile: then copying is broken off, for whoever does it does nothing else.
    """
    idle = fleet.definition.idle
    where = idle.harvest_before_stop if idle is not None else NOBODY
    if where == NOBODY:
        return ""
    there = roots(fleet.paths.homes)
    if where == LAPTOP:
        return _unharvested(there)
    place, environment = remote(where, getattr(fleet.definition.provider, "region", None))
    folder = f"{place.rstrip('/')}/{fleet.name}-{fleet.record.incarnation[:8]}"
    said = (copy(root, f"{folder}/{root.relative_to(fleet.paths.homes)}", environment, is_needed) for root in there)
    return next(filter(None, said), "")


def _unharvested(there: list[Path]) -> str:
    """Name an experiment of which something was not harvested; empty where there is none."""
    for files in _experiments(there):
        try:
            left = harvested.left(files)
        except OSError as error:  # whatever somebody has done to it, the cluster is to rest
            return f"{files.id} cannot be read: {error}"
        if left:
            more = f" and {len(left) - 1} more runs" if len(left) > 1 else ""
            return f"{files.id}/{left[0]}{more} were not harvested: ems harvest {files.id}"
    return ""


def _experiments(there: list[Path]) -> Iterator[ExperimentFiles]:
    for root in there:
        for spec in sorted(root.glob("experiments/*/spec.json")):
            yield ExperimentFiles(root, spec.parent.name)


def remote(where: str, region: str | None = None) -> tuple[str, dict[str, str]]:
    """Return a bucket as rclone calls it, and the environment by which the machine's own identity lets it in.

    Parameters
    ----------
    where
        ``s3://NAME/PATH``, ``gs://NAME/PATH``, or a folder.
    region
        Of the bucket; default: what the cloud says.
    """
    kind, _, path = where.rpartition("://")
    if kind == "s3":
        own = {"RCLONE_S3_PROVIDER": "AWS", "RCLONE_S3_ENV_AUTH": "true", "RCLONE_S3_NO_CHECK_BUCKET": "true"}
        return f":s3:{path}", own | ({"RCLONE_S3_REGION": region} if region else {})
    if kind == "gs":
        return f":gcs:{path}", {"RCLONE_GCS_ENV_AUTH": "true", "RCLONE_GCS_BUCKET_POLICY_ONLY": "true"}
    return path, {}


def copy(root: Path, place: str, environment: Mapping[str, str], is_needed: Callable[[], bool] = lambda: False) -> str:
    """Copy what cannot be made again of a root to a place, and compare; return what went wrong, empty: nothing."""
    for verb in (["copy"], ["check", "--one-way"]):
        if said := _rclone(*verb, str(root), place, environment=environment, is_needed=is_needed):
            return f"{root} is not safe in {place}: {said}"
    return ""


def _rclone(*words: str, environment: Mapping[str, str], is_needed: Callable[[], bool]) -> str:
    """Return rclone's last words where it fails, empty where it does not."""
    options = ["--config=/dev/null", "--links", "--log-level=ERROR", "--use-json-log=false"]
    argv = ["rclone", *words, *options, *(f"--exclude={each}" for each in _LEFT_OUT)]
    end = time.monotonic() + _COPY_S
    try:
        process = subprocess.Popen(
            argv, env={**environment, **os.environ}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
    except FileNotFoundError:
        return "there is no rclone on this machine"
    with process:
        try:
            while (said := _heard(process)) is None:
                if is_needed():
                    return "somebody needs the cluster again"
                if time.monotonic() > end:
                    return f"it takes longer than {_COPY_S / 3600:g} h"
        finally:
            process.kill()  # nothing where it has ended
    return "" if process.returncode == 0 else _last_words(said) or f"rclone ended with {process.returncode}"


def _heard(process: subprocess.Popen[str]) -> str | None:
    """Return what a process said, if it ends soon."""
    try:
        return process.communicate(timeout=_ASK_S)[1]
    except subprocess.TimeoutExpired:
        return None


def _last_words(said: str) -> str:
    """Return the last thing that rclone complained of, which may have several lines, without the time before it."""
    return " ".join(_TIME.split(said)[-1].split())[:_LONGEST]
