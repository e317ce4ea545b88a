"""The proxy that later tests trust: what it cuts, freezes and delays."""

import asyncio
import time

import pytest
import redis.exceptions
from redis.asyncio import Redis

from app.embedded import Valkey
from tests.proxy import TcpProxy


async def test_cut_freeze_and_delay(redis_url: str, valkey_server: Valkey) -> None:
    async with TcpProxy("127.0.0.1", valkey_server.port) as proxy:
        url = redis_url.replace(f":{valkey_server.port}/", f":{proxy.port}/")
        client = Redis.from_url(url, socket_timeout=30, retry=None)
        await client.set("key", "value")

        proxy.cut()
        for _ in range(2):
            with pytest.raises(redis.exceptions.ConnectionError):
                await client.get("key")
        proxy.restore()
        assert await client.get("key") == b"value"

        proxy.freeze()
        held_back = asyncio.ensure_future(client.get("key"))
        async with Redis.from_url(url, socket_timeout=0.2, retry=None) as newcomer:
            with pytest.raises(redis.exceptions.TimeoutError):
                await newcomer.get("key")
        assert not held_back.done()
        proxy.thaw()
        assert await held_back == b"value"

        proxy.delay_s = 0.1
        begin = time.monotonic()
        await client.get("key")
        assert time.monotonic() - begin >= 0.2
        assert proxy.connections >= 1
        await client.aclose()
