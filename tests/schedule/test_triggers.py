"""The tables: what fires when, what is refused and in which words."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from pydantic import ValidationError

from app.schedule.triggers import (
    SECOND,
    TZDATA_VERSION,
    Trigger,
    count,
    describe,
    due_time,
    jitter,
    load,
    local,
    newest,
    next_after,
    next_due,
    note,
    parse,
    times,
)

JOB = UUID("01934d1e-0000-7000-8000-000000000001")


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def cron(expression: str, zone: str = "UTC", **others: Any) -> Trigger:
    return parse({"type": "cron", "expression": expression, "timezone": zone, **others})


def local_day(zone: str, day: str) -> tuple[datetime, datetime]:
    """The bounds (after, until] of a day on the wall clock of a zone."""
    start = datetime.fromisoformat(day)
    first, last = (one.replace(tzinfo=ZoneInfo(zone)).astimezone(UTC) for one in (start, start + timedelta(days=1)))
    return first - SECOND, last - SECOND


def hours(first: str, *offsets: float) -> list[str]:
    return [str((at(first) + timedelta(hours=offset)).replace(tzinfo=None)) for offset in offsets]


CLOCK_CHANGES = [
    ("America/New_York", "30 2 * * *", "2026-03-08", ["2026-03-08 07:00"]),
    ("America/New_York", "30 1 * * *", "2026-11-01", ["2026-11-01 05:30"]),
    ("America/New_York", "0 * * * *", "2026-11-01", hours("2026-11-01 04:00", *range(25))),
    ("Europe/London", "30 1 * * *", "2026-03-29", ["2026-03-29 01:00"]),
    ("Europe/Paris", "30 2 * * *", "2026-10-25", ["2026-10-25 00:30"]),
    ("Australia/Lord_Howe", "45 1 * * *", "2026-04-05", ["2026-04-04 14:45"]),
    ("Australia/Lord_Howe", "15 2 * * *", "2026-10-04", ["2026-10-03 15:30"]),
    ("America/Santiago", "0 0 * * *", "2026-09-06", ["2026-09-06 04:00"]),
    ("America/Santiago", "30 23 * * *", "2026-04-04", ["2026-04-05 02:30"]),
    ("Africa/Casablanca", "30 2 * * *", "2026-02-15", ["2026-02-15 01:30"]),
    ("Africa/Casablanca", "30 2 * * *", "2026-03-22", ["2026-03-22 02:00"]),
    # Two times that land on one instant fire once, and so does all that a gap left out.
    ("America/New_York", "0,30 2,3 * * *", "2026-03-08", ["2026-03-08 07:00", "2026-03-08 07:30"]),
    # An hour that begins with `*` follows elapsed time: it does not move into the end of a gap.
    ("America/New_York", "30 */2 * * *", "2026-03-08", hours("2026-03-08 05:30", 0, *range(3, 22, 2))),
    ("America/New_York", "*/30 2 * * *", "2026-03-08", []),
    (
        "America/New_York",
        "*/30 1 * * *",
        "2026-11-01",
        hours("2026-11-01 05:00", 0, 0.5, 1, 1.5),
    ),
    # A range is a fixed time, as in Debian: hours 1 to 3 are three times, though four hours pass.
    ("America/New_York", "0 1-3 * * *", "2026-11-01", hours("2026-11-01 05:00", 0, 2, 3)),
    # The same rule with seconds, where cronsim itself has none.
    ("America/New_York", "0 30 2 * * *", "2026-03-08", ["2026-03-08 07:00"]),
    ("America/New_York", "*/20 59 1 * * *", "2026-11-01", [f"2026-11-01 05:59:{second}" for second in ("00", 20, 40)]),
    ("America/New_York", "0 0 */1 * * *", "2026-11-01", hours("2026-11-01 04:00", *range(25))),
    # Troll moves by two hours; Samoa left out a whole day.
    ("Antarctica/Troll", "30 1,2 * * *", "2026-03-29", ["2026-03-29 01:00"]),
    ("Antarctica/Troll", "30 1,2 * * *", "2026-10-25", ["2026-10-24 23:30", "2026-10-25 00:30"]),
    ("Pacific/Apia", "0 12 29-31 12 *", "2011-12-31", ["2011-12-30 10:00", "2011-12-30 22:00"]),
]


@pytest.mark.parametrize(("zone", "expression", "day", "expected"), CLOCK_CHANGES)
def test_clock_changes(zone: str, expression: str, day: str, expected: list[str]) -> None:
    """Pains 7 and 8."""
    trigger = cron(expression, zone)
    after, until = local_day(zone, day)
    found = list(times(trigger, after, until))
    assert found == [at(text) for text in expected]
    assert count(trigger, after, until) == (len(expected), True)
    assert newest(trigger, after, until) == (found[-1] if found else None)


@pytest.mark.parametrize(
    ("zone", "expression", "time", "told"),
    [
        (
            *("America/New_York", "30 2 * * *", "2026-03-08 07:00"),
            "02:30 does not exist on 2026-03-08 in America/New_York; fires at 03:00",
        ),
        (
            *("America/New_York", "0,30 2,3 * * *", "2026-03-08 07:00"),
            "02:00 to 02:30 do not exist on 2026-03-08 in America/New_York; fires at 03:00",
        ),
        (
            *("America/Santiago", "0 0 * * *", "2026-09-06 04:00"),
            "00:00 does not exist on 2026-09-06 in America/Santiago; fires at 01:00",
        ),
        (
            *("America/New_York", "30 1 * * *", "2026-11-01 05:30"),
            "01:30 happens twice on 2026-11-01 in America/New_York; fires at the first only",
        ),
        (
            *("America/New_York", "30 * * * *", "2026-11-01 05:30"),
            "01:30 happens twice on 2026-11-01 in America/New_York; this is the first",
        ),
        (
            *("America/New_York", "30 * * * *", "2026-11-01 06:30"),
            "01:30 happens twice on 2026-11-01 in America/New_York; this is the second",
        ),
        ("America/New_York", "0 3 * * *", "2026-03-08 07:00", None),
        ("America/New_York", "0 * * * *", "2026-03-08 07:00", None),
        ("America/New_York", "0 2 * * *", "2026-11-01 07:00", None),
        ("America/New_York", "30 2 * * *", "2026-03-09 06:30", None),
        ("UTC", "30 2 * * *", "2026-03-08 02:30", None),
    ],
)
def test_note(zone: str, expression: str, time: str, told: str | None) -> None:
    trigger = cron(expression, zone)
    assert next_after(trigger, at(time) - SECOND) == at(time)
    assert note(trigger, at(time)) == told


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("@hourly", "2026-11-22 10:00", "2026-11-22 11:00"),
        ("@daily", "2026-11-22 10:00", "2026-11-23 00:00"),
        ("@midnight", "2026-11-22 10:00", "2026-11-23 00:00"),
        ("@weekly", "2026-11-22 10:00", "2026-11-29 00:00"),
        ("@monthly", "2026-11-22 10:00", "2026-12-01 00:00"),
        ("@Yearly", "2026-11-22 10:00", "2027-01-01 00:00"),
        ("@annually", "2026-11-22 10:00", "2027-01-01 00:00"),
        ("30 9 * * 0", "2026-11-22 10:00", "2026-11-29 09:30"),
        ("30 9 * * 7", "2026-11-22 10:00", "2026-11-29 09:30"),
        ("30 9 * jan sun", "2026-11-22 10:00", "2027-01-03 09:30"),
        ("0 9 13 * FRI", "2026-11-22 10:00", "2026-11-27 09:00"),  # either matches
        ("0 0 L * *", "2026-11-22 10:00", "2026-11-30 00:00"),
        ("0 0 LW 5 *", "2026-11-22 10:00", "2027-05-31 00:00"),
        ("0 0 * * MON#2", "2026-11-22 10:00", "2026-12-14 00:00"),
        ("0 0 * * 5L", "2026-11-22 10:00", "2026-11-27 00:00"),
        ("0 0 29 2 *", "2026-11-22 10:00", "2028-02-29 00:00"),
        ("*/10 * * * * *", "2026-11-22 10:00:05", "2026-11-22 10:00:10"),
        ("0 0 0 1 1 *", "2026-11-22 10:00", "2027-01-01 00:00"),
        ("* * * * *", "2026-11-22 10:00:00.5", "2026-11-22 10:01"),
    ],
)
def test_expressions(expression: str, after: str, expected: str) -> None:
    """Pain 10: 0 and 7 are Sunday, so that 1 is Monday."""
    assert next_after(cron(expression), at(after)) == at(expected)


def test_in_the_second_half_of_an_overlap_its_fixed_times_are_over() -> None:
    trigger, second_half = cron("45 1 * * *", "America/New_York"), at("2026-11-01 06:10")
    assert next_after(trigger, second_half) == at("2026-11-02 06:45")
    assert newest(trigger, at("2026-10-01"), second_half) == at("2026-11-01 05:45")
    assert count(trigger, second_half, at("2026-11-01 23:00")) == (0, True)


def test_bounds_are_inclusive() -> None:
    trigger = cron("0 * * * *", start_time="2026-11-22T11:00:00Z", end_time="2026-11-22T14:00:00+01:00")
    expected = [at(f"2026-11-22 {hour}:00") for hour in (11, 12, 13)]
    everything = (at("2020-01-01"), at("2030-01-01"))
    assert list(times(trigger, *everything)) == expected
    assert newest(trigger, *everything) == expected[-1]
    assert count(trigger, *everything) == (3, True)
    assert next_after(trigger, expected[-1]) is None
    assert next_due(trigger, JOB, expected[-1]) is None


def test_interval_counts_from_its_start_or_the_epoch() -> None:
    anchored = parse({"type": "interval", "every_s": 7, "start_time": "2026-11-22T10:00:03Z"})
    assert next_after(anchored, at("2000-01-01")) == at("2026-11-22 10:00:03")
    assert next_after(anchored, at("2026-11-22 10:00:03")) == at("2026-11-22 10:00:10")
    free = parse({"type": "interval", "every_s": 90})
    assert next_after(free, at("2026-11-22 10:00:00")) == at("2026-11-22 10:01:30")
    assert count(free, at("1970-01-01"), at("1970-01-02")) == (960, True)
    ended = parse({"type": "interval", "every_s": 10, "end_time": "2026-11-22T10:00:05Z"})
    assert newest(ended, at("2026-01-01"), at("2027-01-01")) == at("2026-11-22 10:00:00")


def test_once() -> None:
    trigger = parse({"type": "once", "run_time": "2026-11-22T10:00:00+02:00"})
    time = at("2026-11-22 08:00")
    assert next_after(trigger, time - SECOND) == newest(trigger, time - SECOND, time) == time
    assert next_after(trigger, time) is None
    assert newest(trigger, time, time + SECOND) is None
    assert count(trigger, time - SECOND, time) == (1, True)
    assert count(trigger, time, time + SECOND) == (0, True)
    assert due_time(trigger, JOB, time) == time


def test_count_is_arithmetic_and_says_where_it_stopped() -> None:
    each_second = cron("* * * * * *", "Europe/Paris")
    assert count(each_second, at("1996-01-01"), at("2026-01-01")) == (10_958 * 86_400, True)
    assert count(each_second, at("2026-01-01"), at("2027-01-01"), bound=10) == (864_000, False)


def test_jitter_is_a_function_of_job_and_time() -> None:
    time, following = at("2026-11-22 10:00"), at("2026-11-22 10:01")
    delays = {jitter(JOB, time + timedelta(minutes=n), 30, following + timedelta(minutes=n)) for n in range(200)}
    assert len(delays) > 190
    assert timedelta(0) <= min(delays) < timedelta(seconds=3)
    assert timedelta(seconds=27) < max(delays) < timedelta(seconds=30)
    assert jitter(JOB, time, 3600, following) < timedelta(minutes=1)
    assert jitter(JOB, time, 0, following) == timedelta(0)
    assert jitter(JOB, time, 30, None) == jitter(JOB, time, 30, following)
    assert jitter(UUID(int=1), time, 30, following) != jitter(UUID(int=2), time, 30, following)
    trigger = cron("* * * * *", jitter_s=30)
    assert next_due(trigger, JOB, time - SECOND) == due_time(trigger, JOB, time) == time + jitter(JOB, time, 30, None)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (
            {"type": "cron", "expression": "30 2 * * *", "timezone": "Europe/Paris"},
            "At 02:30 every day, Europe/Paris time",
        ),
        (
            {"type": "cron", "expression": "0 9 13 * FRI", "jitter_s": 90},
            "At 09:00 on the 13th day of month and on Friday, whichever matches, "
            "UTC time, up to 1 minute 30 seconds later",
        ),
        ({"type": "cron", "expression": "@hourly"}, "At the start of every hour, UTC time"),
        (
            {
                "type": "interval",
                "every_s": 3600,
                "start_time": "2026-11-22T10:00:00Z",
                "end_time": "2026-11-23T00:00:00Z",
            },
            "Every 1 hour, from 2026-11-22T10:00:00Z, until 2026-11-23T00:00:00Z",
        ),
        ({"type": "once", "run_time": "2026-11-22T10:00:00Z"}, "Once, at 2026-11-22T10:00:00Z"),
        (
            {"type": "cron", "expression": "0 1,7,13,19 * * *", "timezone": "Asia/Shanghai"},
            "At 01:00, 07:00, 13:00, and 19:00 every day, Asia/Shanghai time",
        ),
        (
            {"type": "rrule", "rrule": "FREQ=MONTHLY;BYDAY=-1FR,2MO;BYHOUR=9,17", "timezone": "Europe/Paris"},
            "Every month on the 2nd Monday and the last Friday at 09:00 and 17:00, Europe/Paris time",
        ),
        (
            {"type": "rrule", "rrule": "FREQ=HOURLY;INTERVAL=6;COUNT=4", "start_time": "2026-11-22T10:20:00Z"},
            "Every 6 hours at minute 20 until 2026-11-23 04:20:00, UTC time, from 2026-11-22T10:20:00Z",
        ),
        (
            {"type": "solar", "event": "dawn_civil", "latitude": -33.87, "longitude": 151.2, "jitter_s": 60},
            "At civil dawn at 33.87\u00b0S 151.2\u00b0E, up to 1 minute later",
        ),
        (
            {
                "type": "any_of",
                "of": [{"type": "cron", "expression": "0 9 * * *"}, {"type": "interval", "every_s": 3600}],
                "exclude": [
                    "2026-12-24",
                    {"from": "2026-12-30", "to": "2027-01-02"},
                    {"type": "once", "run_time": "2026-12-01T09:00:00Z"},
                ],
            },
            "At 09:00 every day, UTC time; or every 1 hour; but not on 2026-12-24; nor from 2026-12-30 to 2027-01-02; "
            "nor when this fires: once, at 2026-12-01T09:00:00Z",
        ),
    ],
)
def test_describe(data: dict[str, Any], words: str) -> None:
    assert describe(parse(data)) == words


def test_what_is_stored() -> None:
    trigger = cron("0  1,7,13,19 * * *", "Asia/Shanghai", start_time="2026-01-01T08:00:00+08:00")
    stored = trigger.model_dump(mode="json")
    assert stored == {
        "type": "cron",
        "expression": "0 1,7,13,19 * * *",
        "timezone": "Asia/Shanghai",
        "start_time": "2026-01-01T00:00:00Z",
        "end_time": None,
        "jitter_s": 0,
    }
    assert load(stored) == trigger
    assert hash(load(stored)) == hash(trigger)
    assert load(stored) is load(dict(stored))
    assert local(trigger, at("2026-11-22 05:00")).isoformat() == "2026-11-22T13:00:00+08:00"


@pytest.mark.parametrize(
    ("fields", "expression"),
    [
        ({"minute": "*/15"}, "*/15 * * * *"),
        ({"minute": 0, "hour": "1,7,13,19"}, "0 1,7,13,19 * * *"),
        ({"minute": 0, "hour": 6, "day_of_week": "monday,Fri"}, "0 6 * * mon,Fri"),
        ({"minute": 0, "hour": 6, "day_of_week": 0}, "0 6 * * 0"),
        ({"minute": 0, "hour": 6, "day_of_month": "1", "month_of_year": "january-march"}, "0 6 1 jan-mar *"),
    ],
)
def test_celery_fields_become_an_expression(fields: dict[str, Any], expression: str) -> None:
    trigger = parse({"type": "cron", **fields})
    assert trigger == cron(expression)
    assert trigger.model_dump(exclude_unset=True) == {"type": "cron", "expression": expression}


def test_zones_come_from_the_wheel() -> None:
    assert TZDATA_VERSION[:2] == "20"
    assert ZoneInfo("Europe/Paris").key == "Europe/Paris"


ONCE = {"type": "once"}
EACH = {"type": "interval", "every_s": 60}
CRON = {"type": "cron", "expression": "0 0 1 1 *"}


@pytest.mark.parametrize(
    ("data", "field", "words"),
    [
        *(
            ({"type": "cron", "expression": expression}, "expression", words)
            for expression, words in [
                ("61 * * * *", 'minute: "61" is not between 0 and 59'),
                ("60 * * * * *", 'second: "60" is not between 0 and 59'),
                ("* 5-24 * * *", 'hour: 24 in "5-24" is not between 0 and 23'),
                ("* * 0 * *", 'day of month: "0" is not between 1 and 31'),
                ("* * * 13 *", 'month: "13" is not between 1 and 12'),
                ("* * * * 8", 'day of week: "8" is not between 0 and 7'),
                ("* 22-2 * * *", 'hour: "22-2" runs backwards; write it as two ranges with a comma'),
                ("* * * * FRI-MON", 'day of week: "FRI-MON" runs backwards; write it as two ranges with a comma'),
                (
                    "* * * * FOO",
                    'day of week: "FOO" is not understood; it takes *, 0 to 7, SUN to SAT, 5L or MON#2, '
                    "ranges, steps and lists of them",
                ),
                ("*/0 * * * *", 'minute: the step of "*/0" is not a whole number from 1 on'),
                ("1,,2 * * * *", "minute: a value is empty"),
                ("0 0 * * MON#6", 'day of week: "MON#6" is not a day and # and 1 to 5, such as MON#2'),
                (
                    "0 0 15W * *",
                    'day of month: "15W": the weekday nearest to a day is not supported, '
                    "only LW, the last weekday of the month",
                ),
                (
                    "\u00b2 * * * *",
                    'minute: "\\u00b2" is not understood; it takes *, 0 to 59, ranges, steps and lists of them',
                ),
                (
                    "* * * * * * *",
                    "has 7 fields, but takes 5 (minute first) or 6 (seconds first); "
                    "a year belongs in start_time and end_time",
                ),
                (
                    "* * * *",
                    "has 4 fields, but takes 5 (minute, hour, day of month, month, day of week) or 6 (seconds first)",
                ),
                (
                    "@reboot",
                    '"@reboot" is not known; there are @annually, @daily, @hourly, @midnight, '
                    "@monthly, @weekly, @yearly",
                ),
                ("0 0 31 2 *", "never matches: none of its months has such a day"),
                ("0 0 30,31 2 *", "never matches: none of its months has such a day"),
                ("0 0 31 4,6,9,11 *", "never matches: none of its months has such a day"),
                ("1" * 501, "is longer than 500 characters"),
                ("", "give an expression, or Celery's fields minute, hour, day_of_month, month_of_year, day_of_week"),
                (
                    "  ",
                    "has 0 fields, but takes 5 (minute, hour, day of month, month, day of week) or 6 (seconds first)",
                ),
                (5, "Input should be a valid string"),
            ]
        ),
        ({"type": "cron", "minute": "61"}, "minute", '"61" is not between 0 and 59'),
        ({"type": "cron", "hour": ""}, "hour", "a value is empty"),
        (
            *({"type": "cron", "month_of_year": "1 2"}, "month_of_year"),
            '"1 2" is not understood; it takes *, 1 to 12 or JAN to DEC, ranges, steps and lists of them',
        ),
        ({"type": "cron", "minute": True}, "minute", "Input should be a valid string"),
        ({**CRON, "minute": "5", "hour": 1}, "expression", "give either expression or minute, hour, not both"),
        (
            *({"type": "cron", "minute": 0, "day_of_month": "1-7", "day_of_week": "mon"}, "expression"),
            "Celery fires when day_of_month and day_of_week both match, cron when either does; "
            "write what is meant as an expression, such as 0 9 * * MON#1",
        ),
        (
            *({**CRON, "timezone": "america/newyork"}, "timezone"),
            "is not an IANA time zone; did you mean America/New_York?",
        ),
        ({**CRON, "timezone": "../../etc/passwd"}, "timezone", "is not an IANA time zone"),
        ({**CRON, "timezone": "x" * 1_000_000}, "timezone", "is not an IANA time zone"),
        (
            *({**CRON, "start_time": "2026-01-02T00:00:00Z", "end_time": "2026-01-01T00:00:00Z"}, "end_time"),
            "end_time is before start_time",
        ),
        (
            *({**EACH, "start_time": "2026-01-02T00:00:00Z", "end_time": "2026-01-02T00:59:59+01:00"}, "end_time"),
            "end_time is before start_time",
        ),
        (
            *({**CRON, "start_time": "2026-01-02T00:00:00Z", "end_time": "2026-12-01T00:00:00Z"}, "end_time"),
            "no time of the expression lies between start_time and end_time",
        ),
        (
            *({**EACH, "start_time": "2026-01-02T00:00:00"}, "start_time"),
            "has no zone; end it with Z or an offset, such as 2026-03-08T02:30:00Z",
        ),
        (
            *({**ONCE, "run_time": "2026-01-02T00:00:00.5Z"}, "run_time"),
            "must be a whole second, such as 2026-03-08T02:30:00Z",
        ),
        *(
            (
                {**ONCE, "run_time": value},
                "run_time",
                "must be an RFC 3339 time with its zone, such as 2026-03-08T02:30:00Z",
            )
            for value in (1_767_225_600, "1767225600", "2026-01-02", "", None, [])
        ),
        ({**ONCE, "run_time": "9999-12-31T23:59:59-14:00"}, "run_time", "must be from 1970 up to 2999"),
        ({**ONCE, "run_time": "1969-12-31T23:59:59Z"}, "run_time", "must be from 1970 up to 2999"),
        (ONCE, "run_time", "Field required"),
        ({**ONCE, "run_time": "2026-01-02T00:00:00Z", "every_s": 5}, "every_s", "Extra inputs are not permitted"),
        ({**EACH, "every_s": 0}, "every_s", "Input should be greater than or equal to 1"),
        ({**EACH, "every_s": "60"}, "every_s", "Input should be a valid integer"),
        ({**EACH, "every_s": True}, "every_s", "Input should be a valid integer"),
        ({**EACH, "jitter_s": -1}, "jitter_s", "Input should be greater than or equal to 0"),
        ({**EACH, "timezone": "UTC"}, "timezone", "Extra inputs are not permitted"),
    ],
)
def test_refused(data: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse(data)
    (error,) = caught.value.errors()
    assert error["loc"] == (data["type"], field)
    assert error["msg"] == words


@pytest.mark.parametrize("data", [{}, {"type": "lunar"}, {"type": None}, {"expression": "* * * * *"}])
def test_a_trigger_says_its_type(data: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"discriminator|tag"):
        parse(data)
