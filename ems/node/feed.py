"""Handing chunks over, each exactly once: from ``ems`` and from workers on a node alike.

Whoever is about to submit chunk C first creates ``C.intent`` by link(2), locked with flock(2); the submitting child
(``sbatch``, or the pool of workers itself) inherits the lock, so it is held until the last of them has ended, however
they end. ``C.job`` is written once the answer is known. Killed in between, the next one finds an intent without a job
and a lock that is free: it asks the scheduler once for the job by its name, ``ems-EXP.C``, before it submits. Should
two array jobs of one chunk come to be all the same, workers' exclusive claims see to it that no run starts twice.
"""

import contextlib
import errno
import fcntl
import os
import re
import shutil
import subprocess
import time
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Tuple

from ems.node import records
from ems.node.records import ExperimentFiles, Record

CANCELLED = "cancelled"  # the "job" of a chunk that was cancelled before it was submitted
_TIMEOUT_S = 60.0
_STALE_S = 300.0  # an intent without a job is given up after this where the file system has no flock(2)
_RETRY_S = 30.0
_PATIENCE_S = 60.0
_FULL = re.compile(r"SubmitJobLimit|MaxSubmit|MaxJobCount|temporarily unable to accept|submit limit", re.IGNORECASE)
_UNSURE = re.compile(r"timed out|Zero Bytes|send/recv|Unexpected message|Protocol authentication", re.IGNORECASE)
_AWAY = re.compile(r"Unable to contact|connect failure|Connection refused|not resolve|plugin_init", re.IGNORECASE)


class RefusedError(Exception):
    """The scheduler took nothing; its own words."""

    @property
    def is_full(self) -> bool:
        """Whether it is only that too many jobs are queued: a later try may succeed."""
        return _FULL.search(str(self)) is not None

    @property
    def is_away(self) -> bool:
        """Whether the scheduler could not be reached."""
        return _AWAY.search(str(self)) is not None


class UnsureError(RefusedError):
    """No answer: the scheduler may have taken the chunk. The next try asks for it by name first."""


Start = Callable[[ExperimentFiles, int, int], str]  # (files, chunk, lock's descriptor) -> job
Find = Callable[[ExperimentFiles, int], Optional[str]]


def job_name(files: ExperimentFiles, chunk: int) -> str:
    """Return the job name of a chunk, by which it is found again."""
    return "ems-%s.%d" % (files.id, chunk)


def job_of(files: ExperimentFiles, chunk: int) -> Optional[str]:
    """Return the job of a chunk, CANCELLED, or None where it has not been handed over."""
    record = records.read_json(files.chunk(chunk, "job"))
    return None if record is None else str(record["job"])


def waiting(files: ExperimentFiles) -> List[int]:
    """Numbers of the chunks that nobody has handed over, ascending."""
    try:
        names = set(os.listdir(files.chunks))
    except FileNotFoundError:
        return []
    numbers = (int(name[:-5]) for name in names if name.endswith(".json") and name[:-5].isdigit())
    return sorted(number for number in numbers if "%d.job" % number not in names)


def submit(files: ExperimentFiles, chunk: int, start: Start, find: Find) -> Optional[str]:
    """Hand over one chunk unless it was; return its job, or None where another process is at it right now.

    Raises
    ------
    RefusedError
        If the scheduler does not take it.
    UnsureError
        If that is not known.
    """
    job = job_of(files, chunk)
    if job is not None:
        return job
    turn = _take_turn(files, chunk)
    if turn is None:
        return job_of(files, chunk)
    lock, is_first = turn
    try:
        job = job_of(files, chunk)
        if job is None and not is_first:
            job = find(files, chunk)
        if job is None:
            job = start(files, chunk, lock)
        return record_job(files, chunk, job)
    except UnsureError:
        raise
    except RefusedError:
        os.unlink(files.chunk(chunk, "intent"))  # while locked: who comes next is the first again
        raise
    finally:
        os.close(lock)


def cancel_waiting(files: ExperimentFiles) -> None:
    """Mark the chunks that were not handed over as cancelled, so that nobody ever does.

    One whose submitter was killed, and which SLURM turns out to have, gets its job recorded instead. It goes on
    waiting if SLURM does not answer.
    """
    for number in waiting(files):
        with contextlib.suppress(UnsureError):
            submit(files, number, lambda *_: CANCELLED, find)


def record_job(files: ExperimentFiles, chunk: int, job: str) -> str:
    """Write down the job of a chunk unless one is; return the one that is."""
    tasks = (records.read_json(files.chunk(chunk)) or {}).get("tasks", 0)
    record = {"job": job, "submitted_at": records.now(), "tasks": tasks}
    if records.create_exclusive(files.chunk(chunk, "job"), records.dump(record)):
        return job
    return job_of(files, chunk) or job


# ------------------------------------------------------------------------------------------ whose turn it is


def _take_turn(files: ExperimentFiles, chunk: int) -> Optional[Tuple[int, bool]]:
    """Return the locked descriptor of the intent and whether nobody tried before; None while another one tries."""
    path = files.chunk(chunk, "intent")
    lock = _create_locked(path, records.dump({"host": os.uname().nodename, "pid": os.getpid(), "at": records.now()}))
    if lock is not None:
        return lock, True
    try:
        lock = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # given back this moment
        return None
    if _lock(lock, path) and _is_same(lock, path):
        return lock, False
    os.close(lock)
    return None


def _create_locked(path: str, content: str) -> Optional[int]:
    """Create ``path`` whole and locked from its first moment; None where it exists."""
    aside = "%s.%d.%d.aside" % (path, os.getpid(), time.monotonic_ns())
    lock = os.open(aside, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        os.write(lock, content.encode())
        os.fsync(lock)
        _lock(lock, aside)
        os.link(aside, path)
    except FileExistsError:
        os.close(lock)
        return None
    except BaseException:
        os.close(lock)
        raise
    finally:
        os.unlink(aside)
    return lock


def _lock(descriptor: int, path: str) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        return age_s(path) > _STALE_S
    return True


def _is_same(descriptor: int, path: str) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    return False


def age_s(path: str) -> float:
    """Seconds since ``path`` was modified, by the clock of its file server; infinity where it is missing."""
    probe = "%s.%d.%d.aside" % (path, os.getpid(), time.monotonic_ns())
    try:
        with open(probe, "wb"):
            return os.stat(probe).st_mtime - os.stat(path).st_mtime
    except FileNotFoundError:
        return float("inf")
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(probe)


# ------------------------------------------------------------------------------------------ sbatch

# sbatch(1), INPUT ENVIRONMENT VARIABLES: they win over the script, so those that the script speaks of are dropped.
_VARIABLES = {"array": "ARRAY_INX", "mem": "MEM_PER_NODE", "time": "TIMELIMIT", "requeue": "NO_REQUEUE"}
# What belongs to the job that a feeding worker runs in, and not to the job that it submits.
_OF_A_JOB = re.compile(
    r"SLURM(D|_(?!CONF(_SERVER)?$|CLUSTERS$))|EMS_|SUBMITIT_|(CUDA|ROCR|HIP|ZE)_\w*VISIBLE_DEVICES|GPU_DEVICE_ORDINAL|TMPDIR$"
)


def sbatch(files: ExperimentFiles, chunk: int, lock: int) -> str:
    """Submit ``C.sh``; return the id of the array job.

    Raises
    ------
    RefusedError
        With sbatch's own words.
    UnsureError
        If sbatch got no answer.
    """
    path = files.chunk(chunk, "sh")
    argv, after = ["sbatch", "--parsable"], _after_the_one_before(files, chunk)
    try:
        done = _run([*argv, *after, path], env=clean_environment(path), lock=lock)
        if done.returncode > 0 and "dependency" in done.stderr.lower():  # the one before is long forgotten
            done = _run([*argv, path], env=clean_environment(path), lock=lock)
    except subprocess.TimeoutExpired as expired:
        heard = expired.stderr or b""  # bytes, whatever was asked for
        text = heard.decode(errors="replace") if isinstance(heard, bytes) else heard
        raise UnsureError(words(text) or "sbatch gave no answer within %d s" % _TIMEOUT_S) from None
    except FileNotFoundError:
        raise RefusedError("there is no sbatch on %s" % os.uname().nodename) from None
    job = done.stdout.strip().split("\n")[-1].split(";")[0]
    if done.returncode == 0 and job.isdigit():
        return job
    said = words(done.stderr) or done.stdout.strip() or "sbatch: exit status %d" % done.returncode
    if done.returncode <= 0 or (_UNSURE.search(said) and not _AWAY.search(said)):
        raise UnsureError(said)
    raise RefusedError(said)


def find(files: ExperimentFiles, chunk: int) -> Optional[str]:
    """Return the job of a chunk whose submitter was killed, from what its workers wrote or from SLURM.

    Raises
    ------
    UnsureError
        If the scheduler cannot be asked.
    """
    if (records.read_json(files.chunk(chunk)) or {}).get("executor") == "here":
        return None  # what started it held the lock: it is gone
    return find_in_attempts(files, chunk) or find_by_name(files, chunk)


def find_in_attempts(files: ExperimentFiles, chunk: int) -> Optional[str]:
    """Return the array job that the first attempt of ``chunk`` names, or None where no run has started."""
    for index in records.chunk_indices(records.read_json(files.chunk(chunk)) or {"start": 0, "stop": 0}):
        attempt = records.last_attempt(files, index)
        if attempt is not None and attempt.get("chunk") == chunk and attempt.get("array_job_id"):
            return str(attempt["array_job_id"])
    return None


def find_by_name(files: ExperimentFiles, chunk: int) -> Optional[str]:
    """Ask the scheduler, and its accounting where there is one, for the job by its name."""
    name = job_name(files, chunk)
    queue = _ask(["squeue", "-h", "-t", "all", "-o", "%F", "--name=" + name])
    jobs = [int(line) for line in queue.split() if line.isdigit()]
    if not jobs and shutil.which("sacct"):
        with contextlib.suppress(RefusedError):  # sites without accounting have no more to say
            known = _ask(["sacct", "-X", "-n", "-P", "-o", "JobID", "-S", "now-30days", "--name=" + name])
            jobs = [int(line.split("_")[0]) for line in known.split() if line.split("_")[0].isdigit()]
    return str(min(jobs)) if jobs else None


def words(text: str) -> str:
    """Return what a SLURM command complained of, on one line, without its name before each."""
    lines = [re.sub(r"^\w+: (error: |fatal: )?", "", line).strip() for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line))


def clean_environment(script: str = "") -> Dict[str, str]:
    """Return the environment for sbatch: neither that of a surrounding job, nor what would win over ``script``."""
    env = {key: value for key, value in os.environ.items() if not _OF_A_JOB.match(key)}
    with contextlib.suppress(OSError), open(script, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            option = re.match(r"#SBATCH --([a-z-]+)", line)
            if option:
                name = option.group(1)
                env.pop("SBATCH_" + _VARIABLES.get(name, name.upper().replace("-", "_")), None)
    env.pop("SBATCH_WAIT", None)
    return env


_CALLS_APART_S = 5.0  # between two wakes of a study's driver


def call_forward(files: ExperimentFiles) -> None:
    """Have the job that is to drive a study next begin now, since a run has ended. Never raises.

    Whoever renames ``driver.job`` does it: one run for each wake, however many end. Where the site does not let users
    change their jobs, or nodes have no scontrol, the job begins when it would have.
    """
    path = os.path.join(files.dir, "driver.job")
    try:
        wait_s = max(0.0, _CALLS_APART_S - age_s(path))
        os.rename(path, path + ".called")
        with open(path + ".called") as file:
            job = file.read().strip()
        if job.isdigit():
            _run(["scontrol", "update", "JobId=" + job, "StartTime=now+%d" % round(wait_s)], env=clean_environment())
    except (OSError, subprocess.TimeoutExpired):
        pass


def _after_the_one_before(files: ExperimentFiles, chunk: int) -> List[str]:
    """With ``--max-parallel N``, which SLURM knows of one array only, chunks run one after another."""
    if chunk < 2 or not (records.read_json(files.spec) or {}).get("max_parallel"):
        return []
    before = job_of(files, chunk - 1) or ""
    return ["--dependency=afterany:" + before] if before.isdigit() else []


def _ask(argv: List[str]) -> str:
    try:
        done = _run(argv, env=clean_environment())
    except (subprocess.TimeoutExpired, OSError) as error:
        raise UnsureError("%s: %s" % (argv[0], error)) from None
    if done.returncode != 0:
        raise UnsureError(words(done.stderr) or "%s: exit status %d" % (argv[0], done.returncode))
    return done.stdout


def _run(argv: List[str], env: Dict[str, str], lock: Optional[int] = None) -> "subprocess.CompletedProcess[str]":
    # A session of its own: Ctrl-C in the terminal must not end sbatch between asking and being answered.
    return subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        universal_newlines=True,
        errors="replace",
        env=env,
        timeout=_TIMEOUT_S,
        pass_fds=() if lock is None else (lock,),
        start_new_session=True,
        check=False,
    )


# ------------------------------------------------------------------------------------------ feeding from a worker


def is_held(files: ExperimentFiles) -> bool:
    """Whether ``ems hold`` keeps chunks back."""
    return os.path.exists(hold_path(files))


def hold_path(files: ExperimentFiles) -> str:
    """Return the file whose presence means that the experiment is held."""
    return os.path.join(files.dir, "hold")


def feed(files: ExperimentFiles, numbers: Optional[Iterable[int]] = None) -> List[Tuple[int, str]]:
    """Hand over waiting chunks in order through sbatch, as many as are taken; return those that now are.

    Raises
    ------
    RefusedError
        When one is not taken; those before it are.
    """
    done = []
    for number in waiting(files) if numbers is None else numbers:
        if is_held(files):
            break
        job = submit(files, number, sbatch, find)
        if job is None:  # another process feeds
            break
        done.append((number, job))
    return done


def after_run(files: ExperimentFiles, chunk: int, index: int) -> None:
    """Feed, if chunks wait and it is the turn of the worker whose run of ``chunk`` has just ended.

    The last run of a chunk feeds; so does any other whose last predecessor tried over 30 s ago. The last run of all
    that was submitted tries for a minute: nobody else is left to do it but the next ``ems`` command. Never raises.
    """
    try:
        numbers = waiting(files)
        if not numbers:
            return
        is_last = mark_done(files, chunk, index)
        if is_last or age_s(_try_path(files)) > _RETRY_S:
            _feed_patiently(files, _PATIENCE_S if is_last and _all_done(files) else 0.0)
    except OSError:
        return  # a full disk or the like: the run's own record matters more, the next `ems` command feeds


def _feed_patiently(files: ExperimentFiles, patience_s: float) -> None:
    deadline, pause_s = time.monotonic() + patience_s, 1.0
    while True:
        with open(_try_path(files), "wb"):
            pass
        with contextlib.suppress(RefusedError):
            feed(files)
        if not waiting(files) or time.monotonic() + pause_s > deadline:
            return
        time.sleep(pause_s)
        pause_s *= 1.5


def _try_path(files: ExperimentFiles) -> str:
    return os.path.join(files.chunks, "tried")


def mark_done(files: ExperimentFiles, chunk: int, index: int) -> bool:
    """Leave a mark that run ``index`` has ended; return whether all of its chunk have."""
    folder = files.chunk(chunk, "done")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, str(index)), "wb"):
        pass
    return _is_done(files, chunk)


def _is_done(files: ExperimentFiles, chunk: int) -> bool:
    record: Record = records.read_json(files.chunk(chunk)) or {"start": 0, "stop": 0}
    try:
        return len(os.listdir(files.chunk(chunk, "done"))) >= len(records.chunk_indices(record))
    except FileNotFoundError:
        return False


def _all_done(files: ExperimentFiles) -> bool:
    return all(_is_done(files, number) for number in _submitted(files))


def _submitted(files: ExperimentFiles) -> Iterator[int]:
    pending = set(waiting(files))
    for number in files.chunk_numbers():
        if number not in pending and job_of(files, number) != CANCELLED:
            yield number
