"""A client of the feed, in a thread of its own."""

import asyncio
import json
import threading
from typing import Any, Self

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed


class Watcher:
    """Follows a feed and keeps every frame; reconnects with the newest cursor, as a good client does."""

    def __init__(self, *urls: str, query: str = "") -> None:
        self._urls = urls
        self._query = query
        self._ended = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._follow()), daemon=True)
        self.frames: list[dict[str, Any]] = []
        self.connections = 0
        self.cursor: str | None = None

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join(10)

    @property
    def live(self) -> bool:
        """Whether a snapshot or catch-up is complete."""
        return any(frame["type"] == "live" for frame in list(self.frames))

    def seen(self) -> dict[str, list[dict[str, Any]]]:
        """By run, every value that was shown, as a client keeps them: only what is newer than what it has."""
        kept: dict[str, list[dict[str, Any]]] = {}
        for frame in list(self.frames):
            for run in frame.get("runs", []):
                values = kept.setdefault(run["id"], [])
                if not values or run["version"] > values[-1]["version"]:
                    values.append(run)
        return kept

    async def _follow(self) -> None:
        turn = 0
        while not self._ended.is_set():
            url = self._urls[turn % len(self._urls)]
            turn += 1
            since = f"&since={self.cursor}" if self.cursor else ""
            try:
                async with connect(f"{url}/feed?{self._query}{since}", compression=None, max_size=2**24) as socket:
                    self.connections += 1
                    await self._read(socket)
            except (OSError, ConnectionClosed, TimeoutError):
                await asyncio.sleep(0.2)

    async def _read(self, socket: Any) -> None:
        while not self._ended.is_set():
            try:
                frame = json.loads(await asyncio.wait_for(socket.recv(), 0.2))
            except TimeoutError:
                continue
            if "cursor" in frame:
                self.cursor = frame["cursor"]
            self.frames.append(frame)
