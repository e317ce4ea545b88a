"""The feed of one backfill, and its runs on the general feed."""

import asyncio
from typing import Any
from uuid import UUID

import pytest
from redis.asyncio import Redis

from app.database import Database, clock
from app.due import backfill_control
from app.due.backfill import Backfiller
from app.feed.hub import Limits
from app.states import REVOKED
from tests.due.test_backfill import runs_of, start
from tests.due.test_waiting import end
from tests.feed.feeds import Api, Client, client
from tests.feed.test_trouble import stalled
from tests.processes import PATIENCE_S, eventually


@pytest.fixture
def limits() -> Limits:
    return Limits(patience_s=1)


@pytest.fixture
def feed(feed: Api) -> Api:
    """One that looks more often."""
    feed.hub.backfills._every_s = 0.05
    return feed


async def until(watcher: Client, **wanted: Any) -> dict[str, Any]:
    """The next frame of the backfill in which these counts are so."""
    while True:
        backfill: dict[str, Any] = (await watcher.until("backfill"))["backfill"]
        if wanted.items() <= {**backfill["counts"], "state": backfill["state"]}.items():
            return backfill


async def test_the_backfill_at_once_then_its_changes_then_the_end(feed: Api, database: Database, redis: Redis) -> None:
    _, backfill, _ = await start(database, 3)
    filler = Backfiller(database, redis)
    async with client(feed.url(f"/backfills/{backfill}/feed")) as watcher:
        first = await watcher.next()
        assert (first["type"], first["backfill"]["id"], first["backfill"]["state"]) == (
            "backfill",
            str(backfill),
            "ACTIVE",
        )
        for number in range(3):
            await filler.run_once()
            await until(watcher, active=1, succeeded=number)
            await end(database, *[run["id"] for run in await runs_of(database, backfill, live=True)])
        await filler.run_once()
        assert await watcher.closed() == (1000, "")
    assert watcher.frames[-2]["backfill"]["progress"] == {"current": 3, "total": 3, "percent": 100.0}
    assert watcher.frames[-1] == {"type": "end", "backfill_id": str(backfill), "state": "DONE"}
    versions = [frame["backfill"]["version"] for frame in watcher.frames[:-1]]
    assert versions == sorted(set(versions))
    async with client(feed.url(f"/backfills/{backfill}/feed")) as late:
        assert await late.closed() == (1000, "")
    assert [frame["type"] for frame in late.frames] == ["backfill", "end"]


async def test_a_cancelled_one_is_followed_until_its_runs_have_ended(
    feed: Api, database: Database, redis: Redis
) -> None:
    _, backfill, _ = await start(database, 3)
    filler = Backfiller(database, redis)
    await filler.run_once()
    async with client(feed.url(f"/backfills/{backfill}/feed")) as watcher:
        async with database.transaction() as connection:
            await backfill_control.cancel(connection, await clock(connection), backfill, "bob", keep_runs=True)
        await until(watcher, state="CANCELLED", active=1)
        await end(database, *[run["id"] for run in await runs_of(database, backfill)], state=REVOKED)
        await filler.run_once()
        assert await watcher.closed() == (1000, "")
    assert watcher.frames[-2]["backfill"]["counts"]["revoked"] == 1
    assert watcher.frames[-1]["state"] == "CANCELLED"


async def test_its_runs_on_the_general_feed(feed: Api, database: Database, redis: Redis) -> None:
    _, backfill, _ = await start(database, 3, max_active=2)
    _, other, _ = await start(database, 3)
    filler = Backfiller(database, redis)
    await filler.run_once()
    mine = {str(run["id"]) for run in await runs_of(database, backfill)}
    async with client(feed.url(f"/feed?backfill_id={backfill}")) as watcher:
        cursor = (await watcher.until("live"))["cursor"]
        assert set(watcher.seen) == mine
        runs = [run["id"] for one in (other, backfill) for run in await runs_of(database, one, live=True)]
        await end(database, *runs)
        await filler.run_once()
        new = {str(run["id"]) for run in await runs_of(database, backfill)}
        while set(watcher.seen) < new:
            await watcher.until("runs")
        assert set(watcher.seen) == new
    async with client(feed.url(f"/feed?backfill_id={backfill}&since={cursor}")) as back:
        await back.until("live")
        assert set(back.seen) == new
        assert {state for run in mine for state, _ in back.seen[run]} == {"SUCCESS"}


async def test_watching_holds_no_connection_and_ends_with_the_process(feed: Api, database: Database) -> None:
    """More sockets than the pool has places, and it is free; a process that drains says so to all of them."""
    _, backfill, _ = await start(database, 3)
    sockets = [client(feed.url(f"/backfills/{backfill}/feed")) for _ in range(40)]
    watchers = [await socket.__aenter__() for socket in sockets]
    try:
        for watcher in watchers:
            await watcher.next()
        async with asyncio.timeout(PATIENCE_S), database.reading() as connection:
            assert await connection.fetchval("SELECT 1") == 1
        assert feed.hub.backfills.waiting == 40
        await feed.hub.drain()
        assert {await watcher.closed() for watcher in watchers} == {(4503, "draining: connect again")}
        await eventually(lambda: waits(feed, 0), what="nobody waits")
        assert await feed.hub.backfills.wait_for(backfill, 1, 5) is None
    finally:
        for socket in sockets:
            await socket.__aexit__(None, None, None)


async def test_one_that_is_gone_is_told(feed: Api, database: Database) -> None:
    _, backfill, _ = await start(database, 3)
    async with client(feed.url(f"/backfills/{backfill}/feed")) as watcher:
        await watcher.next()
        async with database.transaction() as connection:
            await connection.execute("DELETE FROM backfills")
        assert await watcher.closed() == (4404, "no such backfill")


async def test_a_client_that_takes_nothing_is_closed(feed: Api, database: Database) -> None:
    """Its buffers are full of a reason that is long and changes; others are served meanwhile."""
    _, backfill, _ = await start(database, 3)
    path = f"/api/v1/backfills/{backfill}/feed"
    raw = await stalled(feed.port, path)
    try:
        await eventually(lambda: waits(feed, 1), what="it listens")
        number = 0
        async with asyncio.timeout(60):
            while feed.hub.backfills.waiting:
                number += 1
                await change(database, backfill, f"{number}" + "x" * 2_000_000)
                await feed.hub.backfills.wait_for(backfill, number, PATIENCE_S)  # it was offered
    finally:
        raw.close()


async def waits(feed: Api, count: int) -> bool:
    return feed.hub.backfills.waiting == count


async def change(database: Database, backfill: UUID, reason: str) -> None:
    async with database.transaction() as connection:
        await connection.execute(
            "UPDATE backfills SET reason = $2, version = version + 1 WHERE id = $1", backfill, reason
        )
