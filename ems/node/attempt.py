"""One attempt at a run: claimed by exactly one worker, started as the user would have, recorded however it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import time

from ems.node import records
from ems.node.job import CANCELLED, TIME_LIMIT, process_start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

    from ems.node.job import Job
    from ems.node.records import ExperimentFiles, Record
    from ems.node.slots import Share

_MAX_VARIABLE = 120_000  # bytes; Linux allows 128 KiB a variable
_RETRIES = 5  # of writing a record: a file system may be full or away for a moment
_NOT_INHERITED = ("SUBMITIT_", "EMS_")
_HANDED_OVER = ("EMS_", "SLURM_", "PYTHON", "CUDA_")  # into a container that does not take all of the environment
# what Python ignores for itself must not be ignored by the script
_DEFAULT_SIGNALS = [
    getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ", "SIGCHLD", "SIGHUP") if hasattr(signal, name)
]


class CannotStartError(Exception):
    """A run cannot be started; ``message`` is the reason, ``hint`` says how to mend it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


def claim(files: ExperimentFiles, chunk: Record, index: int, job: Job) -> Optional[Record]:
    """Claim the next attempt at run ``index`` for this job and return its record; None if it is not ours to run.

    A chunk gives each of its runs one attempt, and a further one whenever the job that had it was requeued before the
    run was done: so a chunk may be submitted twice, or a worker started twice, and nothing runs twice. Of a job that
    runs share (``--pack``) only those go on that it interrupted.

    Raises
    ------
    OSError
        If the record cannot be written.
    """
    last = records.last_attempt(files, index)
    if last is not None and not _is_next(last, chunk, job):
        return None
    number = 1 if last is None else last["attempt"] + 1
    is_fresh = last is None or (bool(chunk.get("fresh")) and last["chunk"] < chunk["chunk"])
    record: Record = {
        "v": 1,
        "index": index,
        "attempt": number,
        "chunk": chunk["chunk"],
        "state": "RUNNING",
        **job.facts(),
        "gpus": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "started_at": records.now(),
        "resumed_from": None if is_fresh or last is None else last["attempt"],
        "stdout_from": _size(files.run(index, "stdout.log")),
        "stderr_from": _size(files.run(index, "stderr.log")),
    }
    os.makedirs(files.run(index, "attempts"), exist_ok=True)
    return (
        record if records.create_exclusive(files.attempt(index, number), records.dump(record), durable=False) else None
    )


def is_claimable(files: ExperimentFiles, chunk: Record, index: int, job: Job) -> bool:
    """Whether the next attempt at a run is this job's, if nobody is faster."""
    last = records.last_attempt(files, index)
    return last is None or _is_next(last, chunk, job)


def link_datasets(files: ExperimentFiles, spec: Record) -> List[str]:
    """Make ``EMS_DATA/NAME`` of the experiment, for each name what it meant at submission; return where they are.

    Raises
    ------
    CannotStartError
        If a data set is gone.
    """
    found = []
    for name, content in (spec.get("datasets") or {}).items():
        path = os.path.join(files.root, "data", content)
        if not os.path.isdir(path):
            raise CannotStartError("the data set %s is no longer in %s" % (name, path), "ems data push DIR %s" % name)
        os.makedirs(files.data, exist_ok=True)
        with contextlib.suppress(FileExistsError):  # the worker of another run was faster
            os.symlink(path, os.path.join(files.data, name))
        found.append(path)
    return found


def end_orphans(files: ExperimentFiles, record: Record, job: Job) -> None:
    """Kill what the attempt before left running here when its worker was killed: two must not share a directory."""
    if record["attempt"] == 1:
        return
    last = records.read_attempt(files, record["index"], record["attempt"] - 1) or {}
    is_here = (last.get("host"), last.get("boot_id")) == (job.host, job.boot_id)
    if last.get("state") == "RUNNING" and is_here and process_start(last["pid"]) != last["pid_start"]:
        mark = b"\0EMS_RUN_DIR=%s\0" % os.fsencode(files.run(record["index"]))
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError), open("/proc/%s/environ" % name, "rb") as file:
                if mark in b"\0" + file.read():
                    os.kill(int(name), signal.SIGKILL)


def _is_next(last: Record, chunk: Record, job: Job) -> bool:
    if last["chunk"] != chunk["chunk"]:
        return bool(last["chunk"] < chunk["chunk"])
    if last["job"] != job.name:
        return False
    if last["state"] == "PENDING":
        return True
    is_over = last["state"] == "COMPLETED" or (bool(chunk.get("pack")) and last["state"] != "RUNNING")
    return bool(last["restart"] < job.restart) and not is_over


class Attempt:
    """A claimed attempt and, once started, its process.

    Parameters
    ----------
    files, spec, record
        Of the experiment, and what :func:`claim` returned.
    share
        The part of the machine that it may use.
    params
        What the chunk lays over the run's own params.
    """

    def __init__(
        self, files: ExperimentFiles, spec: Record, record: Record, share: Share, params: Optional[Record] = None
    ) -> None:
        self.files, self.spec, self.record, self.share = files, spec, record, share
        self.params = params or {}
        self.index: int = record["index"]
        self.folder = files.run(self.index)
        self.view = os.path.join(self.folder, "files")
        self.pid = 0
        self.started = time.monotonic()
        self.why = ""  # why the worker ended it, if it did
        self.kill_at: Optional[float] = None
        if share.gpus is not None:
            record["gpus"] = ",".join(share.gpus)

    # ------------------------------------------------------------------------------------------ start

    def clear_the_way(self) -> None:
        """Where the run begins anew, keep aside what earlier attempts left in its directories.

        Raises
        ------
        OSError
            If the run's directory cannot be written.
        """
        if self.record["resumed_from"] is not None:
            return
        for name in ("checkpoint", "files"):
            with contextlib.suppress(FileNotFoundError):
                aside = "%d-%s" % (self.record["attempt"] - 1, name)
                os.rename(os.path.join(self.folder, name), os.path.join(self.folder, "attempts", aside))

    def start(self, lib: str) -> None:
        """Start the script in its view.

        Raises
        ------
        CannotStartError
            If its command line cannot be made, or its program is not there.
        OSError
            If the run's directory cannot be written.
        """
        run = records.read_run(self.files, self.index)
        run["params"].update(self.params)
        argv, extra = self._command(run)
        env = self._environment(run, lib, extra)
        argv = self._wrapped(argv, env, extra)
        program = _find(argv[0], env.get("PATH", os.defpath))
        self.record["python"] = self.spec["python"]
        os.makedirs(self._cwd(), exist_ok=True)  # an empty directory is in no snapshot
        os.chdir(self._cwd())
        for handle in self.share.inherit:
            os.set_inheritable(handle, True)
        try:
            self.pid = os.posix_spawn(
                program,
                argv,
                env,
                # straight into the files, with no tee in between: nothing is lost with a killed worker or held up by it
                file_actions=[
                    (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                    (os.POSIX_SPAWN_OPEN, 1, self._log("stdout"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666),
                    (os.POSIX_SPAWN_OPEN, 2, self._log("stderr"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666),
                ],
                setpgroup=0,
                setsigmask=(),
                setsigdef=_DEFAULT_SIGNALS,
            )
        except OSError as error:
            raise CannotStartError("`%s` cannot be started: %s" % (argv[0], error.strerror)) from error
        finally:
            for handle in self.share.inherit:
                os.set_inheritable(handle, False)
            os.chdir("/")

    def _cwd(self) -> str:
        return os.path.normpath(os.path.join(self.view, self.spec.get("cwd") or "."))

    def _log(self, stream: str) -> str:
        return os.path.join(self.folder, stream + ".log")

    def _command(self, run: Record) -> Tuple[List[str], Dict[str, str]]:
        from ems.node import argv

        spec = self.spec
        launcher = None
        if spec.get("loops"):
            from ems.node import launch

            launcher = launch.arguments(spec["loops"], run["loops"])
        script = os.path.relpath(spec["script"], spec.get("cwd") or ".")
        if script.startswith("-"):  # Python would take it for an option
            script = os.path.join(".", script)
        try:
            words, env = argv.command(
                spec["python"], script, spec["args"], run["params"], spec["pass_as"], spec.get("command"), launcher
            )
        except ValueError as error:
            raise CannotStartError(str(error)) from error
        return words, env

    def _wrapped(self, words: List[str], env: Mapping[str, str], own: Mapping[str, str]) -> List[str]:
        """Put container and setup lines around the command; ``own`` are the variables that params are passed in."""
        if self.spec.get("container"):
            from ems.node import container

            names = [name for name in env if name.startswith(_HANDED_OVER) or name in own]
            binds = [self.files.root, *(self.spec.get("data") or {}).values()]
            gpu, is_set_up = bool(self.record["gpus"]), bool(self.spec.get("setup"))
            try:
                prefix = container.prefix(self.spec["container"], self._cwd(), binds, gpu, names, is_set_up)
            except container.ContainerError as error:
                raise CannotStartError(error.message, error.hint) from error
            words = prefix + words
        if self.spec.get("setup"):
            words = ["bash", "-c", _setup(self.spec["setup"]), "ems", *words]
        return words

    def _environment(self, run: Record, lib: str, extra: Mapping[str, str]) -> Dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith(_NOT_INHERITED)}
        env.setdefault("PYTHONUNBUFFERED", "1")  # what is printed is seen at once, and not lost with a killed run
        env.update(self.spec.get("env") or {})
        env.update(extra)
        paths = [lib, *filter(None, [env.get("PYTHONPATH")])]
        env.update(
            PYTHONPATH=os.pathsep.join(paths),
            EMS_EXPERIMENT=self.files.id,
            EMS_INDEX=str(self.index),
            EMS_ATTEMPT=str(self.record["attempt"]),
            EMS_RESUME="0" if self.record["resumed_from"] is None else "1",
            EMS_SEED=str(run["seed"]),
            EMS_RUN_DIR=self.folder,
            EMS_CHECKPOINT_DIR=os.path.join(self.folder, "checkpoint"),
            EMS_ROOT=self.files.root,
            EMS_DATA=self.files.data if self.spec.get("datasets") else os.path.join(self.files.root, "data"),
        )
        params = records.dump(run["params"])
        if len(params) < _MAX_VARIABLE // 4 or len(params.encode("utf-8", "surrogatepass")) < _MAX_VARIABLE:
            env["EMS_PARAMS"] = params
        else:
            env["EMS_PARAMS_FILE"] = os.path.join(self.folder, "params.json")
            records.write_atomic(env["EMS_PARAMS_FILE"], params, durable=False)
        if self.spec.get("loops"):
            env["EMS_LOOP_PARAMS"] = self._loop_params()
        if self.share.gpus is not None:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(self.share.gpus)
        return env

    def _loop_params(self) -> str:
        return os.path.join(self.folder, "attempts", "%d.params" % self.record["attempt"])

    # ------------------------------------------------------------------------------------------ end

    def end(self, why: str, grace_s: float) -> None:
        """Have it end: SIGTERM to all its processes, and SIGKILL after ``grace_s`` seconds; again: correct why."""
        if self.kill_at is None:
            self.kill_at = time.monotonic() + grace_s
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)  # a stopped process would not learn of it
        self.why = why

    def signal(self, number: int) -> None:
        """Send a signal to all processes of the run, except those that left its process group."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def record_end(self, status: int, usage: Any, is_requeued: bool = False, is_oom: bool = False) -> None:
        """Write down how it ended.

        Parameters
        ----------
        status, usage
            From os.wait4.
        is_requeued
            Whether a run that was ended is to go on in a next attempt.
        is_oom
            Whether the kernel killed something for want of memory while it ran.
        """
        self.record["exit_code"] = os.WEXITSTATUS(status) if os.WIFEXITED(status) else None
        self.record["signal"] = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else ""
        self.record["max_rss_mb"] = round(usage.ru_maxrss / 1024, 1)
        self.record["cpu_s"] = round(usage.ru_utime + usage.ru_stime, 3)
        self.record["wall_s"] = round(time.monotonic() - self.started, 3)
        self._take_loop_params()
        if self.why == CANCELLED:
            self.close("CANCELLED", self.why)
        elif self.why:
            self.close("PENDING" if is_requeued else "FAILED", self.why)
        elif status == 0:
            self.close("COMPLETED", "")
        else:
            self._diagnose(is_oom)

    def _diagnose(self, is_oom: bool) -> None:
        from ems.node import diagnosis

        text = diagnosis.tail(self._log("stderr"), self.record["stderr_from"])
        code = os.path.join(self.files.root, "code", self.spec["snapshot"])
        error = diagnosis.last_error(text, (self.view, code))
        self.record["error"] = error
        reason = diagnosis.reason(self.record["exit_code"], self.record["signal"], error, text)
        self.close("FAILED", "out of memory (%s)" % reason if is_oom else reason)

    def times_out_of_time(self) -> int:
        """Count the earlier attempts of this chunk that the time limit ended."""
        earlier = (records.read_attempt(self.files, self.index, n) for n in range(1, self.record["attempt"]))
        chunk = self.record["chunk"]
        return sum(r is not None and r["chunk"] == chunk and r.get("reason") == TIME_LIMIT for r in earlier)

    def _take_loop_params(self) -> None:
        """Move what the launcher wrote (the actual values of a loop that is not known before) into the record."""
        if self.spec.get("loops"):
            with contextlib.suppress(OSError, ValueError):
                self.record["params"] = records.read_json(self._loop_params())
                os.unlink(self._loop_params())

    def fail(self, reason: str, hint: str = "") -> None:
        """Write down that it could not even be started; its stderr says so too, if the disk has room for it."""
        said = "ems: %s\n%s" % (reason, "hint: %s\n" % hint if hint else "")
        with contextlib.suppress(OSError), open(self._log("stderr"), "ab") as file:
            file.write(said.encode("utf-8", "surrogateescape"))
        self.record["exit_code"], self.record["signal"] = None, ""
        self.close("FAILED", reason)

    def close(self, state: str, reason: str) -> None:
        """Write the record of the ended attempt, patiently: a file system may be full or away for a moment.

        Raises
        ------
        OSError
            If it cannot be written for several seconds.
        """
        self.record.update(state=state, reason=reason, ended_at=records.now())
        path = self.files.attempt(self.index, self.record["attempt"])
        for left in reversed(range(_RETRIES)):
            try:
                for folder in (self.folder, os.path.dirname(path)):  # a script may have deleted all that it found
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(folder)
                records.write_atomic(path, records.dump(self.record), durable=False)
                break
            except OSError:
                if not left:
                    raise
                time.sleep(1)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


def _find(program: str, path: str) -> str:
    """Return the program's path, found in the PATH that the run has, not the worker.

    Raises
    ------
    CannotStartError
        If it is not there.
    """
    # shutil.which would do; importing it takes a worker longer than all of this run
    folders = [""] if os.sep in program else path.split(os.pathsep)
    for found in (os.path.join(folder, program) for folder in folders):
        if os.access(found, os.X_OK) and not os.path.isdir(found):
            return found
    raise CannotStartError("`%s` is not on node %s" % (program, os.uname().nodename))


def _setup(lines: Sequence[str]) -> str:
    """Return a bash script that runs the setup lines and becomes the run; its words are arguments, never code."""
    guarded = ['{ %s\n} || { code=$?; echo "ems: setup failed" >&2; exit $code; }' % line for line in lines]
    return "\n".join([*guarded, 'exec "$@"'])
