"""The sum of a ledger: each time judged by the definition that was valid, holes and doubles told, doubts too."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from app.due.ledger import Period, SkipRow, Times, balance, clipped, times_in
from app.schedule.triggers import parse

MINUTELY = parse({"type": "cron", "expression": "* * * * *"})
EVERY_TEN_S = parse({"type": "interval", "every_s": 10})


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-11-22 {text}").replace(tzinfo=UTC)


#: Minutely, then off, then every ten seconds.
PERIODS = [
    Period(at("10:00"), at("10:05:30"), MINUTELY),
    Period(at("10:05:30"), at("10:10:00"), None),
    Period(at("10:10:00"), None, EVERY_TEN_S),
]


@pytest.mark.parametrize(
    ("after", "until", "count", "first", "last"),
    [
        pytest.param("09:00", "10:00", 0, None, None, id="before there was the job"),
        pytest.param("09:00", "10:02:59", 2, "10:01", "10:02", id="in the first"),
        pytest.param("10:05", "10:10", 0, None, None, id="while it was off"),
        pytest.param("10:03", "10:10:25", 4, "10:04", "10:10:20", id="across two edits"),
        pytest.param("10:10", "10:10:10", 1, "10:10:10", "10:10:10", id="the end is one of them, the begin is not"),
    ],
)
def test_times_belong_to_the_version_that_was_valid(
    after: str, until: str, count: int, first: str | None, last: str | None
) -> None:
    assert times_in(PERIODS, at(after), at(until)) == Times(count, True, first and at(first), last and at(last))


def test_a_version_whose_trigger_is_none_is_told() -> None:
    broken = Period.of({"trigger": {"type": "no such trigger"}}, at("10:00"), at("10:05"))
    assert broken.problem is not None
    assert not times_in([broken], at("10:00"), at("10:01")).known
    assert times_in([broken], at("10:05"), at("10:06")) == Times(0, True)
    assert Period.of({"trigger": MINUTELY.model_dump(), "enabled": False}, at("10:00"), None).trigger is None


def test_of_a_row_across_a_bound_only_what_lies_inside_counts() -> None:
    row = SkipRow(at("10:01"), at("10:10:20"), 7, exact=True)
    assert clipped(PERIODS, row, at("10:04"), at("10:10:10")) == Times(2, True, at("10:05"), at("10:10:10"))
    assert not clipped(PERIODS, SkipRow(row.first, row.last, 8, exact=True), at("10:04"), at("10:10:10")).known
    assert not clipped(PERIODS, SkipRow(row.first, row.last, 7, exact=False), at("10:04"), at("10:10:10")).known


FINE: dict[str, Any] = {"runs": 2, "skipped": 3, "exact": True, "twice": 0, "pending": 0, "kept_from": None}


@pytest.mark.parametrize(
    ("scheduled", "changes", "balanced", "summary"),
    [
        (Times(5, True), {}, True, "5 scheduled times, 2 runs + 3 skipped: each is accounted for once"),
        (
            *(Times(3, True), {"runs": 1, "skipped": 2, "pending": 1_200}, True),
            "3 scheduled times, 1 run + 2 skipped: each is accounted for once; 1,200 not yet dealt with",
        ),
        (Times(6, True), {}, False, "6 scheduled times, 2 runs + 3 skipped: 1 time is not accounted for"),
        (Times(4, True), {}, False, "4 scheduled times, 2 runs + 3 skipped: 1 more than there were times"),
        (
            *(Times(5, True), {"twice": 1}, False),
            "5 scheduled times, 2 runs + 3 skipped: 1 run or row of skips at times of another row",
        ),
        (
            *(Times(5, False), {}, None),
            "5 scheduled times, 2 runs + 3 skipped: not all could be counted: whether these are all is not known",
        ),
        (
            *(Times(9, True), {"kept_from": at("09:00")}, None),
            "9 scheduled times, 2 runs + 3 skipped: runs of before 2026-11-22T09:00:00Z may have been deleted: "
            "whether 4 lack is not known",
        ),
        (
            *(Times(5, True), {"kept_from": at("09:00")}, True),
            "5 scheduled times, 2 runs + 3 skipped: each is accounted for once",
        ),
    ],
)
def test_one_line_says_whether_that_is_all(
    scheduled: Times, changes: dict[str, Any], balanced: bool | None, summary: str
) -> None:
    total = balance(scheduled, **{**FINE, **changes})
    assert (total.balanced, total.summary) == (balanced, summary)
    assert total.scheduled == (scheduled.count if scheduled.known else None)


def test_a_year_of_seconds_is_counted_by_arithmetic() -> None:
    seconds = [Period(at("10:00"), None, parse({"type": "cron", "expression": "* * * * * *"}))]
    assert times_in(seconds, at("09:00"), at("10:00") + timedelta(days=365)).count == 365 * 86_400
