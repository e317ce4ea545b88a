"""The feed of all runs that match: snapshot, changes, cursors, filters, resuming."""

import asyncio
import time
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis

from app.database import Database, clock
from app.feed.cursor import Position
from app.feed.hub import Limits
from app.feed.queries import where_we_are
from app.progress.transition import apply
from app.settings import Settings
from tests.feed.feeds import Api, Runs, api, client, make_in, moving


@pytest.fixture
def limits() -> Limits:
    return Limits(page=3, bookmark_s=0.3, catch_up=20, reconcile_s=0.1)


async def test_a_snapshot_of_the_live_then_changes_then_bookmarks(feed: Api, runs: Runs) -> None:
    live = await runs.make(7)  # more than two pages
    [ended] = await runs.make(tell=False)
    await runs.move(ended, to="SUCCESS", tell=False)  # a hint on its way might still reach who comes now
    async with client(feed.url("/feed")) as watcher:
        frame = await watcher.until("live")
        assert frame["recovered"] is True
        assert set(watcher.seen) == set(map(str, live))
        [new] = await runs.make()
        await watcher.until_state(new, "PENDING")
        await runs.move(new, to="STARTED")
        await watcher.until_state(new, "STARTED")
        bookmark = await watcher.until("bookmark")
        assert Position.parse(bookmark["cursor"]) is not None
    assert all(len({run["id"] for run in f["runs"]}) == len(f["runs"]) for f in watcher.frames if f["type"] == "runs")
    assert all(versions == sorted(set(versions)) for versions in map(_versions, watcher.seen.values()))


def _versions(seen: list[tuple[str, int]]) -> list[int]:
    return [version for _, version in seen]


async def test_progress_is_gathered_and_the_end_is_not_lost(feed: Api, runs: Runs) -> None:
    ids = await runs.make(5)
    async with client(feed.url("/feed?interval_ms=500")) as watcher:
        await watcher.until("live")
        await runs.move(*ids, to="STARTED")
        await watcher.until("runs")
        before, begin = len(watcher.frames), time.monotonic()
        for current in range(10):
            for run_id in ids:
                await runs.progress(run_id, current)
        await runs.move(*ids, to="SUCCESS")
        for run_id in ids:
            await watcher.until_state(run_id, "SUCCESS")
        came = [frame for frame in watcher.frames[before:] if frame["type"] == "runs"]
        intervals = (time.monotonic() - begin) / 0.5
        assert len(came) <= 2 + intervals, "51 changes are as many frames as there were intervals"
    assert all(versions == sorted(set(versions)) for versions in map(_versions, watcher.seen.values()))


async def test_filters(feed: Api, runs: Runs) -> None:
    [mine] = await runs.make(namespace="mine")
    [queued] = await runs.make(namespace="mine", queue="slow")
    [other] = await runs.make(namespace="other")
    async with (
        client(feed.url("/feed?namespace=mine")) as of_namespace,
        client(feed.url("/feed?queue=slow&queue=none")) as of_queue,
        client(feed.url(f"/feed?job_id={mine}")) as of_job,
    ):
        for watcher in (of_namespace, of_queue, of_job):
            await watcher.until("live")
        await runs.move(mine, queued, other, to="SUCCESS")
        await of_namespace.until_state(mine, "SUCCESS")
        await of_namespace.until_state(queued, "SUCCESS")
        await of_queue.until_state(queued, "SUCCESS")
        await of_job.until("bookmark")
    assert set(of_namespace.seen) == {str(mine), str(queued)}
    assert set(of_queue.seen) == {str(queued)}
    assert not of_job.seen


async def test_a_run_that_leaves_the_states_is_told_once_more(feed: Api, runs: Runs) -> None:
    first, second = await runs.make(2)
    await runs.progress(first, 1)
    async with client(feed.url("/feed?state=PROGRESS&interval_ms=50")) as watcher:
        await watcher.until("live")
        await runs.progress(second, 1)
        await watcher.until_state(second, "PROGRESS")
        await runs.move(first, to="RETRY")
        await watcher.until_state(first, "RETRY")
        await runs.move(first, to="FAILURE", error={"type": "E", "message": "", "traceback": None})
        await runs.move(second, to="SUCCESS")
        await watcher.until_state(second, "SUCCESS")
        await watcher.until("bookmark")
    assert [state for state, _ in watcher.seen[str(first)]] == ["PROGRESS", "RETRY"]
    assert [state for state, _ in watcher.seen[str(second)]] == ["PROGRESS", "SUCCESS"]


async def test_since_tells_what_ended_meanwhile_and_what_lives(feed: Api, runs: Runs) -> None:
    before, during, living = await runs.make(3)
    await runs.move(before, to="SUCCESS")
    async with client(feed.url("/feed")) as watcher:
        since = (await watcher.until("live"))["cursor"]
    await runs.move(during, to="SUCCESS")
    [born_and_ended] = await runs.make()
    await runs.move(born_and_ended, to="SUCCESS")
    async with client(feed.url(f"/feed?since={since}")) as watcher:
        assert (await watcher.until("live"))["recovered"] is True
    assert {run_id: seen[-1][0] for run_id, seen in watcher.seen.items()} == {
        str(living): "PENDING",
        str(during): "SUCCESS",
        str(born_and_ended): "SUCCESS",
    }


async def test_since_with_states_tells_what_left_them(feed: Api, runs: Runs) -> None:
    shown, never = await runs.make(2)
    await runs.progress(shown, 1)
    async with client(feed.url("/feed?state=PROGRESS")) as watcher:
        since = (await watcher.until("live"))["cursor"]
        assert set(watcher.seen) == {str(shown)}
    await runs.move(shown, to="RETRY")
    await runs.move(never, to="SUCCESS")
    async with client(feed.url(f"/feed?state=PROGRESS&since={since}")) as watcher:
        await watcher.until("live")
    assert {run_id: seen[-1][0] for run_id, seen in watcher.seen.items()} == {str(shown): "RETRY"}


@pytest.mark.parametrize("how", ["epoch", "future", "age", "many"])
async def test_a_cursor_too_old_gets_a_full_snapshot_and_hears_so(feed: Api, runs: Runs, how: str) -> None:
    async with feed.hub.database.reading() as connection:
        now = await where_we_are(connection)
    since = {
        "epoch": Position("00000000" if now.epoch != "00000000" else "11111111", now.xid, now.time_s),
        "future": Position(now.epoch, now.xid + 10_000_000, now.time_s),
        "age": Position(now.epoch, now.xid, now.time_s - 8 * 86400),
        "many": now,
    }[how]
    ended = await runs.make(21 if how == "many" else 1)
    await runs.move(*ended, to="SUCCESS", tell=False)
    [living] = await runs.make()
    async with client(feed.url(f"/feed?since={since}")) as watcher:
        assert (await watcher.until("live"))["recovered"] is False
    assert set(watcher.seen) == {str(living)}


async def test_a_transaction_that_commits_late_is_seen(
    feed: Api, runs: Runs, database: Database, redis: Redis, settings: Settings
) -> None:
    """A begins, B begins and commits, readers read past B, then A commits: its change has the lower id, and arrives,
    for one who listens and for one who comes back with a cursor from between. No hint is given."""
    early, late = await runs.make(2)
    url = settings.database_url.get_secret_value().replace("+asyncpg", "", 1)
    slow: Any = await asyncpg.connect(url)
    try:
        for kind in ("json", "jsonb"):
            await slow.set_type_codec(kind, encoder=str, decoder=str, schema="pg_catalog")
        transaction = slow.transaction()
        await transaction.start()
        await slow.execute("SELECT pg_current_xact_id()")
        await slow.execute("UPDATE runs SET state = 'STARTED', version = 2, start_time = now() WHERE id = $1", late)
        await slow.execute(
            "INSERT INTO run_events (run_id, version, state, attempt, time) VALUES ($1, 2, 'STARTED', 1, now())", late
        )
        async with client(feed.url("/feed?interval_ms=50")) as watcher:
            await watcher.until("live")
            await runs.move(early, to="SUCCESS", tell=False)
            await watcher.until_state(early, "SUCCESS")
            await watcher.until("bookmark")
            bookmark = await watcher.until("bookmark")  # of a read that began after the end of the early one
            assert watcher.state(late) == "PENDING"
            await transaction.commit()
            await watcher.until_state(late, "STARTED")
    finally:
        await slow.close()
    await runs.move(late, to="SUCCESS", tell=False)
    async with client(feed.url(f"/feed?since={bookmark['cursor']}")) as watcher:
        await watcher.until("live")
    assert watcher.state(late) == "SUCCESS"


async def test_writers_that_commit_out_of_order_lose_no_change(feed: Api, runs: Runs, database: Database) -> None:
    """Eight writers with transactions of different lengths and no hints; a listener and one who reconnects with each
    bookmark both know every end."""
    ids = await runs.make(64)

    async def end_some(mine: list[Any]) -> None:
        for n, run_id in enumerate(mine):
            async with database.transaction() as connection:
                now = await clock(connection)
                await apply(connection, now, {run_id: [moving(now, "SUCCESS")]})
                await asyncio.sleep(0.2 if n % 3 == 0 else 0)  # held open while others commit

    known: dict[str, str] = {}

    async def hop() -> None:
        since = ""
        while sum(state == "SUCCESS" for state in known.values()) < len(ids):
            async with client(feed.url(f"/feed?interval_ms=50{since}")) as hopper:
                frame = await hopper.until("bookmark")
                since = f"&since={frame['cursor']}"
                for run_id, seen in hopper.seen.items():
                    known[run_id] = seen[-1][0]

    async with client(feed.url("/feed?interval_ms=50")) as watcher:
        await watcher.until("live")
        async with asyncio.timeout(60):
            await asyncio.gather(hop(), *(end_some(ids[n::8]) for n in range(8)))
            for run_id in ids:
                await watcher.until_state(run_id, "SUCCESS")


async def test_a_restored_database_sends_everybody_to_a_full_snapshot(
    feed: Api, runs: Runs, database: Database, redis: Redis, settings: Settings
) -> None:
    [run_id] = await runs.make()
    async with client(feed.url("/feed")) as watcher:
        since = (await watcher.until("live"))["cursor"]
        async with database.transaction() as connection:
            await connection.execute("UPDATE plane SET system_identifier = system_identifier + 1")
        async with api(database, redis, settings) as second:
            assert (await watcher.closed())[0] == 4503, "the other process renewed the epoch at its start"
            async with client(second.url(f"/feed?since={since}")) as other:
                frame = await other.until("live")
    assert frame["recovered"] is False
    assert frame["cursor"].partition(".")[0] != since.partition(".")[0]
    assert set(other.seen) == {str(run_id)}


async def test_two_processes_tell_the_same(
    feed: Api, runs: Runs, database: Database, redis: Redis, settings: Settings
) -> None:
    ids = await runs.make(3)
    async with (
        api(database, redis, settings) as second,
        client(feed.url("/feed")) as one,
        client(second.url("/feed")) as two,
    ):
        since = (await one.until("live"))["cursor"]
        await two.until("live")
        await runs.move(*ids, to="STARTED")
        for watcher in (one, two):
            for run_id in ids:
                await watcher.until_state(run_id, "STARTED")
        await runs.move(*ids, to="SUCCESS")
        async with client(second.url(f"/feed?since={since}")) as resumed:  # a cursor of the first process
            assert (await resumed.until("live"))["recovered"] is True
            assert {resumed.state(run_id) for run_id in ids} == {"SUCCESS"}


async def test_a_cursor_of_rest_begins_a_feed(feed: Api, runs: Runs, database: Database) -> None:
    async with database.transaction() as connection:
        since = await where_we_are(connection)
        [row] = await make_in(connection)
    await runs.move(row["id"], to="SUCCESS")
    async with client(feed.url(f"/feed?since={since}")) as watcher:
        assert (await watcher.until("live"))["recovered"] is True
    assert watcher.state(row["id"]) == "SUCCESS"
