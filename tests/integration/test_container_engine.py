"""The engine's command: which one is taken, what it is asked, what its answers mean.

Docker needs a daemon of its own and does not run where these tests do: a stand-in gives the answers of its reference.
What podman does is tested for real, in tests/slurm/test_provider_contract.py.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
from pathlib import Path

import pytest

from ems.cluster.definition import ContainerSection
from ems.cluster.provider import base, connect
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
    assert machine == Resource(
        Thing.MACHINE, _ID, "c-controller", _LABELS, MachineState.RUNNING, "172.18.0.2", "127.0.0.1", 49153
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
    with tarfile.open(fileobj=io.BytesIO((docker.folder / "seed.tar").read_bytes())) as archive:
        seed = {Path(each.name).name: (each.mode, archive.extractfile(each)) for each in archive}
    mode, file = seed["user-data"]
    assert mode == 0o600
    assert file is not None
    assert file.read() == b"#cloud-config\nsecret: $(touch pwned)\n"


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
