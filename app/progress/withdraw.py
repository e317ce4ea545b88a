"""Takes an attempt back from whoever has it or comes to take it: the lease first, the row second.

Whoever holds the lease or comes for it must find `cancelled` there before the row says REVOKED, or a body would go on
behind an ended run. A crash in between leaves a lease that only refuses, and the next pass writes the row.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from redis.asyncio import Redis

from app import faults
from app.database import Database, Record, clock
from app.progress import cancelling, lease, reports
from app.progress.fold import Report, fold
from app.progress.listen import Heard, stored_of
from app.progress.sources import OWN, Source
from app.progress.standing import Move, Standing
from app.progress.transition import apply
from app.states import RETRY, is_running
from workers.protocol import CANCELLED, DONE, HELD, TaskId, lease_key


class Whose(Enum):
    """Who has the attempt."""

    OURS = auto()
    #: Its work is done, and its end is about to be recorded.
    DONE = auto()
    #: A worker without a lease.
    STRANGER = auto()


@dataclass(frozen=True, slots=True)
class Taken:
    """An attempt as it stood, whose it is now, and what its workers have said of it."""

    seen: Standing
    whose: Whose
    said: Sequence[Report] = ()


async def take(redis: Redis, seen: Standing, source: Source = OWN) -> Taken:
    """Make sure that no worker of ours starts or goes on with this attempt. Raises RedisError; then nothing is known.

    `source` is where the results of the run's queue stand.
    """
    if cancelling.started_by_stranger(seen):
        value: bytes | None = await redis.get(lease_key(seen.id, seen.attempt, seen.retries))  # type: ignore[assignment]
        if value is None or not value.startswith(HELD.encode()):
            return Taken(seen, Whose.STRANGER)
        seen = replace(seen, leased=True)  # its STARTED never reached us
    # Between two of Celery's own retries the next one has a key of its own.
    retries = [seen.retries, seen.retries + 1] if seen.state == RETRY else [seen.retries]
    stands = [
        await lease.take(redis, lease_key(seen.id, seen.attempt, number), CANCELLED, held_too=True)
        for number in retries
    ]
    await faults.at("cancel.after_take")
    done = seen.state != RETRY and DONE in stands
    heard = await _heard(redis, seen, source)
    large = [one for one in heard if reports.is_large_end(one.body, one.size)]
    if large:
        # Its result goes into the log store first: that takes the recorder a moment.
        done, heard = True, [one for one in heard if one not in large]
    said = [reports.read(one.task_id, one.body, one.size) for one in heard]
    known = [report for report in said if isinstance(report, Report)]
    return Taken(seen, Whose.DONE if done else Whose.OURS, known)


async def _heard(redis: Redis, seen: Standing, source: Source) -> list[Heard]:
    """What the result backend says of this attempt: an end that is stored counts, and so does a stranger's start."""
    last = seen.dispatches + 1
    wanted = [(TaskId(seen.id, n), source) for n in range(max(seen.first_dispatch, last - 3), last + 1)]
    return await stored_of(redis, wanted)


async def write(database: Database, taken: Taken) -> list[Record]:
    """Write the end, if the run still stands where it was taken; its row if it changed, before those of the runs that
    waited for it. The caller announces them."""
    if taken.whose is Whose.STRANGER:
        return []
    async with database.transaction() as connection:
        now = await clock(connection)
        moves = [fold(report, now) for report in taken.said]
        if taken.whose is Whose.OURS:
            moves += [_held(taken.seen), cancelling.withdraw(now, taken.seen)]
        rows = await apply(connection, now, {taken.seen.id: moves})
        await faults.at("cancel.before_commit")
    await faults.at("cancel.after_commit")
    return rows


def _held(seen: Standing) -> Move:
    """Learn of a lease that was found."""

    def move(standing: Standing) -> Standing | None:
        same = (standing.attempt, standing.retries) == (seen.attempt, seen.retries)
        return replace(standing, leased=True) if same and seen.leased and is_running(standing.state) else None

    return move
