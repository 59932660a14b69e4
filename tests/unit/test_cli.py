"""The command line by itself: help, usage errors, the error boundary, and the reference in README.md."""

from __future__ import annotations

import errno
import importlib.util
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from ems import cli
from ems.cli import app, submit
from ems.errors import EmsError, StoreError
from ems.version import __version__

Main = Callable[..., tuple[int, str, str]]

COMMANDS = [
    "parrun", "run", "tune", "status", "logs", "cancel", "hold", "release", "list", "rm", "ls", "cat", "get", "show",
    "diff", "checkout", "rerun", "reproduce", "harvest", "gather", "reduce", "report", "plot", "data", "cluster",
    "config", "doctor",
]  # fmt: skip
PARRUN = [
    "--set", "--zip", "--samples", "--seed", "--sweep", "--count-by-running", "--pass-as", "--again", "--on",
    "--gres", "--gpus", "--cpus", "--mem", "--time", "--partition", "--account", "--qos", "--constraint",
    "--nodes", "--exclude", "--alloc", "--pack", "--max-parallel", "--workers", "--grace", "--python",
    "--setup", "--env", "--container", "--max-file", "--wait", "--dry-run", "--name", "--tag", "--message",
    "--json",
]  # fmt: skip


@pytest.fixture
def main(capsys: pytest.CaptureFixture[str]) -> Main:
    """Run a command line in this process; return exit status, stdout, stderr."""

    def run(*argv: str) -> tuple[int, str, str]:
        status = cli.main(argv)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_help_lists_every_command_in_sections(main: Main) -> None:
    status, out, err = main("--help")
    assert (status, err) == (0, "")
    listed = re.findall(r"^  ([a-z]+)  +[A-Z]", out, re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)
    assert [line for line in out.splitlines() if len(line) > 80] == []
    assert not re.search(r"[╭│╰─]", out)


def test_words_after_two_dashes_are_not_lost_in_silence(main: Main) -> None:
    for words in (("status",), ("cluster", "logs", "local")):
        status, _, err = main(*words, "--", "gpu-001")
        assert status == 2
        assert err.startswith(
            f"error: `ems {' '.join(words[:2]) if words[0] == 'cluster' else words[0]}` takes nothing"
        )


def test_no_command_is_help(main: Main) -> None:
    assert main()[:2] == main("--help")[:2]


def test_an_interrupt_while_it_loads_is_no_traceback(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupting:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "ems.cli.app":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "ems.cli.app")
    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    assert main("--version") == (cli.INTERRUPTED, "", "")


def test_version(main: Main) -> None:
    assert main("--version") == (0, f"ems {__version__}\n", "")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(main: Main, name: str) -> None:
    status, out, _ = main(name, "--help")
    assert status == 0
    assert out.startswith(f"Usage: ems {name} [OPTIONS]")
    assert f"  ems {name}" in out.partition("Examples:")[2], "at least one example"
    assert "..." not in app.load().commands[name].get_short_help_str(63), "the summary fits a line of ems --help"


def subcommands() -> list[str]:
    groups = {name: found.commands for name, found in app.load().commands.items() if hasattr(found, "commands")}
    return [f"{group} {name}" for group, commands in groups.items() for name in commands]


@pytest.mark.parametrize("words", subcommands())
def test_every_command_of_a_group_explains_itself(main: Main, words: str) -> None:
    status, out, _ = main(*words.split(), "--help")
    assert status == 0
    assert out.startswith(f"Usage: ems {words} [OPTIONS]")
    assert f"  ems {words}" in out.partition("Examples:")[2], "at least one example"


def test_a_group_typed_alone_is_its_help(main: Main) -> None:
    assert main("cluster") == main("cluster", "--help")
    listed = re.findall(r"^  ([a-z-]+)  +[A-Z]", main("cluster")[1], re.MULTILINE)
    assert sorted(f"cluster {name}" for name in listed) == sorted(w for w in subcommands() if w.startswith("cluster "))


def test_what_may_be_left_out_stands_in_brackets(main: Main) -> None:
    usages = {"diff": "EXP [EXP]", "show": "[EXP[/INDEX]]", "cancel": "EXP[/INDEX]", "ls": "[EXP[/INDEX[/FOLDER]]]"}
    for name, usage in usages.items():
        assert f"ems {name} [OPTIONS] {usage}\n" in main(name, "--help")[1]


def test_parrun_has_every_flag_and_run_has_no_sweep(main: Main) -> None:
    _, parrun, _ = main("parrun", "--help")
    _, run, _ = main("run", "--help")
    assert [flag for flag in PARRUN if f" {flag}" not in parrun] == []
    assert " --gres" in run
    assert [
        flag for flag in ("--sweep", "--zip", "--samples", "--pack", "--max-parallel") if f"\n  {flag}" in run
    ] == []


@pytest.mark.parametrize(
    ("argv", "message", "hint"),
    [
        (["reporrt"], "no such command `reporrt`", "did you mean `report`? `ems --help` lists all"),
        (
            ["cluster", "connnect"],
            "no such command `connnect`",
            "did you mean `connect`? `ems cluster --help` lists all",
        ),
        (["cluster", "connect", "--rot", "/x"], "no such option: --rot", "did you mean --root"),
        (["parrun", "x.py", "--gress", "gpu:1"], "no such option: --gress", "did you mean --gres"),
        (["parrun", "x.py", "--cpus", "two"], "should be a valid integer", "`ems parrun --help`"),
        (["parrun", "x.py", "--pass-as", "flag"], "`flag` is not one of `flags`, `hydra`", "`ems parrun --help`"),
        (["parrun", "x.py", "--mem"], "option `--mem` requires an argument", "`ems parrun --help`"),
        (["parrun", "x.py", "y"], "`y` is not meant for ems", "ems parrun x.py -- y"),
        (["parrun"], "no script is named", "ems parrun train.py"),
        (["rm"], "missing argument `EXP`", "`ems rm --help`"),
        (["ls", "a/b/c"], "is not an address", "EXP/INDEX"),
    ],
)
def test_usage_errors_are_a_sentence_and_a_hint(
    main: Main, project: Path, argv: list[str], message: str, hint: str
) -> None:
    (project / ".ems").mkdir()
    status, out, err = main(*argv)
    assert (status, out) == (2, "")
    said, empty, hinted = err.splitlines()
    assert said.startswith("error: ")
    assert message in said
    assert empty == ""
    assert hinted.startswith("hint: ")
    assert hint in hinted


def failing(error: BaseException) -> Callable[..., int]:
    def invoke(*_: object) -> int:
        raise error

    return invoke


@pytest.mark.parametrize(
    ("error", "status", "lines"),
    [
        (StoreError("the store is damaged", "mend it"), 1, ["error: the store is damaged", "", "hint: mend it"]),
        (EmsError("no hint here"), 1, ["error: no hint here"]),
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/y"),
            1,
            ["error: no space left on device: /x/y", "", "ems rm"],
        ),
        (PermissionError(errno.EACCES, "Permission denied", "f"), 1, ["error: permission denied: f", "", "who may"]),
        (KeyError("oops"), 1, ["error: unexpected KeyError: 'oops'", "", "--debug"]),
        (KeyboardInterrupt(), 130, []),
    ],
)
def test_the_boundary_says_it_without_a_traceback(
    main: Main, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int, lines: list[str]
) -> None:
    monkeypatch.setattr(app, "invoke", failing(error))
    found, out, err = main("status")
    assert (found, out) == (status, "")
    assert len(err.splitlines()) == len(lines)
    assert all(expected in line for expected, line in zip(lines, err.splitlines(), strict=True))


@pytest.mark.parametrize("argv", [["--debug", "status"], ["status", "--debug"]])
def test_debug_shows_the_traceback(main: Main, monkeypatch: pytest.MonkeyPatch, argv: list[str]) -> None:
    monkeypatch.setattr(app, "invoke", failing(StoreError("damaged")))
    _, _, err = main(*argv)
    assert err.startswith("Traceback (most recent call last):")
    assert err.endswith("error: damaged\n")


def test_what_follows_the_dashes_belongs_to_the_script(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.setattr(app, "invoke", lambda own, rest, typed: seen.append((own, rest, typed)) or 0)
    main("run", "t.py", "--", "--debug", "--help", "--", "x")
    assert seen == [
        (["run", "t.py"], ["--debug", "--help", "--", "x"], ["run", "t.py", "--", "--debug", "--help", "--", "x"])
    ]


def test_every_setting_of_submit_is_one_of_config() -> None:
    from ems import config

    keys = set(config.load(None).origins)
    assert set(submit.SETTINGS) <= keys
    assert {f"resources.{name}" for name in submit.RESOURCES} <= keys


@pytest.fixture(scope="session")
def reference() -> ModuleType:
    path = Path(__file__).parents[1] / "reference.py"
    spec = importlib.util.spec_from_file_location("reference", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_in_the_readme_is_that_of_the_commands(reference: ModuleType) -> None:
    assert reference.in_readme() == reference.reference(), "run `make reference`"


def test_every_command_that_the_readme_shows_exists(reference: ModuleType) -> None:
    text = reference.README.read_text(encoding="utf-8")
    shown = set(re.findall(r"(?:^|[`$] ?|&& |· )ems ([a-z]+)", text, re.MULTILINE))
    assert shown <= {*COMMANDS}, "a command of the README is none of ours"
    assert {"parrun", "status", "harvest", "report", "rerun"} <= shown


def test_the_settings_that_the_readme_shows_are_taken(
    reference: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ems import config

    monkeypatch.setenv("SCRATCH", "/scratch/me")
    (example,) = re.findall(r"```yaml\n(.*?)```", reference.README.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / config.PROJECT_FILE).write_text(example)
    settings = config.load(tmp_path)
    assert (settings.on, settings.resources.time, settings.env) == ("slurm", "2:00:00", "auto")
    assert config.load(tmp_path, on="here").resources.gres is None
