"""``ems cluster start``, ``resize``, ``setup``, ``remove-node``, ``pause``, ``resume``, ``stop``, ``bake``."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from ems.cli import options as o
from ems.cli.cluster import LIFE, Name, command
from ems.errors import ClusterError, EmsError, NotFoundError, UsageError

if TYPE_CHECKING:
    from ems.cluster.definition import Definition
    from ems.cluster.fleet import Fleet, Report
    from ems.cluster.lifecycle import Outcome
    from ems.cluster.scheduler import Job

Now = Annotated[bool, typer.Option("--now", help="Do not wait: what runs there goes back into the queue.")]


@command(
    LIFE,
    "ems cluster start local",
    "ems cluster start local --nodes 2 --yes",
    "ems cluster start big --nodes gpu=4,cpu=2",
)
def start(
    name: Name,
    nodes: Annotated[
        str | None,
        typer.Option("--nodes", metavar="N|KIND=N,...", help="How many nodes, of the first kind or of each kind."),
    ] = None,
    no_setup: Annotated[bool, typer.Option("--no-setup", help="Only make the machines; `setup` goes on.")] = False,
    yes: o.Yes = False,
    as_json: o.AsJson = False,
) -> None:
    """Make a SLURM cluster, or what is missing of it.

    Makes network, controller and nodes, sets them up, and runs a job on every partition before it says ready.
    Experiments then go there. After any failure the same command continues.
    """
    from ems.cli import render
    from ems.cli.cluster_gc import remind
    from ems.cluster import lifecycle
    from ems.cluster.record import Files

    definition = definition_of(name)
    counts = parse_counts(nodes, list(definition.nodes))
    with Files(name).locked():
        fleet = lifecycle.begin(name, definition, counts)
        render.note(*_plan_lines(fleet), *_changed_lines(fleet, definition))
        _confirm(yes, f"start {name}?")
        with live(fleet):
            outcome = lifecycle.start(fleet, setup=not no_setup)
    remind(definition)
    if no_setup and not as_json:
        render.say(f"{name}: {render.plural(len(outcome.ready) + 1, 'machine')} made in {outcome.seconds:.0f} s")
        render.note(f"next: ems cluster setup {name}")
        return
    _say_ready(fleet, outcome, as_json=as_json)
    if fleet.definition.is_elastic and not as_json:
        _say_unbaked(fleet)


def _say_unbaked(fleet: Fleet) -> None:
    """Say what makes nodes come sooner, where they install what they need at each boot."""
    from ems.cli import render
    from ems.cluster import images

    if images.lacking(fleet):
        render.note(
            f"nodes install what they need each time they come: `ems cluster bake {fleet.name}` has them come sooner"
        )


def _plan_lines(fleet: Fleet) -> list[str]:
    from ems.cli import render
    from ems.cluster import floor

    definition = fleet.definition
    kinds = {kind: sum(fleet.kind(node) == kind for node in fleet.record.wanted) for kind in definition.nodes}
    most = {kind: floor.most(definition, kind) if definition.is_elastic else count for kind, count in kinds.items()}
    listed = ", ".join(f"{_from_to(count, most[kind])} {kind}" for kind, count in kinds.items())
    total = len(fleet.record.wanted) + 1
    cost, at_most = (_cost(definition, counts) for counts in (kinds, most))
    span = "" if cost is None or at_most is None else " to ".join(dict.fromkeys((f"${cost:.2f}", f"${at_most:.2f}")))
    cost_text = "price unknown" if not span else "free of charge" if not at_most else f"about {span} an hour"
    machines = render.plural(total, "machine")
    made_of = f"{definition.image} by {definition.provider.kind}"
    return [f"{fleet.name}   {machines}: controller, {listed}   {made_of}   {cost_text}"]


def _from_to(count: int, most: int) -> str:
    return str(count) if count == most else f"{count} to {most}"


def _cost(definition: Definition, counts: Mapping[str, int]) -> float | None:
    """Return US dollars an hour of a controller and so many nodes; None: unknown."""
    from ems.cluster import price

    kinds = ["controller", *(kind for kind, count in counts.items() for _ in range(count))]
    return price.total(price.of_kind(definition, kind) for kind in kinds)


def _changed_lines(fleet: Fleet, definition: Definition) -> list[str]:
    if definition.digest == fleet.record.digest:
        return []
    return [f"its definition has changed since; {fleet.name} stays as it was made: stop it first to have the new one"]


def _say_ready(fleet: Fleet, outcome: Outcome, *, as_json: bool, verb: str = "is ready") -> None:
    from ems.cli import render

    if as_json:
        render.print_json({"cluster": fleet.name, **dataclasses.asdict(outcome)})
    else:
        nodes = render.plural(len(outcome.ready), "node")
        tested = f", {render.plural(len(outcome.tests), 'test job')} passed" if outcome.tests else ""
        changes = "" if outcome.changed is None else f", {outcome.changed or 'nothing'} changed by the set-up"
        render.say(f"{fleet.name} {verb}: {nodes}{tested}{changes}   {outcome.seconds:.0f} s")
        for why in dict.fromkeys(outcome.untried.values()):
            listed = ", ".join(each for each, said in outcome.untried.items() if said == why)
            render.note(f"not tried, {why}: {listed}")
    if outcome.left_out:
        listed = "; ".join(f"{node}: {why}" for node, why in outcome.left_out.items())
        raise ClusterError(
            f"{fleet.name} is without {render.plural(len(outcome.left_out), 'node')}: {listed}",
            f"`ems cluster start {fleet.name}` tries them again",
        )
    if not as_json:
        render.note("next: ems parrun SCRIPT · ems cluster status · ems cluster ssh")


def parse_counts(text: str | None, kinds: Sequence[str]) -> dict[str, int]:
    """Read ``2`` (of the first kind) or ``gpu=4,cpu=2``.

    Raises
    ------
    UsageError
        If it is neither, or there is no such kind.
    """
    if not text:
        return {}
    counts = {}
    for part in text.split(","):
        kind, equals, number = part.strip().rpartition("=")
        kind = kind if equals else kinds[0]
        if kind not in kinds:
            raise UsageError(f"there is no kind of node `{kind}`", f"its kinds are {', '.join(kinds)}")
        if not number.isdecimal() or len(number) > 3 or kind in counts:
            raise UsageError(f"`{text}` says no number of nodes", f"write 2, or {kinds[0]}=2 (at most 999)")
        counts[kind] = int(number)
    return counts


@command(LIFE, "ems cluster resize local gpu=3", "ems cluster resize local 3")
def resize(
    name: Name,
    counts: Annotated[str, typer.Argument(metavar="N|KIND=N,...", help="How many nodes it shall have.")],
    now: Now = False,
    as_json: o.AsJson = False,
) -> None:
    """Have more or fewer nodes.

    Nodes that leave finish what they run; those at rest leave first. Of kinds that come and go with the queue (`max`),
    so many stay whatever it says.
    """
    from ems.cluster import lifecycle

    with changing(name) as fleet, live(fleet):
        wanted = parse_counts(counts, list(fleet.definition.nodes))
        outcome = lifecycle.resize(fleet, wanted, now=now)
    verb = "keeps" if fleet.definition.is_elastic else "has"
    _say_ready(fleet, outcome, as_json=as_json, verb=verb)


@command(LIFE, "ems cluster setup local")
def setup(name: Name, as_json: o.AsJson = False) -> None:
    """Set a cluster up again; what is as it should be is left alone."""
    from ems.cluster import lifecycle

    with changing(name) as fleet, live(fleet):
        outcome = lifecycle.setup(fleet)
    _say_ready(fleet, outcome, as_json=as_json)


@command(LIFE, "ems cluster remove-node local gpu-002", name="remove-node")
def remove_node(
    name: Name,
    nodes: Annotated[list[str], typer.Argument(metavar="NODE...", help="E.g. gpu-002, or its whole name.")],
    now: Now = False,
) -> None:
    """Drain nodes, wait for what they run, and delete them."""
    from ems.cli import render
    from ems.cluster import lifecycle

    with changing(name) as fleet, live(fleet):
        gone = lifecycle.remove_nodes(fleet, nodes, now=now)
    left = render.plural(len(fleet.record.wanted), "node")
    render.say(f"removed {', '.join(gone)}; {name} has {left}")


@command(LIFE, "ems cluster pause local --yes")
def pause(name: Name, yes: o.Yes = False) -> None:
    """Stop the machines; disks, accounting and the queue are kept.

    What runs goes back into the queue, and on from its checkpoint after `resume`.
    """
    from ems.cli import render
    from ems.cluster import lifecycle

    with changing(name) as fleet:
        running = _say_running(fleet)
        if running:
            _confirm(yes, f"pause {name}, and put {render.plural(len(running), 'running job')} back into the queue?")
        with live(fleet):
            lifecycle.pause(fleet)
    render.say(f"{name} is paused")
    render.note(f"next: ems cluster resume {name}")


@command(LIFE, "ems cluster resume local")
def resume(name: Name, as_json: o.AsJson = False) -> None:
    """Start the machines of a paused cluster again."""
    from ems.cluster import lifecycle

    with changing(name) as fleet, live(fleet):
        outcome = lifecycle.resume(fleet)
    _say_ready(fleet, outcome, as_json=as_json)


@command(LIFE, "ems cluster stop local", "ems cluster stop local --yes")
def stop(
    name: Name,
    yes: o.Yes = False,
    images: Annotated[bool, typer.Option("--images", help="Delete its baked images as well.")] = False,
    no_harvest: Annotated[bool, typer.Option("--no-harvest", help="Do not harvest this project's runs first.")] = False,
) -> None:
    """Delete a cluster: machines, disks, network, keys.

    What this project has there is harvested first; what else is on its disks is lost.
    """
    from ems.cli import render
    from ems.cli.cluster_gc import remind
    from ems.cluster import lifecycle
    from ems.cluster.record import Files

    with Files(name).locked():
        fleet = _to_stop(name)
        running = _say_running(fleet)
        lost = f", and end {render.plural(len(running), 'job')}" if running else ""
        _confirm(yes, f"delete the cluster {name} with everything on it{lost}?")
        if not no_harvest:
            _harvest(name)
        with live(fleet):
            count = lifecycle.stop(fleet, with_images=images)
    render.say(f"{name} is gone: {render.plural(count, 'resource')} deleted")
    remind(fleet.definition)


def _to_stop(name: str) -> Fleet:
    """Return a cluster, or what labels alone say of one that this machine does not know."""
    from ems.cluster import handover
    from ems.cluster.fleet import Fleet, known
    from ems.cluster.record import Files

    try:
        return known(name)
    except NotFoundError:
        definition = definition_of(name)
        return Fleet(Files(name), handover.stranger(name, definition))


def _harvest(name: str) -> None:
    """Harvest what this project has on a cluster; trouble is said, and stops nothing that was confirmed."""
    from ems.cli import render
    from ems.cli.session import open_session

    try:
        with open_session() as session:
            there = [each for each in session.store.experiments() if each.target == name]
            if there:
                session.harvest(there)
                render.note(f"harvested {render.plural(len(there), 'experiment')} of this project")
    except NotFoundError:
        return  # no project here
    except EmsError as error:
        render.note(f"not harvested: {error.message}")


def _say_running(fleet: Fleet) -> list[Job]:
    """Say what runs on a cluster; a cluster that cannot be asked runs nothing that could be saved."""
    from ems.cli import render

    try:
        jobs = [job for job in fleet.scheduler.jobs() if job.nodes]
    except EmsError:
        return []
    if jobs:
        listed = ", ".join(f"{job.id} ({job.name}, {job.user})" for job in jobs[:5])
        more = f" and {len(jobs) - 5:,} more" if len(jobs) > 5 else ""
        render.note(f"running on {fleet.name}: {listed}{more}")
    return jobs


@command(LIFE, "ems cluster bake local")
def bake(name: Name, as_json: o.AsJson = False) -> None:
    """Make images on which everything is installed already.

    `start` and `resize` use them from then on, as long as they are what would be installed.
    """
    from ems.cli import render
    from ems.cluster import lifecycle
    from ems.cluster.record import Files

    definition = definition_of(name)
    with Files(name).locked(), _shown() as report:
        done = lifecycle.bake(name, definition, report)
    if as_json:
        render.print_json([dataclasses.asdict(each) for each in done])
        return
    for each in done:
        made = "was there" if each.was_there else f"made in {each.seconds:.0f} s"
        render.say(f"{each.kind}: {each.image} {made}")


@contextmanager
def changing(name: str) -> Iterator[Fleet]:
    """Give a cluster that this machine knows, to be changed by nobody else; then say what is left of others."""
    from ems.cli.cluster_gc import remind
    from ems.cluster.fleet import known
    from ems.cluster.record import Files

    fleet = known(name)
    with Files(name).locked():
        yield known(name)
    remind(fleet.definition)


@contextmanager
def live(fleet: Fleet) -> Iterator[None]:
    """Show what is done to a cluster, as it is done."""
    with _shown() as report:
        fleet.report = report
        yield


@contextmanager
def _shown() -> Iterator[Report]:
    """Show what is done; who interrupts it is told how it goes on."""
    from ems.cli import render
    from ems.cli.board import board

    try:
        with board() as report:
            yield report
    except KeyboardInterrupt:
        render.note("interrupted: the same command goes on from here")
        raise


def definition_of(name: str) -> Definition:
    """Return a definition; of a cluster that is there and is defined nowhere (any more), its own."""
    from ems.cli.setup import project_here
    from ems.cluster import catalog
    from ems.cluster.fleet import verified
    from ems.cluster.record import Files

    try:
        return catalog.load(name, project_here())
    except NotFoundError:
        record = Files(name).load()
        if record is None:
            raise
        return verified(record)


def _confirm(yes: bool, question: str) -> None:
    from ems.cli.steer import confirm

    if not yes and not confirm(question):
        raise typer.Exit(1)
