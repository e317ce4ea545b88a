"""A scheduler that is told to stop does so soon, also where what it would say goodbye to is silent."""

import asyncio
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest

from tests.acceptance.plane import JOBPLANE
from tests.processes import Process
from tests.proxy import TcpProxy


@pytest.mark.long
@pytest.mark.parametrize("silent", ["database", "broker"])
async def test_a_scheduler_stops_beside_a_black_hole(
    silent: str, database_url: str, redis_url: str, amqp_url: str, start_process: Callable[..., Process]
) -> None:
    urls = {"database": database_url, "redis": redis_url, "broker": amqp_url}
    target = urlsplit(urls[silent])
    assert target.hostname is not None
    assert target.port is not None
    async with TcpProxy(target.hostname, target.port) as proxy:
        urls[silent] = urls[silent].replace(f":{target.port}/", f":{proxy.port}/")
        scheduler = start_process(
            [*JOBPLANE, "scheduler"], env={f"JOBPLANE_{name.upper()}_URL": url for name, url in urls.items()}
        )
        await asyncio.to_thread(scheduler.wait_for_line, '"mailbox_open"')
        proxy.freeze()
        # Ten seconds by its own bounds; the rest is for a busy machine.
        assert await asyncio.to_thread(scheduler.stop, 25) == 0
