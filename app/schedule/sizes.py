"""How much a task may be called with. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any

import orjson

from app.errors import Invalid


def check_arguments(args: Sequence[Any], kwargs: Mapping[str, Any], limit_kib: int, whose: str = "") -> None:
    """Invalid if what a task is called with takes more than the limit as JSON; names the larger of the two.

    `whose` limit it is, if not the plane's: a phrase that follows "allowed".
    """
    sizes = {"/args": len(orjson.dumps(args)), "/kwargs": len(orjson.dumps(kwargs))}
    if sum(sizes.values()) > limit_kib * 1024:
        pointer = max(sizes, key=lambda name: sizes[name])
        raise Invalid.field(
            pointer,
            f"args and kwargs take {sum(sizes.values())} bytes as JSON, more than the {limit_kib} KiB allowed"
            f"{f' {whose}' if whose else ''}; store large data elsewhere and pass a reference",
        )
