"""Bad input gets a problem that names the field, and leaves nothing behind."""

import base64
import json
from typing import Any

import httpx
import pytest

from app.database import Database
from tests.api.conftest import a_job


def cron(**fields: Any) -> dict[str, Any]:
    return {"trigger": {"type": "cron", "expression": "*/5 * * * *", **fields}}


#: What is wrong with a job, the pointer, and a part of the sentence.
BAD_JOBS: list[tuple[dict[str, Any], str, str]] = [
    ({"queue": "nowhere"}, "/queue", "no queue 'nowhere'"),
    ({"name": ""}, "/name", "pattern"),
    ({"name": "with space"}, "/name", "pattern"),
    ({"name": 5}, "/name", "string"),
    ({"task": "with space"}, "/task", "pattern"),
    ({"args": {}}, "/args", "list"),
    ({"kwargs": []}, "/kwargs", "dictionary"),
    ({"args": ["x" * 1_000_000]}, "/args", "64 KiB"),
    ({"kwargs": {"a": "x" * 1_000_000}}, "/kwargs", "64 KiB"),
    ({"enabled": "yes"}, "/enabled", "boolean"),
    ({"enabled": 1}, "/enabled", "boolean"),
    ({"priority": 256}, "/priority", "255"),
    ({"priority": True}, "/priority", "integer"),
    ({"priority": "3"}, "/priority", "integer"),
    ({"catchup_window_s": -1}, "/catchup_window_s", "greater"),
    ({"catchup_window_s": 1.5}, "/catchup_window_s", "integer"),
    ({"catchup_window_s": 10**12}, "/catchup_window_s", "less"),
    ({"start_deadline_s": 0}, "/start_deadline_s", "greater"),
    ({"start_deadline_s": 60, "deadline_s": 60}, "/deadline_s", "more than start_deadline_s"),
    ({"deadline_s": 0}, "/deadline_s", "greater"),
    ({"retry": {"jitter": "some"}}, "/retry/jitter", "'none' or 'full'"),
    ({"retry": {"retry_on": ["not a name"]}}, "/retry/retry_on/0", "pattern"),
    ({"retry": {"retry_on": "ValueError"}}, "/retry/retry_on", "list"),
    ({"time_limit_s": 0}, "/time_limit_s", "greater"),
    ({"time_limit_s": "60"}, "/time_limit_s", "number"),
    ({"time_limit_s": 10, "soft_time_limit_s": 10}, "/soft_time_limit_s", "less than time_limit_s"),
    ({"overlap": "some"}, "/overlap", "'skip', 'buffer_one'"),
    ({"max_active": 0}, "/max_active", "greater"),
    ({"max_active": 1001}, "/max_active", "less"),
    ({"pause_after_failures": 0}, "/pause_after_failures", "greater"),
    ({"misfire": "some"}, "/misfire", "'latest'"),
    ({"retry": {"max_attempts": 0}}, "/retry/max_attempts", "greater"),
    ({"retry": {"attempts": 2}}, "/retry/attempts", "not known"),
    ({"labels": {"a": 1}}, "/labels/a", "string"),
    ({"labels": {"a b": "1"}}, "/labels/a b", "pattern"),
    ({"unknown": 1}, "/unknown", "not known"),
    ({"trigger": None}, "/trigger", "valid"),
    ({"trigger": {}}, "/trigger", "type"),
    ({"trigger": {"type": "moon"}}, "/trigger", "moon"),
    ({"trigger": {"type": "cron"}}, "/trigger/expression", "expression"),
    (cron(expression="61 * * * *"), "/trigger/expression", 'minute: "61" is not between 0 and 59'),
    (cron(expression="* * * *"), "/trigger/expression", "has 4 fields"),
    (cron(expression=5), "/trigger/expression", "string"),
    (cron(timezone="Mars/Olympus"), "/trigger/timezone", "not an IANA time zone"),
    (
        cron(start_time="2026-02-01T00:00:00Z", end_time="2026-01-01T00:00:00Z"),
        "/trigger/end_time",
        "before start_time",
    ),
    (cron(start_time="2026-02-01T00:00:00"), "/trigger/start_time", "no zone"),
    (cron(seconds=1), "/trigger/seconds", "not known"),
    ({"trigger": {"type": "interval", "every_s": 0}}, "/trigger/every_s", "greater"),
    ({"trigger": {"type": "interval"}}, "/trigger/every_s", "required"),
    ({"trigger": {"type": "once", "run_time": "soon"}}, "/trigger/run_time", "RFC 3339"),
]

#: Bodies that have to be written by hand, the status, the pointer (None: no errors), and a part of the detail.
BAD_TEXTS: list[tuple[bytes, int, str | None, str]] = [
    (b"{", 400, None, "not JSON"),
    (b"{'a': 1}", 400, None, "not JSON"),
    (b"\xff\xfe{", 400, None, "body"),
    (b"[" * 100_000, 400, None, "nested too deeply"),
    (b'{"args": [' + b"9" * 5000 + b"]}", 400, None, "digits"),
    (b"", 422, "", "required"),
    (b"[]", 422, "", "dictionary"),
    (b'"x"', 422, "", "dictionary"),
    (b"null", 422, "", ""),
    (b'{"args": [NaN]}', 422, "/args/0", "finite"),
    (b'{"args": [1e999]}', 422, "/args/0", "finite"),
    (b'{"args": [-Infinity]}', 422, "/args/0", "finite"),
    (b'{"kwargs": {"a": {"b": "\\u0000"}}}', 422, "/kwargs/a/b", "U+0000"),
    (b'{"kwargs": {"a/b~": "\\ud800"}}', 422, "/kwargs/a~1b~0", "surrogate"),
    (b'{"kwargs": {"\\u0000": 1}}', 422, "/kwargs", "U+0000"),
    (b'{"args": [9223372036854775808]}', 422, "/args/0", "64 bits"),
    (b'{"args": ' + b"[" * 100 + b"]" * 100 + b"}", 422, "/args" + "/0" * 63, "deep"),
]


async def nothing_was_written(database: Database) -> None:
    async with database.reading() as connection:
        for table in ("jobs", "job_versions", "runs", "idempotency_keys"):
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") == 0, table


async def test_bad_jobs(client: httpx.AsyncClient, queue: str, database: Database) -> None:
    for changes, pointer, words in BAD_JOBS:
        answer = await client.post("/api/v1/jobs", json=a_job(**changes), headers={"Idempotency-Key": "k"})
        told = json.dumps(changes)[:100]
        assert answer.status_code == 422, told
        assert answer.headers["content-type"] == "application/problem+json", told
        problem = answer.json()
        assert problem["type"] == "/problems/invalid", told
        assert [error["pointer"] for error in problem["errors"]] == [pointer], (told, problem)
        assert words in problem["errors"][0]["detail"], (told, problem)
        assert len(answer.content) < 2000, told  # what was sent is not sent back
    missing = await client.post("/api/v1/jobs", json={})
    assert [error["pointer"] for error in missing.json()["errors"]] == ["/name", "/task", "/queue", "/trigger"]
    await nothing_was_written(database)


async def test_bad_patches_name_the_field_too(client: httpx.AsyncClient, queue: str) -> None:
    job = (await client.post("/api/v1/jobs", json=a_job())).json()
    for changes, pointer, words in BAD_JOBS:
        if None in changes.values() or "type" in changes.get("trigger", {"type": None}) or changes == {"trigger": {}}:
            continue
        answer = await client.patch(f"/api/v1/jobs/{job['id']}", json=changes)
        problem = answer.json()
        assert answer.status_code == 422, (changes, problem)
        assert [error["pointer"] for error in problem["errors"]] == [pointer], problem
        assert words in problem["errors"][0]["detail"], problem
    assert (await client.patch(f"/api/v1/jobs/{job['id']}", json=[1])).status_code == 422
    assert (await client.patch(f"/api/v1/jobs/{job['id']}")).status_code == 422
    assert (await client.get(f"/api/v1/jobs/{job['id']}")).json() == {**job, "warnings": None}


async def test_bad_texts(client: httpx.AsyncClient, queue: str, database: Database) -> None:
    for text, status, pointer, words in BAD_TEXTS:
        answer = await client.post("/api/v1/jobs", content=text, headers={"Content-Type": "application/json"})
        problem = answer.json()
        assert answer.status_code == status, (text[:60], problem)
        assert words in problem["detail"], (text[:60], problem)
        if pointer is None:
            assert problem["type"] == "/problems/broken-json", text[:60]
        else:
            assert [error["pointer"] for error in problem["errors"]] == [pointer], (text[:60], problem)
    await nothing_was_written(database)


async def test_bad_runs(client: httpx.AsyncClient, queue: str, database: Database) -> None:
    for body, pointer in [
        ({}, "/task"),
        ({"task": "x", "queue": "nowhere"}, "/queue"),
        ({"task": "x", "namespace": "team-b"}, "/queue"),
        ({"task": "x", "args": ["x" * 70_000]}, "/args"),
        ({"task": "x", "eta": "2026-01-01T00:00:00Z"}, "/eta"),
    ]:
        answer = await client.post("/api/v1/runs", json=body)
        assert answer.status_code == 422, answer.text
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]
    await nothing_was_written(database)


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("limit=0", "?limit"),
        ("limit=201", "?limit"),
        ("limit=x", "?limit"),
        ("state=running", "?state"),
        ("kind=weekly", "?kind"),
        ("job_id=7", "?job_id"),
        ("created_after=yesterday", "?created_after"),
        ("created_after=1346178558", "?created_after"),
        ("created_before=2026-01-01T00:00:00", "?created_before"),
        ("created_after=0001-01-01T00:00:00%2B14:00", "?created_after"),
        ("created_before=9999-12-31T23:59:59Z", "?created_before"),
        ("task=%00", "?task"),
        ("sate=PENDING", "?sate"),
    ],
)
async def test_bad_filters(client: httpx.AsyncClient, query: str, pointer: str) -> None:
    answer = await client.get(f"/api/v1/runs?{query}")
    assert answer.status_code == 422, answer.text
    assert [error["pointer"] for error in answer.json()["errors"]] == [pointer]


async def test_bad_previews(client: httpx.AsyncClient) -> None:
    for body, pointer in [
        ({}, "/trigger"),
        ({**cron(), "count": 0}, "/count"),
        ({**cron(), "count": 1001}, "/count"),
        ({**cron(), "after": 5}, "/after"),
        ({**cron(), "after": "2026-01-01T00:00:00"}, "/after"),
        ({**cron(), "after": "9999-12-31T23:59:59-14:00"}, "/after"),
        ({**cron(), "after": "0001-01-01T00:00:00+14:00"}, "/after"),
        (cron(expression="x * * * *"), "/trigger/expression"),
    ]:
        answer = await client.post("/api/v1/triggers/preview", json=body)
        assert [error["pointer"] for error in answer.json()["errors"]] == [pointer], answer.text


async def test_bad_ledger_times(client: httpx.AsyncClient, queue: str) -> None:
    job = (await client.post("/api/v1/jobs", json=a_job())).json()["id"]
    for name in ("from", "to"):
        for time in ("0001-01-01T00:00:00Z", "9999-12-31T23:59:59-14:00", "2026-01-01T00:00:00", "now"):
            answer = await client.get(f"/api/v1/jobs/{job}/ledger", params={name: time})
            assert [error["pointer"] for error in answer.json()["errors"]] == [f"?{name}"], answer.text


def forged(cursor: str, key: str) -> str:
    """A cursor of the same list and filters, with another key."""
    parts = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    return base64.urlsafe_b64encode(json.dumps([*parts[:2], key]).encode()).decode().rstrip("=")


async def test_forged_cursors(client: httpx.AsyncClient, queue: str) -> None:
    for name in ("b", "c"):
        assert (await client.post("/api/v1/queues", json={"name": name})).status_code == 201
    run = (await client.post("/api/v1/runs", json={"task": "x", "queue": queue})).json()["id"]
    await client.post(f"/api/v1/runs/{run}/cancel")
    for path, keys in [
        ("/api/v1/queues", ["\0"]),
        (f"/api/v1/runs/{run}/events", ["²", "2147483648", "-1", "x", ""]),
    ]:
        cursor = (await client.get(path, params={"limit": 1})).json()["next_cursor"]
        for key in keys:
            answer = await client.get(path, params={"limit": 1, "cursor": forged(cursor, key)})
            assert answer.status_code == 400, (path, key, answer.text)
            assert answer.json()["type"] == "/problems/bad-request"


@pytest.mark.parametrize(
    "name", ["unacked", "unacked_index", "_kombu.binding.x", "celery-task-meta-x", "jobplane:runs"]
)
async def test_a_queue_may_not_be_named_as_a_key_of_others(client: httpx.AsyncClient, name: str) -> None:
    answer = await client.post("/api/v1/queues", json={"name": name})
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/name"], answer.text
