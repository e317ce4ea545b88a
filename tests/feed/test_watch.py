"""`jobplane watch`."""

import asyncio
import io
import signal
import sys
from collections.abc import Callable

import pytest
from redis.asyncio import Redis
from rich.console import Console

from app.database import Database, new_id
from app.embedded import free_port
from app.settings import Settings
from app.watch import watch
from tests.feed.feeds import Api, Runs, Writer, api
from tests.processes import Process, eventually


def paper() -> Console:
    """What is no terminal."""
    return Console(file=io.StringIO(), force_terminal=False, width=100, highlight=False, soft_wrap=True)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


async def watching(feed: Api, count: int = 1) -> None:
    async def there() -> bool:
        return feed.hub.listeners == count

    await eventually(there, what="the watcher is there")


async def test_lines_where_there_is_no_terminal(feed: Api, runs: Runs) -> None:
    [run_id] = await runs.make()
    console = paper()
    task = asyncio.create_task(watch(feed.http, str(run_id), console))
    await watching(feed)
    await runs.move(run_id, to="STARTED")
    for current in (2, 5):
        await runs.progress(run_id, current)
    await runs.move(run_id, to="SUCCESS", result={"n": 42})
    assert await task == 0
    lines = text(console).splitlines()
    assert lines[0] == f"test.task · {run_id} · queue default"
    assert lines[-5:-1] == ["STARTED", "PROGRESS 20.0%", "PROGRESS 50.0%", "SUCCESS 100.0%"]
    assert lines[-1].startswith("SUCCESS after ")
    assert lines[-1].endswith('s: {"n":42}')
    assert "\x1b" not in text(console)


async def test_a_run_that_stays_pending_is_told_why(feed: Api, runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.watch._ASK_WHY_S", 0.05)
    [run_id] = await runs.make()
    console = paper()
    task = asyncio.create_task(watch(feed.http, str(run_id), console))
    reason = "waits: No scheduler lives, so nothing is fired, sent, recorded or ended."

    async def told() -> bool:
        return reason in text(console)

    await eventually(told, what="the reason is told")
    await runs.move(run_id, to="SUCCESS")
    assert await task == 0
    assert text(console).count("waits: ") == 1


async def test_a_bar_where_there_is_one(feed: Api, runs: Runs) -> None:
    [run_id] = await runs.make()
    await runs.progress(run_id, 3)
    console = Console(file=io.StringIO(), force_terminal=True, width=100, highlight=False)
    task = asyncio.create_task(watch(feed.http, str(run_id), console))

    async def shown() -> bool:
        return "30.0%" in text(console) and "━" in text(console) and "0:00:0" in text(console)

    await eventually(shown, what="the bar is drawn")
    await runs.move(run_id, to="SUCCESS")
    assert await task == 0
    assert "100.0%" in text(console)


@pytest.mark.parametrize("state", ["FAILURE", "REVOKED"])
async def test_another_end_is_status_1_and_told(feed: Api, runs: Runs, state: str) -> None:
    [run_id] = await runs.make()
    error = {"type": "ValueError", "message": "no [bold]\x1b[31m way\nout", "traceback": None}
    changes = {"error": error} if state == "FAILURE" else {"reason": "start deadline"}
    await runs.move(run_id, to=state, **changes)
    console = paper()
    assert await watch(feed.http + "/", str(run_id), console) == 1
    expected = "ValueError: no [bold] [31m way out" if state == "FAILURE" else "REVOKED: start deadline"
    assert text(console).splitlines()[-1].endswith(expected)


async def test_nothing_to_follow_is_status_2(feed: Api) -> None:
    nobody = str(new_id())
    for base, run_id, why in [
        (feed.http, nobody, "no such run"),
        (feed.http, "seven", "seven: not a run id"),
        ("localhost:8000", nobody, "must be the address of a plane"),
        (f"http://127.0.0.1:{free_port()}", nobody, "no plane at ws://127.0.0.1:"),
        (feed.http + "/elsewhere", nobody, "no plane at"),
    ]:
        console = paper()
        assert await watch(base, run_id, console) == 2
        assert why in text(console)


async def test_it_follows_through_a_restart_of_the_api(
    database: Database, redis: Redis, settings: Settings, runs: Runs
) -> None:
    [run_id] = await runs.make()
    console = paper()
    async with api(database, redis, settings) as first:
        task = asyncio.create_task(watch(first.http, str(run_id), console))
        await watching(first)
    await runs.progress(run_id, 5)
    async with api(database, redis, settings, port=first.port) as second:
        await watching(second)
        await runs.move(run_id, to="SUCCESS")
        assert await task == 0
    said = text(console).splitlines()
    assert "connection lost, trying again" in said
    assert "PROGRESS 50.0%" in said


async def test_ctrl_c_is_status_130(feed: Api, runs: Runs, start_process: Callable[..., Process]) -> None:
    [run_id] = await runs.make()
    code = "import asyncio, sys; from app.watch import watch; sys.exit(asyncio.run(watch(*sys.argv[1:])))"
    process = start_process([sys.executable, "-c", code, feed.http, str(run_id)], name="watch")
    await watching(feed)
    process.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(process.wait) == 130
    assert "Traceback" not in process.output()


async def test_the_log_is_shown_once_also_through_a_restart_of_the_api(
    database: Database, redis: Redis, settings: Settings, runs: Runs
) -> None:
    [run_id] = await runs.make()
    writer = Writer(redis, run_id)
    console = paper()
    async with api(database, redis, settings) as first:
        task = asyncio.create_task(watch(first.http, str(run_id), console))
        await runs.move(run_id, to="STARTED")
        await writer.say("first\tline \x1b[31mred\n")

        async def shown() -> bool:
            return "first" in text(console)

        await eventually(shown, what="the first line")
    async with api(database, redis, settings, port=first.port) as second:
        await watching(second)
        await writer.say("[bold]two\nthree\n", last=True)
        ended = {"attempt": 1, "dispatch": 1, "state": "FAILURE", "end_time": "2026-01-01T00:00:00Z"}
        await runs.move(run_id, to="PENDING", attempt=2, attempts=[ended])
        await Writer(redis, run_id, 2).say("again\nwithout an end", last=True)
        await runs.move(run_id, to="SUCCESS", attempt=2, result=[1])
        assert await task == 0
    said = text(console).splitlines()
    lines = ["first   line  [31mred", "[bold]two", "three", "--- attempt 2 ---", "again", "without an end"]
    assert [line for line in said if line in lines] == lines
    assert said[-1].endswith("s: [1]") or said[-1] == "SUCCESS: [1]"


async def test_without_the_log(feed: Api, runs: Runs, redis: Redis) -> None:
    [run_id] = await runs.make()
    await Writer(redis, run_id).say("a line\n", last=True)
    await runs.move(run_id, to="SUCCESS")
    with_log, without = paper(), paper()
    assert await watch(feed.http, str(run_id), without, logs=False) == 0
    assert await watch(feed.http, str(run_id), with_log) == 0
    assert "a line" not in text(without)
    assert "a line" in text(with_log)
