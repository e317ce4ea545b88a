"""A run as the REST API and the feed show it: made here and nowhere else."""

from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import orjson

from app.progress import pace

#: The members of a run, in the order in which they are shown; each is a column of `runs`.
RUN_MEMBERS: Final = (
    "id",
    "job_id",
    "job_name",
    "namespace",
    "job_version",
    "kind",
    "backfill_id",
    "scheduled_time",
    "task",
    "args",
    "kwargs",
    "queue",
    "priority",
    "deadline_time",
    "state",
    "reason",
    "waits_for",
    "attempt",
    "attempts",
    "late",
    "cancel",
    "progress",
    "result",
    "error",
    "worker",
    "log_path",
    "author",
    "create_time",
    "dispatch_time",
    "start_time",
    "end_time",
    "update_time",
    "version",
)

#: The same as a select list.
RUN_COLUMNS: Final = ", ".join(f"runs.{name}" for name in RUN_MEMBERS)


def run_view(row: Mapping[str, Any]) -> dict[str, Any]:
    """The members of a run out of its row; ids and instants stay Python objects, `encode` writes them."""
    return {name: row[name] for name in RUN_MEMBERS} | {"progress": pace.shown(row["progress"], row["state"])}


def encode(value: Any) -> bytes:
    """JSON with instants as RFC 3339 UTC with `Z`."""
    return orjson.dumps(value, default=_id, option=orjson.OPT_UTC_Z)


def _id(value: Any) -> str:
    if isinstance(value, UUID):  # the driver's own subclass, which orjson does not know
        return str(value)
    raise TypeError(f"{type(value).__name__} is not JSON")
