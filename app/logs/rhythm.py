"""When a log is written into the store again, and when it is complete. Pure."""

from dataclasses import dataclass
from typing import Final

from workers.protocol import LOG_HEAD

LEAST_S: Final = 2.0
MOST_S: Final = 30.0
#: How many logs one scheduler writes in a second at most, so that it has time for the rest of its work.
LOGS_PER_S: Final = 250
#: So much of the head is not left in Redis longer than one pass.
MUCH: Final = 256 * 1024
#: A worker that died says no last word: so long after the end of the attempt nothing is waited for any more.
SILENCE_S: Final = 10.0


def pause_s(size: int, live: int) -> float:
    """Seconds from one writing of an object of so many bytes to the next: each writes all of it.

    `live` is how many logs there are: a crowd waits longer, and nobody reads it later for that.
    """
    return max(min(MOST_S * size / LOG_HEAD, MOST_S), look_s(live))


def look_s(live: int) -> float:
    """Seconds from one look at a log to the next, where it may have news."""
    return max(LEAST_S, live / LOGS_PER_S)


def is_complete(over_s: float | None, last: bool) -> bool:
    """Whether nothing comes any more: the attempt is over and said its last word, or is silent for long."""
    return over_s is not None and (last or over_s >= SILENCE_S)


@dataclass(frozen=True, slots=True)
class Unsealed:
    """A log with entries that the store does not have."""

    #: Up to which offset it is sealed, and where its newest entry ends.
    sealed: int
    end: int
    #: Bytes of the object, and how long ago it was written by us (None: never, as far as we know).
    size: int
    ago_s: float | None
    #: How many logs there are.
    live: int
    complete: bool


def is_due(log: Unsealed) -> bool:
    """Whether to write it now. Beyond the head the stream keeps its own bounds, so only time counts there."""
    much = min(log.end, LOG_HEAD) - min(log.sealed, LOG_HEAD) >= MUCH
    return log.complete or much or log.ago_s is None or log.ago_s >= pause_s(log.size, log.live)
