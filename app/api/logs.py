"""`/runs/{id}/logs`: what an attempt logged and printed, from any offset on, as plain text."""

from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query, Response

from app.api.documents import problems
from app.api.plane import PlaneOf
from app.logs.read import read

_TEXT: Final = "text/plain; charset=utf-8"
_EXAMPLE: Final = "2026-03-01 23:00:00 INFO fetching 3 files\n[jobplane: 5242880 bytes cut here]\nlast line\n"


def _header(description: str, schema: dict[str, Any], example: str) -> dict[str, Any]:
    return {"description": description, "schema": schema, "example": example}


_ANSWER: Final[dict[str, Any]] = {
    "description": "The log from `offset` on, at most about 1 MiB; empty where there is nothing (yet)",
    "content": {"text/plain": {"schema": {"type": "string"}, "example": _EXAMPLE}},
    "headers": {
        "Jobplane-Log-Next": _header("the offset to go on with", {"type": "integer"}, "5242931"),
        "Jobplane-Log-Attempt": _header("the attempt whose log this is", {"type": "integer"}, "1"),
        "Jobplane-Log-Ended": _header("whether nothing comes behind it any more", {"type": "boolean"}, "true"),
    },
}

router = APIRouter(prefix="/runs", tags=["runs"])


@router.get("/{run_id}/logs", response_class=Response, responses={200: _ANSWER, **problems(404)})
async def get_run_logs(
    plane: PlaneOf,
    run_id: UUID,
    offset: Annotated[
        int, Query(ge=0, le=2**53 - 1, description="bytes of what was written to skip; `Jobplane-Log-Next` of before")
    ] = 0,
    wait: Annotated[float, Query(ge=0, le=30, description="seconds to wait for more, or for the end")] = 0,
    attempt: Annotated[int | None, Query(ge=1, le=2**31 - 1, description="the newest attempt if left out")] = None,
) -> Response:
    """What an attempt logged and printed, as far as it is known now.

    Where something was cut stands a line `[jobplane: N bytes cut here]`, which offsets do not count.
    """
    parts = plane.database, plane.redis, plane.store
    chunk = await read(*parts, run_id, attempt, offset, wait_s=wait, leaving=lambda: plane.hub.draining)
    headers = {
        "Jobplane-Log-Next": str(chunk.next),
        "Jobplane-Log-Attempt": str(chunk.attempt),
        "Jobplane-Log-Ended": "true" if chunk.ended else "false",
        "Content-Type": _TEXT,
    }
    return Response(chunk.text.encode(), headers=headers)
