"""Parts of the node side that need no process: views, diagnoses, time limits, shares of a machine, the library."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ems.model import Resources
from ems.node import diagnosis, install, slots
from ems.node.job import Job, process_start, seconds
from ems.node.view import View

# ------------------------------------------------------------------------------------------ view


def make_code(root: Path, files: dict[str, str]) -> dict[str, list[int]]:
    manifest = {}
    for name, text in files.items():
        path = root / "code" / "s1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if text.startswith("->"):
            path.symlink_to(text[2:])
            manifest[name] = [0o120000]
        else:
            path.write_text(text)
            manifest[name] = [0o100755 if name.endswith(".sh") else 0o100644]
    return manifest


def listing(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_symlink() or not p.is_dir()}


FILES = {
    "train.py": "t",
    "a.txt": "a",
    "sub/b.py": "b",
    "sub/c.txt": "c",
    "big/1": "1",
    "big/x/2": "2",
    "l": "->sub/c.txt",
    "table.csv": "x",
}


def test_a_view_shows_the_project_and_leaves_nothing(tmp_path: Path) -> None:
    manifest = make_code(tmp_path, FILES)
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "d").write_text("d")
    view = View(str(tmp_path), "s1", manifest, ["big"], {"data/set": str(tmp_path / "set")}, "train.py")
    folder = tmp_path / "run"
    for _ in range(2):  # a second attempt finds it made
        view.make(str(folder))
    assert {name: (folder / name).read_text() for name in FILES} == {**FILES, "l": "c"}
    assert (folder / "data" / "set" / "d").read_text() == "d"
    links = {name for name in (*FILES, "big", "sub", "data/set", "data/set/d") if (folder / name).is_symlink()}
    assert links == {"l", "big"}
    assert list((folder / "sub" / "__pycache__").iterdir()) == []
    assert not (folder / "__pycache__").exists()  # only the script is there
    view.clear(str(folder))
    assert list(folder.iterdir()) == []
    assert (tmp_path / "code" / "s1" / "big" / "x" / "2").read_text() == "2"


def test_what_the_run_wrote_stays(tmp_path: Path) -> None:
    view = View(str(tmp_path), "s1", make_code(tmp_path, FILES))
    folder = tmp_path / "run"
    view.make(str(folder))
    (folder / "sub" / "new.txt").write_text("new")
    (folder / "train.py").write_text("changed")
    (folder / "a.txt").unlink()
    (folder / "a.txt").write_text("its own")
    os.unlink(folder / "sub" / "c.txt")
    os.symlink("new.txt", folder / "sub" / "c.txt")
    view.clear(str(folder))
    assert listing(folder) == {"sub/new.txt", "train.py", "a.txt", "sub/c.txt"}
    view.make(str(folder))  # and wins over the snapshot in the next attempt
    assert (folder / "a.txt").read_text() == "its own"
    assert (folder / "train.py").read_text() == "changed"
    assert (tmp_path / "code" / "s1" / "a.txt").read_text() == "a"


def test_data_hides_what_the_snapshot_has_below_it(tmp_path: Path) -> None:
    manifest = make_code(tmp_path, {"data/README": "r", "data.txt": "x"})
    (tmp_path / "there").mkdir()
    view = View(str(tmp_path), "s1", manifest, data={"data/": str(tmp_path / "there")})
    view.make(str(tmp_path / "run"))
    assert listing(tmp_path / "run") == {"data.txt"}
    assert (tmp_path / "run" / "data").is_dir()


def test_ignored_folders_take_a_runs_output_and_show_what_is_there(tmp_path: Path) -> None:
    there = tmp_path / "results"
    (there / "old").mkdir(parents=True)
    (there / "last.txt").write_text("laptop")
    (there / "old" / "large.bin").write_bytes(b"x" * 100_000)
    (there / "dangling").symlink_to("nowhere")
    many = tmp_path / "images"
    many.mkdir()
    for number in range(1001):
        (many / str(number)).touch()
    data = {"results": str(there), "images": str(many), "one.bin": str(there / "old" / "large.bin")}
    view = View(str(tmp_path), "s1", make_code(tmp_path, {"train.py": "t"}), data=data)
    folder = tmp_path / "run"
    view.make(str(folder))
    assert (folder / "images").is_symlink()
    assert (folder / "one.bin").stat().st_size == (folder / "results" / "old" / "large.bin").stat().st_size == 100_000
    (folder / "results" / "last.txt").write_text("run")
    (folder / "results" / "old" / "new.txt").write_text("new")
    view.clear(str(folder))
    assert listing(folder) == {"results/last.txt", "results/old/new.txt"}
    assert (there / "last.txt").read_text() == "laptop"
    assert not (there / "old" / "new.txt").exists()


def test_views_of_one_plan_share_their_links(tmp_path: Path) -> None:
    large = "x" * 100_000  # small files are copied
    view = View(str(tmp_path), "s1", make_code(tmp_path, {**FILES, "table.bin": large}))
    for run in "12":
        view.make(str(tmp_path / run))
    first, second = ((tmp_path / run / "table.bin").lstat() for run in "12")
    assert first.st_ino == second.st_ino
    view.clear(str(tmp_path / "1"))
    assert (tmp_path / "2" / "table.bin").read_text() == large


# ------------------------------------------------------------------------------------------ diagnosis

CUDA = """\
epoch 1
Traceback (most recent call last):
  File "/r/files/train.py", line 41, in <module>
    main()
  File "/r/files/src/model.py", line 7, in main
    x = layer(x)
        ^^^^^^^^
  File "/venv/torch/nn.py", line 99, in forward
    return f(x)
torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.
GPU 0 has a total capacity of 8 GiB
"""


def test_the_innermost_line_of_the_users_own_code_is_named() -> None:
    error = diagnosis.last_error(CUDA, ["/r/files"])
    assert error is not None
    assert (error["type"], error["where"]) == ("OutOfMemoryError", "src/model.py:7")
    assert error["traceback"].startswith("Traceback")
    assert diagnosis.reason(1, "", error, CUDA) == "CUDA out of memory (src/model.py:7)"
    assert diagnosis.last_error(CUDA, [])["where"] == "nn.py:99"  # type: ignore[index]


def test_the_last_of_chained_tracebacks_counts() -> None:
    text = CUDA + "\nDuring handling of the above exception, another exception occurred:\n\n" + CUDA.replace(
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.", "pkg.errors.BadThing"
    )  # fmt: skip
    error = diagnosis.last_error(text, ["/r/files"])
    assert diagnosis.reason(1, "", error, text) == "BadThing (src/model.py:7)"


@given(st.text())
def test_no_output_breaks_the_diagnosis(text: str) -> None:
    for output in (text, diagnosis._TRACEBACK + text, CUDA + text, CUDA[:60] + text, text + "SyntaxError: x"):
        error = diagnosis.last_error(output, ["/r/files"])
        said = diagnosis.reason(1, "", error, output)
        assert said
        assert len(said) < 1000


def test_the_tail_of_a_file_begins_where_the_attempt_did(tmp_path: Path) -> None:
    path = tmp_path / "stderr.log"
    path.write_bytes(b"before" + b"\xff" + b"after")
    assert diagnosis.tail(str(path), 7) == "after"
    assert diagnosis.tail(str(path), 6) == "\ufffdafter"
    path.write_bytes(b"x" * 200_000)
    assert len(diagnosis.tail(str(path))) == 65536
    assert diagnosis.tail(str(tmp_path / "missing")) == ""


# ------------------------------------------------------------------------------------------ job


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None), ("UNLIMITED", None), ("90", 5400), ("0:01", 1), ("1:30:00", 5400), ("2-12", 216000),
        ("2-12:30", 217800), ("1-0:0:05", 86405), ("1:30", 90),
    ],
)  # fmt: skip
def test_time_limits_are_slurms(text: str | None, expected: float | None) -> None:
    assert seconds(text) == expected


def test_a_job_is_named_as_slurm_names_it() -> None:
    assert Job({"SLURM_JOB_ID": "7"}).name == "7"
    array = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_RESTART_COUNT": "2"}
    assert (Job(array).name, Job(array).restart) == ("7_3", 2)
    assert Job(array, here=True).name == f"here-{os.getpid()}"
    assert Job({}).pid_start == process_start(os.getpid()) > 0
    assert process_start(2**22 + 1) == 0


# ------------------------------------------------------------------------------------------ slots


def machine(folder: Path, gpus: list[str], per_run: int = 1, cores: int = 1, workers: int = 1) -> slots.Machine:
    return slots.Machine(gpus, per_run, cores, workers, str(folder))


def test_a_gpu_is_given_once(tmp_path: Path) -> None:
    first, second = (machine(tmp_path, ["0", "1"], workers=99) for _ in range(2))
    one, two = first.take(), second.take()
    assert one is not None
    assert two is not None
    assert {one.gpus, two.gpus} == {("0",), ("1",)}
    assert first.take() is second.take() is None
    first.give_back(one)
    again = second.take()
    assert again
    assert again.gpus == one.gpus


def test_a_run_gets_all_its_gpus_or_none(tmp_path: Path) -> None:
    first, second = machine(tmp_path, ["0", "1", "2"], 2, workers=99), machine(tmp_path, ["0", "1", "2"], workers=99)
    assert second.take()
    pair = first.take()
    assert pair
    assert pair.gpus == ("1", "2")
    assert first.take() is None
    first.give_back(pair)
    assert second.take()  # nothing stayed locked


def test_without_a_safe_folder_nothing_is_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link = tmp_path / "link"
    (tmp_path / "real").mkdir()
    link.symlink_to(tmp_path / "real")
    monkeypatch.setenv("EMS_SLOTS", str(link))
    assert slots.lock_folder() is None
    unlocked = slots.Machine(["0"], 1, 1, 1, None)
    share = unlocked.take()
    assert share
    assert (share.gpus, share.inherit) == (("0",), ())
    assert unlocked.take() is None


@pytest.mark.parametrize(
    ("gpus", "workers", "shares"),
    [
        ("", 2, [None, None]), ("0,1", 1, [None]), ("0,1", 2, [("0",), ("1",)]),
        ("0,1,2,3", 2, [("0", "1"), ("2", "3")]),
        ("5", 3, [("5",)] * 3),
    ],
)  # fmt: skip
def test_the_gpus_of_a_job_are_dealt_out(gpus: str, workers: int, shares: list[tuple[str, ...] | None]) -> None:
    allotment = slots.Allotment([gpu for gpu in gpus.split(",") if gpu], workers)
    taken = [allotment.take() for _ in shares]
    assert [share and share.gpus for share in taken] == shares
    assert allotment.take() is None


@pytest.mark.parametrize(
    "resources", [{}, {"gres": "gpu:2"}, {"gres": "gres:gpu:a100:2,disk:1"}, {"gpus": "a100:3"}, {"gpus": "2"}]
)
def test_gpus_are_counted_as_the_model_counts_them(resources: dict[str, str]) -> None:
    assert slots.gpus_per_run(resources) == Resources(**resources).gpus_per_run


# ------------------------------------------------------------------------------------------ install


def test_the_library_is_made_once_whole_and_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lib = Path(install.install_lib(tmp_path))
    assert {"__init__.py", "version.py"} < {p.name for p in (lib / "ems").iterdir()}
    assert (lib / "ems" / "node" / "worker.py").exists()
    before = (lib / "ems" / "version.py").stat()
    assert install.install_lib(tmp_path) == str(lib)
    assert (lib / "ems" / "version.py").stat() == before
    assert [p.name for p in (tmp_path / "lib").iterdir()] == [lib.name]
    files = install._files()
    monkeypatch.setattr(install, "_files", lambda: {**files, "ems/version.py": b"x"})
    assert install.install_lib(tmp_path) != str(lib)


def test_an_unwritable_root_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "lib").write_text("a file")
    with pytest.raises(OSError, match="lib"):
        install.install_lib(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["lib"]
