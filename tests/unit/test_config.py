"""Settings: which layer wins, where a value came from, and what is said of a wrong file."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ems import config
from ems.errors import ConfigError
from ems.model import PassAs


def write(project: Path, text: str) -> Path:
    (project / "ems.yaml").write_text(text)
    return project


def write_user(text: str) -> None:
    path = config.user_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_defaults_where_nobody_said_anything(tmp_path: Path) -> None:
    settings = config.load(tmp_path)
    assert (settings.on, settings.root, settings.data, settings.pass_as) == (None, None, None, None)
    assert (settings.grace_s, settings.max_requeues, settings.max_file_mb) == (60, 3, 50.0)
    assert set(settings.origins.values()) == {"default"}


def test_flag_wins_over_project_wins_over_user(tmp_path: Path) -> None:
    write_user("resources: {mem: 1G, time: 10, partition: cpu}\nseed: 7\n")
    write(tmp_path, "resources: {mem: 2G, time: 20}\n")
    settings = config.load(tmp_path, flags={"resources.mem": "3G", "resources.time": None})
    assert (settings.resources.mem, settings.resources.time, settings.resources.partition) == ("3G", "20", "cpu")
    assert settings.seed == 7
    assert settings.origins["resources.mem"] == "flag"
    assert settings.origins["resources.time"] == "ems.yaml"
    assert settings.origins["seed"] == "~/.config/ems/config.yaml"


def test_a_targets_section_counts_for_that_target_only(tmp_path: Path) -> None:
    write(tmp_path, "on: slurm\npython: python3\ntargets:\n  slurm:\n    python: /opt/py\n    resources: {qos: long}\n")
    there, here = config.load(tmp_path), config.load(tmp_path, on="here")
    assert (there.python, there.resources.qos, there.origins["python"]) == (
        "/opt/py",
        "long",
        "ems.yaml: targets.slurm",
    )
    assert (here.python, here.resources.qos, here.origins["on"]) == ("python3", None, "flag")
    assert here.targets == ("slurm",)


def test_scalars_are_those_people_mean(tmp_path: Path) -> None:
    """YAML 1.1 reads `on` as true, `2:00:00` as 7200 and `no` as false."""
    write(
        tmp_path,
        "on: here\nresources:\n  time: 2:00:00\n  partition: no\n  gpus: 2\n  mem: 0x10\n  account: 2024-05-01\n",
    )
    settings = config.load(tmp_path)
    assert settings.on == "here"
    assert (settings.resources.time, settings.resources.partition) == ("2:00:00", "no")
    assert (settings.resources.gpus, settings.resources.mem, settings.resources.account) == ("2", "0x10", "2024-05-01")


def test_lists_may_be_written_as_one_text(tmp_path: Path) -> None:
    settings = config.load(write(tmp_path, "setup: module load cuda\ndata: [data, big/set]\npass_as: hydra\n"))
    assert settings.setup == ("module load cuda",)
    assert settings.data == ("data", "big/set")
    assert settings.pass_as is PassAs.HYDRA


def test_null_unsets_what_a_lower_layer_said(tmp_path: Path) -> None:
    write_user("resources: {partition: gpu}\nenv: auto\n")
    settings = config.load(write(tmp_path, "resources: {partition: null}\nenv: none\n"))
    assert settings.resources.partition is None
    assert settings.env is None
    assert settings.origins["resources.partition"] == "ems.yaml"


def test_root_of_the_projects_file_is_relative_to_the_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch/me")
    assert config.load(write(tmp_path, "root: out\n")).root == tmp_path / "out"
    assert config.load(write(tmp_path, "root: $SCRATCH/ems\n")).root == Path("/scratch/me/ems")
    assert config.load(write(tmp_path, "root: ~/ems\n")).root == Path.home() / "ems"


def test_items_show_each_value_with_its_origin(tmp_path: Path) -> None:
    rows = {key: (value, origin) for key, value, origin in config.load(write(tmp_path, "pack: 4\n")).items()}
    assert rows["pack"] == (4, "ems.yaml")
    assert rows["resources.gres"] == (None, "default")
    assert "targets" not in rows


def test_a_file_may_merge_one_section_into_another(tmp_path: Path) -> None:
    text = "resources: &gpu {partition: gpu}\ntargets:\n  lab: {resources: {<<: *gpu, mem: 1G}}\n"
    lab = config.load(write(tmp_path, text), on="lab").resources
    assert (lab.partition, lab.mem) == ("gpu", "1G")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (
            "seed: 1\nresources:\n  gress: gpu:1\n",
            "ems.yaml line 3: unknown key `resources.gress`",
            "did you mean `gres`?",
        ),
        ("sed: 1\n", "ems.yaml line 1: unknown key `sed`", "did you mean `seed`?"),
        ("xyzzy: 1\n", "unknown key `xyzzy`", "known keys: root"),
        ("targets:\n  gce:\n    pyton: x\n", "line 3: unknown key `targets.gce.pyton`", "did you mean `python`?"),
        ("workers: 0\n", "`workers` should be greater than or equal to 1, got 0", ""),
        ("workers: many\n", "`workers` should be a valid integer", ""),
        ("pass_as: flag\n", "`pass_as` should be 'flags', 'hydra'", ""),
        ("data: [ok, ../up]\n", "line 1: `data` must be a path inside the project, got '../up'", ""),
        ("data:\n- ok\n- /abs\n", "line 3: `data` must be a path inside the project, got '/abs'", ""),
        ("log_patterns: 'acc=(.*)'\n", "`log_patterns` names no metric", ""),
        ("root: $NOT_SET/ems\n", "`root` names $NOT_SET, which is not set here", "write a path in full"),
        ("root: /a/${NOT_SET}/ems\n", "`root` names ${NOT_SET}, which", ""),
        ("root: ~no_such_user/ems\n", "`root` names ~no_such_user, which", ""),
        ("log_patterns: '(acc'\n", "`log_patterns` is not a regular expression", ""),
        ("seed: 1\nseed: 2\n", "line 2: the key `seed` stands twice", ""),
        ("a: [1\n", "ems.yaml line 2: expected", ""),
        ("- a\n", "ems.yaml is no mapping", "with the keys of a settings file"),
    ],
)
def test_a_wrong_file_is_named_with_line_and_key(tmp_path: Path, text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config.load(write(tmp_path, text))
    assert message in raised.value.message
    assert hint in raised.value.hint


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    assert set(config.load(write(tmp_path, "# nothing yet\n")).origins.values()) == {"default"}


def test_an_unreadable_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "ems.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        config.load(tmp_path)


@given(st.text(max_size=200))
def test_any_text_gives_settings_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.mktemp("any")
    (folder / "ems.yaml").write_text(text, encoding="utf-8", errors="replace")
    with contextlib.suppress(ConfigError):
        assert config.load(folder).grace_s >= 0
