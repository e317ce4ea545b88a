"""A pass, repeated until the process stops, and how tasks are ended."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import structlog
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.errors import Unavailable

log = structlog.get_logger()

#: A server that is away: told in one line, for a traceback would say nothing more.
_ABSENT = (OSError, RedisConnectionError, RedisTimeoutError, Unavailable)

_FIRST_RETRY_S = 0.2
_LAST_RETRY_S = 5.0


@dataclass(slots=True)
class Loop:
    """Runs `run_once` again at once while it says that there is more, else after `pause_s()` or when `wake` is set.

    A pass that raises is told in the log and tried again with a growing pause; a loop never ends by itself. `stop`
    ends it after the pass in hand.
    """

    name: str
    run_once: Callable[[], Awaitable[bool]]
    pause_s: Callable[[], float]
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    #: What the last pass failed with, in one line; None after a good one.
    problem: str | None = None
    #: `time.monotonic()` at the end of the last good pass.
    good_at: float | None = None

    async def run(self, stop: asyncio.Event) -> None:
        retry_s = _FIRST_RETRY_S
        while not stop.is_set():
            self.wake.clear()
            try:
                more = await self.run_once()
            except Exception as error:
                line = f"{type(error).__name__}: {error}".partition("\n")[0]
                if line != self.problem:
                    log.warning("pass_failed", loop=self.name, problem=line, exc_info=not isinstance(error, _ABSENT))
                self.problem = line
                await _rest(retry_s, stop)
                retry_s = min(retry_s * 2, _LAST_RETRY_S)
                continue
            if self.problem is not None:
                log.info("pass_works_again", loop=self.name)
            self.problem, self.good_at, retry_s = None, time.monotonic(), _FIRST_RETRY_S
            if not more:
                await _rest(self.pause_s(), stop, self.wake)


async def end(*tasks: "asyncio.Task[Any]") -> None:
    """Cancel tasks and return once they have ended; what they raised is theirs."""
    running = {task for task in tasks if not task.done()}
    while running:  # more than once: `wait_for` of Python 3.11, which the Redis client uses, may swallow a cancel
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=0.2)


async def _rest(seconds: float, *events: asyncio.Event) -> None:
    """Wait until one of the events is set, at most so long."""
    waits = [asyncio.ensure_future(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=max(seconds, 0), return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
