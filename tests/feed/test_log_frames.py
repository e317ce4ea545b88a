"""Log frames on a run's feed."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from app.database import Database
from app.feed.hub import Limits
from app.feed.logs import PART
from app.settings import Settings
from tests.feed.feeds import Api, Client, Runs, Writer, api, client
from tests.processes import PATIENCE_S, eventually


@pytest.fixture
def limits() -> Limits:
    """Patient, for a last line may be long on its way: a test in which none comes says `impatient`."""
    return Limits(log_patience_s=60.0)


def impatient(feed: Api) -> None:
    feed.hub.limits = Limits(log_patience_s=0.5)


def parts(watcher: Client) -> list[dict[str, Any]]:
    return [frame for frame in watcher.frames if frame["type"] == "log"]


def text(watcher: Client, attempt: int = 1) -> str:
    return "".join(part["text"] for part in parts(watcher) if part["attempt"] == attempt)


async def until_text(watcher: Client, wanted: str, attempt: int = 1) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while wanted not in text(watcher, attempt):
            await watcher.next()


async def test_lines_come_live_and_from_the_first_one_for_who_comes_late(feed: Api, runs: Runs, redis: Redis) -> None:
    [run_id] = await runs.make()
    writer = Writer(redis, run_id)
    async with client(feed.url(f"/runs/{run_id}/feed?logs=1")) as early:
        await early.next()
        await runs.move(run_id, to="STARTED")
        await writer.say("first\n")
        await until_text(early, "first\n")
        assert parts(early) == [
            {"type": "log", "run_id": str(run_id), "attempt": 1, "offset": 0, "next": 6, "text": "first\n"}
        ]
        await writer.say("sécond\n")
        await until_text(early, "sécond\n")
        async with client(feed.url(f"/runs/{run_id}/feed?logs=1")) as late:
            await until_text(late, "sécond\n")
            await writer.say("last\n", last=True)
            await runs.move(run_id, to="SUCCESS")
            for watcher in (early, late):
                assert await watcher.closed() == (1000, "")
                assert text(watcher) == "first\nsécond\nlast\n"
                assert watcher.frames[0]["type"] == "run"
                assert watcher.frames[-1] == {"type": "end", "run_id": str(run_id), "state": "SUCCESS"}
                for before, after in zip(parts(watcher), parts(watcher)[1:], strict=False):
                    assert before["next"] == after["offset"]
    async with client(feed.url(f"/runs/{run_id}/feed?logs=1")) as afterwards:
        assert await afterwards.closed() == (1000, "")
    assert text(afterwards) == "first\nsécond\nlast\n"
    assert [frame["type"] for frame in afterwards.frames] == ["run", "log", "end"]
    async with client(feed.url(f"/runs/{run_id}/feed?logs=0")) as without:
        assert await without.closed() == (1000, "")
    assert [frame["type"] for frame in without.frames] == ["run", "end"]


async def test_what_comes_behind_the_end_of_the_run_is_not_missed(feed: Api, runs: Runs, redis: Redis) -> None:
    """The word that a run has ended may overtake its last lines; the socket waits for them."""
    [run_id] = await runs.make()
    writer = Writer(redis, run_id)
    await writer.say("begin\n")
    async with client(feed.url(f"/runs/{run_id}/feed?logs=1")) as watcher:
        await until_text(watcher, "begin\n")
        await runs.move(run_id, to="FAILURE", error={"type": "E", "message": "m", "traceback": None})
        await watcher.until_state(run_id, "FAILURE")
        await writer.say("why\n", last=True)
        assert await watcher.closed() == (1000, "")
    assert text(watcher) == "begin\nwhy\n"
    assert watcher.frames[-1]["type"] == "end"


async def test_a_worker_that_died_says_no_last_word_and_is_not_waited_for_long(
    feed: Api, runs: Runs, redis: Redis
) -> None:
    impatient(feed)
    [run_id] = await runs.make()
    await Writer(redis, run_id).say("half\n")
    await runs.move(run_id, to="REVOKED", reason="asked")
    async with client(feed.url(f"/runs/{run_id}/feed?logs=1")) as watcher:
        assert await watcher.closed() == (1000, "")
    assert text(watcher) == "half\n"


async def test_attempt_by_attempt_in_order_with_marks_where_something_was_cut(
    feed: Api, runs: Runs, redis: Redis
) -> None:
    [run_id] = await runs.make()
    first = Writer(redis, run_id)
    async with client(feed.url(f"/runs/{run_id}/feed?logs=true")) as watcher:
        await first.say("one\n")
        await until_text(watcher, "one\n")
        first.skip(1_000_000)
        await first.say("one's end\n", last=True)
        ended = {"attempt": 1, "dispatch": 1, "state": "FAILURE", "end_time": "2026-01-01T00:00:00Z"}
        await runs.move(run_id, to="PENDING", attempt=2, attempts=[ended])
        await Writer(redis, run_id, 2).say("two\n", last=True)
        await runs.move(run_id, to="SUCCESS")
        assert await watcher.closed() == (1000, "")
    assert text(watcher, 1) == "one\n[jobplane: 1000000 bytes cut here]\none's end\n"
    assert text(watcher, 2) == "two\n"
    assert [part["attempt"] for part in parts(watcher)] == sorted(part["attempt"] for part in parts(watcher))


async def test_much_comes_in_frames_of_bounded_size(feed: Api, runs: Runs, redis: Redis) -> None:
    [run_id] = await runs.make()
    writer = Writer(redis, run_id)
    lines = [f"{number:>99}\n" for number in range(8000)]
    for start in range(0, len(lines), 500):
        await writer.say("".join(lines[start : start + 500]), last=start + 500 == len(lines))
    await runs.move(run_id, to="SUCCESS")
    async with client(feed.url(f"/runs/{run_id}/feed?logs=1")) as watcher:
        assert await watcher.closed() == (1000, "")
    assert text(watcher) == "".join(lines)
    assert len(parts(watcher)) >= 800_000 // PART
    assert all(len(part["text"]) <= PART for part in parts(watcher))


async def test_those_at_the_same_place_share_one_read_and_nobody_holds_a_connection(
    feed: Api, runs: Runs, redis: Redis
) -> None:
    [run_id] = await runs.make()
    writer = Writer(redis, run_id)
    await writer.say("first\n")
    sockets = [client(feed.url(f"/runs/{run_id}/feed?logs=1")) for _ in range(15)]
    watchers = [await socket.__aenter__() for socket in sockets]
    try:
        for watcher in watchers:
            await until_text(watcher, "first\n")

        async def one_read() -> bool:
            return len(feed.hub.logs._under_way) == 1

        await eventually(one_read, what="one read for all")
        await writer.say("last\n", last=True)
        await runs.move(run_id, to="SUCCESS")  # takes a connection of the pool
        for watcher in watchers:
            assert await watcher.closed() == (1000, "")
            assert text(watcher) == "first\nlast\n"
    finally:
        for socket in sockets:
            await socket.__aexit__(None, None, None)


@pytest.fixture
async def away(
    database: Database, redis: Redis, settings: Settings, limits: Limits, tmp_path: Path
) -> AsyncIterator[Api]:
    """An API process that cannot reach the log store."""
    nowhere = settings.model_copy(update={"log_store": (tmp_path / "nowhere").as_uri()})
    async with api(database, redis, nowhere, limits) as started:
        yield started


async def test_with_the_store_away_the_run_is_followed_all_the_same(away: Api, runs: Runs, database: Database) -> None:
    impatient(away)
    [run_id] = await runs.make()
    async with database.transaction() as connection:
        await connection.execute(
            "INSERT INTO run_logs (run_id, attempt, segments, size, sealed_id, ended)"
            " VALUES ($1, 1, '[[0, 6, 0]]', 6, '1-1', true)",
            run_id,
        )
    async with client(away.url(f"/runs/{run_id}/feed?logs=1")) as watcher:
        await watcher.next()
        await runs.move(run_id, to="SUCCESS", result=1)
        assert await watcher.closed() == (1000, "")
    assert parts(watcher) == []
    assert watcher.frames[-1] == {"type": "end", "run_id": str(run_id), "state": "SUCCESS"}


async def test_a_flag_that_is_none_is_refused(feed: Api, runs: Runs) -> None:
    [run_id] = await runs.make()
    async with client(feed.url(f"/runs/{run_id}/feed?logs=yes")) as watcher:
        assert await watcher.closed() == (4400, "logs: 1 or 0")
