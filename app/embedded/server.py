"""One server as a child process: its folder, port, password, log and lock, and how it starts and ends."""

import contextlib
import ctypes
import fcntl
import os
import pwd
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, ClassVar, Final

HOST: Final = "127.0.0.1"
SYSTEM_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
ENVIRONMENT: Final = {"PATH": SYSTEM_PATH, "LC_ALL": "C", "TZ": "UTC"}

#: Below the ports that Linux, macOS and gVisor give to outgoing connections. From that range a server's port might be
#: taken while the server is away, even by a client that dials it and so connects to itself.
_PORTS: Final = range(10_000, 16_000)
_LOG_LIMIT: Final = 10 * 1024 * 1024
_PREDECESSOR_S: Final = 15.0


class EmbeddedError(Exception):
    """A server cannot be started; the text is one line for the person at the terminal."""


class _PortTakenError(EmbeddedError):
    pass


def free_port() -> int:
    """A TCP port on loopback where nobody listens now, outside the range of outgoing connections."""
    for _ in range(200):
        port = random.SystemRandom().choice(_PORTS)
        if _is_free(port):
            return port
    raise EmbeddedError(f"no free port on {HOST} between {_PORTS[0]} and {_PORTS[-1]}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def write_private(path: Path, text: str) -> None:
    """Put a line into a file of mode 0600, all or nothing, whatever is at the path now."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
    fresh.replace(path)


def dies_with_parent(how: signal.Signals) -> Callable[[], None] | None:
    """What a child calls before exec so that the end of its parent, even by SIGKILL, sends it this signal; Linux only.

    It runs after the change of user, which would have cleared the setting.
    """
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def prepare() -> None:
        prctl(1, int(how), 0, 0, 0)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return prepare


def telling_line(output: str) -> str:
    """The line of a server's output that says why it ended, without its date and process id."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [found[0] for line in lines if (found := re.search(r"(FATAL|PANIC|ERROR|Fatal|error:|Failed).*", line))]
    return (telling or lines or ["it ended without a word"])[-1]


class Server:
    """One server in one folder. `start` and `stop` may follow each other as often as wanted.

    The kernel ties the child to the thread that calls `start`: that one must live as long as the server should.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    asks_to_stop: ClassVar[signal.Signals]
    hurries: ClassVar[Sequence[signal.Signals]]

    def __init__(self, folder: Path, port: int | None = None) -> None:
        self.folder = Path(folder).absolute()
        self._fixed_port = port
        self._port: int | None = port
        self._process: subprocess.Popen[bytes] | None = None
        self._account: pwd.struct_passwd | None = None
        self._password = ""

    @property
    def log_path(self) -> Path:
        return self._file("log")

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def port(self) -> int:
        if self._port is None:
            raise EmbeddedError(f"{self.title} has not been started")
        return self._port

    def poll(self) -> int | None:
        """None while it runs, otherwise the exit status (negative: the signal that ended it)."""
        if self._process is None:
            raise EmbeddedError(f"{self.title} has not been started")
        return self._process.poll()

    def start(self, timeout_s: float = 60) -> None:
        """Return once the server answers; EmbeddedError if it does not within the time. No-op while it runs."""
        if self.pid is not None:
            return
        deadline = time.monotonic() + timeout_s
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._prepare()
            lock = self._take_lock()
            try:
                self._initialise(lock)
                self._start(lock, deadline)
            finally:
                os.close(lock)
        except OSError as error:
            where = f": {error.filename}" if error.filename else ""
            raise EmbeddedError(f"{self.title} cannot be started: {error.strerror or error}{where}") from error

    def stop(self, timeout_s: float = 5) -> None:
        """Return once the server and all of its processes are gone; what does not end in time is killed."""
        if self._process is not None and self._process.poll() is None:
            self._end(self._process, timeout_s)
            os.close(self._take_lock())

    def _end(self, process: "subprocess.Popen[bytes]", timeout_s: float) -> None:
        for how, patience in zip((self.asks_to_stop, *self.hurries), (timeout_s, 1.5, 5), strict=False):
            process.send_signal(how)
            try:
                process.wait(patience)
            except subprocess.TimeoutExpired:
                continue
            return

    def _prepare(self) -> None:
        path = self._file("password")
        if path.exists():
            self._password = path.read_text().strip()
        else:
            self._password = secrets.token_hex(24)
            write_private(path, self._password)

    def _initialise(self, lock: int) -> None:
        """Make what a first start needs."""

    def _command(self, port: int) -> list[str]:
        raise NotImplementedError

    def _config(self, port: int) -> str:
        """What the server reads from its standard input."""
        return ""

    def _cwd(self) -> Path:
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _lock_path(self) -> Path:
        return self._file("lock")

    def _file(self, suffix: str) -> Path:
        return self.folder / f"{self.name}.{suffix}"

    def _take_lock(self) -> int:
        path = self._lock_path()
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        deadline = time.monotonic() + _PREDECESSOR_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(lock)
                    raise EmbeddedError(f"{self.title} of the folder {self.folder} is still running") from None
                time.sleep(0.05)
            else:
                return lock

    def _choose_port(self) -> int:
        if self._fixed_port is not None:
            return self._fixed_port
        try:
            remembered = int(self._file("port").read_text())
        except (FileNotFoundError, ValueError):
            return free_port()
        return remembered if 0 < remembered < 65536 and _is_free(remembered) else free_port()

    def _start(self, lock: int, deadline: float) -> None:
        for last in (False, False, True):
            port = self._port = self._choose_port()
            write_private(self._file("port"), str(port))
            with self._open_log() as log:
                begin = log.seek(0, os.SEEK_END)
                process = self._process = self._spawn(self._command(port), lock, log)
            try:
                assert process.stdin is not None
                with contextlib.suppress(BrokenPipeError), process.stdin as stdin:
                    stdin.write(self._config(port).encode())
                self._await_answer(process, deadline, begin)
            except _PortTakenError:
                if last or self._fixed_port is not None:
                    raise EmbeddedError(f"{self.title} did not start: the port {port} is taken") from None
            except BaseException:
                self._end(process, 1)
                raise
            else:
                return

    def _await_answer(self, process: "subprocess.Popen[bytes]", deadline: float, begin: int) -> None:
        while not self._answers():
            if process.poll() is not None:
                said = self._said_since(begin)
                kind = _PortTakenError if "Address already in use" in said else EmbeddedError
                raise kind(f"{self.title} did not start: {telling_line(said)} ({self.log_path})")
            if time.monotonic() > deadline:
                raise EmbeddedError(f"{self.title} did not answer in time ({self.log_path})")
            time.sleep(0.02)

    def _said_since(self, begin: int) -> str:
        return self.log_path.read_bytes()[begin:].decode(errors="replace")

    def _open_log(self) -> IO[bytes]:
        path = self.log_path
        if path.exists() and path.stat().st_size > _LOG_LIMIT:
            path.replace(path.with_name(path.name + ".old"))
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600), "ab")

    def _spawn(self, command: Sequence[str], lock: int, output: IO[bytes]) -> "subprocess.Popen[bytes]":
        account = self._account
        who = account and {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": ()}
        with warnings.catch_warnings():
            # Python 3.12 warns of any fork beside threads; ours calls nothing but prctl and exec.
            warnings.simplefilter("ignore", DeprecationWarning)
            return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
                list(command),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=self._cwd(),
                env=ENVIRONMENT,
                pass_fds=(lock,),
                umask=0o077,
                start_new_session=True,  # Ctrl-C in a terminal reaches our supervisor, which ends us in order
                preexec_fn=dies_with_parent(self.asks_to_stop),
                **(who or {}),
            )
