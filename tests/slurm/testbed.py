"""A real SLURM on one Debian machine, as plain processes: munge, MariaDB, slurmdbd, slurmctld and several slurmd.

::

    with Cluster(nodes=2, gpus=4) as cluster:
        subprocess.run(["sbatch", ...], env=cluster.environment())

or, for anything else, ``python tests/slurm/testbed.py [MaxArraySize=100001 …] -- COMMAND…``, which runs COMMAND with
SLURM_CONF set and ends everything after it.

Nothing outlives a cluster, however its holder ends, and a node can be lost at once with all that ran on it: see
reaper.py.

Needs Debian's packages (``install.sh``); works as root, and as an ordinary user whose jobs then run as that user.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import pwd
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

_PROGRAMS = ("munged", "mariadbd", "mysql_install_db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacct")
_SBIN = "/usr/local/sbin:/usr/sbin:/sbin"
_FIRST_PORT, _LAST_PORT, _PORTS_PER_CLUSTER = 17_000, 32_000, 20
_LIMIT_S = 180  # for what takes seconds where nothing else runs
_DAEMONS_WAIT_S, _COMMANDS_WAIT_S = 5, 30  # for an answer


def _load_reaper() -> ModuleType:
    """Import the file beside this one, which itself may be a script, or a module loaded by its path."""
    name = "ems_slurm_reaper"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("reaper.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


reaper = _load_reaper()
Daemon = reaper.Daemon


def why_not() -> str:
    """Say what this machine lacks for a cluster; empty where it lacks nothing."""
    missing = [name for name in _PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"needs {', '.join(missing)}; as root on Debian or Ubuntu: sh tests/slurm/install.sh"
    return ""


def wait_until(condition: Callable[[], bool], limit_s: float, what: str) -> None:
    """Poll ``condition`` every 50 ms; raise TimeoutError naming ``what`` after ``limit_s`` seconds."""
    deadline = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {limit_s:g} s")
        time.sleep(0.05)


class Cluster:
    """A running SLURM; a context manager.

    Parameters
    ----------
    nodes, cpus, gpus
        How many nodes (see ``node_names``), and how many CPUs and fake GPUs each is said to have. CPUs are not
        bound: more than the machine has only means more jobs at a time.
    memory_mb
        Memory of each node as SLURM sees it.
    enforce_memory
        Whether memory is limited by cgroups, so that a job over its ``--mem`` ends as OUT_OF_MEMORY. Needs root and the
        v1 memory controller (:func:`can_enforce_memory`).
    options
        More lines of slurm.conf, e.g. ``{"MaxArraySize": 21}``; they win over the ones written here.
    """

    def __init__(
        self,
        nodes: int = 2,
        cpus: int = 8,
        gpus: int = 4,
        memory_mb: int = 16_000,
        enforce_memory: bool = False,
        options: Mapping[str, object] | None = None,
    ) -> None:
        self.n_nodes = nodes
        self.node_names: list[str] = []
        self.cpus, self.gpus, self.memory_mb = cpus, gpus, memory_mb
        self.enforce_memory = enforce_memory
        self.options: dict[str, object] = dict(options or {})
        self.user = pwd.getpwuid(os.geteuid()).pw_name
        self._daemons: dict[str, Any] = {}
        self._reservation: socket.socket | None = None

    # -- life ---------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start everything and wait until all nodes are idle (about 5 s)."""
        self.dir = Path(tempfile.mkdtemp(prefix="ems-slurm-"))
        self.dir.chmod(0o755)
        try:
            self._reservation, self._port = _reserve_ports()
            # other names than any other cluster's at this time: cgroups are named after nodes
            block = (self._port - _FIRST_PORT) // _PORTS_PER_CLUSTER
            self.node_names = [f"n{block}-{number + 1}" for number in range(self.n_nodes)]
            self._write_files()
            self._start_munge()
            self._start_database()
            self.start_accounting()
            self.start_controller()
            self._set_up_accounting()
            for name in self.node_names:
                self._start_slurmd(name)
            self.wait_for_nodes()
        except BaseException as error:
            for log in sorted(self.dir.glob("log/*")):
                error.add_note(f"--- {log.name}\n{log.read_text(errors='replace')[-1500:]}")
            self.stop()
            raise

    def stop(self) -> None:
        """Kill everything that the cluster started and remove its directory."""
        for daemon in reversed(self._daemons.values()):
            daemon.kill()
        self._daemons.clear()
        if self._reservation is not None:
            self._reservation.close()
        reaper.remove_tree(self.dir)

    # -- use ----------------------------------------------------------------------------------------------------------

    def environment(self, base: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return ``base`` (default: this process's environment) with which SLURM's commands reach this cluster."""
        source = os.environ if base is None else base
        env = {key: value for key, value in source.items() if not key.startswith(("SLURM_", "SBATCH_", "SQUEUE_"))}
        env |= {"SLURM_CONF": str(self.dir / "commands.conf"), "PATH": _path(source)}
        return env

    def daemon_environment(self) -> dict[str, str]:
        """Return the environment for one of SLURM's daemons."""
        return {**self.environment(), "SLURM_CONF": str(self.dir / "slurm.conf")}

    def run(self, *argv: str, check: bool = True, stdin: str | None = None) -> str:
        """Run one of SLURM's commands; return its standard output, stripped."""
        done = subprocess.run(
            argv, env=self.environment(), capture_output=True, text=True, timeout=_LIMIT_S, check=False, input=stdin
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def sacctmgr(self, *words: str) -> str:
        """Run ``sacctmgr -i WORDS…`` (immediate: no questions)."""
        return self.run("sacctmgr", "-i", "-n", "-P", *words)

    def queue(self, job: str = "") -> list[tuple[str, str, str]]:
        """Return (job or array task, state, reason) of everything queued or running."""
        only = ["-j", job] if job else []
        lines = self.run("squeue", "-h", "-r", "-t", "all", "-o", "%i|%T|%r", *only, check=not job).splitlines()
        found = [tuple(line.split("|", 2)) for line in lines]
        ended = ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "DEADLINE")
        return [(id_, state, reason) for id_, state, reason in found if state not in ended]

    def wait_for_empty_queue(self, limit_s: float = 300) -> None:
        """Wait until nothing is queued, running or completing."""
        wait_until(lambda: not self.queue(), limit_s, "empty queue")

    @contextlib.contextmanager
    def limits(self, **limits: int) -> Iterator[None]:
        """Set limits of the user's association, e.g. ``MaxSubmitJobs=9``, and take them away again."""
        self._modify_user(limits)
        try:
            yield
        finally:
            self._modify_user(dict.fromkeys(limits, -1))

    @contextlib.contextmanager
    def configured(self, **options: object) -> Iterator[None]:
        """Restart the controller with other lines in slurm.conf, e.g. ``MaxArraySize=21``, and back again."""
        before = dict(self.options)
        self._configure({**before, **options})
        try:
            yield
        finally:
            self._configure(before)

    # -- breaking things ----------------------------------------------------------------------------------------------

    def stop_controller(self, kill: bool = False) -> None:
        """End slurmctld: in order, or as by a power cut; jobs go on.

        It writes down what it knows every 5 s. So after a power cut jobs come back that had ended, or were cancelled,
        and hold their nodes for up to a minute: :meth:`heal` ends them. No id is given a second time, which would mix
        up jobs in the accounting of the tests to come.
        """
        if kill:
            [self.options["FirstJobId"]] = re.findall(r"NEXT_JOB_ID\s*= (\d+)", self.run("scontrol", "show", "config"))
            self._write_slurm_conf()
        daemon = self._daemons.pop("slurmctld")
        (daemon.kill if kill else daemon.terminate)()
        self._tell_commands()

    def start_controller(self) -> None:
        """Start slurmctld and wait until it answers."""
        self._start("slurmctld", ["slurmctld", "-D"])
        self._tell_commands()
        wait_until(lambda: self._answers("scontrol", "ping"), _LIMIT_S, "slurmctld")

    def stop_accounting(self) -> None:
        """End slurmdbd: sacct and sacctmgr then fail, sbatch and squeue do not."""
        self._daemons.pop("slurmdbd").kill()
        self._tell_commands()

    def start_accounting(self) -> None:
        """Start slurmdbd and wait until it answers."""
        self._start("slurmdbd", ["slurmdbd", "-D"], MYSQL_UNIX_PORT=str(self._database_socket))
        self._tell_commands()
        self._wait_for_port("slurmdbd", self._port + 1)

    def kill_node(self, name: str) -> None:
        """Lose node ``name`` with all that runs on it, as by a power cut; SLURM finds out about 16 s later."""
        self._daemons.pop(name).kill()

    def start_node(self, name: str) -> None:
        """Bring node ``name`` back."""
        self._start_slurmd(name)
        self.wait_for_nodes([name])

    @contextlib.contextmanager
    def drained(self, name: str) -> Iterator[None]:
        """Let no job start on node ``name``; what runs there goes on."""
        self.run("scontrol", "update", f"nodename={name}", "state=drain", "reason=test")
        try:
            yield
        finally:
            self.run("scontrol", "update", f"nodename={name}", "state=resume")

    def heal(self) -> None:
        """Start what is down and end all jobs, so that one test cannot harm the next."""
        if not self._is_up("slurmdbd"):
            self.start_accounting()
        if not self._is_up("slurmctld"):
            self.start_controller()
        down = [name for name in self.node_names if not self._is_up(name)]
        for name in down:
            self._start_slurmd(name)
        wait_until(self._has_ended_all, 300, "the end of all jobs")
        self.wait_for_nodes()

    def _has_ended_all(self) -> bool:
        """Whether there is no job; jobs that end may have submitted others."""
        if not self.queue():
            return True
        self.run("scancel", f"--user={self.user}", check=False)
        return False

    def _is_up(self, name: str) -> bool:
        return name in self._daemons and self._daemons[name].is_alive

    def wait_for_nodes(self, names: Sequence[str] | None = None) -> None:
        """Wait until the nodes can take jobs."""
        wanted = set(self.node_names if names is None else names)
        usable = ("idle", "mixed", "allocated", "completing")

        def ready() -> bool:
            lines = self.run("sinfo", "-h", "-N", "-o", "%N %T", check=False).split("\n")
            return wanted <= {line.split()[0] for line in lines if line.split()[1:] and line.split()[1] in usable}

        wait_until(ready, _LIMIT_S, f"nodes {', '.join(sorted(wanted))}")

    # -- parts --------------------------------------------------------------------------------------------------------

    def _start(self, name: str, argv: list[str], node: str = "", remove: Path | None = None, **env: str) -> Any:
        log = self.dir / "log" / name
        daemon = Daemon(argv, {**self.daemon_environment(), **env}, log, node=node, remove=remove)
        self._daemons[name] = daemon
        return daemon

    def _start_munge(self) -> None:
        key = self.dir / "munge.key"
        key.touch(mode=0o600)
        key.write_bytes(os.urandom(128))
        files = {"key-file": key, "socket": self._munge_socket}
        files |= {f"{word}-file": self.dir / f"munge.{word}" for word in ("pid", "log", "seed")}
        argv = ["munged", "--foreground", "--force", *(f"--{option}={path}" for option, path in files.items())]
        self._start("munged", argv, remove=self.dir)
        self._wait_for("munged", self._munge_socket.exists)

    def _start_database(self) -> None:
        data, user = self.dir / "database", f"--user={self.user}"
        # its own: a server that starts removes the temporary tables of any other from a shared one
        temporary = f"--tmpdir={self.dir / 'temporary'}"
        install = [
            "mysql_install_db",
            "--no-defaults",
            user,
            f"--datadir={data}",
            "--auth-root-authentication-method=normal",
            temporary,
        ]
        with (self.dir / "log" / "mysql_install_db").open("wb") as log:
            subprocess.run(
                [*install, "--skip-test-db"],
                env=self.environment(),
                stdout=log,
                stderr=log,
                check=True,
                timeout=_LIMIT_S,
            )
        socket_path = self._database_socket
        argv = ["mariadbd", "--no-defaults", user, f"--datadir={data}", f"--socket={socket_path}", "--skip-networking"]
        # throw-away data: nothing is synchronised, and the log files stay small
        quick = [temporary, "--innodb-flush-log-at-trx-commit=0", "--skip-log-bin", "--innodb-log-file-size=8M"]
        self._start("mariadbd", argv + quick)
        self._wait_for("mariadbd", socket_path.exists)

    def _set_up_accounting(self) -> None:
        def registered() -> bool:
            return "ems" in self.run("sacctmgr", "-n", "-P", "show", "cluster", "format=cluster", check=False)

        wait_until(registered, _LIMIT_S, "registration of the cluster in slurmdbd")
        self.sacctmgr("add", "account", "lab", "cluster=ems")
        self.sacctmgr("add", "user", self.user, "account=lab", "cluster=ems")
        self._wait_for_association()

    def _wait_for_association(self) -> None:
        """Slurmdbd tells slurmctld of a new user a moment later; until then sbatch is refused."""
        show = ("scontrol", "show", "assoc_mgr", "flags=assoc", f"users={self.user}")
        is_known = lambda: f"UserName={self.user}" in self.run(*show, check=False)  # noqa: E731
        wait_until(is_known, _LIMIT_S, f"association of {self.user}")

    def _modify_user(self, limits: Mapping[str, int]) -> None:
        words = [f"{name}={value}" for name, value in limits.items()]
        self.sacctmgr("modify", "user", "where", f"user={self.user}", "cluster=ems", "set", *words)
        show = ("scontrol", "show", "assoc_mgr", "flags=assoc", f"users={self.user}")

        def known() -> bool:
            record = self.run(*show).split(f"UserName={self.user}")[-1]
            shown = (f"{name}={value}(" if value >= 0 else f"{name}= " for name, value in limits.items())
            return all(each in record for each in shown)

        wait_until(known, _LIMIT_S, f"limits {words} in slurmctld")

    def _configure(self, options: dict[str, object]) -> None:
        self.options = options
        self._write_slurm_conf()
        self.stop_controller()
        self.start_controller()
        self.wait_for_nodes()

    def _start_slurmd(self, name: str) -> None:
        self._start(name, ["slurmd", "-D", "-N", name], node=name)

    def _answers(self, *argv: str) -> bool:
        daemon = self._daemons["slurmctld"]
        if not daemon.is_alive:
            raise RuntimeError(f"slurmctld ended: {daemon.log.read_text(errors='replace')[-1500:]}")
        return "is UP" in self.run(*argv, check=False)

    def _wait_for(self, name: str, condition: Callable[[], bool]) -> None:
        daemon = self._daemons[name]

        def ready() -> bool:
            if not daemon.is_alive:
                raise RuntimeError(f"{name} ended: {daemon.log.read_text(errors='replace')[-1500:]}")
            return condition()

        wait_until(ready, _LIMIT_S, name)

    def _wait_for_port(self, name: str, port: int) -> None:
        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        self._wait_for(name, listens)

    # -- files --------------------------------------------------------------------------------------------------------

    @property
    def _munge_socket(self) -> Path:
        return self.dir / "munge.socket"

    @property
    def _database_socket(self) -> Path:
        return self.dir / "database" / "socket"

    def _write_files(self) -> None:
        for name in ("log", "state", "spool", "temporary"):
            (self.dir / name).mkdir()
        devices = self._make_devices()
        self._write_slurm_conf()
        lines = [f"NodeName={name} Name=gpu File={devices}" for name in self.node_names] if self.gpus else []
        (self.dir / "gres.conf").write_text("\n".join(lines) + "\n")
        constrain = "ConstrainRAMSpace=yes\nConstrainSwapSpace=yes\nMinRAMSpace=16\n" if self.enforce_memory else ""
        (self.dir / "cgroup.conf").write_text(f"CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n{constrain}")
        database = {"StorageType": "accounting_storage/mysql", "StorageHost": "localhost", "StorageUser": "root"}
        common = {"AuthType": "auth/munge", "AuthInfo": f"socket={self._munge_socket}", "SlurmUser": self.user}
        own = {
            "DbdHost": "localhost",
            "DbdPort": self._port + 1,
            "PidFile": self.dir / "slurmdbd.pid",
            "CommitDelay": 0,
        }
        conf = self.dir / "slurmdbd.conf"
        conf.touch(mode=0o600)
        conf.write_text(_lines({**database, **common, **own}))

    def _tell_commands(self) -> None:
        """Have commands wait longer for an answer than daemons do, be the machine busy; but not for one that is down.

        Where nobody listens they try again for as long as they would wait for an answer.
        """
        is_up = self._is_up("slurmctld") and self._is_up("slurmdbd")
        own = f"MessageTimeout={_COMMANDS_WAIT_S if is_up else _DAEMONS_WAIT_S}"
        aside = self.dir / "commands.new"
        aside.write_text(re.sub(r"(?m)^MessageTimeout=\d+$", own, (self.dir / "slurm.conf").read_text()))
        aside.replace(self.dir / "commands.conf")

    def _make_devices(self) -> str:
        """Make character devices that stand for GPUs; elsewhere than as root, name existing ones."""
        existing = ["/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"][: self.gpus]
        if os.geteuid() != 0:
            return ",".join(existing)
        try:
            for number in range(self.gpus):
                os.mknod(self.dir / f"nvidia{number}", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError:
            return ",".join(existing)
        return f"{self.dir}/nvidia[0-{self.gpus - 1}]"

    def _write_slurm_conf(self) -> None:
        host = socket.gethostname()
        settings: dict[str, object] = {
            "ClusterName": "ems",
            "SlurmctldHost": f"{host}(127.0.0.1)",
            "SlurmctldPort": self._port + 2,
            "SlurmUser": self.user,
            "SlurmdUser": self.user,
            "AuthType": "auth/munge",
            # a requeued job may start when its old credential has expired: after 5 s instead of 2 minutes
            "AuthInfo": f"socket={self._munge_socket},cred_expire=5",
            "AccountingStorageType": "accounting_storage/slurmdbd",
            "AccountingStorageHost": "127.0.0.1",
            "AccountingStoragePort": self._port + 1,
            "AccountingStoragePass": self._munge_socket,
            "AccountingStorageEnforce": "associations,limits,qos",
            "JobAcctGatherType": "jobacct_gather/linux",
            "JobAcctGatherFrequency": 2,
            "MpiDefault": "none",
            "ProctrackType": "proctrack/linuxproc",
            "TaskPlugin": "task/cgroup" if self.enforce_memory else "task/none",
            "SelectType": "select/cons_tres",
            "SelectTypeParameters": "CR_CPU_Memory",
            "SchedulerParameters": "sched_interval=1,bf_interval=1,batch_sched_delay=0",
            "SlurmdParameters": "config_overrides",
            "ReturnToService": 2,
            "JobRequeue": 1,
            "KillWait": 3,
            "OverTimeLimit": 0,
            # a lost node is DOWN, its jobs NODE_FAIL and requeued, after about 16 s (26 s with MessageTimeout=10)
            "SlurmdTimeout": 6,
            "MessageTimeout": _DAEMONS_WAIT_S,
            "MaxJobCount": 30_000,
            "MaxArraySize": 1001,
            "DefMemPerCPU": 2000,
            "StateSaveLocation": self.dir / "state",
            "SlurmdSpoolDir": self.dir / "spool" / "%n",
            "SlurmctldPidFile": self.dir / "slurmctld.pid",
            "SlurmdPidFile": self.dir / "slurmd-%n.pid",
            "GresTypes": "gpu",
            "PreemptType": "preempt/partition_prio",
            "PreemptMode": "REQUEUE",
            **self.options,
        }
        gres = f" Gres=gpu:{self.gpus}" if self.gpus else ""
        shape = f"CPUs={self.cpus} RealMemory={self.memory_mb}{gres} State=UNKNOWN"
        nodes = [
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={self._port + 3 + number} {shape}"
            for number, name in enumerate(self.node_names)
        ]
        every = ",".join(self.node_names)
        nodes += [
            f"PartitionName=main Nodes={every} Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=5",
            f"PartitionName=urgent Nodes={every} MaxTime=INFINITE PriorityTier=2",  # takes nodes from `main`
        ]
        (self.dir / "slurm.conf").write_text(_lines(settings) + "\n".join(nodes) + "\n")


def can_enforce_memory() -> bool:
    """Whether slurmd can limit the memory of jobs here: root, and the v1 memory controller mounted writable."""
    return os.geteuid() == 0 and os.access(reaper.CGROUPS / "memory" / "memory.limit_in_bytes", os.W_OK)


def _lines(settings: Mapping[str, object]) -> str:
    return "".join(f"{key}={value}\n" for key, value in settings.items())


def _path(env: Mapping[str, str] | None = None) -> str:
    return (os.environ if env is None else env).get("PATH", os.defpath) + ":" + _SBIN


def _reserve_ports() -> tuple[socket.socket, int]:
    """Find a block of free ports below the ephemeral ones; its first one, held, reserves it for this cluster."""
    for port in range(_FIRST_PORT, _LAST_PORT, _PORTS_PER_CLUSTER):
        with contextlib.ExitStack() as stack:
            guard = socket.socket()
            try:
                guard.bind(("127.0.0.1", port))
                for other in range(port + 1, port + _PORTS_PER_CLUSTER):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", other))
            except OSError:
                guard.close()
                continue
            guard.listen(1)
            return guard, port
    raise RuntimeError(f"no block of free ports between {_FIRST_PORT} and {_LAST_PORT}")


def main() -> int:
    """Run a command against a fresh cluster."""
    at = sys.argv.index("--") if "--" in sys.argv else len(sys.argv)
    options, command = sys.argv[1:at], sys.argv[at + 1 :]
    if not command or not all("=" in option for option in options):
        print(f"usage: {sys.argv[0]} [MaxArraySize=100001 …] -- COMMAND…", file=sys.stderr)
        return 2
    if reason := why_not():
        print(f"error: {reason}", file=sys.stderr)
        return 1
    with Cluster(options=dict(option.split("=", 1) for option in options)) as cluster:
        process = subprocess.Popen(command, env=cluster.environment(), preexec_fn=reaper.die_with_parent)  # noqa: PLW1509
        return process.wait()


if __name__ == "__main__":
    sys.exit(main())
