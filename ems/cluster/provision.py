"""The one door to Ansible: runs ``templates/site.yml`` on a controller, or on a machine that an image is made of.

Compute nodes are not reached from here: they set themselves up from the share (``templates/roles/slurm_compute``), by
the same roles where their image holds nothing yet. What Ansible is told lies in a folder of mode 700 that is removed
afterwards; the one secret among it, the munge key, is only named there, and copied by a task that logs nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import yaml

from ems import wheel
from ems.cluster import delegation, shipped
from ems.cluster.definition import Definition
from ems.cluster.provider import base
from ems.errors import ClusterError
from ems.model import Json
from ems.node import records
from ems.ssh import Host

if TYPE_CHECKING:
    from ems.cluster.fleet import Fleet
    from ems.cluster.record import Record

_FROM_SHARE = {"ems-node", "ems-floor", "install-python"}  # scripts that are run from the share, not from an image
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")  # programs believe in a terminal: there is one, between sudo and Ansible
_LONGEST = 600  # characters of an error that are shown
_CLOSED = re.compile(
    r"^(Shared )?[Cc]onnection to \S+ closed\.\s*$", re.MULTILINE
)  # ssh's, where a script has a terminal


@dataclass(frozen=True, slots=True)
class Progress:
    """Something that happened on a machine.

    Attributes
    ----------
    status
        ``running``, ``ok``, ``changed``, ``skipped``, ``failed`` or ``unreachable``.
    elapsed_s
        Since the run began.
    """

    host: str
    role: str
    task: str
    status: str
    elapsed_s: float


OnProgress: TypeAlias = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Summary:
    """What a run has done: numbers of tasks."""

    ok: int
    changed: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Failure:
    host: str
    task: str
    message: str


def configure(fleet: Fleet, on_progress: OnProgress | None = None) -> Summary:
    """Set a cluster's controller up; where everything is as it should be nothing changes.

    Raises
    ------
    ClusterError
        If a task fails; names machine, task and message, and the command that continues.
    """
    record, definition = fleet.record, fleet.definition
    for stale in fleet.files.dir.glob("ansible-*"):  # of a command that was killed
        _end_all(stale)
        shutil.rmtree(stale, ignore_errors=True)
    hooks = _hooks(definition)
    with _folder(fleet.files.dir) as folder:
        variables: dict[str, Json] = {
            "ems_definition": record.definition,
            "ems_cluster": fleet.name,
            "ems_incarnation": record.incarnation,
            "ems_facts": _facts(record),
            "ems_is_elastic": definition.is_elastic,
            "ems_has_service": definition.has_service,
            "ems_client": _client(fleet),
            "ems_rights": _rights(fleet, folder),
            "ems_floor": list(record.wanted) if definition.is_elastic else [],
            "ems_needs_ansible": bool(hooks) or not _has_all_images(fleet),
            "ems_has_shared_volume": fleet.provider.traits.has_shared_volume,
            "ems_network": fleet.provider.traits.network,
            "ems_address": fleet.address(),
            "ems_munge_key": str(fleet.keys.munge),
            "ems_templates": str(_pack_templates(folder, hooks)),
            "ems_wheel": str(wheel.pack(folder)),
        }
        run = _Run(folder, record.controller, "controller", fleet.host(), variables, hooks)
        return run.execute(on_progress or _reporter(fleet), f"ems cluster setup {fleet.name}")


def _rights(fleet: Fleet, folder: Path) -> list[Json]:
    """Write what the controller makes machines by, if it needs anything; returns where it lies, and where it goes."""
    found: list[Json] = []
    for number, (path, content) in enumerate(delegation.files(fleet).items()):
        source = folder / f"right-{number}"
        records.write_atomic(source, content)
        found.append({"src": str(source), "dest": path})
    return found


def bake(fleet: Fleet, kind: str, host: Host, on_progress: OnProgress | None = None) -> Summary:
    """Install on a machine what a kind of node needs, and nothing of any cluster.

    Raises
    ------
    ClusterError
        If a task fails.
    """
    group = "controller" if kind == "controller" else "compute"
    with _folder(fleet.files.dir) as folder:
        variables: dict[str, Json] = {
            "ems_definition": fleet.record.definition,
            "ems_bake": True,
            "ems_kind": kind,
            "ems_is_elastic": fleet.definition.is_elastic,
            "ems_has_service": fleet.definition.has_service,
            "ems_client": _client(fleet),
            "ems_has_shared_volume": fleet.provider.traits.has_shared_volume,
            "ems_wheel": str(wheel.pack(folder)) if group == "controller" else "",
        }
        run = _Run(folder, f"{fleet.name}-bake-{kind}", group, host, variables, {})
        return run.execute(on_progress or _reporter(fleet), f"ems cluster bake {fleet.name}")


def image_key(definition: Definition, kind: str) -> str:
    """Return the name of what would be installed on a kind of node: 32 hex digits.

    Equal for kinds that get the same, of other clusters too; other when a role changes, or what the definition has it
    install.
    """
    group = "controller" if kind == "controller" else "compute"
    node = definition.kind(kind)
    said: list[Json] = [
        group,
        node.image or definition.image,
        definition.login_user,
        definition.provider.kind,
        sorted(definition.packages),
        [definition.accounting, definition.trusts_controller] if group == "controller" else None,
        group == "controller" and definition.idle is not None and definition.idle.has_bucket,
        definition.cuda if node.gpus else None,
        sorted(metadata.requires("ems") or ()) if group == "controller" else None,
    ]
    digest = hashlib.sha256(json.dumps(said).encode())
    for name, content in _files_of(group):
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:32]


def _client(fleet: Fleet) -> str:
    """Return the command by which a controller that may make machines does so; empty where it needs none."""
    return fleet.provider.traits.client if fleet.definition.trusts_controller else ""


def _files_of(group: str) -> Iterator[tuple[str, bytes]]:
    """Yield the files that set up a machine of a group."""
    templates = shipped.templates()
    plays = yaml.safe_load((templates / "site.yml").read_text())
    roles = [role for play in plays if play["hosts"] == group for role in play["roles"]]
    folders = [templates / "roles" / role for role in roles]
    paths = [templates / "site.yml", *(path for folder in folders for path in folder.rglob("*") if path.is_file())]
    for path in sorted(path for path in paths if path.name not in _FROM_SHARE):
        yield str(path.relative_to(templates)), path.read_bytes()


def _facts(record: Record) -> dict[str, Json]:
    """Return what everybody on the cluster may read of it: enough to adopt it, and nothing secret."""
    names = ("name", "incarnation", "owner", "created", "definition", "digest", "munge")
    return {name: getattr(record, name) for name in names}


def _has_all_images(fleet: Fleet) -> bool:
    """Whether every kind of node has an image that holds everything."""
    found = {each.labels.get(base.IMAGE) for each in fleet.provider.list() if each.thing is base.Thing.IMAGE}
    return all(image_key(fleet.definition, kind) in found for kind in fleet.definition.nodes)


def _hooks(definition: Definition) -> dict[str, Path]:
    """Return the definition's own playbooks: the name each has on the share -> its file here.

    Raises
    ------
    ClusterError
        If one is not there: on another laptop, say.
    """
    moments: Mapping[str, Sequence[str]] = {"before": definition.hooks.before, "after": definition.hooks.after}
    found = {f"{moment}-{n:03d}.yml": Path(hook) for moment, given in moments.items() for n, hook in enumerate(given)}
    for path in found.values():
        if not path.is_file():
            raise ClusterError(
                f"the playbook {path} is not there", "put it back, or take it out of the definition's hooks"
            )
    return found


def _pack_templates(folder: Path, hooks: Mapping[str, Path]) -> Path:
    """Return a tar file of the templates and hooks; the same bytes for the same content."""
    root = shipped.templates()
    files = {str(path.relative_to(root)): path for path in root.rglob("*") if path.is_file()}
    files |= {f"hooks/{name}": path for name, path in hooks.items()}
    packed = folder / "templates.tar"
    with tarfile.open(packed, "w") as tar:
        for name, path in sorted(files.items()):
            content = path.read_bytes()
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o755 if content.startswith(b"#!") else 0o644
            tar.addfile(entry, io.BytesIO(content))
    return packed


@contextlib.contextmanager
def _folder(parent: Path) -> Iterator[Path]:
    """Have a folder that only this user can read, until the end of the block."""
    path = Path(tempfile.mkdtemp(prefix="ansible-", dir=parent))  # mode 700
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _reporter(fleet: Fleet) -> OnProgress:
    def tell(progress: Progress) -> None:
        if progress.status == "running":
            fleet.report(progress.host, f"{progress.role}: {progress.task}" if progress.role else progress.task)

    return tell


@dataclass
class _Run:
    """One run of the templates on one machine."""

    folder: Path
    name: str
    group: str
    host: Host
    variables: Mapping[str, Json]
    hooks: Mapping[str, Path]
    _failures: list[_Failure] = field(default_factory=list)
    _said: list[str] = field(default_factory=list)
    _counts: dict[str, int] = field(default_factory=dict)

    def execute(self, on_progress: OnProgress, continues: str) -> Summary:
        """Run it.

        Raises
        ------
        ClusterError
            If it fails; ``continues`` is the command that goes on from there.
        """
        began = time.monotonic()
        self._write()
        status = self._wait(lambda event: self._take(event, on_progress, began))
        if status != "successful" or self._failures:
            raise self._error(continues)
        return Summary(self._counts.get("ok", 0), self._counts.get("changed", 0), time.monotonic() - began)

    def _write(self) -> None:
        for name in ("inventory", "env", "project"):
            (self.folder / name).mkdir(mode=0o700)
        user, _, address = self.host.destination.rpartition("@")
        machine = {"ansible_host": address, "ansible_user": user}
        inventory = {self.group: {"hosts": {self.name: machine}}}
        _write(self.folder / "inventory" / "hosts.json", json.dumps(inventory))
        _write(self.folder / "env" / "extravars", json.dumps(self.variables))
        plays = [{"name": Path(path).name, "import_playbook": path} for path in self._playbooks()]
        _write(self.folder / "project" / "main.yml", json.dumps(plays))

    def _playbooks(self) -> list[str]:
        before = [str(path) for name, path in sorted(self.hooks.items()) if name.startswith("before-")]
        after = [str(path) for name, path in sorted(self.hooks.items()) if name.startswith("after-")]
        return [*before, str(shipped.templates() / "site.yml"), *after]

    def _environ(self) -> dict[str, str]:
        binaries = str(Path(sys.executable).parent)
        options = " ".join(_quoted(word) for word in self.host.options_of_ssh())
        return {
            "PATH": os.pathsep.join([binaries, os.environ.get("PATH", os.defpath)]),
            "ANSIBLE_CONFIG": str(shipped.templates() / "ansible.cfg"),
            "ANSIBLE_HOME": str(self.folder / "home"),
            "ANSIBLE_SSH_ARGS": options,
            "LC_ALL": "C.UTF-8",
        }

    def _wait(self, take: Callable[[dict[str, Any]], None]) -> str:
        """Run Ansible in a thread of its own, so that Ctrl-C ends it in good order."""
        runner = _runner()
        cancelled = threading.Event()
        ended: list[str] = []

        def handle(event: dict[str, Any]) -> bool:
            take(event)
            return False  # write no file of it

        def work() -> None:
            result = runner.run(
                private_data_dir=str(self.folder),
                playbook="main.yml",
                envvars=self._environ(),
                settings={"pexpect_timeout": 1, "suppress_ansible_output": True},
                event_handler=handle,
                cancel_callback=cancelled.is_set,
                quiet=True,
            )
            ended.append(str(result.status))

        thread = threading.Thread(target=work, name=f"ansible {self.name}")
        thread.start()
        try:
            thread.join()
        except BaseException:
            cancelled.set()
            try:
                thread.join()
            finally:
                _end_all(self.folder)
            raise
        return ended[0] if ended else "failed"

    def _take(self, event: dict[str, Any], on_progress: OnProgress, began: float) -> None:
        kind, data = str(event.get("event")), event.get("event_data") or {}
        result = data.get("res") or {}
        task, role, host = str(data.get("task") or ""), str(data.get("role") or ""), str(data.get("host") or self.name)
        status = _STATUS.get(kind)
        if kind == "playbook_on_stats":
            self._counts = {word: sum((data.get(word) or {}).values()) for word in ("ok", "changed")}
        elif kind in {"verbose", "error"}:
            self._said += str(event.get("stdout") or "").splitlines()[-20:]
        if status == "ok" and result.get("changed"):
            status = "changed"
        if status in {"failed", "unreachable"} and not data.get("ignore_errors"):
            self._failures.append(_Failure(host, task, _message(result)))
        if status:
            on_progress(Progress(host, role, task, status, time.monotonic() - began))

    def _error(self, continues: str) -> ClusterError:
        if self._failures:
            first = self._failures[0]
            return ClusterError(f"setting up {first.host} failed at `{first.task}`: {first.message}", continues)
        errors = [line for line in self._said if "ERROR" in line] or self._said[-1:] or ["Ansible did not start"]
        return ClusterError(f"setting up {self.name} failed: {_short(errors[0])}", continues)


_STATUS = {
    "playbook_on_task_start": "running",
    "runner_on_ok": "ok",
    "runner_on_skipped": "skipped",
    "runner_on_failed": "failed",
    "runner_on_unreachable": "unreachable",
}


def _end_all(folder: Path) -> None:
    """End what is left of a run; its folder is on the command line of each process of Ansible's, and of no other.

    Workers are in sessions of their own: they outlive the process that runner kills.
    """
    words = ["ps", "-A", "-ww", "-o", "pid=,args="]
    with contextlib.suppress(OSError):
        listed = subprocess.run(words, capture_output=True, text=True, errors="replace", check=False).stdout
        for line in listed.splitlines():
            if str(folder) in line:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(line.split()[0]), signal.SIGKILL)


def _message(result: Mapping[str, Any]) -> str:
    """Return what a task said of its failure, in a line."""
    items = [each for each in result.get("results") or () if each.get("failed")]
    source = items[0] if items else result
    words = [_CLOSED.sub("", str(source.get(word) or "")).strip() for word in ("msg", "stderr", "stdout")]
    words = [each for each in words if each]
    if words and words[0] in {"non-zero return code", "All items completed"} and len(words) > 1:
        words = words[1:]
    return _short(words[0] if words else str(source.get("censored") or "it gave no reason"))


def _short(text: str) -> str:
    line = " ".join(_COLOUR.sub("", text).split())
    return line if len(line) <= _LONGEST else f"… {line[-_LONGEST:]}"


def _quoted(word: str) -> str:
    return "'" + word.replace("'", "'\"'\"'") + "'"


def _write(path: Path, text: str) -> None:
    path.touch(mode=0o600)
    path.write_text(text)


def _runner() -> Any:
    try:
        import ansible_runner  # noqa: PLC0415 - half a second, and only needed where a cluster is set up
    except ImportError:
        raise ClusterError("Ansible is not installed", "pip install 'ems[cluster]'") from None
    return ansible_runner
