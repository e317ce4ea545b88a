"""How far a lease that is not there may be believed.

A Redis that restarted, or was away, may have forgotten leases, and workers could not renew theirs: until one full lease
after it is back, the absence of a lease says nothing.
"""

import time
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from redis.asyncio import Redis

log = structlog.get_logger()

#: Looks are seconds apart. After a longer gap than this we stood still ourselves, and do not know what happened.
_BLIND_S: Final = 15.0


class Calm:
    """Watches one Redis; `look` at it before each pass, `lost` when it did not answer."""

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._server: str | None = None
        self._up_since = 0.0
        self._calm_at = float("inf")
        self._looked_at: float | None = None

    def lost(self) -> None:
        """Redis did not answer."""
        self._looked_at = None

    async def look(self, redis: Redis) -> None:
        """Notice a restart, an absence, or that we ourselves stood still. Raises RedisError."""
        info: dict[str, Any] = await redis.info("server")
        now = time.monotonic()
        server = str(info["run_id"])
        if server != self._server:
            if self._server is not None:
                log.warning("redis_restarted", uptime_s=info["uptime_in_seconds"])
            # Its own uptime is in whole seconds, rounded down.
            self._up_since = now - int(info["uptime_in_seconds"])
            self._calm_at = now + self._grace_s
        elif self._looked_at is None or now - self._looked_at > _BLIND_S:
            self._up_since = now
            self._calm_at = now + self._grace_s
        self._server, self._looked_at = server, now

    @property
    def calm(self) -> bool:
        """Whether Redis has been there for a full lease: what has no lease now is held by nobody."""
        return time.monotonic() >= self._calm_at

    def saw(self, sent_time: datetime, now: datetime) -> bool:
        """Whether Redis has been there all the time since then: nothing that was said since can be lost."""
        return sent_time > now - timedelta(seconds=time.monotonic() - self._up_since)

    def knows_of(self, sent_time: datetime, now: datetime) -> bool:
        """Whether a lease of a message sent then would be there now."""
        return self.calm or self.saw(sent_time, now)
