"""What waits for a queue: on the broker by its own word, and in the plane."""

from typing import Any

from app.api.plane import Plane
from app.database import Record
from app.dispatch import limit_queries
from app.dispatch.broker import BrokerAway, QueueTrouble
from app.schedule import queries


async def backlog_of(plane: Plane, queue: Record) -> dict[str, Any]:
    """The backlog of a queue (its row) as the API shows it.

    A broker that does not answer is told in it, and is no error.
    """
    name = queue["name"]
    ready = consumers = problem = taken = None
    try:
        found = await plane.broker.backlog(name)
        ready, consumers = found.ready, found.consumers
    except BrokerAway as away:
        problem = f"the broker is away: {away}"
    except QueueTrouble as trouble:
        problem = str(trouble)
    async with plane.database.reading() as connection:
        waiting, oldest = await queries.queue_waiting(connection, name)
        if queue["max_active"] is not None:
            taken = await limit_queries.places_taken(connection, name)
        if consumers is None and problem is None:
            consumers = await queries.live_consumers(connection, name)
    return {
        "ready": ready,
        "consumers": consumers,
        "waiting_runs": waiting,
        "places_taken": taken,
        "oldest_run": None if oldest is None else dict(oldest),
        "problem": problem,
    }
