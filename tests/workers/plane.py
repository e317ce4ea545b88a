"""The plane's side of a worker, as far as its tests need it: send attempts, hear reports, read leases."""

import json
import threading
import time
from datetime import datetime
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import uuid_utils
from celery import Celery
from redis import Redis

from tests.processes import wait_until
from workers.protocol import HEADER, RESULT_KEY_PREFIX, TaskId, header, lease_key


class Plane:
    """Sends messages as the dispatcher does, and hears what is reported on Redis, in order."""

    def __init__(self, broker_url: str, redis_url: str) -> None:
        self.celery = Celery("plane", broker=broker_url, set_as_current=False)
        self.url = redis_url
        self.redis: Redis = Redis.from_url(redis_url, decode_responses=True)
        self.heard: list[dict[str, Any]] = []
        self._pubsub = self.redis.pubsub(ignore_subscribe_messages=True)
        self._pubsub.psubscribe(f"{RESULT_KEY_PREFIX}*")
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def declare(self, queue: str) -> None:
        """Make a durable queue."""
        with self.celery.connection_for_write() as connection, connection.channel() as channel:
            channel.queue_declare(queue=queue, durable=True, auto_delete=False)

    def send(
        self,
        task: str,
        *args: Any,
        queue: str,
        run_id: UUID | None = None,
        attempt: int = 1,
        dispatch: int = 1,
        scheduled_time: datetime | None = None,
        **options: Any,
    ) -> TaskId:
        """Publish one attempt to a queue that exists or will."""
        task_id = TaskId(run_id or new_run(), dispatch)
        with self.celery.connection_for_write() as connection, connection.channel() as channel:
            self.celery.send_task(
                task,
                args,
                task_id=str(task_id),
                queue=queue,
                declare=[],
                headers={HEADER: header(task_id.run_id, attempt, scheduled_time)},
                ignore_result=False,
                retry=False,
                producer=self.celery.amqp.Producer(channel, auto_declare=False),
                **options,
            )
        return task_id

    def reports(self, task_id: TaskId | str) -> list[dict[str, Any]]:
        """What was said of a task so far, in order."""
        return [report for report in list(self.heard) if report["task_id"] == str(task_id)]

    def states(self, task_id: TaskId | str) -> list[str]:
        """The states that were said of a task so far, in order."""
        return [report["status"] for report in self.reports(task_id)]

    def wait_for(self, task_id: TaskId | str, state: str, timeout: float = 30) -> dict[str, Any]:
        """The first report of a state."""
        return wait_until(
            lambda: next((report for report in self.reports(task_id) if report["status"] == state), None),
            timeout,
            f"{state} of {task_id} after {self.states(task_id)}",
        )

    def stored(self, task_id: TaskId | str) -> dict[str, Any] | None:
        """What stands under the result's key."""
        value = self.redis.get(f"{RESULT_KEY_PREFIX}{task_id}")
        return json.loads(value) if value else None

    def lease(self, task_id: TaskId, attempt: int = 1, retries: int = 0) -> str | None:
        """The value of an attempt's lease."""
        value: str | None = self.redis.get(lease_key(task_id.run_id, attempt, retries))
        return value

    def set_lease(self, task_id: TaskId, value: str, attempt: int = 1) -> None:
        """Take the key, as a canceller or reaper does."""
        self.redis.set(lease_key(task_id.run_id, attempt, 0), value, px=60_000)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(5)
        self._pubsub.close()
        self.redis.close()
        self.celery.close()

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                message = self._pubsub.get_message(timeout=0.2)
            except Exception:
                time.sleep(0.1)  # Redis is away; the client subscribes again by itself
                continue
            if message and message["type"] == "pmessage":
                self.heard.append(json.loads(message["data"]))


def new_run() -> UUID:
    """A run's id."""
    return UUID(str(uuid_utils.uuid7()))


def lines(path: Path, word: str = "") -> list[str]:
    """The witness's lines that begin with a word."""
    return [line for line in path.read_text().splitlines() if line.startswith(word)] if path.exists() else []
