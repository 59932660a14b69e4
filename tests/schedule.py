"""Which tests stay together, and which begin first, where several processes share them (``pytest -n 4``).

pytest-xdist deals out units: what stays together is one unit, and units begin in the order in which they are collected.
"""

from __future__ import annotations

from typing import Any

from xdist.scheduler import LoadScopeScheduling

# Begins first what takes longest, by turns what waits for containers and what waits for the SLURM of plain processes;
# a name is the beginning of a test's id
_FIRST = (
    "tests/slurm/test_cluster.py",
    "tests/slurm/test_elastic.py",
    "tests/slurm/test_idle.py",
    "tests/slurm/test_cloud_life.py",
    "tests/slurm/test_requeue.py",
    "tests/slurm/test_preemption.py",
    "tests/slurm/test_elastic_service.py",
    "tests/slurm/test_provider_contract.py::test_each_distribution_boots",
    "tests/slurm/test_cluster_trouble.py",
    "tests/slurm/test_outage.py",
    "tests/slurm/test_cluster_kill.py",
    "tests/slurm/test_executor_contract.py",
    "tests/slurm/test_arrays.py",
    "tests/integration/test_connect.py",
    "tests/slurm/",
    "tests/integration/",
    "tests/",
)
# Beside other tests this one can only be strict when they are done with their containers
_LAST = ("tests/slurm/test_provider_contract.py::test_nothing_of_this_computer_stays_changed",)
# The machines of a module serve all its tests, except here, where each test has its own
_APART = ("tests/slurm/test_cluster_kill.py", "tests/slurm/test_cloud_life.py", "tests/slurm/test_provider_contract.py")


def turn(test: str) -> int:
    """Return when a test begins: the lower, the earlier."""
    if test.startswith(_LAST):
        return len(_FIRST)
    return next(number for number, name in enumerate(_FIRST) if test.startswith(name))


def unit(test: str) -> str:
    """Return what a test is dealt out with: its module where that has machines for all its tests, else itself."""
    module = test.partition("::")[0]
    return module if module.startswith("tests/slurm/") and module not in _APART else test


class Schedule(LoadScopeScheduling):
    """Deals out units in the order of their turns."""

    def __init__(self, config: Any, log: Any) -> None:
        config.option.loadscopereorder = False  # not by the number of their tests
        super().__init__(config, log)

    def _split_scope(self, nodeid: str) -> str:
        return unit(nodeid)
