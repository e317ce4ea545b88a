"""What a trigger may be: the body's `trigger`, and the JSON that `jobs.trigger` keeps. Frozen and hashable."""

import calendar
import re
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, Self

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from app.schedule.triggers import cron, zones
from app.schedule.triggers.walls import HORIZON

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: The last instant that a trigger may name.
LATEST: Final = EPOCH + timedelta(seconds=HORIZON - 1)

_EXAMPLE: Final = "such as 2026-03-08T02:30:00Z"
#: Celery's names for the fields of a cron expression, in the order of the expression.
CELERY_FIELDS: Final = {
    "minute": "minute",
    "hour": "hour",
    "day_of_month": "day of month",
    "month_of_year": "month",
    "day_of_week": "day of week",
}
_LONG_NAMES: Final = re.compile(rf"\b({'|'.join([*calendar.month_name[1:], *calendar.day_name])})\b", re.IGNORECASE)


def _refuse(kind: str, detail: str) -> PydanticCustomError:
    """An error whose message is the sentence alone, braces and all."""
    return PydanticCustomError(kind, "{detail}", {"detail": detail})


def _written_instant(value: object) -> object:
    # pydantic takes numbers, and texts of digits, for seconds since 1970.
    if isinstance(value, datetime) or (isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\d[Tt ]", value)):
        return value
    raise _refuse("instant", f"must be an RFC 3339 time with its zone, {_EXAMPLE}")


def _instant(value: datetime) -> datetime:
    if value.tzinfo is None or value.utcoffset() is None:
        raise _refuse("instant", f"has no zone; end it with Z or an offset, {_EXAMPLE}")
    if value.microsecond:
        raise _refuse("instant", f"must be a whole second, {_EXAMPLE}")
    try:
        value = value.astimezone(UTC)
    except OverflowError:
        value = datetime.max.replace(tzinfo=UTC)
    if not EPOCH <= value <= LATEST:
        raise _refuse("instant", "must be from 1970 up to 2999")
    return value


def _end(value: datetime | None, info: ValidationInfo) -> datetime | None:
    start = info.data.get("start_time")
    if value is not None and start is not None and value < start:
        raise _refuse("end_before_start", "end_time is before start_time")
    return value


Instant = Annotated[datetime, BeforeValidator(_written_instant), AfterValidator(_instant)]
StartTime = Annotated[Instant | None, Field(description="no scheduled time before this one; whole seconds")]
EndTime = Annotated[
    Instant | None, AfterValidator(_end), Field(description="no scheduled time after this one; whole seconds")
]
Jitter = Annotated[
    int,
    Field(
        strict=True, ge=0, le=86_400, description="each time is delayed by up to this, the same for everybody who asks"
    ),
]


def _celery_field(name: str) -> Any:
    return Field(
        default=None,
        exclude=True,
        max_length=200,
        description=f"Celery's `{name}`, instead of `expression`; what is not given is `*`",
    )


class CronTrigger(BaseModel):
    """Fires when a clock in `timezone` shows what `expression` says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["cron"]
    minute: str | None = _celery_field("minute")
    hour: str | None = _celery_field("hour")
    day_of_month: str | None = _celery_field("day_of_month")
    month_of_year: str | None = _celery_field("month_of_year")
    day_of_week: str | None = _celery_field("day_of_week")
    expression: str = Field(
        default="",
        validate_default=True,
        description="5 fields, or 6 with seconds first; `@hourly` and the like; names, `L`, `LW`, `5L`, `MON#2`; "
        "0 and 7 are Sunday; day of month and day of week both restricted: either matches",
        examples=["0 1,7,13,19 * * *"],
    )
    timezone: str = Field(default="UTC", description="an IANA zone", examples=["Asia/Shanghai"])
    start_time: StartTime = None
    end_time: EndTime = None
    jitter_s: Jitter = 0

    @field_validator(*CELERY_FIELDS, mode="before")
    @classmethod
    def _number_as_text(cls, value: object) -> object:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator(*CELERY_FIELDS)
    @classmethod
    def _checked_field(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is None:
            return None
        assert info.field_name is not None
        value = _LONG_NAMES.sub(lambda match: match[1][:3], value)
        try:
            cron.check_field(CELERY_FIELDS[info.field_name], value)
        except cron.CronError as error:
            raise _refuse("cron", str(error)) from None
        return value

    @field_validator("expression")
    @classmethod
    def _checked_expression(cls, value: str, info: ValidationInfo) -> str:
        if any(name not in info.data for name in CELERY_FIELDS):
            return value  # one of Celery's fields is at fault, and told
        given = {name: info.data[name] for name in CELERY_FIELDS if info.data[name] is not None}
        if given and value:
            raise _refuse("cron", f"give either expression or {', '.join(given)}, not both")
        if given:
            days = (given.get("day_of_month", "*"), given.get("day_of_week", "*"))
            if not any(day.startswith("*") for day in days):
                raise _refuse(
                    "cron",
                    "Celery fires when day_of_month and day_of_week both match, cron when either does; "
                    "write what is meant as an expression, such as 0 9 * * MON#1",
                )
            value = " ".join(given.get(name, "*") for name in CELERY_FIELDS)
        if not value:
            raise _refuse("cron", f"give an expression, or Celery's fields {', '.join(CELERY_FIELDS)}")
        value = " ".join(value.split())
        try:
            cron.compiled(value)
        except cron.CronError as error:
            raise _refuse("cron", str(error)) from None
        return value

    @field_validator("timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        if value not in zones.ZONES:
            meant = zones.nearest(value[:60])
            raise _refuse("timezone", f"is not an IANA time zone{f'; did you mean {meant}?' if meant else ''}")
        return value

    @field_validator("end_time")
    @classmethod
    def _fires_before_end(cls, value: datetime | None, info: ValidationInfo) -> datetime | None:
        start, expression, zone = (info.data.get(name) for name in ("start_time", "expression", "timezone"))
        if value is not None and start is not None and expression and zone:
            first = cron.following(expression, zone, seconds(start) - 1)
            if first is None or first > seconds(value):
                raise _refuse("never", "no time of the expression lies between start_time and end_time")
        return value

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        for name in CELERY_FIELDS:
            object.__setattr__(self, name, None)
        self.model_fields_set.difference_update(CELERY_FIELDS)
        self.model_fields_set.add("expression")
        return self


class IntervalTrigger(BaseModel):
    """Fires at `start_time + n * every_s`, or at multiples of `every_s` since 1970: it never drifts."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["interval"]
    every_s: int = Field(strict=True, ge=1, le=3_153_600_000, description="seconds from one time to the next")
    start_time: StartTime = None
    end_time: EndTime = None
    jitter_s: Jitter = 0


class OnceTrigger(BaseModel):
    """Fires at one time; the job is then finished, not deleted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["once"]
    run_time: Instant


Trigger = Annotated[CronTrigger | IntervalTrigger | OnceTrigger, Field(discriminator="type")]

_ADAPTER: Final[TypeAdapter[Trigger]] = TypeAdapter(Trigger)


def parse(data: Mapping[str, Any]) -> Trigger:
    """The trigger that a body or a row describes; pydantic's ValidationError names each field at fault."""
    return _ADAPTER.validate_python(data)


def load(stored: Mapping[str, Any]) -> Trigger:
    """The trigger of `jobs.trigger`; as `parse`, but equal definitions share one object."""
    return _loaded(orjson.dumps(stored))


@lru_cache(maxsize=65_536)
def _loaded(stored: bytes) -> Trigger:
    return parse(orjson.loads(stored))


def seconds(instant: datetime) -> int:
    """Whole seconds since 1970, rounded down."""
    return (instant - EPOCH) // timedelta(seconds=1)
