"""Kills its process (SIGKILL) right before the Nth thing it does to the world.

On PYTHONPATH of an ``ems`` command, this needs nothing from ``ems`` itself: Python's audit hooks (PEP 578) tell of
every file that is opened for writing, renamed, linked or removed, of every child process and, through sqlite3's trace,
of every statement. EMS_TEST_KILL_LOG names a file that gets a line for each; EMS_TEST_KILL_AT says which one is not to
happen: ``12`` is the 12th, ``12+0.005`` dies 5 ms after it began, ``12:STOP`` stops there until SIGCONT.
"""

import contextlib
import os
import signal
import sys


class _Killer:
    def __init__(self, kill_at: str, log: str) -> None:
        kill_at, _, action = kill_at.partition(":")
        number, _, delay = kill_at.partition("+")
        self.action = signal.SIGSTOP if action == "STOP" else signal.SIGKILL
        self.number, self.delay_s = int(number), float(delay or 0)
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666) if log else -1
        self.count = 0
        self.is_busy = False
        self.untraced: list = []

    def hook(self, event: str, args: tuple) -> None:
        if self.is_busy:
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
        self.is_busy = True
        for connection in self.untraced:
            with contextlib.suppress(Exception):  # closed already
                connection.set_trace_callback(self.statement)
        self.untraced.clear()
        self.is_busy = False

    def statement(self, sql: str) -> None:
        words = sql.split()
        if words and words[0].upper() in ("BEGIN", "COMMIT", "INSERT", "UPDATE", "DELETE", "CREATE"):
            self.step("sql " + " ".join(words[:3]))

    def step(self, did: str) -> None:
        self.is_busy = True
        self.count += 1
        if self.log >= 0:
            os.write(self.log, (did.replace("\n", " ") + "\n").encode("utf-8", "replace"))
        if self.count == self.number:
            if self.delay_s:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process at once, and nothing can catch it
                signal.setitimer(signal.ITIMER_REAL, self.delay_s)
            else:
                os.kill(os.getpid(), self.action)
        self.is_busy = False


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
_kill_at, _log = os.environ.pop("EMS_TEST_KILL_AT", ""), os.environ.pop("EMS_TEST_KILL_LOG", "")
if _kill_at or _log:
    sys.addaudithook(_Killer(_kill_at or "0", _log).hook)
