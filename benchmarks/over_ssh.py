"""The figures (h) and (i): what crosses an SSH connection, here one to this machine itself."""

from __future__ import annotations

import json
import os
import pwd
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from benchmarks.harness import EMS, Figure, median, project, run, timed

NAME = "bench"


@contextmanager
def far() -> Iterator[tuple[Path, dict[str, str]]]:
    """Yield the root of a target ``bench`` behind a real sshd on loopback, and the environment that knows it."""
    folder = Path(tempfile.mkdtemp(prefix="ems-bench-far-"))
    for name in ("key", "host_key"):
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], folder)
    shutil.copy(folder / "key.pub", folder / "authorized_keys")
    (folder / "known_hosts").write_text(f"{NAME} {(folder / 'host_key.pub').read_text()}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    lines = [f"ListenAddress 127.0.0.1:{port}", f"HostKey {folder}/host_key", f"PidFile {folder}/pid"]
    lines += [f"AuthorizedKeysFile {folder}/authorized_keys", "StrictModes no", "UsePAM no", "PermitRootLogin yes"]
    (folder / "sshd_config").write_text("\n".join(lines) + "\n")
    Path("/run/sshd").mkdir(exist_ok=True)
    sshd = subprocess.Popen(
        [shutil.which("sshd") or "/usr/sbin/sshd", "-D", "-f", str(folder / "sshd_config")], stderr=subprocess.DEVNULL
    )
    env = {**os.environ, "XDG_STATE_HOME": str(folder / "state")}
    try:
        _register(folder, port, env)
        _wait_for(port)
        yield folder / "root", env
    finally:
        hang_up = f"from ems import registry; found = registry.load({NAME!r}); found and found.host.close()"
        run([sys.executable, "-c", hang_up], folder, env)
        sshd.terminate()
        sshd.wait()
        shutil.rmtree(folder, ignore_errors=True)


REGISTER = """
import sys
from pathlib import Path
from ems import registry
from ems.ssh import Host
folder, port, user = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
host = Host(f"{user}@127.0.0.1", port, folder / "key", folder / "known_hosts", "bench")
ems = (sys.executable, "-m", "ems")
registry.save(registry.RemoteTarget("bench", host, str(folder / "root"), ems, "here", sys.executable))
"""


def _register(folder: Path, port: int, env: Mapping[str, str]) -> None:
    user = pwd.getpwuid(os.geteuid()).pw_name
    run([sys.executable, "-c", REGISTER, str(folder), str(port), user], folder, env)


def _wait_for(port: int) -> None:
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.02)


def harvesting(_: Mapping[str, str]) -> Iterator[Figure]:
    """(h) Harvest of 1,000 runs x 100 points over SSH, then again with nothing new: the whole process."""
    runs, points = 1_000, 100
    with far() as (root, env), project() as folder:
        _finish(folder, root, env, runs, points)
        run([*EMS, "status"], folder, env)  # somebody has looked before
        first_s = timed(lambda: run([*EMS, "harvest"], folder, env))
        again_s = median(lambda: run([*EMS, "harvest"], folder, env), repeats=3, warm_up=0)
        stored = json.loads(run([*EMS, "report", "--json"], folder, env))
    assert stored
    what = f"harvest over SSH of {runs:,} runs x {points} points"
    yield Figure("h", what, f"{first_s:.2f} s", "at most 5 s", first_s <= 5)
    yield Figure("h", "the same again, nothing new", f"{again_s:.2f} s")


def _finish(folder: Path, root: Path, env: Mapping[str, str], runs: int, points: int) -> None:
    """Run a sweep of no-ops there, then give each run its points."""
    argv = [*EMS, "parrun", "train.py", "--on", NAME, "--set", f"x=0..{runs - 1}"]
    exp_id = str(json.loads(run([*argv, "--json"], folder, env))["experiment"])
    for index in range(runs):
        place = root / "experiments" / exp_id / "runs" / str(index)
        _wait_for_end(place)
        numbers = random.Random(index)
        lines = [{"step": step, "loss": numbers.random(), "_t": 1.7e9 + step, "_a": 1} for step in range(points)]
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        (place / "metrics.jsonl").write_text(text)


def _wait_for_end(run_folder: Path) -> None:
    attempt = run_folder / "attempts" / "1.json"
    while not (attempt.exists() and json.loads(attempt.read_text()).get("ended_at")):
        time.sleep(0.01)


PUSH = """
import sys, time
from pathlib import Path
from ems import config, snapshot, target
project = Path.cwd()
chosen = target.resolve("bench", config.load(project, on="bench"), project)
began = time.perf_counter()
frozen = snapshot.take(project, chosen.repository)
chosen.remote.push(frozen.id)
print(time.perf_counter() - began)
chosen.close()
"""


def pushing(_: Mapping[str, str]) -> Iterator[Figure]:
    """(i) Freezing and pushing an unchanged project of 5,000 files over SSH, and submitting a run of it."""
    count = 5_000
    with far() as (root, env), project() as folder:
        for index in range(count - 1):
            place = folder / f"package{index // 100}"
            place.mkdir(exist_ok=True)
            (place / f"module{index}.py").write_text(f"VALUE = {index}\n" * 20)
        submit = [*EMS, "run", "train.py", "--on", NAME, "--again"]
        run(submit, folder, env)
        push_s = min(float(run([sys.executable, "-c", PUSH], folder, env)) for _ in range(3))
        whole_s = median(lambda: run(submit, folder, env), repeats=3, warm_up=0)
        for experiment in (root / "experiments").iterdir():
            _wait_for_end(experiment / "runs" / "0")
    what = f"push of an unchanged project of {count:,} files over SSH: start the agent, freeze, find nothing to send"
    yield Figure("i", what, f"{push_s:.2f} s", "at most 1.5 s", push_s <= 1.5)
    yield Figure("i", "`ems run` of it, the whole process until it is submitted", f"{whole_s:.2f} s")
