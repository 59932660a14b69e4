"""What can be wrong on Google's side before anything is made: access, permissions, quota, zone, size, GPUs, image."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ems.cluster.provider import gcewords
from ems.cluster.provider.base import Finding, MachineRequest, RefusalCause
from ems.cluster.provider.googleapi import Api, ApiError
from ems.cluster.provider.pool import side_by_side
from ems.errors import ProviderError

if TYPE_CHECKING:
    from ems.cluster.definition import GceSection

#: What is asked for, so that nothing stops half-way: part of the role Compute Admin (roles/compute.admin).
_VERBS = {
    "disks": ("create", "setLabels"),
    "firewalls": ("create", "delete", "list"),
    "images": ("create", "delete", "list", "useReadOnly"),
    "instances": ("create", "delete", "list", "setLabels", "setMetadata", "setTags", "start", "stop"),
    "networks": ("create", "delete", "updatePolicy"),
    "subnetworks": ("create", "delete", "use", "useExternalIp"),
}
PERMISSIONS = tuple(f"compute.{noun}.{verb}" for noun, verbs in _VERBS.items() for verb in verbs)
ROLE, _USER_ROLE = "roles/compute.admin", "roles/iam.serviceAccountUser"
_QUOTAS = "https://console.cloud.google.com/iam-admin/quotas"
HINTS = {
    RefusalCause.STOCKOUT: "name more `zones`, or more sizes as a list, in the definition",
    RefusalCause.QUOTA: f"ask for more at {_QUOTAS}, or make fewer machines",
    RefusalCause.PERMISSION: f"give the account the role Compute Admin ({ROLE}) in this project",
    RefusalCause.RATE: "wait a minute, then give the command again",
}
_OWN_CPUS = ("N2D", "N2", "C2D", "C2", "C3", "M1", "M2", "A2", "N4", "C4", "T2D", "T2A")  # sizes with a quota of theirs


@dataclass(frozen=True, slots=True)
class _Size:
    """A size as it is in the zones that were asked.

    Attributes
    ----------
    zones
        Those that have it.
    """

    name: str
    cpus: int
    gpus: Mapping[str, int]
    zones: tuple[str, ...]


def zones(api: Api, region: str) -> tuple[str, ...]:
    """Return the zones of a region.

    Raises
    ------
    ProviderError
        If there is no such region.
    """
    said = api.find(f"/regions/{region}")
    if said is None:
        known = ", ".join(sorted(str(each["name"]) for each in api.items("/regions")))
        raise ProviderError(f"Google has no region `{region}`", f"its regions are {known}")
    return tuple(sorted(gcewords.last(each) for each in said.get("zones", ())))


def subnet_name(section: GceSection) -> str:
    """Return the subnetwork of a network that was there before; automatic ones have the network's name."""
    return section.subnet or section.network or ""


def findings(api: Api, section: GceSection, requests: Sequence[MachineRequest]) -> Iterator[Finding]:
    """Yield what was looked at, in the order in which it matters; ends where nothing more can be asked."""
    try:
        project = api.get("")
        yield Finding("credentials", f"they are good for the project {api.project}")
        yield from _permissions(api)
        there = zones(api, section.region)
        region = api.get(f"/regions/{section.region}")
    except ApiError as error:
        yield Finding("credentials", error.message, is_good=False, hint=error.hint or HINTS.get(error.cause, ""))
        return
    except ProviderError as error:
        yield Finding("region", error.message, is_good=False, hint=error.hint)
        return
    if unknown := [
        each for each in (*section.zones, *(each.zone or there[0] for each in requests)) if each not in there
    ]:
        said = f"{section.region} has no zone `{unknown[0]}`"
        yield Finding("zone", said, is_good=False, hint=f"its zones are {', '.join(there)}")
        return
    tried = section.zones or there
    yield Finding("zone", f"{section.region}: {', '.join(tried)}")
    yield from _network(api, section)
    yield from side_by_side(lambda image: _image(api, image), sorted({each.image for each in requests}))
    sizes = {name: _size(api, tried, name) for name in sorted({gcewords.size_of(each) for each in requests})}
    yield from (_said_of_size(size, tried) for size in sizes.values())
    yield from _accelerators(api, tried, requests)
    yield from _disk_types(api, tried, requests)
    if section.service_account and any(each.is_trusted for each in requests):
        yield _account(api, section.service_account, project)
    yield from _quotas(requests, sizes, {**_by_metric(project), **_by_metric(region)})


def _permissions(api: Api) -> Iterator[Finding]:
    try:
        missing = sorted(set(PERMISSIONS) - api.granted(PERMISSIONS))
    except ApiError as error:  # another API, which may be off in this project: then the calls themselves will tell
        yield Finding("permissions", f"could not be asked for: {error.message}")
        return
    if missing:
        said = f"this account lacks {', '.join(missing)} in the project {api.project}"
        yield Finding("permissions", said, is_good=False, hint=HINTS[RefusalCause.PERMISSION])
    else:
        yield Finding("permissions", f"all {len(PERMISSIONS)} that are needed")


def _account(api: Api, account: str, project: Mapping[str, Any]) -> Finding:
    """Return whether the account that the controller works as is there for us, and has any role in the project.

    Roles that it inherits from a folder or an organisation are not seen from here, so that one role of any kind is
    enough; what it really may do its own controller finds out.
    """
    email = str(project.get("defaultServiceAccount", "")) if account == gcewords.DEFAULT_ACCOUNT else account
    if not email:
        said = f"the project {api.project} has no default service account"
        hint = "gcloud iam service-accounts create ems, then name it as `service_account`"
        return Finding("controller", said, is_good=False, hint=hint)
    try:
        if not api.may_act_as(email):
            said = f"you may not have machines work as {email}"
            hint = f"gcloud iam service-accounts add-iam-policy-binding {email} --member=user:YOU --role={_USER_ROLE}"
            return Finding("controller", said, is_good=False, hint=hint)
        roles = api.roles(f"serviceAccount:{email}")
    except ApiError as error:  # it may not be asked for, or the other API is off: then the calls themselves will tell
        return Finding("controller", f"it works as {email}; its roles could not be asked for: {error.message}")
    if roles:
        return Finding("controller", f"it works as {email}, {', '.join(sorted(roles))}")
    grant = f"gcloud projects add-iam-policy-binding {api.project} --member=serviceAccount:{email} --role={ROLE}"
    return Finding("controller", f"{email} may do nothing in {api.project}", is_good=False, hint=grant)


def _network(api: Api, section: GceSection) -> Iterator[Finding]:
    if section.network is None:
        yield Finding("network", f"one of its own, {section.range}")
        return
    name = subnet_name(section)
    said = api.find(f"/regions/{section.region}/subnetworks/{name}")
    if said is None:
        text = f"there is no subnetwork `{name}` in {section.region}"
        yield Finding("network", text, is_good=False, hint="say `subnet:` beside `network:` in the definition")
    else:
        yield Finding("network", f"{section.network}, {said['ipCidrRange']}")


def _image(api: Api, image: str) -> Finding:
    project, family = gcewords.FAMILIES.get(image, ("", ""))
    path = f"projects/{project}/global/images/family/{family}" if project else image
    is_path = path.startswith(("projects/", "/"))
    said = api.find(path) if is_path else None
    if said is None:
        hint = f"distributions are {', '.join(gcewords.FAMILIES)}; else projects/PROJECT/global/images/IMAGE"
        return Finding("image", f"there is no image `{image}` at Google", is_good=False, hint=hint)
    return Finding("image", f"{image} is {said['name']}")


def _in_zones(api: Api, tried: Sequence[str], path: str) -> dict[str, dict[str, Any]]:
    """Return what each zone has at a path, without the zones that have nothing there."""
    answers = side_by_side(lambda zone: api.find(f"/zones/{zone}/{path}"), tried)
    return {zone: said for zone, said in zip(tried, answers, strict=True) if said is not None}


def _size(api: Api, tried: Sequence[str], name: str) -> _Size:
    found = _in_zones(api, tried, f"machineTypes/{name}")
    first: Mapping[str, Any] = next(iter(found.values()), {})
    gpus = {
        str(each["guestAcceleratorType"]): int(each["guestAcceleratorCount"]) for each in first.get("accelerators", ())
    }
    return _Size(name, int(first.get("guestCpus", 0)), gpus, tuple(found))


def _said_of_size(size: _Size, tried: Sequence[str]) -> Finding:
    if not size.zones:
        text = f"there is no size `{size.name}` in {', '.join(tried)}"
        return Finding("size", text, is_good=False, hint="gcloud compute machine-types list names what there is")
    missing = [zone for zone in tried if zone not in size.zones]
    lacks = f", not in {', '.join(missing)}" if missing else ""
    gpus = "".join(f", {count} {kind}" for kind, count in size.gpus.items())
    return Finding("size", f"{size.name}: {size.cpus} processors{gpus}{lacks}")


def _accelerators(api: Api, tried: Sequence[str], requests: Sequence[MachineRequest]) -> Iterator[Finding]:
    wanted: dict[str, int] = {}
    for each in requests:
        if accelerator := gcewords.accelerator_of(each):
            wanted[accelerator] = max(each.gpus, wanted.get(accelerator, 0))
    for name, count in sorted(wanted.items()):
        answers = _in_zones(api, tried, f"acceleratorTypes/{name}").values()
        most = max((int(said["maximumCardsPerInstance"]) for said in answers), default=0)
        if most < count:
            said = f"no zone of {', '.join(tried)} has {count} {name} for a machine" + (f", but {most}" if most else "")
            yield Finding("gpus", said, is_good=False, hint="gcloud compute accelerator-types list names what there is")
        else:
            yield Finding("gpus", f"{name}: up to {most} a machine")


def _disk_types(api: Api, tried: Sequence[str], requests: Sequence[MachineRequest]) -> Iterator[Finding]:
    for name in sorted({each.disk_type for each in requests if each.disk_type}):
        if not _in_zones(api, tried, f"diskTypes/{name}"):
            said = f"there is no kind of disk `{name}` in {', '.join(tried)}"
            yield Finding("disk", said, is_good=False, hint="e.g. pd-standard, pd-balanced, pd-ssd")


def _by_metric(said: Mapping[str, Any]) -> dict[str, tuple[float, float]]:
    return {str(each["metric"]): (float(each["limit"]), float(each["usage"])) for each in said.get("quotas", ())}


def _quotas(
    requests: Sequence[MachineRequest], sizes: Mapping[str, _Size], known: Mapping[str, tuple[float, float]]
) -> Iterator[Finding]:
    needed: dict[str, float] = {"INSTANCES": len(requests), "IN_USE_ADDRESSES": len(requests)}
    for each in requests:
        for metric, count in _needs(each, sizes[gcewords.size_of(each)], known).items():
            needed[metric] = needed.get(metric, 0) + count
    for metric, count in sorted(needed.items()):
        if metric not in known:
            yield Finding("quota", f"{metric}: Google says nothing of it")
            continue
        limit, used = known[metric]
        said = f"{metric}: {count:g} needed, {limit - used:g} of {limit:g} free"
        is_good = used + count <= limit
        yield Finding("quota", said, is_good=is_good, hint="" if is_good else HINTS[RefusalCause.QUOTA])


def _needs(request: MachineRequest, size: _Size, known: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Return what a machine takes of which quota."""
    family = size.name.partition("-")[0].upper()
    cpus = f"{family}_CPUS" if family in _OWN_CPUS else "CPUS"
    if request.spot and known.get("PREEMPTIBLE_CPUS", (0, 0))[0] > 0:  # else they count as others do
        cpus = "PREEMPTIBLE_CPUS"
    found: dict[str, float] = {cpus: size.cpus}
    accelerator = gcewords.accelerator_of(request)
    for kind, count in {**size.gpus, **({accelerator: request.gpus} if accelerator else {})}.items():
        model = kind.removeprefix("nvidia-").removeprefix("tesla-").upper().replace("-", "_")
        found[f"{'PREEMPTIBLE_' if request.spot else ''}NVIDIA_{model}_GPUS"] = count
        if not request.spot:
            found["GPUS_ALL_REGIONS"] = count
    return found
