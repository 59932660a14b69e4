"""The words before a command that run it inside a container: apptainer (or singularity), or enroot."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Iterable, List


class ContainerError(Exception):
    """No container runtime can start the image; ``hint`` says how to mend it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def find_runtime(image: str, may_be_loaded: bool = False) -> str:
    """Return which program starts ``image``: ``apptainer``, ``singularity`` or ``enroot``.

    Parameters
    ----------
    image
        A file (``.sif``; ``.sqsh`` is enroot's), ``docker://…`` for apptainer, or the name of an enroot container.
    may_be_loaded
        Whether setup lines (``module load apptainer``) come first: then it need not be there yet.

    Raises
    ------
    ContainerError
        If none is installed here, or only one that cannot start this kind of image.
    """
    from shutil import which

    kinds = ("enroot",) if image.endswith(".sqsh") else ("apptainer", "singularity", "enroot")
    runtime = next((kind for kind in kinds if which(kind)), kinds[0] if may_be_loaded else None)
    if runtime is None:
        raise ContainerError(
            "no %s on %s to start the container %s" % (" or ".join(kinds), os.uname().nodename, image),
            "install it, load it by --setup 'module load …', or leave --container out",
        )
    if runtime == "enroot" and "://" in image:
        raise ContainerError(
            "enroot cannot start %s directly" % image,
            "enroot import -o image.sqsh %s, then --container image.sqsh" % image,
        )
    return runtime


def prefix(
    image: str,
    cwd: str,
    binds: Iterable[str] = (),
    gpu: bool = False,
    variables: Iterable[str] = (),
    may_be_loaded: bool = False,
) -> List[str]:
    """Return the words to put before a command.

    Parameters
    ----------
    image, may_be_loaded
        See `find_runtime`.
    cwd
        Absolute working directory of the command, the same inside as outside.
    binds
        Absolute paths that must be seen at the same place inside (the target's root, data); missing ones are left out.
    gpu
        Whether the container needs the host's NVIDIA driver.
    variables
        Names (never values: argv is public) of environment variables to hand over; apptainer hands over all by itself.

    Raises
    ------
    ContainerError
        As `find_runtime`.
    """
    runtime = find_runtime(image, may_be_loaded)
    places = sorted({os.path.abspath(place) for place in binds if os.path.exists(place)})
    if runtime == "enroot":
        words = ["enroot", "start", "--rw"]
        words += [word for place in places for word in ("--mount", "%s:%s" % (place, place))]
        words += [word for name in sorted(variables) for word in ("--env", name)]
        # enroot has no option for the working directory
        return [*words, image, "sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", cwd]
    words = [runtime, "exec", "--pwd", cwd]
    words += [word for place in places for word in ("--bind", place)]
    return [*words, *(["--nv"] if gpu else []), image]
