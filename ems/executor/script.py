"""The text of batch scripts: submitit knows sbatch's parameters, and ems puts its own command there."""

from __future__ import annotations

import shlex

from submitit import SlurmExecutor as SubmititSlurm

from ems.errors import UsageError
from ems.model import Resources

# What ems decides about every job; changed by --alloc, it would lose sight of its own runs.
_OURS = {
    "--array": "-a",
    "--job-name": "-J",
    "--output": "-o",
    "--error": "-e",
    "--open-mode": "",
    "--parsable": "",
    "--wait": "-W",
    "--wrap": "",
    "--test-only": "",
    "--chdir": "-D",
    "--signal": "",
}


class Script(SubmititSlurm):
    """submitit's checks and sbatch text around a command of our own instead of its pickle entry."""

    @classmethod
    def affinity(cls) -> int:
        """Return what submitit would ask srun for."""
        # submitit wants srun on the machine that writes the script; we start no srun, and --dry-run works anywhere
        return 2

    def text(self, command: str) -> str:
        """Return the script that runs a command."""
        return str(self._make_submission_file_text(command, ""))


def parameters(resources: Resources) -> dict[str, object]:
    """Name what is asked as submitit does; its defaults (5 minutes, one node) are not ours."""
    return {
        "gres": resources.gres,
        "cpus_per_task": resources.cpus,
        "mem": resources.mem,
        "time": resources.time,
        "partition": resources.partition,
        "account": resources.account,
        "qos": resources.qos,
        "constraint": resources.constraint,
        "nodes": resources.nodes,
        "exclude": resources.exclude,
    }


def flags(parameters: dict[str, object]) -> list[str]:
    """Return a line for each parameter that is set."""
    return [
        f"#SBATCH --{key.replace('_', '-')}={shlex.quote(str(value))}"
        for key, value in parameters.items()
        if value is not None
    ]


def raw_flags(resources: Resources) -> list[str]:
    """``--alloc`` as one line: after all others, since the last of equal options counts.

    Raises
    ------
    UsageError
        If it cannot be split, or would change what ems itself relies on.
    """
    try:
        raw = shlex.split(resources.alloc or "")
    except ValueError as error:
        raise UsageError(f"`--alloc {resources.alloc}`: {error}", "quote it as on sbatch's own command line") from None
    for word in raw:
        option = word.partition("=")[0]
        # sbatch takes any unambiguous beginning of a long option
        ours = next(
            (
                long
                for long, short in _OURS.items()
                if (len(option) > 3 and long.startswith(option)) or (short and word.startswith(short))
            ),
            "",
        )
        if ours:
            raise UsageError(f"`--alloc` may not set {ours}: ems sets it itself", f"leave `{word}` out")
    if "\n" in (resources.alloc or ""):
        raise UsageError("`--alloc` has a line break in it", "write it on one line")
    return [f"#SBATCH {shlex.join(raw)}"] if raw else []


def insert_raw(text: str, resources: Resources) -> str:
    """Return a script with ``--alloc`` after its other options."""
    lines = text.split("\n")
    last = max(number for number, line in enumerate(lines) if line.startswith("#SBATCH"))
    return "\n".join([*lines[: last + 1], *raw_flags(resources), *lines[last + 1 :]])
