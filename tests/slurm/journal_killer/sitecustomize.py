"""Kills its process (SIGKILL) at a certain line of a cluster's journal; tells which programs it started.

On PYTHONPATH of an ``ems`` command, by Python's audit hooks (PEP 578). EMS_TEST_JOURNAL_KILL is JSON: {"line": N,
"when": WHEN}: "before" dies before the Nth line is written, "after" before the next program is started after it (or,
where none is, before the line that follows), "amid" a moment after that program was started, so that the program goes
on alone. EMS_TEST_ARGV names a file that gets the words of every program that is started, a JSON list a line.
"""

import json
import os
import signal
import sys
import threading


class _Killer:
    def __init__(self, kill: dict, log: str) -> None:
        self.line, self.when = kill.get("line", 0), kill.get("when", "")
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600) if log else -1
        self.seen = 0
        self.is_armed = False
        self.own = threading.local()  # what a step does itself is no step; another thread's step is one
        self.lock = threading.Lock()

    def hook(self, event: str, args: tuple) -> None:
        if getattr(self.own, "is_busy", False) or event not in ("open", "subprocess.Popen", "os.posix_spawn"):
            return
        self.own.is_busy = True
        with self.lock:
            (self.opened if event == "open" else self.started)(args)
        self.own.is_busy = False

    def opened(self, args: tuple) -> None:
        path, _, flags = args
        if not isinstance(path, (str, bytes)) or not os.fsdecode(path).endswith("/journal.jsonl"):
            return
        if not (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)):
            return
        self.seen += 1
        if self.line and self.seen == self.line + (self.when != "before"):
            os.kill(os.getpid(), signal.SIGKILL)

    def started(self, args: tuple) -> None:
        words = [os.fsdecode(word) for word in args[1]]
        if self.log >= 0:
            os.write(self.log, (json.dumps(words) + "\n").encode())
        if self.line and self.seen == self.line and self.when == "after":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.line and self.seen == self.line and self.when == "amid" and not self.is_armed:
            self.is_armed = True
            signal.setitimer(signal.ITIMER_REAL, 0.05)  # its signal ends the process at once; nothing catches it


# taken out of the environment, so that children live
_kill, _log = os.environ.pop("EMS_TEST_JOURNAL_KILL", ""), os.environ.pop("EMS_TEST_ARGV", "")
if _kill or _log:
    sys.addaudithook(_Killer(json.loads(_kill or "{}"), _log).hook)
