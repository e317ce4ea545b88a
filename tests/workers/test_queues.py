"""Our worker consumes what others made, as it is, and waits for what is not there yet."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.processes import wait_until
from tests.workers.conftest import PlaneOn, StartWorker
from tests.workers.plane import Plane, lines
from workers.protocol import presence_key


@contextmanager
def channel_of(plane: Plane) -> Iterator[Any]:
    with plane.celery.connection_for_write() as connection, connection.channel() as channel:
        yield channel


def consumed(plane: Plane, nodename: str = "w@test") -> list[str]:
    value = plane.redis.get(presence_key(nodename))
    queues: list[str] = json.loads(value)["queues"] if value else []
    return queues


def test_queues_of_every_kind_and_those_that_come_later(
    amqp_url: str, redis_url: str, tmp_path: Path, start_worker: StartWorker, plane_on: PlaneOn
) -> None:
    plane = plane_on(amqp_url, redis_url)
    kinds: dict[str, dict[str, Any]] = {
        "quorum": {"x-queue-type": "quorum", "x-delivery-limit": 5},
        "classic": {},
        "limited": {"x-max-priority": 5, "x-max-length": 1000},
    }
    with channel_of(plane) as channel:
        for name, arguments in kinds.items():
            channel.queue_declare(queue=name, durable=True, auto_delete=False, arguments=arguments)
        channel.exchange_declare("theirs", "topic", durable=True, auto_delete=False)
        channel.queue_bind("quorum", exchange="theirs", routing_key="a.#")

    worker = start_worker(amqp_url, redis_url, "-c", "2", queues="missing,quorum,classic,limited")
    assert worker.wait_for_line("queue_missing")
    for name in kinds:
        task_id = plane.send("sample.steps", str(tmp_path / name), 1, 0, queue=name)
        plane.wait_for(task_id, "SUCCESS")
    wait_until(lambda: consumed(plane) == ["classic", "limited", "quorum"], 30, "presence names what is consumed")

    with channel_of(plane) as channel:
        channel.queue_declare(queue="missing", durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
    task_id = plane.send("sample.steps", str(tmp_path / "missing"), 1, 0, queue="missing")
    plane.wait_for(task_id, "SUCCESS")

    # A queue that is deleted costs the others nothing, neither those that run nor those that wait.
    running = plane.send("sample.steps", str(tmp_path / "running"), 15, 0.1, queue="classic")
    plane.wait_for(running, "STARTED")
    with channel_of(plane) as channel:
        channel.queue_delete("limited")
    worker.wait_for_line("queue_gone")
    after = plane.send("sample.steps", str(tmp_path / "after"), 1, 0, queue="quorum")
    plane.wait_for(after, "SUCCESS")
    plane.wait_for(running, "SUCCESS")
    assert len(lines(tmp_path / "running", "start")) == 1
    with channel_of(plane) as channel:
        channel.queue_declare(queue="limited", durable=True, auto_delete=False)
    again = plane.send("sample.steps", str(tmp_path / "again"), 1, 0, queue="limited")
    plane.wait_for(again, "SUCCESS")
    assert "Trying to re-establish" not in worker.output()


def test_prefetch_is_what_runs_at_once(
    amqp_url: str, redis_url: str, tmp_path: Path, start_worker: StartWorker, plane_on: PlaneOn
) -> None:
    """What a worker cannot run now waits in the queue, where another worker gets it."""
    plane = plane_on(amqp_url, redis_url)
    with channel_of(plane) as channel:
        channel.queue_declare(queue="work", durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"})
    go = tmp_path / "go"
    sent = [plane.send("sample.steps", str(tmp_path / f"{n}"), 1, 0, None, str(go), queue="work") for n in range(4)]
    with channel_of(plane) as channel:

        def waiting() -> int:
            return int(channel.queue_declare(queue="work", passive=True).message_count)

        wait_until(lambda: waiting() == 4, 30, "all are in the queue")
        start_worker(amqp_url, redis_url, "-c", "1", name="one")
        plane.wait_for(sent[0], "STARTED")
        wait_until(lambda: waiting() == 3, 30, "one is taken in")
        go.touch()
    for task_id in sent:
        plane.wait_for(task_id, "SUCCESS")


def test_settings_name_the_queues_where_the_command_does_not(
    redis_url: str, tmp_path: Path, start_worker: StartWorker, plane_on: PlaneOn
) -> None:
    worker = start_worker(redis_url, redis_url, queues=None, pool="solo", settings={"queues": "a, b"})
    plane = plane_on(redis_url, redis_url)
    for name in ("a", "b"):
        plane.wait_for(plane.send("sample.steps", str(tmp_path / name), 1, 0, queue=name), "SUCCESS")
    assert worker.poll() is None
