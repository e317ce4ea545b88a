"""What all jobs will fire, by minute and queue, within bounds."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest

from app.api.schemas.schedule import ScheduleOut
from app.errors import Invalid
from app.schedule import triggers
from app.schedule.forecast import MAX_TIMES, forecast, per_minute
from tests.api.conftest import a_job

BEGIN = datetime(2026, 11, 22, tzinfo=UTC)


def a_row(trigger: dict[str, Any], number: int = 1, queue: str = "a", cursor: datetime = BEGIN) -> dict[str, Any]:
    return {"id": UUID(int=number), "trigger": trigger, "queue": queue, "cursor_time": cursor - timedelta(days=1)}


def test_times_in_order_with_jitter_and_counts() -> None:
    hourly = {"type": "cron", "expression": "@hourly", "jitter_s": 3000}
    rows = [a_row(hourly), a_row({"type": "interval", "every_s": 1800}, 2, "b"), a_row(hourly, 3)]
    found = forecast(rows, BEGIN, BEGIN + timedelta(hours=3))
    assert [one.fire_time for one in found] == sorted(one.fire_time for one in found)
    assert all(BEGIN <= one.fire_time < BEGIN + timedelta(hours=3) for one in found)
    for one in found:
        trigger = triggers.load(one.job["trigger"])
        assert one.fire_time == triggers.due_time(trigger, one.job["id"], one.time)
    assert [one.time.minute for one in found if one.job["queue"] == "b"] == [0, 30, 0, 30, 0, 30]
    minutes = per_minute(found)
    assert sum(one["count"] for one in minutes) == len(found) >= 11
    assert minutes[0]["queues"]["b"] == 1


def test_windows_side_by_side_have_each_time_once() -> None:
    rows = [a_row({"type": "cron", "expression": "*/7 * * * *", "jitter_s": 400}, number) for number in range(5)]
    whole = forecast(rows, BEGIN, BEGIN + timedelta(hours=4))
    parts = [one for hour in range(4) for one in forecast(rows, *(BEGIN + timedelta(hours=hour + n) for n in (0, 1)))]
    assert [one.fire_time for one in parts] == [one.fire_time for one in whole]


def test_work_is_bounded() -> None:
    seconds = a_row({"type": "interval", "every_s": 1})
    with pytest.raises(Invalid, match=f"more than {MAX_TIMES:,} times"):
        forecast([seconds], BEGIN, BEGIN + timedelta(days=1))
    each_second = {"type": "interval", "every_s": 1}
    nothing = {"type": "any_of", "of": [each_second], "exclude": [each_second]}
    over = {"type": "once", "run_time": "2020-01-01T00:00:00Z"}
    assert forecast([a_row(nothing), a_row(over)], BEGIN, BEGIN + timedelta(hours=1)) == []


async def test_over_rest(client: httpx.AsyncClient, queue: str) -> None:
    await client.post("/api/v1/queues", json={"name": "other"})
    for name, used in (("one", "default"), ("two", "default"), ("three", "other")):
        body = a_job(name=name, queue=used, trigger={"type": "interval", "every_s": 600})
        assert (await client.post("/api/v1/jobs", json=body)).status_code == 201
    await client.post("/api/v1/jobs", json=a_job(name="off", enabled=False))
    begin = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=2)
    window = {"from": begin.isoformat(), "to": (begin + timedelta(hours=1)).isoformat()}
    answer = await client.get("/api/v1/schedule", params={**window, "limit": 4})
    shown = answer.json()
    ScheduleOut.model_validate(shown)
    assert (shown["total"], len(shown["times"]), shown["more"]) == (18, 4, True)
    assert [one["queues"] for one in shown["minutes"]] == [{"default": 2, "other": 1}] * 6
    only = (await client.get("/api/v1/schedule", params={**window, "queue": "other"})).json()
    assert (only["total"], only["more"]) == (6, False)
    assert (await client.get("/api/v1/schedule")).json()["total"] in range(15, 19)
    for wrong in ({"to": "2020-01-01T00:00:00Z"}, {**window, "to": (begin + timedelta(days=2)).isoformat()}):
        refused = await client.get("/api/v1/schedule", params=wrong)
        assert (refused.status_code, refused.json()["errors"][0]["pointer"]) == (422, "?to")
