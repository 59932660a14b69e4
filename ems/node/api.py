"""What a script sees of its run: params, log, checkpoint. Works outside a run too, where it does nothing harmful."""

from __future__ import annotations

import json
import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any, Dict, Optional

_FLUSH_S = 1.0
_RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")


def params() -> Dict[str, Any]:
    """Return the params of this run, with their types; empty outside a run."""
    file = os.environ.get("EMS_PARAMS_FILE")
    if file:
        with open(file, encoding="utf-8") as text:
            return dict(json.load(text))
    return dict(json.loads(os.environ.get("EMS_PARAMS") or "{}"))


def seed(default: int = 0) -> int:
    """Return the seed of this run; ``default`` outside a run."""
    return int(os.environ.get("EMS_SEED") or default)


def attempt() -> int:
    """Return the number of this attempt at the run, from 1."""
    return int(os.environ.get("EMS_ATTEMPT") or 1)


def is_resumed() -> bool:
    """Whether this attempt continues an earlier one, whose :func:`checkpoint` directory it finds."""
    return os.environ.get("EMS_RESUME") == "1"


def checkpoint() -> Path:
    """Return a directory that survives requeues, made if missing; ``./checkpoint`` outside a run."""
    from pathlib import Path

    folder = Path(os.environ.get("EMS_CHECKPOINT_DIR") or "checkpoint")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def log(step: Optional[int] = None, all_ranks: bool = False, **metrics: Any) -> None:
    """Record metrics of this run, e.g. ``ems.log(step=3, loss=0.2, acc=0.9)``.

    Cheap (about 10 µs) and safe in forked and distributed processes. Outside a run it does nothing.

    Parameters
    ----------
    step
        Epoch or iteration; by default one more than that of the call before, from 0.
    all_ranks
        Distributed processes: by default only that of rank 0 records.
    **metrics
        Numbers, booleans or text by name; numpy scalars and tensors of one element are fine. A dict is taken as
        ``name.key``.

    Raises
    ------
    TypeError
        If a value is none of these; the message names the metric.
    """
    if all_ranks not in _sinks:
        _sinks[all_ranks] = _sink(all_ranks)
    sink = _sinks[all_ranks]
    if sink is not None:
        sink.write(step, metrics)


def _sink(all_ranks: bool) -> Optional[_Sink]:
    """Return where this process records, None where it does not: no run, or not rank 0."""
    folder = os.environ.get("EMS_RUN_DIR")
    rank = next((os.environ[name] for name in _RANKS if os.environ.get(name)), "0")
    if not folder or (rank != "0" and not all_ranks):
        return None
    return _Sink(os.path.join(folder, "metrics.jsonl" if rank == "0" else "metrics-%s.jsonl" % rank))


class _Sink:
    """An append-only file of one JSON object a line; each line is one write(2), so that none is lost or torn.

    The kernel's page cache is the buffer: a line costs it about a microsecond, and is safe even if the process is
    killed. Nothing here is held across calls, so that threads and forks need no care. Once a second, and when the
    process ends, a descriptor is closed: that has network file systems show the lines to other nodes.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._encode = json.JSONEncoder(separators=(",", ":"), default=_plain).encode
        self._attempt = attempt()
        self._next_step: Optional[int] = None
        self._flush_at = 0.0
        self._handle = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        size = os.fstat(self._handle).st_size
        if size and os.pread(self._handle, 1, size - 1) != b"\n":  # torn by a full disk: it must not spoil ours
            os.write(self._handle, b"\n")

    def write(self, step: Optional[int], metrics: Dict[str, Any]) -> None:
        """Append one line."""
        if step is None:
            step = _first_step(self._path) if self._next_step is None else self._next_step
        if isinstance(step, int):
            self._next_step = step + 1
        at = time.time()
        os.write(self._handle, self._line({"step": step, **metrics, "_t": round(at, 3), "_a": self._attempt}))
        if at > self._flush_at:
            os.close(os.dup(self._handle))
            self._flush_at = at + _FLUSH_S

    def _line(self, record: Dict[str, Any]) -> bytes:
        if dict in map(type, record.values()):
            record = _flat(record)
        try:
            return (self._encode(record) + "\n").encode("utf-8", "surrogatepass")
        except TypeError as error:
            for name, value in record.items():  # say which one it is
                try:
                    self._encode(value)
                except TypeError:
                    raise TypeError("ems.log: `%s` %s" % (name, error)) from None
            raise


_sinks: Dict[bool, Optional[_Sink]] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_sinks.clear)  # a forked worker may have another rank


def _plain(value: Any) -> Any:
    """Turn what json does not know (numpy scalars, tensors of one element) into what it does."""
    item = getattr(value, "item", None)
    if item is not None:
        try:
            return item()
        except (ValueError, RuntimeError):
            shape = tuple(getattr(value, "shape", ()))
            raise TypeError("is an array of shape %s, not a number" % (shape,)) from None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError("is of type %s, not a number, boolean or text" % type(value).__name__)


def _flat(record: Dict[str, Any], prefix: str = "") -> Dict[str, Any]:
    flat: Dict[str, Any] = {}
    for name, value in record.items():
        flat.update(_flat(value, "%s%s." % (prefix, name)) if isinstance(value, dict) else {prefix + name: value})
    return flat


def _first_step(path: str) -> int:
    """Return 0, or where this attempt continues another one, the step after its last line."""
    if not is_resumed():
        return 0
    try:
        with open(path, "rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
            lines = file.read().split(b"\n")
    except OSError:
        return 0
    for line in reversed(lines):  # a torn one may stand behind the last whole one
        try:
            return int(json.loads(line)["step"]) + 1
        except (ValueError, LookupError, TypeError):
            continue
    return 0
