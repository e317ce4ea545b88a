"""What live workers register and consume, as it is shown."""

from datetime import datetime
from typing import Any

from pydantic import ConfigDict, Field

from app.api.schemas.fields import Out

EXAMPLE_TASK: dict[str, Any] = {
    "name": "files.digest",
    "queues": ["default"],
    "workers": ["celery@host"],
    "contract": {
        "signature": "(path: str, pattern: str = '**/*') -> dict[str, str]",
        "schema": {
            "type": "object",
            "properties": {"path": {"type": "string"}, "pattern": {"type": "string"}},
            "required": ["path"],
            "additionalProperties": False,
            "positional": ["path", "pattern"],
            "positional_only": [],
            "varargs": False,
        },
        "doc": "The SHA-256 of every file below a folder.",
    },
}
EXAMPLE_WORKER: dict[str, Any] = {
    "node": "celery@host",
    "ours": True,
    "software": "py-celery 5.7.0",
    "queues": ["default"],
    "tasks": ["files.digest", "http.request"],
    "pool": "prefork",
    "concurrency": 4,
    "active": 1,
    "reserved": 0,
    "start_time": "2026-03-01T08:00:00Z",
    "first_seen_time": "2026-03-01T08:00:03.114000Z",
    "seen_time": "2026-03-01T23:00:02.611000Z",
    "alive": True,
}


class ContractOut(Out):
    """What a task takes, told by a worker with our package."""

    # `schema` is what it is called; that pydantic's models once had a method of this name is no reason against it.
    model_config = ConfigDict(protected_namespaces=())

    signature: str | None
    schema_: Any = Field(
        alias="schema",
        description="JSON Schema of the arguments by name; `positional` names those that have a place, in order",
    )
    doc: str | None = Field(description="the first paragraph of the docstring")


class TaskOut(Out):
    """A task that live workers register."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_TASK]})

    name: str
    queues: list[str] = Field(description="which its workers consume")
    workers: list[str] = Field(description="the nodes that register it")
    contract: ContractOut | None = Field(description="of the newest of them that told one; null: stock workers only")


class TaskPage(Out):
    """One page of tasks, in the order of their names."""

    items: list[TaskOut]
    next_cursor: str | None


class WorkerOut(Out):
    """A Celery worker, as it was last seen; one that is gone is shown for an hour."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_WORKER]})

    node: str
    ours: bool = Field(description="whether it runs our package: then it holds leases")
    software: str
    queues: list[str] = Field(description="which it consumes")
    tasks: list[str] = Field(description="which it registers, without Celery's own")
    pool: str
    concurrency: int | None
    active: int | None = Field(description="tasks that it is at; null: it did not say")
    reserved: int | None = Field(description="tasks that it has taken and not begun")
    start_time: datetime | None
    first_seen_time: datetime = Field(description="when this life of it was first seen")
    seen_time: datetime
    alive: bool = Field(description="whether it was seen in the last 30 s")


class WorkerPage(Out):
    """One page of workers, in the order of their names."""

    items: list[WorkerOut]
    next_cursor: str | None
