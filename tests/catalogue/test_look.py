"""The catalogue on real workers: ours and stock ones, on Valkey and on RabbitMQ."""

import asyncio
from datetime import timedelta
from typing import Any

from structlog.testing import capture_logs

from tests.catalogue.conftest import Rig
from tests.processes import eventually
from workers.protocol import CONTRACTS_PREFIX

OURS = {"files.digest", "sample.fail", "sample.sleep"}


async def looked_until(rig: Rig, catalogue: Any, queue: str, **facts: Any) -> dict[str, Any]:
    """The sighting of a queue, once it says this."""

    async def seen() -> dict[str, Any] | None:
        await catalogue.run_once()
        found = await rig.sighting(queue)
        return found if all(found.get(name) == value for name, value in facts.items()) else None

    found = await eventually(seen, 60, f"{queue} with {facts}")
    assert found is not None
    return found


async def a_job(rig: Rig, queue: str, task: str) -> None:
    await rig.execute(
        """
        INSERT INTO jobs (id, namespace, name, task, queue, trigger, retry, author, cursor_time, overlap, misfire,
            catchup_window_s)
        VALUES (gen_random_uuid(), 'default', $1, $1, $2, '{}', '{}', 't', date_trunc('second', now()), 'skip',
            'latest', 60)
        """,
        task,
        queue,
    )


async def test_workers_and_the_queues_that_they_consume_are_seen(rig: Rig) -> None:
    """Ours beside a thief on one queue, a stock worker alone on another, nobody on the third.

    A worker that answers in pickle is not listened to, and stops nobody else.
    """
    for name in ("shared", "theirs", "nobody"):
        await rig.queue(name)
    await a_job(rig, "shared", "sample.sleep")
    rig.ready(
        rig.stock("odd", "elsewhere", "svc.odd", serializer="pickle"),
        rig.stock("thief", "shared", "svc.other"),
        rig.stock("svc", "theirs", "svc.add", "svc.mul", pool="threads"),
        rig.ours("mine", "shared"),
    )
    catalogue = rig.catalogue()

    with capture_logs() as logs:
        shared = await looked_until(rig, catalogue, "shared", workers=["mine@test", "thief@test"], consumers=2)
    assert {"svc.other", *OURS} <= set(shared["known_tasks"])
    assert shared["common_tasks"] == []
    thieves = [line for line in logs if line["event"] == "workers_of_a_queue_differ"]
    assert [(line["queue"], line["node"], line["lacks"]) for line in thieves] == [
        ("shared", "thief@test", ["sample.sleep"])
    ]
    theirs = await looked_until(rig, catalogue, "theirs", workers=["svc@test"], consumers=1)
    assert theirs["known_tasks"] == theirs["common_tasks"] == ["svc.add", "svc.mul"]
    nobody = await rig.sighting("nobody")
    assert nobody["workers"] == []
    assert (nobody["known_tasks"], nobody["common_tasks"]) == (None, None)

    mine, svc = await rig.worker("mine"), await rig.worker("svc")
    assert mine is not None
    assert svc is not None
    assert await rig.worker("odd") is None
    assert (mine["ours"], mine["queues"], mine["pool"], mine["concurrency"]) == (True, ["shared"], "prefork", 1)
    assert (mine["active"], mine["reserved"]) == (0, 0)
    assert set(mine["tasks"]) >= OURS
    assert mine["contracts"].keys() == set(mine["tasks"])
    assert mine["contracts"]["sample.sleep"]["signature"] == "(path: str, seconds: float) -> str"
    key = f"{CONTRACTS_PREFIX}{mine['contracts_digest']}"
    assert 23 * 3600 < await rig.redis.ttl(key) <= 24 * 3600
    async with rig.database.reading() as connection:
        problem = await connection.fetchval("SELECT contract_problem FROM jobs")
    assert problem == "/kwargs/path: is required; /kwargs/seconds: is required", "the job has no arguments"
    assert not any(task.startswith("celery.") for task in mine["tasks"])
    assert (svc["ours"], svc["queues"], svc["tasks"]) == (False, ["theirs"], ["svc.add", "svc.mul"])
    assert (svc["pool"], svc["concurrency"], svc["contracts"]) == ("threads", 1, {})

    # Asked once it is known: which version it is, and what it is at.
    async def asked_more() -> dict[str, Any] | None:
        await catalogue.run_once()
        found = await rig.worker("svc")
        told = found and found["software"] and None not in (found["active"], found["reserved"])
        return found if told else None

    with capture_logs() as logs:
        again = await eventually(asked_more, 60, "the version of a stock worker")
    assert again is not None
    assert again["software"].startswith("py-celery 5.")
    assert (again["active"], again["reserved"]) == (0, 0)
    assert again["first_seen_time"] == svc["first_seen_time"], "it is the same life"
    assert again["start_time"] == svc["start_time"]
    events = {line["event"] for line in logs}
    assert not events & {"worker_seen", "queue_consumers_changed", "workers_of_a_queue_differ"}, "nothing changed"


async def test_a_worker_that_went_and_one_that_came_back(rig: Rig) -> None:
    await rig.queue("theirs")
    await rig.queue("mine")
    catalogue = rig.catalogue()
    worker = rig.stock("svc", "theirs", "svc.add")
    ours = rig.ours("mine", "mine", pool="solo")
    rig.ready(worker, ours)
    await looked_until(rig, catalogue, "mine", workers=["mine@test"])
    await looked_until(rig, catalogue, "theirs", workers=["svc@test"])
    first = await rig.worker("svc")
    ours.stop()
    gone = await looked_until(rig, catalogue, "mine", workers=[], consumers=0)
    assert gone["known_tasks"] is None
    worker.stop()
    # What was seen lately counts as live; only RabbitMQ knows at once that nobody consumes.
    await rig.execute("UPDATE workers SET seen_time = seen_time - interval '40 s'")
    gone = await looked_until(rig, catalogue, "theirs", workers=[], consumers=0)
    assert gone["known_tasks"] is None
    assert await rig.worker("svc") is not None, "shown for an hour"

    rig.ready(rig.stock("svc2", "theirs", "svc.mul", node="svc"))
    await looked_until(rig, catalogue, "theirs", known_tasks=["svc.mul"])
    second = await rig.worker("svc")
    assert first is not None
    assert second is not None
    assert second["first_seen_time"] > first["first_seen_time"], "another life under the same name"
    await rig.execute("UPDATE workers SET seen_time = seen_time - interval '61 min' WHERE node = 'mine@test'")
    await catalogue.run_once()
    assert await rig.worker("mine") is None


async def test_a_worker_that_is_busy_or_not_known_holds_nothing_back(rig: Rig) -> None:
    """A stock solo worker answers nothing while it is at a task: it stays what it was last seen as."""
    await rig.queue("theirs")
    await rig.queue("mine")
    catalogue = rig.catalogue()
    rig.ready(rig.stock("svc", "theirs", "svc.wait"), rig.ours("mine", "mine", pool="solo"))
    await looked_until(rig, catalogue, "theirs", workers=["svc@test"])
    await looked_until(rig, catalogue, "mine", workers=["mine@test"])
    before = await rig.worker("svc")
    begun = [rig.folder / "svc-begun", rig.folder / "mine-begun"]
    rig.send("svc.wait", "theirs", str(begun[0]), 60)
    rig.send("sample.sleep", "mine", str(begun[1]), 60)

    async def at_it() -> bool:
        return all(path.exists() for path in begun)

    await eventually(at_it, 60, "both at their tasks")
    busy = await looked_until(rig, catalogue, "theirs", workers=["svc@test"])
    assert busy["known_tasks"] == ["svc.wait"]
    after = await rig.worker("svc")
    assert before is not None
    assert after is not None
    assert after["seen_time"] - before["seen_time"] < timedelta(seconds=30)

    # Ours says in its presence that it lives and how busy it is.
    async def said() -> bool:
        await catalogue.run_once()
        mine = await rig.worker("mine")
        return mine is not None and mine["active"] == 1

    await eventually(said, 60, "a busy worker of ours")
    # Silent for too long, or never heard: nobody says that it does not know a task.
    await rig.execute("UPDATE workers SET seen_time = seen_time - interval '40 s' WHERE node = 'svc@test'")
    await catalogue.run_once()
    unknown = await rig.sighting("theirs")
    assert (unknown["workers"], unknown["known_tasks"], unknown["common_tasks"]) == ([], None, None)
    assert unknown["consumers"] == (1 if rig.on_rabbitmq else 0)


async def test_one_looks_at_a_time_and_a_broker_that_is_away_empties_nothing(rig: Rig) -> None:
    await rig.queue("theirs")
    rig.ready(rig.stock("svc", "theirs", "svc.add"))
    one, two = rig.catalogue("one"), rig.catalogue("two")
    await looked_until(rig, one, "theirs", workers=["svc@test"])
    before = await rig.sighting("theirs")
    await two.run_once()
    assert await rig.sighting("theirs") == before, "the first holds the lease"
    await one.close()
    await two.run_once()
    later = await rig.sighting("theirs")
    assert later["look_time"] > before["look_time"]
    await two.close()

    scheme, _, rest = rig.broker_url.partition("://")
    away = rig.catalogue("three", f"{scheme}://{rest.rpartition('@')[0]}@127.0.0.1:1/{rest.rpartition('/')[2]}")
    async with asyncio.timeout(30):
        assert await away.run_once() is False
    assert await rig.sighting("theirs") == later
    assert await rig.worker("svc") is not None
