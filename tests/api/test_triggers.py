"""Triggers over REST: stored and shown as written, tried before they are saved, and refused with the place at fault."""

from datetime import datetime
from typing import Any

import httpx
import pytest

from app.api.schemas.jobs import JobOut
from tests.api.conftest import a_job

RRULE = {"type": "rrule", "rrule": "FREQ=MONTHLY;BYDAY=-1FR;BYHOUR=9", "timezone": "Europe/Paris"}
SOLAR = {"type": "solar", "event": "sunrise", "latitude": 52.5, "longitude": 13.4}
ANY_OF = {
    "type": "any_of",
    "of": [{"type": "cron", "expression": "0 9 * * *", "timezone": "Europe/Paris"}, RRULE],
    "exclude": ["2026-12-24", {"from": "2026-12-30", "to": "2027-01-02"}, {"type": "cron", "expression": "0 8 1 * *"}],
}


def contains(shown: Any, written: Any) -> bool:
    """Whether everything that was written is shown; defaults may have come to it."""
    if isinstance(written, dict):
        return all(contains(shown[name], value) for name, value in written.items())
    if isinstance(written, list):
        return len(shown) == len(written) and all(contains(*pair) for pair in zip(shown, written, strict=True))
    return bool(shown == written)


async def test_they_are_stored_and_shown_as_written(client: httpx.AsyncClient, queue: str) -> None:
    for name, trigger in (("rrule", RRULE), ("solar", SOLAR), ("any-of", ANY_OF)):
        answer = await client.post("/api/v1/jobs", json=a_job(name=name, trigger=trigger))
        assert answer.status_code == 201, answer.text
        job = answer.json()
        JobOut.model_validate(job)
        assert contains(job["trigger"], trigger)
        assert next(iter(job["trigger"])) == "type"
        assert job["next_run_time"] is not None
        body = {**a_job(name=name), "trigger": job["trigger"]}
        again = await client.put(f"/api/v1/jobs/{job['id']}", json=body)
        assert again.json()["version"] == 1, "what is shown may be sent back, and changes nothing"
        times = (await client.get(f"/api/v1/jobs/{job['id']}/next")).json()
        assert len(times["times"]) == 10
        assert times["times"][0]["time"] == job["next_run_time"]


async def test_a_trigger_that_is_over_is_told_at_save_and_shown(client: httpx.AsyncClient, queue: str) -> None:
    over = [
        {"type": "once", "run_time": "2020-01-01T00:00:00Z"},
        {"type": "interval", "every_s": 60, "end_time": "2020-01-01T00:00:00Z"},
        {"type": "rrule", "rrule": "FREQ=DAILY;COUNT=3", "start_time": "2020-01-01T00:00:00Z"},
        {"type": "any_of", "of": [{"type": "once", "run_time": "2100-01-01T00:00:00Z"}], "exclude": ["2100-01-01"]},
    ]
    for number, trigger in enumerate(over):
        job = (await client.post("/api/v1/jobs", json=a_job(name=f"over-{number}", trigger=trigger))).json()
        assert (job["finished"], job["next_run_time"]) == (True, None)
        assert [one["code"] for one in job["warnings"] if one["code"] == "finished"] == ["finished"]
        JobOut.model_validate(job)
    off = (await client.post("/api/v1/jobs", json=a_job(trigger=over[0], enabled=False))).json()
    assert (off["finished"], off["schedule"]) == (False, "Once, at 2020-01-01T00:00:00Z")


@pytest.mark.parametrize(
    ("day", "name"), [("0", "Sunday"), ("1", "Monday"), ("5", "Friday"), ("7", "Sunday"), ("MON", "Monday")]
)
async def test_pain_10_days_of_the_week_are_those_of_cron(
    client: httpx.AsyncClient, queue: str, day: str, name: str
) -> None:
    trigger = {"type": "cron", "expression": f"0 9 * * {day}", "timezone": "Europe/Paris"}
    job = (await client.post("/api/v1/jobs", json=a_job(trigger=trigger))).json()
    assert name in job["schedule"]
    times = (await client.get(f"/api/v1/jobs/{job['id']}/next", params={"count": 5})).json()["times"]
    assert {datetime.fromisoformat(time["local"]).strftime("%A %H:%M") for time in times} == {f"{name} 09:00"}


async def test_a_trigger_is_tried_with_notes(client: httpx.AsyncClient) -> None:
    body = {"trigger": {**ANY_OF, "exclude": []}, "count": 2, "after": "2026-03-28T12:00:00Z"}
    shown = (await client.post("/api/v1/triggers/preview", json=body)).json()
    assert shown["description"] == (
        "At 09:00 every day, Europe/Paris time; or every month on the last Friday at 09:00, Europe/Paris time"
    )
    assert [one["local"] for one in shown["times"]] == ["2026-03-29T09:00:00+02:00", "2026-03-30T09:00:00+02:00"]
    gap = {"type": "rrule", "rrule": "FREQ=DAILY;BYHOUR=2;BYMINUTE=30", "timezone": "Europe/Paris"}
    body = {"trigger": {"type": "any_of", "of": [gap]}, "count": 1, "after": "2026-03-28T12:00:00Z"}
    shown = (await client.post("/api/v1/triggers/preview", json=body)).json()
    assert shown["times"][0]["note"] == "02:30 does not exist on 2026-03-29 in Europe/Paris; fires at 03:00"


@pytest.mark.parametrize(
    ("trigger", "pointer"),
    [
        ({"type": "rrule"}, "/trigger/rrule"),
        ({"type": "rrule", "rrule": "FREQ=DAILY;BYHOUR=24"}, "/trigger/rrule"),
        ({**RRULE, "timezone": "Paris"}, "/trigger/timezone"),
        ({"type": "any_of", "of": [RRULE, {**RRULE, "timezone": "Paris"}]}, "/trigger/of/1/timezone"),
        ({"type": "any_of", "of": [RRULE], "exclude": [{"from": "2026-12-24"}]}, "/trigger/exclude/0/to"),
        ({"type": "any_of", "of": [RRULE], "exclude": ["24.12."]}, "/trigger/exclude/0"),
        ({"type": "any_of", "of": [SOLAR], "exclude": [SOLAR]}, "/trigger/exclude"),
        ({**SOLAR, "latitude": 90}, "/trigger/event"),
    ],
)
async def test_the_place_at_fault_is_named(
    client: httpx.AsyncClient, queue: str, trigger: dict[str, Any], pointer: str
) -> None:
    for path, body in (("/jobs", a_job(trigger=trigger)), ("/triggers/preview", {"trigger": trigger})):
        answer = await client.post(f"/api/v1{path}", json=body)
        assert answer.status_code == 422, answer.text
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
