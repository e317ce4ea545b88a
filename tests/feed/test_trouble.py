"""What the feed does when Redis, the database or a client fails, and at the end of the process."""

import asyncio
import signal
import socket
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import structlog
from redis.asyncio import Redis
from websockets.exceptions import ConnectionClosed

from app import faults
from app.api.server import PatientNoMore
from app.database import Database, new_id
from app.embedded import free_port
from app.feed.frames import TOO_SLOW
from app.feed.hub import Limits
from app.progress.announce import channel_of
from app.settings import Settings
from tests.feed.feeds import Api, Runs, api, client
from tests.processes import PATIENCE_S, Process, eventually
from tests.proxy import TcpProxy
from workers.protocol import RUNS_CHANNEL

PAD = "x" * 14_000


@pytest.fixture
def limits() -> Limits:
    return Limits(patience_s=1, waiting=200, crowd=100, bookmark_s=60)


async def stalled(port: int, path: str) -> socket.socket:
    """A client that shakes hands and then reads nothing, with next to no buffer of its own."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, ("127.0.0.1", port))
    request = (
        f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    await loop.sock_sendall(raw, request.encode())
    return raw


def proxied(redis_url: str, proxy: TcpProxy) -> Redis:
    return Redis.from_url(redis_url.replace(f":{proxy.target[1]}/", f":{proxy.port}/"))


@pytest.mark.parametrize("how", ["cut", "freeze"])
async def test_without_redis_an_end_arrives_in_time_and_hints_return_with_it(
    database: Database,
    redis: Redis,
    redis_url: str,
    settings: Settings,
    runs: Runs,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("app.feed.hints._PING_S", 0.5)
    monkeypatch.setattr("app.feed.hints._PONG_S", 1.0)
    [*firsts, second, third] = await runs.make(5)
    host, port = redis.connection_pool.connection_kwargs["host"], redis.connection_pool.connection_kwargs["port"]
    async with TcpProxy(host, port) as proxy:
        far = proxied(redis_url, proxy)
        async with (
            api(database, far, settings) as feed,
            client(feed.url("/feed")) as many,
            client(feed.url(f"/runs/{second}/feed")) as one,
        ):
            await many.until("live")
            proxy.cut() if how == "cut" else proxy.freeze()
            took: list[float] = []
            for first in firsts:  # one that comes in time proves it: a late one may be this machine's doing
                begin = time.monotonic()
                await runs.move(first, to="SUCCESS")  # announced on the server itself: the hub is deaf
                await many.until_state(first, "SUCCESS")
                took.append(time.monotonic() - begin)
                if took[-1] < 2.5:
                    break
            assert min(took) < 2.5
            await eventually(lambda: _is(not feed.hub.hearing), what="the hub knows that it is deaf")
            await runs.progress(second, 3)
            await one.until_state(second, "PROGRESS")  # progress makes no event, but this run is watched
            await runs.progress(second, 4)
            await one.next()
            await runs.move(second, to="SUCCESS")
            assert (await one.closed())[0] == 1000
            proxy.restore() if how == "cut" else proxy.thaw()
            await eventually(lambda: _is(feed.hub.hearing), what="the hub hears again")
            await runs.progress(third, 1)
            await many.until_state(third, "PROGRESS")
        await far.aclose()


async def _is(value: bool) -> bool:
    return value


async def test_hints_that_cannot_be_read_hurt_nobody(feed: Api, runs: Runs, redis: Redis) -> None:
    [run_id] = await runs.make()
    async with client(feed.url("/feed")) as watcher:
        await watcher.until("live")
        for nonsense in (b"\xff\x00", b"7", b"[7]", b"null", b'[{"id": 7}]', b'[{"id": "x", "version": "y"}]', b"{}"):
            await redis.publish(channel_of(redis, RUNS_CHANNEL), nonsense)
        await runs.move(run_id, to="SUCCESS")
        await watcher.until_state(run_id, "SUCCESS")
    assert set(watcher.seen) == {str(run_id)}


@pytest.mark.parametrize("wakes", [False, True])
async def test_a_client_that_takes_nothing_is_closed_and_the_others_notice_nothing(
    database: Database, redis: Redis, settings: Settings, runs: Runs, monkeypatch: pytest.MonkeyPatch, wakes: bool
) -> None:
    """If it never wakes, its connection is cut; if it does, it reads why behind what was on its way."""
    monkeypatch.setattr("app.api.server.CUT_S", 60 if wakes else 0.5)
    ids = await runs.make(60)
    await runs.move(*ids, to="STARTED")
    limits = Limits(patience_s=1)
    async with api(database, redis, settings, limits) as feed, client(feed.url("/feed?interval_ms=50")) as healthy:
        await healthy.until("live")
        raw, current = await stalled(feed.port, "/api/v1/feed?interval_ms=50"), 0

        async def slowest() -> float:
            """What the healthy one waited for a frame at most, until the stalled one was given up."""
            nonlocal current
            await eventually(lambda: _is(feed.hub.listeners == 2), what="the stalled client is there")
            worst, most = 0.0, current + 400
            with structlog.testing.capture_logs():
                while feed.hub.listeners > 1:
                    current += 1
                    begin = time.monotonic()
                    await runs.move(*ids, to="PROGRESS", progress={"percent": None, "message": PAD, "n": current})
                    await healthy.until("runs")
                    worst = max(worst, time.monotonic() - begin)
                    assert current < most, "the stalled client was never given up"
            return worst

        try:
            for again in (True, True, False):
                if (worst := await slowest()) < 2:
                    break
                assert again, f"the others noticed: {worst} s"  # once without it proves that it need not be
                raw.close()
                raw = await stalled(feed.port, "/api/v1/feed?interval_ms=50")
            await runs.move(*ids, to="SUCCESS")
            for run_id in ids:
                await healthy.until_state(run_id, "SUCCESS")
            if wakes:
                await _until_reads(raw, TOO_SLOW.to_bytes(2, "big") + b"too slow: nothing was taken for too long")
                raw.close()
            await eventually(lambda: _is(len(_sockets(feed)) == 1), what="the connection is cut")
        finally:
            raw.close()


async def _until_reads(raw: socket.socket, wanted: bytes) -> None:
    """Take what the server has sent until these bytes come."""
    loop, tail = asyncio.get_running_loop(), b""
    async with asyncio.timeout(PATIENCE_S):
        while wanted not in tail:
            chunk = await loop.sock_recv(raw, 65536)
            assert chunk, f"ended with {tail[-200:]!r}"
            tail = (tail + chunk)[-70_000:]


def _sockets(feed: Api) -> list[Any]:
    return [each for each in feed.server.server_state.connections if isinstance(each, PatientNoMore)]


async def test_a_slow_client_that_wakes_reads_why(
    database: Database, redis: Redis, settings: Settings, runs: Runs
) -> None:
    """More runs wait for it than may: it is closed with 4508 behind what was already on its way."""
    async with (
        api(database, redis, settings, Limits(patience_s=30, waiting=50, crowd=1000)) as feed,
        client(feed.url("/feed?interval_ms=10000")) as slow,
    ):
        await slow.until("live")
        await runs.make(1)  # goes out at once; the next frame is ten seconds away
        await slow.until("runs")
        await runs.make(60)
        assert (await slow.closed())[0] == 4508


async def test_a_crowd_does_not_wait_for_the_interval(feed: Api, runs: Runs) -> None:
    async with client(feed.url("/feed?interval_ms=10000")) as watcher:
        await watcher.until("live")
        begin = time.monotonic()
        await runs.make(1)
        await watcher.until("runs")
        ids = await runs.make(120)
        await watcher.until_state(ids[0], "PENDING")
        assert time.monotonic() - begin < 10


async def test_a_client_that_vanishes_leaves_nothing(feed: Api, runs: Runs) -> None:
    [run_id] = await runs.make()
    for path in ("/feed", f"/runs/{run_id}/feed"):
        async with client(feed.url(path)) as watcher:
            await watcher.next()
            watcher.socket.transport.abort()
    raw = await stalled(feed.port, "/api/v1/feed")
    raw.close()
    await eventually(lambda: _is(feed.hub.listeners == 0), what="nobody listens")


async def test_clients_that_talk_are_not_listened_to_but_live(feed: Api, runs: Runs) -> None:
    [run_id] = await runs.make()
    async with client(feed.url("/feed")) as watcher:
        await watcher.until("live")
        for _ in range(20):
            await watcher.socket.send("what is this?")
        await watcher.socket.send(b"\x00\x01")
        await (await watcher.socket.ping())
        await runs.move(run_id, to="SUCCESS")
        await watcher.until_state(run_id, "SUCCESS")
        await watcher.socket.send("x" * 100_000)
        assert (await watcher.closed())[0] == 1009


async def test_at_the_end_of_the_process_everybody_is_told_to_come_back(
    database: Database, redis: Redis, settings: Settings, runs: Runs
) -> None:
    [run_id] = await runs.make()
    async with api(database, redis, settings) as feed:
        many, one = client(feed.url("/feed")), client(feed.url(f"/runs/{run_id}/feed"))
        async with many as general, one as single:
            await general.until("live")
            await single.next()
            poll = asyncio.create_task(feed.hub.wait_for(run_id, 1, True, 30))
            raw = await stalled(feed.port, f"/api/v1/runs/{run_id}/feed")
            await eventually(lambda: _is(feed.hub.listeners == 4), what="all four wait")
            begin = time.monotonic()
            feed.server.should_exit = True
            assert (await general.closed())[0] == 4503
            assert (await single.closed())[0] == 4503
            assert await poll is None
    assert time.monotonic() - begin < 15, "who takes nothing would hold it for 20 s"
    raw.close()
    with pytest.raises((OSError, ConnectionClosed)):
        async with client(feed.url("/feed")):
            pass


async def test_while_draining_newcomers_are_sent_away(feed: Api, runs: Runs) -> None:
    await feed.hub.drain()
    async with client(feed.url("/feed")) as late:
        assert (await late.closed())[0] == 4503
    assert await feed.hub.wait_for(new_id(), None, False, 5) is None


async def test_a_send_that_fails_ends_one_socket_alone(feed: Api, runs: Runs) -> None:
    [run_id] = await runs.make()
    async with client(feed.url("/feed")) as healthy:
        await healthy.until("live")
        faults.arm("feed.before_send=raise*1")
        try:
            async with client(feed.url(f"/runs/{run_id}/feed")) as unlucky:
                assert (await unlucky.closed())[0] == 1011
        finally:
            faults.arm("")
        await runs.move(run_id, to="SUCCESS")
        await healthy.until_state(run_id, "SUCCESS")


async def test_while_the_database_is_away_sockets_stay_and_new_ones_are_asked_back(
    database: Database, redis: Redis, settings: Settings, runs: Runs
) -> None:
    [run_id] = await runs.make()
    host, port = settings.database_url.get_secret_value().rpartition("@")[2].partition("/")[0].split(":")
    async with TcpProxy(host, int(port)) as proxy:
        far_url = settings.database_url.get_secret_value().replace(f"{host}:{port}", f"{proxy.host}:{proxy.port}")
        far = await Database.connect(Settings.load(**{**_plain(settings), "database_url": far_url}), "test")
        async with api(far, redis, settings) as feed, client(feed.url("/feed")) as watcher:
            await watcher.until("live")
            proxy.cut()
            await runs.move(run_id, to="STARTED")
            await watcher.until_state(run_id, "STARTED")  # the hint needs no database
            async with client(feed.url("/feed")) as late:
                assert (await late.closed(15))[0] == 4503
            await runs.move(run_id, to="SUCCESS", tell=False)
            proxy.restore()
            await watcher.until_state(run_id, "SUCCESS")
        await far.close()


def _plain(settings: Settings) -> dict[str, Any]:
    return {
        "redis_url": settings.redis_url.get_secret_value(),
        "broker_url": settings.broker_url.get_secret_value(),
        "port": 0,
    }


async def test_a_real_process_that_is_asked_to_stop_sends_its_watchers_elsewhere(
    settings: Settings, runs: Runs, start_process: Callable[..., Process]
) -> None:
    [run_id] = await runs.make()
    port = free_port()
    process = start_process(
        [sys.executable, "-m", "app.cli", "api"],
        name="api",
        env={
            "JOBPLANE_DATABASE_URL": settings.database_url.get_secret_value(),
            **{f"JOBPLANE_{name.upper()}": str(value) for name, value in {**_plain(settings), "port": port}.items()},
        },
    )
    await eventually(lambda: _listens(port), what="the API listens")
    async with client(f"ws://127.0.0.1:{port}/api/v1/runs/{run_id}/feed") as watcher:
        assert (await watcher.next())["run"]["id"] == str(run_id)
        process.send_signal(signal.SIGTERM)
        assert (await watcher.closed())[0] == 4503
    assert await asyncio.to_thread(process.wait) == 0


async def _listens(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    await writer.wait_closed()
    return True
