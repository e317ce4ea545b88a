"""Recurrence rules: against python-dateutil's own walk, around clock changes, and what is refused in which words."""

import random
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import pytest
from dateutil.rrule import rrulestr
from pydantic import ValidationError

from app.schedule.triggers import SECOND, Trigger, count, newest, next_after, note, parse, times


def rule(text: str, zone: str = "UTC", **others: Any) -> Trigger:
    return parse({"type": "rrule", "rrule": text, "timezone": zone, **others})


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def draw_rule(rng: random.Random) -> str:
    """A rule that RFC 5545 allows, often one that leaves much to its start."""
    freq = rng.choice(["YEARLY", "MONTHLY", "WEEKLY", "DAILY", "HOURLY", "MINUTELY"])
    parts = [f"FREQ={freq}"]
    wide = freq in {"YEARLY", "MONTHLY"}
    if rng.random() < 0.5:
        parts.append(f"INTERVAL={rng.randint(2, 9)}")
    if rng.random() < 0.3:
        parts.append(f"BYMONTH={','.join(str(one) for one in rng.sample(range(1, 13), 6))}")
    if rng.random() < 0.5:
        numbered = wide and rng.random() < 0.5
        which = rng.choice(["1", "-1", "2", "+3"]) if numbered else ""
        parts.append(f"BYDAY={','.join(which + day for day in rng.sample(['MO', 'TU', 'WE', 'FR', 'SU'], 2))}")
    elif freq != "WEEKLY" and rng.random() < 0.5:
        parts.append(f"BYMONTHDAY={','.join(rng.sample(['1', '7', '13', '28', '31', '-1', '-5'], 4))}")
    if rng.random() < 0.4:
        parts.append("BYHOUR=1,5,9,17" if freq in {"HOURLY", "MINUTELY"} else "BYHOUR=2,14")
    if rng.random() < 0.4:
        parts.append("BYMINUTE=0,5,20,35,50" if freq == "MINUTELY" else "BYMINUTE=15,45")
    if wide and "BYDAY" in parts[-1] and rng.random() < 0.5:
        parts.append("BYSETPOS=1,-1")
    if rng.random() < 0.2:
        parts.append(f"COUNT={rng.randint(1, 30)}")
    elif rng.random() < 0.2:
        parts.append("UNTIL=20300615T120000")
    return ";".join(parts)


def test_the_times_are_those_of_dateutil() -> None:
    rng = random.Random("rules")
    compared = 0
    for _ in range(250):
        text, start = draw_rule(rng), datetime(2026, 1, 1) + timedelta(minutes=rng.randrange(1_000_000))  # noqa: DTZ001
        try:
            expected = list(islice(rrulestr(text, dtstart=start), 40))
        except ValueError:  # dateutil sees that an interval meets none of the hours or minutes
            expected = []
        try:
            trigger = rule(text, start_time=start.replace(tzinfo=UTC))
        except ValidationError:
            assert not expected or expected[0] > start + timedelta(days=49 * 365), text
            continue
        begin, far = start.replace(tzinfo=UTC) - SECOND, datetime(2999, 1, 1, tzinfo=UTC)
        found = list(islice(times(trigger, begin, far), 40))
        assert found == [one.replace(tzinfo=UTC) for one in expected], (text, start)
        compared += len(found)
        middle = found[len(found) // 2]
        assert count(trigger, begin, found[-1]) == (len(found), True), text
        assert newest(trigger, begin, middle) == middle
        assert next_after(trigger, middle - SECOND) == middle
    assert compared > 6000


@pytest.mark.parametrize(
    ("text", "zone", "after", "expected", "told"),
    [
        # Fixed times: in a gap at its end, in an overlap once; HOURLY and MINUTELY follow elapsed time.
        ("FREQ=DAILY;BYHOUR=2;BYMINUTE=30", "America/New_York", "2026-03-08", ["2026-03-08 07:00"], "does not exist"),
        ("FREQ=DAILY;BYHOUR=1;BYMINUTE=30", "America/New_York", "2026-11-01", ["2026-11-01 05:30"], "the first only"),
        (
            "FREQ=HOURLY;BYHOUR=1,2;BYMINUTE=30",
            "America/New_York",
            "2026-11-01",
            ["2026-11-01 05:30", "2026-11-01 06:30", "2026-11-01 07:30"],
            "this is the first",
        ),
        ("FREQ=HOURLY;BYHOUR=2,3;BYMINUTE=30", "America/New_York", "2026-03-08", ["2026-03-08 07:30"], None),
        ("FREQ=DAILY;UNTIL=20260308T070000Z", "America/New_York", "2026-03-07 12:00", ["2026-03-08 05:00"], None),
        ("FREQ=DAILY;UNTIL=20260308", "UTC", "2026-03-07 12:00", ["2026-03-08 00:00"], None),
        ("FREQ=DAILY;UNTIL=20260307", "UTC", "2026-03-07 12:00", [], None),
    ],
)
def test_on_the_wall_then_the_rule_of_the_zone(
    text: str, zone: str, after: str, expected: list[str], told: str | None
) -> None:
    trigger = rule(text, zone)
    found = list(times(trigger, at(after), at(after) + timedelta(hours=20)))
    assert found == [at(one) for one in expected]
    if told is not None:
        assert told in (note(trigger, found[0]) or "")


def test_count_is_used_up() -> None:
    trigger = rule("RRULE:FREQ=DAILY;COUNT=3", "Europe/Paris", start_time="2026-10-24T08:00:00Z")
    expected = [at("2026-10-24 08:00"), at("2026-10-25 09:00"), at("2026-10-26 09:00")]
    assert list(times(trigger, at("2020-01-01"), at("2030-01-01"))) == expected
    assert next_after(trigger, expected[-1]) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "'' is not a name, = and a value; a rule begins like FREQ=WEEKLY;BYDAY=MO,FR"),
        ("INTERVAL=2", "FREQ is missing; a rule begins like FREQ=WEEKLY;BYDAY=MO,FR"),
        ("FREQ=FORTNIGHTLY", "FREQ: 'FORTNIGHTLY' is none of YEARLY, MONTHLY, WEEKLY, DAILY, HOURLY, MINUTELY"),
        ("FREQ=SECONDLY", "FREQ: SECONDLY is left to an interval, or to cron with 6 fields"),
        ("FREQ=DAILY;FREQ=DAILY", "FREQ is given twice"),
        ("FREQ=DAILY;BYHOUR=24", "BYHOUR: '24' is not a number from 0 to 23"),
        ("FREQ=MONTHLY;BYMONTHDAY=0", "BYMONTHDAY: '0' is not a number from 1 to 31 or -31 to -1"),
        ("FREQ=WEEKLY;BYDAY=XX", "BYDAY: 'XX' is not a day such as MO, 2MO or -1FR"),
        ("FREQ=WEEKLY;BYDAY=2MO", "BYDAY: a day with a number goes with FREQ=MONTHLY or YEARLY, and without BYWEEKNO"),
        ("FREQ=WEEKLY", "FREQ=WEEKLY needs BYDAY, or a start_time whose day of the week it repeats"),
        ("FREQ=DAILY;COUNT=5", "COUNT and INTERVAL count from the start of the rule: give start_time"),
        (
            "FREQ=DAILY;UNTIL=tomorrow",
            "UNTIL: 'tomorrow' is not a time such as 20261224T090000Z, 20261224T090000 or 20261224",
        ),
        ("FREQ=DAILY;UNTIL=19690101", "no time of the rule lies between its start and its end"),
        ("DTSTART:20260101T000000Z", "DTSTART is the trigger's start_time; give the rule alone"),
        ("FREQ=DAILY\nEXDATE:20261224", "is one rule on one line; several rules and dates to leave out are an any_of"),
        ("FREQ=YEARLY;BYMONTH=2;BYMONTHDAY=30", "never matches: no time within fifty years of its start"),
        ("FREQ=MINUTELY;BYMONTH=2;BYMONTHDAY=30", "never matches: no time within fifty years of its start"),
        (
            "FREQ=MINUTELY;BYSECOND=0,30",
            "names more than 1,440 times a day; that is for an interval, or for cron with 6 fields",
        ),
        ("x" * 501, "is longer than 500 characters"),
    ],
)
def test_refused(text: str, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        rule(text)
    (error,) = caught.value.errors()
    assert (error["loc"], error["msg"]) == (("rrule", "rrule"), words)


def test_no_rule_walks_through_the_past() -> None:
    each_minute = rule("FREQ=MINUTELY;INTERVAL=7", start_time="1970-01-01T00:00:00Z")
    assert next_after(each_minute, at("2900-01-01")) is not None
    number, exact = count(each_minute, at("2000-01-01"), at("2030-01-01"), bound=365)
    assert not exact
    assert number in {365 * 1440 // 7, 365 * 1440 // 7 + 1}
    with pytest.raises(ValidationError, match="never matches"):
        rule("FREQ=DAILY;INTERVAL=7;BYDAY=MO", start_time="2026-11-22T00:00:00Z")  # a Sunday
