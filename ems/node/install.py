"""Put what runs and workers need on a target: ``ROOT/lib/HASH/ems``, one folder a version of it."""

from __future__ import annotations

import hashlib
import os
import shutil

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict

    from ems.node.records import PathLike

_HERE = os.path.dirname(os.path.abspath(__file__))
_TOP = ("__init__.py", "version.py")  # of the package; the rest of what is copied is this folder


def install_lib(root: PathLike) -> str:
    """Copy ``ems/__init__.py`` and ``ems/node`` to ``ROOT/lib/HASH`` unless they are there; return that directory.

    It is made aside and renamed: two at once are safe.

    Raises
    ------
    OSError
        If the root cannot be written.
    """
    files = _files()
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(b"%s\0%d\0%s" % (name.encode(), len(content), content))
    lib = os.path.join(os.path.abspath(root), "lib", digest.hexdigest()[:16])
    if not os.path.isdir(lib):
        _write(lib, files)
    return lib


def _files() -> Dict[str, bytes]:
    package = os.path.dirname(_HERE)
    paths = {"ems/" + name: os.path.join(package, name) for name in _TOP}
    paths.update({"ems/node/" + name: os.path.join(_HERE, name) for name in os.listdir(_HERE) if name.endswith(".py")})
    found = {}
    for name, path in paths.items():
        with open(path, "rb") as file:
            found[name] = file.read()
    return found


def _write(lib: str, files: Dict[str, bytes]) -> None:
    aside = "%s.%s.aside" % (lib, os.urandom(6).hex())
    try:
        os.makedirs(os.path.join(aside, "ems", "node"))
        for name, content in files.items():
            with open(os.path.join(aside, name), "wb") as file:
                file.write(content)
        os.rename(aside, lib)
    except OSError:
        if not os.path.isdir(lib):  # else another process was first
            raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
