"""Asking the other side over a real SSH connection."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ems import registry
from ems.errors import ConnectionFailedError, EmsError, TargetError
from ems.remote import client


@pytest.fixture
def agent(far: Any) -> Any:
    """The agent of ``far``; hangs up in the end."""
    agent = client.Agent(far.target)
    yield agent
    agent.close()


def test_it_answers_and_goes_on_after_an_error(agent: client.Agent) -> None:
    assert agent.call("refresh", jobs=["here-1-1"])["here-1-1"]["state"] == "UNKNOWN"
    with pytest.raises(TargetError, match="cannot do `fly`"):
        agent.call("fly")
    with pytest.raises(EmsError, match="unexpected KeyError"):
        agent.call("refresh")
    assert agent.call("refresh", jobs=[]) == {}


def test_a_broken_connection_is_made_again_once(far: Any, agent: client.Agent) -> None:
    assert agent.call("refresh", jobs=[]) == {}
    far.drop()
    assert agent.call("refresh", jobs=[]) == {}
    far.stop()
    with pytest.raises(ConnectionFailedError, match="cannot be reached"):
        agent.call("refresh", jobs=[])
    far.start()
    assert agent.call("refresh", jobs=[]) == {}


def test_what_the_login_shell_prints_is_passed_over(far: Any, agent: client.Agent) -> None:
    (far.folder / "home" / ".bashrc").write_text("echo Welcome to far; printf 'no end of line'\n")
    assert agent.call("refresh", jobs=[]) == {}


def test_nothing_that_lies_in_the_home_directory_is_imported(far: Any, agent: client.Agent) -> None:
    (far.folder / "home" / "json.py").write_text("open('pwned', 'w')")
    assert agent.call("refresh", jobs=[]) == {}
    assert not (far.folder / "home" / "pwned").exists()


def test_another_version_there_is_named_with_what_mends_it(far: Any, tmp_path: Path) -> None:
    package = tmp_path / "old" / "ems"
    shutil.copytree(Path(client.__file__).parents[1], package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "version.py").write_text('"""Old."""\n\n__version__ = "0.0.1"\n')
    env = ("env", f"PYTHONPATH={package.parent}", sys.executable, "-m", "ems")
    agent = client.Agent(replace(far.target, ems=env))
    with pytest.raises(TargetError, match=r"far has ems 0\.0\.1 ") as error:
        agent.call("refresh", jobs=[])
    assert error.value.hint == "ems cluster upgrade far"


@pytest.mark.parametrize("python", ["/nowhere/bin/python", sys.executable])
def test_no_ems_there_is_named_with_what_mends_it(far: Any, python: str) -> None:
    agent = client.Agent(replace(far.target, ems=(python, "-I", "-S", "-m", "ems")))  # without packages
    with pytest.raises(TargetError, match="there is no ems on far") as error:
        agent.call("refresh", jobs=[])
    assert error.value.hint == "ems cluster upgrade far"
    assert registry.load("far") == far.target
