"""How many messages a rate lets out, and when. Pure.

A token bucket that holds what a tenth of a second brings, or one. It is refilled a little slower than the rate says, by
what it may hold beyond one, so that no period, wherever it begins, sees more than its number.
"""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final, Self

#: What may gather in a bucket while nobody looks: passes over a queue that waits for its rate are not farther apart.
BURST_S: Final = 0.1

_PERIODS: Final = {"s": timedelta(seconds=1), "m": timedelta(minutes=1), "h": timedelta(hours=1)}


@dataclass(frozen=True, slots=True)
class Rate:
    """`100/m`: so many in each period at most."""

    number: int
    period: timedelta

    @classmethod
    def of(cls, text: str) -> Self:
        """As Celery writes it; what `app.models.RATE_PATTERN` lets pass."""
        number, _, unit = text.partition("/")
        return cls(int(number), _PERIODS[unit])

    @property
    def capacity(self) -> float:
        """The most tokens that the bucket holds."""
        return max(1.0, self.number * BURST_S / self.period.total_seconds())

    @property
    def per_s(self) -> float:
        """Tokens that come in a second. Less than a period brings at most `number`, a full bucket counted in."""
        return (self.number + 1 - self.capacity) / self.period.total_seconds()


@dataclass(frozen=True, slots=True)
class Bucket:
    """What was left of a rate at a time."""

    rate: Rate
    tokens: float
    time: datetime

    @classmethod
    def of(cls, queue: Any, now: datetime) -> Self | None:
        """Of a row with `rate_limit`, `rate_tokens` and `rate_time`, as of now; None where there is no limit.

        One that was never used is full. A clock that was set back brings nothing, and takes nothing.
        """
        if queue["rate_limit"] is None:
            return None
        rate = Rate.of(queue["rate_limit"])
        tokens, since = queue["rate_tokens"], queue["rate_time"]
        if tokens is None or since is None:
            return cls(rate, rate.capacity, now)
        grown = tokens + max((now - since).total_seconds(), 0.0) * rate.per_s
        return cls(rate, min(grown, rate.capacity), now)

    @property
    def whole(self) -> int:
        """How many messages may go out now."""
        return max(int(self.tokens), 0)

    def less(self, messages: int) -> "Bucket":
        """The bucket once so many have gone out."""
        return replace(self, tokens=self.tokens - messages)

    @property
    def next_time(self) -> datetime:
        """When there is a whole token."""
        return self.time + timedelta(seconds=max(1.0 - self.tokens, 0.0) / self.rate.per_s)
