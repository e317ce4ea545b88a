"""How much a queue with limits takes in one pass, and what its runs say while it takes no more. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from app.dispatch.rate import Bucket
from app.progress.words import counted

#: As much as any pass takes: there is no such limit.
UNBOUNDED: Final = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Room:
    """What may go to a queue now."""

    queue: str
    #: Runs beside those that have a place.
    places: int
    #: Messages, those of runs that have a place counted in.
    messages: int
    #: Runs that have a place and are to be sent again: they may be on the broker already.
    again: Sequence[UUID] = ()
    #: Whether runs take places there.
    bounded: bool = False
    bucket: Bucket | None = None


def room_of(queue: Mapping[str, Any], taken: int, again: Sequence[UUID], now: datetime) -> Room:
    """The room of a queue (a row of `queues`) of which so many places are taken."""
    bucket = Bucket.of(queue, now)
    most = queue["max_active"]
    return Room(
        queue["name"],
        UNBOUNDED if most is None else max(most - taken, 0),
        UNBOUNDED if bucket is None else bucket.whole,
        again,
        most is not None,
        bucket,
    )


def limit_reached(kind: Mapping[str, Any], now: datetime) -> str | None:
    """What runs say that wait for a limit of their queue (a row of `queries.waiting_kinds`); None: it has room.

    Names every limit of the queue, whichever it is just now: else a long backlog would be written anew at each turn.
    """
    most, bucket = kind["max_active"], Bucket.of(kind, now)
    full = most is not None and kind["places"] >= most
    if not full and (bucket is None or bucket.whole > 0):
        return None
    told = []
    if most is not None:
        told.append(f"queue limit: at most {counted(most, 'run is', 'runs are')} active")
    if bucket is not None:
        told.append(f"queue rate limit: {kind['rate_limit']}")
    return "; ".join(told)
