"""The running ``ems`` as a wheel, however it is installed here, so that another machine gets the very same one.

No build tool is needed: a wheel is a zip file of the package, of what ships beside it, and of three texts (PyPA,
"Binary distribution format"). The same files give the same bytes, whenever and wherever they are packed.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import importlib.metadata
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ems.version import __version__

_PACKAGE = Path(__file__).resolve().parent
_EPOCH = (1980, 1, 1, 0, 0, 0)  # the first moment that a zip file can name


def pack(folder: Path) -> Path:
    """Write the wheel of this ``ems`` into ``folder``.

    Returns
    -------
    Path
        ``ems-VERSION+DIGEST-py3-none-any.whl``: pip takes one of other files for another version.
    """
    content = dict(sorted(_package_files()))
    digest = hashlib.sha256()
    for name, data in {**content, "METADATA": _metadata(__version__)}.items():
        digest.update(b"%s\0%d\0%s" % (name.encode(), len(data), data))
    version = f"{__version__}+{digest.hexdigest()[:12]}"
    info = f"ems-{version}.dist-info"
    content[f"{info}/METADATA"] = _metadata(version)
    content[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: ems\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content[f"{info}/entry_points.txt"] = b"[console_scripts]\nems = ems.cli:main\n"
    content[f"{info}/RECORD"] = _record(content, f"{info}/RECORD")
    path = folder / f"ems-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            member = zipfile.ZipInfo(name, _EPOCH)
            member.external_attr = 0o644 << 16
            archive.writestr(member, data, zipfile.ZIP_DEFLATED)
    return path


def _package_files() -> Iterator[tuple[str, bytes]]:
    """Yield the files of the package by their names in the wheel; in a checkout, with what it has elsewhere."""
    sources = {"ems": _PACKAGE}
    project = _checkout()
    if project is not None:
        beside = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
        sources |= {inside: _PACKAGE.parent / outside for outside, inside in beside.items()}
    for inside, source in sources.items():
        for path in source.rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield f"{inside}/{path.relative_to(source).as_posix()}", path.read_bytes()


@functools.cache
def _checkout() -> dict[str, Any] | None:
    """Return what pyproject.toml says, in a checkout; None where the package lies in site-packages."""
    try:
        found = tomllib.loads((_PACKAGE.parent / "pyproject.toml").read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return None
    return found if found.get("project", {}).get("name") == "ems" else None


def _metadata(version: str) -> bytes:
    """Return what pip has to know: of a checkout what its own file says, since what was installed may be older."""
    checkout = _checkout()
    said = _installed() if checkout is None else _described(checkout["project"])
    lines = ["Metadata-Version: 2.1", "Name: ems", f"Version: {version}", *sorted(said)]
    return "".join(f"{line}\n" for line in lines).encode()


def _installed() -> Iterator[str]:
    metadata = importlib.metadata.metadata("ems")
    for key in ("Requires-Python", "Provides-Extra", "Requires-Dist"):
        for value in metadata.get_all(key) or ():
            yield f"{key}: {value}"


def _described(project: dict[str, Any]) -> Iterator[str]:
    yield f"Requires-Python: {project['requires-python']}"
    for requirement in project["dependencies"]:
        yield f"Requires-Dist: {requirement}"
    for extra, wanted in project.get("optional-dependencies", {}).items():
        yield f"Provides-Extra: {extra}"
        for requirement in wanted:
            yield f'Requires-Dist: {requirement}; extra == "{extra}"'


def _record(content: dict[str, bytes], own: str) -> bytes:
    """Return the list of files with their hashes, itself without one."""
    lines = []
    for name, data in content.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(data)}\n")
    return "".join([*lines, f"{own},,\n"]).encode()
