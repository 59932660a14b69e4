"""Results that are copied to a bucket before a cluster deletes itself: by rclone, to a folder and to moto's S3."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import boto3
import pytest
from moto.server import ThreadedMotoServer

from ems.cluster.definition import Idle
from ems.cluster.elastic import safety

if shutil.which("rclone") is None:
    assert os.environ.get("EMS_REQUIRE") is None, "there is no rclone"
    pytest.skip("there is no rclone", allow_module_level=True)


@pytest.fixture
def homes(tmp_path: Path) -> Path:
    """The homes of a cluster with a root, as runs leave it."""
    root = tmp_path / "home" / "ems" / "ems"
    for name, content in {
        "experiments/7f3a9c21/spec.json": "{}",
        "experiments/7f3a9c21/runs/0/metrics.jsonl": '{"acc": 1}\n',
        "experiments/7f3a9c21/runs/0/files/out/model $(x) 'ü'.pt": "weights",
        "experiments/7f3a9c21/runs/0/checkpoint/epoch": "9",
        "snapshots.git/HEAD": "ref: refs/heads/main",
        "code/5f/train.py": "can be made again",
        "data/images/1.png": "is not a result",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)
    (root / "experiments/7f3a9c21/data").symlink_to("/etc/shadow")
    return tmp_path / "home"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A bucket `lab`, let into by the environment as by an instance's role."""
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "AKIATESTING", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_REGION": "eu-central-1"}
    own = {"RCLONE_S3_ENDPOINT": f"http://{host}:{port}", "RCLONE_S3_PROVIDER": "Other", "RCLONE_RETRIES": "1"}
    for name, value in {**keys, **own}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)  # rclone's S3 does not take one
    client = boto3.client("s3", endpoint_url=f"http://{host}:{port}", region_name="eu-central-1")
    client.create_bucket(Bucket="lab", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"})
    yield client
    server.stop()


def fleet(homes: Path, where: str) -> Any:
    """What of a fleet counts here."""
    definition = SimpleNamespace(
        idle=Idle(do="stop", harvest_before_stop=where), provider=SimpleNamespace(region="eu-central-1")
    )
    return cast("Any", SimpleNamespace(
        definition=definition, name="demo", record=SimpleNamespace(incarnation="0123456789abcdef"),
        paths=SimpleNamespace(homes=homes),
    ))  # fmt: skip


def test_results_go_to_a_bucket_and_are_compared(homes: Path, s3: Any) -> None:
    assert safety.lacks(fleet(homes, "s3://lab/runs")) == ""
    there = {each["Key"] for each in s3.list_objects_v2(Bucket="lab")["Contents"]}
    place = "runs/demo-01234567/ems/ems/"
    assert {key.removeprefix(place) for key in there} == {
        "experiments/7f3a9c21/spec.json",
        "experiments/7f3a9c21/runs/0/metrics.jsonl",
        "experiments/7f3a9c21/runs/0/files/out/model $(x) 'ü'.pt",
        "experiments/7f3a9c21/runs/0/checkpoint/epoch",
        "experiments/7f3a9c21/data.rclonelink",  # not what it leads to
        "snapshots.git/HEAD",
    }
    assert (
        s3.get_object(Bucket="lab", Key=f"{place}experiments/7f3a9c21/data.rclonelink")["Body"].read() == b"/etc/shadow"
    )
    said = safety.lacks(fleet(homes, "s3://another/runs"))
    assert "is not safe in :s3:another/runs" in said
    assert "NoSuchBucket" in said


def test_what_changes_is_copied_again_and_what_cannot_be_is_said(homes: Path, tmp_path: Path) -> None:
    place, root = str(tmp_path / "there"), homes / "ems" / "ems"
    assert safety.copy(root, place, {}) == ""
    metrics = root / "experiments/7f3a9c21/runs/0/metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"acc": 2}\n')
    assert safety.copy(root, place, {}) == ""
    assert Path(place, metrics.relative_to(root)).read_text() == metrics.read_text()
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    assert "is not safe in" in safety.copy(root, str(blocked), {})


def test_copying_is_broken_off_for_who_needs_the_cluster(
    homes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safety, "_ASK_S", 0.3)
    root, place = homes / "ems" / "ems", tmp_path / "there"
    (root / "experiments/7f3a9c21/runs/0/files/out/large.pt").write_bytes(b"0" * 2**22)
    asked = iter([False, True])
    said = safety.copy(root, str(place), {"RCLONE_BWLIMIT": "1k"}, lambda: next(asked))
    assert "somebody needs the cluster again" in said
    assert list(asked) == []
