"""Our cron against croniter around clock changes: each difference is one of a few that we know and mean."""

import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from croniter import croniter

from app.schedule.triggers import parse, times
from app.schedule.triggers.zones import ZONES
from tests.schedule import cron_cases

SPAN = timedelta(hours=30)


def theirs(expression: str, zone: str, after: datetime, until: datetime) -> set[datetime]:
    walk = croniter(expression, after.astimezone(ZoneInfo(zone)))
    found = set()
    while (time := walk.get_next(datetime).astimezone(UTC)) <= until:
        found.add(time)
    return found


def explain(case: cron_cases.Case, zone: str, time: datetime, *, only_theirs: bool) -> str | None:
    """Why one of the two does not fire at this instant; None if nobody knows."""
    wall = time.astimezone(ZoneInfo(zone))
    minute_before = (time - timedelta(minutes=1)).astimezone(ZoneInfo(zone))
    after_gap = wall.replace(tzinfo=None) - minute_before.replace(tzinfo=None) > timedelta(minutes=1)
    either_starred = any(field.star and field.text != "*" for field in (case.day, case.weekday))
    if only_theirs and either_starred and case.day.text != "*" and case.weekday.text != "*":
        return "a day field such as */2 counts as a star in Debian, so both must match; croniter lets either match"
    if only_theirs and wall.fold and not case.elapsed:
        return "croniter fires fixed times in both halves of an overlap"
    if only_theirs and after_gap and case.elapsed:
        return "croniter moves what a gap left out to its end, also where the expression follows elapsed time"
    if not only_theirs and wall.fold and case.elapsed and zone in {"Australia/Lord_Howe", "Pacific/Chatham"}:
        return "croniter loses times of the second half where clocks change by half an hour or off the hour"
    return None


@pytest.mark.parametrize("zone", cron_cases.ZONES)
def test_differences_are_known(zone: str) -> None:
    rng = random.Random(f"croniter {zone}")
    agreed = 0
    reasons: Counter[str] = Counter()
    for _ in range(35):
        case = cron_cases.draw_case(rng)
        if not case.possible:
            continue
        change = rng.choice(cron_cases.clock_changes(zone))
        after = change - rng.choice([SPAN * 0.5, SPAN * 0.9, timedelta(days=rng.randint(2, 60))])
        ours = set(times(parse({"type": "cron", "expression": case.text, "timezone": zone}), after, after + SPAN))
        others = theirs(case.text, zone, after, after + SPAN)
        agreed += len(ours & others)
        for time in ours ^ others:
            reason = explain(case, zone, time, only_theirs=time in others)
            assert reason, f"{case.text} in {zone}: {time} is {'theirs' if time in others else 'ours'} alone"
            reasons[reason] += 1
    assert agreed > 400


@pytest.mark.long
def test_differences_are_known_in_every_zone() -> None:
    rng = random.Random("croniter everywhere")
    agreed = 0
    for zone in sorted(ZONES):
        changes = cron_cases.clock_changes(zone)
        for _ in range(2):
            case = cron_cases.draw_case(rng)
            if not case.possible:
                continue
            after = rng.choice(changes) - rng.choice([SPAN * 0.5, SPAN * 0.9])
            ours = set(times(parse({"type": "cron", "expression": case.text, "timezone": zone}), after, after + SPAN))
            others = theirs(case.text, zone, after, after + SPAN)
            agreed += len(ours & others)
            for time in ours ^ others:
                reason = explain(case, zone, time, only_theirs=time in others)
                assert reason, f"{case.text} in {zone}: {time} is {'theirs' if time in others else 'ours'} alone"
    assert agreed > 10_000


def test_the_differences_that_made_us_choose() -> None:
    day = datetime(2026, 11, 1, 4, tzinfo=UTC)
    twice = theirs("30 1 * * *", "America/New_York", day, day + timedelta(hours=24))
    assert twice == {day + timedelta(hours=1.5), day + timedelta(hours=2.5)}
    # Seconds come last by default in croniter and first in ours; the same text means another time.
    (ours,) = times(parse({"type": "cron", "expression": "0 30 4 1 11 *"}), day, day + timedelta(hours=1))
    assert ours == day + timedelta(minutes=30)
    assert croniter("30 4 1 11 * 0", day).get_next(datetime) == ours
