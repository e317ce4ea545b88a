"""The Celery message of one dispatch, built by Celery's own code: any stock worker can run it.

Protocol 2: the task's name and options in the headers, `[args, kwargs, embed]` as a JSON body. No ETA or countdown, for
waiting happens in the database; argument values in the body only, because headers end up in logs. `expires` is the
start deadline, for stock workers: they give up a message that they come to too late. The broker knows nothing of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from celery import Celery
from kombu.serialization import dumps

from workers.protocol import HEADER, TaskId, header

_HIDDEN: Final = "<hidden>"
_DURABLE: Final = 2

#: Makes messages and does nothing else: no broker, no result backend (one would subscribe for each message).
_app = Celery("jobplane", backend="disabled://", set_as_current=False, fixups=[])
_app.conf.task_create_missing_queues = False


@dataclass(frozen=True, slots=True)
class Message:
    """What goes to a queue: on RabbitMQ to (exchange, routing key), on Redis to the list named as the queue."""

    run_id: UUID
    #: The number of this dispatch of its run.
    dispatch: int
    queue: str
    exchange: str
    routing_key: str
    body: bytes
    content_type: str
    content_encoding: str
    headers: dict[str, Any]
    reply_to: str
    #: As the broker orders it: RabbitMQ takes the greatest first, Redis the least. None: the broker's default.
    priority: int | None
    delivery_mode: int = _DURABLE

    @property
    def task_id(self) -> str:
        """Celery's id of the task: `<run id>.<n>`."""
        return str(TaskId(self.run_id, self.dispatch))


def message_of(run: Mapping[str, Any], reply_to: str = "") -> Message:
    """The message of a claimed run: a row of `runs` with `exchange` and `routing_key` of its queue.

    `reply_to` names the queue for workers whose results are `rpc://`; where it is empty, they say nothing to anybody.
    Raises whatever Celery and its JSON encoder raise for a value that cannot be sent.
    """
    task_id = TaskId(UUID(int=run["id"].int), run["dispatches"] + 1)
    task = _app.amqp.as_task_v2(
        str(task_id),
        run["task"],
        args=run["args"],
        kwargs=run["kwargs"],
        retries=run["retries"],
        expires=_expires(run),
        time_limit=run["time_limit_s"],
        soft_time_limit=run["soft_time_limit_s"],
        argsrepr=_HIDDEN,
        kwargsrepr=_HIDDEN,
        ignore_result=False,
        origin="jobplane",
    )
    content_type, content_encoding, body = dumps(task.body, "json")  # type: ignore[no-untyped-call]  # kombu is half typed
    return Message(
        run_id=task_id.run_id,
        dispatch=task_id.dispatch,
        queue=run["queue"],
        exchange=run["exchange"],
        routing_key=run["routing_key"],
        body=body.encode(),
        content_type=content_type,
        content_encoding=content_encoding,
        headers={**task.headers, HEADER: header(task_id.run_id, run["attempt"], run["scheduled_time"])},
        reply_to=reply_to,
        priority=run["priority"],
    )


def _expires(run: Mapping[str, Any]) -> datetime | None:
    """By when a worker must have begun it. Who was begun once before has met its start deadline."""
    first = run["attempt"] == 1 and run["retries"] == 0
    return run["start_deadline_time"] if first else None


def too_large(message: Message, limit_kib: int | None) -> str | None:
    """Why the message may not go to a queue with this limit; None if it may."""
    if limit_kib is None or len(message.body) <= limit_kib * 1024:
        return None
    kib = -(-len(message.body) // 1024)
    return f"the message of {kib} KiB is larger than the queue's limit of {limit_kib} KiB"
