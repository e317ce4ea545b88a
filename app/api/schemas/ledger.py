"""The ledger of a job: each of its scheduled times, and the sum."""

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

from pydantic import ConfigDict, Field

from app.api.schemas.fields import Out


class LedgerRunOut(Out):
    """A scheduled time that ran."""

    outcome: Literal["run"]
    time: datetime
    run_id: UUID
    state: str


class LedgerSkipOut(Out):
    """Scheduled times in a row that did not run, for one reason."""

    outcome: Literal["skip"]
    reason: Literal["coalesced", "missed", "overlap", "paused", "limit"]
    run_id: UUID | None = Field(description="the run that they were coalesced into, or that was in the way")
    first_time: datetime
    last_time: datetime
    count: int


class LedgerPendingOut(Out):
    """Scheduled times that are not dealt with yet; the last item of the last page."""

    outcome: Literal["pending"]
    reason: Literal["due", "paused", "parked"] | None = Field(
        description="what they wait for, if the first of them is in the past or cannot come; else null"
    )
    first_time: datetime
    last_time: datetime
    count: int


class LedgerOut(Out):
    """What became of each scheduled time in [from, to). Each is a run, or counted in a skip, or pending."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "from": "2026-03-01T23:00:00Z",
                    "to": "2026-03-01T23:06:00Z",
                    "scheduled": 4,
                    "runs": 1,
                    "skipped": 3,
                    "pending": 2,
                    "exact": True,
                    "balanced": True,
                    "summary": "4 scheduled times, 1 run + 3 skipped: each is accounted for once; 2 not yet dealt with",
                    "items": [
                        {
                            "outcome": "run",
                            "time": "2026-03-01T23:00:00Z",
                            "run_id": "019ca1f3-0b42-7c55-9a01-2f4be8d07c11",
                            "state": "SUCCESS",
                        },
                        {
                            "outcome": "skip",
                            "reason": "overlap",
                            "run_id": "019ca1f3-0b42-7c55-9a01-2f4be8d07c11",
                            "first_time": "2026-03-01T23:01:00Z",
                            "last_time": "2026-03-01T23:03:00Z",
                            "count": 3,
                        },
                        {
                            "outcome": "pending",
                            "reason": None,
                            "first_time": "2026-03-01T23:04:00Z",
                            "last_time": "2026-03-01T23:05:00Z",
                            "count": 2,
                        },
                    ],
                    "next_cursor": None,
                }
            ]
        }
    )

    begin: datetime = Field(alias="from")
    end: datetime = Field(alias="to")
    scheduled: int | None = Field(
        description="how many times the triggers of then had that are dealt with; null: one cannot be evaluated"
    )
    runs: int
    skipped: int
    pending: int
    exact: bool = Field(description="false if some of the times could not be counted to the end")
    balanced: bool | None = Field(
        description="whether runs + skipped = scheduled and none is there twice; null: it cannot be known any more"
    )
    summary: str = Field(description="the same in one line")
    items: list[Annotated[LedgerRunOut | LedgerSkipOut | LedgerPendingOut, Field(discriminator="outcome")]]
    next_cursor: str | None
