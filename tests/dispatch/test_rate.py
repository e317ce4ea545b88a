"""No period sees more than its number, and what is let out goes out soon."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.dispatch.rate import Bucket, Rate
from app.dispatch.room import UNBOUNDED, limit_reached, room_of

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def bucket(text: str, tokens: float | None = None, age_s: float = 0.0) -> Bucket:
    since = None if tokens is None else NOW - timedelta(seconds=age_s)
    made = Bucket.of({"rate_limit": text, "rate_tokens": tokens, "rate_time": since}, NOW)
    assert made is not None
    return made


@given(
    st.sampled_from(["1/s", "7/s", "10/s", "11/s", "60/s", "100/s", "90/m", "999/m"]),
    st.lists(st.integers(0, 400_000), min_size=1, max_size=60),
    st.integers(1, 500),
)
def test_no_period_sees_more_than_its_number(text: str, pauses_us: list[int], most: int) -> None:
    rate, now, tokens, since = Rate.of(text), NOW, None, None
    sent: list[tuple[datetime, int]] = []
    for pause in pauses_us:
        now += timedelta(microseconds=pause)
        found = Bucket.of({"rate_limit": text, "rate_tokens": tokens, "rate_time": since}, now)
        assert found is not None
        count = min(found.whole, most)
        if count:
            sent.append((now, count))
            tokens, since = found.less(count).tokens, now
    for begin, _ in sent:
        assert sum(count for time, count in sent if begin <= time < begin + rate.period) <= rate.number


@pytest.mark.parametrize(
    ("text", "tokens", "age_s", "whole", "wait_s"),
    [
        ("100/m", None, 0, 1, 0),
        ("100/m", 0.0, 0, 0, 0.6),
        ("100/m", 0.0, 0.3, 0, 0.3),
        ("100/m", 0.0, 0.6, 1, 0),
        ("100/m", 1.0, 3600, 1, 0),
        ("1/h", 0.0, 60, 0, 3540),
        ("100/s", None, 0, 10, 0),
        ("100/s", 0.0, 0.05, 4, 0),
        # A clock that was set back, and a limit that was lowered since.
        ("1/h", 0.5, -86_400, 0, 1800),
        ("1/h", 400.0, 0, 1, 0),
        ("60/m", -3.0, 0, 0, 4),
    ],
)
def test_a_bucket(text: str, tokens: float | None, age_s: float, whole: int, wait_s: float) -> None:
    made = bucket(text, tokens, age_s)
    assert made.whole == whole
    assert (made.next_time - NOW).total_seconds() == pytest.approx(wait_s, abs=1e-5)


@pytest.mark.parametrize("text", ["1/s", "10/s", "300/m", "18000/h", "1/h"])
def test_up_to_ten_a_second_they_go_out_one_by_one_at_the_full_rate(text: str) -> None:
    rate = Rate.of(text)
    assert rate.capacity == 1
    assert rate.per_s * rate.period.total_seconds() == pytest.approx(rate.number)


def kind(**changes: Any) -> dict[str, Any]:
    limits = {"max_active": None, "rate_limit": None, "rate_tokens": 0.0, "rate_time": NOW}
    return {"name": "q", **limits, "places": 0, **changes}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (kind(), None),
        (kind(max_active=10, places=9), None),
        (kind(max_active=10, places=10), "queue limit: at most 10 runs are active"),
        (kind(max_active=1, places=2), "queue limit: at most 1 run is active"),
        (kind(rate_limit="100/m", rate_tokens=1.0), None),
        (kind(rate_limit="100/m"), "queue rate limit: 100/m"),
        (
            kind(rate_limit="100/m", rate_tokens=1.0, max_active=3, places=3),
            "queue limit: at most 3 runs are active; queue rate limit: 100/m",
        ),
        (
            kind(rate_limit="100/m", max_active=3, places=0),
            "queue limit: at most 3 runs are active; queue rate limit: 100/m",
        ),
    ],
)
def test_what_runs_say_that_wait_for_a_limit(row: dict[str, Any], reason: str | None) -> None:
    assert limit_reached(row, NOW) == reason


@pytest.mark.parametrize(
    ("row", "taken", "places", "messages"),
    [
        (kind(max_active=3), 1, 2, UNBOUNDED),
        (kind(max_active=3), 5, 0, UNBOUNDED),
        (kind(rate_limit="100/s", rate_tokens=6.5), 0, UNBOUNDED, 6),
        (kind(max_active=3, rate_limit="100/s"), 2, 1, 0),
    ],
)
def test_the_room_of_a_queue(row: dict[str, Any], taken: int, places: int, messages: int) -> None:
    room = room_of(row, taken, [], NOW)
    assert (room.places, room.messages) == (places, messages)
