"""Queues: where runs go."""

import re
from datetime import datetime
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

from app.api.schemas.fields import DAY_S, Count, Flag, In, Name, Out, Text
from app.models.jobs import RATE_PATTERN

EXAMPLE_QUEUE: dict[str, Any] = {
    "name": "game_community_default",
    "namespace": "game_community",
    "exchange": "game_community",
    "exchange_type": "direct",
    "routing_key": "game_community_default",
}
EXAMPLE_QUEUE_OUT: dict[str, Any] = {
    **EXAMPLE_QUEUE,
    "type": "classic",
    "max_priority": None,
    "delivery_limit": None,
    "dead_letter": False,
    "max_message_kib": None,
    "consumer_timeout_s": None,
    "result_db": None,
    "result_prefix": "",
    "max_active": 10,
    "rate_limit": None,
    "shared_with": [],
    "paused": False,
    "description": "",
    "declare_time": "2026-02-01T08:00:00.500000Z",
    "adopted": True,
    "problem": None,
    "backlog": {
        "ready": 12,
        "consumers": 2,
        "waiting_runs": 14,
        "places_taken": 10,
        "oldest_run": {
            "id": "019a8b7e-6c5d-7000-8000-000000000000",
            "create_time": "2026-02-01T08:00:00Z",
            "reason": None,
        },
        "problem": None,
    },
    "author": "anonymous",
    "version": 1,
    "create_time": "2026-02-01T08:00:00Z",
    "update_time": "2026-02-01T08:00:00Z",
}

#: What AMQP takes for a routing key, without control characters.
_AMQP_NAME = Annotated[
    str, StringConstraints(strict=True, min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")
]
#: What AMQP clients take for the name of an exchange.
_EXCHANGE = Annotated[str, StringConstraints(strict=True, max_length=127, pattern=r"^[A-Za-z0-9_.:@#,/+ -]*$")]


def _rate(value: str) -> str:
    if not re.fullmatch(RATE_PATTERN, value):
        raise ValueError("must be a number and a second, minute or hour, such as 5/s, 100/m or 1000/h")
    return value


#: A rate as Celery writes it.
RateLimit = Annotated[
    str, StringConstraints(strict=True), AfterValidator(_rate), Field(json_schema_extra={"pattern": RATE_PATTERN})
]
_PREFIX = Annotated[str, StringConstraints(strict=True, max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")]
_KIB: Final = 128 * 1024


#: On Redis a queue is a key of its name, beside those of kombu, Celery and the plane itself.
_RESERVED: Final = ("amq.", "unacked", "_kombu", "celery-task-meta-", "celery-taskset-meta-", "celeryev", "jobplane:")


class QueueIn(In):
    """A queue to be known to the plane: one that exists is used as it is, another one is declared."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_QUEUE]})

    name: Name = Field(description="unique on the plane")
    namespace: Name = Field("default", description="the owner: jobs of other namespaces need to be in `shared_with`")
    exchange: _EXCHANGE | None = Field(
        None, validate_default=True, description="the queue's name if left out; empty: the default exchange"
    )
    exchange_type: Literal["direct", "topic", "fanout"] = "direct"
    routing_key: _AMQP_NAME | None = Field(
        None, validate_default=True, description="the queue's name if left out; a route must reach one queue alone"
    )
    type: Literal["classic", "quorum"] = Field("classic", description="of a queue that the plane declares")
    max_priority: Annotated[Count, Field(ge=1, le=255)] | None = Field(None, description="classic queues only")
    delivery_limit: Annotated[Count, Field(ge=1, le=1_000_000)] | None = Field(
        None, description="quorum queues only: deliveries of one message after which the broker gives it up"
    )
    dead_letter: Flag = Field(
        False, description="what the broker gives up goes to the plane's queue of dead letters, and ends its attempt"
    )
    max_message_kib: Annotated[Count, Field(ge=1, le=_KIB)] | None = Field(
        None, description="most KiB that the body of a message may take"
    )
    consumer_timeout_s: Annotated[Count, Field(ge=60, le=366 * DAY_S)] | None = Field(
        None, description="how long the broker lets a worker keep a message; a job's `time_limit_s` must be less"
    )
    result_db: Annotated[Count, Field(ge=0, le=32767)] | None = Field(
        None, description="database of the plane's Redis where stock workers of this queue keep results, if another one"
    )
    result_prefix: _PREFIX = Field("", description="Celery's `global_keyprefix` of those results")
    max_active: Annotated[Count, Field(ge=1, le=100_000)] | None = Field(
        None, description="most runs that have been sent to it and have not ended; others wait, with the reason"
    )
    rate_limit: RateLimit | None = Field(
        None, description="most runs that are sent to it in any second, minute or hour: `5/s`, `100/m`, `1000/h`"
    )
    shared_with: list[Name] = Field(
        default_factory=list, max_length=200, description="other namespaces whose jobs may use it"
    )
    paused: Flag = Field(False, description="runs for a paused queue wait, with the reason")
    description: Text = ""

    @field_validator("name", "exchange")
    @classmethod
    def _not_reserved(cls, value: str | None) -> str | None:
        if value is not None and value.startswith(_RESERVED):
            raise ValueError("names that begin so belong to the broker, to Celery or to the plane")
        return value

    @field_validator("exchange_type")
    @classmethod
    def _direct_by_default(cls, value: str, info: ValidationInfo) -> str:
        if value != "direct" and info.data.get("exchange") == "":
            raise ValueError("must be direct: the default exchange is")
        return value

    @field_validator("routing_key")
    @classmethod
    def _name_by_default(cls, value: str | None, info: ValidationInfo) -> str | None:
        if info.data.get("exchange") == "" and value not in {None, info.data.get("name")}:
            raise ValueError("must be the queue's name: the default exchange knows no other")
        return value

    @field_validator("delivery_limit")
    @classmethod
    def _quorum_only(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("type") == "classic":
            raise ValueError("only quorum queues count deliveries")
        return value

    @field_validator("max_priority")
    @classmethod
    def _classic_only(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("type") == "quorum":
            raise ValueError("only classic queues have a greatest priority")
        return value

    @field_validator("shared_with")
    @classmethod
    def _once_each(cls, value: list[str]) -> list[str]:
        return sorted(set(value))

    def columns(self) -> dict[str, Any]:
        """The row, with the defaults that depend on the name."""
        row = {name: getattr(self, name) for name in QueueIn.model_fields}
        exchange = self.name if self.exchange is None else self.exchange
        return {**row, "exchange": exchange, "routing_key": self.routing_key or self.name}


class OldestOut(Out):
    """The run that has waited longest."""

    id: UUID
    create_time: datetime
    reason: str | None


class BacklogOut(Out):
    """What waits for a queue, as of now."""

    ready: int | None = Field(description="messages on the broker that no worker has; null: it could not be asked")
    consumers: int | None = Field(description="on Redis: known live workers, for the broker does not count")
    waiting_runs: int = Field(description="runs that no worker has begun, dispatched or not; at most 100000")
    places_taken: int | None = Field(
        description="runs that count for `max_active`: sent, or about to be, and not ended; null: there is no limit"
    )
    oldest_run: OldestOut | None
    problem: str | None = Field(description="why the broker could not be asked")


class QueueOut(Out):
    """A queue and how it stands on the broker."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_QUEUE_OUT]})

    name: str
    namespace: str
    exchange: str
    exchange_type: str
    routing_key: str
    type: str
    max_priority: int | None
    delivery_limit: int | None
    dead_letter: bool
    max_message_kib: int | None
    consumer_timeout_s: int | None
    result_db: int | None
    result_prefix: str
    max_active: int | None
    rate_limit: str | None
    shared_with: list[str]
    paused: bool
    description: str
    declare_time: datetime | None = Field(description="when it was found or made on the broker; null: not yet")
    adopted: bool | None = Field(description="whether it was there before the plane: then it is used as it is")
    problem: str | None = Field(description="what is wrong with it on the broker")
    backlog: BacklogOut | None = Field(description="only where one queue is asked for")
    author: str
    version: int = Field(description="raised by each change of the definition; also the ETag")
    create_time: datetime
    update_time: datetime


class QueuePage(Out):
    """One page of queues, in the order of their names."""

    items: list[QueueOut]
    next_cursor: str | None


class PurgeOut(Out):
    """What a purge did."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"purged": 17, "left": 3}]})

    purged: int = Field(description="messages of the plane that were taken off the queue")
    left: int = Field(description="messages that are still there: of others, or more than one purge looks at")
