"""The running ems as a wheel: whole, the same each time, and able to pack itself again where it was installed."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from ems import wheel
from ems.remote import wire


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel.pack(tmp_path_factory.mktemp("wheel"))


def test_the_same_files_are_the_same_bytes(packed: Path, tmp_path: Path) -> None:
    again = wheel.pack(tmp_path)
    assert again.name == packed.name
    assert again.read_bytes() == packed.read_bytes()


def test_it_holds_the_package_and_what_ships_beside_it(packed: Path) -> None:
    with zipfile.ZipFile(packed) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        metadata = next(name for name in names if name.endswith("METADATA"))
        said = archive.read(metadata).decode()
    assert {"ems/__init__.py", "ems/py.typed", "ems/node/worker.py", "ems/templates/site.yml"} <= {*names}
    assert "ems/cluster_definitions/local.yaml" in names
    assert not [name for name in names if "__pycache__" in name]
    assert f"\nVersion: {packed.name.split('-')[1]}\n" in said
    assert "\nRequires-Python: >=3.11\n" in said
    assert "\nRequires-Dist: pydantic" in said
    assert "Requires-Dist: ansible-core" in said.partition("extra ==")[0].splitlines()[-1], "an extra stays one"


def test_it_installs_anywhere_is_the_same_ems_and_packs_itself(packed: Path, tmp_path: Path) -> None:
    target, folder = tmp_path / "site", tmp_path / "again"
    folder.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", f"--target={target}"]
    subprocess.run([*pip, str(packed)], check=True, stderr=subprocess.PIPE)
    code = (
        "import sys, pathlib; sys.path.insert(0, sys.argv[1])\n"
        "from ems import wheel; from ems.remote import wire; from ems.cluster import shipped\n"
        "assert wheel.__file__.startswith(sys.argv[1])\n"
        "print(wheel.pack(pathlib.Path(sys.argv[2])))\n"
        "print(wire.code_digest(), (shipped.templates() / 'site.yml').exists(), shipped.definitions())\n"
    )
    done = subprocess.run([sys.executable, "-c", code, target, folder], capture_output=True, text=True, check=True)
    again, digest, has_templates, definitions = done.stdout.split()
    assert Path(again).read_bytes() == packed.read_bytes()
    assert (digest, has_templates) == (wire.code_digest(), "True")
    assert definitions == str(target / "ems" / "cluster_definitions")
