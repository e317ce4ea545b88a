"""Pushes and the truth, on a real Valkey that may go away."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis.asyncio import Redis

from app.database import new_id
from app.embedded import Valkey
from app.progress.listen import Heard, Listener, Waiting, stored, stored_of
from app.progress.reports import HEAD, key_of
from app.progress.sources import OWN, Source, behind, pattern_of
from tests.conftest import VALKEY_DATABASES
from tests.processes import eventually
from tests.progress.live import say, stored_state
from workers.protocol import TaskId


def news(task_id: TaskId, i: int) -> Heard:
    return Heard.of(task_id, stored_state(task_id, "PROGRESS", {"current": i}))


def test_over_the_mark_only_news_is_replaced_and_ends_are_kept() -> None:
    waiting = Waiting(mark=3, most=100)
    a, b = TaskId(new_id(), 1), TaskId(new_id(), 1)
    started = Heard.of(a, stored_state(a, "STARTED", {"hostname": "w"}))
    end = Heard.of(a, stored_state(a, "SUCCESS", 1))
    assert all(waiting.put(heard) for heard in [started, news(a, 1), news(b, 1)])
    assert all(waiting.put(news(a, i)) for i in range(2, 1000))
    assert waiting.count == 3
    assert waiting.put(end)
    assert waiting.put(news(a, 1000))
    assert all(waiting.put(news(a, i)) for i in range(1001, 2000))
    taken = waiting.take(100, 1_000_000)
    assert taken == [started, news(a, 999), end, news(a, 1999), news(b, 1)]
    assert (waiting.count, waiting.bytes) == (0, 0)
    assert not waiting.arrived.is_set()


def test_at_the_bound_nothing_is_taken_in_and_memory_stays_bounded() -> None:
    waiting = Waiting(mark=10, most=20)
    assert [waiting.put(news(TaskId(new_id(), 1), 1)) for _ in range(25)] == [True] * 20 + [False] * 5
    large = Waiting(most_bytes=10_000)
    task_id = TaskId(new_id(), 1)
    put = [large.put(Heard.of(task_id, stored_state(task_id, "SUCCESS", "x" * 900))) for _ in range(20)]
    assert put[0]
    assert not put[-1]
    assert large.bytes <= 10_000
    assert len(large.take(500, 3000)) == 3
    assert Heard.of(task_id, b"x" * 2_000_000) == Heard(task_id, b"x" * HEAD, 2_000_000)


async def test_pushes_are_heard_and_strangers_are_not(redis: Redis, redis_url: str) -> None:
    task_id = TaskId(new_id(), 1)
    async with Listener(redis_url) as listener:
        await eventually(lambda: _set(listener.resync), what="the first connection")
        await redis.publish("celery-task-meta-f61bdecf-0d55-4000-8000-000000000000", b"{}")
        await say(redis, task_id, stored_state(task_id, "STARTED"))
        await say(redis, task_id, stored_state(task_id, "SUCCESS"))
        await eventually(lambda: _at_least(listener, 2), what="two reports")
        heard = await listener.gather(10, 10_000, wait_s=1, gather_s=0)
    assert [one.task_id for one in heard] == [task_id, task_id]


async def test_a_value_is_dropped_if_a_push_came_after_the_read_was_sent(redis: Redis, redis_url: str) -> None:
    """Redis holds the answer back while a push is on its way, so the read is surely the older one."""
    a, b = TaskId(new_id(), 1), TaskId(new_id(), 1)
    for task_id in (a, b):
        await redis.set(key_of(task_id), stored_state(task_id, "PROGRESS", {"current": 1}))

    listener = Listener(redis_url)

    class Slow:
        """The same client, and a push that arrives before its answer."""

        def pipeline(self, **options: Any) -> Any:
            listener._reading.discard(a)  # what a push does
            return redis.pipeline(**options)

    wanted = [(a, OWN), (b, OWN)]
    assert await listener.read_truth(Slow(), wanted) == 1  # type: ignore[arg-type]
    assert [heard.task_id for heard in await listener.gather(10, 10_000, wait_s=0, gather_s=0)] == [b]
    assert await listener.read_truth(redis, wanted) == 1, "what was put among the waiting once is no news"
    listener.truth_was_read()
    assert await listener.read_truth(redis, wanted) == 0


async def test_stored_values_are_read_in_bounded_pages_whatever_stands_there(redis: Redis) -> None:
    tasks = [TaskId(new_id(), 1) for _ in range(30)]
    await redis.set(key_of(tasks[0]), b"x" * 3_000_000)
    await redis.rpush(key_of(tasks[1]), b"a list")
    for task_id in tasks[3:]:
        await redis.set(key_of(task_id), b"y" * 1_000_000)
    found = await stored(redis, tasks)
    assert [heard.task_id for heard in found] == [tasks[0], *tasks[3:]]
    assert (found[0].size, len(found[0].body)) == (3_000_000, HEAD)
    assert {len(heard.body) for heard in found[1:]} == {1_000_000}
    assert await stored(redis, []) == []


def test_a_prefix_is_the_one_that_celery_makes_of_it() -> None:
    """Against Celery itself; a prefix is no pattern."""
    task_id = TaskId(new_id(), 1)
    for prefix in ("", "svc", "svc:", "svc_", "svc-", "svc.", "a*b[c]?"):
        options = {"global_keyprefix": prefix}
        with Celery(backend="redis://127.0.0.1:1/0", set_as_current=False, fixups=[]) as app:
            app.conf.result_backend_transport_options = options
            key = app.backend.get_key_for_task(str(task_id))
        assert Source(None, prefix).key_of(task_id).encode() == key
        assert behind(prefix, key) == key_of(task_id).encode()
    assert pattern_of("a*b[c]?") == "a\\*b\\[c\\]\\?_celery-task-meta-*"


async def test_pushes_behind_a_prefix_are_heard_from_the_moment_that_it_is_known(redis: Redis, redis_url: str) -> None:
    prefixes = ("a*b", "svc:")
    first, second = (Source(None, prefix) for prefix in prefixes)
    task_id = TaskId(new_id(), 1)

    async def subscribers(source: Source) -> bool:
        await redis.publish("celery-task-meta-of-a-stranger", b"{}")  # the listener wakes, and looks what is wanted
        # A pattern that is in force takes what is published.
        return bool(await redis.publish(source.key_of(task_id), stored_state(task_id, "STARTED")))

    async with Listener(redis_url) as listener:
        await eventually(lambda: _set(listener.resync), what="the first connection")
        assert not await subscribers(first)
        assert not await subscribers(second)
        listener.resync.clear()
        listener.listen_behind(prefixes)
        await eventually(lambda: subscribers(first), what="the first prefix")
        await eventually(lambda: subscribers(second), what="the second prefix")
        await eventually(lambda: _set(listener.resync), what="asking for the truth")
        heard = await listener.gather(10, 10_000, wait_s=30, gather_s=0.05)
        assert {one.task_id for one in heard} == {task_id}
        assert not await redis.publish(Source(None, "aXb").key_of(task_id), b"{}"), "a prefix is no pattern"
        listener.listen_behind([prefixes[1]])
        await eventually(lambda: _falls_silent(redis, first.key_of(task_id)), what="an end of the subscription")
        assert await subscribers(second)
        assert listener.connects == 1


async def _falls_silent(redis: Redis, channel: str) -> bool:
    await redis.publish("celery-task-meta-of-a-stranger", b"{}")
    return not await redis.publish(channel, b"{}")


async def test_the_truth_is_read_in_other_databases_too_and_one_that_is_none_harms_no_other(
    redis: Redis, redis_url: str
) -> None:
    tasks = [TaskId(new_id(), 1) for _ in range(4)]
    base, _, own = redis_url.rpartition("/")
    other = Source((int(own) + 1) % VALKEY_DATABASES, "svc")
    behind_own = Source(None, "svc")
    async with Redis.from_url(f"{base}/{other.db}") as there:
        await there.set(other.key_of(tasks[0]), b"there", ex=600)
    await redis.set(behind_own.key_of(tasks[1]), b"behind")
    await redis.set(key_of(tasks[2]), b"a worker of ours on that queue")
    await redis.set(key_of(tasks[3]), b"here")
    wanted = [(tasks[0], other), (tasks[1], behind_own), (tasks[2], other), (tasks[3], Source(10_000))]
    found = {heard.task_id: heard.body for heard in await stored_of(redis, wanted)}
    assert found == {
        tasks[0]: b"there",
        tasks[1]: b"behind",
        tasks[2]: b"a worker of ours on that queue",
        tasks[3]: b"here",
    }
    assert await stored_of(redis, []) == []


async def test_after_a_restart_it_listens_again_and_asks_for_the_truth(tmp_path: Path) -> None:
    server = Valkey(tmp_path)
    server.start()
    task_id = TaskId(new_id(), 1)
    try:
        async with Listener(server.url) as listener:
            await eventually(lambda: _set(listener.resync), what="the first connection")
            listener.resync.clear()
            server.stop()
            await eventually(lambda: _cleared(listener.connected), what="the loss of the connection")
            server.start()
            await eventually(lambda: _set(listener.resync), what="the second connection")
            assert listener.connects == 2
            async with Redis.from_url(server.url) as redis:
                await say(redis, task_id, stored_state(task_id, "STARTED"))
            await eventually(lambda: _at_least(listener, 1), what="a report")
    finally:
        server.stop()


async def test_a_server_that_says_nothing_any_more_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.progress.listen._PING_S", 0.1)
    server = Valkey(tmp_path)
    server.start()
    try:
        async with Listener(server.url) as listener:
            await eventually(lambda: _set(listener.connected), what="the first connection")
            listener.connects = 0
            pid = server.pid
            assert pid is not None
            os.kill(pid, signal.SIGSTOP)
            try:
                await eventually(lambda: _cleared(listener.connected), what="giving up")
            finally:
                os.kill(pid, signal.SIGCONT)
            await eventually(lambda: _set(listener.connected), what="a new connection")
    finally:
        server.stop()


async def _set(event: Any) -> bool:
    return bool(event.is_set())


async def _cleared(event: Any) -> bool:
    return not event.is_set()


async def _at_least(listener: Listener, number: int) -> bool:
    return listener.waiting.count >= number
