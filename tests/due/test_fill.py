"""Which times a backfill runs: tables and properties."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.due.fill import Account, Latest, Mode, choose, left_out, span

START = datetime(2026, 3, 1, tzinfo=UTC)
STATES = ("PENDING", "STARTED", "PROGRESS", "SUCCESS", "FAILURE", "REVOKED")


@pytest.mark.parametrize(
    ("state", "missing", "failed", "every"),
    [
        (None, None, None, None),
        ("PENDING", "live", "live", "live"),
        ("CRUNCHING", "live", "live", "live"),
        ("SUCCESS", "has_run", "succeeded", None),
        ("FAILURE", "has_run", None, None),
        ("REVOKED", "has_run", None, None),
    ],
)
def test_which_times_get_a_run(state: str | None, missing: str | None, failed: str | None, every: str | None) -> None:
    latest = None if state is None else Latest(state)
    assert [left_out(mode, latest) for mode in ("missing", "failed", "all")] == [missing, failed, every]


@pytest.mark.parametrize("mode", ["missing", "failed", "all"])
def test_the_timeline_of_the_document_is_so(mode: Mode) -> None:
    text = (Path(__file__).parents[2] / "docs" / "schedules.md").read_text()
    (newest,) = re.findall(r"^newest run +(.*)$", text, flags=re.MULTILINE)
    (told,) = re.findall(rf"^mode {mode} +(.*)$", text, flags=re.MULTILINE)
    for state, word in zip(newest.split(), told.split(), strict=False):
        assert (left_out(mode, None if state == "none" else Latest(state)) or "run") == word


@pytest.mark.parametrize("mode", ["missing", "failed", "all"])
def test_a_time_that_this_backfill_has_run_gets_no_other(mode: Mode) -> None:
    assert [left_out(mode, Latest(state, mine=True)) for state in ("SUCCESS", "FAILURE")] == ["has_run", "has_run"]


@given(
    st.lists(st.sampled_from([None, *STATES]), max_size=30),
    st.sampled_from(["missing", "failed", "all"]),
    st.integers(1, 5),
)
def test_every_time_is_dealt_with_once_however_often_one_stops(states: list[str | None], mode: Mode, room: int) -> None:
    times = [START + timedelta(hours=n) for n in range(len(states))]
    latest = {time: Latest(state) for time, state in zip(times, states, strict=True) if state is not None}
    fired: list[datetime] = []
    skipped, rest = 0, times
    while rest:
        choice = choose(rest, latest, mode, room)
        assert len(choice.fire) <= room
        assert choice.cursor is not None
        fired += choice.fire
        skipped += sum(choice.left_out.values())
        rest = [time for time in rest if time > choice.cursor]
    assert fired == [time for time in times if left_out(mode, latest.get(time)) is None]
    assert len(fired) + skipped == len(times)
    assert not any(latest[time].state in {"PENDING", "STARTED", "PROGRESS"} for time in fired if time in latest)


def test_the_window_is_half_open_and_in_whole_seconds() -> None:
    after, until = span(START, START + timedelta(minutes=1))
    assert (after, until) == (START - timedelta(seconds=1), START + timedelta(seconds=59))
    half = timedelta(milliseconds=500)
    assert span(START + half, START + timedelta(minutes=1) + half) == (START, START + timedelta(minutes=1))


def test_what_ended_is_counted_once() -> None:
    runs = tuple(UUID(int=n) for n in range(5))
    account = Account("ACTIVE", None, START, 2, 1, 0, 0, runs)
    counted = account.counted({runs[0]: "SUCCESS", runs[2]: "FAILURE", runs[3]: "REVOKED", runs[4]: None})
    assert (counted.succeeded, counted.failed, counted.revoked, counted.live) == (2, 1, 2, (runs[1],))
    assert counted.counted({runs[0]: "SUCCESS"}) == counted


def test_it_is_done_once_nothing_is_left() -> None:
    account = Account("ACTIVE", None, START, 0, 0, 0, 0, ())
    assert account.done_if(START).state == "DONE"
    assert account.done_if(START + timedelta(seconds=1)).state == "ACTIVE"
    assert Account("ACTIVE", None, START, 0, 0, 0, 0, (UUID(int=1),)).done_if(START).state == "ACTIVE"
    assert Account("PAUSED", None, START, 0, 0, 0, 0, ()).done_if(START).state == "PAUSED"
    assert account.done_if(START).cancelled("why").state == "DONE"
    assert account.cancelled("why").cancelled("other").reason == "why"
