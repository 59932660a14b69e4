"""Running inside a container image: apptainer (or singularity), or enroot."""

from __future__ import annotations

import os
import shutil

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Mapping, Sequence

_PASSED = ("EMS_", "SLURM_", "PYTHONPATH", "CUDA_VISIBLE_DEVICES")


def prefix(image: str, binds: Sequence[str], env: Mapping[str, str], has_gpu: bool) -> List[str]:
    """Return the words before a command that run it in ``image``.

    Parameters
    ----------
    image
        A file or URI that the runtime takes.
    binds
        Absolute paths that are seen inside at the same place.
    env
        The run's environment. Apptainer passes it on by itself, enroot only what is named.
    has_gpu
        Whether the node's GPU driver is to be seen inside.

    Raises
    ------
    FileNotFoundError
        If this node has no container runtime.
    """
    for tool in ("apptainer", "singularity"):
        if shutil.which(tool):
            gpu = ["--nv"] if has_gpu else []
            return [tool, "exec", *gpu, *(word for path in binds for word in ("--bind", path)), image]
    if shutil.which("enroot"):
        mounts = [word for path in binds for word in ("--mount", "%s:%s" % (path, path))]
        names = sorted(name for name in env if name.startswith(_PASSED))
        return ["enroot", "start", *mounts, *(word for name in names for word in ("--env", name)), image]
    raise FileNotFoundError("node %s has neither apptainer, singularity nor enroot" % os.uname().nodename)
