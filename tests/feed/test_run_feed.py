"""The feed of one run."""

import asyncio

from app.database import new_id
from tests.feed.feeds import Api, Runs, client
from tests.processes import PATIENCE_S

NOBODY = "018f3f00-0000-7000-8000-000000000000"


async def test_the_run_at_once_then_every_change_then_the_end(feed: Api, runs: Runs) -> None:
    [run_id] = await runs.make()
    async with client(feed.url(f"/runs/{run_id}/feed?logs=1")) as watcher:
        first = await watcher.next()
        assert first["type"] == "run"
        assert first["run"]["id"] == str(run_id)
        assert first["run"]["create_time"].endswith("Z")
        await runs.move(run_id, to="STARTED")
        for current in range(1, 4):
            await runs.progress(run_id, current)
        await runs.move(run_id, to="SUCCESS", result={"n": 42})
        assert await watcher.closed() == (1000, "")
    assert watcher.seen[str(run_id)] == [
        ("PENDING", 1),
        ("STARTED", 2),
        ("PROGRESS", 3),
        ("PROGRESS", 4),
        ("PROGRESS", 5),
        ("SUCCESS", 6),
    ]
    assert [frame["run"]["progress"]["percent"] for frame in watcher.frames[2:5]] == [10.0, 20.0, 30.0]
    assert watcher.frames[-2]["run"]["result"] == {"n": 42}
    assert watcher.frames[-1] == {"type": "end", "run_id": str(run_id), "state": "SUCCESS"}


async def test_a_run_that_has_ended_is_told_and_closed(feed: Api, runs: Runs) -> None:
    [run_id] = await runs.make()
    await runs.move(run_id, to="REVOKED", reason="asked")
    async with client(feed.url(f"/runs/{run_id}/feed")) as watcher:
        assert await watcher.closed() == (1000, "")
    assert [frame["type"] for frame in watcher.frames] == ["run", "end"]
    assert watcher.frames[1]["state"] == "REVOKED"


REFUSED = [
    (f"/runs/{NOBODY}/feed", 4404, "no such run"),
    ("/runs/not-an-id/feed", 4400, "run id: not a UUID"),
    (f"/runs/{NOBODY}/feed?log=1", 4400, "log: no such parameter"),
    ("/feed?states=PROGRESS", 4400, "states: no such parameter"),
    (f"/backfills/{NOBODY}/feed", 4404, "no such backfill"),
    ("/backfills/7/feed", 4400, "backfill id: not a UUID"),
    (f"/backfills/{NOBODY}/feed?logs=1", 4400, "logs: no such parameter; there are none"),
    ("/feed?backfill_id=7", 4400, "backfill_id: not a UUID"),
    ("/feed?state=progress", 4400, "state: 'progress' is no state"),
    ("/feed?job_id=7", 4400, "job_id: not a UUID"),
    ("/feed?interval_ms=10", 4400, "interval_ms: a whole number from 50 to 10000"),
    ("/feed?interval_ms=fast", 4400, "interval_ms: a whole number"),
    ("/feed?interval_ms=000000050999", 4400, "interval_ms: a whole number"),
    ("/feed?interval_ms=99999999999999999999", 4400, "interval_ms: a whole number"),
    ("/feed?since=yesterday", 4400, "since: not a cursor"),
    ("/feed?since=0123abcd.1.1&since=0123abcd.1.1", 4400, "since: once at most"),
    ("/feed?namespace=%00", 4400, "namespace: must be text"),
    ("/feed?queue=" + "&queue=".join("q" * 101), 4400, "queue: at most 100 values"),
]


async def test_what_cannot_be_followed_is_accepted_and_closed_with_a_reason(feed: Api) -> None:
    for path, code, reason in REFUSED:
        async with client(feed.url(path)) as watcher:
            closed, why = await watcher.closed()
        assert (path, closed, watcher.frames) == (path, code, [])
        assert reason in str(why)


async def test_a_page_of_another_site_may_not_follow(feed: Api) -> None:
    async with client(feed.url("/feed"), origin="https://elsewhere.example") as watcher:
        assert (await watcher.closed())[0] == 4403
    async with client(feed.url("/feed"), origin=feed.http) as watcher:
        assert (await watcher.next())["type"] == "live"


async def test_a_long_poll_answers_news_and_ends(feed: Api, runs: Runs) -> None:
    [run_id] = await runs.make()
    hub = feed.hub
    known = await hub.wait_for(run_id, 0, False, PATIENCE_S)
    assert known is not None
    assert (known["id"], known["version"], known["create_time"][-1]) == (str(run_id), 1, "Z")

    news = asyncio.create_task(hub.wait_for(run_id, 1, False, PATIENCE_S))
    ends = asyncio.create_task(hub.wait_for(run_id, 1, True, 2 * PATIENCE_S))
    while hub.listeners < 2:
        await asyncio.sleep(0.01)
    assert not news.done()
    await runs.move(run_id, to="STARTED")
    answered = await news
    assert answered is not None
    assert answered["state"] == "STARTED"
    assert not ends.done()
    unversioned = asyncio.create_task(hub.wait_for(run_id, None, False, PATIENCE_S))
    current = 0
    while not unversioned.done():  # whichever is the first that it does not know
        current += 1
        await runs.progress(run_id, current, 1000)
    news_of_now = await unversioned
    assert news_of_now is not None
    assert news_of_now["version"] > answered["version"]
    await runs.move(run_id, to="SUCCESS", tell=False)  # the hint is lost: the read finds it
    ended = await ends
    assert ended is not None
    assert ended["state"] == "SUCCESS"
    assert await hub.wait_for(run_id, 99, False, PATIENCE_S) == ended
    assert hub.listeners == 0


async def test_a_long_poll_without_news_or_run_answers_nothing(feed: Api, runs: Runs) -> None:
    [run_id] = await runs.make()
    assert await feed.hub.wait_for(run_id, None, False, 0.1) is None
    assert await feed.hub.wait_for(new_id(), None, False, 5) is None
    assert feed.hub.listeners == 0


async def test_waiting_holds_no_database_connection(feed: Api, runs: Runs) -> None:
    """Three times as many waiters as the pool has places, and the pool is free."""
    [run_id] = await runs.make()
    waiting = [asyncio.create_task(feed.hub.wait_for(run_id, 1, True, PATIENCE_S)) for _ in range(30)]
    while feed.hub.listeners < 30:
        await asyncio.sleep(0.01)
    await runs.move(run_id, to="SUCCESS")
    assert all(answer and answer["state"] == "SUCCESS" for answer in await asyncio.gather(*waiting))
