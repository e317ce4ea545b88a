"""Lists of runs: what may be asked, and the page that answers it."""

from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, Field

from app.api import pages, queries
from app.api.schemas.fields import Instant, Word
from app.database import Connection
from app.progress.view import run_view
from app.states import is_state


def _state(value: str) -> str:
    if not is_state(value):
        raise ValueError(f"{value!r} cannot be a state; states are upper case, such as PENDING or SUCCESS")
    return value


class RunFilter(pages.PageQuery):
    """Filters of the runs of a job."""

    state: list[Annotated[str, AfterValidator(_state)]] = Field(
        default_factory=list, max_length=50, description="any of these; repeatable"
    )
    queue: Word | None = None
    task: Word | None = None
    namespace: Word | None = None
    kind: Literal["schedule", "manual", "adhoc", "backfill"] | None = None
    backfill_id: UUID | None = None
    created_after: Instant | None = Field(None, description="made at this time or later")
    created_before: Instant | None = Field(None, description="made before this time")


class RunQuery(RunFilter):
    """Filters of the list of all runs."""

    job_id: UUID | None = None


async def page_of_runs(
    connection: Connection, list_name: str, query: RunFilter, job_id: UUID | None = None
) -> dict[str, Any]:
    """The body of a page of runs, newest first."""
    where = pages.place(list_name, query, **({} if job_id is None else {"job_id": job_id}))
    equal = query.model_dump(include={"queue", "task", "namespace", "kind", "backfill_id", "job_id"}, exclude_none=True)
    if job_id is not None:
        equal["job_id"] = job_id
    rows = await queries.runs_page(
        connection,
        pages.as_id(where.after),
        where.limit + 1,
        equal=equal,
        states=query.state,
        created_after=query.created_after,
        created_before=query.created_before,
    )
    items, more = where.cut(rows)
    return pages.page(where, [run_view(row) for row in items], more, items[-1]["id"] if items else None)
