"""When a trigger would fire, for people."""

from datetime import datetime
from itertools import islice
from typing import Any

from app.schedule import triggers
from app.schedule.triggers import Trigger


def preview(trigger: Trigger, count: int, after: datetime) -> dict[str, Any]:
    """The trigger in words and its first `count` times after an instant: nominal, local, and what a change of the
    clock does to them. Invalid if finding them takes too long."""
    latest = datetime.max.replace(tzinfo=after.tzinfo)
    with triggers.bounded():
        found = list(islice(triggers.times(trigger, after, latest), count))
    return {
        "description": triggers.describe(trigger),
        "times": [
            {"time": time, "local": triggers.local(trigger, time).isoformat(), "note": triggers.note(trigger, time)}
            for time in found
        ],
    }
