"""The typer application: help in sections without boxes, the list of commands, and how one is invoked."""

from __future__ import annotations

import difflib
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Protocol, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from ems.errors import EmsError, UsageError
from ems.version import __version__

Function = TypeVar("Function", bound=Callable[..., Any])

SECTIONS = SUBMIT, LOOK, FILES, STEER, RESULTS, AGAIN, CLUSTERS, SETUP = (
    "Submit",
    "Look",
    "Files of runs",
    "Steer",
    "Results",
    "Once more",
    "Clusters",
    "Set-up",
)
_MODULES = (
    *(
        "submit",
        "tune",
        "tune_status",
        "tune_steer",
        "status",
        "code",
        "logs",
        "files",
        "steer",
        "results",
        "report",
        "plot",
        "again",
        "data",
    ),
    *(
        "cluster",
        "cluster_life",
        "cluster_plan",
        "cluster_gc",
        "cluster_status",
        "cluster_cost",
        "cluster_connect",
        "cluster_show",
        "setup",
    ),
)


def _sections(records: Iterable[tuple[str, tuple[str, str]]], formatter: Any) -> None:
    """Write ``(section, (term, text))`` records under their headings, in order of first appearance."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for section, record in records:
        sections.setdefault(section, []).append(record)
    for section, rows in sections.items():
        with formatter.section(section):
            formatter.write_dl(rows)


class _WithExamples:
    """What ends its help with examples as they are typed."""

    epilog: str | None

    def format_epilog(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002  # typer's signature
        """Write the examples verbatim."""
        if self.epilog:
            with formatter.section("Examples"):
                formatter.write("".join(f"  {line}\n" for line in self.epilog.splitlines()))


_TAKE_MORE = ("parrun", "run", "tune", "ssh")  # commands for which words after `--` are meant


class Command(_WithExamples, TyperCommand):
    """A command whose help has its options in sections and its examples as they are typed."""

    def invoke(self, ctx: Any) -> Any:
        """Run it, unless words after ``--`` would be lost."""
        if self.name not in _TAKE_MORE and (ctx.obj or {}).get("script_args"):
            raise UsageError(f"`{ctx.command_path}` takes nothing after `--`", f"see `{ctx.command_path} --help`")
        return super().invoke(ctx)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Name the arguments as their ``metavar`` does, brackets and dots included."""
        return ["[OPTIONS]", *(_metavar(param) for param in self.get_params(ctx) if _is_argument(param))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, then options by ``rich_help_panel``."""
        _sections(((section, record) for section, _, record in parameters(self, ctx)), formatter)


def parameters(command: Any, ctx: Any) -> list[tuple[str, Any, tuple[str, str]]]:
    """List the visible parameters of a command: section of help, the parameter, and its two columns there."""
    found = []
    for param in command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None and _is_argument(param):
            found.append(("Arguments", param, (_metavar(param), param.help or "")))
        elif record is not None:
            found.append((str(getattr(param, "rich_help_panel", None) or "Options"), param, record))
    return found


def _is_argument(param: Any) -> bool:
    return bool(param.param_type_name == "argument")


def _metavar(param: Any) -> str:
    name = str(param.metavar or param.name.upper())
    return name if param.required or name.startswith("[") else f"[{name}]"


class Group(TyperGroup):
    """The ``ems`` command itself: its commands in sections.

    Attributes
    ----------
    sections
        The headings, in order.
    """

    sections: tuple[str, ...] = SECTIONS

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002  # typer's signature
        """Write commands by ``rich_help_panel``."""
        longest = max(map(len, self.commands))
        room = formatter.width - 6 - longest
        listed = [
            (str(getattr(command, "rich_help_panel", None)), (f"{name:<{longest}}", command.get_short_help_str(room)))
            for name, command in self.commands.items()
            if not command.hidden
        ]
        _sections(sorted(listed, key=lambda record: self.sections.index(record[0])), formatter)


_CONTEXT = {"help_option_names": ["-h", "--help"]}

app = typer.Typer(
    cls=Group,
    rich_markup_mode=None,
    context_settings=_CONTEXT,
    pretty_exceptions_enable=False,
)


class Subgroup(_WithExamples, Group):
    """Commands of two words, such as ``ems cluster start``.

    Attributes
    ----------
    meant
        The command that is meant where the second word is none of them: ``ems tune train.py``. It is called as the
        group is; None: such a word is an error.
    """

    meant: Any = None

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.meant = self.commands.pop(str(self.name), None)

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse the words after the group's, as its own or as those of the command that is meant."""
        if self.meant is None or (args and args[0] in self.commands):
            return super().make_context(info_name, args, parent, **extra)
        return self.meant.make_context(info_name, args, parent, **extra)


class Register(Protocol):
    """What registers functions as commands of ``ems``, or of a group."""

    def __call__(self, section: str, *examples: str, name: str | None = None) -> Callable[[Function], Function]:
        """See :func:`command`."""
        ...


def _register_in(parent: typer.Typer) -> Register:
    def command(section: str, *examples: str, name: str | None = None) -> Callable[[Function], Function]:
        """Register a function as a command.

        Parameters
        ----------
        section
            Heading under which the help of its group lists it.
        examples
            Command lines shown at the end of its help.
        name
            Its name where the function's own will not do.
        """
        return parent.command(name, cls=Command, rich_help_panel=section, epilog="\n".join(examples))

    return command


command = _register_in(app)


def group(section: str, name: str, summary: str, sections: tuple[str, ...], *examples: str) -> Register:
    """Make a group of commands; return what registers functions as commands of it, as :func:`command` does of ``ems``.

    A command of the group's own name is the one that is meant where the second word names none of the others.

    Parameters
    ----------
    section
        Heading under which ``ems --help`` lists it.
    summary
        Its line there.
    sections
        The headings of its own help, in order.
    examples
        Command lines shown at the end of its help.
    """
    kind = type("Subgroup", (Subgroup,), {"sections": sections})
    commands = typer.Typer(cls=kind, rich_markup_mode=None, context_settings=_CONTEXT)
    app.add_typer(
        commands,
        name=name,
        help=summary,
        epilog="\n".join(examples),
        rich_help_panel=section,
        callback=_explain,
        invoke_without_command=True,
    )
    return _register_in(commands)


def _explain(ctx: typer.Context) -> None:
    """Show the help of a group that is typed alone."""
    if ctx.invoked_subcommand is None:
        sys.stdout.write(f"{ctx.get_help()}\n")


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"ems {__version__}\n")
        raise typer.Exit


@app.callback(invoke_without_command=True, epilog="Each command has its own --help.")
def ems(
    ctx: typer.Context,
    version: Annotated[  # noqa: ARG001  # acts when it is parsed
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[  # noqa: ARG001  # read by main()
        bool, typer.Option("--debug", help="Show the traceback of an error (also after a command).")
    ] = False,
) -> None:
    """From a training script to an experiment on SLURM, and back to a table."""
    _explain(ctx)


def load() -> Any:
    """Import every command; return the whole as one click command."""
    for module in _MODULES:
        importlib.import_module(f"ems.cli.{module}")
    # in this order, whatever was imported first
    places = {f"ems.cli.{module}": place for place, module in enumerate(_MODULES)}
    for each in (app, *(info.typer_instance for info in app.registered_groups)):
        if each is not None:
            each.registered_commands.sort(key=lambda info: places[str(getattr(info.callback, "__module__", ""))])
    return typer.main.get_command(app)


def invoke(own: Sequence[str], rest: Sequence[str], typed: Sequence[str]) -> int:
    """Run a command line.

    Parameters
    ----------
    own
        What is meant for ``ems``: what stands before ``--``.
    rest
        What is meant for the user's script: what stands after ``--``.
    typed
        The command line as it was typed, for the record.
    """
    context = {"script_args": tuple(rest), "typed": ("ems", *typed)}
    status = load().main(args=list(own), prog_name="ems", standalone_mode=False, obj=context)
    return status if isinstance(status, int) else 0


def explain_usage(error: Exception, typed: Sequence[str]) -> EmsError | None:
    """Turn an error of typer's own (an unknown option, a missing argument) into one of ours; None for any other."""
    if not (hasattr(error, "format_message") and hasattr(error, "exit_code")):
        return None
    words, _, suggestion = error.format_message().partition(" Did you mean ")
    words = re.sub(r"'([^']*)'", r"`\1`", " ".join(words.split()).rstrip(". "))
    words = re.sub(r"Value error, |Input (?=should)|, unable to parse .*", "", words)
    context = getattr(error, "ctx", None)
    named = next((word for word in typed if word in _names()), None)
    path = context.command_path if context is not None else f"ems {named}" if named else "ems"
    known = list(getattr(error, "possibilities", None) or ())
    if known:
        words = words.partition(" (Possible")[0]
        suggestion = " or ".join(difflib.get_close_matches(getattr(error, "option_name", ""), known) or known)
    suggestion = suggestion.rstrip("?").replace("'", "`")
    hint = f"did you mean {suggestion}? `{path} --help` lists all" if suggestion else f"see `{path} --help`"
    return UsageError(words[:1].lower() + words[1:], hint)


def _names() -> list[str]:
    commands = [str(info.name or getattr(info.callback, "__name__", "")) for info in app.registered_commands]
    return [*commands, *(str(info.name) for info in app.registered_groups)]
