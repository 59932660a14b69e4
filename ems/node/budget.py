"""What the runs of an experiment may cost together: asked before each of them starts, by one worker at a time.

A run is admitted where what was spent, what those that run may still take, and what it may take itself are within the
budget. What a run may take is its time limit; where none is asked, what those that have ended took on average. So with
a time limit the budget is never exceeded, and without one by no more than what runs when it is reached.

``experiments/EXP/budget-C.jsonl`` is the ledger of the budget that holds from chunk C on: appended to under a lock, a
line where a run is admitted, and one where its attempt has ended::

    {"run": 3, "attempt": 1, "at": 1763719800.1, "rates": {"gpuh": 2}, "most_h": 4.0}
    {"run": 3, "attempt": 1, "h": 1.84}
"""

from __future__ import annotations

import json
import os
import time

from ems.node import job as jobs
from ems.node import records, slots

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Dict, Optional, Tuple

    from ems.node.records import ExperimentFiles, Record

GPU_HOURS, CPU_HOURS, USD = "gpuh", "cpuh", "usd"
LATER, SPENT = "later", "spent"  # a run that ends may leave room; no end will
_ROUNDING = 1e-9
_OVERDUE_S = 900.0  # after its time limit: clocks differ, SLURM grants a grace
_SIGNS = ("stdout.log", "stderr.log", "metrics.jsonl")


def hourly(resources: Record, usd_per_h: Optional[float]) -> Dict[str, float]:
    """Return what one run takes an hour, of each unit that can be counted; resources as in ``spec.json``."""
    nodes = int(resources.get("nodes") or 1)  # what --gres and --cpus ask for is of each; --gpus is of all together
    gpus = slots.gpus_per_run({"gpus": resources.get("gpus")})
    gpus += slots.gpus_per_run({"gres": resources.get("gres")}) * nodes
    rates = {GPU_HOURS: float(gpus), CPU_HOURS: float(resources.get("cpus") or 1) * nodes}
    if usd_per_h is not None:
        rates[USD] = float(usd_per_h)
    return rates


def longest_h(resources: Record) -> Optional[float]:
    """Return the time limit of a run in hours; None where none is asked."""
    limit_s = jobs.seconds(resources.get("time"))
    return None if limit_s is None else limit_s / 3600


class Budget:
    """The budget that holds for a chunk, and its ledger.

    Parameters
    ----------
    record
        ``{"amounts": {"usd": 50.0}, "usd_per_h": 0.7, "since": 1}``; ``since`` is the first chunk that it holds for.
    resources
        What each run of the chunk asks for, as in ``spec.json``.
    """

    def __init__(self, files: ExperimentFiles, record: Record, resources: Record) -> None:
        self._files = files
        self.path = os.path.join(files.dir, "budget-%d.jsonl" % record["since"])
        self.amounts: Dict[str, float] = record["amounts"]
        rates = hourly(resources, record.get("usd_per_h"))
        self._rates = {unit: rates[unit] for unit in self.amounts}
        self._most_h = longest_h(resources)
        self._position = 0
        self._spent = dict.fromkeys(self.amounts, 0.0)
        self._open: Dict[int, Record] = {}  # run -> where it was admitted, while it has not ended
        self._ended_h, self._n_ended = 0.0, 0

    def admit(
        self, index: int, is_free: Callable[[], bool], claim: Callable[[], Optional[Record]]
    ) -> Tuple[Optional[Record], str]:
        """Claim a run and put aside what it may take, unless that is too much; return its record, or the refusal.

        Parameters
        ----------
        is_free
            Whether the run can be claimed, as far as can be told before.
        claim
            Returns the record of the attempt; None if another one was faster.

        Returns
        -------
        Record or None, str
            The refusal is LATER where runs that go on may leave enough when they end, SPENT where none will.

        Raises
        ------
        OSError
            If the ledger cannot be written.
        """
        self._read_on()  # most of it, while nobody waits
        with records.locked(self.path + ".lock"):
            if not is_free():
                return None, ""
            self._read_on()
            before = self._open.get(index)
            if before is not None:  # its worker was killed
                self._append({"run": index, "attempt": before["attempt"], "h": self._lost_h(index, before)})
                self._read_on()
            refusal = self._room()
            record = None if refusal else claim()
            if record is not None:
                entry = {"run": index, "attempt": record["attempt"], "at": time.time(), "rates": self._rates}
                self._append(dict(entry, most_h=self._most_h))
            return record, refusal

    def n_running(self) -> int:
        """Return how many runs there are that were admitted and have not ended, as far as is known."""
        self._read_on()
        return len(self._open)

    def settle(self, index: int, attempt: int, wall_s: float) -> None:
        """Give back what an attempt that has ended did not take; nothing, if it was not admitted.

        Raises
        ------
        OSError
            If the ledger cannot be written.
        """
        with records.locked(self.path + ".lock"):
            self._read_on()
            if self._open.get(index, {}).get("attempt") == attempt:
                self._append({"run": index, "attempt": attempt, "h": wall_s / 3600})

    def _room(self) -> str:
        now, most_h, answer = time.time(), self._may_take_h(), ""
        for unit, amount in self.amounts.items():
            own = self._rates[unit] * most_h
            reserved = [
                (each["rates"].get(unit, 0.0) * self._reserved_h(each, now), each) for each in self._open.values()
            ]
            if _fits(self._spent[unit] + sum(part for part, _ in reserved), own, amount):
                continue
            for_good = sum(part for part, each in reserved if not _ends_in_time(each, now))
            if not _fits(self._spent[unit] + for_good, own, amount):
                return SPENT
            answer = LATER
        return answer

    def _may_take_h(self) -> float:
        if self._most_h is not None:
            return self._most_h
        return self._ended_h / self._n_ended if self._n_ended else 0.0

    def _reserved_h(self, entry: Record, now: float) -> float:
        most_h: Optional[float] = entry["most_h"]
        if most_h is not None:
            return most_h
        begun: float = entry["at"]
        return max((now - begun) / 3600, self._may_take_h() if self._most_h is None else 0.0)

    def _lost_h(self, index: int, entry: Record) -> float:
        """Return for how long an attempt ran whose end nobody wrote down, by the last sign of life that it left."""
        signs = [_modified_at(self._files.run(index, name)) for name in _SIGNS]
        begun: float = entry["at"]
        took_h = max(0.0, (max(signs) - begun) / 3600)
        return took_h if entry["most_h"] is None else min(took_h, float(entry["most_h"]))

    def _read_on(self) -> None:
        """Take in what is new; a last line that is still being written, or that a crash cut off, is left out."""
        try:
            with open(self.path, "rb") as file:
                file.seek(self._position)
                data = file.read()
        except FileNotFoundError:
            return
        whole = data.rpartition(b"\n")[0]
        self._position += len(whole) + 1 if whole else 0
        for line in whole.split(b"\n"):
            try:
                self._take(json.loads(line))
            except ValueError:  # cut off by a crash, and followed by others
                continue

    def _take(self, entry: Record) -> None:
        if "h" not in entry:
            self._open[entry["run"]] = entry
            return
        begun = self._open.pop(entry["run"], None)
        if begun is not None:
            for unit in self._spent:
                self._spent[unit] += begun["rates"].get(unit, 0.0) * entry["h"]
            self._ended_h, self._n_ended = self._ended_h + entry["h"], self._n_ended + 1

    def _append(self, entry: Record) -> None:
        line = records.dump(entry).encode() + b"\n"
        with open(self.path, "ab+") as file:
            if file.tell() and _last_byte(file.fileno()) != b"\n":
                line = b"\n" + line
            file.write(line)


def _fits(used: float, own: float, amount: float) -> bool:
    """Whether a budget allows to begin: it has to be there, also for what takes an unknown time."""
    return used < amount and used + own <= amount * (1 + _ROUNDING)


def _ends_in_time(entry: Record, now: float) -> bool:
    """Whether a run goes on and gives back what it did not take: not if it has no limit, or was lost."""
    return entry["most_h"] is not None and bool(now < entry["at"] + entry["most_h"] * 3600 + _OVERDUE_S)


def _last_byte(handle: int) -> bytes:
    return os.pread(handle, 1, max(0, os.fstat(handle).st_size - 1))


def _modified_at(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def of_chunk(files: ExperimentFiles, spec: Record, chunk: Record) -> Optional[Budget]:
    """Return the budget that holds for the runs of a chunk: its own, else the experiment's; None without any."""
    record = chunk.get("budget")
    if not record and spec.get("budget"):
        record = {"amounts": spec["budget"], "usd_per_h": spec.get("usd_per_h"), "since": 0}
    return Budget(files, record, spec["resources"]) if record else None
