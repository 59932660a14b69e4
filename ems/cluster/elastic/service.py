"""The service on the controller of an elastic cluster: one thread, one turn after another.

A turn takes all that SLURM has asked for, deletes machines first, makes others in bulk, and every half minute compares
what the cloud has with what SLURM says. It may be killed anywhere: what SLURM asked for stays in the spool until it is
done, what is asked of the cloud is in the journal before, names are deterministic, and labels tell what there is.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime

from ems.cluster import ledger, nodes, placing
from ems.cluster.elastic import guard
from ems.cluster.elastic.control import Control, Node
from ems.cluster.elastic.here import FleetHere
from ems.cluster.elastic.idle import Keeper
from ems.cluster.elastic.preemption import Preemptions
from ems.cluster.elastic.reconcile import Act, Memory, Pace, plan
from ems.cluster.elastic.shutters import Shutters
from ems.cluster.elastic.spool import Spool, Wish, gather
from ems.cluster.elastic.spool import Verb as Call
from ems.cluster.elastic.standing import Board, Heart
from ems.cluster.elastic.table import OURS, Verb
from ems.cluster.provider.base import MachineState, Refusal, RefusalCause, Resource
from ems.cluster.record import texts
from ems.errors import EmsError

log = logging.getLogger("emsd")

RECONCILE_S = 30.0
_SOON_S = 5.0  # where one look is not enough
_POLL_S = 0.2
_BATCH_S = 1.0  # many nodes are woken by several calls: one bulk call to the cloud for all of them
_LATE_S = 2.0  # until what an earlier process asked for is listed
_TRIES = 3  # of a creation that the cloud did not even refuse
_AGAIN = (RefusalCause.OTHER, RefusalCause.RATE)  # a second try may help


class Service:
    """What makes and deletes the nodes of one cluster.

    Parameters
    ----------
    fleet
        The cluster, as its controller knows it.
    control
        Its SLURM.
    reconcile_s, pace
        How often the cloud and SLURM are compared, and how long what is there is waited for.
    """

    def __init__(
        self,
        fleet: FleetHere,
        control: Control | None = None,
        *,
        reconcile_s: float = RECONCILE_S,
        pace: Pace | None = None,
    ) -> None:
        self.fleet = fleet
        self.control = control or Control()
        self.spool = Spool(fleet.paths.spool, self._is_node)
        self.heart = Heart(fleet.paths.state)
        self.board = Board(fleet.paths.state)
        self.shutters = Shutters(fleet)
        self.keeper = Keeper(fleet, self.control, self.board) if fleet.definition.idle is not None else None
        self.preemptions = Preemptions(fleet.definition, fleet.paths.state, self.control)
        self.memory = Memory(fleet.name, pace or Pace.of(fleet.definition))
        self.reconcile_s = reconcile_s
        self._asked, self._unsure = _asked(fleet)
        self._failures = 0  # turns in a row
        self._is_afresh = False
        self._due = 0.0
        self._listed: frozenset[tuple[str, MachineState]] | None = None  # what the ledger knows

    def run(self, stop: threading.Event) -> None:
        """Take one turn after another until told to stop; the one that was begun is ended.

        Raises
        ------
        ClusterError
            If another process does so already.
        """
        with self.fleet.files.locked():
            while not stop.is_set():
                if self.spool.names():
                    stop.wait(_BATCH_S)
                self.step()
                stop.wait(min(60.0, 2.0**self._failures) if self._failures else 0)
                while not (stop.is_set() or self._is_called() or time.monotonic() >= self._due):
                    self.heart.beat()
                    stop.wait(_POLL_S)
            self.board.show(self.shutters.shut(), phase="stopped")

    def _is_called(self) -> bool:
        return bool(self.spool.names()) or self.preemptions.is_due()

    def afresh(self) -> None:
        """Open what is shut and look at once, in the next turn: somebody has mended something."""
        self._is_afresh, self._due = True, 0.0

    def step(self) -> None:
        """Take one turn; what goes wrong in it is told, and tried again in the next."""
        self.heart.beat()
        if self._is_afresh:
            self._is_afresh = False
            self.shutters.open()
        with self.heart.beating():
            self._turn()
        self.board.show(self.shutters.shut())

    def _turn(self) -> None:
        try:
            for said in self.preemptions.turn():  # first: what nodes left behind is deleted before they come anew
                self.board.note(said)
            changed = self._serve()
            if changed or time.monotonic() >= self._due:
                self._reconcile()
            self._failures = 0
            self.board.trouble = ""
            if self.keeper is not None and self.keeper.look():
                self.keeper.rest()
        except EmsError as error:
            self._failures += 1
            self.board.trouble = error.message
            log.warning("%s", error.message)
        except Exception as error:  # to end would be to forget what was seen, and to meet it again
            self._failures += 1
            self.board.trouble = f"{type(error).__name__}: {error}"
            log.exception("a turn was not ended")

    # -- what SLURM asks for ------------------------------------------------------------------------------------------

    def _serve(self) -> bool:
        """Do what SLURM asks for; returns whether it asked for anything."""
        requests = self.spool.read()
        if not requests:
            return False
        wish = gather(requests)
        if not self._unsure.isdisjoint(wish.resume):  # who was killed has asked for them; not all clouds say so at once
            time.sleep(_LATE_S)
        self.fleet.look()
        self._clear(wish)
        self.spool.done(each for each in requests if each.verb is not Call.RESUME)
        found = self.fleet.machines()
        self._create([node for node, at_ns in wish.resume.items() if self._is_new(node, at_ns, found)], wish.jobs)
        self.spool.done(requests)
        return True

    def _is_new(self, node: str, at_ns: int, found: Collection[str]) -> bool:
        """Whether a machine has yet to be made: one that was made a moment ago may still be missing in listings."""
        return node not in found and (self._asked.get(node, 0) < at_ns or node in self._unsure)

    def _clear(self, wish: Wish) -> None:
        """Delete what nobody needs, and what is left of nodes that are to boot anew."""
        states = self._states()
        going = [node for node in wish.suspend if not _is_at_work(states.get(node))]
        newer = [node for node, at_ns in wish.resume.items() if self._asked.get(node, 0) < at_ns]
        stale = [node for node in newer if not _is_up(states.get(node))]
        self._destroy({*going, *stale}, "nobody needs it")

    def _states(self) -> Mapping[str, Node]:
        try:
            return self.control.nodes()
        except EmsError as error:  # what it asked for it still wants
            log.warning("%s", error.message)
            return {}

    def _destroy(self, names: Collection[str], why: str) -> None:
        """Delete all machines of these names; one that stays is deleted by a later look."""
        machines = [each for each in self._machines() if each.name in names]
        if machines:
            self._delete(machines, why)

    def _machines(self) -> list[Resource]:
        """Return the compute nodes' machines, those of one name more than once too."""
        return [each for each in [*self.fleet.machines().values(), *self.fleet.doubles()] if self.fleet.kind(each.name)]

    def _delete(self, machines: Sequence[Resource], why: str) -> None:
        try:
            nodes.destroy(self.fleet, machines)
            self.board.note(f"deleted {_listed(machines)}: {why}")
        except EmsError as error:
            self.board.note(f"{_listed(machines)} could not be deleted: {error.message}")
        finally:
            self.fleet.look()

    # -- machines are made --------------------------------------------------------------------------------------------

    def _create(self, names: Sequence[str], jobs: Mapping[str, Collection[str]]) -> None:
        """Make machines as far as shut kinds and limits let; of the others SLURM is told why they do not come."""
        admitted, refused = self.shutters.admit(names)
        there = {each.name for each in self._machines() if each.state is not MachineState.STOPPING}
        allowed, why = guard.admit(self.fleet, there, admitted)
        over = set(admitted).difference(allowed)
        refused |= {name: Refusal(name, why, cause=RefusalCause.QUOTA) for name in over}
        refused |= self._make(allowed)
        if refused:
            self._refuse(refused, jobs)

    def _make(self, names: Sequence[str]) -> dict[str, Refusal]:
        """Have machines made; returns those that the cloud refused."""
        if not names:
            return {}
        for path in (path for name in names for path in self.fleet.paths.traces(name)):
            path.unlink(missing_ok=True)
        self.preemptions.renewed(names)
        refused = self._place(names)
        if again := [name for name, each in refused.items() if each.cause in _AGAIN]:
            refused = {name: each for name, each in refused.items() if name not in again} | self._place(again)
        if made := [name for name in names if name not in refused]:
            self.board.note(f"made {_short(made)}")
        return refused

    def _place(self, names: Sequence[str]) -> dict[str, Refusal]:
        now_ns = time.time_ns()
        try:
            results = placing.place(self.fleet, nodes.requests(self.fleet, names))
        except Exception as error:
            if self._failures + 1 < _TRIES:
                raise
            why = error.message if isinstance(error, EmsError) else f"{type(error).__name__}: {error}"
            log.warning("%s", why)
            return {name: Refusal(name, why) for name in names}
        finally:
            self.fleet.look()
        self._asked |= dict.fromkeys(names, now_ns)
        self._unsure.difference_update(names)
        return {each.name: each for each in results if isinstance(each, Refusal)}

    def _refuse(self, refused: Mapping[str, Refusal], jobs: Mapping[str, Collection[str]]) -> None:
        """Give up nodes that cannot be had: their jobs are told why, and go back into the queue."""
        self.shutters.refused(refused)
        by_reason: dict[str, list[str]] = {}
        for name, refusal in refused.items():
            by_reason.setdefault(refusal.reason, []).append(name)
        queue = [job for job in self.control.jobs() if not set(job.nodes).isdisjoint(refused)]
        for reason, names in by_reason.items():
            waiting = {job for name in names for job in jobs.get(name, ())}
            waiting |= {job.id for job in queue if not set(job.nodes).isdisjoint(names)}
            self.control.comment(waiting, f"{OURS}{reason}")
            self.control.down(names, f"{OURS}{reason}")
            self.control.power_down(names)
            self.board.note(f"{_short(names)} refused: {reason}")

    # -- what the cloud has and what SLURM says -----------------------------------------------------------------------

    def _reconcile(self) -> None:
        """Look at all machines and all nodes once, and do what follows from it."""
        self._due = time.monotonic() + self.reconcile_s
        self.fleet.look()
        machines, states, now = self._machines(), self.control.nodes(), time.monotonic()
        self.memory = self.memory.look(machines, states, now, floor=self.fleet.floor(), shut=self.shutters.shut())
        self._take_note(machines)
        if self.memory.is_unsure:
            self._due = min(self._due, now + _SOON_S)
        acts = plan(machines, states, self.memory, now)
        self.preemptions.lost(acts)
        self.memory = self.memory.did(acts, now)
        self._act(acts)
        self._keep_books()
        self.board.count(Counter(self.fleet.kind(each.name) for each in self._machines()))

    def _take_note(self, machines: Sequence[Resource]) -> None:
        """Shut kinds that do not boot; open those that the limit on nodes leaves room for again."""
        for boot in self.memory.boots:
            self.shutters.booted(boot.node, registered=boot.registered)
            if not boot.registered:
                self.board.note(f"{boot.node} never registered{self._last_word(boot.node)}")
        most = self.fleet.definition.limits.max_nodes
        if most is not None and len(machines) < most:
            self.shutters.reopen(guard.MAX_NODES)

    def _last_word(self, node: str) -> str:
        """Return what a node said last of its boot."""
        try:
            said = json.loads(self.fleet.paths.traces(node)[0].read_text())
            return f": {said.get('error') or said['stage']}"
        except (OSError, ValueError, KeyError, AttributeError):
            return ": it said nothing of its boot"

    def _keep_books(self) -> None:
        """Have the ledger say what is there, where that has changed; keep the journal short."""
        listed = frozenset((each.id, each.state) for each in self._machines())
        if listed != self._listed:
            ledger.observe(self.fleet)
            self._listed = listed
        self.fleet.journal.compact()

    def _act(self, acts: Iterable[Act]) -> None:
        """Do what was planned: all of one kind, for one reason, by one order."""
        groups: dict[tuple[Verb, str], list[Act]] = {}
        for act in acts:
            groups.setdefault((act.verb, act.why), []).append(act)
        for (verb, why), group in groups.items():
            self._do(verb, why, group)

    def _do(self, verb: Verb, why: str, group: Sequence[Act]) -> None:
        names = [act.node for act in group]
        if verb is Verb.DESTROY:
            self._delete([act.machine for act in group if act.machine is not None], why)
        elif verb is Verb.CREATE:
            self._create(names, {})
        elif verb is Verb.DOWN:
            self.control.down(names, why)
            self.board.note(f"{_short(names)} down: {why}")
        else:
            {
                Verb.POWER_DOWN: self.control.power_down,
                Verb.FORCE: lambda each: self.control.power_down(each, force=True),
                Verb.RELEASE: self.control.release,
                Verb.POWER_UP: self.control.power_up,
            }[verb](names)

    def _is_node(self, name: str) -> bool:
        return self.fleet.kind(name) in self.fleet.definition.nodes


def _is_at_work(node: Node | None) -> bool:
    """Whether a job has a node, and SLURM is not about to power it down: then its machine stays, whoever asked."""
    return node is not None and node.is_busy and not node.flags & {"POWERING_DOWN", "POWERED_DOWN"}


def _is_up(node: Node | None) -> bool:
    """Whether a node that is to boot runs jobs: while nobody served it has come back with the machine that it had."""
    return node is not None and _is_at_work(node) and not node.flags & {"POWERING_UP", "POWER_UP"}


def _asked(fleet: FleetHere) -> tuple[dict[str, int], set[str]]:
    """Return when each node was asked of the cloud last, by the journal, and for which the answer is not known.

    The times are nanoseconds since 1970, by this machine's clock, as in the spool.
    """
    asked: dict[str, int] = {}
    unsure: set[str] = set()
    for line in fleet.journal.lines():
        if str(line["step"]).split(" ")[0] != placing.STEP:
            continue
        names = texts(line["things"])
        if line["is"] == "begin":
            at = datetime.fromisoformat(str(line["at"]))
            asked |= dict.fromkeys(names, round(at.timestamp() * 1e9))
        (unsure.difference_update if line["is"] == "done" else unsure.update)(names)
    return asked, unsure


def _listed(machines: Iterable[Resource]) -> str:
    return _short(sorted({each.name for each in machines}))


def _short(names: Sequence[str]) -> str:
    """Return a few names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
