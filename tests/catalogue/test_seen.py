"""What a worker says is a stranger's word."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from redis.asyncio import Redis

from app.catalogue.present import contracts, presences
from app.catalogue.seen import Seen, continued, of_answers, of_presence, same_life
from workers.protocol import CONTRACTS_PREFIX, presence_key

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
QUEUES = [{"name": "q", "exchange": {}}]


def presence(**changes: Any) -> bytes:
    return json.dumps(
        {
            "queues": ["q"],
            "tasks": ["b", "a", "celery.chord"],
            "pool": "thread",
            "concurrency": 2,
            "pid": 7,
            "start_time": "2026-03-01T11:00:00Z",
            **changes,
        }
    ).encode()


def test_a_presence_is_read() -> None:
    seen = of_presence("w@h", presence(contracts="abc", software="py-celery 5.7.0", active=1, reserved=0))
    assert seen == Seen(
        node="w@h",
        ours=True,
        queues=("q",),
        tasks=("a", "b"),
        software="py-celery 5.7.0",
        contracts_digest="abc",
        pool="threads",
        concurrency=2,
        active=1,
        reserved=0,
        pid=7,
        start_time=NOW - timedelta(hours=1),
    )


@pytest.mark.parametrize("value", [None, b"", b"{", b"[]", b"7", b"{}", b'{"queues": 3}', b'{"queues": "q"}'])
def test_what_is_no_presence(value: bytes | None) -> None:
    assert of_presence("w@h", value) is None


@pytest.mark.parametrize(
    ("changes", "member", "kept"),
    [
        ({"tasks": None}, "tasks", ()),
        ({"tasks": [1, None, "", "a\x00b", "x" * 300, "good", "good"]}, "tasks", ("good",)),
        ({"queues": ["q", {}, "\x00", "celery.high"]}, "queues", ("celery.high", "q")),
        ({"pid": True}, "pid", None),
        ({"pid": 2**40}, "pid", None),
        ({"pid": -1}, "pid", None),
        ({"concurrency": "many"}, "concurrency", None),
        ({"start_time": "yesterday"}, "start_time", None),
        ({"start_time": "2026-03-01T11:00:00"}, "start_time", None),
        ({"start_time": "0001-01-01T00:00:00+05:00"}, "start_time", None),
        ({"start_time": "9999-12-31T23:59:59-05:00"}, "start_time", None),
        ({"contracts": ["x"]}, "contracts_digest", ""),
        ({"software": "\x00"}, "software", ""),
        ({"pool": 7}, "pool", ""),
    ],
)
def test_what_cannot_be_is_left_out(changes: dict[str, Any], member: str, kept: object) -> None:
    seen = of_presence("w@h", presence(**changes))
    assert seen is not None
    assert getattr(seen, member) == kept


def test_answers_are_read() -> None:
    seen = of_answers(
        "w@h",
        {
            "active_queues": [*QUEUES, {"name": 7}, "q"],
            "registered": ["b [rate_limit=10/m]", "a", "celery.ping", 7],
            "stats": {"pid": 7, "uptime": 3600, "pool": {"implementation": "celery.concurrency.prefork:TaskPool"}},
            "active": [{}],
            "report": {"ok": "\nsoftware -> celery:5.4.0 (opalescent) kombu:5.4.2 py:3.11.2\n"},
        },
        NOW,
    )
    assert seen is not None
    assert (seen.queues, seen.tasks, seen.ours) == (("q",), ("a", "b"), False)
    assert (seen.pid, seen.pool, seen.software) == (7, "prefork", "py-celery 5.4.0")
    assert (seen.active, seen.reserved, seen.start_time) == (1, None, NOW - timedelta(hours=1))


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"active_queues": QUEUES},
        {"registered": ["a"]},
        {"active_queues": {"error": "x"}, "registered": ["a"]},
        {"active_queues": QUEUES, "registered": "a"},
    ],
)
def test_who_does_not_tell_its_queues_and_tasks_is_not_seen(answers: dict[str, Any]) -> None:
    assert of_answers("w@h", answers, NOW) is None


@pytest.mark.parametrize("odd", [None, 7, "x", [], {"pool": 7, "pid": [], "uptime": "x"}, {"error": "x"}])
def test_odd_figures_are_left_out(odd: Any) -> None:
    seen = of_answers("w@h", {"active_queues": QUEUES, "registered": ["a"], "stats": odd, "report": odd}, NOW)
    assert seen is not None
    assert (seen.pid, seen.start_time, seen.pool, seen.software) == (None, None, "", "")


def row(**changes: Any) -> dict[str, Any]:
    return {
        "ours": False,
        "software": "py-celery 5.7.0",
        "contracts_digest": "",
        "pid": 7,
        "start_time": NOW,
        **changes,
    }


def test_which_life_it_is() -> None:
    seen = Seen("w@h", False, ("q",), (), pid=7, start_time=NOW + timedelta(seconds=1))
    assert same_life(row(), seen), "uptimes are whole seconds"
    assert same_life(row(start_time=None), seen)
    assert not same_life(row(pid=8), seen)
    assert not same_life(row(start_time=NOW - timedelta(seconds=60)), seen), "in a container each life has pid 1"
    kept = continued(row(), seen)
    assert (kept.software, kept.start_time, kept.ours) == ("py-celery 5.7.0", NOW, False)
    ours = continued(row(ours=True, contracts_digest="abc"), seen)
    assert (ours.ours, ours.contracts_digest) == (True, "abc"), "its presence could not be read this time"


async def test_what_stands_in_redis_is_read_with_care(redis: Redis) -> None:
    await redis.set(presence_key("good@h"), presence())
    await redis.set(presence_key("bad@h"), b"\xff\x00")
    await redis.set(presence_key("wörker@h"), presence())
    assert sorted(await presences(redis)) == ["good@h", "wörker@h"]
    for digest, value in {
        "good": b'{"a": {"signature": "()", "schema": {}, "doc": null, "more": 1}, "b": 7}',
        "nul": b'{"a": {"doc": "\\u0000"}}',
        "list": b"[]",
        "broken": b"{",
        "deep": b'{"a": {"schema": ' + b"[" * 600 + b"]" * 600 + b"}}",
    }.items():
        await redis.set(f"{CONTRACTS_PREFIX}{digest}", value)
    await redis.rpush(f"{CONTRACTS_PREFIX}no_text", "x")
    found = await contracts(redis, ["good", "no_text", "nul", "list", "broken", "deep", "gone"])
    assert found == {"good": {"a": {"signature": "()", "schema": {}, "doc": None}}}
