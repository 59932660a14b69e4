"""How tests are dealt out to processes that share them: what is named there exists."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def schedule() -> ModuleType:
    spec = importlib.util.spec_from_file_location("schedule_under_test", TESTS / "schedule.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_name_in_it_is_that_of_a_test(schedule: ModuleType) -> None:
    for name in (*schedule._FIRST, *schedule._LAST, *schedule._APART):
        path, _, function = name.partition("::")
        assert (TESTS.parent / path).exists(), name
        assert not function or f"def {function}" in (TESTS.parent / path).read_text(), name


def test_what_has_machines_for_a_module_stays_together_and_the_rest_does_not(schedule: ModuleType) -> None:
    assert schedule.unit("tests/slurm/test_cluster.py::test_a") == "tests/slurm/test_cluster.py"
    apart = ["tests/slurm/test_cluster_kill.py::test_a[x-1]", "tests/integration/test_cli.py::test_b", "tests/unit/c"]
    assert [schedule.unit(each) for each in apart] == apart


def test_the_longest_begin_first(schedule: ModuleType) -> None:
    wanted = [
        "tests/slurm/test_cluster.py::test_a",
        "tests/slurm/test_another.py::test_a",
        "tests/integration/test_cli.py::test_a",
        "tests/unit/test_cli.py::test_a",
        "tests/slurm/test_provider_contract.py::test_nothing_of_this_computer_stays_changed_behind[container]",
    ]
    shuffled = [wanted[at] for at in (4, 1, 3, 0, 2)]
    assert sorted(shuffled, key=schedule.turn) == wanted
