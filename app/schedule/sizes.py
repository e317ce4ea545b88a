"""How much a task may be called with. Pure."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from app.errors import Invalid

#: What Celery puts behind args and kwargs into each message.
_EMBED: Final[dict[str, None]] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}


def check_arguments(args: Sequence[Any], kwargs: Mapping[str, Any], limit_kib: int) -> None:
    """Invalid if what a task is called with takes more than the limit as JSON; names the larger of the two."""
    sizes = _sizes(args, kwargs)
    if sum(sizes.values()) > limit_kib * 1024:
        raise _too_large(sizes, f"args and kwargs take {sum(sizes.values())} bytes as JSON", limit_kib, "")


def check_message(args: Sequence[Any], kwargs: Mapping[str, Any], limit_kib: int, queue: str) -> None:
    """Invalid if the message for this queue would be larger than the queue's limit; names the larger of the two."""
    size = message_bytes(args, kwargs)
    if size > limit_kib * 1024:
        sizes = _sizes(args, kwargs)
        raise _too_large(sizes, f"the message takes {size} bytes", limit_kib, f" on the queue {queue!r}")


def message_bytes(args: Sequence[Any], kwargs: Mapping[str, Any]) -> int:
    """The size of the body that `app.dispatch.message` makes: ASCII, so a character beyond it takes six bytes."""
    return len(json.dumps([args, kwargs, _EMBED]))


def _sizes(args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, int]:
    return {"/args": len(orjson.dumps(args)), "/kwargs": len(orjson.dumps(kwargs))}


def _too_large(sizes: Mapping[str, int], what: str, limit_kib: int, where: str) -> Invalid:
    pointer = max(sizes, key=lambda name: sizes[name])
    advice = "store large data elsewhere and pass a reference"
    return Invalid.field(pointer, f"{what}, more than the {limit_kib} KiB allowed{where}; {advice}")
