"""The read-only checkout of a snapshot: made whole or not at all, and any tampering is found."""

from __future__ import annotations

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ems import snapshot
from ems.errors import SnapshotError
from ems.node import checkout

FILES = {"train.py": "print(1)\n", "lib/model.py": "x = 1\n", "lib/deep/a.txt": "a\n", "empty": ""}


@pytest.fixture
def root(project: Path) -> Path:
    return project / ".ems"


@pytest.fixture
def taken(project: Path, root: Path) -> str:
    for name, content in FILES.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (project / "lib" / "link").symlink_to("model.py")
    (project / "run.sh").write_text("#!/bin/sh\n")
    (project / "run.sh").chmod(0o755)
    return snapshot.take(project, root / "snapshots.git").id


@pytest.fixture
def made(root: Path, taken: str, tick: Callable[[], None]) -> Path:
    """The checkout; whoever changes it does so at a later time."""
    path = Path(checkout.ensure(root, taken))
    tick()
    return path


def test_holds_the_files_and_nobody_may_write(made: Path) -> None:
    assert {name: (made / name).read_text() for name in FILES} == FILES
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in [made, *made.rglob("*")] if not path.is_symlink()}
    assert not [path for path, mode in modes.items() if mode & 0o222]
    assert modes[made / "run.sh"] & 0o100
    assert not modes[made / "train.py"] & 0o100


def test_the_manifest_lists_every_file(root: Path, taken: str, made: Path) -> None:
    files = checkout.manifest(root, taken)
    assert sorted(files) == sorted([*FILES, "lib/link", "run.sh"])
    mode, size, mtime_ns, ctime_ns, blob = files["train.py"]
    found = (made / "train.py").stat()
    assert [mode, size, mtime_ns, ctime_ns] == [0o100644, 9, found.st_mtime_ns, found.st_ctime_ns]
    asked = subprocess.run(["git", "hash-object", "--no-filters", made / "train.py"], capture_output=True, text=True)
    assert blob == asked.stdout.strip()
    assert files["lib/link"][0] == 0o120000
    assert files["run.sh"][0] == 0o100755


def test_it_is_made_once(root: Path, taken: str, made: Path) -> None:
    inode = made.stat().st_ino
    shutil.rmtree(root / "snapshots.git")  # what is there already needs no git
    assert checkout.ensure(root, taken) == str(made)
    assert made.stat().st_ino == inode
    checkout.verify(root, taken)


def _replace(path: Path, content: str) -> None:
    """As an editor does: another file of that name."""
    path.parent.chmod(0o755)
    path.unlink()
    path.write_text(content)


def _edit(made: Path) -> None:
    path = made / "train.py"
    times = path.stat()
    path.chmod(0o644)
    path.write_text("print(2)\n")  # the same size
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # and the old time
    path.chmod(0o444)


def _relink(made: Path) -> None:
    (made / "lib").chmod(0o755)
    (made / "lib" / "link").unlink()
    (made / "lib" / "link").symlink_to("/etc/passwd")


def _delete(made: Path) -> None:
    (made / "lib").chmod(0o755)
    (made / "lib" / "model.py").unlink()


def _delete_folder(made: Path) -> None:
    (made / "lib").chmod(0o755)
    (made / "lib" / "deep").chmod(0o755)
    shutil.rmtree(made / "lib" / "deep")


def _add(made: Path) -> None:
    made.chmod(0o755)
    (made / "numpy.py").write_text("shadows the real one\n")


def _to_folder(made: Path) -> None:
    made.chmod(0o755)
    (made / "empty").unlink()
    (made / "empty").mkdir()


TAMPERINGS: list[tuple[Callable[[Path], None], str]] = [
    (_edit, "changed: train.py"),
    (lambda made: _replace(made / "train.py", "print(3)  # longer\n"), "changed: train.py"),
    (lambda made: _replace(made / "empty", "no longer\n"), "changed: empty"),
    (lambda made: (made / "run.sh").chmod(0o444), "changed: run.sh"),
    (lambda made: (made / "lib" / "model.py").chmod(0o555), "changed: lib/model.py"),
    (_relink, "changed: lib/link"),
    (_delete, "missing: lib/model.py"),
    (_delete_folder, "missing: lib/deep/a.txt"),
    (_to_folder, "missing: empty"),
    (_add, "added: numpy.py"),
]


@pytest.mark.parametrize(("tamper", "words"), TAMPERINGS)
def test_tampering_is_found_and_named(
    root: Path, taken: str, made: Path, tamper: Callable[[Path], None], words: str
) -> None:
    checkout.verify(root, taken)
    tamper(made)
    with pytest.raises(checkout.CheckoutError, match=f"checkout was tampered with: ({words})") as caught:
        checkout.verify(root, taken)
    assert f"rm -rf {made}" in caught.value.hint


def test_the_hint_of_a_tampered_checkout_mends_it(root: Path, taken: str, made: Path) -> None:
    _edit(made)
    with pytest.raises(checkout.CheckoutError) as caught:
        checkout.verify(root, taken)
    command = caught.value.hint.split(", then")[0]
    subprocess.run(command, shell=True, check=True)
    checkout.ensure(root, taken)
    checkout.verify(root, taken)
    assert (made / "train.py").read_text() == "print(1)\n"


def test_many_tampered_files_are_counted(project: Path, root: Path) -> None:
    for number in range(9):
        (project / f"f{number}").write_text("x")
    taken = snapshot.take(project, root / "snapshots.git").id
    made = Path(checkout.ensure(root, taken))
    for number in range(9):
        _replace(made / f"f{number}", "yy")
    with pytest.raises(checkout.CheckoutError, match=r"changed: f0, f1, f2, f3, f4 and 4 more"):
        checkout.verify(root, taken)


def test_what_was_only_touched_is_fine_and_remembered(root: Path, taken: str, made: Path) -> None:
    os.utime(made / "train.py")
    (made / "lib" / "model.py").chmod(0o440)
    checkout.verify(root, taken)
    found = (made / "train.py").stat()
    assert checkout.manifest(root, taken)["train.py"][2:4] == [found.st_mtime_ns, found.st_ctime_ns]
    assert checkout.manifest(root, taken)["train.py"][4] == checkout.blob_id(b"print(1)\n")


def test_only_files_with_another_stat_are_read(
    root: Path, taken: str, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkout, "_same", lambda path, *_: pytest.fail(f"{path} was read"))
    checkout.verify(root, taken)


def test_compiled_modules_do_not_count(root: Path, taken: str, made: Path) -> None:
    made.chmod(0o755)
    (made / "__pycache__").mkdir()
    (made / "__pycache__" / "train.cpython-311.pyc").touch()
    checkout.verify(root, taken)


def test_a_missing_checkout_and_a_damaged_manifest_are_said(root: Path, taken: str, made: Path) -> None:
    with pytest.raises(checkout.CheckoutError, match="is missing"):
        checkout.verify(root, "0" * 40)
    Path(f"{made}.json").write_text('{"v": 1, "files": {"tra')
    with pytest.raises(checkout.CheckoutError, match="cannot be read"):
        checkout.verify(root, taken)


def test_an_unknown_snapshot_is_said(root: Path, taken: str) -> None:
    with pytest.raises(checkout.CheckoutError, match="git cannot read"):
        checkout.ensure(root, "1" * 40)
    assert not (root / "code" / ("1" * 40)).exists()
    with pytest.raises(SnapshotError, match="git cannot read"):
        snapshot.checkout(root, "1" * 40)


def test_a_checkout_whose_maker_died_before_the_manifest_is_adopted(root: Path, taken: str, made: Path) -> None:
    expected = checkout.manifest(root, taken)
    Path(f"{made}.json").unlink()
    checkout.ensure(root, taken)
    assert checkout.manifest(root, taken) == expected
    Path(f"{made}.json").unlink()
    _edit(made)
    with pytest.raises(checkout.CheckoutError, match=r"tampered with: changed: train.py"):
        checkout.ensure(root, taken)


def test_a_damaged_repository_is_found_while_checking_out(root: Path, taken: str) -> None:
    blob = next(blob for path, _, blob in checkout.tree(root / "snapshots.git", taken) if path == "train.py")
    loose = root / "snapshots.git" / "objects" / blob[:2] / blob[2:]
    loose.chmod(0o644)
    loose.unlink()
    with pytest.raises(checkout.CheckoutError, match=r"train.py is missing or damaged"):
        checkout.ensure(root, taken)
    assert list((root / "code").iterdir()) == []  # nothing half made stays


def test_an_unwritable_root_is_said(root: Path, taken: str) -> None:
    (root / "code").touch()  # a file where a folder is needed: not even root can write there
    with pytest.raises(checkout.CheckoutError, match="cannot write the checkout") as caught:
        checkout.ensure(root, taken)
    assert "root" in caught.value.hint


ENSURE = "import sys; from ems.node import checkout; checkout.ensure(*sys.argv[1:3]); checkout.verify(*sys.argv[1:3])"


def _big(project: Path, root: Path, n_files: int = 1500) -> str:
    for number in range(n_files):
        path = project / f"p{number % 30}" / f"m{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"x = {number}\n")
    return snapshot.take(project, root / "snapshots.git").id


def test_four_processes_at_once_make_one_checkout(project: Path, root: Path) -> None:
    taken = _big(project, root)
    command = [sys.executable, "-c", ENSURE, str(root), taken]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    assert [process.communicate(timeout=200)[1] for process in processes] == [""] * 4
    assert [process.returncode for process in processes] == [0] * 4
    assert sorted(path.name for path in (root / "code").iterdir()) == [taken, taken + ".json"]
    assert len(checkout.manifest(root, taken)) == 1500


def test_a_maker_killed_at_any_moment_leaves_nothing_that_is_used(project: Path, root: Path) -> None:
    taken = _big(project, root)
    for pause_s in (0.02, 0.05, 0.08, 0.11, 0.15, 0.2, 0.3):
        process = subprocess.Popen([sys.executable, "-c", ENSURE, str(root), taken])
        time.sleep(pause_s)  # the moment of death is the point here; any outcome is checked
        process.send_signal(signal.SIGKILL)
        process.wait()
    checkout.ensure(root, taken)
    checkout.verify(root, taken)
    assert len(checkout.manifest(root, taken)) == 1500


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be somebody else")
def test_an_ordinary_user_cannot_write_but_can_make_and_remove(project: Path, root: Path) -> None:
    taken = _big(project, root, 3)
    with tempfile.TemporaryDirectory() as open_place:  # pytest's own folders are closed to other users
        Path(open_place).chmod(0o755)
        _act_as_nobody(root, taken, Path(open_place) / "root")


def _act_as_nobody(root: Path, taken: str, theirs: Path) -> None:
    shutil.copytree(root / "snapshots.git", theirs / "snapshots.git")
    for path in (theirs, *theirs.rglob("*")):
        os.chown(path, 65534, 65534)
    code = (
        "import contextlib, hashlib, os, pathlib, shutil, subprocess, sys, tempfile; from ems.node import checkout\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)  # this Python may lie where they cannot import from\n"
        "made = pathlib.Path(checkout.ensure(*sys.argv[1:3])); checkout.verify(*sys.argv[1:3])\n"
        "script = made / 'p0/m0.py'\n"
        "for act in (lambda: script.write_text('x'), script.unlink, (made / 'new').touch):\n"
        "    try: act()\n"
        "    except PermissionError: print('refused')\n"
    )
    result = subprocess.run([sys.executable, "-c", code, str(theirs), taken], capture_output=True, text=True)
    assert result.stdout.split("\n")[:-1] == ["refused"] * 3, result.stderr


def test_verifying_needs_neither_git_nor_site_packages(root: Path, taken: str, made: Path) -> None:
    package = Path(checkout.__file__).parents[2]
    code = (
        f"import sys; sys.path.insert(0, {str(package)!r}); from ems.node import checkout\n"
        f"checkout.verify({str(root)!r}, {taken!r})\n"
        "print(json.dumps(sorted(set(sys.modules) & {'subprocess', 'tempfile', 'hashlib', 'typing'})))\n"
    )
    result = subprocess.run(
        [sys.executable, "-I", "-S", "-c", "import json\n" + code],
        env={"PATH": "/nowhere"},
        capture_output=True,
        text=True,
    )
    assert json.loads(result.stdout) == [], result.stderr
