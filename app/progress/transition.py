"""The only code that makes a run and changes its state.

A change is one UPDATE guarded by the version that was read under the row's lock, with one event beside it for each
state that the run went through, in the same transaction. A row that does not come back lost a race: an answer, not an
error. The caller commits, then announces the rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from app.database import Connection, Record, to_json
from app.progress import waiting
from app.progress.standing import Move, Standing
from app.states import PENDING


@dataclass(frozen=True, slots=True)
class NewRun:
    """A run to be made; it starts as PENDING, attempt 1, not dispatched."""

    id: UUID
    kind: str
    namespace: str
    task: str
    args: list[Any]
    kwargs: dict[str, Any]
    queue: str
    author: str
    retry: Mapping[str, Any]
    priority: int | None = None
    time_limit_s: float | None = None
    soft_time_limit_s: float | None = None
    job_id: UUID | None = None
    job_version: int | None = None
    job_name: str | None = None
    scheduled_time: datetime | None = None
    start_deadline_time: datetime | None = None
    deadline_time: datetime | None = None
    backfill_id: UUID | None = None
    apart: bool = False
    #: The run that it waits for, and until how few of its job are active.
    waits_for: UUID | None = None
    most_active: int | None = None
    reason: str | None = None


# Columns and their types; jsonb travels as text, because the driver reads a list of lists as one array of arrays.
_NEW: Final = {
    "id": "uuid",
    "kind": "text",
    "namespace": "text",
    "task": "text",
    "args": "jsonb",
    "kwargs": "jsonb",
    "queue": "text",
    "author": "text",
    "retry": "jsonb",
    "priority": "int2",
    "time_limit_s": "float8",
    "soft_time_limit_s": "float8",
    "job_id": "uuid",
    "job_version": "int4",
    "job_name": "text",
    "scheduled_time": "timestamptz",
    "start_deadline_time": "timestamptz",
    "deadline_time": "timestamptz",
    "backfill_id": "uuid",
    "apart": "bool",
    "waits_for": "uuid",
    "most_active": "int4",
    "reason": "text",
}
_CHANGED: Final = {
    "state": "text",
    "reason": "text",
    "waits_for": "uuid",
    "most_active": "int4",
    "attempt": "int4",
    "lost": "int4",
    "attempts": "jsonb",
    "progress": "jsonb",
    "result": "jsonb",
    "error": "jsonb",
    "worker": "text",
    "leased": "bool",
    "retries": "int4",
    "due_time": "timestamptz",
    "claim_time": "timestamptz",
    "claimed_by": "text",
    "dispatches": "int4",
    "first_dispatch": "int4",
    "dispatch_time": "timestamptz",
    "start_time": "timestamptz",
    "end_time": "timestamptz",
    "not_registered": "int4",
    "late": "jsonb",
    "cancel": "jsonb",
    "cancel_next_time": "timestamptz",
    "version": "int4",
}
_EVENT: Final = {
    "run_id": "uuid",
    "version": "int4",
    "state": "text",
    "attempt": "int4",
    "reason": "text",
    "worker": "text",
}


def _source(columns: Mapping[str, str], alias: str, first: int) -> str:
    arrays = ", ".join(
        f"${n}::{'text' if kind == 'jsonb' else kind}[]" for n, kind in enumerate(columns.values(), first)
    )
    return f"unnest({arrays}) AS {alias} ({', '.join(columns)})"


def _values(columns: Mapping[str, str], alias: str) -> list[str]:
    return [f"{alias}.{name}{'::jsonb' if kind == 'jsonb' else ''}" for name, kind in columns.items()]


def _arrays(columns: Mapping[str, str], items: Sequence[Any]) -> list[list[Any]]:
    def value(item: Any, name: str, kind: str) -> Any:
        found = getattr(item, name)
        return to_json(found) if kind == "jsonb" and found is not None else found

    return [[value(item, name, kind) for item in items] for name, kind in columns.items()]


# What waits for another run is due in another age: an older scheduler, which knows of no waiting, leaves it alone.
_DUE = "CASE WHEN n.waits_for IS NULL THEN $1::timestamptz ELSE $1 + interval '100 years' END"

_INSERT = f"""
    INSERT INTO runs ({", ".join(_NEW)}, state, due_time, create_time, update_time)
    SELECT {", ".join(_values(_NEW, "n"))}, '{PENDING}', {_DUE}, $1, $1 FROM {_source(_NEW, "n", 2)}
    ON CONFLICT (job_id, scheduled_time) WHERE kind = 'schedule' DO NOTHING
    RETURNING *
"""  # noqa: S608  (names of our own columns)

_UPDATE = f"""
    UPDATE runs SET ({", ".join(_CHANGED)}, update_time) = ROW ({", ".join(_values(_CHANGED, "m"))}, $1)
    FROM {_source({"id": "uuid", "read_version": "int4", **_CHANGED}, "m", 2)}
    WHERE runs.id = m.id AND runs.version = m.read_version
    RETURNING runs.*
"""  # noqa: S608

_INSERT_EVENTS = f"""
    INSERT INTO run_events ({", ".join(_EVENT)}, time)
    SELECT {", ".join(_values(_EVENT, "e"))}, $1 FROM {_source(_EVENT, "e", 2)}
"""  # noqa: S608


@dataclass(frozen=True, slots=True)
class _Event:
    run_id: UUID
    version: int
    state: str
    attempt: int
    reason: str | None
    worker: str | None


@dataclass(frozen=True, slots=True)
class _Change:
    id: UUID
    read_version: int
    standing: Standing
    events: list[_Event]

    def __getattr__(self, name: str) -> Any:
        return getattr(self.standing, name)


def _walk(standing: Standing, moves: Sequence[Move]) -> _Change | None:
    """All moves of one run in order; each accepted one raises the version, each new state is an event."""
    now, events = standing, []
    for move in moves:
        moved = move(now)
        if moved is None or moved == now:
            continue
        moved = replace(moved, version=now.version + 1)
        if (moved.state, moved.attempt) != (now.state, now.attempt):
            events.append(_Event(moved.id, moved.version, moved.state, moved.attempt, moved.reason, moved.worker))
        now = moved
    return None if now is standing else _Change(standing.id, standing.version, now, events)


async def create(connection: Connection, now: datetime, runs: Sequence[NewRun]) -> list[Record]:
    """Insert PENDING runs with their first event; a scheduled run that exists is left alone and not returned."""
    if not runs:
        return []
    rows: list[Record] = await connection.fetch(_INSERT, now, *_arrays(_NEW, runs))
    await _record(connection, now, [_Event(row["id"], 1, PENDING, 1, row["reason"], None) for row in rows])
    return rows


async def apply(connection: Connection, now: datetime, moves: Mapping[UUID, Sequence[Move]]) -> list[Record]:
    """Apply moves to runs under their rows' locks, taken in the order of ids; returns the rows that changed.

    Runs that do not exist, and moves that do not apply, are passed over. Runs that waited for one that ends here are
    let go in the same transaction, and come last.
    """
    if not moves:
        return []
    locked = await connection.fetch("SELECT * FROM runs WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE", list(moves))
    changes = [change for row in locked if (change := _walk(Standing.of(row), moves[row["id"]]))]
    if not changes:
        return []
    columns = {"id": "uuid", "read_version": "int4", **_CHANGED}
    rows: list[Record] = await connection.fetch(_UPDATE, now, *_arrays(columns, changes))
    written = {row["id"] for row in rows}
    await _record(connection, now, [event for change in changes if change.id in written for event in change.events])
    live = {row["id"] for row in locked if row["end_time"] is None}
    ended = [row for row in rows if row["end_time"] is not None and row["id"] in live and row["job_id"] is not None]
    return rows + await waiting.let_go(connection, now, list({row["job_id"] for row in ended}))


async def _record(connection: Connection, now: datetime, events: Sequence[_Event]) -> None:
    if events:
        await connection.execute(_INSERT_EVENTS, now, *_arrays(_EVENT, events))
