"""What a simulation tells: small histories as tables, and what holds for every one of them."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any, get_args
from uuid import UUID

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.due.overlap import Overlap
from app.due.simulate import MAX_LOOKS, MAX_RUNS, MAX_TIMES, simulate
from app.due.simulated import Bodies, Pause, Policies, Run, Simulation, Skip
from app.errors import Invalid
from app.schedule.triggers import SECOND, Trigger, due_time, parse, times

JOB = UUID(int=0)
MINUTE = timedelta(minutes=1)
EVERY_TEN = parse({"type": "cron", "expression": "*/10 * * * *"})


def at(minute: float) -> datetime:
    """That many minutes after ten."""
    return datetime(2026, 11, 22, 10, tzinfo=UTC) + timedelta(minutes=minute)


def tried(
    length: float | list[float], *, until: float = 60, trigger: Trigger = EVERY_TEN, **world: Any
) -> tuple[list[str], Simulation]:
    """An hour of a job each ten minutes whose runs take that many minutes, as short lines."""
    bodies = {name: world.pop(name) for name in ("failing", "cancel") if name in world}
    outages = [(at(begin), at(end)) for begin, end in world.pop("outages", [])]
    lengths = [timedelta(minutes=one) for one in (length if isinstance(length, list) else [length])]
    found = simulate(trigger, Policies(**world), Bodies(lengths, **bodies), begin=at(0), end=at(until), outages=outages)
    return [line(event) for event in found.events], found


def line(event: Run | Skip | Pause) -> str:
    """Such as `1 at 0: 0-25 success` or `20-40 overlap 3 by 2`, in minutes after ten."""
    match event:
        case Run():
            begin = "never" if event.begin_time is None else minutes(event.begin_time)
            assert event.end_time is not None
            by = "" if event.by is None else f" by {event.by}"
            return (
                f"{event.number} at {minutes(event.fire_time)}: {begin}-{minutes(event.end_time)} {event.outcome}{by}"
            )
        case Skip():
            by = "" if event.run is None else f" by {event.run}"
            return f"{minutes(event.first_time)}-{minutes(event.last_time)} {event.reason} {event.count}{by}"
        case Pause():
            return f"pause at {minutes(event.time)}: {event.failures} failures, the last is {event.run}"


def minutes(time: datetime) -> str:
    return f"{(time - at(0)) / MINUTE:g}"


@pytest.mark.parametrize(
    ("length", "world", "lines"),
    [
        pytest.param(
            *(25, {"until": 40}),
            ["1 at 0: 0-25 success", "10-20 overlap 2 by 1", "2 at 30: 30-55 success"],
            id="skip",
        ),
        pytest.param(
            *(10, {"until": 20}),
            ["1 at 0: 0-10 success", "2 at 10: 10-20 success"],
            id="what ends at the instant of a look is in nobody's way",
        ),
        pytest.param(
            *([25, 5], {"overlap": "buffer_one"}),
            [
                *("1 at 0: 0-25 success", "2 at 10: 25-30 success", "20-20 overlap 1 by 2", "3 at 30: 30-55 success"),
                *("4 at 40: 55-60 success", "50-50 overlap 1 by 4"),
            ],
            id="buffer_one",
        ),
        pytest.param(
            *(15, {"overlap": "buffer_all", "until": 40, "start_deadline_s": 900}),
            [
                *("1 at 0: 0-15 success", "2 at 10: 15-30 success", "3 at 20: 30-45 success"),
                "4 at 30: never-45 start_deadline",
            ],
            id="a run that waits is ended by its start deadline",
        ),
        pytest.param(
            *(15, {"overlap": "cancel_other", "until": 30, "cancel": MINUTE}),
            ["1 at 0: 0-11 cancelled by 2", "2 at 10: 11-21 cancelled by 3", "3 at 20: 21-36 success"],
            id="cancel_other",
        ),
        pytest.param(
            *(25, {"overlap": "cancel_other", "until": 40, "cancel": None}),
            [
                *("1 at 0: 0-25 success", "2 at 10: never-20 replaced by 3", "3 at 20: 25-50 success"),
                "4 at 30: 50-75 success",
            ],
            id="a body that does not heed the cancel is waited for",
        ),
        pytest.param(
            *(25, {"overlap": "terminate_other", "until": 30}),
            ["1 at 0: 0-10 terminated by 2", "2 at 10: 10-20 terminated by 3", "3 at 20: 20-45 success"],
            id="terminate_other",
        ),
        pytest.param(
            *(25, {"overlap": "allow", "max_active": 2, "until": 40}),
            [
                *("1 at 0: 0-25 success", "2 at 10: 10-35 success", "3 at 20: 25-50 success"),
                "4 at 30: 35-60 success",
            ],
            id="max_active",
        ),
        pytest.param(
            *([5, 30], {"outages": [(5, 35), (15, 25)], "misfire": "all", "overlap": "buffer_one"}),
            [
                *("1 at 0: 0-5 success", "2 at 35: 35-65 success", "3 at 35: 65-70 success"),
                "30-50 overlap 3 by 3",
            ],
            id="after an outage two of all find room, one of them in the line",
        ),
        pytest.param(
            *(5, {"outages": [(5, 35)], "catchup_window_s": 600, "until": 40}),
            ["1 at 0: 0-5 success", "10-20 missed 2", "2 at 35: 35-40 success"],
            id="missed",
        ),
        pytest.param(
            *(5, {"outages": [(25, 90)], "until": 60}),
            ["1 at 0: 0-5 success", "2 at 10: 10-15 success", "3 at 20: 20-25 success"],
            id="nobody comes back before the end",
        ),
        pytest.param(
            *(5, {"failing": {2, 3}, "pause_after_failures": 2}),
            [
                *("1 at 0: 0-5 success", "2 at 10: 10-15 failure", "3 at 20: 20-25 failure"),
                *("pause at 25: 2 failures, the last is 3", "30-50 paused 3"),
            ],
            id="pause_after_failures",
        ),
        pytest.param(
            *(5, {"outages": [(5, 25)], "failing": {1}, "pause_after_failures": 1, "until": 40}),
            ["1 at 0: 0-5 failure", "10-30 paused 3", "pause at 25: 1 failures, the last is 1"],
            id="an outage keeps the pause from being made, and not from being",
        ),
    ],
)
def test_histories(length: Any, world: dict[str, Any], lines: list[str]) -> None:
    assert tried(length, **world)[0] == lines


def test_what_nobody_looked_at_is_pending() -> None:
    _, found = tried(5, outages=[(25, 90)])
    assert (found.scheduled, len(found.runs), found.skips, found.pending) == (6, 3, [], 3)


def test_work_is_bounded_and_the_error_says_what_to_make_smaller() -> None:
    seconds = parse({"type": "interval", "every_s": 1})
    for length, until, world, told in (
        (0, 24 * 60, {}, f"more than {MAX_TIMES:,} times"),
        (0, MAX_LOOKS // 60 + 1, {"overlap": "skip"}, f"more than {MAX_LOOKS:,} looks"),
        (
            0,
            60 * 10,
            {"overlap": "allow", "misfire": "all", "outages": [(n, n + 2) for n in range(0, 60, 2)]},
            MAX_RUNS,
        ),
    ):
        with pytest.raises(Invalid, match=f"more than {told:,}" if isinstance(told, int) else told) as raised:
            tried(length, until=until, trigger=seconds, **world)
        assert [error.pointer for error in raised.value.errors] == ["/to"]


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, Any]:
    trigger = draw(
        st.sampled_from(
            [
                {"type": "cron", "expression": "*/10 * * * *"},
                {"type": "cron", "expression": "*/7 * * * *", "jitter_s": 300},
                {"type": "interval", "every_s": 45, "jitter_s": 30},
                {"type": "any_of", "of": [{"type": "interval", "every_s": n} for n in (300, 420)]},
                {"type": "once", "run_time": "2026-11-22T10:20:00Z"},
            ]
        )
    )
    spans = draw(st.lists(st.tuples(st.integers(-10, 170), st.integers(1, 90)), max_size=3))
    return {
        "trigger": parse(trigger),
        "until": draw(st.integers(1, 180)),
        "outages": [(begin, begin + length) for begin, length in spans],
        "length": draw(st.lists(st.floats(0, 40).map(lambda number: round(number, 3)), min_size=1, max_size=4)),
        "failing": draw(st.frozensets(st.integers(1, 12))),
        "cancel": draw(st.sampled_from([None, timedelta(), MINUTE, 20 * MINUTE])),
        "max_active": draw(st.none() | st.integers(1, 3)),
        "misfire": draw(st.sampled_from(["latest", "earliest", "all", "none"])),
        "catchup_window_s": draw(st.sampled_from([0, 300, 1800, 86_400])),
        "start_deadline_s": draw(st.sampled_from([None, None, 60, 1500])),
        "pause_after_failures": draw(st.sampled_from([None, None, 1, 3])),
    }


@pytest.mark.parametrize("overlap", get_args(Overlap))
@settings(derandomize=True, deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(world=worlds())
def test_each_time_is_told_once_and_no_policy_lets_more_at_work_than_it_says(
    overlap: Overlap, world: dict[str, Any]
) -> None:
    trigger, until, max_active = world["trigger"], at(world["until"]), world["max_active"]
    _, found = tried(**world, overlap=overlap)
    every = list(times(trigger, at(0) - SECOND, until - timedelta(microseconds=1)))
    told = Counter(run.scheduled_time for run in found.runs)
    for skip in found.skips:
        inside = [time for time in every if skip.first_time <= time <= skip.last_time]
        assert len(inside) == skip.count
        told.update(inside)
    assert told == Counter(every[: len(every) - found.pending]), "the pending ones are the last"
    assert len(found.runs) + sum(skip.count for skip in found.skips) + found.pending == found.scheduled == len(every)

    allowed = max_active if overlap == "allow" else 1  # what is terminated has ended, in this world
    assert allowed is None or found.most_at_work <= allowed
    line_s = [(run.fire_time, run.begin_time or run.end_time) for run in found.runs if run.waits_for is not None]
    most = {"skip": 0, "buffer_one": 1, "cancel_other": 1}.get(overlap, 1000)
    if overlap == "terminate_other" or (overlap == "allow" and max_active is None):
        most = 0
    for begin, _ in line_s:
        assert sum(one <= begin < other for one, other in line_s) <= most
    check_runs(found, world)


def check_runs(found: Simulation, world: dict[str, Any]) -> None:
    """Nobody begins early, stands about with nobody in the way, or ends otherwise than for a cause."""
    ends = {run.end_time for run in found.runs}
    for run in found.runs:
        assert run.end_time is not None
        assert run.scheduled_time <= run.fire_time <= run.end_time
        assert run.fire_time == due_time(world["trigger"], JOB, run.scheduled_time) or world["outages"]
        if run.begin_time is None:
            assert run.outcome in {"replaced", "start_deadline"}
            continue
        assert run.begin_time == run.fire_time or run.begin_time in ends
        assert (run.begin_time > run.fire_time) <= (run.waits_for is not None)
        if run.outcome in {"success", "failure"}:
            assert run.end_time - run.begin_time == run.length
            assert (run.outcome == "failure") == (run.number in world["failing"])
        else:
            assert run.outcome in {"cancelled", "terminated"}
            assert run.by is not None
            assert run.by > run.number
    for run in found.runs:
        assert run.waits_for is None or run.waits_for < run.number
