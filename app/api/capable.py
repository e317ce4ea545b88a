"""Whether somebody can run what a caller is about to save: warnings in the answer, or a 422."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import Query

from app.catalogue.check import examine
from app.database import Connection
from app.errors import FieldError, Invalid

StrictOf = Annotated[bool, Query(description="refuse (422) what live workers cannot run, instead of a warning")]

#: Stay warnings: the task may well end in time without a limit, and a limit may be meant for other workers.
_NEVER_REFUSED: Final = {"consumer_timeout", "time_limit"}


async def warnings_of(
    connection: Connection, now: datetime, work: Mapping[str, Any], *, strict: bool, refuse: bool = True
) -> list[dict[str, str]]:
    """What may keep this work (a job's row, a run's body) from running, as `{"code", "detail"}`.

    Invalid for arguments that cannot fit the task as live workers register it, unless `refuse` is false: then that is
    a warning too. With `strict` Invalid for most of the rest.
    """
    found = await examine(connection, now, work)
    if found.misfits and refuse:
        raise Invalid(*found.misfits)
    refused = [doubt for doubt in found.doubts if strict and doubt.code not in _NEVER_REFUSED]
    if refused:
        raise Invalid(*(FieldError(doubt.pointer, doubt.detail) for doubt in refused))
    warnings = [{"code": doubt.code, "detail": doubt.detail} for doubt in found.doubts]
    if found.misfits:
        told = "; ".join(f"{fault.pointer}: {fault.detail}" for fault in found.misfits)
        warnings.append({"code": "contract", "detail": f"the arguments do not fit the task: {told}"})
    return warnings
