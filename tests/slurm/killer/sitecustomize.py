"""Kills its process (SIGKILL) right before a certain thing that it does to the world.

On PYTHONPATH of an ``ems`` command, this needs nothing from ``ems`` itself: Python's audit hooks (PEP 578) tell of
every file that is opened for writing, renamed, linked or removed, of every child process and, through sqlite3's trace,
of every statement. EMS_TEST_STEPS names a file that gets a line for each such step: its kind, which has # for what
differs from time to time. EMS_TEST_KILL is JSON: {"kind": KIND, "nth": N} dies before the Nth step of that kind,
"delay_s" so much later, and "signal" SIGSTOP stops there instead.
"""

import contextlib
import json
import os
import re
import signal
import sys
import threading
from collections import Counter


class _Killer:
    def __init__(self, kill: dict, log: str) -> None:
        self.at = (kill.get("kind"), kill.get("nth", 1))
        self.delay_s = kill.get("delay_s", 0)
        self.signal = signal.Signals[kill.get("signal", "SIGKILL")]
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666) if log else -1
        self.seen: Counter = Counter()
        self.own = threading.local()  # what a step does itself is no step; another thread's step is one
        self.lock = threading.Lock()
        self.untraced: list = []

    def hook(self, event: str, args: tuple) -> None:
        if getattr(self.own, "is_busy", False):
            return
        if event == "sqlite3.connect/handle":
            self.untraced.append(args[0])
            return
        if self.untraced:
            self.trace()
        did = _describe(event, args)
        if did:
            self.step(did)

    def trace(self) -> None:
        """Trace the new connections: the event comes before they are usable, the first event after it does not."""
        self.own.is_busy = True
        for connection in self.untraced:
            with contextlib.suppress(Exception):  # closed already
                connection.set_trace_callback(self.statement)
        self.untraced.clear()
        self.own.is_busy = False

    def statement(self, sql: str) -> None:
        words = sql.split()
        if words and words[0].upper() in ("BEGIN", "COMMIT", "INSERT", "UPDATE", "DELETE", "CREATE"):
            self.step("sql " + " ".join(words[:3]))

    def step(self, did: str) -> None:
        self.own.is_busy = True
        with self.lock:
            self.count(did)
        self.own.is_busy = False

    def count(self, did: str) -> None:
        kind = " ".join(re.sub(r"[0-9a-f]{8,}|\d+|/\S+?/project/", "#", did).split())
        self.seen[kind] += 1
        if self.log >= 0:
            os.write(self.log, (kind + "\n").encode("utf-8", "replace"))
        if (kind, self.seen[kind]) == self.at:
            if self.delay_s:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process at once, and nothing can catch it
                signal.setitimer(signal.ITIMER_REAL, self.delay_s)
            else:
                os.kill(os.getpid(), self.signal)


def _describe(event: str, args: tuple) -> str:
    if event == "open":
        path, _, flags = args
        writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) if isinstance(flags, int) else 0
        text = os.fsdecode(path) if isinstance(path, (str, bytes)) else ""
        return "write " + text if writes and "/.ems/" in text and "__pycache__" not in text else ""
    if event in ("os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
        paths = [os.fsdecode(arg) for arg in args[:2] if isinstance(arg, (str, bytes))]
        return event[3:] + " " + " ".join(paths) if any("/.ems/" in path for path in paths) else ""
    if event == "subprocess.Popen":
        return "start " + " ".join(os.fsdecode(word) for word in args[1][:4])
    return "start " + os.fsdecode(args[0]) if event == "os.posix_spawn" else ""


# taken out of the environment, so that children live
_kill, _log = os.environ.pop("EMS_TEST_KILL", ""), os.environ.pop("EMS_TEST_STEPS", "")
if _kill or _log:
    sys.addaudithook(_Killer(json.loads(_kill or "{}"), _log).hook)
