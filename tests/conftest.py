"""Fixtures: the real servers, once per test process, and for each test a database, a Redis database and a vhost."""

import itertools
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import redis as redis_sync
from redis.asyncio import Redis

from app.database import Database
from app.embedded import Postgres, Valkey, server
from app.settings import Settings
from tests.databases import Databases, execute, in_thread
from tests.processes import Process
from tests.servers import RABBITMQ_BIN, RabbitMQ

# What the person who runs the tests has set for a plane of their own must not reach ours.
for _name in [name for name in os.environ if name.startswith("JOBPLANE_")]:
    del os.environ[_name]

# A server may listen long after its port was chosen: each test process chooses among ports of its own.
_PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
server._PORTS = server._PORTS[_PROCESS % 4 :: 4]

# Its own deadline is 200 ms an example, which says nothing where others have the processor; and a suite that is red now
# and then, each time by another example, helps nobody: whoever searches for one sets `derandomize` off.
hypothesis.settings.register_profile(
    "suite", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")

TEMPLATE = "jobplane_template"
VALKEY_DATABASES = 64
#: Behind those that tests get in turn: for the workers that the tests of a module share.
SHARED_DATABASES = range(VALKEY_DATABASES, VALKEY_DATABASES + 16)


@pytest.fixture(scope="session")
def servers_folder() -> Iterator[Path]:
    """Where the servers of this test process write. Others may enter it, for as root PostgreSQL is another user."""
    folder = Path(tempfile.mkdtemp(prefix="jobplane-tests-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def store_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the parts that tests start keep logs and large results."""
    folder = tmp_path_factory.mktemp("store")
    os.environ["JOBPLANE_LOG_STORE"] = folder.as_uri()
    return folder


@pytest.fixture(scope="session")
def postgres_server(servers_folder: Path) -> Iterator[Postgres]:
    # A superuser's autovacuum in a database would keep its owner from dropping it.
    server = Postgres(
        servers_folder / "postgres",
        durable=False,
        settings={"autovacuum": "off"},
        system_root=servers_folder / "system",
    )
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def valkey_server(servers_folder: Path) -> Iterator[Valkey]:
    server = Valkey(servers_folder / "valkey", databases=SHARED_DATABASES.stop)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def rabbitmq_server(servers_folder: Path) -> Iterator[RabbitMQ]:
    """Started when the first test of this process asks for it; takes six seconds."""
    if not (RABBITMQ_BIN / "rabbitmq-server").exists():
        pytest.fail("the tests need RabbitMQ: install the package rabbitmq-server", pytrace=False)
    server = RabbitMQ(servers_folder / "rabbitmq")
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def databases(postgres_server: Postgres) -> Databases:
    from app.migrate import upgrade

    made = Databases(postgres_server.url, TEMPLATE)
    execute(postgres_server.url, f"CREATE DATABASE {TEMPLATE}")
    in_thread(lambda: upgrade(made.url(TEMPLATE)))
    made.learn()
    execute(postgres_server.url, f"ALTER DATABASE {TEMPLATE} ALLOW_CONNECTIONS false")
    return made


_redis_numbers = itertools.count(1)


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """A migrated database of this test's own."""
    name = databases.take()
    yield databases.url(name)
    databases.give_back(name)


@pytest.fixture
def empty_database_url(databases: Databases) -> Iterator[str]:
    """A database of this test's own with nothing in it."""
    name = databases.take_bare()
    yield databases.url(name)
    databases.drop(name)


@pytest.fixture
def redis_url(valkey_server: Valkey) -> str:
    """An empty numbered database of Valkey. Channels are the server's: all tests of this process share them."""
    url = f"{valkey_server.url.rpartition('/')[0]}/{next(_redis_numbers) % VALKEY_DATABASES}"
    with redis_sync.Redis.from_url(url) as client:
        client.flushdb()
    return url


@pytest.fixture
def amqp_url(rabbitmq_server: RabbitMQ) -> str:
    """A virtual host of this test's own."""
    return rabbitmq_server.url(rabbitmq_server.fresh_vhost())


@pytest.fixture
def settings(database_url: str, redis_url: str) -> Settings:
    """Settings of this test's servers, with Valkey as the broker."""
    return Settings.load(database_url=database_url, redis_url=redis_url, broker_url=redis_url, port=0)


@pytest.fixture
def amqp_settings(database_url: str, redis_url: str, amqp_url: str) -> Settings:
    """Settings of this test's servers, with RabbitMQ as the broker."""
    return Settings.load(database_url=database_url, redis_url=redis_url, broker_url=amqp_url, port=0)


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    opened = await Database.connect(settings, "test")
    yield opened
    await opened.close()


@pytest.fixture
async def redis(redis_url: str) -> AsyncIterator[Redis]:
    """A client that answers bytes, as ours do."""
    client = Redis.from_url(redis_url)
    yield client
    await client.aclose()


@pytest.fixture
def start_process(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start programs that end with the test: `start_process([command...], env={...}, name="api")`.

    What they printed is shown if the test fails.
    """
    if "database_url" in request.fixturenames:
        request.getfixturevalue("database_url")  # given back behind their end, or they would write into an empty one
    started: list[Process] = []

    def start(command: list[str | Path], *, name: str | None = None, **options: Any) -> Process:
        label = name or Path(str(command[0])).name
        process = Process(command, tmp_path / f"{len(started)}-{label}.log", **options)
        started.append(process)
        return process

    yield start
    for process in reversed(started):
        process.kill()
    for process in started:
        print(f"--- {process.output_path.name}, status {process.poll()}\n{process.output()[-6000:]}")
