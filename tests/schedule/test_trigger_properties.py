"""What holds for every trigger, and what every instant of a zone says a cron trigger must do."""

import random
from datetime import UTC, date, datetime, timedelta
from itertools import islice, pairwise
from uuid import UUID
from zoneinfo import ZoneInfo

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.schedule.triggers import (
    SECOND,
    AnyOfTrigger,
    CronTrigger,
    IntervalTrigger,
    OnceTrigger,
    Trigger,
    count,
    describe,
    due_time,
    newest,
    next_after,
    note,
    parse,
    times,
)
from app.schedule.triggers.zones import ZONES as ALL_ZONES
from app.schedule.triggers.zones import stretch
from tests.schedule import cron_cases

bounded = settings(derandomize=True, deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
few = settings(bounded, max_examples=30)

randoms = st.integers(0, 2**32 - 1).map(random.Random)
instants = st.integers(1_700_000_000, 1_900_000_000).map(lambda second: datetime.fromtimestamp(second, UTC))


@st.composite
def zone_and_cron(draw: st.DrawFn, *, seconds: bool = False) -> tuple[cron_cases.Case, str]:
    zones = [zone for zone in cron_cases.ZONES if not (seconds and zone == "Pacific/Apia")]
    case = draw(randoms.map(lambda rng: cron_cases.draw_case(rng, seconds=seconds)).filter(lambda case: case.possible))
    return case, draw(st.sampled_from(zones))


RULES = (
    "FREQ=DAILY",
    "FREQ=DAILY;INTERVAL=3;BYHOUR=1,2,3;BYMINUTE=0,30",
    "FREQ=WEEKLY;INTERVAL=2;BYDAY=SU,WE;WKST=SU",
    "FREQ=MONTHLY;BYDAY=-1SU;BYHOUR=2;BYMINUTE=30",
    "FREQ=MONTHLY;BYMONTHDAY=31,-1",
    "FREQ=YEARLY;BYWEEKNO=13,44;BYDAY=SU;BYHOUR=1,2",
    "FREQ=HOURLY;INTERVAL=5;BYMINUTE=0,15",
    "FREQ=MINUTELY;INTERVAL=25;BYHOUR=0,1,2,3",
    "FREQ=DAILY;COUNT=40;BYHOUR=1,2",
)
ONCE = {"type": "once", "run_time": "2025-06-01T00:30:00Z"}
plain = st.sampled_from(
    [
        {"type": "cron", "expression": "30 2 * * *", "timezone": "Europe/Paris"},
        {"type": "cron", "expression": "*/30 * * * SUN", "timezone": "America/New_York"},
        {"type": "cron", "expression": "0 9 1-7 * *"},
        {"type": "interval", "every_s": 1800},
        {"type": "interval", "every_s": 86_400, "start_time": "2025-03-01T08:30:00Z"},
        ONCE,
        {"type": "rrule", "rrule": "FREQ=WEEKLY;BYDAY=MO,FR;BYHOUR=9", "timezone": "Europe/Paris"},
    ]
)
days = st.dates(date(2024, 1, 1), date(2029, 12, 31)).map(str) | st.just({"from": "2025-01-01", "to": "2025-12-31"})


@st.composite
def triggers(draw: st.DrawFn) -> Trigger:
    """A trigger of any type, often with a start and an end in the years of `instants`, often with jitter."""
    start, length = draw(st.none() | instants), draw(st.none() | st.integers(0, 200_000_000))
    window = {
        "start_time": start,
        "end_time": None
        if length is None
        else (start or datetime(2023, 11, 14, tzinfo=UTC)) + timedelta(seconds=length),
        "jitter_s": draw(st.sampled_from([0, 0, 1, 7, 600])),
    }
    kind = draw(st.sampled_from(["cron", "cron", "interval", "once", "rrule", "any_of"]))
    if kind == "once":
        return OnceTrigger(type="once", run_time=draw(instants), jitter_s=window["jitter_s"])
    if kind == "rrule":
        rule, zone = draw(st.sampled_from(RULES)), draw(st.sampled_from(cron_cases.ZONES))
        return parse({"type": "rrule", "rrule": rule, "timezone": zone, "start_time": start or "2023-11-14T01:30:00Z"})
    if kind == "any_of":
        members = draw(st.lists(plain, min_size=1, max_size=3))
        excluded = draw(st.lists(days | st.just(ONCE), max_size=2))
        return parse({"type": "any_of", "of": members, "exclude": excluded, "timezone": "Europe/Paris"})
    if kind == "interval":
        return IntervalTrigger(type="interval", every_s=draw(st.integers(1, 10_000_000) | st.integers(1, 90)), **window)
    case, zone = draw(zone_and_cron(seconds=draw(st.booleans())))
    trigger = CronTrigger(type="cron", expression=case.text, timezone=zone)
    first = None if start is None else next_after(trigger, start - SECOND)
    if first is not None and window["end_time"] is not None:
        window["end_time"] = max(window["end_time"], first)  # a window that no time lies in is refused
    return CronTrigger(type="cron", expression=case.text, timezone=zone, **window)


def around(zone: str, rng: random.Random, hours: float) -> tuple[datetime, datetime]:
    """A span (after, until] about a clock change of a zone."""
    change = rng.choice(cron_cases.clock_changes(zone))
    after = change - timedelta(seconds=rng.randint(0, int(hours * 3600)))
    return after, after + timedelta(hours=hours)


@bounded
@given(zone_and_cron(), randoms)
def test_cron_does_what_every_minute_says(drawn: tuple[cron_cases.Case, str], rng: random.Random) -> None:
    case, zone = drawn
    after, until = around(zone, rng, 30)
    check_span(case, zone, after, until, rng)


@few
@given(zone_and_cron(seconds=True), randoms)
def test_cron_with_seconds_does_what_every_second_says(drawn: tuple[cron_cases.Case, str], rng: random.Random) -> None:
    case, zone = drawn
    after, until = around(zone, rng, 1.2)
    check_span(case, zone, after, until, rng)


def check_span(case: cron_cases.Case, zone: str, after: datetime, until: datetime, rng: random.Random) -> None:
    trigger = parse({"type": "cron", "expression": case.text, "timezone": zone})
    expected = cron_cases.fires(case, zone, after, until)
    assert list(times(trigger, after, until)) == expected
    assert count(trigger, after, until) == (len(expected), True)
    assert newest(trigger, after, until) == (expected[-1] if expected else None)
    changes = [one for one in cron_cases.clock_changes(zone) if after <= one <= until]
    near = [change + timedelta(seconds=rng.randint(-4000, 4000)) for change in changes for _ in range(5)]
    anywhere = [after + timedelta(seconds=rng.randint(0, int((until - after).total_seconds()))) for _ in range(3)]
    for one in (one for one in near + anywhere if after <= one <= until):
        assert newest(trigger, after, one) == max((time for time in expected if time <= one), default=None)
        later = next_after(trigger, one)
        assert (later if later is not None and later <= until else None) == min(
            (time for time in expected if time > one), default=None
        )
        assert count(trigger, one, until)[0] == sum(time > one for time in expected)
    for time in expected[:20]:
        told = note(trigger, time)
        assert told is None or zone in told


@bounded
@given(triggers(), instants, st.integers(0, 100_000_000))
def test_count_and_newest_agree_with_the_times(trigger: Trigger, after: datetime, length: int) -> None:
    until = after + timedelta(seconds=length)
    found = list(islice(times(trigger, after, until), 1000))
    if len(found) == 1000:
        until = found[-1]
    assert all(earlier < later for earlier, later in pairwise(found))
    assert all(after < time <= until and not time.microsecond and time.tzinfo is UTC for time in found)
    assert count(trigger, after, until) == (len(found), True)
    assert newest(trigger, after, until) == (found[-1] if found else None)
    if not isinstance(trigger, OnceTrigger | AnyOfTrigger):
        assert all((trigger.start_time or time) <= time <= (trigger.end_time or time) for time in found)


@bounded
@given(triggers(), instants, st.lists(st.integers(0, 400_000_000), min_size=1, max_size=4))
def test_counts_of_parts_are_the_count_of_the_whole(trigger: Trigger, after: datetime, cuts: list[int]) -> None:
    bounds = [after, *(after + timedelta(seconds=cut) for cut in sorted(cuts))]
    parts = [count(trigger, *pair) for pair in pairwise(bounds)]
    assert count(trigger, bounds[0], bounds[-1]) == (sum(number for number, _ in parts), True)


@bounded
@given(
    st.integers(1, 5000),
    st.none() | instants,
    instants,
    st.integers(0, 20_000),
)
def test_interval_is_every_second_that_divides(
    every_s: int, start: datetime | None, after: datetime, length: int
) -> None:
    trigger = IntervalTrigger(type="interval", every_s=every_s, start_time=start)
    anchor = int(start.timestamp()) if start else 0
    first = int(after.timestamp())
    seconds = (second for second in range(first + 1, first + length + 1) if (second - anchor) % every_s == 0)
    expected = [datetime.fromtimestamp(second, UTC) for second in seconds if second >= anchor]
    assert list(times(trigger, after, after + timedelta(seconds=length))) == expected


@bounded
@given(triggers(), instants, st.uuids())
def test_jitter_stays_before_the_next_time(trigger: Trigger, after: datetime, job_id: UUID) -> None:
    for time in islice(times(trigger, after, after + timedelta(days=400)), 20):
        due = due_time(trigger, job_id, time)
        following = next_after(trigger, time)
        assert time <= due <= time + timedelta(seconds=trigger.jitter_s)
        assert following is None or due < following


@bounded
@given(triggers())
def test_a_trigger_survives_storage_and_can_be_told(trigger: Trigger) -> None:
    assert parse(trigger.model_dump(mode="json")) == trigger
    assert describe(trigger)


@bounded
@given(st.sampled_from(sorted(ALL_ZONES)), st.integers(0, 4_000_000_000))
def test_stretches_are_what_zoneinfo_says(zone: str, second: int) -> None:
    def offset(instant: int) -> float:
        delta = datetime.fromtimestamp(instant, ZoneInfo(zone)).utcoffset()
        assert delta is not None
        return delta.total_seconds()

    here = stretch(zone, second)
    assert here.start <= second < here.end
    assert {offset(instant) for instant in (here.start, second, here.end - 1)} == {here.offset}
    assert offset(here.start - 1) == here.before
    # Where a stretch begins is a change, however near the turn of a year; or there was none for a year.
    assert here.before != here.offset or second - here.start >= 365 * 86_400


@given(st.text(max_size=40) | st.from_regex(r"[-*/,#LW0-9A-Z@? ]{0,30}", fullmatch=True))
@settings(bounded, max_examples=300)
def test_any_text_is_a_trigger_or_refused(text: str) -> None:
    try:
        trigger = parse({"type": "cron", "expression": text, "timezone": "America/New_York"})
    except ValueError:
        return
    assert next_after(trigger, datetime(2026, 1, 1, tzinfo=UTC)) is not None
    assert describe(trigger)
