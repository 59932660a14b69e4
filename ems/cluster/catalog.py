"""The definitions of clusters that there are: the project's win over the user's, which win over the shipped ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ems import document
from ems.cluster import shipped
from ems.cluster.definition import Definition
from ems.cluster.problems import problems
from ems.config import user_path
from ems.document import Document
from ems.errors import ConfigError, EmsError, NotFoundError, UsageError
from ems.registry import check_name

FOLDER, SCHEMA_FILE = "cluster", "schema.json"
_MAX_REQUIREMENTS = 64 * 1024  # bytes


@dataclass(frozen=True, slots=True)
class Entry:
    """A definition's file.

    Attributes
    ----------
    origin
        ``project``, ``user`` or ``ems``.
    """

    name: str
    path: Path
    origin: str

    def read(self) -> Definition:
        """Return the checked definition, resolved: with everything that the file leaves open.

        Raises
        ------
        ConfigError
            If it is wrong; names file, line and key.
        """
        try:
            check_name(self.name)
        except UsageError as error:
            raise ConfigError(f"{self.path}: {error.message}", error.hint) from None
        found = document.read(self.path, "cluster definition", name=_short(self.path))
        said = found.content.get("name", self.name)
        if said != self.name:
            message = f"`name` says `{said}`, but the file's name says `{self.name}`"
            raise found.error(("name",), message, "leave `name` out")
        definition = _resolved(found.check(Definition, name=self.name), found, self.path.parent)
        for problem in problems(definition):
            raise found.error(problem.location, problem.message, problem.hint)
        return definition


def entries(project: Path | None) -> list[Entry]:
    """Return all definitions by name; of those with the same name the one that wins."""
    found: dict[str, Entry] = {}
    for origin, folder in _folders(project):
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, Entry(path.stem, path, origin))
    return [found[name] for name in sorted(found)]


def find(name: str, project: Path | None) -> Entry:
    """Return the definition of that name.

    Raises
    ------
    NotFoundError
        If there is none; names the one that was meant.
    """
    known = {entry.name: entry for entry in entries(project)}
    if name not in known:
        hint = document.did_you_mean(name, list(known), "there are")
        hint += (" " if hint.endswith("?") else "; ") + f"else write {FOLDER}/{name}.yaml"
        raise NotFoundError(f"there is no cluster definition `{name}`", hint)
    return known[name]


def load(name: str, project: Path | None) -> Definition:
    """Return the resolved definition of that name.

    Raises
    ------
    NotFoundError
        If there is none.
    ConfigError
        If it is wrong; names file, line and key.
    """
    return find(name, project).read()


def problem_of(entry: Entry) -> EmsError | None:
    """Return what is wrong with a definition; None: nothing."""
    try:
        entry.read()
    except EmsError as error:
        return error
    return None


def schema() -> str:
    """Return the JSON schema of a definition's file, for editors."""
    described: dict[str, Any] = Definition.model_json_schema()
    described["properties"]["name"]["description"] = "The file's own name; may be left out."
    described["required"].remove("name")
    heading = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Cluster definition of ems"}
    return json.dumps(heading | {key: value for key, value in described.items() if key != "title"}, indent=1) + "\n"


def _folders(project: Path | None) -> Iterator[tuple[str, Path]]:
    if project is not None:
        yield "project", project / FOLDER
    yield "user", user_path().parent / FOLDER
    yield "ems", shipped.definitions()


def _resolved(definition: Definition, found: Document, folder: Path) -> Definition:
    """Replace paths that only this computer knows: hooks by absolute ones, the requirements file by its text."""
    changes: dict[str, object] = {}
    for moment in ("before", "after"):
        given: tuple[str, ...] = getattr(definition.hooks, moment)
        for number, hook in enumerate(given):
            if not (folder / hook).is_file():
                raise found.error(("hooks", moment, number), f"there is no playbook {hook}", _relative(folder))
        changes[moment] = tuple(str((folder / hook).resolve()) for hook in given)
    python = definition.python
    if python.requirements is not None:
        python = python.model_copy(update={"requirements": _requirements(python.requirements, found, folder)})
    return definition.model_copy(update={"hooks": definition.hooks.model_copy(update=changes), "python": python})


def _requirements(name: str, found: Document, folder: Path) -> str:
    """Return the text of a requirements file; a text itself (it has lines, a path has not) stands for itself."""
    key = ("python", "requirements")
    try:
        text = name if "\n" in name else (folder / name).read_text(encoding="utf-8").rstrip() + "\n"
    except (OSError, UnicodeDecodeError, ValueError):
        raise found.error(key, f"there is no requirements file {name}", _relative(folder)) from None
    if len(text) > _MAX_REQUIREMENTS:
        raise found.error(key, f"{name[:80]} is no requirements file: it has {len(text)} bytes")
    for line in text.splitlines():
        if line.startswith(("-r", "-c", "-e", "--requirement", "--constraint", "--editable", ".", "/")):
            raise found.error(
                key, f"{name} names a file of this computer: `{line}`", "name packages by name and version"
            )
    return text


def _relative(folder: Path) -> str:
    return f"check the path: it is relative to {_short(folder)}"


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
