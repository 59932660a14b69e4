"""What machines draw, and what that emits: TDP of GPUs, a mean of CPUs, the data centre's PUE, the grid's carbon.

After Lannelongue et al. 2021 (Green Algorithms): energy = hours x (GPUs x TDP + CPUs x W) x PUE, emissions = energy x
carbon intensity. Machines are taken to be at full load all the time, without memory: an idle one draws less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from ems.cluster.definition import Definition, Energy


@dataclass(frozen=True, slots=True)
class Factors:
    """What energy is reckoned by.

    Attributes
    ----------
    watts
        Of a GPU of each type.
    sources
        A sentence for each of the factors, in which it is named.
    """

    pue: float
    g_co2e_per_kwh: float
    watts_per_cpu: float
    watts: Mapping[str, float]
    sources: tuple[str, ...]

    def kw(self, gpus: int, gpu_type: str, cpus: int | None) -> float | None:
        """Return kW that a machine draws from the grid; None where its CPUs or the type of its GPUs are unknown."""
        each = self.watts.get(gpu_type) if gpus else 0.0
        if each is None or cpus is None:
            return None
        return (gpus * each + cpus * self.watts_per_cpu) * self.pue / 1000


def factors(definition: Definition | None) -> Factors:
    """Return the factors of a cluster; None: of one whose definition is gone."""
    table, own = _table(), definition.energy if definition else Energy()
    kind = definition.provider.kind if definition else "default"
    region = getattr(definition.provider, "region", None) if definition else None
    pue, pue_source = _chosen(own.pue, table["pue"].get(kind, table["pue"]["default"]))
    watts_per_cpu, cpu_source = _chosen(own.watts_per_cpu, table["watts_per_cpu"])
    grid, grid_source = _chosen(own.g_co2e_per_kwh, _grid(table["grid"], kind, region))
    of_gpus = ", the definition's own for " + ", ".join(own.watts) if own.watts else ""
    return Factors(
        pue,
        grid,
        watts_per_cpu,
        {**table["watts"], **own.watts},
        (
            f"GPUs: {table['watts_source']}{of_gpus}",
            f"CPUs: {watts_per_cpu:g} W each ({cpu_source})",
            f"PUE: {pue:g} ({pue_source})",
            f"grid: {grid:g} g CO2e a kWh ({grid_source})",
        ),
    )


def _chosen(own: float | None, shipped: tuple[float, str]) -> tuple[float, str]:
    return (own, "the definition's own") if own is not None else shipped


def _grid(table: Mapping[str, Any], kind: str, region: str | None) -> tuple[float, str]:
    known = table.get(kind) if kind != "default" else None
    if known and region in known["regions"]:
        return known["regions"][region], f"{known['source']}, {region}"
    value, source = table["default"]
    return value, source


@cache
def _table() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("energy.yaml").read_text())
    return found
