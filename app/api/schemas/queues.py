"""Queues: where runs go."""

from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import ConfigDict, Field, StringConstraints, ValidationInfo, field_validator

from app.api.schemas.fields import Count, Flag, In, Name, Out, Text

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
    "shared_with": [],
    "paused": False,
    "description": "",
    "declare_time": "2026-02-01T08:00:00.500000Z",
    "adopted": True,
    "problem": None,
    "author": "anonymous",
    "version": 1,
    "create_time": "2026-02-01T08:00:00Z",
    "update_time": "2026-02-01T08:00:00Z",
}

#: What AMQP takes for the name of an exchange or a routing key, without control characters.
_AMQP_NAME = Annotated[
    str, StringConstraints(strict=True, min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]*$")
]


#: On Redis a queue is a key of its name, beside those of kombu, Celery and the plane itself.
_RESERVED: Final = ("amq.", "unacked", "_kombu", "celery-task-meta-", "celery-taskset-meta-", "celeryev", "jobplane:")


class QueueIn(In):
    """A queue to be known to the plane: one that exists is used as it is, another one is declared."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE_QUEUE]})

    name: Name = Field(description="unique on the plane")
    namespace: Name = Field("default", description="the owner: jobs of other namespaces need to be in `shared_with`")
    exchange: _AMQP_NAME | None = Field(None, validate_default=True, description="the queue's name if left out")
    exchange_type: Literal["direct", "topic", "fanout"] = "direct"
    routing_key: _AMQP_NAME | None = Field(None, description="the queue's name if left out")
    type: Literal["classic", "quorum"] = Field("classic", description="of a queue that the plane declares")
    max_priority: Annotated[Count, Field(ge=1, le=255)] | None = Field(None, description="classic queues only")
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
        return {**row, "exchange": self.exchange or self.name, "routing_key": self.routing_key or self.name}


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
    shared_with: list[str]
    paused: bool
    description: str
    declare_time: datetime | None = Field(description="when it was found or made on the broker; null: not yet")
    adopted: bool | None = Field(description="whether it was there before the plane: then it is used as it is")
    problem: str | None = Field(description="what is wrong with it on the broker")
    author: str
    version: int = Field(description="raised by each change of the definition; also the ETag")
    create_time: datetime
    update_time: datetime


class QueuePage(Out):
    """One page of queues, in the order of their names."""

    items: list[QueueOut]
    next_cursor: str | None
