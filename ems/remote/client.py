"""The near side: the agent of a target as something that is asked and answers.

Nothing is started until the first question. A connection that breaks is made once more and the question asked again,
which is safe since every operation is idempotent; a second break is an error, and what was done before stays so.
"""

from __future__ import annotations

import subprocess
import tempfile
import threading
from collections.abc import Generator
from contextlib import suppress
from typing import IO, Any, cast

from ems.errors import ConnectionFailedError, EmsError, TargetError
from ems.registry import RemoteTarget
from ems.remote import wire
from ems.version import __version__

_NOISE = 1000  # lines that a login shell may print before the agent speaks
_END_S = 3.0


class Agent:
    """The agent of a target, one process there for one command of the user here. Safe to share between threads.

    Parameters
    ----------
    target
        Where it is, as the registry has it.
    """

    def __init__(self, target: RemoteTarget) -> None:
        self.target = target
        self._connection: _Connection | None = None
        self._lock = threading.RLock()

    def call(self, do: str, data: bytes = b"", **args: Any) -> Any:
        """Ask for an operation and return what it returns; ``args`` are JSON.

        Raises
        ------
        EmsError
            What the other side raised.
        ConnectionFailedError
            If the target cannot be reached.
        TargetError
            If there is no ``ems`` there, or one of another version.
        """
        with self._lock:
            try:
                return _last(self._exchange(do, data, args))
            except _BrokenError:
                return _last(self._exchange(do, data, args))

    def stream(self, do: str, data: bytes = b"", **args: Any) -> Generator[tuple[wire.Frame, bytes], None, Any]:
        """Ask for an operation and yield the parts of its answer; its last value is what the operation returns.

        One that has yielded nothing yet is asked again like :meth:`call`; after that it is for the caller to say from
        where to go on.

        Raises
        ------
        EmsError, ConnectionFailedError, TargetError
            As :meth:`call`.
        """
        with self._lock:
            began = False
            for is_last in (False, True):
                parts = self._exchange(do, data, args)
                try:
                    while True:
                        try:
                            part = next(parts)
                        except StopIteration as end:
                            return end.value
                        began = True
                        yield part
                except _BrokenError:
                    if began or is_last:
                        raise
            return None

    def close(self) -> None:
        """Hang up; the agent ends by itself."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _exchange(self, do: str, data: bytes, args: wire.Frame) -> Generator[tuple[wire.Frame, bytes], None, Any]:
        connection = self._connected()
        try:
            answer = yield from connection.ask({"do": do, "args": args}, data)
        except BaseException as error:
            if isinstance(error, _BrokenError) or not isinstance(error, EmsError):  # or left in mid-answer
                self.close()
            raise
        return answer

    def _connected(self) -> _Connection:
        if self._connection is None:
            try:
                self._connection = _Connection(self.target)
            except _BrokenError as error:
                if not self.target.host.control_path().exists():
                    raise error.for_good(self.target) from None
                self.target.host.renew()  # the shared connection may be one that a sleeping laptop has lost
                try:
                    self._connection = _Connection(self.target)
                except _BrokenError as again:
                    raise again.for_good(self.target) from None
        return self._connection


class _BrokenError(ConnectionFailedError):
    """The wire broke: asking again may help."""

    def for_good(self, target: RemoteTarget) -> ConnectionFailedError:
        """Return the error of a target that has been asked often enough."""
        if target.facts.get("paused"):
            return ConnectionFailedError(f"the cluster {target.name} is paused", f"ems cluster resume {target.name}")
        if target.facts.get("idle"):
            rested = f"it may have gone to rest, since nobody needed it: ems cluster resume {target.name}"
            return ConnectionFailedError(self.message, f"{rested}; {self.hint}" if self.hint else rested)
        return ConnectionFailedError(self.message, self.hint)


class _Connection:
    """One agent process, having said hello."""

    def __init__(self, target: RemoteTarget) -> None:
        self._target = target
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # until close()
        try:
            self._process = subprocess.Popen(
                target.host.argv(command(target)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._said
            )
        except FileNotFoundError:
            self._said.close()
            raise ConnectionFailedError("there is no ssh on this machine", "install openssh-client") from None
        self._stdin, self._stdout = cast("tuple[IO[bytes], IO[bytes]]", (self._process.stdin, self._process.stdout))
        try:
            self._wait_for_greeting()
            args = {"root": target.root, "executor": target.executor, "worker_python": target.worker_python}
            self._check(_last(self.ask({"do": "hello", "args": args})))
        except BaseException:
            self.close()
            raise

    def ask(self, header: wire.Frame, data: bytes = b"") -> Generator[tuple[wire.Frame, bytes], None, Any]:
        """Send a request; yield the parts of the answer.

        Raises
        ------
        _BrokenError
            If the wire breaks.
        """
        try:
            wire.send(cast("Any", self._stdin), header, data)
            self._stdin.flush()
            return (yield from wire.answers(cast("Any", self._stdout)))
        except (wire.BrokenWireError, OSError) as error:
            raise self._failure(str(error)) from error

    def close(self) -> None:
        with suppress(OSError):
            self._stdin.close()
        with suppress(OSError):
            self._stdout.close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._said.close()

    def _wait_for_greeting(self) -> None:
        for _ in range(_NOISE):
            line = self._stdout.readline()
            if line.endswith(wire.GREETING):
                return
            if not line:
                break
        raise self._failure("")

    def _check(self, hello: wire.Frame) -> None:
        ours: wire.Frame = {"protocol": wire.PROTOCOL, "version": __version__, "code": wire.code_digest()}
        if hello != ours:
            theirs = f"{hello.get('version')} ({str(hello.get('code'))[:8]})"
            raise TargetError(
                f"{self._target.name} has ems {theirs}, and this is {__version__} ({ours['code'][:8]})",
                f"ems cluster upgrade {self._target.name}",
            )

    def _failure(self, why: str) -> EmsError:
        """Say why there is no answer, in the words of ssh or of the shell there."""
        with suppress(OSError):
            self._stdin.close()
        try:
            status = self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            status = -1
        self._said.seek(0)
        said = self._said.read()
        words = " ".join(said.decode(errors="replace").split())[-500:] or why or f"exit status {status}"
        if status in (126, 127) or b"No module named" in said:
            return TargetError(
                f"there is no ems on {self._target.name}: {words}", f"ems cluster upgrade {self._target.name}"
            )
        host = self._target.host
        done: subprocess.CompletedProcess[bytes] = subprocess.CompletedProcess((), status, b"", said)
        failure = host.failure(done) if status == 255 else None
        message = failure.message if failure else f"the connection to {self._target.name} broke: {words}"
        return _BrokenError(message, failure.hint if failure else "type the command again: it carries on")


def command(target: RemoteTarget) -> list[str]:
    """Return the words that start the agent there: nothing that lies in the home directory is imported (``-P``)."""
    python = target.ems[: target.ems.index("-m")] if "-m" in target.ems else target.ems[:1]
    return [*python, "-P", "-m", "ems.remote.agent"]


def _last(parts: Generator[Any, None, Any]) -> Any:
    """Pass over the parts of an answer; return what the operation returned."""
    while True:
        try:
            next(parts)
        except StopIteration as end:
            return end.value
