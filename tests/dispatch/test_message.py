"""What a message of ours says, and that Celery and kombu would say it alike."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import celery
import pytest
from redis.asyncio import Redis

from app.dispatch.redis import envelope, list_of
from tests.dispatch.parts import message
from workers.protocol import HEADER, parse_task_id


def test_a_message_is_a_task_of_protocol_2_under_the_id_of_its_dispatch() -> None:
    made = message(
        "q", task="svc.add", args=[1, "é"], kwargs={"y": 2}, dispatches=4, attempt=3, retries=2, time_limit_s=2.5
    )
    task_id = parse_task_id(made.task_id)
    assert task_id is not None
    assert (task_id.run_id, task_id.dispatch) == (made.run_id, 5)
    assert made.headers["id"] == made.headers["root_id"] == made.task_id
    assert made.headers["task"] == "svc.add"
    assert made.headers["retries"] == 2
    assert made.headers["timelimit"] == [2.5, None]
    assert made.headers["ignore_result"] is False
    assert made.reply_to == "", "nobody reads what a worker would send to a queue of Celery's own choice"
    assert made.headers["eta"] is made.headers["expires"] is None
    assert made.headers[HEADER] == {"version": 1, "run_id": str(made.run_id), "attempt": 3}
    assert json.loads(made.body)[:2] == [[1, "é"], {"y": 2}]
    assert (made.content_type, made.content_encoding, made.delivery_mode) == ("application/json", "utf-8", 2)


def test_a_message_tells_the_time_that_its_run_is_for() -> None:
    time = datetime(2026, 3, 1, 23, tzinfo=UTC).astimezone(ZoneInfo("Asia/Shanghai"))
    assert message("q", scheduled_time=time).headers[HEADER]["scheduled_time"] == "2026-03-01T23:00:00Z"


def test_a_start_deadline_is_the_expiry_of_what_nobody_has_begun() -> None:
    deadline = datetime(2026, 11, 22, 10, 0, 30, tzinfo=UTC)
    assert message("q", start_deadline_time=deadline).headers["expires"] == "2026-11-22T10:00:30+00:00"
    for begun in ({"attempt": 2}, {"retries": 1}):
        assert message("q", start_deadline_time=deadline, **begun).headers["expires"] is None
    assert "expiration" not in json.loads(envelope(message("q", start_deadline_time=deadline)))["properties"]


def test_argument_values_stand_in_the_body_only() -> None:
    made = message("q", args=["secret-argument"], kwargs={"key": "secret-value"})
    assert "secret" not in json.dumps(made.headers)


@pytest.mark.parametrize("priority", [None, 0, 4, 9])
async def test_the_envelope_is_the_one_that_kombu_writes(redis: Redis, redis_url: str, priority: int | None) -> None:
    """Member for member, but for ids, the process that sent it and our own header."""

    def send() -> None:
        with celery.Celery("other", broker=redis_url, set_as_current=False) as app:
            app.send_task("svc.add", args=[1], kwargs={}, queue="kombu", priority=priority, ignore_result=False)

    with ThreadPoolExecutor(1) as executor:
        executor.submit(send).result(20)
    theirs = json.loads(await redis.rpop(list_of("kombu", priority)))
    ours = json.loads(envelope(message("kombu", priority=priority)))
    del ours["headers"][HEADER]
    assert ours["properties"].keys() == theirs["properties"].keys()
    assert ours["headers"].keys() == theirs["headers"].keys()
    for each in (ours, theirs):
        for name in ("id", "root_id", "origin", "argsrepr", "kwargsrepr"):
            del each["headers"][name]
        for name in ("correlation_id", "reply_to", "delivery_tag"):
            del each["properties"][name]
    assert ours == theirs
