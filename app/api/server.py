"""How uvicorn must be set up for sockets that stay open: small, uncompressed, ended with our codes, never stuck.

Start an API process with `Server(config(app, host=..., port=...), drain)`, where `drain` ends the hub's listeners.
"""

from collections.abc import Awaitable, Callable
from socket import socket
from typing import Any, Final

import uvicorn
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

#: Seconds from a close until a peer that takes nothing loses its connection.
CUT_S: Final = 12.0


class PatientNoMore(WebSocketsSansIOProtocol):
    """uvicorn's WebSocket, but no close waits for a peer that reads nothing.

    uvicorn sends a close only once the peer has taken what was written before, and then lets the transport flush for
    as long as that takes; for a stopped peer that is for ever, and its connection would never be freed.
    """

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.close":
            self.writable.set()
            self.loop.call_later(CUT_S, self.transport.abort)
        await super().send(message)

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self.loop.call_later(CUT_S, self.transport.abort)

    def shutdown(self) -> None:
        super().shutdown()
        self.loop.call_later(1.0, self.transport.abort)


#: Options of `uvicorn.Config`.
OPTIONS: Final[dict[str, Any]] = {
    "ws": PatientNoMore,
    "ws_per_message_deflate": False,  # 50 KiB and a compression per socket and frame
    "ws_max_size": 64 * 1024,  # clients have nothing to say
    "ws_ping_interval": 20.0,
    "ws_ping_timeout": 20.0,
    "timeout_graceful_shutdown": 5,
    "lifespan": "on",
}


def config(app: Any, **options: Any) -> uvicorn.Config:
    """A server's configuration with our `OPTIONS`; what is given besides goes first."""
    return uvicorn.Config(app, **{**OPTIONS, **options})


class Server(uvicorn.Server):
    """Drains before uvicorn shuts down: it would end sockets with 1012 before the lifespan's end could say 4503."""

    def __init__(self, config: uvicorn.Config, drain: Callable[[], Awaitable[None]]) -> None:
        super().__init__(config)
        self._drain = drain

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        await self._drain()
        await super().shutdown(sockets)
