from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from app.database import Database
from app.feed.hub import Limits
from app.settings import Settings
from tests.feed.feeds import Api, Runs, api


@pytest.fixture
def limits() -> Limits:
    """A test may override this to make the feed less patient."""
    return Limits()


@pytest.fixture
async def feed(database: Database, redis: Redis, settings: Settings, limits: Limits) -> AsyncIterator[Api]:
    async with api(database, redis, settings, limits) as started:
        yield started


@pytest.fixture
def runs(database: Database, redis: Redis) -> Runs:
    return Runs(database, redis)
