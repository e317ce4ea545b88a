"""Misfire, overlap, pause and edit as tables; that every scheduled time is accounted for, as properties."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.due.decide import Decision, SkipRange, decide, settle, settle_paused, start_deadline
from app.due.overlap import Others, Overlap, room
from app.schedule.triggers import SECOND, Trigger, count, due_time, next_after, next_due, parse, times

JOB = UUID("01934d1e-0000-7000-8000-000000000001")
RUN = UUID("01934d1e-0000-7000-8000-000000000002")
BUSY = Others((RUN,))
#: One is active and one waits for it.
LINE = Others((RUN,), (UUID("01934d1e-0000-7000-8000-000000000003"),))

MINUTELY = parse({"type": "cron", "expression": "* * * * *"})
DAILY = parse({"type": "cron", "expression": "30 1 * * *", "timezone": "America/New_York"})
EACH_SECOND = parse({"type": "interval", "every_s": 1})


def at(text: str) -> datetime:
    return datetime.fromisoformat(f"2026-11-22 {text}").replace(tzinfo=UTC)


def skip(reason: Any, run_of: Any, first: str, last: str, number: int) -> SkipRange:
    return SkipRange(reason, run_of, at(first), at(last), number, exact=True)


@pytest.mark.parametrize(
    ("now", "policies", "fire", "skips", "cursor"),
    [
        pytest.param("10:00:59.9", {}, [], [], "10:00", id="nothing is due"),
        pytest.param("09:00", {}, [], [], "10:00", id="the clock was put back"),
        pytest.param("10:01", {}, ["10:01"], [], "10:01", id="one on the second"),
        pytest.param("10:01:59", {"catchup_window_s": 60}, ["10:01"], [], "10:01", id="one, late"),
        pytest.param(
            *("10:04:30", {}, ["10:04"], [skip("coalesced", "fired", "10:01", "10:03", 3)], "10:04"),
            id="the newest fires for all",
        ),
        pytest.param(
            *("10:09:30", {"catchup_window_s": 150}, ["10:09"]),
            [skip("missed", None, "10:01", "10:06", 6), skip("coalesced", "fired", "10:07", "10:08", 2)],
            "10:09",
            id="older than the window is missed",
        ),
        pytest.param(
            *("10:09:30", {"catchup_window_s": 30}, ["10:09"], [skip("missed", None, "10:01", "10:08", 8)], "10:09"),
            id="exactly as old as the window is not",
        ),
        pytest.param(
            *("10:09:30", {"catchup_window_s": 29}, [], [skip("missed", None, "10:01", "10:09", 9)], "10:09"),
            id="all are missed",
        ),
        pytest.param("10:01:05", {"catchup_window_s": 0}, ["10:01"], [], "10:01", id="no window, yet punctual"),
        pytest.param(
            *("10:01:05.1", {"catchup_window_s": 0}, [], [skip("missed", None, "10:01", "10:01", 1)], "10:01"),
            id="no window and late",
        ),
        pytest.param(
            *("10:03:30", {"others": BUSY}, [], [skip("overlap", "blocker", "10:01", "10:03", 3)], "10:03"),
            id="a run is in the way of all",
        ),
        pytest.param(
            *("10:04:30", {"others": BUSY, "catchup_window_s": 100}, []),
            [skip("missed", None, "10:01", "10:02", 2), skip("overlap", "blocker", "10:03", "10:04", 2)],
            "10:04",
            id="a run is in the way of those in the window",
        ),
        pytest.param(
            *("10:02:30", {"others": BUSY, "overlap": "allow"}, ["10:02"]),
            [skip("coalesced", "fired", "10:01", "10:01", 1)],
            "10:02",
            id="a run is in nobody's way",
        ),
        pytest.param(
            *("10:09:30", {"catchup_window_s": 150, "misfire": "earliest"}, ["10:07"]),
            [skip("missed", None, "10:01", "10:06", 6), skip("coalesced", "fired", "10:08", "10:09", 2)],
            "10:09",
            id="the oldest in the window fires for all",
        ),
        pytest.param("10:01", {"misfire": "earliest"}, ["10:01"], [], "10:01", id="the only one is the oldest too"),
        pytest.param(
            *("10:09:30", {"catchup_window_s": 150, "misfire": "all", "overlap": "allow"}),
            ["10:07", "10:08", "10:09"],
            [skip("missed", None, "10:01", "10:06", 6)],
            "10:09",
            id="each in the window fires",
        ),
        pytest.param(
            *("10:03:30", {"misfire": "all"}, ["10:01"], [skip("overlap", "fired", "10:02", "10:03", 2)], "10:03"),
            id="the first of all is in the way of the others",
        ),
        pytest.param(
            *("10:03:30", {"misfire": "all", "others": BUSY}, []),
            [skip("overlap", "blocker", "10:01", "10:03", 3)],
            "10:03",
            id="a run is in the way of each",
        ),
        pytest.param(
            *("10:04:30", {"misfire": "all", "overlap": "buffer_one"}, ["10:01", "10:02"]),
            *([skip("overlap", "fired", "10:03", "10:04", 2)], "10:04"),
            id="one begins and one waits",
        ),
        pytest.param(
            *("10:04:30", {"misfire": "all", "overlap": "buffer_one", "others": BUSY}, ["10:01"]),
            *([skip("overlap", "fired", "10:02", "10:04", 3)], "10:04"),
            id="the first waits",
        ),
        pytest.param(
            *("10:04:30", {"overlap": "buffer_one", "others": BUSY}, ["10:04"]),
            *([skip("coalesced", "fired", "10:01", "10:03", 3)], "10:04"),
            id="the newest waits",
        ),
        pytest.param(
            *("10:04:30", {"overlap": "buffer_one", "others": LINE}, []),
            *([skip("overlap", "blocker", "10:01", "10:04", 4)], "10:04"),
            id="one waits already",
        ),
        pytest.param(
            *("10:03:30", {"misfire": "all", "overlap": "buffer_all", "others": LINE}),
            *(["10:01", "10:02", "10:03"], [], "10:03"),
            id="all wait",
        ),
        pytest.param(
            *("10:03:30", {"misfire": "all", "overlap": "buffer_all", "others": Others((RUN,), [RUN] * 999)}),
            *(["10:01"], [skip("limit", None, "10:02", "10:03", 2)], "10:03"),
            id="a thousand wait",
        ),
        pytest.param(
            *("10:03:30", {"misfire": "all", "overlap": "allow", "max_active": 1, "others": BUSY}),
            *(["10:01", "10:02", "10:03"], [], "10:03"),
            id="a limit of the job lets them wait",
        ),
        pytest.param(
            *("10:03:30", {"misfire": "all", "overlap": "cancel_other", "others": LINE}, ["10:03"]),
            *([skip("overlap", "fired", "10:01", "10:02", 2)], "10:03"),
            id="of those that would replace each other the newest fires",
        ),
        pytest.param(
            *("10:03:30", {"misfire": "earliest", "overlap": "terminate_other", "others": BUSY}, ["10:01"]),
            *([skip("coalesced", "fired", "10:02", "10:03", 2)], "10:03"),
            id="the oldest, if that is asked for",
        ),
        pytest.param(
            *("10:04:30", {"misfire": "none", "overlap": "allow"}, ["10:04"]),
            [skip("missed", None, "10:01", "10:03", 3)],
            "10:04",
            id="late ones do not fire",
        ),
        pytest.param(
            *("10:04", {"misfire": "none", "overlap": "allow"}, ["10:03", "10:04"]),
            [skip("missed", None, "10:01", "10:02", 2)],
            "10:04",
            id="a minute late is not too late",
        ),
        pytest.param(
            *("10:04:30", {"misfire": "none", "catchup_window_s": 20}, []),
            [skip("missed", None, "10:01", "10:04", 4)],
            "10:04",
            id="the window is the shorter of the two",
        ),
    ],
)
def test_decide(now: str, policies: dict[str, Any], fire: list[str], skips: list[SkipRange], cursor: str) -> None:
    decision = decide(MINUTELY, job_id=JOB, cursor=at("10:00"), now=at(now), **policies)
    assert decision == Decision(tuple(map(at, fire)), tuple(skips), at(cursor), at(cursor) + timedelta(minutes=1))


def test_all_is_at_most_a_hundred_however_long_the_absence() -> None:
    """The oldest fire; what is over the limit is counted by arithmetic."""
    late: dict[str, Any] = {"job_id": JOB, "cursor": at("00:00"), "misfire": "all", "overlap": "allow"}
    year = decide(EACH_SECOND, now=at("00:00") + timedelta(days=365), catchup_window_s=366 * 86_400, **late)
    assert year.fire == tuple(at("00:00") + n * SECOND for n in range(1, 101))
    assert year.skips == (
        SkipRange("limit", None, at("00:01:41"), at("00:00") + timedelta(days=365), 365 * 86_400 - 100, exact=True),
    )
    assert year.cursor == at("00:00") + timedelta(days=365)
    assert settle(EACH_SECOND, now=at("00:01:40.5"), **late).fire == year.fire
    assert not settle(EACH_SECOND, now=at("00:01:40.5"), **late).skips


def test_a_daily_time_in_an_overlap_fires_once() -> None:
    first, second = (datetime(2026, 11, 1, hour, 30, tzinfo=UTC) for hour in (5, 6))
    decision = decide(DAILY, job_id=JOB, cursor=first - timedelta(hours=24), now=first)
    assert decision.fire == (first,)
    assert decision.next_time == first + timedelta(hours=25)
    assert decide(DAILY, job_id=JOB, cursor=decision.cursor, now=second).fire == ()


def test_an_ended_trigger_has_no_next_time() -> None:
    once = parse({"type": "once", "run_time": "2026-11-22T10:00:00Z"})
    assert decide(once, job_id=JOB, cursor=at("09:00"), now=at("10:00")) == Decision(
        (at("10:00"),), (), at("10:00"), None
    )
    assert decide(once, job_id=JOB, cursor=at("10:00"), now=at("11:00")) == Decision((), (), at("10:00"), None)
    assert settle_paused(once, job_id=JOB, cursor=at("10:00"), now=at("11:00")).next_time is None


@pytest.mark.parametrize("expression", ["* * * * * *", "0 0 29 2 *", "*/7 1-5 * * MON#2"])
def test_a_long_absence_is_counted_exactly_and_at_once(expression: str) -> None:
    """Pain 36."""
    trigger = parse({"type": "cron", "expression": expression, "timezone": "Europe/Paris"})
    cursor, now = datetime(1996, 1, 1, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)
    for decision in (
        decide(trigger, job_id=JOB, cursor=cursor, now=now),
        settle_paused(trigger, job_id=JOB, cursor=cursor, now=now),
    ):
        assert all(row.exact for row in decision.skips)
        assert accounted(decision) == count(trigger, cursor, decision.cursor)[0]
    if expression.startswith("* *"):
        assert [row.count for row in decide(trigger, job_id=JOB, cursor=cursor, now=now).skips] == [
            10_957 * 86_400 - 1,
            86_400,
        ]


def test_jitter_delays_the_firing_and_not_the_time() -> None:
    trigger = parse({"type": "cron", "expression": "0 * * * *", "jitter_s": 600})
    time, cursor = at("10:00"), at("09:00")
    due = due_time(trigger, JOB, time)
    assert time + SECOND < due < time + timedelta(seconds=600)
    early = decide(trigger, job_id=JOB, cursor=cursor, now=due - timedelta(microseconds=1))
    assert early == Decision((), (), cursor, due)
    assert decide(trigger, job_id=JOB, cursor=cursor, now=due, catchup_window_s=0).fire == (time,)
    # Two times behind and the second not yet due: the first fires.
    behind = decide(trigger, job_id=JOB, cursor=at("08:00"), now=time + SECOND)
    assert behind.fire == (cursor,)
    assert behind.next_time == due


def test_settling_leaves_nothing_behind() -> None:
    trigger = parse({"type": "cron", "expression": "0 * * * *", "jitter_s": 600})
    decision = settle(trigger, job_id=JOB, cursor=at("08:00"), now=at("10:00:01.5"))
    assert decision.fire == (at("10:00"),)  # though its jitter has not passed
    assert decision.skips == (skip("coalesced", "fired", "09:00", "09:00", 1),)
    assert decision.cursor == at("10:00:01")
    assert decision.next_time == next_due(trigger, JOB, at("10:00"))
    assert settle(MINUTELY, job_id=JOB, cursor=at("10:00"), now=at("10:00:30")) == Decision(
        (), (), at("10:00:30"), at("10:01")
    )


def test_resume_means_from_now() -> None:
    decision = settle_paused(MINUTELY, job_id=JOB, cursor=at("10:00:30"), now=at("10:05:00.25"))
    assert decision == Decision((), (skip("paused", None, "10:01", "10:05", 5),), at("10:05"), at("10:06"))
    again = settle_paused(MINUTELY, job_id=JOB, cursor=decision.cursor, now=at("10:05:30"))
    assert again == Decision((), (), at("10:05:30"), at("10:06"))
    assert settle_paused(MINUTELY, job_id=JOB, cursor=at("10:05"), now=at("10:00")).cursor == at("10:05")


def test_start_deadline() -> None:
    assert start_deadline(at("10:00"), 90) == at("10:01:30")
    assert start_deadline(at("10:00"), None) is None


def accounted(decision: Decision) -> int:
    return len(decision.fire) + sum(row.count for row in decision.skips)


@st.composite
def jobs(draw: st.DrawFn) -> tuple[Trigger, dict[str, Any]]:
    jitter_s = draw(st.sampled_from([0, 0, 3, 40, 4000]))
    zone = draw(st.sampled_from(["UTC", "America/New_York", "Australia/Lord_Howe"]))
    expression = draw(
        st.sampled_from(
            ["* * * * *", "*/15 * * * * *", "30 1 * * *", "0 2,3 * * *", "*/7 1 * * *", "0 0 1 * *", "@hourly"]
        )
    )
    trigger = parse(
        draw(
            st.sampled_from(
                [
                    {"type": "cron", "expression": expression, "timezone": zone, "jitter_s": jitter_s},
                    {
                        **{"type": "cron", "expression": expression, "timezone": zone, "jitter_s": jitter_s},
                        "end_time": "2026-11-02T12:00:00Z",
                    },
                    {"type": "interval", "every_s": draw(st.integers(1, 100_000)), "jitter_s": jitter_s},
                    {"type": "once", "run_time": "2026-11-01T06:30:00Z"},
                ]
            )
        )
    )
    policies = {
        "overlap": draw(st.sampled_from(get_args(Overlap))),
        "max_active": draw(st.none() | st.integers(1, 3)),
        "misfire": draw(st.sampled_from(["latest", "earliest", "all", "none"])),
        "catchup_window_s": draw(st.sampled_from([0, 10, 3600, 86_400, 10**9])),
    }
    return trigger, policies


@settings(derandomize=True, deadline=None, max_examples=250, suppress_health_check=[HealthCheck.too_slow])
@given(
    jobs(),
    st.lists(
        st.tuples(
            st.floats(-30, 7200) | st.floats(0, 5) | st.integers(0, 10**6),
            st.sampled_from([Others(), BUSY, LINE]),
            st.sampled_from(["tick", "tick", "tick", "settle", "paused"]),
        ),
        max_size=25,
    ),
)
def test_every_time_is_accounted_for_once(
    job: tuple[Trigger, dict[str, Any]], steps: list[tuple[float, Others, str]]
) -> None:
    trigger, policies = job
    begin = cursor = now = datetime(2026, 10, 31, 20, tzinfo=UTC)
    total = 0
    for seconds, others, kind in steps:
        now += timedelta(seconds=seconds)
        left = room(policies["overlap"], others, policies["max_active"])
        if kind == "paused":
            decision = settle_paused(trigger, job_id=JOB, cursor=cursor, now=now)
        else:
            act = decide if kind == "tick" else settle
            decision = act(trigger, job_id=JOB, cursor=cursor, now=now, others=others, **policies)
            assert len(decision.fire) <= min(left.runs, 100)
        check(trigger, decision, cursor, now, kind)
        in_the_way = {row.run_of for row in decision.skips if row.reason == "overlap"}
        assert in_the_way <= {"fired" if left.runs else "blocker"}
        assert policies["overlap"] not in {"buffer_all", "allow"} or not in_the_way
        cursor = decision.cursor
        total += accounted(decision)
        assert (total, True) == count(trigger, begin, cursor)


def check(trigger: Trigger, decision: Decision, cursor: datetime, now: datetime, kind: str) -> None:
    """What holds for every decision by itself."""
    assert decision.cursor >= cursor
    assert not decision.cursor.microsecond
    assert decision.cursor <= max(now, cursor)
    assert decision.next_time == next_due(trigger, JOB, decision.cursor)
    if kind == "tick":
        assert decision.next_time is None or decision.next_time > now
        assert all(due_time(trigger, JOB, time) <= now for time in decision.fire)
    # Runs and rows follow each other without a hole and without meeting.
    pieces = [*((row.first, row.last) for row in decision.skips), *((time, time) for time in decision.fire)]
    reached = cursor
    for first, last in sorted(pieces):
        assert next_after(trigger, reached) == first <= last
        reached = last
    following = next_after(trigger, reached)
    assert following is None or following > decision.cursor
    assert all(row.exact for row in decision.skips)
    assert ("fired" in {row.run_of for row in decision.skips}) <= bool(decision.fire)


@pytest.mark.parametrize("misfire", ["latest", "earliest", "all", "none"])
def test_the_timeline_of_the_document_is_so(misfire: Any) -> None:
    """docs/schedules.md, "Late and missed": every ten minutes, a window of thirty, away from 10:05 to 10:55."""
    text = (Path(__file__).parents[2] / "docs" / "schedules.md").read_text()
    (line,) = re.findall(rf"^{misfire} +(run .*)$", text, flags=re.MULTILINE)
    shown = re.split(r"  +", line)[1:-1]
    trigger = parse({"type": "cron", "expression": "*/10 * * * *"})
    decision = decide(
        trigger,
        job_id=JOB,
        cursor=at("10:00"),
        now=at("10:55"),
        misfire=misfire,
        overlap="allow",
        catchup_window_s=1800,
    )
    became = {time: "run R" if misfire in {"latest", "earliest"} else "run" for time in decision.fire}
    for row in decision.skips:
        for time in times(trigger, row.first - SECOND, row.last):
            became[time] = "into R" if row.run_of == "fired" else row.reason
    assert shown == [became[time] for time in sorted(became)]
