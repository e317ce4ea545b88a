"""The kinds of values that several bodies share, with their bounds."""

from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictStr,
    StringConstraints,
)

from app.schedule.triggers.models import written_instant

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9_.:-]{0,127}$"
DAY_S: Final = 86_400


def _whole(value: float) -> float:
    return int(value) if value.is_integer() else value


Name = Annotated[str, StringConstraints(strict=True, pattern=NAME_PATTERN)]
TaskName = Annotated[str, StringConstraints(strict=True, pattern=r"^\S{1,255}$")]
#: A value to filter by; PostgreSQL has no text with U+0000.
Word = Annotated[str, StringConstraints(max_length=255, pattern=r"^[^\x00]*$")]
#: A reference to a queue: whether there is one of this name, only the database knows.
QueueName = Annotated[str, StringConstraints(strict=True, min_length=1, max_length=255)]
Text = Annotated[str, StringConstraints(strict=True, max_length=4000)]
LabelName = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9_./-]{0,62}$")]
LabelValue = Annotated[str, StringConstraints(strict=True, max_length=256)]
Labels = Annotated[dict[LabelName, LabelValue], Field(max_length=64)]
Count = Annotated[int, Field(strict=True)]
#: A duration or factor: any JSON number; whole ones stay whole.
Number = Annotated[float, Field(strict=True, allow_inf_nan=False), AfterValidator(_whole)]
Priority = Annotated[int, Field(strict=True, ge=0, le=255)]
TimeLimit = Annotated[Number, Field(gt=0, le=30 * DAY_S)]
ErrorName = Annotated[str, StringConstraints(strict=True, max_length=200, pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$")]
Flag = StrictBool
Words = StrictStr
Args = Annotated[list[Any], Field(max_length=1000)]
Kwargs = Annotated[dict[str, Any], Field(max_length=1000)]


class In(BaseModel):
    """A body that comes in: a member that it does not know is an error, not a guess."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NothingIn(In):
    """No member is known here."""


class Out(BaseModel):
    """A body that goes out."""

    model_config = ConfigDict(extra="forbid")


class RetryPolicy(In):
    """When a failed or lost attempt is followed by another."""

    max_attempts: Annotated[Count, Field(ge=1, le=1000)] = Field(
        default=1, description="attempts that may end by the task's own error; 1 means no retry"
    )
    max_lost: Annotated[Count, Field(ge=0, le=1000)] = Field(
        default=2, description="times that a run is started again after its worker was lost; 0 means at most once"
    )
    backoff_s: Annotated[Number, Field(ge=0, le=DAY_S)] = Field(
        default=10, description="wait before the second attempt"
    )
    backoff_factor: Annotated[Number, Field(ge=1, le=100)] = Field(
        default=2, description="each further wait is longer by this"
    )
    max_backoff_s: Annotated[Number, Field(ge=0, le=30 * DAY_S)] = Field(default=600, description="longest wait")
    jitter: Literal["none", "full"] = Field(
        default="none",
        description="full: wait any time from 0 to the backoff, so that many runs do not come back at once",
    )
    retry_on: Annotated[list[ErrorName], Field(max_length=100)] | None = Field(
        default=None,
        description="types of errors that are worth another attempt, as `ConnectionError` or "
        "`requests.ConnectionError` (the last part counts); null: every error. A lost worker is `max_lost`'s business",
    )


def refuse_swapped_limits(time_limit_s: float | None, soft_time_limit_s: float | None) -> None:
    """ValueError if the soft limit could never act before the hard one."""
    if time_limit_s is not None and soft_time_limit_s is not None and soft_time_limit_s >= time_limit_s:
        raise ValueError("must be less than time_limit_s")


def refuse_swapped_deadlines(start_deadline_s: int | None, deadline_s: int | None) -> None:
    """ValueError if the run would be over before the last moment of its start."""
    if start_deadline_s is not None and deadline_s is not None and start_deadline_s >= deadline_s:
        raise ValueError("must be more than start_deadline_s")


def _instant(value: datetime) -> datetime:
    if value.tzinfo is None:
        raise ValueError("has no zone; end it with Z or an offset")
    if not 1970 < value.year < 2999:
        raise ValueError("must be a time from 1971 up to 2998")
    return value.astimezone(UTC)


#: A point in time as callers write it; UTC inside. Bounded, so that arithmetic and the database stay within theirs.
Instant = Annotated[datetime, BeforeValidator(written_instant), AfterValidator(_instant)]
