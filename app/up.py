"""`jobplane up`: the whole plane on this machine, as one supervised tree of processes.

The database and Redis are embedded unless a setting names a server. A part that dies is started again and said so.
Ctrl-C or SIGTERM ends all parts in order, within ten seconds, and leaves no process behind; if we are killed ourselves,
the kernel ends them.
"""

import fcntl
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Final

from app.embedded import EmbeddedError, Postgres, Valkey, dies_with_parent
from app.migrate import upgrade
from app.settings import UpSettings, child_environment

_STOP_S: Final = 6.0
_READY_S: Final = 60.0
_LAST_PAUSE_S: Final = 10.0


class UpError(Exception):
    """The plane cannot be started; the text is one line for the person at the terminal."""


class Part:
    """A process of ours; `start` and `stop` as those of an embedded server."""

    def __init__(self, name: str, arguments: Sequence[str], environment: Mapping[str, str]) -> None:
        self.name = name
        self._command = [sys.executable, "-P", "-m", "app.cli", *arguments]
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            start_new_session=True,  # Ctrl-C in the terminal is for us; we end the parts in order
            # If we are killed, the servers go too: a part that is only asked to stop would wait for them for ever.
            preexec_fn=dies_with_parent(signal.SIGKILL),
        )

    def poll(self) -> int | None:
        assert self._process is not None
        return self._process.poll()

    def ask_to_stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def stop(self, timeout_s: float) -> None:
        """Return once the process is gone; what does not end in time is killed, with all that it started."""
        if self._process is None:
            return
        try:
            self._process.wait(max(timeout_s, 0.1))
        except subprocess.TimeoutExpired:
            say(f"{self.name} did not stop in time and was killed")
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


def say(line: str) -> None:
    print(line, flush=True)


class Tree:
    """All parts, in the order of their start."""

    def __init__(self, settings: UpSettings, queues: Sequence[str]) -> None:
        self._settings = settings
        self._queues = list(dict.fromkeys(["default", *queues]))
        self._servers: list[Postgres | Valkey] = []
        self._parts: list[Part] = []
        self._stop = threading.Event()
        self._restarts: dict[str, tuple[float, float]] = {}

    def ask_to_stop(self, _signal: int, _frame: FrameType | None) -> None:
        self._stop.set()

    def run(self) -> None:
        """Start everything, watch it until we are asked to stop, end everything."""
        for name in (signal.SIGINT, signal.SIGTERM):
            signal.signal(name, self.ask_to_stop)
        try:
            self._start()
            self._watch()
        finally:
            self._end()

    def _start(self) -> None:
        given, data = self._settings, self._settings.data_dir
        if given.database_url is None:
            postgres = Postgres(data)
            self._servers.append(postgres)
            postgres.start()
            database_url = postgres.url
        else:
            database_url = given.database_url.get_secret_value()
        if given.redis_url is None:
            valkey = Valkey(data)
            self._servers.append(valkey)
            valkey.start()
            redis_url = valkey.url
        else:
            redis_url = given.redis_url.get_secret_value()
        broker_url = given.broker_url.get_secret_value() if given.broker_url else redis_url
        if self._stop.is_set():
            return
        upgrade(database_url)
        port = given.port or _free_port(given.host)
        environment = child_environment(
            {
                "JOBPLANE_DATABASE_URL": database_url,
                "JOBPLANE_REDIS_URL": redis_url,
                "JOBPLANE_BROKER_URL": broker_url,
                "JOBPLANE_HOST": given.host,
                "JOBPLANE_PORT": str(port),
                "JOBPLANE_ALLOW_REMOTE": str(given.allow_remote).lower(),
                "JOBPLANE_LOG_FORMAT": given.log_format,
                "JOBPLANE_LOG_STORE": given.log_store or (data / "store").as_uri(),
                "JOBPLANE_TASK_QUEUES": ",".join(dict.fromkeys([*self._queues, *given.task_queues])),
                "JOBPLANE_WORKER_REDIS_URL": redis_url,
                "JOBPLANE_WORKER_BROKER_URL": broker_url,
            },
            # We are gone within ten seconds: what runs longer than this is handed back.
            {"JOBPLANE_WORKER_SOFT_SHUTDOWN_S": "3"},
        )
        self._parts = [
            Part("api", ["api"], environment),
            Part("scheduler", ["scheduler"], environment),
            Part("worker", ["worker", "--queues", ",".join(self._queues)], environment),
        ]
        for part in self._parts:
            part.start()
        address = f"http://{given.host}:{port}"
        self._await_ready(address)
        if not self._stop.is_set():
            _greet(address, database_url, redis_url, broker_url, environment["JOBPLANE_LOG_STORE"], data)

    def _await_ready(self, address: str) -> None:
        deadline = time.monotonic() + _READY_S
        while not self._stop.wait(0.1):
            try:
                with urllib.request.urlopen(f"{address}/readyz", timeout=2):  # noqa: S310  (our own address)
                    return
            except (urllib.error.URLError, OSError) as error:
                if time.monotonic() > deadline:
                    raise UpError(f"the API at {address} is not ready: {error}") from None
            self._restart_dead()

    def _watch(self) -> None:
        while not self._stop.wait(0.2):
            self._restart_dead()

    def _restart_dead(self) -> None:
        """Start again what has ended, at once the first time, then with a growing pause."""
        for part in [*self._servers, *self._parts]:
            status = part.poll()
            if status is None:
                continue
            now = time.monotonic()
            again_at, pause_s = self._restarts.get(part.name, (0.0, 0.5))
            if now < again_at:
                continue
            if now > again_at + 60:
                pause_s = 0.5
            how = signal.Signals(-status).name if status < 0 else f"status {status}"
            say(f"{part.name} ended ({how}) and is started again")
            self._restarts[part.name] = (now + pause_s, min(pause_s * 2, _LAST_PAUSE_S))
            try:
                part.start()
            except EmbeddedError as error:
                say(str(error))

    def _end(self) -> None:
        deadline = time.monotonic() + _STOP_S
        for part in reversed(self._parts):
            part.ask_to_stop()
        for part in reversed(self._parts):
            part.stop(deadline - time.monotonic())
        for server in reversed(self._servers):
            server.stop(3)


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _refuse_taken_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise UpError(f"cannot listen on {host}:{port}: {error.strerror}; choose another with --port") from None


def _greet(address: str, database_url: str, redis_url: str, broker_url: str, store: str, data: Path) -> None:
    say("")
    say("jobplane is up")
    say(f"  API and docs   {address}/docs")
    say(f"  database       {database_url}")
    say(f"  Redis          {redis_url}")
    say(f"  broker         {broker_url}")
    say(f"  log store      {store}")
    say(f"  data           {data}")
    say("Ctrl-C ends all of it; the data stays.")


def up(settings: UpSettings, queues: Sequence[str]) -> None:
    """Run the plane until SIGINT or SIGTERM; UpError or EmbeddedError with one line if it cannot be started."""
    settings = settings.model_copy(update={"data_dir": settings.data_dir.absolute()})
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    with (settings.data_dir / "up.lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UpError(f"jobplane is already running in {settings.data_dir}") from None
        _refuse_taken_port(settings.host, settings.port)
        Tree(settings, queues).run()
