"""Fixtures: a dispatch stage on either broker."""

from collections.abc import AsyncIterator, Iterator
from urllib.parse import urlsplit

import pytest
from redis.asyncio import Redis

from app import faults
from app.database import Database
from app.settings import Settings
from tests.dispatch.parts import Rig, at
from tests.proxy import TcpProxy


@pytest.fixture(params=["redis", "amqp"])
def either_url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(f"{request.param}_url")


async def _rig(settings: Settings, database: Database, redis: Redis, url: str, seen_url: str) -> AsyncIterator[Rig]:
    seen = Settings.load(**{**dict(settings), "broker_url": seen_url, "dispatch_batch": 100})
    made = Rig(seen, database, redis, url)
    yield made
    await made.close()


@pytest.fixture
async def rig(settings: Settings, database: Database, redis: Redis, either_url: str) -> AsyncIterator[Rig]:
    """On Redis and on RabbitMQ."""
    async for made in _rig(settings, database, redis, either_url, either_url):
        yield made


@pytest.fixture
async def redis_rig(settings: Settings, database: Database, redis: Redis, redis_url: str) -> AsyncIterator[Rig]:
    """On Redis, for what does not hang on the broker."""
    async for made in _rig(settings, database, redis, redis_url, redis_url):
        yield made


@pytest.fixture
async def amqp_rig(settings: Settings, database: Database, redis: Redis, amqp_url: str) -> AsyncIterator[Rig]:
    """On RabbitMQ."""
    async for made in _rig(settings, database, redis, amqp_url, amqp_url):
        yield made


@pytest.fixture
def proxy(either_url: str) -> Iterator[TcpProxy]:
    """In front of the broker of `proxied`."""
    with TcpProxy("127.0.0.1", urlsplit(either_url).port or 0) as made:
        yield made


@pytest.fixture
async def proxied(
    settings: Settings, database: Database, redis: Redis, either_url: str, proxy: TcpProxy
) -> AsyncIterator[Rig]:
    """On Redis and on RabbitMQ, each behind `proxy`."""
    async for made in _rig(settings, database, redis, either_url, at(either_url, proxy.port)):
        yield made


@pytest.fixture(autouse=True)
def _no_faults() -> Iterator[None]:
    yield
    faults.arm("")
