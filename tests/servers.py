"""Servers for tests that are no part of jobplane: RabbitMQ from the system's package."""

import base64
import contextlib
import hashlib
import itertools
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from app.embedded import dies_with_parent, free_port

RABBITMQ_BIN = Path("/usr/lib/rabbitmq/bin")
USER = PASSWORD = "guest"


class RabbitMQ:
    """One RabbitMQ node on loopback, with everything it writes in `folder` and an epmd of its own.

    It boots with `vhosts` virtual hosts named t0, t1, ... because making one costs rabbitmqctl a second and more. The
    folder's data survive `stop` and `kill`; ports and node name stay the same for the life of the object. No brackets
    in the folder's path: Erlang takes them for a pattern, and a quorum queue then never answers after a `kill`.
    """

    def __init__(self, folder: Path, *, vhosts: int = 40, start_timeout_s: float = 90) -> None:
        if set(str(folder)) & set("[]{}*?"):
            raise ValueError(f"RabbitMQ cannot keep its data in {folder}")
        self.folder = folder
        ports: set[int] = set()
        while len(ports) < 3:  # none of them listens yet, so that one might be named twice
            ports.add(free_port())
        self.port, self._epmd_port, self._distribution_port = ports
        self.vhosts = [f"t{n}" for n in range(vhosts)]
        self._unused = self.vhosts[::-1]
        self._more = itertools.count()
        self._start_timeout_s = start_timeout_s
        self._node = f"jobplane-{secrets.token_hex(4)}@localhost"
        self._epmd: subprocess.Popen[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._write_files()

    @property
    def pid(self) -> int | None:
        """The process id while the node runs."""
        return self._process.pid if self._process is not None and self._process.poll() is None else None

    @property
    def log_path(self) -> Path:
        return self.folder / "rabbitmq.log"

    def url(self, vhost: str = "/") -> str:
        """As `JOBPLANE_BROKER_URL` wants it."""
        return f"amqp://{USER}:{PASSWORD}@127.0.0.1:{self.port}/{'%2F' if vhost == '/' else vhost}"

    def start(self) -> None:
        """Return once it speaks AMQP; the first start takes some seconds."""
        if self.pid is not None:
            return
        self._process = None
        if self._epmd is None or self._epmd.poll() is not None:
            epmd = shutil.which("epmd", path="/usr/bin:/usr/local/bin") or "epmd"
            self._epmd = self._spawn([epmd, "-port", str(self._epmd_port), "-address", "127.0.0.1"])
            self._await(lambda: self._listens(self._epmd_port), 40, "epmd does not listen")
        self._process = self._spawn([str(RABBITMQ_BIN / "rabbitmq-server")])
        try:
            self._await(self._speaks, self._start_timeout_s, "RabbitMQ does not answer")
        except BaseException:
            self.stop()
            raise

    def stop(self, timeout_s: float = 20) -> None:
        """End the node in order, and its epmd."""
        self.resume()
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout_s)
        self.kill()
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None

    def kill(self) -> None:
        """End the node with SIGKILL; `start` finds what it had on disk."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def pause(self) -> None:
        """Freeze the node: connections stay open and nothing moves."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        if self.pid is not None:
            os.kill(self.pid, signal.SIGCONT)

    def fresh_vhost(self) -> str:
        """The name of a virtual host that nobody was given yet."""
        if not self._unused:
            more = f"more{next(self._more)}"
            self.add_vhost(more)
            return more
        return self._unused.pop()

    def add_vhost(self, name: str) -> None:
        """A virtual host besides the ready-made ones, with all rights; takes a second or two."""
        self.control("add_vhost", name)
        self.control("set_permissions", "-p", name, USER, ".*", ".*", ".*")

    def delete_vhost(self, name: str) -> None:
        self.control("delete_vhost", name)

    def control(self, *arguments: str) -> str:
        """The output of `rabbitmqctl` on this node; takes a second or two. AssertionError if it fails."""
        command = [str(RABBITMQ_BIN / "rabbitmqctl"), "--quiet", "--node", self._node, *arguments]
        done = subprocess.run(
            command, env=self._environment(), cwd=self.folder, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, f"rabbitmqctl {arguments}: {done.stdout}{done.stderr}"
        return done.stdout

    def _write_files(self) -> None:
        home = self.folder / "home"
        home.mkdir(parents=True)
        cookie = home / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(16))
        cookie.chmod(0o400)
        salt = secrets.token_bytes(4)
        digest = hashlib.sha256(salt + PASSWORD.encode()).digest()
        hosts = ["/", *self.vhosts]
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        definitions = {
            "users": [
                {
                    "name": USER,
                    "password_hash": base64.b64encode(salt + digest).decode(),
                    "hashing_algorithm": "rabbit_password_hashing_sha256",
                    "tags": "administrator",
                }
            ],
            "vhosts": [{"name": name} for name in hosts],
            "permissions": [{"user": USER, "vhost": name, **everything} for name in hosts],
        }
        (self.folder / "definitions.json").write_text(json.dumps(definitions))
        (self.folder / "enabled_plugins").write_text("[].\n")
        (self.folder / "environment.conf").write_text("")
        (self.folder / "rabbitmq.conf").write_text(f"""
listeners.tcp.1 = 127.0.0.1:{self.port}
load_definitions = {self.folder}/definitions.json
log.console = true
log.console.level = error
log.file = false
disk_free_limit.absolute = 1MB
vm_memory_high_watermark.absolute = 1GB
raft.wal_max_size_bytes = 8388608
""")

    def _environment(self) -> dict[str, str]:
        folder = str(self.folder)
        return {
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "LANG": "C.UTF-8",
            "HOME": f"{folder}/home",
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._distribution_port),
            "RABBITMQ_BASE": folder,
            "RABBITMQ_MNESIA_BASE": f"{folder}/mnesia",
            "RABBITMQ_LOG_BASE": f"{folder}/log",
            "RABBITMQ_PID_FILE": f"{folder}/rabbitmq.pid",
            "RABBITMQ_CONF_ENV_FILE": f"{folder}/environment.conf",
            "RABBITMQ_CONFIG_FILE": f"{folder}/rabbitmq.conf",
            "RABBITMQ_ADVANCED_CONFIG_FILE": f"{folder}/advanced.config",
            "RABBITMQ_GENERATED_CONFIG_DIR": f"{folder}/generated",
            "RABBITMQ_ENABLED_PLUGINS_FILE": f"{folder}/enabled_plugins",
            "RABBITMQ_FEATURE_FLAGS_FILE": f"{folder}/feature_flags",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
            # With this the script becomes the node by exec, so that our signals reach it and not a shell.
            "RABBITMQ_ALLOW_INPUT": "1",
            "RABBITMQ_SERVER_START_ARGS": "-noinput",
            "RABBITMQ_CTL_ERL_ARGS": "+S 1:1 +sbwt none",
        }

    def _spawn(self, command: Sequence[str]) -> "subprocess.Popen[bytes]":
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
                env=self._environment(),
                start_new_session=True,
                preexec_fn=dies_with_parent(signal.SIGKILL),
            )

    def _await(self, condition: Callable[[], bool], timeout_s: float, what: str) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            ended = [process.args for process in (self._epmd, self._process) if process and process.poll() is not None]
            if ended or time.monotonic() > deadline:
                raise AssertionError(f"{what}: {self.log_path.read_text(errors='replace')[-2000:]}")
            time.sleep(0.05)

    def _listens(self, port: int) -> bool:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            return False
        return True

    def _speaks(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=2) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return connection.recv(1) == b"\x01"  # Connection.Start
        except OSError:
            return False
