"""For random histories with three schedulers on a real database: runs + skips = scheduled times, none twice."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from redis.asyncio import Redis

from app import faults
from app.database import Connection, Database
from app.due import tick
from app.settings import Settings
from tests.api.conftest import client_of
from tests.due.histories import History, exact, window


@pytest.fixture(autouse=True)
def _disarmed() -> Iterator[None]:
    yield
    faults.arm("")


async def lived(
    database: Database, redis: Redis, settings: Settings, seed: int, steps: int, patch: pytest.MonkeyPatch
) -> None:
    """A history of two days ago, so that a ledger of today can tell all of it."""
    begin = datetime.now(UTC) - timedelta(days=2)
    history = History(database, redis, settings, seed, begin)

    async def given(_: Connection) -> datetime:
        return history.clock()

    patch.setattr(tick, "clock", given)
    await history.begin()
    for _ in range(steps):
        await history.step()
    async with database.reading() as connection:
        times = await exact(connection, history.job)
        cursor = await connection.fetchval("SELECT cursor_time FROM jobs WHERE id = $1", history.job)
    async with client_of(settings) as client:
        await told(client, history, begin, cursor, times)
    async with database.transaction() as connection:
        await connection.execute("UPDATE jobs SET delete_time = now(), next_run_time = NULL")


async def told(client: httpx.AsyncClient, history: History, begin: datetime, cursor: datetime, times: int) -> None:
    """The ledger says the same, of the whole and of two halves."""
    url = f"/api/v1/jobs/{history.job}/ledger"
    middle = begin + (cursor - begin) * history.chance.random()
    halves = []
    for span in (window(begin, cursor), {**window(begin, cursor), "to": middle.isoformat()}):
        answer = await client.get(url, params=span)
        assert answer.status_code == 200, answer.text
        halves.append(answer.json())
    answer = await client.get(url, params={**window(begin, cursor), "from": middle.isoformat()})
    whole, first, second = *halves, answer.json()
    for ledger in (whole, first, second):
        assert (ledger["exact"], ledger["balanced"]) == (True, True), ledger["summary"]
        assert ledger["scheduled"] == ledger["runs"] + ledger["skipped"]
    assert whole["scheduled"] == times
    for name in ("scheduled", "runs", "skipped"):
        assert first[name] + second[name] == whole[name], (name, middle)


@pytest.mark.parametrize("seed", [0, 6, 8, 9])
async def test_each_scheduled_time_is_accounted_for_once(
    database: Database, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    await lived(database, redis, settings, seed, 60, monkeypatch)


@pytest.mark.long
@pytest.mark.parametrize("first", [hundred + ten for hundred in (0, 100, 200, 300) for ten in (0, 10, 20, 30)])
async def test_many_histories(
    database: Database, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    for seed in range(first, first + 10):
        print(f"seed {seed}")
        await lived(database, redis, settings, seed, 60, monkeypatch)
