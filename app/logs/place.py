"""Where in the log store an object lies: `<yyyy>/<mm>/<dd>/<run id>/<attempt>.log`, by the day in the run's UUIDv7."""

from datetime import UTC, datetime
from typing import Final
from uuid import UUID

#: The folder of a run, in SQL over a column `id`; the same text as `folder_of`.
FOLDER_SQL: Final = (
    "to_char(to_timestamp(('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint / 1000.0) AT TIME ZONE 'UTC',"
    " 'YYYY/MM/DD') || '/' || id::text"
)


def folder_of(run_id: UUID) -> str:
    """What all objects of a run lie below."""
    day = datetime.fromtimestamp((run_id.int >> 80) / 1000, UTC)
    return f"{day:%Y/%m/%d}/{run_id}"


def log_of(run_id: UUID, attempt: int) -> str:
    """The log of an attempt."""
    return f"{folder_of(run_id)}/{attempt}.log"


def result_of(run_id: UUID) -> str:
    """A result too large for the run's row."""
    return f"{folder_of(run_id)}/result.json"
