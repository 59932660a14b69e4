"""The project's ``ems.yaml`` and the user's ``config.yaml``, joined with flags; the only reader of either.

A value is taken from the first of: flag, ``targets.NAME`` of the project's file, the project's file,
``targets.NAME`` of the user's file, the user's file, what is known of the cluster NAME, default. Each value remembers
where it came from.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import fields as dataclass_fields
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from ems import document, registry
from ems.errors import ConfigError, UsageError
from ems.model import Json, PassAs, Resources

PROJECT_FILE = "ems.yaml"

Layer: TypeAlias = "tuple[str, Mapping[str, Json]]"  # where from, dotted key -> value


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _inside_project(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise ValueError("must be a path inside the project")
    return str(pure)


def _pattern(text: str) -> str:
    try:
        groups = re.compile(text).groupindex
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    if not groups:
        raise ValueError("names no metric: it needs a named group such as (?P<acc>[0-9.]+)")
    return text


Texts = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Paths = Annotated[tuple[Annotated[str, BeforeValidator(_inside_project)], ...], BeforeValidator(_as_list)]
Patterns = Annotated[tuple[Annotated[str, BeforeValidator(_pattern)], ...], BeforeValidator(_as_list)]
Count = Annotated[int, Field(ge=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True, frozen=True)


class ResourcesSection(_Model):
    """``resources:`` of a file, in SLURM's own words."""

    gres: str | None = None
    gpus: str | None = None
    cpus: Count | None = None
    mem: str | None = None
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    nodes: Count | None = None
    exclude: str | None = None
    alloc: str | None = None


class TargetSection(_Model):
    """What may be set for everything, or for one target under ``targets.NAME``."""

    root: str | None = None
    resources: ResourcesSection = ResourcesSection()
    python: str | None = None
    setup: Texts = ()
    env: Literal["auto", "none"] | None = None
    container: str | None = None
    pass_as: PassAs | None = None
    data: Paths | None = None
    max_file_mb: Annotated[float, Field(gt=0)] = 50.0
    log_patterns: Patterns = ()
    metric_files: Texts = ()
    grace_s: Annotated[int, Field(ge=0)] = 60
    max_requeues: Annotated[int, Field(ge=0)] = 3
    workers: Count | None = None
    pack: Count | None = None
    max_parallel: Count | None = None
    seed: int = 0
    worker_python: str | None = None


class ConfigFile(TargetSection):
    """A whole ``ems.yaml`` or ``config.yaml``."""

    on: str | None = None
    targets: dict[str, TargetSection] = {}


@dataclass(frozen=True, slots=True)
class Settings:
    """Every setting with its value, and where each came from.

    ``data`` is None where nobody said (then the git-ignored top-level folders are meant); ``on`` likewise, where
    there is no current cluster either (then the one that this machine belongs to, else ``here``).
    """

    on: str | None
    root: Path | None
    resources: Resources
    python: str | None
    setup: tuple[str, ...]
    env: str | None
    container: str | None
    pass_as: PassAs | None
    data: tuple[str, ...] | None
    max_file_mb: float
    log_patterns: tuple[str, ...]
    metric_files: tuple[str, ...]
    grace_s: int
    max_requeues: int
    workers: int | None
    pack: int | None
    max_parallel: int | None
    seed: int
    worker_python: str | None
    targets: tuple[str, ...]  # names that a file speaks of
    project: Path | None  # the folder whose ems.yaml was read
    origins: Mapping[str, str]  # dotted key -> "flag", a file, or "default"

    def items(self) -> Iterator[tuple[str, Json, str]]:
        """Yield ``(dotted key, value, origin)`` of every setting, in order."""
        for key, origin in self.origins.items():
            holder: object = self.resources if key.startswith("resources.") else self
            value = getattr(holder, key.removeprefix("resources."))
            yield key, str(value) if isinstance(value, Path) else value, origin


def user_path() -> Path:
    """Where the user's own file is, whether it exists or not (XDG base directory specification)."""
    base = os.environ.get("XDG_CONFIG_HOME") or ""
    folder = Path(base) if Path(base).is_absolute() else Path.home() / ".config"
    return folder / "ems" / "config.yaml"


def load(project: Path | None, *, on: str | None = None, flags: Mapping[str, Json] | None = None) -> Settings:
    """Join flags, the project's file, the user's file and the defaults.

    Parameters
    ----------
    project
        The project's root; its ``ems.yaml`` is optional. None: no project.
    on
        The target typed by ``--on``; decides which ``targets.NAME`` sections count.
    flags
        Dotted key (``"seed"``, ``"resources.mem"``) -> value typed; None values were not typed.

    Raises
    ------
    ConfigError
        If a file is no YAML, has an unknown key or a value of the wrong kind; names file, line and key.
    UsageError
        If a flag has a value that cannot be.
    """
    typed = _check_flags({key: value for key, value in (flags or {}).items() if value is not None})
    files = [(path.name if path.parent == project else _short(path), _read(path)) for path in _paths(project)]
    chosen = on if on is not None else next((file.on for _, file in files if file.on is not None), registry.current())
    layers: list[Layer] = [("flag", typed | ({"on": on} if on is not None else {}))]
    for origin, file in files:
        if chosen is not None and chosen in file.targets:
            layers.append((f"{origin}: targets.{chosen}", _flat(file.targets[chosen])))
        layers.append((origin, _flat(file)))
    layers += _of_cluster(chosen)
    names = tuple(dict.fromkeys(name for _, file in files for name in file.targets))
    return _join(layers, project, names)


def _check_flags(flags: Mapping[str, Json]) -> dict[str, Json]:
    """Hold flags to what files are held to."""
    prefix = "resources."
    resources = {key.removeprefix(prefix): value for key, value in flags.items() if key.startswith(prefix)}
    others = {key: value for key, value in flags.items() if not key.startswith(prefix)}
    try:
        return _flat(TargetSection.model_validate({**others, "resources": resources}))
    except ValidationError as error:
        raise UsageError(document.complaint(error), "`--help` after the command says what it takes") from None


def _of_cluster(name: str | None) -> list[Layer]:
    """Return what the registry knows of a cluster that is meant: what runs ask for where nobody says."""
    known = registry.load(name) if name is not None else None
    if known is None:
        return []
    said: dict[str, Json] = {f"resources.{key}": value for key, value in known.resources.items()}
    said |= {"worker_python": known.worker_python} if known.worker_python else {}
    current: list[Layer] = [("ems cluster use", {"on": name})] if name == registry.current() else []
    return [(f"cluster {name}", said), *current]


def _paths(project: Path | None) -> list[Path]:
    candidates = [project / PROJECT_FILE] if project else []
    return [path for path in [*candidates, user_path()] if path.is_file()]


def _short(path: Path) -> str:
    home = Path.home()
    if path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return f"~/{path.relative_to(home)}" if path.is_relative_to(home) else str(path)


def _flat(section: TargetSection) -> dict[str, Json]:
    """Dotted key -> value of what the file says itself (what it says null to is said, too)."""
    said = section.model_dump(exclude_unset=True, exclude={"targets"})
    resources = said.pop("resources", {})
    return said | {f"resources.{key}": value for key, value in resources.items()}


def _join(layers: Sequence[Layer], project: Path | None, targets: tuple[str, ...]) -> Settings:
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for key, default in _defaults().items():
        found = ((origin, layer[key]) for origin, layer in layers if key in layer)
        origins[key], values[key] = next(found, ("default", default))
    asked = {field.name: values.pop(f"resources.{field.name}") for field in dataclass_fields(Resources)}
    if values["root"] is not None:
        base = project if origins["root"].startswith(PROJECT_FILE) and project else Path.cwd()
        values["root"] = base / _expanded(values["root"], origins["root"])
    if values["env"] == "none":
        values["env"] = None
    return Settings(**values, resources=Resources(**asked), targets=targets, project=project, origins=origins)


def _expanded(root: str | Path, origin: str) -> str:
    """Return ``root`` with ``~`` and ``$NAME`` replaced; a folder that is named `$SCRATCH` is what nobody means."""
    path = os.path.expandvars(os.path.expanduser(root))  # noqa: PTH111 - Path's own raises RuntimeError of ~nobody
    if unset := re.search(r"\A~[^/]*|\$\w+|\$\{\w+\}", path):
        raise ConfigError(
            f"{origin}: `root` names {unset[0]}, which is not set here", "set it, or write a path in full"
        )
    return path


def _defaults() -> dict[str, Json]:
    """Dotted key -> default, in the order that people see; the models above are the one list of keys."""
    keys: dict[str, Json] = {"on": None}
    for name, field in TargetSection.model_fields.items():
        if name == "resources":
            keys |= {f"resources.{key}": None for key in ResourcesSection.model_fields}
        else:
            keys[name] = field.default
    return keys


# ---------------------------------------------------------------------------------------------- reading a file


def _read(path: Path) -> ConfigFile:
    return document.read(path, "settings file", name=_short(path), may_be_empty=True).check(ConfigFile)
