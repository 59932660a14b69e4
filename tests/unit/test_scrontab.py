"""Entries of ems in a scrontab; the command is a stand-in, since Debian 12 has none."""

from __future__ import annotations

from pathlib import Path

import pytest

from ems.errors import ExecutorError
from ems.executor import scrontab

STAND_IN = """#!/bin/sh
# as SLURM's: -l lists, and fails where there is none; a file takes the place of all that was there
[ -z "$DOWN" ] || [ "$1" != -l ] || { echo "scrontab: fatal: slurm_request_crontab failed: $DOWN" >&2; exit 1; }
if [ "$1" = -l ]; then
    [ -e "$TABLE" ] || { echo "no crontab for $USER" >&2; exit 1; }
    cat "$TABLE"
else
    cat "$1" > "$TABLE"
fi
"""
SCONTROL = '#!/bin/sh\necho "ScronParameters         = $SCRON"\n'


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, text in (("scrontab", STAND_IN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("TABLE", str(tmp_path / "table"))
    monkeypatch.setenv("SCRON", "enable")
    return tmp_path / "table"


def test_an_entry_is_added_once_and_taken_out_again(table: Path) -> None:
    table.write_text("#SCRON -p cpu\n0 1 * * * backup\n")
    for path in ("/a b", "/c"):
        assert scrontab.add("ems-tune-1", ["--partition=cpu"], ["python", path])
    assert table.read_text().splitlines() == [
        "#SCRON -p cpu",
        "0 1 * * * backup",
        "# begin of ems-tune-1, by ems",
        "#SCRON --partition=cpu",
        "*/15 * * * * python /c",
        "# end of ems-tune-1",
    ]
    assert scrontab.add("ems-tune-2", [], ["it's"])
    scrontab.remove("ems-tune-1")
    assert "ems-tune-1" not in table.read_text()
    assert """*/15 * * * * 'it'"'"'s'""" in table.read_text()
    scrontab.remove("ems-tune-2")
    assert table.read_text() == "#SCRON -p cpu\n0 1 * * * backup\n"


def test_the_first_entry_needs_no_table(table: Path) -> None:
    assert scrontab.add("ems-tune-1", [], ["true"])
    scrontab.remove("ems-tune-1")
    assert table.read_text().strip() == ""


def test_entries_that_cannot_be_read_are_not_written_over(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table.write_text("0 1 * * * backup\n")
    monkeypatch.setenv("DOWN", "Unable to contact slurm controller")
    for change in (lambda: scrontab.add("ems-tune-1", [], ["true"]), lambda: scrontab.remove("ems-tune-1")):
        with pytest.raises(ExecutorError, match="cannot be read: slurm_request_crontab failed"):
            change()
    assert table.read_text() == "0 1 * * * backup\n"


def test_it_is_there_only_where_the_site_lets_users(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scrontab.is_available()
    monkeypatch.setenv("SCRON", "(null)")
    assert not scrontab.is_available()
    (table.parent / "scrontab").unlink()
    assert not scrontab.is_available()
