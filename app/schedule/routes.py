"""Which queues a message reaches: a route of the plane must reach exactly one. Pure."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final, Self

from app.errors import Invalid

#: Most queues that a refusal names.
_NAMED: Final = 5


@dataclass(frozen=True, slots=True)
class Binding:
    """A queue and what brings messages to it."""

    name: str
    exchange: str
    exchange_type: str
    routing_key: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        return cls(**{field.name: row[field.name] for field in fields(cls)})


def topic_matches(pattern: str, key: str) -> bool:
    """Whether a topic exchange hands a message with this key to a queue that is bound with this pattern.

    Words are parted by dots; `*` stands for one word, `#` for any number of them, also none.
    """
    reached = {0}
    words = _words(key)
    for part in _words(pattern):
        if part == "#":
            reached = set(range(min(reached), len(words) + 1)) if reached else set()
        else:
            reached = {at + 1 for at in reached if at < len(words) and part in {"*", words[at]}}
    return len(words) in reached


def _words(key: str) -> list[str]:
    return key.split(".") if key else []


def has_wildcard(pattern: str) -> bool:
    """Whether a topic pattern stands for more than one key."""
    return re.search(r"(?:^|\.)[*#](?:\.|$)", pattern) is not None


def check_route(new: Binding, others: Iterable[Binding]) -> None:
    """Invalid if a message for `new` would reach another queue too, or one of theirs would reach `new`.

    `others` are the queues of the same exchange. The default exchange has a route of its own for each queue.
    """
    if not new.exchange:
        return
    rest = [other for other in others if other.name != new.name]
    strangers = [other for other in rest if other.exchange_type != new.exchange_type]
    if strangers:
        raise Invalid.field(
            "/exchange_type",
            f"an exchange has one type, and {new.exchange!r} is {strangers[0].exchange_type} for {_names(strangers)}",
        )
    if new.exchange_type == "topic" and has_wildcard(new.routing_key):
        raise Invalid.field(
            "/routing_key", "is also what the plane publishes with, so it must name one route: no * and no #"
        )
    met = [other for other in rest if _meet(new, other)]
    if met and new.exchange_type == "fanout":
        raise Invalid.field(
            "/exchange", f"is a fanout exchange, which reaches every queue bound to it, and so also {_names(met)}"
        )
    if met:
        raise Invalid.field(
            "/routing_key", f"a route must reach one queue, and this one of {new.exchange!r} also meets {_names(met)}"
        )


def _meet(one: Binding, other: Binding) -> bool:
    if one.exchange_type == "fanout":
        return True
    if one.exchange_type == "topic":
        return topic_matches(one.routing_key, other.routing_key) or topic_matches(other.routing_key, one.routing_key)
    return one.routing_key == other.routing_key


def _names(queues: list[Binding]) -> str:
    named = ", ".join(repr(queue.name) for queue in queues[:_NAMED])
    more = f" and {len(queues) - _NAMED} more" if len(queues) > _NAMED else ""
    return f"the queue{'s' if len(queues) > 1 else ''} {named}{more}"
