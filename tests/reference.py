"""The command reference of README.md, made from the commands themselves.

python tests/reference.py            print it
python tests/reference.py --write    put it into README.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from ems.cli import app

README = Path(__file__).resolve().parent.parent / "README.md"
BEGIN, END = "<!-- reference: made by `make reference` -->", "<!-- reference: end -->"


def reference() -> str:
    """Return the reference in Markdown: a section a group of commands, a fold a command."""
    group = app.load()
    commands = sorted(group.commands.items(), key=lambda item: app.SECTIONS.index(item[1].rich_help_panel))
    lines, section = [], ""
    for name, command in commands:
        if command.rich_help_panel != section:
            section = command.rich_help_panel
            lines += [f"### {section}", ""]
        for words, each in _with_subcommands(name, command):
            lines += [*_command(words, each), ""]
    return "\n".join(lines).rstrip()


def _with_subcommands(name: str, command: Any) -> list[tuple[str, Any]]:
    """Return a command, or the commands of a group by section, each with the words that name it."""
    if not hasattr(command, "commands"):
        return [(name, command)]
    inside = sorted(command.commands.items(), key=lambda item: command.sections.index(item[1].rich_help_panel))
    first = [(name, command.meant)] if command.meant is not None else []
    return [*first, *((f"{name} {each}", found) for each, found in inside)]


def _command(name: str, command: Any) -> Iterator[str]:
    context = typer.Context(command, info_name=f"ems {name}")
    summary, _, rest = command.help.partition("\n")
    yield f"<details><summary><b>ems {name}</b>: {_escape(summary)}</summary>"
    yield ""
    yield f"`{' '.join(['ems', name, *command.collect_usage_pieces(context)])}`"
    yield ""
    if rest.strip():
        yield from (rest.strip(), "")
    yield from ("| | |", "|---|---|")
    for _, param, (term, text) in app.parameters(command, context):
        if "--help" not in param.opts:
            yield f"| `{term.replace('|', '&#124;')}` | {_escape(text)} |".replace("&#124;", "\\|")
    yield ""
    if command.epilog:
        yield from ("```sh", *command.epilog.splitlines(), "```", "")
    yield "</details>"


def _escape(text: str) -> str:
    return re.sub(r"([<>|*])", r"\\\1", text)


def in_readme() -> str:
    """Return the reference as README.md has it now."""
    return README.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0].strip()


def write() -> None:
    """Put the reference into README.md."""
    before, _, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    after = rest.partition(END)[2]
    README.write_text(f"{before}{BEGIN}\n\n{reference()}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    if "--write" in sys.argv[1:]:
        write()
    else:
        sys.stdout.write(f"{reference()}\n")
