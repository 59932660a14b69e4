"""Definitions of clusters: which file wins, what is filled in, and what is said of a wrong one."""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ems import config
from ems.cluster import catalog, shipped
from ems.cluster.definition import MAX_NODES, Definition, node_name, node_number
from ems.errors import ConfigError, NotFoundError, UsageError

SMALL = "provider: container\nnodes: {gpu: {gpus: 4}, cpu: {count: 3}}\n"


def write(folder: Path, text: str, name: str = "mine") -> Path:
    path = folder / "cluster" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def load(folder: Path, text: str) -> Definition:
    write(folder, text)
    return catalog.load("mine", folder)


# -- what a small file means ------------------------------------------------------------------------------------


def test_a_small_definition_is_filled_in(tmp_path: Path) -> None:
    found = load(tmp_path, SMALL)
    assert (found.name, found.image, found.login_user, found.accounting) == ("mine", "debian:12", "ems", True)
    assert found.provider.kind == "container"
    assert {name: kind.count for name, kind in found.nodes.items()} == {"gpu": 1, "cpu": 3}
    assert {name: partition.nodes for name, partition in found.partitions.items()} == {"gpu": ("gpu",), "cpu": ("cpu",)}
    assert found.default_partition == "gpu"
    assert found.slurm == {"MaxArraySize": "20001", "MaxJobCount": "100000"}


def test_what_the_file_says_wins_over_what_is_filled_in(tmp_path: Path) -> None:
    text = SMALL + "slurm: {maxarraysize: 5000, PreemptMode: REQUEUE, DisableRootJobs: true}\n"
    found = load(
        tmp_path,
        text + "partitions: {all: cpu, gpu: {nodes: gpu, default: true}}\n".replace("cpu,", "{nodes: [cpu, gpu]},"),
    )
    assert found.slurm == {
        "MaxJobCount": "100000",
        "maxarraysize": "5000",
        "PreemptMode": "REQUEUE",
        "DisableRootJobs": "YES",
    }
    assert found.default_partition == "gpu"
    assert found.partitions["all"].nodes == ("cpu", "gpu")


def test_users_get_uids_in_order(tmp_path: Path) -> None:
    found = load(tmp_path, SMALL + "users:\n  zoe: {}\n  adam: {uid: 3000}\n  eve:\n    groups: [lab]\n")
    assert {name: user.uid for name, user in found.users.items()} == {"zoe": 2001, "adam": 3000, "eve": 2003}


def test_the_controller_is_a_kind_too(tmp_path: Path) -> None:
    found = load(tmp_path, SMALL + "controller: {cpus: 2, mem_gb: 4}\n")
    controller = found.kind("controller")
    assert (controller.cpus, controller.mem_gb, controller.gpus, controller.count) == (2, 4.0, 0, 1)
    with pytest.raises(UsageError, match="no nodes of the kind `gpus`") as caught:
        found.kind("gpus")
    assert caught.value.hint == "did you mean `gpu`?"


def test_hooks_and_requirements_travel_with_the_definition(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster/own.yml").write_text("[]")
    (tmp_path / "cluster/needs.txt").write_text("--index-url https://example.org/simple\ntorch\n")
    text = SMALL + "hooks: {after: own.yml}\npython: {packages: numpy, requirements: needs.txt}\n"
    found = load(tmp_path, text)
    assert found.hooks.after == (str(tmp_path / "cluster/own.yml"),)
    assert found.python.lines() == ["numpy", "--index-url https://example.org/simple", "torch"]


# -- which file is meant ----------------------------------------------------------------------------------------


def test_the_projects_definition_wins_over_the_users_which_wins_over_the_shipped(tmp_path: Path) -> None:
    user = config.user_path().parent
    assert {("local", "ems"), ("gce", "ems")} <= {(each.name, each.origin) for each in catalog.entries(tmp_path)}
    write(user, SMALL, "local")
    write(user, SMALL, "lab")
    found = {each.name: each.origin for each in catalog.entries(tmp_path)}
    assert (found["lab"], found["local"], found["gce"]) == ("user", "user", "ems")
    write(tmp_path, SMALL + "description: own\n", "local")
    assert catalog.find("local", tmp_path).origin == "project"
    assert catalog.load("local", tmp_path).description == "own"
    assert catalog.find("local", None).origin == "user"


def test_an_unknown_definition_is_named_with_the_one_that_was_meant(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there is no cluster definition `lokal`") as caught:
        catalog.find("lokal", tmp_path)
    assert "did you mean `local`?" in caught.value.hint


@pytest.mark.parametrize("path", sorted(shipped.definitions().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_definition_is_good(path: Path) -> None:
    assert catalog.Entry(path.stem, path, "ems").read().name == path.stem


def test_the_shipped_local_cluster_has_four_gpus_a_node() -> None:
    local = catalog.load("local", None)
    assert next(iter(local.nodes.items()))[0] == "gpu"
    assert (local.nodes["gpu"].count, local.nodes["gpu"].gpus, local.provider.kind) == (2, 4, "container")


def test_the_shipped_schema_is_the_models() -> None:
    path = shipped.definitions() / catalog.SCHEMA_FILE
    assert path.read_text() == catalog.schema(), f"write it anew: ems cluster schema > {path}"


@pytest.mark.parametrize("name", ["local.yaml", "README.md"])
def test_an_editor_takes_what_ems_takes(name: str) -> None:
    text = (shipped.definitions() / name).read_text()
    content = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0] or text)
    validator = jsonschema.Draft202012Validator(json.loads(catalog.schema()))
    assert [error.message for error in validator.iter_errors(content)] == []
    content["nodes"]["gpu"]["cpsu"] = 1
    assert ["cpsu" in error.message for error in validator.iter_errors(content)] == [True]


# -- what is wrong ----------------------------------------------------------------------------------------------

HEAD = "provider: container\nnodes: {gpu: {}}\n"
WRONG = [
    (
        "provider: contaner\nnodes: {gpu: {}}",
        1,
        "`provider.kind` should be one of container, gce",
        "did you mean `container`?",
    ),
    ("provider: container\nnode: {gpu: {}}", 2, "unknown key `node`", "did you mean `nodes`?"),
    ("provider: container\nnodes:\n  gpu:\n    cpsu: 2", 4, "unknown key `nodes.gpu.cpsu`", "did you mean `cpus`?"),
    (
        "provider: {kind: container, subnt: 1}\nnodes: {gpu: {}}",
        1,
        "unknown key `provider.subnt`",
        "did you mean `subnet`?",
    ),
    ("provider: container", 1, "`nodes` is missing", ""),
    ("nodes: {gpu: {}}", 1, "`provider` is missing", ""),
    ("provider: container\nnodes: {}", 2, "`nodes`", ""),
    (
        "provider: container\nnodes: {gpu: {count: 1000}}",
        2,
        "`nodes.gpu.count` should be less than or equal to 999, got 1000",
        "",
    ),
    ("provider: container\nnodes: {gpu: {count: two}}", 2, "`nodes.gpu.count` should be a valid integer", ""),
    (
        "provider: container\nnodes: {Gpu-1: {}}",
        2,
        "`nodes.Gpu-1` should be up to 16 lower-case letters and digits",
        "",
    ),
    ("provider: container\nnodes: {controller: {}}", 2, "`controller` cannot be the name of a kind", ""),
    (
        "provider: container\nnodes: {gpu: {gpu_type: a100}}",
        2,
        "`nodes.gpu` has a gpu_type but no gpus",
        "add `gpus: 1`",
    ),
    ("provider: container\nnodes: {gpu: 3}", 2, "`nodes.gpu` should be a mapping, got 3", ""),
    (
        "provider: container\nimage: debain:12\nnodes: {gpu: {}}",
        2,
        "there is no image `debain:12`",
        "did you mean `debian:12`?",
    ),
    ("provider: container\nnodes:\n  gpu:\n    image: fedora", 4, "there is no image `fedora`", "there are: debian:12"),
    (
        "provider: container\nnodes: {gpu: {size: n1-standard-4}}",
        2,
        "there is no size `n1-standard-4`",
        "say `cpus` and `mem_gb`",
    ),
    (
        "provider: {kind: container, subnet: 10.89.77.1/24}\nnodes: {gpu: {}}",
        1,
        "`provider.subnet` should be an address range",
        "",
    ),
    ("provider: {kind: container, subnet: 8.8.8.0/24}\nnodes: {gpu: {}}", 1, "should be a private address range", ""),
    (HEAD + "partitions:\n  p:\n    nodes: [gpus]", 5, "kind `gpus`, which are not there", "did you mean `gpu`?"),
    (HEAD + "partitions: {p: {nodes: gpu, time: 1 day}}", 3, "`partitions.p.time` should be minutes", ""),
    (
        HEAD + "partitions:\n  p: {nodes: gpu, default: true}\n  q:\n    nodes: gpu\n    default: true",
        7,
        "cannot both be the default",
        "",
    ),
    (HEAD + "partitions: {p: {nodes: gpu, options: {MaxTime: 5}}}", 3, "is for ems to say", "say `time:` in the"),
    (HEAD + "partitions: {p: {nodes: gpu, options: {A: x y}}}", 3, "`partitions.p.options.A` should be one word", ""),
    (HEAD + "mounts:\n- source: https://me:secret@nas/d\n  path: /d", 4, "`mounts` holds a password", "leave it out"),
    (HEAD + "slurm: {Epilog: \"{{ lookup('pipe', 'touch pwned') }}\"}", 3, "`slurm` holds `{{`", "leave it out"),
    (HEAD + "slurm: {treeWidth: 5}", 3, "`slurm.treeWidth` is for ems to say", "leave the line out"),
    (HEAD + "slurm: {SlurmctldHost: evil}", 3, "`slurm.SlurmctldHost` is for ems to say", ""),
    (HEAD + "slurm: {MaxArraySiz: 5}", 3, "SLURM has no parameter `MaxArraySiz`", "did you mean `MaxArraySize`?"),
    (HEAD + "slurm: {Quux: 5}", 3, "SLURM has no parameter `Quux`", "man slurm.conf"),
    (
        HEAD + "partitions: {p: {nodes: gpu, options: {PriorityTeir: 2}}}",
        3,
        "no word `PriorityTeir`",
        "did you mean `PriorityTier`?",
    ),
    (HEAD + 'slurm: {Epilog: "a\\nSlurmUser=root"}', 3, "`slurm.Epilog", ""),
    (HEAD + "login_user: root", 3, "`root` cannot be the login user", ""),
    (HEAD + "login_user: $(id)", 3, "`login_user` should be a name of lower-case", ""),
    (HEAD + "users: {ems: {}}", 3, "the user `ems` is there without you", ""),
    (HEAD + "users:\n  a: {}\n  b: {uid: 2001}", 5, "`b` and `a` have the uid 2001 both", ""),
    (HEAD + "users: {a: {keys: ssh-rsa}}", 3, "should be a public SSH key", ""),
    (HEAD + "packages: [--force]", 3, "`packages` should be a package's name", ""),
    (HEAD + "python: {packages: [--index-url=x]}", 3, "`python.packages` should be a requirement", ""),
    (HEAD + "python: {version: 3.10}", 3, "`python.version` should be a version in quotes", ""),
    (HEAD + "python: {requirements: no.txt}", 3, "there is no requirements file no.txt", "relative to"),
    (HEAD + "hooks: {before: no.yml}", 3, "there is no playbook no.yml", "relative to"),
    (HEAD + "mounts: [{source: 'nas:/d', path: /home/x}]", 3, "which is the machine's own", ""),
    (HEAD + "name: other", 3, "`name` says `other`, but the file's name says `mine`", ""),
]


@pytest.mark.parametrize(("text", "line", "message", "hint"), WRONG)
def test_a_wrong_definition_is_explained_by_file_line_and_key(
    tmp_path: Path, text: str, line: int, message: str, hint: str
) -> None:
    path = write(tmp_path, text + "\n")
    with pytest.raises(ConfigError) as caught:
        catalog.load("mine", tmp_path)
    assert caught.value.message.startswith(f"{path} line {line}: "), caught.value.message
    assert message in caught.value.message
    assert hint in caught.value.hint


def test_a_requirements_file_may_not_speak_of_this_computer(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster/needs.txt").write_text("numpy\n-e ../mine\n")
    with pytest.raises(ConfigError, match="names a file of this computer"):
        load(tmp_path, SMALL + "python: {requirements: needs.txt}\n")


def test_a_password_in_a_requirements_file_is_refused_and_not_said(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    (tmp_path / "cluster/needs.txt").write_text("--index-url https://me:hunter2@example.org/simple\nnumpy\n")
    with pytest.raises(ConfigError, match="line 3: `python` holds a password") as caught:
        load(tmp_path, SMALL + "python: {requirements: needs.txt}\n")
    assert "hunter2" not in str(caught.value)


def test_a_file_whose_name_no_cluster_may_have_is_explained(tmp_path: Path) -> None:
    write(tmp_path, SMALL, "My_Cluster")
    entry = catalog.find("My_Cluster", tmp_path)
    assert "cannot be the name of a cluster" in str(catalog.problem_of(entry))


def test_the_example_that_explains_definitions_is_one(tmp_path: Path) -> None:
    text = (shipped.definitions() / "README.md").read_text()
    example = text.partition("```yaml\n")[2].partition("```")[0]
    (tmp_path / "cluster/playbooks").mkdir(parents=True)
    (tmp_path / "cluster/playbooks/scratch.yml").write_text("[]\n")
    found = load(tmp_path, example)
    said = set(yaml.safe_load(example))
    assert said == set(Definition.model_fields) - {"name"}, "the example shows every key"
    assert list(found.nodes) == ["gpu", "cpu"]


# -- names, digests, hostile values -----------------------------------------------------------------------------


@given(
    cluster=st.from_regex(r"[a-z][a-z0-9-]{0,30}", fullmatch=True),
    kind=st.from_regex(r"[a-z][a-z0-9]{0,15}", fullmatch=True).filter(lambda kind: kind != "controller"),
    number=st.integers(1, MAX_NODES),
)
def test_a_nodes_name_says_kind_and_number_and_is_a_host_name(cluster: str, kind: str, number: int) -> None:
    name = node_name(cluster, kind, number)
    assert node_number(cluster, name) == (kind, number)
    assert len(name) <= 63
    assert node_number(f"{cluster}x", name) is None


def test_the_digest_is_that_of_the_content_however_it_is_stored(tmp_path: Path) -> None:
    found = load(tmp_path, SMALL + "controller: {mem_gb: 2}\n")
    stored = json.loads(json.dumps(found.model_dump(mode="json"), sort_keys=True))
    assert Definition.model_validate(stored).digest == found.digest
    stored["nodes"]["gpu"]["gpus"] = 5
    assert Definition.model_validate(stored).digest != found.digest


HOSTILE = st.sampled_from(["a\nb", "$(touch pwned)", "'; rm -rf /", "--option", "a b", 'x"y', "\x00", "\u2028", "é"])
PLACES: dict[str, Any] = {
    "login_user": lambda word: {"login_user": word},
    "kind": lambda word: {"nodes": {word: {}}},
    "partition": lambda word: {"partitions": {word: {"nodes": "gpu"}}},
    "slurm": lambda word: {"slurm": {word: 1}},
    "package": lambda word: {"packages": [word]},
    "user": lambda word: {"users": {word: {}}},
    "gpu_type": lambda word: {"nodes": {"gpu": {"gpus": 1, "gpu_type": word}}},
    "group": lambda word: {"users": {"eve": {"groups": [word]}}},
}


@given(place=st.sampled_from(sorted(PLACES)), word=HOSTILE)
def test_what_becomes_a_name_on_a_machine_is_a_name(tmp_path_factory: Any, place: str, word: str) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    content = yaml.safe_load(SMALL) | PLACES[place](word)
    write(folder, yaml.safe_dump(content))
    with pytest.raises(ConfigError, match=r"mine\.yaml line \d+: "):
        catalog.load("mine", folder)


@given(st.text(string.printable, max_size=60))
def test_no_text_is_more_than_an_explained_error(tmp_path_factory: Any, text: str) -> None:
    folder = tmp_path_factory.mktemp("any")
    write(folder, SMALL + text)
    entry = catalog.find("mine", folder)
    problem = catalog.problem_of(entry)
    assert problem is None or isinstance(problem, ConfigError)


# -- nodes that come and go ---------------------------------------------------------------------------------------

SPOTS = """
provider: container
nodes:
  gpu: {min: 1, max: 8, cpus: 4, mem_gb: 2}
  cpu: {count: 2, cpus: 4, mem_gb: 2}
partitions:
  spot: {nodes: gpu, fallback: safe, max_preemptions: 2}
  safe: {nodes: cpu}
idle: {after_min: 30, do: stop, harvest_before_stop: laptop}
"""


def test_nodes_that_come_and_go_are_counted_from_the_least(tmp_path: Path) -> None:
    found = load(tmp_path, SPOTS)
    assert (found.nodes["gpu"].count, found.nodes["gpu"].is_elastic, found.nodes["cpu"].is_elastic) == (1, True, False)
    assert found.is_elastic
    assert Definition.model_validate(found.model_dump(mode="json")) == found


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("{min: 1, max: 8,", "{min: 1,", "a min without a max above it"),
        ("{min: 1, max: 8,", "{min: 9, max: 8,", "has a min of 9, above its max of 8"),
        ("{min: 1, max: 8,", "{min: -1, max: 8,", "`nodes.gpu.min` should be"),
        ("idle:", "slurm: {SuspendTime: soon}\nidle:", "`slurm.SuspendTime` has to be a number of seconds, got `soon`"),
        ("{min: 1, max: 8,", "{min: 1, max: 8, count: 3,", "has a count, which is for nodes that stay"),
        ("{count: 2, cpus: 4, mem_gb: 2}", "{count: 2, cpus: 4}", "`nodes.cpu` has to say `cpus` and `mem_gb`"),
        ("{count: 2, cpus: 4, mem_gb: 2}", "{count: 0, cpus: 4, mem_gb: 2}", "`nodes.cpu` can never have a node"),
        ("idle:", "slurm: {PrivateData: 'jobs,usage'}\nidle:", "`slurm.PrivateData` without `cloud`"),
        ("fallback: safe", "fallback: save", "`partitions.spot.fallback` names no other partition: `save`"),
        ("fallback: safe", "fallback: spot", "names no other partition"),
        (
            "{nodes: gpu, fallback: safe, max_preemptions: 2}\n  safe: {nodes: cpu}",
            "{nodes: [gpu, cpu], fallback: safe}",
            "no other",
        ),
        ("do: stop", "do: burn", "`idle.do`"),
    ],
)
def test_what_cannot_come_and_go_is_explained(tmp_path: Path, old: str, new: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, SPOTS.replace(old, new))
    assert said in caught.value.message
    assert not (caught.value.hint or "").endswith(("are ", ": "))
