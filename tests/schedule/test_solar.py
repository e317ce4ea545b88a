"""Events of the sun: the times that Celery computes, and none on polar days and nights."""

from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from typing import Any

import pytest
from celery import schedules
from pydantic import ValidationError

from app.schedule.triggers import SECOND, count, newest, next_after, parse, times
from app.schedule.triggers.solar import EVENTS

PLACES = [(52.52, 13.405), (-33.87, 151.21), (69.65, 18.96), (0.0, -179.9), (64.15, -21.94)]


def solar(event: str, latitude: float, longitude: float, **others: Any) -> Any:
    return parse({"type": "solar", "event": event, "latitude": latitude, "longitude": longitude, **others})


@pytest.mark.parametrize("event", EVENTS)
def test_the_times_are_celerys(event: str) -> None:
    for latitude, longitude in PLACES:
        trigger, theirs = solar(event, latitude, longitude), schedules.solar(event, latitude, longitude)
        for day in range(0, 366, 61):
            # In the small hours of mean solar time, where an event may move over midnight, both may take another one.
            after = datetime(2026, 1, 5, tzinfo=UTC) + timedelta(days=day, hours=12 - longitude / 15)
            theirs.nowfun = lambda after=after: after
            found = next_after(trigger, after)
            assert found is not None
            assert abs(found - (after + theirs.remaining_estimate(after))) < timedelta(seconds=5), (latitude, after)


def test_every_question_gets_the_same_times() -> None:
    trigger = solar("sunset", 65.9, -18.1)  # in June it moves over midnight
    begin, end = datetime(2026, 5, 20, tzinfo=UTC), datetime(2026, 8, 1, tzinfo=UTC)
    found = list(times(trigger, begin, end))
    assert 50 < len(found) <= 74
    assert all(timedelta(hours=12) < later - earlier for earlier, later in pairwise(found))
    assert count(trigger, begin, end) == (len(found), True)
    for time in found:
        assert next_after(trigger, time - SECOND) == newest(trigger, begin, time) == time


def test_polar_days_have_no_event() -> None:
    trigger = solar("sunrise", 78.22, 15.65)
    night = next_after(trigger, datetime(2026, 11, 22, tzinfo=UTC))
    assert night is not None
    assert night.month == 2
    assert list(islice(times(trigger, datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 8, 1, tzinfo=UTC)), 1)) == []


@pytest.mark.parametrize(
    ("data", "field", "words"),
    [
        ({"event": "sunrise", "latitude": 90, "longitude": 0}, "event", "does not happen at this place in any season"),
        ({"event": "sunrise", "latitude": 91, "longitude": 0}, "latitude", "less than or equal to 90"),
        ({"event": "sunrise", "latitude": 0, "longitude": float("nan")}, "longitude", "finite number"),
        ({"event": "eclipse", "latitude": 0, "longitude": 0}, "event", "dawn_astronomical"),
    ],
)
def test_refused(data: dict[str, Any], field: str, words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse({"type": "solar", **data})
    (error,) = caught.value.errors()
    assert error["loc"] == ("solar", field)
    assert words in error["msg"]
