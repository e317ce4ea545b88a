"""What a trigger may be: the body's `trigger`, and the JSON that `jobs.trigger` keeps. Frozen and hashable."""

import calendar
import re
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any, Final, Literal, Self

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from app.schedule.triggers import cron, rules, solar, walls, zones
from app.schedule.triggers.walls import HORIZON

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
#: The last instant that a trigger may name.
LATEST: Final = EPOCH + timedelta(seconds=HORIZON - 1)
#: An any_of: its members, what it excludes, how deep one stands in another, and all triggers in it together.
MAX_MEMBERS: Final = 20
MAX_EXCLUSIONS: Final = 200
MAX_DEPTH: Final = 3
MAX_TRIGGERS: Final = 50
#: From here on an event of the sun is looked for once, to see whether it ever happens.
_SOME_DAY: Final = 1_767_225_600

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


def written_instant(value: object) -> object:
    """Refuse what is not written as a time: pydantic takes numbers, and texts of digits, for seconds since 1970."""
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


Instant = Annotated[datetime, BeforeValidator(written_instant), AfterValidator(_instant)]
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


def _known_zone(value: str) -> str:
    if value not in zones.ZONES:
        meant = zones.nearest(value[:60])
        raise _refuse("timezone", f"is not an IANA time zone{f'; did you mean {meant}?' if meant else ''}")
    return value


def _written_day(value: object) -> object:
    if type(value) is date or (isinstance(value, str) and re.fullmatch(r"\d{4}-\d\d-\d\d", value, re.ASCII)):
        return value
    raise _refuse("day", "must be a day such as 2026-12-24, {from, to} with two days, or a trigger")


def _day(value: date) -> date:
    if not 1970 <= value.year <= 2999:
        raise _refuse("day", "must be from 1970 up to 2999")
    return value


Zone = Annotated[str, AfterValidator(_known_zone)]
Day = Annotated[date, BeforeValidator(_written_day), AfterValidator(_day)]


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
    timezone: Zone = Field(default="UTC", description="an IANA zone", examples=["Asia/Shanghai"])
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
    jitter_s: Jitter = 0


class RruleTrigger(BaseModel):
    """Fires when a clock in `timezone` shows what an RFC 5545 rule says."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["rrule"]
    timezone: Zone = Field(default="UTC", description="an IANA zone", examples=["Europe/Paris"])
    start_time: StartTime = Field(
        None, description="no scheduled time before this one, and what the rule counts from: its DTSTART"
    )
    end_time: EndTime = None
    jitter_s: Jitter = 0
    rrule: str = Field(
        description="a rule such as `FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=9`; what it leaves open (day, hour, minute, "
        "second) is that of start_time, or of 1970-01-01T00:00:00",
        examples=["FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=9"],
    )

    @field_validator("rrule")
    @classmethod
    def _checked_rule(cls, value: str, info: ValidationInfo) -> str:
        if not {"timezone", "start_time", "end_time"} <= info.data.keys():
            return value  # one of them is at fault, and told
        zone, start, end = (info.data[name] for name in ("timezone", "start_time", "end_time"))
        try:
            rule = rules.compiled(value, zone, None if start is None else seconds(start))
        except rules.RuleError as error:
            raise _refuse("rrule", str(error)) from None
        first = walls.following(rule, zone, -1 if start is None else seconds(start) - 1)
        ends = [one for one in (rule.until, None if end is None else seconds(end)) if one is not None]
        if first is None or any(first > one for one in ends):
            raise _refuse("never", "no time of the rule lies between its start and its end")
        return value

    @property
    def rule(self) -> rules.Rule:
        return rules.compiled(self.rrule, self.timezone, None if self.start_time is None else seconds(self.start_time))


class SolarTrigger(BaseModel):
    """Fires at an event of the sun, as Celery's `solar` does; on days without the event it does not."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["solar"]
    latitude: float = Field(strict=True, ge=-90, le=90, allow_inf_nan=False, description="degrees, north is positive")
    longitude: float = Field(strict=True, ge=-180, le=180, allow_inf_nan=False, description="degrees, east is positive")
    event: solar.Event
    start_time: StartTime = None
    end_time: EndTime = None
    jitter_s: Jitter = 0

    @field_validator("event")
    @classmethod
    def _happens(cls, value: str, info: ValidationInfo) -> str:
        if {"latitude", "longitude"} <= info.data.keys():
            place = info.data["latitude"], info.data["longitude"]
            if solar.following(value, *place, _SOME_DAY) is None:
                raise _refuse("never", "does not happen at this place in any season")
        return value


class DateRange(BaseModel):
    """Days from one to another, both included."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_by_name=True, serialize_by_alias=True)

    first: Day = Field(alias="from")
    last: Day = Field(alias="to")

    @field_validator("last")
    @classmethod
    def _in_order(cls, value: date, info: ValidationInfo) -> date:
        if "first" in info.data and value < info.data["first"]:
            raise _refuse("end_before_start", "is before `from`")
        return value


def _kind_of_exclusion(value: Any) -> str:
    if isinstance(value, DateRange):
        return "days"
    if isinstance(value, dict):
        return "days" if "type" not in value and ("from" in value or "to" in value) else "trigger"
    return "trigger" if isinstance(value, BaseModel) else "day"


Exclusion = Annotated[
    Annotated[Day, Tag("day")] | Annotated[DateRange, Tag("days")] | Annotated["Trigger", Tag("trigger")],
    Discriminator(_kind_of_exclusion),
]


class AnyOfTrigger(BaseModel):
    """Fires when one of several triggers does, the same instant once, and not when it is excluded."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["any_of"]
    of: tuple["Trigger", ...] = Field(
        description=f"1 to {MAX_MEMBERS} triggers; `jitter_s` is that of the whole, not of these"
    )
    exclude: tuple[Exclusion, ...] = Field(
        (),
        description="days (`2026-12-24`), spans of days with both ends (`{from, to}`), and triggers: "
        f"an instant at which one of those fires; at most {MAX_EXCLUSIONS}",
    )
    timezone: Zone | None = Field(
        None,
        validate_default=True,
        description="where excluded days are days; if left out, the zone that all members share; UTC if none has one",
    )
    jitter_s: Jitter = 0

    @field_validator("of", "exclude", mode="before")
    @classmethod
    def _bounded(cls, value: object, info: ValidationInfo) -> object:
        assert info.field_name is not None
        number = len(value) if isinstance(value, list | tuple) else None
        most = MAX_MEMBERS if info.field_name == "of" else MAX_EXCLUSIONS
        if number == 0 and info.field_name == "of":
            raise _refuse("too_few", "needs at least one trigger")
        if number is not None and number > most:
            raise _refuse("too_many", f"has {number} members; {most} are the most")
        _check_nesting(value, info.field_name)
        return value

    @field_validator("of", "exclude")
    @classmethod
    def _without_jitter(cls, value: tuple[Any, ...]) -> tuple[Any, ...]:
        for place, member in enumerate(value):
            if getattr(member, "jitter_s", 0):
                raise _refuse("jitter", f"member {place} has jitter_s; it belongs to the any_of as a whole")
        return value

    @field_validator("timezone")
    @classmethod
    def _zone_of_days(cls, value: str | None, info: ValidationInfo) -> str | None:
        if value is not None or "of" not in info.data:
            return value
        found = sorted({zone for member in info.data["of"] if (zone := getattr(member, "timezone", None))})
        if len(found) < 2:
            return found[0] if found else "UTC"
        if any(isinstance(one, date | DateRange) for one in info.data.get("exclude", ())):
            raise _refuse("timezone", f"say where the excluded days are days: the members live in {', '.join(found)}")
        return "UTC"


def _check_nesting(value: object, name: str) -> None:
    """Refuse any_of in any_of deeper than `MAX_DEPTH`, or with more than `MAX_TRIGGERS` triggers all in all."""
    found = [(f"{name}/{place}", one, 1) for place, one in enumerate(value if isinstance(value, list | tuple) else ())]
    number = 0
    while found:
        path, one, depth = found.pop()
        if not isinstance(one, dict) or "type" not in one:
            continue
        number += 1
        if number > MAX_TRIGGERS:
            raise _refuse("too_many", f"has more than {MAX_TRIGGERS} triggers, those inside others included")
        if one["type"] == "any_of" and depth >= MAX_DEPTH:
            raise _refuse("too_deep", f"{path} is an any_of inside {depth} others; {MAX_DEPTH} levels are the most")
        for inner in ("of", "exclude"):
            members = one.get(inner)
            if isinstance(members, list | tuple):
                found += [(f"{path}/{inner}/{place}", each, depth + 1) for place, each in enumerate(members)]


Trigger = Annotated[
    CronTrigger | IntervalTrigger | OnceTrigger | RruleTrigger | SolarTrigger | AnyOfTrigger,
    Field(discriminator="type"),
]

AnyOfTrigger.model_rebuild()
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
