"""Freezing a project by real git: what is in it, what is not, and that the user's repository does not notice."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ems import snapshot
from ems.errors import SnapshotError
from ems.node import checkout
from ems.snapshot.fastimport import write_commit
from ems.snapshot.project import files


def git(folder: Path, *args: str) -> str:
    words = ["git", "-c", "user.name=t", "-c", "user.email=t@example.org", "-c", "protocol.file.allow=always", *args]
    return subprocess.run(words, cwd=folder, check=True, capture_output=True, text=True).stdout


def write(project: Path, files: dict[str, str | bytes]) -> None:
    for name, content in files.items():
        path = project / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def repository(project: Path) -> Path:
    return project / ".ems" / "snapshots.git"


def take(project: Path, **options: float) -> snapshot.Snapshot:
    return snapshot.take(project, repository(project), **options)


def frozen(project: Path, taken: snapshot.Snapshot) -> dict[str, bytes]:
    """Path -> content of a snapshot; of a symlink what it says."""
    entries = checkout.tree(repository(project), taken.id)
    return {path: content for (path, _, _), content in checkout._contents(repository(project), entries)}


@pytest.fixture
def committed(project: Path) -> Path:
    write(project, {"train.py": "print(1)\n", "lib/model.py": "x = 1\n", "readme": "hello\n"})
    (project / ".gitignore").write_text("*.pt\ndata/\n")
    git(project, "add", ".")
    git(project, "commit", "-qm", "first")
    return project


def test_freezes_uncommitted_and_untracked_but_not_ignored_files(committed: Path) -> None:
    write(committed, {"train.py": "print(2)\n", "new.py": "y = 2\n", "model": "m"})
    (committed / "weights.pt").write_text("large")
    (committed / "readme").unlink()
    taken = take(committed)
    assert frozen(committed, taken) == {
        ".gitignore": b"*.pt\ndata/\n",
        "lib/model.py": b"x = 1\n",
        "model": b"m",
        "new.py": b"y = 2\n",
        "train.py": b"print(2)\n",
    }
    assert taken.n_files == 5
    assert taken.changed_files == 4  # train.py, readme, new.py, model
    assert taken.user_commit == git(committed, "rev-parse", "HEAD").strip()


def test_a_clean_tree_has_no_changed_files(committed: Path) -> None:
    assert take(committed).changed_files == 0


def test_the_same_content_is_the_same_snapshot(committed: Path, tmp_path: Path) -> None:
    first = take(committed)
    again = take(committed)
    assert first.is_new
    assert (again.id, again.is_new) == (first.id, False)
    write(committed, {"train.py": "print(3)\n"})
    other = take(committed)
    assert other.id != first.id
    assert other.is_new
    write(committed, {"train.py": "print(1)\n"})
    assert take(committed).id == first.id
    elsewhere = tmp_path / "elsewhere"  # another place, no git, no cache, another time
    shutil.copytree(committed, elsewhere, ignore=shutil.ignore_patterns(".git", ".ems"))
    copied = snapshot.take(elsewhere, tmp_path / "root" / "snapshots.git")
    assert (copied.id, copied.is_new, copied.user_commit) == (first.id, True, None)


def test_an_edit_of_the_same_size_in_the_same_instant_is_seen(committed: Path) -> None:
    seen = set()
    for digit in range(8):
        path = committed / "train.py"
        path.write_text(f"print({digit})\n")
        os.utime(path, ns=(10**18, 10**18))
        seen.add(take(committed).id)
    assert len(seen) == 8


def test_a_file_changed_just_now_is_read_again_next_time(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_RACY_NS", 3600 * 10**9)  # however slow the machine is
    os.utime(committed / "readme", ns=(10**18, 10**18))  # its ctime is of now all the same
    take(committed)
    (cache,) = (repository(committed) / "ems").glob("*.json")
    assert json.loads(cache.read_bytes())["files"] == {}


def test_cached_files_are_not_read_again(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in committed.rglob("*"):
        if ".git" not in path.parts:
            os.utime(path, ns=(10**18, 10**18), follow_symlinks=False)
    monkeypatch.setattr(snapshot, "_RACY_NS", -60_000_000_000)  # the files are as good as a minute old
    first = take(committed)
    monkeypatch.setattr(snapshot, "write_commit", lambda *_: pytest.fail("a file was read again"))
    assert take(committed).id == first.id


def test_deleting_a_file_is_a_new_snapshot_though_all_others_are_cached(
    committed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(snapshot, "_RACY_NS", -60_000_000_000)
    first = take(committed)
    (committed / "readme").unlink()
    assert "readme" not in frozen(committed, take(committed))
    assert take(committed).id != first.id


def test_a_repository_that_lost_objects_is_filled_again(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshot, "_RACY_NS", -60_000_000_000)
    first = take(committed)
    shutil.rmtree(repository(committed) / "objects")
    (repository(committed) / "objects").mkdir()
    write(committed, {"new.py": "1\n"})
    assert "train.py" in frozen(committed, take(committed))
    (committed / "new.py").unlink()
    assert take(committed).id == first.id


def _footprint(project: Path) -> dict[str, tuple[int, int, bytes]]:
    """Everything below .git: modification time, inode, content."""
    paths = (path for path in sorted((project / ".git").rglob("*")) if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_ino, path.read_bytes()) for path in paths}


def test_index_head_stash_and_hooks_of_the_user_stay_untouched(committed: Path) -> None:
    trap = committed / "trap"
    for hook in ("pre-commit", "post-commit", "post-index-change", "reference-transaction", "post-checkout", "monitor"):
        path = committed / ".git" / "hooks" / hook
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\ntouch {trap}\n")
        path.chmod(0o755)
    write(committed, {"train.py": "stashed\n"})
    git(committed, "stash")
    write(committed, {"train.py": "staged\n", "new.py": "staged too\n"})
    git(committed, "add", ".")
    trap.unlink(missing_ok=True)
    git(committed, "config", "core.fsmonitor", str(committed / ".git" / "hooks" / "monitor"))
    git(committed, "config", "core.untrackedCache", "true")
    write(committed, {"train.py": "in the work tree only\n"})
    (committed / "readme").touch()  # its stat differs from the index: git would like to refresh that
    before = _footprint(committed)
    taken = take(committed)
    snapshot.ignored_top_level(committed)
    assert _footprint(committed) == before
    assert not trap.exists()
    assert frozen(committed, taken)["train.py"] == b"in the work tree only\n"


def test_the_environment_of_a_surrounding_git_is_not_used(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = take(committed).id
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_INDEX_FILE", "/nowhere/index")
    monkeypatch.setenv("GIT_WORK_TREE", "/")
    assert take(committed).id == before


def test_no_filter_or_line_ending_rule_takes_part(committed: Path) -> None:
    git(committed, "config", "filter.loud.clean", "tr a-z A-Z")
    git(committed, "config", "core.autocrlf", "input")
    (committed / ".gitattributes").write_text("*.txt text eol=lf\n*.py filter=loud\n*.id ident export-subst\n")
    write(committed, {"train.py": "print(1)  # quiet\n"})
    contents = {
        "dos.txt": b"a\r\nb\r\n",
        "mixed.txt": b"a\nb\r\n",
        "x.id": b"$Id$ $Format:%H$\n",
        "latin": b"\xff\0\xfe",
    }
    for name, content in contents.items():
        (committed / name).write_bytes(content)
    taken = take(committed)
    assert frozen(committed, taken).items() >= {**contents, "train.py": b"print(1)  # quiet\n"}.items()
    made = snapshot.checkout(committed / ".ems", taken.id)
    assert {name: (made / name).read_bytes() for name in contents} == contents


ODD_NAMES = [
    "with space", " leading", "trailing ", "-dash", "--", "new\nline", "tab\there", 'quo"te', "back\\slash", "it's",
    "$(touch pwned)", "*", "[a]", ":colon", ":(top)magic", "ünï", "日本", "\udcff\udcfe", "a" * 255, "git~1", ".Git",
    ".gitmodules ", "HEAD", "#hash", "!bang", "~home", ".hidden", "..dots",
]  # fmt: skip


@pytest.mark.parametrize("with_git", [True, False])
def test_odd_names_survive(project: Path, with_git: bool) -> None:
    if not with_git:
        shutil.rmtree(project / ".git")
    for number, name in enumerate(ODD_NAMES):
        (project / name).write_text(str(number))
        (project / "dir of" / name).mkdir(parents=True)
        (project / "dir of" / name / name).write_text(str(number))
    taken = take(project)
    found = frozen(project, taken)
    assert {name: found[name] for name in ODD_NAMES} == {name: str(n).encode() for n, name in enumerate(ODD_NAMES)}
    assert len(found) == 2 * len(ODD_NAMES)
    made = snapshot.checkout(project / ".ems", taken.id)
    assert sorted(os.listdir(made)) == sorted([*ODD_NAMES, "dir of"])
    checkout.verify(project / ".ems", taken.id)


def test_links_and_executable_bits_survive(committed: Path, tmp_path: Path) -> None:
    outside = tmp_path / "shared"
    outside.mkdir()
    (outside / "set.csv").write_text("1\n")
    (committed / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (committed / "run.sh").chmod(0o755)
    (committed / "inside").symlink_to("lib/model.py")
    (committed / "lib" / "up").symlink_to("../train.py")
    (committed / "folder").symlink_to("lib")
    (committed / "absolute").symlink_to(outside)
    (committed / "lib" / "leads_out").symlink_to("../../shared")
    (committed / "broken").symlink_to("nothing")
    made = snapshot.checkout(committed / ".ems", take(committed).id)
    assert subprocess.run([made / "run.sh"], capture_output=True, text=True, check=True).stdout == "ran\n"
    assert not os.access(made / "train.py", os.X_OK)
    links = {name: os.readlink(made / name) for name in ("inside", "lib/up", "folder", "absolute", "broken")}
    assert links == {
        "inside": "lib/model.py",
        "lib/up": "../train.py",
        "folder": "lib",
        "absolute": str(outside),
        "broken": "nothing",
    }
    assert (made / "lib" / "leads_out" / "set.csv").read_text() == "1\n"


def test_special_files_are_left_out(committed: Path) -> None:
    os.mkfifo(committed / "pipe")
    assert "pipe" not in frozen(committed, take(committed))
    (committed / "readme").unlink()
    os.mkfifo(committed / "readme")  # tracked, but a pipe now: reading it would never end
    assert "readme" not in frozen(committed, take(committed))


def test_submodules_and_nested_repositories_give_their_files(committed: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    git(library, "init", "-q")
    write(library, {"inner.py": "v = 1\n", "junk": "x"})
    (library / ".gitignore").write_text("junk\n")
    git(library, "add", ".")
    git(library, "commit", "-qm", "library")
    git(committed, "submodule", "add", "-q", str(library), "third/library")
    shutil.copytree(library, committed / "nested")  # a repository that the outer one does not know
    write(committed / "third" / "library", {"inner.py": "v = 2  # dirty\n", "extra.py": "new\n", "junk": "ignored"})
    found = frozen(committed, take(committed))
    assert found["third/library/inner.py"] == b"v = 2  # dirty\n"
    assert found["third/library/extra.py"] == b"new\n"
    assert found["nested/inner.py"] == b"v = 1\n"
    assert not [path for path in found if "junk" in path or "/.git/" in path]


def test_a_submodule_that_was_not_fetched_is_empty(committed: Path, tmp_path: Path) -> None:
    library = tmp_path / "library"
    library.mkdir()
    git(library, "init", "-q")
    write(library, {"inner.py": "v = 1\n"})
    git(library, "add", ".")
    git(library, "commit", "-qm", "library")
    git(committed, "submodule", "add", "-q", str(library), "library")
    git(committed, "submodule", "deinit", "-q", "-f", "library")
    assert not [path for path in frozen(committed, take(committed)) if path.startswith("library/")]


def test_a_worktree_is_a_project_of_its_own(committed: Path, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    git(committed, "worktree", "add", "-q", str(tree))
    write(tree, {"train.py": "other\n"})
    assert snapshot.project_root(tree / "lib" / "model.py") == tree
    assert frozen(tree, take(tree))["train.py"] == b"other\n"


def test_caches_and_environments_are_left_out_unless_tracked(committed: Path) -> None:
    write(committed, {"__pycache__/a": "x", "lib/__pycache__/b": "x", "env/pyvenv.cfg": "x", "env/lib/torch.py": "x"})
    (committed / "node_modules").mkdir()
    (committed / "node_modules" / "kept").touch()
    git(committed, "add", "-f", "node_modules/kept")
    found = frozen(committed, take(committed))
    assert not [path for path in found if "__pycache__" in path or path.startswith("env/")]
    assert "node_modules/kept" in found


def test_a_folder_without_git_gives_everything_but_caches(project: Path) -> None:
    shutil.rmtree(project / ".git")
    write(project, {"train.py": "1\n", "data/set": "x", "lib/__pycache__/b": "x", "lib/a": "x"})
    (project / ".venv").mkdir()
    (project / ".venv" / "python").touch()
    (project / "linked").symlink_to("data")
    taken = take(project)
    assert sorted(frozen(project, taken)) == ["data/set", "lib/a", "linked", "train.py"]
    assert (taken.changed_files, taken.user_commit) == (0, None)
    assert snapshot.ignored_top_level(project) == []


def test_a_folder_without_git_that_holds_a_repository_respects_its_ignores(project: Path, tmp_path: Path) -> None:
    write(project, {"train.py": "1\n", "junk": "x"})
    (project / ".gitignore").write_text("junk\n")
    outer = tmp_path / "outer"
    outer.mkdir()
    project.rename(outer / "inner")
    write(outer, {"run.py": "1\n"})
    assert sorted(frozen(outer, take(outer))) == ["inner/.gitignore", "inner/train.py", "run.py"]
    project.mkdir()


def test_a_home_full_of_files_is_refused(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(project / ".git")
    monkeypatch.setattr("ems.snapshot.project.MAX_LOOSE_FILES", 3)
    write(project, {"a": "", "b": "", "c": "", "d": ""})
    with pytest.raises(SnapshotError, match="holds more than 3 files") as caught:
        take(project)
    assert "git init" in caught.value.hint


def test_emsignore_leaves_out_tracked_files_too(committed: Path) -> None:
    (committed / ".emsignore").write_text("# notebooks\n*.ipynb\n/lib/\n!keep.ipynb\n")
    for name in ("a.ipynb", "keep.ipynb", "sub.py"):
        (committed / name).touch()
    found = frozen(committed, take(committed))
    assert sorted(found) == [".emsignore", ".gitignore", "keep.ipynb", "readme", "sub.py", "train.py"]


def test_a_large_file_is_refused_with_a_hint(committed: Path) -> None:
    with (committed / "big.bin").open("wb") as file:
        file.truncate(50_000_001)
    with pytest.raises(SnapshotError, match=r"larger than 50 MB: big.bin \(50 MB\)") as caught:
        take(committed)
    assert "--max-file 51" in caught.value.hint
    assert ".emsignore" in caught.value.hint
    assert take(committed, max_file_mb=51).n_files == 5
    (committed / ".emsignore").write_text("big.bin\n")
    assert "big.bin" not in frozen(committed, take(committed))


def test_a_file_read_in_pieces_is_whole(committed: Path) -> None:
    content = os.urandom(1 << 20) * 17
    (committed / "large.bin").write_bytes(content)
    taken = take(committed)
    assert frozen(committed, taken)["large.bin"] == content


def test_an_unreadable_file_is_named(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take(committed)

    def refuse(self: Path, *args: object, **options: object) -> object:
        raise PermissionError(13, "Permission denied", str(self))

    found = files(committed)
    monkeypatch.setattr(Path, "open", refuse)  # root may read everything
    with pytest.raises(SnapshotError, match=r"^.gitignore cannot be read: Permission denied$"):
        write_commit(committed, repository(committed), found, {})


def test_an_empty_project_is_refused(project: Path) -> None:
    with pytest.raises(SnapshotError, match="holds no files"):
        take(project)


def test_a_broken_repository_is_an_error_in_gits_words(committed: Path) -> None:
    (committed / ".git" / "index").write_bytes(b"DIRC garbage that is long enough to be read as a header")
    with pytest.raises(SnapshotError, match=r"git cannot read .*index"):
        take(committed)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give a folder away")
def test_somebody_elses_repository_is_refused_with_gits_own_hint(committed: Path) -> None:
    os.chown(committed, 65534, 65534)
    os.chown(committed / ".git", 65534, 65534)
    with pytest.raises(SnapshotError, match="dubious ownership") as caught:
        take(committed)
    assert f"git config --global --add safe.directory {committed}" in caught.value.hint


def test_a_project_without_the_git_program_is_said(committed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(committed))
    with pytest.raises(SnapshotError, match="git is not installed"):
        take(committed)


def test_the_root_of_a_target_inside_the_project_is_no_part_of_it(committed: Path) -> None:
    root = committed / "scratch" / "root"
    first = snapshot.take(committed, root / "snapshots.git")
    (root / "experiments").mkdir()
    (root / "experiments" / "spec.json").touch()
    assert snapshot.take(committed, root / "snapshots.git").id == first.id


def test_a_project_that_is_its_own_root_does_not_freeze_what_it_grows(committed: Path) -> None:
    first = snapshot.take(committed, committed / "snapshots.git")
    for name in ("code", "views", "diffs", "removed"):
        (committed / name).mkdir()
        (committed / name / "grown.py").touch()
    assert snapshot.take(committed, committed / "snapshots.git").id == first.id


def test_a_full_disk_is_said_and_leaves_no_litter(committed: Path, small_disk: Callable[[str], Path]) -> None:
    disk = small_disk("2m")
    write(committed, {"noise": os.urandom(3_000_000)})
    with pytest.raises(SnapshotError, match=r"^git cannot write .*snapshots.git: no space left on device$"):
        snapshot.take(committed, disk / "snapshots.git")
    assert not [path for path in disk.rglob("*") if "tmp_pack" in path.name or "crash" in path.name]
    (committed / "noise").unlink()
    assert snapshot.take(committed, disk / "snapshots.git").is_new


def test_two_processes_at_once_make_one_snapshot(committed: Path) -> None:
    for number in range(300):
        (committed / f"f{number}.py").write_text(f"x = {number}\n")
    code = (
        "import sys; from pathlib import Path; from ems import snapshot; from ems.node import checkout\n"
        "p = Path(sys.argv[1]); t = snapshot.take(p, p / '.ems/snapshots.git')\n"
        "print(t.id, snapshot.checkout(p / '.ems', t.id), t.is_new)\n"
        "checkout.verify(p / '.ems', t.id)\n"
    )
    both = [
        subprocess.Popen([sys.executable, "-c", code, str(committed)], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    answers = [process.communicate(timeout=200)[0].split() for process in both]
    assert [process.returncode for process in both] == [0, 0, 0]
    assert len({tuple(answer[:2]) for answer in answers}) == 1
    assert sorted(answer[2] for answer in answers) == ["False", "False", "True"]
    assert sorted(path.name for path in (committed / ".ems" / "code").iterdir()) == [
        answers[0][0],
        answers[0][0] + ".json",
    ]
    refs = git(committed, "--git-dir", str(repository(committed)), "for-each-ref", "--format=%(refname)").split()
    assert refs == [f"refs/snapshots/{answers[0][0]}"]


def test_git_finds_nothing_wrong_and_keeps_snapshots_through_gc(committed: Path) -> None:
    taken = take(committed)
    options = ("--git-dir", str(repository(committed)))
    git(committed, *options, "gc", "-q", "--prune=now")
    git(committed, *options, "fsck", "--strict", "--full")
    assert "train.py" in frozen(committed, taken)
    assert not take(committed).is_new


def test_code_key_follows_the_script_and_all_python_files(committed: Path) -> None:
    def key(script: str = "train.py") -> str:
        return snapshot.code_key(repository(committed), take(committed).id, script)

    first = key()
    write(committed, {"readme": "other\n"})
    assert key() == first
    assert key("lib/model.py") != first
    write(committed, {"lib/model.py": "x = 2\n"})
    assert key() != first
    write(committed, {"lib/model.py": "x = 1\n"})
    assert key() == first
    (committed / "lib" / "model.py").rename(committed / "lib" / "other.py")
    assert key() != first
    with pytest.raises(SnapshotError, match=r"missing.py is not part of the snapshot"):
        key("missing.py")


def test_changes_between_two_snapshots(committed: Path) -> None:
    first = take(committed)
    write(committed, {"train.py": "print(2)\n", "new.py": "y\n"})
    (committed / "readme").unlink()
    second = take(committed)
    git_dir = repository(committed)
    assert snapshot.changed(git_dir, first.id, second.id) == (
        snapshot.Change("new.py", "added"),
        snapshot.Change("readme", "deleted"),
        snapshot.Change("train.py", "modified"),
    )
    text = snapshot.diff(git_dir, first.id, second.id)
    assert "-print(1)\n+print(2)\n" in text
    assert snapshot.diff(git_dir, first.id, second.id, paths=["new.py"]).count("diff --git") == 1
    assert snapshot.changed(git_dir, first.id, first.id) == ()
    with pytest.raises(SnapshotError):
        snapshot.changed(git_dir, first.id, "0" * 40)


def test_export_gives_a_folder_to_work_in(committed: Path, tmp_path: Path) -> None:
    taken = take(committed)
    write(committed, {"train.py": "print(9)\n"})
    target = tmp_path / "work" / "here"
    assert snapshot.export(repository(committed), taken.id, target) == taken.n_files
    assert (target / "train.py").read_text() == "print(1)\n"
    assert stat.S_IMODE((target / "train.py").stat().st_mode) & 0o200
    (target / "lib" / "new.py").touch()
    with pytest.raises(SnapshotError, match="is not empty"):
        snapshot.export(repository(committed), taken.id, target)


def test_project_root(committed: Path, tmp_path: Path) -> None:
    assert snapshot.project_root(committed / "lib" / "model.py") == committed
    assert snapshot.project_root(committed / "lib") == committed
    loose = tmp_path / "loose" / "deep"
    loose.mkdir(parents=True)
    (loose / ".git").mkdir()  # an empty folder of that name is no repository
    assert snapshot.project_root(loose / "train.py") == loose
    (tmp_path / "link").symlink_to(committed / "lib")
    assert snapshot.project_root(tmp_path / "link" / "model.py") == committed


def test_ignored_top_level_folders_are_the_default_data(committed: Path, tmp_path: Path) -> None:
    lines = [
        "data/",
        "/link",
        ".ems/",
        "build/",
        "*.pt",
        "raw/*",
        "!raw/.gitkeep",
        "*.egg-info/",
        "env/",
        "__pycache__/",
    ]
    (committed / ".gitignore").write_text("\n".join([*lines, "mixed/*.npy"]))
    for name in ("data", "build", "raw/mnist", "x.egg-info", "env", "__pycache__", "lib/__pycache__", "mixed"):
        (committed / name).mkdir(parents=True)
        (committed / name / "f").touch()
    (committed / "env" / "pyvenv.cfg").touch()
    (committed / "raw" / ".gitkeep").touch()
    (committed / "mixed" / "a.npy").touch()
    (committed / "model.pt").touch()
    (committed / "link").symlink_to(tmp_path)
    git(committed, "add", ".")
    take(committed)
    assert snapshot.ignored_top_level(committed) == ["build", "data", "link", "raw/mnist"]


def test_a_snapshot_of_many_files_takes_few_processes(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(2000):
        path = project / f"p{number % 40}" / f"m{number}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"x = {number}\n" * 20)
    started: list[Any] = []
    popen = subprocess.Popen.__init__
    monkeypatch.setattr(subprocess.Popen, "__init__", lambda *a, **kw: started.append(a[1]) or popen(*a, **kw))
    assert take(project).n_files == 2000
    assert 0 < len(started) < 20, "0.3 s on an idle core, and not by the accident of a process a file"
    packs = list((repository(project) / "objects" / "pack").glob("*.pack"))
    assert len(packs) == 1
