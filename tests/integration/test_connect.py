"""``ems cluster connect``: a real sshd, a real virtual environment there, and pip with and without an index."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ems import registry
from ems.cluster import connect as connecting
from ems.cluster import install as installing
from ems.cluster import shipped
from ems.cluster.install import Installer
from ems.errors import ClusterError
from ems.ssh import Host

Ems = Callable[..., subprocess.CompletedProcess[str]]

QUICKER = {"PIP_NO_COMPILE": "1"}  # the packages there start once or twice; they need not start fast
NO_INDEX = {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull}
SCRIPT = "import ems\nfor lr in (1, 2):\n    ems.log(lr=lr)\n"


def again(far: Any, **environment: str) -> None:
    """Have what logs in there from now on begin with more environment."""
    far.stop()
    far.environment |= environment
    far.start()


class Login:
    """The login node of ``uni``, as a user has it: everything that ssh has to know is said by options."""

    def __init__(self, far: Any, ems: Ems) -> None:
        self.far, self._ems = far, ems
        self.home = far.folder / "home"

    def connect(self, *args: str, code: int | None = 0) -> Any:
        """``ems cluster connect uni … --json``: what it prints, or its error."""
        host = self.far.host()
        said = {
            "Port": host.port,
            "IdentityFile": host.identity,
            "UserKnownHostsFile": host.known_hosts,
            "HostKeyAlias": host.host_key_alias,
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
        }
        options = [f"--ssh-option={key}={value}" for key, value in said.items()]
        words = ["cluster", "connect", "uni", host.destination, *options, "--json", *args]
        done = self._ems(*words, code=code, timeout=600)
        return json.loads(done.stdout) if done.returncode == 0 else done.stderr

    def host(self) -> Host:
        return connecting.host_of(self.far.host().destination, ("-p", str(self.far.port)))


@pytest.fixture
def login(make_far: Callable[..., Any], ems: Ems, request: pytest.FixtureRequest) -> Iterator[Login]:
    """A login node; by ``indirect`` parametrization with other environment."""
    yield Login(make_far(environment=QUICKER | getattr(request, "param", {})), ems)
    if found := registry.load("uni"):
        found.host.close()


def test_a_machine_over_ssh_becomes_the_current_target_and_is_upgraded(login: Login, ems: Ems, project: Path) -> None:
    root = login.home / "deep er" / "ems"
    said = login.connect("--root", "$HOME/deep er/ems")
    assert (said["root"], said["executor"], said["partitions"]) == (str(root), "here", [])
    assert [check for check in said["checks"] if not check["ok"]] == []
    assert registry.current() == "uni"
    target = registry.get("uni")
    assert target.ems == (f"{root}/venv/bin/python", "-m", "ems")
    assert not (root / ".wheels").exists(), "what was only needed to install it is gone"
    assert target.host.run([*target.ems, "--version"]).stdout.decode() == ems("--version").stdout

    (project / "train.py").write_text(SCRIPT)
    ems("parrun", "train.py", "--wait")
    assert len([*root.glob("experiments/*/runs/*/metrics.jsonl")]) == 2, "they ran there"
    logins = (login.far.folder / "sshd.log").read_text().count("Accepted publickey")
    assert logins == 1, "a one-time password is asked for once"

    (code,) = root.glob("venv/lib/python*/site-packages/ems/model.py")
    code.write_text(code.read_text() + "\n# of another version\n")
    refused = ems("parrun", "train.py", "--again", code=1).stderr
    assert "uni has ems" in refused
    assert "hint: ems cluster upgrade uni" in refused
    inode = (root / "venv").stat().st_ino
    assert "uni has ems" in ems("cluster", "upgrade", "uni", timeout=600).stdout
    assert (root / "venv").stat().st_ino == inode, "what is whole stays"
    ems("parrun", "train.py", "--again", "--wait")

    code.unlink()
    (root / "venv" / ".ready").unlink()  # as an upgrade leaves it that is interrupted
    assert "hint: ems cluster upgrade uni" in ems("doctor", "--on", "uni", code=1).stderr
    ems("cluster", "upgrade", "uni", timeout=600)
    ems("doctor", "--on", "uni")

    assert "stay on this machine" in ems("cluster", "use", "here").stdout
    assert registry.current() is None
    ems("cluster", "use", "uni")
    assert registry.current() == "uni"
    assert str(root) in ems("cluster", "forget", "uni").stderr
    assert (registry.load("uni"), registry.current()) == (None, None)
    assert (root / "venv").exists(), "forgetting deletes nothing there"


@pytest.mark.parametrize("login", [NO_INDEX], indirect=True)
def test_without_an_index_there_the_wheels_are_sent_from_here_and_a_broken_line_costs_one(
    login: Login, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    send = Installer._send

    def send_until_it_breaks(self: Installer, path: Path) -> None:
        if len(sent) == 4:
            login.far.drop()
            monkeypatch.setattr(Installer, "_send", lambda *args: sent.append(args[1].name) or send(*args))
            raise KeyboardInterrupt
        sent.append(path.name)
        send(self, path)

    monkeypatch.setattr(Installer, "_send", send_until_it_breaks)
    host = login.far.host()
    steps: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        connecting.connect("uni", host, steps.append)
    assert registry.load("uni") is None, "nothing is said to be there that is not"
    first, sent[:] = set(sent), []

    done = connecting.connect("uni", host, steps.append)
    assert {name for name in first & {*sent} if not name.startswith("ems-")} == set(), "nothing crosses the line twice"
    assert any("has no package index" in step for step in steps)
    assert [check for check in done.checks if not check.ok] == []
    assert done.target.root == f"{login.home}/ems"


@pytest.mark.parametrize("size", ["4", "6"])
def test_a_wheel_of_which_the_end_did_not_come_does_not_look_whole(tmp_path: Path, size: str) -> None:
    """To what reads it, a connection that is gone is the end of the file."""
    words = ["sh", "-c", installing._SAVE, "sh", str(tmp_path / "it's\na $folder"), "-x.whl", size]
    done = subprocess.run(words, input=b"wheel", check=False)
    assert done.returncode != 0
    assert not (tmp_path / "it's\na $folder" / "-x.whl").exists()
    subprocess.run([*words[:-1], "5"], input=b"wheel", check=True)
    assert (tmp_path / "it's\na $folder" / "-x.whl").read_bytes() == b"wheel"


def test_a_python_without_ensurepip_gets_the_pip_that_is_sent(login: Login, tmp_path: Path) -> None:
    """Debian's python3 is one where python3-venv is not installed."""
    host = login.far.host()
    found = connecting._look(host, str(login.home / "ems"), connecting._find_python("uni", host, None))
    crippled = tmp_path / "python3"
    refuse = 'case "$*" in "-m venv"*--without-pip*) ;; "-m venv"*) exit 1 ;; esac'
    crippled.write_text(f'#!/bin/sh\n{refuse}\nexec {found["python"]} "$@"\n')
    crippled.chmod(0o755)
    python = Installer(host, {**found, "python": str(crippled)}, lambda _: None).install()
    assert host.run([python, "-m", "ems", "--version"]).stdout.startswith(b"ems ")


def test_the_share_of_a_cluster_that_ems_made_is_upgraded_by_its_own_script(login: Login, ems: Ems) -> None:
    share = login.far.folder / "opt ems"
    shutil.copytree(shipped.templates(), share / "templates")
    old = share / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", share / "venv"], check=True)
    made = replace(login.far.target, name="made", ems=(str(old), "-m", "ems"), cluster="an incarnation")
    registry.save(made)
    assert "hint: ems cluster upgrade made" in ems("doctor", "--on", "made", code=1).stderr
    ems("cluster", "upgrade", "made", timeout=600)
    ems("doctor", "--on", "made")
    (wheel,) = (share / "dist").iterdir()
    key = (share / "venv" / ".wheel").read_text().split()[0]
    assert key == hashlib.sha256(wheel.read_bytes()).hexdigest(), "the next set-up changes nothing"
    assert registry.get("made") == made


def test_a_machine_without_a_new_python_is_said_and_what_would_help(login: Login, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    old = tools / "python3"
    old.write_text("#!/bin/sh\necho ems-python 3.6.8 /usr/bin/python3\n")  # what that one would say
    old.chmod(0o755)
    (tools / "sh").symlink_to("/bin/sh")
    again(login.far, PATH=str(tools))
    refused = login.connect(code=1)
    assert "there is no Python 3.11 or newer: /usr/bin/python3 is 3.6.8" in refused
    assert "--python PATH" in refused
    assert f"`{old}` is no Python 3.11 or newer" in login.connect("--python", str(old), code=1)
    assert registry.load("uni") is None


def test_hostile_words_run_nothing_there(login: Login, project: Path) -> None:
    hostile = "$(touch pwned)`touch pwned`;touch pwned\n'\"touch pwned"
    assert "is no Python" in login.connect("--python", hostile, code=1)
    assert "is no Python" in login.connect("--python", f"~/{hostile}", code=1)
    host = login.far.host()
    found = connecting._look(host, f"$HOME/{hostile}", connecting._find_python("uni", host, None))
    assert found["root"] == f"{login.home}/{hostile}"
    assert Path(found["root"]).is_dir()
    assert not [*login.home.rglob("pwned"), *project.rglob("pwned"), *Path.home().rglob("pwned")]


def test_a_login_shell_that_prints_is_put_up_with_or_named(login: Login, project: Path, ems: Ems) -> None:
    (project / "train.py").write_text(SCRIPT)
    (login.home / ".bashrc").write_text("printf 'Welcome \\377\\376\\n'; echo quota 90% >&2\n")
    login.connect()
    venv = (login.home / "ems" / "venv" / "pyvenv.cfg").stat().st_ino
    login.connect()
    assert (login.home / "ems" / "venv" / "pyvenv.cfg").stat().st_ino == venv, "what is whole is not made again"
    for words in (("run", "train.py", "--on", "uni"), ("data", "push", ".", "code", "--on", "uni")):
        done = ems(*words, code=1)
        assert f"the login shell on {login.far.host().destination} prints something" in done.stderr, words
        assert "~/.bashrc" in done.stderr


def test_a_root_that_cannot_be_written_and_a_machine_that_is_away(login: Login) -> None:
    (login.home / "file").touch()
    refused = login.connect("--root", "~/file/ems", code=1)
    assert f"{login.home}/file/ems cannot be written: Not a directory" in refused
    assert "--root FOLDER" in refused
    for root in ("$NOWHERE/ems", "~nobody-of-that-name/ems"):
        said = login.connect("--root", root, code=1)
        assert f"{root} cannot be written: nothing there says what {root.partition('/')[0]} is" in said
    assert "--ssh-option" in login.connect("--ssh-option", "FooBar=1", code=1)
    login.far.stop()
    assert "cannot be reached" in login.connect(code=1)


def test_the_name_of_a_cluster_that_ems_made_is_taken(login: Login, ems: Ems) -> None:
    made = registry.RemoteTarget("uni", login.far.host(), "/home/ems/ems", ("python",), cluster="an incarnation")
    registry.save(made)
    assert "uni is a cluster that ems made" in login.connect(code=2)
    assert "ems cluster stop uni" in ems("cluster", "forget", "uni", code=2).stderr
    assert registry.load("uni") == made
    done = ems("cluster", "connect", "local", "me@login", code=2)
    assert "`local` is what" in done.stderr
    assert "by another name" in done.stderr


def test_one_logs_in_to_a_connected_cluster_and_copies_files_but_its_machines_are_not_ours(
    login: Login, ems: Ems, project: Path
) -> None:
    name = "a b $(touch pwned).csv"
    (project / name).write_text("1,2\n")
    assert ems("cluster", "ssh", "--on", "far", "--", "printf", "%s", "a  b").stdout == "a  b"
    assert "-- sh -c 'cd data; ls | wc -l'" in ems("cluster", "ssh", "--help").stdout
    assert ems("cluster", "ssh", "--on", "far", "--", "sh", "-c", "cd /; pwd").stdout == "/\n", "as the help says"
    assert ems("cluster", "ssh", "--on", "far", "--", "cd /; pwd", code=127).stdout == "", "a word is no line"
    ems("cluster", "put", name, f"{login.home}/", "--on", "far")
    (project / name).unlink()
    ems("cluster", "get", f"{login.home}/{name}", ".", "--on", "far")
    assert (project / name).read_text() == "1,2\n"
    assert not [*project.glob("pwned"), *login.home.glob("pwned")]
    for words in (["status", "far"], ["resize", "far", "2"], ["stop", "far", "--yes"]):
        refused = ems("cluster", *words, code=1).stderr
        assert "far was connected, not made by ems" in refused
        assert "ems cluster forget far" in refused


def test_a_shell_that_talks_and_a_slurm_that_only_a_login_shell_finds(login: Login, tmp_path: Path) -> None:
    """Many sites set PATH by /etc/profile.d; `ssh login command` does not read it."""
    tools = tmp_path / "slurm" / "bin"
    tools.mkdir(parents=True)
    for name, says in {
        "sbatch": "slurm 23.02.7",
        "sinfo": "gpu|gpu*|up|2|64+|515000|gpu:a100:4(S:0-1)|1:00:00|2-00:00:00",
    }.items():
        (tools / name).write_text(f"#!/bin/sh\necho '{says}'\n")
        (tools / name).chmod(0o755)
    (login.home / ".profile").write_text(
        f"echo Welcome to uni\nPATH={tools}:$PATH\nSLURM_CONF=/etc/uni.conf; export SLURM_CONF\n"
    )
    few = tmp_path / "few"
    few.mkdir()
    for name in ("sh", "bash"):
        (few / name).symlink_to(f"/bin/{name}")
    again(login.far, PATH=str(few))
    host = login.far.host()
    python = connecting._find_python("uni", host, sys.executable)
    found = connecting._look(host, str(login.home / "ems"), python)
    target = connecting._target("uni", host, found, f"{found['root']}/venv/bin/python")
    words = list(target.ems)
    assert words[0] == "env"
    assert words[1].startswith(f"PATH={tools}:")
    assert words[2:4] == ["SLURM_CONF=/etc/uni.conf", f"{login.home}/ems/venv/bin/python"]
    assert (target.executor, target.resources) == ("slurm", {"partition": "gpu"})
    (partition,) = connecting.partitions_of(target)
    assert (partition.gres, partition.cpus, partition.time) == (("gpu:a100:4",), 64, "2-00:00:00")


def test_a_slurm_that_does_not_answer_is_said_in_its_words(login: Login, tmp_path: Path) -> None:
    conf = tmp_path / "slurm.conf"
    conf.write_text("ClusterName=x\nSlurmctldHost=localhost\nSlurmctldPort=9\nNodeName=n\nPartitionName=p Nodes=n\n")
    tools = tmp_path / "tools"
    tools.mkdir()
    if shutil.which("sinfo") is None:  # what that one says
        said = "slurm_load_partitions: Unable to contact slurm controller (connect failure)"
        for name in ("sinfo", "sbatch"):
            (tools / name).write_text(f"#!/bin/sh\necho '{said}' >&2\nexit 1\n")
            (tools / name).chmod(0o755)
    again(login.far, SLURM_CONF=str(conf), PATH=f"{tools}:{os.environ['PATH']}")
    host = login.far.host()
    python = connecting._find_python("uni", host, sys.executable)
    with pytest.raises(ClusterError, match=r"does not answer: .*contact slurm controller") as error:
        connecting._look(host, str(login.home / "ems"), python)
    assert error.value.hint.endswith(" sinfo")
