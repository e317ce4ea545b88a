"""Keeps the limits of queues, in the transaction of a claim.

A pass alone has a queue with limits in hand (its row is locked), so that many schedulers together send no more than one
would. A pass that dies takes its places and tokens back with its transaction; one that dies later has paid for what it
claimed.
"""

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from app.database import Connection, Record, clock
from app.dispatch import limit_queries
from app.dispatch.room import Room, room_of

#: The shortest pause before the next token.
_LEAST_S: Final = 0.05


async def look(connection: Connection, now: datetime, claimer: str) -> list[Room]:
    """The rooms of the queues with limits for which something waits, locked until the transaction ends.

    Costs one look at the queues that runs wait for where none of them has a limit.
    """
    queues = await limit_queries.lock_limited(connection)
    if not queues:
        return []
    bounded = [queue["name"] for queue in queues if queue["max_active"] is not None]
    places = await limit_queries.tidy_places(connection, now, claimer, bounded) if bounded else []
    taken = {row["queue"]: row for row in places}
    # Behind the locks, so that no other pass has counted on from a later time.
    now = await clock(connection)
    rooms = []
    for queue in queues:
        row = taken.get(queue["name"])
        rooms.append(room_of(queue, row["taken"] if row else 0, row["again"] if row else (), now))
    return rooms


async def book(connection: Connection, rooms: Sequence[Room], claimed: Sequence[Record], full_s: float) -> float | None:
    """Write down what the claimed runs take of these rooms; in how many seconds there may be room for more.

    A queue without a place left is worth another look after `full_s`. None: nothing that waits has met a limit.
    """
    bounded = {room.queue for room in rooms if room.bounded}
    placed = [row["id"] for row in claimed if row["queue"] in bounded]
    if placed:
        await limit_queries.take_places(connection, placed)
    again = {run_id for room in rooms for run_id in room.again}
    sent = Counter(row["queue"] for row in claimed)
    fresh = Counter(row["queue"] for row in claimed if row["id"] not in again)
    spent = [(room.queue, room.bucket) for room in rooms if room.bucket is not None and sent[room.queue]]
    if spent:
        # One time for all: they were looked at together.
        await limit_queries.keep_tokens(
            connection,
            spent[0][1].time,
            [queue for queue, _ in spent],
            [bucket.less(sent[queue]).tokens for queue, bucket in spent],
        )
    pauses = (_pause_s(room, sent[room.queue], fresh[room.queue], full_s) for room in rooms)
    return min((pause for pause in pauses if pause is not None), default=None)


def _pause_s(room: Room, sent: int, fresh: int, full_s: float) -> float | None:
    """When to look at a queue again that took so many messages, `fresh` of them of runs that had no place."""
    if room.bounded and fresh >= room.places:
        return full_s
    if room.bucket is not None and sent >= room.messages:
        bucket = room.bucket.less(sent)
        return max((bucket.next_time - bucket.time).total_seconds(), _LEAST_S)
    return None
