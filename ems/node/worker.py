"""The worker: claims runs of one chunk, starts them, waits for them, writes down how they ended.

    python3 -I -S ROOT/lib/HASH/ems/node/worker.py ROOT EXP CHUNK [--task T] [--workers W] [--gpus 0,1] [--here]

Standard library only, Python 3.8 or newer, ready in milliseconds. In an array job it is the batch shell of one array
task; on a machine without SLURM one worker is the pool that holds W runs at a time. It is one thread that waits for
signals: SIGCHLD (a run has ended), SIGUSR1 (SLURM: the time limit is near), SIGTERM (cancelled or preempted), SIGPWR
(the node is about to be lost: end what runs with grace; a second time: at once).
"""

from __future__ import annotations

import os
import sys
import time

if __name__ == "__main__":  # -I: nothing but this folder's own package is on the path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

import signal
from itertools import islice

from ems.node import job as jobs
from ems.node import records
from ems.node.attempt import Attempt, CannotStartError, claim, end_orphans, is_claimable, link_datasets
from ems.node.job import BUDGET, CANCELLED, PREEMPTED, TERMINATED, TIME_LIMIT, Job

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

    from ems.node.budget import Budget
    from ems.node.records import ExperimentFiles, Record
    from ems.node.slots import Allotment, Machine, Share

_SIGNALS = (
    signal.SIGCHLD,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGHUP,
    signal.SIGPWR,
)
_SLOT_POLL_S = 0.05  # another pool's run has ended: nobody tells
_CANCEL_POLL_S = 1.0
_KILL_AGAIN_S = 5.0
_REQUEUE_AGAIN_S = 1.0
_REQUEUE_TRIES = 5
_SIGTERM_LAG_S = 1.0  # between the first and the last process of a job that SLURM signals
_CHEAP_CHECK_S = 0.02


class Options:
    """What the command line says."""

    def __init__(self, argv: Sequence[str]) -> None:
        words: List[str] = []
        given: Dict[str, str] = {}
        rest = iter(argv)
        for word in rest:
            if word == "--here":
                given[word] = "1"
            elif word in ("--task", "--workers", "--gpus"):
                given[word] = next(rest)
            else:
                words.append(word)
        root, self.experiment, chunk = words
        self.root, self.chunk = os.path.abspath(root), int(chunk)
        self.here = "--here" in given
        self.task = int(given.get("--task") or os.environ.get("SLURM_ARRAY_TASK_ID") or 0)
        self.workers = int(given["--workers"]) if "--workers" in given else None
        self.gpus = [gpu for gpu in given.get("--gpus", "").split(",") if gpu]


class Worker:
    """One worker of one chunk."""

    def __init__(self, options: Options) -> None:
        self.files: ExperimentFiles = records.ExperimentFiles(options.root, options.experiment)
        spec, chunk = records.read_json(self.files.spec), records.read_json(self.files.chunk(options.chunk))
        if spec is None or chunk is None:
            raise FileNotFoundError("experiment %s has no chunk %d" % (options.experiment, options.chunk))
        changed = {name: value for name, value in (chunk.get("resources") or {}).items() if value is not None}
        spec["resources"] = {**(spec.get("resources") or {}), **changed}
        self.spec, self.chunk = spec, chunk
        self.job = Job(os.environ, options.here)
        self.lib = sys.path[0]
        self.workers = options.workers or chunk.get("pack") or 1
        self.shares = _shares(spec, options, self.workers)
        self.is_pool = options.here or bool(chunk.get("pack"))
        self.limit_s = jobs.seconds(spec["resources"].get("time")) if options.here else None
        self.grace_s = float(spec.get("grace_s", 60))
        if self.job.is_slurm:
            self.grace_s = jobs.notice(self.spec["resources"].get("time"), self.grace_s)[1]
        self.running: Dict[int, Attempt] = {}  # by process id
        self.interrupted: List[Attempt] = []  # to go on in a next attempt
        self.status = 0
        self.why = ""  # why the worker ends before its runs are done, if it does
        self._claimed_any = False
        # a controller of SLURM's that has lost its last seconds brings back what was cancelled in them
        is_cancelled = (records.read_json(self.files.chunk(options.chunk, "job")) or {}).get("job") == CANCELLED
        self._queue = iter(()) if is_cancelled else _order(chunk, options.task, self.is_pool)
        self._next: List[int] = []  # seen in the queue, or to be resumed
        self._runs_in: Optional[_Place] = None
        self._oom_kills = jobs.oom_kills()
        self._next_look = 0.0
        self._is_node_lost = False
        self.budget = _budget(self.files, spec, chunk)
        self._lacks_means = False  # until runs that go on have ended
        self._has_spent = False  # the whole budget

    # ------------------------------------------------------------------------------------------ the loop

    def work(self) -> int:
        """Run until nothing is left to claim, or told to end; return the exit status."""
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        signal.signal(
            signal.SIGPWR, lambda *_: None
        )  # never called: by it the node's watch sees who waits for the signal
        while self._fill() or self.running:
            self._handle(signal.sigtimedwait(_SIGNALS, self._patience_s()))
            self._reap()
            self._look()
        self._leave()
        return self.status

    def _fill(self) -> bool:
        """Start runs while there are seats; return whether some wait for a share of the machine."""
        while not self.why and len(self.running) < self.workers and self._has_next():
            share = self.shares.take()
            if share is None:
                return True
            self._lacks_means = False
            if not self._start(self._next.pop(), share):
                self.shares.give_back(share)
            if self._lacks_means:
                return not self.why
        return False

    def _has_next(self) -> bool:
        if not self._next:
            self._next.extend(islice(self._queue, 1))
        return bool(self._next)

    def _patience_s(self) -> float:
        """Seconds until something is due that no signal tells of."""
        if not self.why and len(self.running) < self.workers and self._next:
            return _CANCEL_POLL_S if self._lacks_means else _SLOT_POLL_S
        now = time.monotonic()
        due = [a.kill_at for a in self.running.values() if a.kill_at is not None] + [self._next_look]
        if self.limit_s is not None:
            due += [a.started + self.limit_s - self._grace_of_limit() for a in self.running.values() if not a.why]
        return max(0.0, min(due) - now)

    def _handle(self, info: Optional[signal.struct_siginfo]) -> None:
        # CPython's sigtimedwait returns garbage where it was interrupted (stopped and continued, a laptop that slept)
        # and its time is over: only a signal that means the end ends anything
        if info is None or info.si_signo in (signal.SIGCHLD, signal.SIGHUP) or info.si_signo not in _SIGNALS:
            return
        if info.si_signo == signal.SIGUSR2:  # means nothing to us: the script's own
            for attempt in self.running.values():
                attempt.signal(info.si_signo)
        elif info.si_signo == signal.SIGUSR1:
            self._end(self.why or TIME_LIMIT)
            if self.job.is_preempted():
                self._end(PREEMPTED)
        elif info.si_signo == signal.SIGPWR and self.job.is_slurm:  # from the node's watch, templates/…/ems-watch
            self._lose_node()
        else:  # may follow SIGUSR1: cancelled while it is ending
            self._end(self.why or TERMINATED)
            why = self.job.why_terminated()  # only now: SLURM may take its time to answer
            if why != TERMINATED:
                self._end(why)

    def _end(self, why: str) -> None:
        """Claim nothing more and have all runs end, or correct why."""
        self.why = why
        for attempt in self.running.values():
            attempt.end(why, self.grace_s)

    def _lose_node(self) -> None:
        """End everything, since the cloud takes this machine back; asked again: now."""
        self._end(self.why if self.why == CANCELLED else PREEMPTED)
        if self._is_node_lost:
            for attempt in self.running.values():
                attempt.kill_at = time.monotonic()
        self._is_node_lost = True

    def _reap(self) -> None:
        while self.running:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid == 0:
                return
            attempt = self.running.pop(pid, None)
            if attempt is not None:
                self._finish(attempt, status, usage)

    def _look(self) -> None:
        """Do what is due: end runs that are cancelled or out of time, kill those that do not end."""
        now = time.monotonic()
        is_poll, self._next_look = now >= self._next_look, max(self._next_look, now + _CANCEL_POLL_S)
        for attempt in list(self.running.values()):
            if attempt.kill_at is not None and now >= attempt.kill_at:
                attempt.signal(signal.SIGKILL)
                attempt.kill_at = now + _KILL_AGAIN_S
            elif self.limit_s is not None and now >= attempt.started + self.limit_s - self._grace_of_limit():
                attempt.end(TIME_LIMIT, self._grace_of_limit())
            elif is_poll and self._is_cancelled(attempt.index):
                attempt.end(CANCELLED, self.grace_s)

    def _grace_of_limit(self) -> float:
        return min(self.grace_s, (self.limit_s or 0.0) / 2)

    def _is_cancelled(self, index: int) -> bool:
        chunk: int = self.chunk["chunk"]
        return records.cancelled_up_to(self.files, index) >= chunk

    # ------------------------------------------------------------------------------------------ one run

    def _start(self, index: int, share: Share) -> bool:
        """Claim and start a run; return whether it is running now."""
        try:
            record, refusal = self._claim(index)
        except OSError as error:
            self._give_up("run %d cannot be claimed: %s" % (index, error))
            return False
        if record is None:
            return False
        self._claimed_any = True
        attempt = Attempt(self.files, self.spec, record, share, records.chunk_params(self.chunk, index))
        if refusal or self._is_cancelled(index):
            self._write(attempt, attempt.close, "CANCELLED", refusal or CANCELLED)
            self._clean(attempt)
            return False
        try:
            end_orphans(self.files, record, self.job)
            attempt.clear_the_way()
            self._place().make(attempt.view)
            attempt.start(self.lib)
        except CannotStartError as error:
            self._write(attempt, attempt.fail, error.message, error.hint)
        except OSError as error:
            self._write(attempt, attempt.fail, "the run cannot be started: %s" % error)
        else:
            self.running[attempt.pid] = attempt
            return True
        self._clean(attempt)
        return False

    def _claim(self, index: int) -> Tuple[Optional[Record], str]:
        """Claim a run; where there are no means for it, either say so as well, or leave it for later."""
        if self.budget is None or self._is_cancelled(index):  # to say so takes nothing
            return claim(self.files, self.chunk, index, self.job), ""
        whose = (self.files, self.chunk, index, self.job)
        record, refusal = self.budget.admit(index, lambda: is_claimable(*whose), lambda: claim(*whose))
        if not refusal:
            return record, ""
        if refusal == "later" and self._waits(self.budget):
            self._lacks_means = True
            self._next.append(index)
            return None, ""
        if refusal == "spent" and not self._has_spent:
            self._has_spent = True
            self.job.cancel_pending()  # each would come, take a node, and be refused as well
        return claim(*whose), BUDGET

    def _waits(self, budget: Budget) -> bool:
        """Wait for runs to end: with those that run here, or in SLURM's queue; return whether that can be."""
        if self.running or not self.job.is_slurm:
            return True
        self.job.throttle(min(max(1, budget.n_running()), self.spec.get("max_parallel") or sys.maxsize))
        for _ in range(_REQUEUE_TRIES):  # a SLURM that is busy for a moment is no reason to leave the run out
            if self.job.requeue():
                self.why = BUDGET
                return True
            time.sleep(_REQUEUE_AGAIN_S)
        return False

    def _place(self) -> _Place:
        if self._runs_in is None:
            self._runs_in = _Place(self.files.root, self.spec)
        self._runs_in.verify()
        return self._runs_in

    def _finish(self, attempt: Attempt, status: int, usage: Any) -> None:
        attempt.signal(signal.SIGKILL)  # what it left behind ends with it
        self.shares.give_back(attempt.share)
        if self.job.is_slurm and status and not self.why:
            self._hear_why(attempt, status)
        is_requeued = self._goes_on(attempt)
        self._write(attempt, attempt.record_end, status, usage, is_requeued, self._was_out_of_memory(status))
        self._clean(attempt)
        if is_requeued:
            self.interrupted.append(attempt)
            if not self.why:
                self._next.append(attempt.index)
        elif not self.is_pool:
            self.status = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)

    def _write(self, attempt: Attempt, how: Callable[..., None], *facts: Any) -> None:
        """Write down how a run ended; where that cannot be, start no more, but wait for those that run."""
        try:
            how(*facts)
        except OSError as error:
            self._give_up("how run %d ended cannot be written: %s" % (attempt.index, error))

    def _hear_why(self, attempt: Attempt, status: int) -> None:
        """Learn whether SLURM ended the run: it signals all processes of a job, and the run may be the first to die."""
        by_sigterm = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGTERM
        is_likely = by_sigterm or (os.WIFEXITED(status) and os.WEXITSTATUS(status) == 128 + signal.SIGTERM)
        lag_s = _SIGTERM_LAG_S if is_likely else 0.0
        self._handle(signal.sigtimedwait((signal.SIGTERM, signal.SIGUSR1, signal.SIGPWR), lag_s))
        attempt.why = attempt.why or self.why

    def _goes_on(self, attempt: Attempt) -> bool:
        """Whether a run that was ended is to be resumed: always after preemption, some times after a time limit."""
        if attempt.why in ("", CANCELLED):
            return False
        if attempt.why != TIME_LIMIT:
            return True
        return attempt.times_out_of_time() < int(self.spec.get("max_requeues", 3))

    def _was_out_of_memory(self, status: int) -> bool:
        """Whether the kernel has killed for want of memory since the last look."""
        if not (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL):
            return False
        before, self._oom_kills = self._oom_kills, jobs.oom_kills()
        return self._oom_kills > before

    def _clean(self, attempt: Attempt) -> None:
        if self.budget is not None:
            try:
                self.budget.settle(attempt.index, attempt.record["attempt"], attempt.record.get("wall_s") or 0.0)
            except OSError as error:  # its share stays put aside
                sys.stderr.write("ems worker: the budget cannot be kept: %s\n" % error)
        if self._runs_in is not None:
            self._runs_in.clear(attempt.view)
        if self.spec.get("study_id"):
            self._call_driver()
        if self.job.is_slurm and attempt.record["state"] != "PENDING" and records.has_waiting_chunks(self.files):
            from ems.node import feed

            feed.after_run(self.files, self.chunk["chunk"], attempt.index)

    def _call_driver(self) -> None:
        """Tell a study's driver that a run has ended."""
        records.call_driver(self.files)
        if self.job.is_slurm:
            from ems.node import feed

            feed.call_forward(self.files)

    # ------------------------------------------------------------------------------------------ the end

    def _give_up(self, problem: str) -> None:
        sys.stderr.write("ems worker: %s\n" % problem)
        self.status, self.why = 1, problem

    def _leave(self) -> None:
        """Have SLURM start this job again if runs are to go on, or are left and time was up."""
        if self.why not in (TIME_LIMIT, PREEMPTED) or not self.job.is_slurm:
            return
        is_unfinished = self.is_pool and (self._claimed_any or self.job.restart == 0) and self._is_any_left()
        if not self.interrupted and not is_unfinished:
            return
        while not self.job.requeue():
            if self.why == TIME_LIMIT:
                for attempt in self.interrupted:
                    attempt.close("FAILED", TIME_LIMIT)
            if not self._is_node_lost:  # a preempted job is SLURM's to requeue
                return
            time.sleep(_REQUEUE_AGAIN_S)  # to end now would be to end well; that of the node requeues the job, too
        self.status = 0

    def _is_any_left(self) -> bool:
        chunk: int = self.chunk["chunk"]
        last = (records.last_attempt(self.files, index) for index in self._queue)
        return bool(self._next) or any(record is None or record["chunk"] < chunk for record in last)


class _Place:
    """The checkout, and the views that runs get of it."""

    def __init__(self, root: str, spec: Record) -> None:
        from ems.node import checkout
        from ems.node.seal import seal
        from ems.node.view import View

        self._root, self._snapshot, self._checkout = root, spec["snapshot"], checkout
        datasets = link_datasets(records.ExperimentFiles(root, spec["id"]), spec)
        data = {path: target for path, target in (spec.get("data") or {}).items() if os.path.exists(target)}
        try:
            self._files = checkout.manifest(root, spec["snapshot"])
        except checkout.CheckoutError as error:
            raise CannotStartError(error.message, error.hint) from error
        self._view = View(root, spec["snapshot"], self._files, spec.get("linked_dirs") or (), data, spec["script"])
        seal([os.path.join(root, "code", spec["snapshot"]), *data.values(), *datasets])
        self._valid_until = 0.0

    def verify(self) -> None:
        """Check that nobody changed the checkout; of a large one, spend at most a tenth of the time on it.

        Raises
        ------
        CannotStartError
            If a file was changed; the message names it.
        """
        began = time.monotonic()
        if began < self._valid_until:
            return
        try:
            self._checkout.verify(self._root, self._snapshot, self._files)
        except self._checkout.CheckoutError as error:
            raise CannotStartError(error.message, error.hint) from error
        took = time.monotonic() - began
        self._valid_until = began + (10 * took if took > _CHEAP_CHECK_S else 0.0)

    def make(self, folder: str) -> None:
        """Build a run's view."""
        self._view.make(folder)

    def clear(self, folder: str) -> None:
        """Leave only what the run wrote."""
        self._view.clear(folder)


def _budget(files: ExperimentFiles, spec: Record, chunk: Record) -> Optional[Budget]:
    if not (spec.get("budget") or chunk.get("budget")):
        return None
    from ems.node import budget

    return budget.of_chunk(files, spec, chunk)


def _order(chunk: Record, task: int, is_pool: bool) -> Iterator[int]:
    """Yield the runs that array task ``task`` is to try: its own one, or of a shared chunk all, from its own first."""
    indices = records.chunk_indices(chunk)
    if not is_pool:
        yield from indices[task : task + 1]
        return
    first = min(task * (chunk.get("pack") or 0), len(indices))
    yield from indices[first:]
    yield from indices[:first]


def _shares(spec: Record, options: Options, workers: int) -> Union[Machine, Allotment]:
    from ems.node import slots

    if options.here:
        resources = spec["resources"]
        per_run, cores = slots.gpus_per_run(resources), resources.get("cpus") or 1
        seats = (options.experiment, spec["max_parallel"]) if spec.get("max_parallel") else None
        return slots.Machine(options.gpus, per_run, cores, workers, slots.lock_folder(), seats)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return slots.Allotment([gpu for gpu in visible.split(",") if gpu], workers)


def main(argv: Sequence[str]) -> int:
    """Do the work of one worker; return the exit status."""
    return Worker(Options(argv)).work()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
