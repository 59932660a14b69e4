"""What a machine says of itself: this file is sent to its Python, prints one line of JSON, and is gone.

Standard library only. Changes nothing there but that it makes the root.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tempfile

MARK = "ems-probe "  # before the line; what a login shell prints comes before it
_TIMEOUT_S = 30
_CONFIGURATIONS = ("/etc/slurm/slurm.conf", "/run/slurm/conf/slurm.conf", "/etc/slurm-llnl/slurm.conf")
_SINFO = ["sinfo", "-h", "-o", "%R|%P|%a|%D|%c|%m|%G|%L|%l"]


def main() -> None:
    """Look at everything; print it."""
    found: dict[str, object] = {
        "host": platform.node(),
        "python": sys.executable,
        "version": list(sys.version_info[:3]),
        "base": sys.base_prefix,
        "abi": sysconfig.get_config_var("abiflags") or "",
        "machine": platform.machine(),
        "libc": list(platform.libc_ver()),
    }
    found |= _root(sys.argv[1])
    found["environment"] = _environment()
    found["slurm"] = _slurm()
    print(MARK + json.dumps(found))  # noqa: T201  # the answer


def _root(named: str) -> dict[str, object]:
    """Make the root and write to it; a variable or ``~`` that it begins with means what it means there."""
    told = os.path.expanduser(os.path.expandvars(named) if named.startswith("$") else named)  # noqa: PTH111
    if told.startswith(("$", "~")):
        return {"root": named, "trouble": f"nothing there says what {named.partition('/')[0]} is"}
    root = os.path.abspath(told)  # noqa: PTH100
    try:
        os.makedirs(root, exist_ok=True)  # noqa: PTH103  # modes as the umask there says
        with tempfile.TemporaryFile(dir=root):
            pass
    except OSError as error:
        return {"root": root, "trouble": error.strerror}
    return {"root": root, "trouble": None}


def _environment() -> dict[str, str]:
    """Return what has to be set for SLURM's commands to be found, where only a login shell knows."""
    if shutil.which("sbatch"):
        return {}
    code = f"import json, os; print({MARK!r} + json.dumps(dict(os.environ)))"
    try:
        shell = ["bash", "-lc", 'exec "$0" "$@"', sys.executable, "-c", code]
        done = subprocess.run(shell, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        told = json.loads(done.stdout.rpartition(MARK)[2])
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return {}
    if not shutil.which("sbatch", path=told.get("PATH")):
        return {}
    needed = {name: told[name] for name in ("PATH", "SLURM_CONF") if name in told}
    os.environ.update(needed)
    return needed


def _slurm() -> dict[str, object] | None:
    """Return what SLURM says, as it says it; None where there is none, or one that belongs to no cluster."""
    if not shutil.which("sbatch") or not shutil.which("sinfo"):
        return None
    try:
        version = subprocess.run(["sbatch", "-V"], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        asked = subprocess.run(_SINFO, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return {"trouble": f"sinfo said nothing for {_TIMEOUT_S} s"}
    if asked.returncode != 0 and not _is_configured():
        return None
    trouble = (asked.stderr.strip() or f"exit status {asked.returncode}") if asked.returncode else None
    return {"version": (version.stdout.split() or ["?"])[-1], "sinfo": asked.stdout, "trouble": trouble}


def _is_configured() -> bool:
    said = any(os.environ.get(key) for key in ("SLURM_CONF", "SLURM_CONF_SERVER"))
    return said or any(os.path.exists(path) for path in _CONFIGURATIONS)  # noqa: PTH110


if __name__ == "__main__":
    main()
