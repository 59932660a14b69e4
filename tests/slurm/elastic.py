"""A real SLURM whose nodes come and go: State=CLOUD, the shipped programs, the service, and the cloud of cloud.py."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from ems.cluster.definition import Definition
from ems.cluster.elastic.standing import Status, parse
from ems.cluster.record import new

_HERE = Path(__file__).parent
_POWER, _AWAIT = (_HERE.parents[1] / "templates/roles/elastic/files" / each for each in ("ems-power", "ems-await"))
_OPTIONS = {
    "ResumeRate": 0,
    "SuspendRate": 0,
    "SuspendTime": 4,
    "SuspendTimeout": 3,
    "ResumeTimeout": 180,
    "TreeWidth": 65533,
    "PrivateData": "cloud",
    "SlurmctldParameters": "idle_on_node_suspend,power_save_interval=1,power_save_min_interval=0",
}


def bed(testbed: ModuleType, cloud: ModuleType, kinds: Mapping[str, Any], **more: Any) -> Any:
    """Return an elastic cluster, a context manager; see :class:`Bed`."""

    class Bed(testbed.Cluster):  # type: ignore[misc, name-defined]  # tests are loaded by path
        """A cluster whose service is :meth:`serve`.

        Attributes
        ----------
        cloud
            Where its machines are.
        """

        def __init__(self) -> None:
            options = {**_OPTIONS, **more.pop("options", {})}
            super().__init__(nodes=0, gpus=0, cpus=2, memory_mb=8000, options=options)

        def _write_slurm_conf(self) -> None:
            self.name = f"e{(self._port - testbed._FIRST_PORT) // testbed._PORTS_PER_CLUSTER}"
            self.root = self.dir / "root"
            self.definition = Definition.model_validate(
                {"name": self.name, "provider": "container", "nodes": kinds, **more}
            )
            bin_ = self._programs()
            for verb in ("Resume", "Suspend", "ResumeFail"):
                self.options[f"{verb}Program"] = bin_ / f"ems-{verb.removeprefix('Resume').lower() or 'resume'}"
            self.options.setdefault("PrologSlurmctld", bin_ / "ems-await")
            super()._write_slurm_conf()
            conf = self.dir / "slurm.conf"
            lines = [line for line in conf.read_text().splitlines() if not line.startswith("PartitionName=")]
            conf.write_text("\n".join([*lines, *self._nodes()]) + "\n")

        def _nodes(self) -> Iterator[str]:
            where, port = f"NodeHostname={socket.gethostname()} NodeAddr=127.0.0.1", self._port + 3
            for kind, each in self.definition.nodes.items():
                names = [f"{self.name}-{kind}-{number + 1:03d}" for number in range(each.max or each.count)]
                for name in names:
                    yield f"NodeName={name} {where} Port={port} State=CLOUD Feature={kind} CPUs=2 RealMemory=8000"
                    port += 1
            for partition, spec in self.definition.partitions.items():
                nodes = ",".join(
                    f"{self.name}-{kind}-[001-{self.definition.nodes[kind].max:03d}]" for kind in spec.nodes
                )
                default = "YES" if partition == self.definition.default_partition else "NO"
                yield f"PartitionName={partition} Nodes={nodes} Default={default} MaxTime=INFINITE"

        def _programs(self) -> Path:
            """Install the shipped script with its spool, and what the controller would hold."""
            folder = self.dir / "bin"
            if folder.exists():
                return folder
            folder.mkdir()
            for each in ("var/spool/ems", "var/lib/ems", "opt/ems/state/boot", "opt/ems/state/notices", "opt/ems/etc"):
                (self.root / each).mkdir(parents=True)
            script = folder / "ems-power"
            script.write_text(_POWER.read_text().replace("/var/spool/ems", f"{self.root}/var/spool/ems"))
            script.chmod(0o755)
            for verb in ("resume", "suspend", "fail"):
                (folder / f"ems-{verb}").symlink_to("ems-power")
            await_ = folder / "ems-await"
            own = f"export SLURM_CONF={self.dir}/slurm.conf PATH={os.environ['PATH']}"
            await_.write_text(_AWAIT.read_text().replace("#!/bin/sh\n", f"#!/bin/sh\n{own}\n"))
            await_.chmod(0o755)
            record = new(self.name, self.definition.model_dump(mode="json"), self.definition.digest)
            keys = ("name", "incarnation", "owner", "created", "definition", "digest", "munge")
            facts = {key: getattr(record, key) for key in keys}
            (self.root / "opt/ems/etc/cluster.json").write_text(json.dumps(facts))
            self.labels = record.labels()
            return folder

        def start(self) -> None:
            """Start SLURM and the cloud; no node is there."""
            super().start()
            self._stack = contextlib.ExitStack()
            self.cloud = cloud.Cloud(self.dir / "cloud", self._boot)
            self._stack.enter_context(self.cloud.serving())

        def stop(self) -> None:
            """End everything."""
            if hasattr(self, "_stack"):
                self._stack.close()
            super().stop()

        def _boot(self, name: str) -> Any:
            argv = ["slurmd", "-D", "-b", "-N", name]
            return testbed.Daemon(argv, self.daemon_environment(), self.dir / "log" / name, node=name)

        @contextlib.contextmanager
        def serve(self, *, every_s: float = 1.0) -> Iterator[Any]:
            """Run the service until the end of the block; it is told to stop, and has to end well."""
            before = self.heartbeat()
            process = self.launch(every_s=every_s)
            try:
                testbed.wait_until(lambda: self.heartbeat() != before or process.poll() is not None, 180, "a heartbeat")
                yield process
            finally:
                process.send_signal(signal.SIGTERM)
                code = process.wait(180)
            assert code == 0, self.log("emsd")

        def launch(self, *kill: int, every_s: float = 1.0) -> Any:
            """Start the service; see emsd.py for how it is killed."""
            source = {**self.environment(), "XDG_STATE_HOME": str(self.root / "var/lib/ems")}
            words = [self.root, self.cloud.path, every_s, *kill]
            argv = [sys.executable, str(_HERE / "emsd.py"), *map(str, words)]
            with (self.dir / "log" / "emsd").open("ab") as log:
                return subprocess.Popen(argv, env=source, stdout=log, stderr=log)

        def log(self, name: str) -> str:
            """Return what a daemon wrote."""
            return (self.dir / "log" / name).read_text(errors="replace")

        def node(self, kind: str, number: int) -> str:
            """Return a node's name."""
            return f"{self.name}-{kind}-{number:03d}"

        def state(self, node: str) -> str:
            """Return SLURM's words for a node's state."""
            text = self.run("scontrol", "-a", "-o", "show", "node", node)
            return next(word for word in text.split() if word.startswith("State=")).removeprefix("State=")

        def rests(self) -> bool:
            """Whether all nodes are powered down and idle."""
            states = self.run("scontrol", "-a", "-o", "show", "nodes").splitlines()
            return all(" State=IDLE+CLOUD+POWERED_DOWN " in line for line in states)

        def is_held(self, kind: str, number: int) -> bool:
            """Whether a node waits, powered down and out of use, until its kind can be had again."""
            return {"DOWN", "POWERED_DOWN"} <= set(self.state(self.node(kind, number)).split("+"))

        def floor(self, names: Sequence[str]) -> None:
            """Say which nodes stay."""
            (self.root / "opt/ems/etc/floor").write_text("".join(f"{name}\n" for name in names))
            before = self.options.pop("SuspendExcNodes", "")
            if names:
                self.options["SuspendExcNodes"] = ",".join(names)
            if before != self.options.get("SuspendExcNodes", ""):
                self._write_slurm_conf()
                self.run("scontrol", "reconfigure")

        def heartbeat(self) -> str:
            """Return what nodes watch; empty before there is any."""
            path = self.root / "opt/ems/state/heartbeat"
            return path.read_text() if path.exists() else ""

        def requests(self, verb: str) -> list[str]:
            """Return the requests that wait for the service."""
            return sorted(path.name for path in (self.root / "var/spool/ems").glob(f"*.{verb}"))

        def murder(self, *steps: int) -> None:
            """Run the service again and again; each is killed at another step of what it has to do (see emsd.py)."""
            code = self.launch(*steps, every_s=60).wait(400)
            assert code == 0, self.log("emsd")

        def sweep(self) -> None:
            """Have no job, no machine and no memory of any."""
            self.run("scancel", f"--user={self.user}", check=False)
            self.wait_for_empty_queue()
            self.cloud.clear()
            self.floor([])
            shutil.rmtree(self.root / "var/lib/ems", ignore_errors=True)
            for folder in ("var/spool/ems", "opt/ems/state"):
                for path in (self.root / folder).glob("*"):
                    path.unlink() if path.is_file() else None
            testbed.wait_until(self._is_at_rest, 300, "rest")
            for path in (self.root / "var/spool/ems").glob("*"):
                path.unlink()

        def _is_at_rest(self) -> bool:
            """Help nodes to rest that are not on their way; whether all do."""
            for node in set(self.run("sinfo", "-a", "-h", "-N", "-o", "%N").split()):
                words = set(self.state(node).split("+"))
                if "POWERED_DOWN" in words and words & {"DOWN", "DRAIN", "NOT_RESPONDING"}:
                    self._update(node, "state=resume")
                elif not words & {"POWERED_DOWN", "POWERING_DOWN"}:
                    self._update(node, "state=down", "reason=swept")
                    self._update(node, "state=power_down")
            return self.rests()

        def _update(self, node: str, *words: str) -> None:
            self.run("scontrol", "update", f"nodename={node}", *words, check=False)

        @property
        def status(self) -> Status:
            """What the service says of itself."""
            path = self.root / "opt/ems/state/elastic.json"
            status = parse(path.read_text()) if path.exists() else Status("")
            assert status is not None
            return status

    return Bed()
