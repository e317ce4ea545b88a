"""Several triggers as one: the same instant once, without what is excluded, and within bounds."""

from datetime import UTC, date, datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from app.errors import Invalid
from app.schedule.triggers import SECOND, bounded, count, local, newest, next_after, note, parse, times

HOURLY = {"type": "cron", "expression": "@hourly"}
SECONDS = {"type": "interval", "every_s": 1}
SHANGHAI = {"type": "cron", "expression": "0 9 * * *", "timezone": "Asia/Shanghai"}
PARIS = {"type": "cron", "expression": "30 2 * * *", "timezone": "Europe/Paris"}
ONCE = {"type": "once", "run_time": "2026-12-24T09:00:00Z"}


def any_of(*of: dict[str, Any], exclude: Any = (), **others: Any) -> Any:
    return parse({"type": "any_of", "of": list(of), "exclude": list(exclude), **others})


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def nested(depth: int) -> dict[str, Any]:
    return SECONDS if depth == 0 else {"type": "any_of", "of": [nested(depth - 1)]}


def test_the_same_instant_once() -> None:
    trigger = any_of(HOURLY, {"type": "interval", "every_s": 1800}, ONCE)
    found = list(times(trigger, at("2026-12-24 08:00"), at("2026-12-24 10:00")))
    assert found == [at(f"2026-12-24 {one}") for one in ("08:30", "09:00", "09:30", "10:00")]
    assert count(trigger, at("2026-12-24 08:00"), at("2026-12-24 10:00")) == (4, True)


def test_days_are_those_of_the_members_zone() -> None:
    trigger = any_of(SHANGHAI, exclude=["2026-12-24", {"from": "2026-12-26", "to": "2026-12-27"}])
    assert trigger.timezone == "Asia/Shanghai"
    found = [local(trigger, one).date() for one in times(trigger, at("2026-12-22"), at("2026-12-29"))]
    assert found == [date(2026, 12, day) for day in (22, 23, 25, 28)]
    assert newest(trigger, at("2026-12-01"), at("2026-12-27 12:00")) == at("2026-12-25 01:00")


def test_a_trigger_takes_out_the_instants_at_which_it_fires() -> None:
    trigger = any_of(HOURLY, exclude=[{"type": "cron", "expression": "0 9-16 * * *"}])
    found = list(times(trigger, at("2026-12-24"), at("2026-12-25")))
    assert [one.hour for one in found] == [*range(1, 9), *range(17, 24), 0]


def test_notes_are_those_of_the_members_that_fire() -> None:
    trigger = any_of(PARIS, SHANGHAI)
    time = next_after(trigger, at("2026-03-29 00:59:59"))
    assert time is not None
    assert (
        note(trigger, time)
        == (
            "02:30 does not exist on 2026-03-29 in Europe/Paris; fires at 03:00; 09:00 happens"[
                : -len("; 09:00 happens")
            ]
        )
    )


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.lists(st.sampled_from([HOURLY, SHANGHAI, PARIS, ONCE, {"type": "interval", "every_s": 5400}]), min_size=1),
    st.lists(st.sampled_from([ONCE, {"type": "cron", "expression": "0 */2 * * *"}]), max_size=2),
    st.lists(st.dates(date(2026, 12, 1), date(2026, 12, 31)), max_size=4),
    st.sampled_from(["UTC", "Asia/Shanghai", "America/New_York"]),
)
def test_union_minus_exclusions(of: list[Any], taken: list[Any], days: list[date], zone: str) -> None:
    begin, end = at("2026-11-28"), at("2027-01-03")
    trigger = any_of(*of[:20], exclude=[*taken, *(str(day) for day in days)], timezone=zone)
    everything = {time for member in trigger.of for time in times(member, begin, end)}
    out = {time for one in taken for time in times(parse(one), begin, end)}
    expected = sorted(one for one in everything - out if one.astimezone(ZoneInfo(zone)).date() not in days)
    assert list(times(trigger, begin, end)) == expected
    assert count(trigger, begin, end) == (len(expected), True)
    assert newest(trigger, begin, end) == (expected[-1] if expected else None)
    for one in expected[::50]:
        assert next_after(trigger, one - SECOND) == one


def test_work_is_bounded() -> None:
    with pytest.raises(Invalid, match="10,000 times in a row are excluded") as caught:
        next_after(any_of(SECONDS, exclude=[SECONDS]), at("2026-11-22"))
    assert caught.value.errors[0].pointer == "/trigger/exclude"
    year = any_of(SECONDS, exclude=[{"from": "2026-01-01", "to": "2026-12-30"}])
    assert next_after(year, at("2025-12-31 23:59:59")) == at("2026-12-31")
    assert count(year, at("2025-12-31 23:59:59"), at("2027-12-31")) == (365 * 86_400 + 1, True)
    several = any_of(SECONDS, HOURLY)
    assert count(several, at("2026-01-01"), at("2027-01-01")) == (20_000, False)
    assert newest(several, at("2026-01-01"), at("2027-01-01")) == at("2027-01-01")
    assert next_after(any_of(ONCE, exclude=["2026-12-24"]), at("2026-11-22")) is None
    hours = any_of(
        SECONDS, exclude=[{"type": "cron", "expression": rule} for rule in ("1-59 * * * * *", "* 1-59 * * * *")]
    )
    assert count(hours, at("2026-01-01"), at("2027-01-01")) == (5, False), "what is excluded is walked through, too"


MINUTES = {"type": "any_of", "of": [SECONDS], "exclude": [{"type": "cron", "expression": "1-59 * * * * *"}]}
HARD = any_of(MINUTES, exclude=[{"type": "cron", "expression": "* 1-59 * * * *"}])


def test_an_answer_is_bounded_as_a_whole_members_within_members_too() -> None:
    hours = [at(f"2026-01-01 {hour:02}:00:00") for hour in range(4)]
    assert list(times(HARD, hours[0], hours[-1])) == hours[1:], "each alone is within its own bound"
    with bounded(), pytest.raises(Invalid, match="takes too long") as caught:
        list(times(HARD, at("2026-01-01"), at("2027-01-01")))
    assert caught.value.errors[0].pointer == "/trigger/exclude"
    with bounded(10), pytest.raises(Invalid):
        newest(HARD, hours[0], hours[1])
    assert next_after(HARD, hours[0]) == hours[1], "outside there is no such bound"


@pytest.mark.parametrize(
    ("data", "place", "words"),
    [
        ({"of": []}, ("of",), "needs at least one trigger"),
        ({"of": [SECONDS] * 21}, ("of",), "has 21 members; 20 are the most"),
        ({"of": [nested(3)]}, ("of",), "of/0/of/0/of/0 is an any_of inside 3 others; 3 levels are the most"),
        ({"of": [nested(400)]}, ("of",), "of/0/of/0/of/0 is an any_of inside 3 others; 3 levels are the most"),
        (
            {"of": [{"type": "any_of", "of": [SECONDS] * 20}] * 3},
            ("of",),
            "has more than 50 triggers, those inside others included",
        ),
        (
            {"of": [HOURLY, {"type": "cron", "expression": "99 * * * *"}]},
            ("of", 1, "cron", "expression"),
            'minute: "99" is not between 0 and 59',
        ),
        ({"of": [{**HOURLY, "jitter_s": 5}]}, ("of",), "member 0 has jitter_s; it belongs to the any_of as a whole"),
        (
            {"of": [HOURLY], "exclude": ["24.12.2026"]},
            ("exclude", 0, "day"),
            "must be a day such as 2026-12-24, {from, to} with two days, or a trigger",
        ),
        (
            {"of": [HOURLY], "exclude": [{"from": "2026-12-24", "to": "2026-12-23"}]},
            ("exclude", 0, "days", "to"),
            "is before `from`",
        ),
        (
            {"of": [PARIS, SHANGHAI], "exclude": ["2026-12-24"]},
            ("timezone",),
            "say where the excluded days are days: the members live in Asia/Shanghai, Europe/Paris",
        ),
    ],
)
def test_refused(data: dict[str, Any], place: tuple[Any, ...], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        parse({"type": "any_of", **data})
    (error,) = caught.value.errors()
    assert (error["loc"], error["msg"]) == (("any_of", *place), words)


def test_what_is_stored() -> None:
    trigger = any_of(SHANGHAI, exclude=["2026-12-24", {"from": "2026-12-26", "to": "2026-12-27"}], jitter_s=30)
    stored = trigger.model_dump(mode="json")
    assert stored["exclude"] == ["2026-12-24", {"from": "2026-12-26", "to": "2026-12-27"}]
    assert parse(stored) == trigger
    assert stored["of"][0]["timezone"] == stored["timezone"] == "Asia/Shanghai"
