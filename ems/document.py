"""A YAML file as data, with the line of every key for error messages.

Scalars are read as YAML 1.2 has them. In 1.1, which PyYAML reads, ``1e-3`` is text, ``2:00:00`` is 7200, ``on`` is
true and a date is no JSON; and a key that stands twice silently loses its first value, which is an error here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeAlias, TypeVar, Union, cast, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ems.errors import ConfigError
from ems.model import Json

Location: TypeAlias = tuple[str | int, ...]
Checked = TypeVar("Checked", bound=BaseModel)


@dataclass(frozen=True, slots=True)
class Document:
    """What a YAML file holds.

    Attributes
    ----------
    path
        The file, as messages name it.
    content
        Its mapping.
    """

    path: str | Path
    content: dict[str, Json]
    text: str

    def error(self, location: Location, problem: str, hint: str = "") -> ConfigError:
        """Return an error that names the file and the line of the key at ``location``."""
        return ConfigError(f"{self.path} line {self.line(location)}: {problem}", hint)

    def check(self, model: type[Checked], **known: Json) -> Checked:
        """Return the content as a model says it has to be.

        Parameters
        ----------
        known
            Keys that are not the file's to say.

        Raises
        ------
        ConfigError
            For the first unknown key or wrong value; names file and line, and the key that was meant.
        """
        try:
            return model.model_validate(self.content | known)
        except ValidationError as error:
            location, problem, hint = _explain(model, error)
            raise self.error(location, problem, hint) from None

    def line(self, location: Location) -> int:
        """Return the line, counted from 1, of the deepest key or item of ``location`` that the file has."""
        node, line = yaml.compose(self.text, _Loader), 1
        for part in location:
            if isinstance(node, yaml.MappingNode):
                pairs = [(key, value) for key, value in node.value if key.value == str(part)]
                if not pairs:
                    break
                line, node = pairs[0][0].start_mark.line + 1, pairs[0][1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
                node = node.value[part]
                line = node.start_mark.line + 1
        return line


def read(path: Path, what: str, *, name: str | None = None, may_be_empty: bool = False) -> Document:
    """Read a YAML file whose top is a mapping.

    Parameters
    ----------
    what
        What the file is, for messages: ``"sweep file"``.
    name
        How messages name it; default: its path.
    may_be_empty
        Whether a file without any key is no error.

    Raises
    ------
    ConfigError
        If it cannot be read, is no YAML, or holds anything but JSON's kinds of values; names file and line.
    """
    shown = name or path
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader with other scalars
    except FileNotFoundError:
        raise ConfigError(f"there is no {what} {shown}", "check the path: it is relative to where you are") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{shown} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        said = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{shown}{f' line {mark.line + 1}' if mark else ''}: {said}", "mend the line") from None
    except RecursionError:
        raise ConfigError(f"{shown} is nested too deeply, or in itself") from None
    if content is None and may_be_empty:
        content = {}
    if not isinstance(content, dict):
        hint = f"write `key: value` on lines of their own, with the keys of a {what}"
        raise ConfigError(f"{shown} is {'empty' if content is None else 'no mapping'}", hint)
    return Document(shown, content, text)


def complaint(error: ValidationError) -> str:
    """Return what a model complains of first: ```workers` should be greater than or equal to 1, got 0``."""
    return _said(error.errors()[0])


def _said(first: ErrorDetails) -> str:
    key = _dotted(first["loc"])
    words = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    words = re.sub(r"should be a valid dictionary.*", "should be a mapping", words)
    words = f"{words[:1].lower()}{words[1:]}"
    if not key:
        return words
    got = first["input"]
    return f"`{key}` {words}" + ("" if isinstance(got, Mapping) else f", got {got!r}")


def did_you_mean(word: str, known: Sequence[str], what: str = "known keys") -> str:
    """Return the hint for a name that is none of those known."""
    close = difflib.get_close_matches(word, known, 1, 0.6)
    return f"did you mean `{close[0]}`?" if close else f"{what}: {', '.join(known)}"


def _explain(model: type[BaseModel], error: ValidationError) -> tuple[Location, str, str]:
    """Return where the first complaint is, what it is, and a hint."""
    found = error.errors()
    # a misspelt key is why the right one is missing
    first = next((each for each in found if each["type"] == "extra_forbidden"), found[0])
    location = _place(model, first["loc"])[0]
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(str(location[-1]), _known_keys(model, first["loc"]))
        return location, f"unknown key `{_dotted(location)}`", hint
    if first["type"] == "missing":
        return location[:-1], f"`{_dotted(location)}` is missing", ""
    if first["type"] == "literal_error":
        known = re.findall(r"'([^']*)'", first["ctx"]["expected"])
        return location, _said({**first, "loc": location}), did_you_mean(str(first["input"]), known, "it is one of")
    if first["type"] == "union_tag_invalid":  # which of several mappings it is: one of them has that word
        known, key, given = (
            re.findall(r"'([^']*)'", first["ctx"]["expected_tags"]),
            first["ctx"]["discriminator"][1:-1],
            first["ctx"]["tag"],
        )
        location = (*location, key)
        return (
            location,
            f"`{_dotted(location)}` should be one of {', '.join(known)}, got '{given}'",
            did_you_mean(given, known, "it is one of"),
        )
    return location, _said({**first, "loc": location}), ""


_KEY = "[key]"  # what pydantic adds to the place of a key that may not be


def _dotted(location: Location) -> str:
    return ".".join(str(part) for part in location if isinstance(part, str) and part != _KEY)


def _known_keys(model: type[BaseModel], location: Location) -> list[str]:
    """Return the keys that the mapping around ``location`` may have."""
    place = _place(model, location[: -1 if location[-1] != _KEY else -2])[1]
    return list(place.model_fields) if _is_model(place) else []


def _place(model: type[BaseModel], location: Location) -> tuple[Location, Any]:
    """Return a place as the file has it, and the type that is there; pydantic also names which one of several it is."""
    place: Any = model
    parts: list[str | int] = []
    for part in location:
        if part == _KEY:
            continue
        if (chosen := _chosen(place, part)) is not None:
            place = chosen
            continue
        parts.append(part)
        if _is_model(place):
            field = place.model_fields.get(part)
            place = _bare(field.annotation) if field else None
        else:  # dict[str, X] or tuple[X, ...]
            inner = [each for each in get_args(place) if each is not Ellipsis]
            place = _bare(inner[-1]) if inner else None
    return tuple(parts), place


def _chosen(place: Any, word: str | int) -> Any:
    """Return the one of several models that a word stands for; None: there is no choice."""
    models = [each for each in get_args(place) if _is_model(each)] if get_origin(place) in {Union, UnionType} else []
    literals = [(each, field.annotation) for each in models for field in each.model_fields.values()]
    return next((each for each, kind in literals if get_origin(kind) is Literal and word in get_args(kind)), None)


def _is_model(place: object) -> bool:
    return isinstance(place, type) and issubclass(place, BaseModel)


def _bare(annotation: Any) -> Any:
    """Return a type without ``Annotated`` and ``| None``."""
    while get_origin(annotation) is Annotated or NoneType in get_args(annotation):
        annotation = next(each for each in get_args(annotation) if each is not NoneType)
    return annotation


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[object] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue  # <<: *defaults, which other keys may override
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable) or not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"the key `{key}` is not text", problem_mark=key_node.start_mark)
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key `{key}` stands twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return cast("dict[Any, Any]", super().construct_mapping(node, deep))

    def construct_undefined(self, node: yaml.Node) -> NoReturn:
        raise yaml.MarkedYAMLError(problem=f"`{node.tag}` is not allowed", problem_mark=node.start_mark)


def _set_scalars() -> None:
    number = r"[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"  # 007 is text
    _Loader.yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0].rpartition(":")[2] in ("null", "merge")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }
    for tag, pattern, first in (
        ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
        ("int", r"[-+]?(?:0|[1-9][0-9]*)", "-+0123456789"),
        ("float", number + r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", "-+.0123456789"),
    ):
        _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", re.compile(f"^(?:{pattern})$"), list(first))
    for kind in ("binary", "timestamp", "omap", "pairs", "set"):
        _Loader.add_constructor(f"tag:yaml.org,2002:{kind}", _Loader.construct_undefined)
    _Loader.add_constructor(None, _Loader.construct_undefined)


_set_scalars()
