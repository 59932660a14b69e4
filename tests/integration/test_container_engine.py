"""The engine's command: which one is taken, what it is asked, what its answers mean.

Docker needs a daemon of its own and does not run where these tests do: a stand-in gives the answers of its reference.
What podman does is tested for real, in tests/slurm/test_provider_contract.py.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ems.cluster.definition import ContainerSection
from ems.cluster.provider import base, connect, enginesocket
from ems.cluster.provider.base import MachineRequest, MachineState, Refusal, Resource, Thing
from ems.cluster.provider.engine import find
from ems.errors import ProviderError

_ID = "9f" * 32
_LABELS = {base.CLUSTER: "c", base.INCARNATION: "1", base.ROLE: "controller"}

# What `docker inspect` says (docs.docker.com, Engine API 1.48), where it differs from podman: a slash before the
# name, the labels in Config, addresses by network
_INSPECTED = {
    "Id": _ID,
    "Name": "/c-controller",
    "Image": "sha256:" + "ab" * 32,
    "Created": "2026-02-03T04:05:06.123456789Z",
    "State": {"Status": "running"},
    "Config": {"Labels": {**_LABELS, "ems-labels": "ems-cluster.ems-id.ems-role", "of": "the image"}},
    "NetworkSettings": {
        "IPAddress": "",
        "Networks": {"ems-c": {"IPAddress": "172.18.0.2"}},
        "Ports": {"22/tcp": [{"HostIp": "127.0.0.1", "HostPort": "49153"}]},
    },
}

_STAND_IN = """#!{python}
import json, pathlib, sys
here, words = pathlib.Path(__file__).parent, sys.argv[1:]
with (here / "calls.jsonl").open("a") as file:
    file.write(json.dumps(words) + "\\n")
answers = json.loads((here / "answers.json").read_text())
if words[0] == "cp":
    (here / "seed.tar").write_bytes(sys.stdin.buffer.read())
    (here / "made").touch()
for start, (status, out, err) in answers.items():
    if " ".join(words).startswith(start):
        if start == "container inspect" and not (here / "made").exists():
            status, out, err = 1, "[]", "Error response from daemon: No such container: c-controller"
        print(out)
        print(err, file=sys.stderr)
        sys.exit(status)
"""


class Docker:
    """A stand-in of docker, the only engine there is."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.answers: dict[str, tuple[int, str, str]] = {
            "--version": (0, "Docker version 28.3.0, build 38b7060", ""),
            "info --format {{.NCPU}}": (0, "4", ""),
            "info --format {{.DockerRootDir}}": (0, "/nowhere/docker", ""),
            "create": (0, _ID, "WARNING: something harmless"),
            "container inspect": (0, json.dumps([_INSPECTED]), ""),
            "image inspect": (0, '[{"Id": "sha256:1"}]', ""),
        }
        program = folder / "docker"
        program.write_text(_STAND_IN.format(python=sys.executable))
        program.chmod(0o755)

    def answer(self, start: str, status: int, out: str = "", err: str = "") -> None:
        """Let it answer to words that start so; what was set last counts first."""
        self.answers.pop(start, None)
        self.answers = {start: (status, out, err), **self.answers}
        self.write()

    def write(self) -> None:
        (self.folder / "answers.json").write_text(json.dumps(self.answers))

    def brought(self) -> dict[str, tuple[int, str]]:
        """Return mode and text of each file that a machine was given before its first start."""
        with tarfile.open(fileobj=io.BytesIO((self.folder / "seed.tar").read_bytes())) as archive:
            files = [(each, archive.extractfile(each)) for each in archive]
        return {Path(each.name).name: (each.mode, file.read().decode()) for each, file in files if file is not None}

    def calls(self, verb: str) -> list[list[str]]:
        lines = (self.folder / "calls.jsonl").read_text().splitlines()
        return [call for call in map(json.loads, lines) if call[0] == verb]


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    found = Docker(folder)
    found.write()
    return found


def _request(**changes: object) -> MachineRequest:
    wish: dict[str, object] = {
        "name": "c-controller",
        "image": "localhost/baked:1",
        "user_data": "#cloud-config\n{}\n",
        "labels": _LABELS,
        "cpus": 64,
        "mem_gb": 1.5,
        "gpus": 2,
        "is_public": True,
    }
    return MachineRequest(**(wish | changes))  # type: ignore[arg-type]


def test_a_machine_by_docker(docker: Docker) -> None:
    (machine,) = connect(ContainerSection()).create([_request()])
    made = datetime(2026, 2, 3, 4, 5, 6, 123456, UTC)
    assert machine == Resource(
        Thing.MACHINE,
        _ID,
        "c-controller",
        _LABELS,
        MachineState.RUNNING,
        "172.18.0.2",
        "127.0.0.1",
        49153,
        created_at=made,
    )
    (words,) = docker.calls("create")
    assert {"--privileged", "--cgroupns=private", "--memory=1536m", "--cpus=4", "--publish=127.0.0.1::22"} <= set(words)
    assert {"--device=/dev/null:/dev/nvidia0", "--device=/dev/null:/dev/nvidia1"} <= set(words)
    assert words[-2:] == ["localhost/baked:1", "/sbin/init"]
    assert words[words.index("--network") + 1] == "ems-c"
    assert [words[at + 1] for at, word in enumerate(words) if word == "--volume"] == [
        "ems-c-home:/home",
        "ems-c-opt:/opt/ems",
    ]
    assert docker.calls("start") == [["start", _ID]]


def test_user_data_reaches_docker_by_a_pipe_and_not_in_its_words(docker: Docker) -> None:
    connect(ContainerSection()).create([_request(user_data="#cloud-config\nsecret: $(touch pwned)\n")])
    assert docker.calls("cp") == [["cp", "-", f"{_ID}:/"]]
    assert "secret" not in (docker.folder / "calls.jsonl").read_text()
    assert docker.brought()["user-data"] == (0o600, "#cloud-config\nsecret: $(touch pwned)\n")


def test_real_gpus_are_those_of_the_computer(docker: Docker) -> None:
    connect(ContainerSection(real_gpus=True)).create([_request()])
    assert '--gpus="device=0,1"' in docker.calls("create")[0]


def test_a_definition_may_name_the_engine(docker: Docker) -> None:
    assert find("docker").name == "docker"
    with pytest.raises(ProviderError, match="podman is not installed"):
        find("podman")


def test_podman_under_the_name_of_docker_is_podman(docker: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ems.cluster.provider.namespace.is_there", lambda: False)  # whatever else runs here
    (docker.folder / "podman").symlink_to(docker.folder / "docker")
    docker.answer("--version", 0, "podman version 5.4.1")
    assert find().name == "podman"


def test_a_daemon_that_is_not_running_is_said_with_what_starts_it(docker: Docker) -> None:
    words = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
    docker.answer("info", 1, "", words)
    with pytest.raises(ProviderError, match="Cannot connect to the Docker daemon") as caught:
        find()
    assert "systemctl start docker" in caught.value.message
    assert "podman is not installed" in caught.value.message
    assert "https://docs.docker.com/get-docker" in caught.value.hint


def test_no_engine_at_all_is_said_with_how_to_get_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ProviderError, match="docker is not installed; podman is not installed") as caught:
        connect(ContainerSection())
    assert "apt install podman" in caught.value.hint


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("Error: writing blob: write /var/lib/x: no space left on device", "free some space"),
        ("Error response from daemon: driver failed: Bind for 127.0.0.1:80 failed: port is already allocated", "port"),
        ("Error response from daemon: all predefined address pools have been fully subnetted", "subnet"),
    ],
)
def test_what_docker_refuses_comes_in_its_words_with_what_mends_it(docker: Docker, said: str, hint: str) -> None:
    docker.answer("start", 1, "", said)
    (refused,) = connect(ContainerSection()).create([_request()])
    assert isinstance(refused, Refusal)
    assert said.removeprefix("Error: ").removeprefix("Error response from daemon: ") in refused.reason
    assert hint in refused.hint


def test_machines_have_no_limits_where_none_were_delegated(docker: Docker) -> None:
    docker.answer("run --rm --network=none --memory", 126, "", "controller `cpu` is not available")
    (machine,) = connect(ContainerSection()).create([_request()])
    assert isinstance(machine, Resource)
    assert not [word for word in docker.calls("create")[0] if word.startswith(("--cpus", "--memory"))]


def test_a_machine_that_does_not_start_here_by_docker_is_refused_in_its_words(docker: Docker) -> None:
    docker.answer("run", 126, "", "docker: Error response from daemon: cgroups: cannot enter cgroupv2")
    (refused,) = connect(ContainerSection()).create([_request()])
    assert isinstance(refused, Refusal)
    assert "cannot enter cgroupv2" in refused.reason


def test_an_image_that_is_nowhere_is_no_reason_to_try_other_flags(docker: Docker) -> None:
    docker.answer("image inspect", 1, "[]", "Error response from daemon: No such image: localhost/baked:1")
    (refused,) = connect(ContainerSection()).create([_request()])
    assert isinstance(refused, Refusal)
    assert "localhost/baked:1" in refused.reason
    assert not any(json.loads(line)[0] == "run" for line in (docker.folder / "calls.jsonl").read_text().splitlines())


def test_an_image_that_runs_elsewhere_stays(docker: Docker) -> None:
    provider = connect(ContainerSection(kind="container"))
    image = Resource(Thing.IMAGE, "localhost/a:1", "localhost/a:1", _LABELS)
    docker.answer("image rm", 1, err="Error response: conflict: image is being used by running container 1f")
    provider.destroy([image])
    docker.answer("image rm", 1, err="permission denied")
    with pytest.raises(ProviderError, match="permission denied"):
        provider.destroy([image])


def test_what_goes_while_it_is_listed_is_left_out(docker: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    said = 'Error: retrieving parent of image "91": locating image with ID "91": image not known'  # podman's own words
    docker.answer("images", 125, err=said)
    monkeypatch.setattr("ems.cluster.provider.engine.sleep", lambda _: docker.answer("images", 0))
    provider = connect(ContainerSection())
    assert provider.list(_LABELS) == []
    docker.answer("images", 125, err=said)
    monkeypatch.setattr("ems.cluster.provider.engine.sleep", lambda _: None)
    with pytest.raises(ProviderError, match="image not known"):
        provider.list(_LABELS)
    assert len(docker.calls("images")) == 2 + 10


_SEES_ENGINE = "--volume=/var/run/docker.sock:/run/ems-engine/docker.sock"


def test_only_a_controller_that_makes_nodes_sees_the_engine(docker: Docker, monkeypatch: pytest.MonkeyPatch) -> None:
    docker.answer("context inspect", 0, "unix:///home/me/.docker/desktop/docker.sock")  # a virtual machine has its own
    connect(ContainerSection()).create([_request()])
    assert "engine.json" not in docker.brought()
    connect(ContainerSection()).create([_request(name="c-trusted", is_trusted=True)])
    without, given = docker.calls("create")
    assert not [word for word in without if "docker.sock" in word]
    assert {_SEES_ENGINE, "--security-opt=label=disable"} <= set(given)
    mode, said = docker.brought()["engine.json"]
    assert mode == 0o600
    told = json.loads(said)
    assert {key: told[key] for key in ("engine", "socket", "has_limits")} == {
        "engine": "docker",
        "socket": "/run/ems-engine/docker.sock",
        "has_limits": True,
    }
    assert "--privileged" in told["boot"]
    (docker.folder / "made").unlink()
    monkeypatch.setenv("DOCKER_HOST", "unix:///run/user/1000/docker.sock")  # a daemon without root's rights
    connect(ContainerSection()).create([_request(name="c-own", is_trusted=True)])
    assert "--volume=/run/user/1000/docker.sock:/run/ems-engine/docker.sock" in docker.calls("create")[-1]


@pytest.fixture
def controller(docker: Docker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Docker:
    """A controller that was told of docker, whose computer has an image of debian:12 and none of debian:13."""
    told = {
        "engine": "docker",
        "socket": "/run/ems-engine/docker.sock",
        "boot": ["--privileged", "--told"],
        "has_limits": False,
        "images": {"debian:12": "localhost/ems-debian-12:1f", "debian:13": "localhost/ems-debian-13:2e"},
    }
    (tmp_path / "engine.json").write_text(json.dumps(told))
    monkeypatch.setattr(enginesocket, "FACTS", str(tmp_path / "engine.json"))
    start = "-H unix:///run/ems-engine/docker.sock"
    docker.answers = {f"{start} {verb}": answer for verb, answer in docker.answers.items()}
    docker.answer(f"{start} image inspect localhost/ems-debian-13", 1, "[]", "No such image")
    (docker.folder / "made").touch()
    return docker


def test_a_controller_makes_nodes_as_it_was_told_and_tries_nothing(controller: Docker) -> None:
    provider = connect(ContainerSection(real_gpus=True), as_instance=True)
    controller.answer("-H unix:///run/ems-engine/docker.sock container inspect c-gpu-001", 1, "[]", "No such container")
    requests = [
        _request(name=f"c-gpu-00{place}", image=image, gpus=0, is_public=False, is_trusted=True)
        for place, image in ((1, "debian:12"), (2, "debian:13"))
    ]
    provider.check(requests)
    made, refused = provider.create(requests)
    assert isinstance(made, Resource)
    assert isinstance(refused, Refusal)
    assert "no image of debian:13" in refused.reason
    assert "ems cluster bake" in refused.hint
    calls = [json.loads(line) for line in (controller.folder / "calls.jsonl").read_text().splitlines()]
    assert {tuple(call[:2]) for call in calls} == {("-H", "unix:///run/ems-engine/docker.sock")}
    (create,) = [call for call in calls if call[2] == "create"]
    assert {"--privileged", "--told", "localhost/ems-debian-12:1f"} <= set(create)
    assert not [word for word in create if word.startswith(("--memory", "--cpus", _SEES_ENGINE))]
    assert not [call for call in calls if call[2] in {"run", "info"}]


def test_a_machine_that_was_told_of_no_engine_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enginesocket, "FACTS", str(tmp_path / "none.json"))
    with pytest.raises(ProviderError, match="this machine cannot make containers") as caught:
        connect(ContainerSection(), as_instance=True)
    assert "elastic" in caught.value.hint


def test_the_socket_lies_in_no_folder_that_somebody_else_has_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    own = os.geteuid()
    for name in ("geteuid", "getuid"):
        monkeypatch.setattr(os, name, lambda: own or 1234)
    (tmp_path / f"ems-engine-{own or 1234}").mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: own + 1)
        patch.setattr(os, "getuid", lambda: own or 1234)
        with pytest.raises(ProviderError, match="is somebody else's"):
            enginesocket.Service("demo").make_folder()
    monkeypatch.setattr(enginesocket, "_own_folder", lambda: tmp_path / "own")
    monkeypatch.setattr(os, "geteuid", lambda: own)
    assert enginesocket.Service("demo").make_folder().stat().st_mode & 0o777 == 0o700


_LISTENS = """
import pathlib, socket, sys, time
path = pathlib.Path(sys.argv[-1].removeprefix("unix://"))
(path.parent / "begun").open("a").write("x")
if (path.parent / "broken").exists():
    sys.exit("it cannot run")
path.unlink(missing_ok=True)
with socket.socket(socket.AF_UNIX) as server:
    server.bind(str(path))
    server.listen()
    time.sleep(600)
"""


class Listening:
    """An engine called podman, whose service is a process that listens."""

    name = "podman"

    def __init__(self, script: Path) -> None:
        script.write_text(_LISTENS)
        self.words = (sys.executable, "-W", "ignore", str(script))

    def adapt(self, _image: str) -> tuple[str, ...]:
        return ()

    def is_home_of(self, _process: int) -> bool:
        return True

    @contextmanager
    def entered(self) -> Iterator[tuple[str, ...]]:
        yield ()


def _wait(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_service_that_dies_is_begun_again_until_it_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enginesocket, "_own_folder", lambda: tmp_path / "own")
    monkeypatch.setattr(enginesocket, "_LIVES_S", 0)
    service, engine = enginesocket.Service("demo"), Listening(tmp_path / "listens.py")
    begun = service.folder / "begun"
    service.have(engine, "image")  # type: ignore[arg-type]  # no more of an engine is asked for
    try:
        status = Path(f"/proc/{(first := service.process())}/status").read_text()
        [keeper] = [int(line.split()[1]) for line in status.splitlines() if line.startswith("PPid")]
        os.kill(first, signal.SIGKILL)
        _wait(lambda: service.process() not in {0, first} and service._answers(), "it comes again")
        second = service.process()
        service.have(engine, "image")  # type: ignore[arg-type]
        assert service.process() == second, "what answers stays"
        assert begun.read_text() == "xx"
        with monkeypatch.context() as patch:
            patch.setattr(os, "kill", _interrupt)
            with pytest.raises(KeyboardInterrupt):
                service.end()
        assert service.process() == second, "whoever ends it after that finds it"
        service.end()
        _wait(lambda: not Path(f"/proc/{keeper}").exists(), "nobody begins it any more")
        assert (service.process(), service.socket.exists(), begun.read_text()) == (0, False, "xx")
        monkeypatch.setattr(enginesocket, "_LIVES_S", 600)
        (service.folder / "broken").touch()
        with pytest.raises(ProviderError, match="does not answer: it cannot run"):
            service.have(engine, "image")  # type: ignore[arg-type]
        assert begun.read_text() == "xxx", "one that cannot run is not tried for ever"
    finally:
        service.forget()
