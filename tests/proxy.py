"""A TCP proxy that a test may cut, freeze and slow down."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

from app.embedded import free_port

T = TypeVar("T")


class TcpProxy:
    """Passes bytes between a port of its own on loopback and a target.

    It lives in a thread with its own event loop, so that blocking tests and async ones use it alike: every call
    returns when what it promises has come to be. `with TcpProxy("127.0.0.1", 5672) as proxy:` or `async with`.
    """

    def __init__(self, host: str, port: int, *, delay_s: float = 0) -> None:
        self.target = (host, port)
        self.host, self.port = "127.0.0.1", free_port()
        #: Seconds that each chunk is held back, in each direction; may be changed at any time.
        self.delay_s = delay_s
        self._pairs: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._flows = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tcp-proxy", daemon=True)

    def start(self) -> None:
        self._thread.start()
        self._flows.set()
        self.restore()

    def stop(self) -> None:
        """Close everything and end the thread."""
        self.cut()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def cut(self) -> None:
        """Close all connections and refuse new ones."""
        self._wait(self._cut)

    def restore(self) -> None:
        """Accept connections again."""
        self._wait(self._listen)

    def freeze(self) -> None:
        """A black hole: connections stay open and are accepted, and nothing passes."""
        self._loop.call_soon_threadsafe(self._flows.clear)

    def thaw(self) -> None:
        """Let pass what was held back, and what comes."""
        self._loop.call_soon_threadsafe(self._flows.set)

    @property
    def connections(self) -> int:
        """How many connections are open now."""
        return len(self._pairs)

    def _wait(self, call: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return asyncio.run_coroutine_threadsafe(call(), self._loop).result(10)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, self.host, self.port)

    async def _cut(self) -> None:
        if self._server is not None:
            # Whom asyncio has just accepted gets into `_pairs` first: a server closed in between would forget him.
            for listener in self._server.sockets:
                self._loop.remove_reader(listener.fileno())
            await asyncio.sleep(0.01)
            self._server.close()
            self._server = None
        pairs = list(self._pairs)
        for pair in pairs:
            pair.cancel()
        await asyncio.gather(*pairs, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pairs.add(task)
        writers = [writer]
        try:
            await self._flows.wait()
            far_reader, far_writer = await asyncio.open_connection(*self.target)
            writers.append(far_writer)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._pass(reader, far_writer))
                group.create_task(self._pass(far_reader, writer))
        except (OSError, ExceptionGroup, asyncio.CancelledError):
            pass  # either side is gone, or we were cut: the other side sees its connection end
        finally:
            self._pairs.discard(task)
            for each in writers:
                each.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            if self.delay_s:
                await asyncio.sleep(self.delay_s)
            await self._flows.wait()
            writer.write(chunk)
            await writer.drain()
        await self._flows.wait()
        with contextlib.suppress(OSError):
            writer.write_eof()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.start)
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.stop)
