"""The forms of what a definition says: text that is checked when it is read, and told of in words where it is wrong."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Network
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema


@dataclass(frozen=True, slots=True)
class Form:
    """Text of a certain form, of which people are told in words instead of by a pattern."""

    pattern: str
    words: str

    def check(self, text: str) -> str:
        """Return text of this form; raise ValueError for any other."""
        if not re.fullmatch(self.pattern, text):
            raise ValueError(f"should be {self.words}")
        return text

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {**handler(schema), "pattern": f"^({self.pattern})$"}


def as_list(value: object) -> object:
    """Return one word as a list of it."""
    return [value] if isinstance(value, str) else value


def source(value: str) -> str:
    """Return an address range as it is written, or `anywhere`."""
    if value == "anywhere":
        return value
    try:
        return str(IPv4Network(value))
    except ValueError as error:
        raise ValueError(f"should be an address range such as 192.0.2.7/32, or `anywhere` ({error})") from None


def as_slurm(value: object) -> object:
    """Return YAML's true and false in SLURM's words."""
    return ("NO", "YES")[value] if isinstance(value, bool) else value


def private_range(value: object) -> object:
    """Return a private address range as it is written."""
    try:
        network = IPv4Network(str(value))
    except ValueError as error:
        raise ValueError(f"should be an address range such as 10.89.77.0/24 ({error})") from None
    if not 16 <= network.prefixlen <= 28 or not network.is_private:
        raise ValueError("should be a private address range between /16 and /28, such as 10.89.77.0/24")
    return str(network)


#: Text that may look like a number, or yes and no, in a file.
OrScalar = BeforeValidator(as_slurm, json_schema_input_type=str | int | float | bool)
OneOrMore: TypeAlias = str | list[str]
OneLine: TypeAlias = Annotated[str, Form(r"[^\x00-\x1f\x7f]*", "text on one line")]
Word: TypeAlias = Annotated[str, Form(r"[^\s\x00-\x1f\x7f]+", "one word")]
Texts: TypeAlias = Annotated[tuple[OneLine, ...], BeforeValidator(as_list, json_schema_input_type=OneOrMore)]
Count: TypeAlias = Annotated[int, Field(ge=1)]
UserName: TypeAlias = Annotated[
    str, Form(r"[a-z_][a-z0-9_-]{0,30}", "a name of lower-case letters, digits, dashes and underscores")
]
KindName: TypeAlias = Annotated[
    str, Form(r"[a-z][a-z0-9]{0,15}", "up to 16 lower-case letters and digits, a letter first")
]
PartitionName: TypeAlias = Annotated[
    str, Form(r"[A-Za-z][A-Za-z0-9_-]{0,30}", "up to 31 letters, digits, dashes and underscores, a letter first")
]
Parameter: TypeAlias = Annotated[str, Form(r"[A-Za-z][A-Za-z0-9]*", "a parameter's name as in slurm.conf")]
AbsolutePath: TypeAlias = Annotated[str, Form(r"/[A-Za-z0-9][^\x00-\x20\x7f]*", "an absolute path")]
Time: TypeAlias = Annotated[
    str,
    Form(
        r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}|INFINITE|UNLIMITED",
        "minutes, hours:minutes:seconds or days-hours:minutes:seconds",
    ),
]
PythonVersion: TypeAlias = Annotated[  # 3.10 without quotes is the number 3.1
    str, Form(r"3\.([6-9]|[1-9]\d)", 'a version in quotes, such as "3.12"')
]
Package: TypeAlias = Annotated[str, Form(r"[a-z0-9][a-z0-9+.-]+", "a package's name")]
Requirement: TypeAlias = Annotated[str, Form(r"[A-Za-z0-9][^\x00-\x1f\x7f]*", "a requirement of pip's")]
PublicKey: TypeAlias = Annotated[
    str, Form(r"(ssh-|ecdsa-|sk-)[a-z0-9@.-]+ [A-Za-z0-9+/]+=*( [^\x00-\x1f\x7f]*)?", "a public SSH key on one line")
]
Sources: TypeAlias = Annotated[
    tuple[Annotated[str, AfterValidator(source)], ...], BeforeValidator(as_list, json_schema_input_type=OneOrMore)
]
LabelKey: TypeAlias = Annotated[
    str, Form(r"(?!ems-)[a-z][a-z0-9_-]{0,62}", "up to 63 lower-case letters, digits, - and _, and not begin with ems-")
]
LabelValue: TypeAlias = Annotated[
    str, OrScalar, Form(r"[a-z0-9_-]{0,63}", "up to 63 lower-case letters, digits, - and _")
]
Labels: TypeAlias = dict[LabelKey, LabelValue]
Endpoint: TypeAlias = Annotated[
    str, Form(r"https?://[^\s/@]+(/[^\s@]*)?", "an address such as https://cloud.example.org")
]
