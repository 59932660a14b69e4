"""Which EC2 instance type fits what is asked for, where the definition names none. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ems.cluster.provider.base import MachineRequest
from ems.errors import ProviderError

# GB of memory for each CPU; the cheapest first. Of a family, the size's name tells its CPUs
_FAMILIES = {"c7i": 2, "m7i": 4, "r7i": 8}
_SIZES = {"large": 2, "xlarge": 4, "2xlarge": 8, "4xlarge": 16, "8xlarge": 32, "12xlarge": 48, "16xlarge": 64}
_SIZES |= {"24xlarge": 96, "48xlarge": 192}
# GPU -> how many -> the smallest type; https://aws.amazon.com/ec2/instance-types/#Accelerated_Computing
_GPUS = {
    "t4": {1: "g4dn.xlarge", 4: "g4dn.12xlarge", 8: "g4dn.metal"},
    "a10g": {1: "g5.xlarge", 4: "g5.12xlarge", 8: "g5.48xlarge"},
    "l4": {1: "g6.xlarge", 4: "g6.12xlarge", 8: "g6.48xlarge"},
    "l40s": {1: "g6e.xlarge", 4: "g6e.12xlarge", 8: "g6e.48xlarge"},
    "v100": {1: "p3.2xlarge", 4: "p3.8xlarge", 8: "p3.16xlarge"},
    "a100": {8: "p4d.24xlarge"},
    "h100": {1: "p5.4xlarge", 8: "p5.48xlarge"},
}
_GPU = "t4"  # the cheapest


def size_of(request: MachineRequest) -> str:
    """Return the instance type of a machine: the one it names, else the smallest that fits.

    Raises
    ------
    ProviderError
        If none fits.
    """
    if request.size:
        return request.size
    if request.gpus:
        return _with_gpus(request)
    cpus, mem_gb = request.cpus or 2, request.mem_gb or 4
    for name, has in _SIZES.items():
        for family, gb in _FAMILIES.items():
            if has >= cpus and has * gb >= mem_gb:
                return f"{family}.{name}"
    raise ProviderError(
        f"{request.name}: no common EC2 size has {cpus} CPUs and {mem_gb:g} GB", "say `size` in the definition"
    )


def _with_gpus(request: MachineRequest) -> str:
    kind = request.gpu_type or _GPU
    if kind not in _GPUS:
        raise ProviderError(
            f"{request.name}: EC2 has no GPU `{kind}` that ems knows", f"say `size`, or one of {', '.join(_GPUS)}"
        )
    sizes = _GPUS[kind]
    if request.gpus not in sizes:
        counts = ", ".join(map(str, sizes))
        raise ProviderError(
            f"{request.name}: no EC2 size has {request.gpus} GPUs of type {kind}", f"say `gpus` as one of {counts}"
        )
    return sizes[request.gpus]


def check_gpus(request: MachineRequest, found: Mapping[str, Any]) -> None:
    """Refuse more GPUs than a size has, by what EC2 says of it.

    Raises
    ------
    ProviderError
        If it has fewer.
    """
    said = ((found.get("gpuInfo") or {}).get("gpus")) or []
    there = sum(int(each.get("count") or 0) for each in said)
    if request.gpus > there:
        raise ProviderError(
            f"{request.name} is to have {request.gpus} GPUs, and {found['instanceType']} has {there}",
            "change `gpus` or `size` in the definition",
        )
