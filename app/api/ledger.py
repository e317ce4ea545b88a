"""`/jobs/{id}/ledger`: what became of each scheduled time, and whether that is all of them."""

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import Field, TypeAdapter, ValidationError

from app.api import pages, queries
from app.api.bodies import JsonRoute
from app.api.documents import problems
from app.api.plane import PlaneOf
from app.api.schemas.fields import Instant
from app.api.schemas.ledger import LedgerOut
from app.api.writes import json_response
from app.database import Connection, Record, clock
from app.due.ledger import MOST_TIMES, Balance, Period, SkipRow, Times, balance, clipped, times_in
from app.errors import BadRequest, Invalid
from app.schedule import definitions
from app.schedule.triggers import SECOND
from app.settings import Settings

router = APIRouter(prefix="/jobs/{job_id}", tags=["jobs"], route_class=JsonRoute)

_LONGEST: Final = timedelta(days=366)
_MICROSECOND: Final = timedelta(microseconds=1)


class LedgerQuery(pages.PageQuery):
    """Which scheduled times the ledger tells of: those of at most 366 days, and at most 1,000,000."""

    begin: Instant | None = Field(None, alias="from", description="from this time on; a day before `to` if left out")
    end: Instant | None = Field(None, alias="to", description="before this time; now if left out")


@router.get("/ledger", response_model=LedgerOut, responses=problems(400, 404))
async def get_ledger(plane: PlaneOf, job_id: UUID, query: Annotated[LedgerQuery, Query()]) -> Response:
    """What became of every scheduled time: a run, or counted in a row of skips with its reason, or not yet dealt with.

    How many times there were follows from the trigger, each version of the definition judged by its own; `summary` says
    whether runs and skips are as many. A row that reaches over a bound of the window is shown with what lies inside.
    """
    where = pages.place("ledger", query, job_id=job_id)
    async with plane.database.transaction(isolation="repeatable_read", readonly=True) as connection:
        job = await definitions.found(connection, job_id)
        now = await clock(connection)
        end = query.end or now
        begin = query.begin or end - timedelta(days=1)
        if begin >= end:
            raise Invalid.field("?from", "must be before `to`")
        if end - begin > _LONGEST:
            raise Invalid.field("?from", "must be at most 366 days before `to`")
        crossing = {row["first_time"]: row for row in await queries.skips_across(connection, job_id, begin, end)}
        ends = [row["last_time"] + SECOND for row in crossing.values()]
        periods = await _periods(connection, job, min([begin, *crossing]), max([end, *ends]))
        # Scheduled times are whole seconds, so these are the times in [begin, end).
        after, until = _whole(begin) - SECOND, _whole(end) - SECOND
        _refuse_too_many(times_in(periods, after, until))
        inside = {first: clipped(periods, _row(row), after, until) for first, row in crossing.items()}
        total = await _balance(connection, plane.settings, now, job, periods, (begin, end), list(inside.values()))
        rows = await queries.ledger_page(connection, job_id, begin, end, _instant(where.after), where.limit + 1)
    found, more = where.cut(rows)
    items = [_item(row, inside.get(row["at"]) if row["outcome"] == "skip" else None) for row in found]
    if not more:
        items += _pending(job, now, times_in(periods, max(after, job["cursor_time"]), until))
    last = found[-1]["at"].isoformat() if found else None
    figures = {name: getattr(total, name) for name in Balance.__slots__}
    return json_response({"from": begin, "to": end, **figures, **pages.page(where, items, more, last)})


async def _periods(connection: Connection, job: Record, begin: datetime, end: datetime) -> list[Period]:
    """Which trigger each time in [begin, end) belongs to. Invalid if the definition changed too often."""
    versions = await queries.versions_between(connection, job["id"], begin, end, queries.MOST_VERSIONS + 1)
    if len(versions) > queries.MOST_VERSIONS:
        raise Invalid.field("?from", f"more than {queries.MOST_VERSIONS} versions lie in it; ask for a shorter window")
    ends: list[datetime | None] = [row["begin"] for row in versions[1:]]
    return [
        Period.of(row["definition"], row["begin"], until) for row, until in zip(versions, [*ends, None], strict=False)
    ]


async def _balance(
    connection: Connection,
    settings: Settings,
    now: datetime,
    job: Record,
    periods: Sequence[Period],
    window: tuple[datetime, datetime],
    crossing: Sequence[Times],
) -> Balance:
    begin, end = window
    counts = await queries.ledger_counts(connection, job["id"], begin, end)
    after, until = _whole(begin) - SECOND, _whole(end) - SECOND
    cursor = job["cursor_time"]
    kept_from = now - timedelta(days=min(settings.retain_success_days, settings.retain_failure_days))
    return balance(
        times_in(periods, after, min(until, cursor)),
        runs=counts["runs"],
        skipped=counts["skipped"] + sum(times.count for times in crossing),
        exact=counts["exact"] and all(times.known for times in crossing),
        twice=await queries.ledger_twice(connection, job["id"], begin, end),
        pending=times_in(periods, max(after, cursor), until).count,
        kept_from=kept_from if begin < kept_from else None,
    )


def _refuse_too_many(times: Times) -> None:
    if times.count > MOST_TIMES:
        raise Invalid.field(
            "?from",
            f"{times.count:,} scheduled times lie in it, and at most {MOST_TIMES:,} can; ask for a shorter window",
        )


def _pending(job: Record, now: datetime, times: Times) -> list[dict[str, Any]]:
    """The times behind the job's cursor, if there are any, as one item."""
    if times.first is None:
        return []
    reason = None
    if job["pause_time"] is not None:
        reason = "paused"
    elif job["problem"] is not None:
        reason = "parked"
    elif times.first <= now:
        reason = "due"
    span = {"first_time": times.first, "last_time": times.last, "count": times.count}
    return [{"outcome": "pending", "reason": reason, **span}]


def _item(row: Mapping[str, Any], inside: Times | None) -> dict[str, Any]:
    if row["outcome"] == "run":
        return {"outcome": "run", "time": row["at"], "run_id": row["run_id"], "state": row["state"]}
    span = {"first_time": row["at"], "last_time": row["last_time"], "count": row["count"]}
    if inside is not None and inside.first is not None:
        span = {"first_time": inside.first, "last_time": inside.last, "count": inside.count}
    return {"outcome": "skip", "reason": row["reason"], "run_id": row["run_id"], **span}


def _row(row: Record) -> SkipRow:
    return SkipRow(row["first_time"], row["last_time"], row["count"], row["exact"])


def _whole(instant: datetime) -> datetime:
    """The first whole second that is not before it."""
    return (instant + SECOND - _MICROSECOND).replace(microsecond=0)


def _instant(text: str | None) -> datetime | None:
    try:
        return None if text is None else TypeAdapter(Instant).validate_strings(text)
    except ValidationError:
        raise BadRequest("?cursor is not a cursor of this API") from None
