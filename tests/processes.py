"""Real processes for tests, and waiting for conditions with a bound."""

import asyncio
import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Self, TypeVar

from app.embedded import dies_with_parent

T = TypeVar("T")

POLL_S = 0.05
#: What is waited for comes at once on a machine that has time; this bound is for one that has none.
PATIENCE_S = 30.0


class Process:
    """One program in a session of its own, its output in a file; ends with the test run, whatever happens to that.

    `user` is the id of another user (and group) to run it as; only root may ask for that.
    """

    def __init__(
        self,
        command: Sequence[str | Path],
        output_path: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        user: int | None = None,
    ) -> None:
        self.command = [str(part) for part in command]
        self.output_path = output_path
        with output_path.open("ab") as output:
            self.popen = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
                start_new_session=True,
                user=user,
                group=user,
                extra_groups=None if user is None else [],
                preexec_fn=dies_with_parent(signal.SIGKILL),
            )

    @property
    def pid(self) -> int:
        return self.popen.pid

    def poll(self) -> int | None:
        """None while it runs, otherwise the exit status."""
        return self.popen.poll()

    def output(self) -> str:
        return self.output_path.read_text(errors="replace")

    def wait_for_line(self, text: str, timeout: float = 60) -> str:
        """The first line of the output that contains the text; AssertionError if it ends or does not say so in time."""
        deadline = time.monotonic() + timeout
        while True:
            ended = self.poll() is not None
            for line in self.output().splitlines():
                if text in line:
                    return line
            if ended or time.monotonic() > deadline:
                why = f"ended with {self.poll()}" if ended else f"{timeout} s went by"
                raise AssertionError(f"{self.command} never said {text!r}: {why}\n{self.output()[-4000:]}")
            time.sleep(POLL_S)

    def wait(self, timeout: float = 30) -> int:
        """The exit status, once it ends by itself."""
        try:
            return self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.command} did not end in {timeout} s\n{self.output()[-4000:]}") from None

    def send_signal(self, how: signal.Signals) -> None:
        """Send a signal to the process alone, not to its children."""
        self.popen.send_signal(how)

    def stop(self, timeout: float = 30) -> int:
        """SIGTERM; the exit status. AssertionError, and the whole session killed, if it does not end in time."""
        self.popen.terminate()
        try:
            return self.wait(timeout)
        finally:
            self.kill()

    def kill(self) -> None:
        """SIGKILL to the process and to whatever it left in its process group. May be called at any time."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        self.popen.wait()

    def pause(self) -> None:
        os.killpg(self.popen.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.killpg(self.popen.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def wait_until(condition: Callable[[], T], timeout: float = PATIENCE_S, what: str = "the condition") -> T:
    """The first true value of `condition`, asked every 50 ms; AssertionError that names `what` and the last value."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout} s; last seen: {value!r}")
        time.sleep(POLL_S)


async def eventually(
    condition: Callable[[], Awaitable[T]], timeout: float = PATIENCE_S, what: str = "the condition"
) -> T:
    """As `wait_until`, for a coroutine function."""
    deadline = time.monotonic() + timeout
    while True:
        value = await condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout} s; last seen: {value!r}")
        await asyncio.sleep(POLL_S)


def alive(pid: int) -> bool:
    """Whether a process with this id runs; one that has ended and waits for its parent (a zombie) does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in {"Z", "X"}
    except (FileNotFoundError, ProcessLookupError):
        return False
