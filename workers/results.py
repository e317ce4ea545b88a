"""Whether what a body returned can be its result: JSON, and no larger than a worker may send.

Celery's own encoder decides, which also carries datetimes, UUIDs, decimals and bytes (as typed values). What it would
let pass and JSON does not know, NaN and Infinity, is refused too.
"""

import json
import math
from collections.abc import Iterator
from typing import Any, Final, TypeVar

from celery.result import ResultBase
from kombu.utils.json import JSONEncoder

T = TypeVar("T")

#: Most bytes of a result, as JSON, if a worker does not say otherwise.
LIMIT_MIB: Final = 16
#: Deeper than this nobody nests on purpose, and Python's encoder gives up not much later.
_DEPTH: Final = 500
_KEY_TYPES: Final = (str, int, float, bool, type(None))
_SHOWN: Final = 80


class ResultNotJson(Exception):
    """The body returned something that JSON cannot carry; the message says what and where."""


class ResultTooLarge(Exception):
    """The body returned more than this worker may send; the message says both figures."""


def checked(value: T, limit_bytes: int) -> T:
    """The value itself, if it can be sent as a result; ResultNotJson or ResultTooLarge if not.

    Costs one encoding in C, nothing for what has no inside.
    """
    if value is None or isinstance(value, bool | ResultBase):  # Celery stores the ids of a result of its own
        return value
    try:
        size = len(json.dumps(value, cls=JSONEncoder, allow_nan=False))
    except Exception as error:  # also whatever an object's own `__json__` raises
        raise ResultNotJson(_fault_of(value) or f"result: {type(error).__name__}: {error}") from None
    if size > limit_bytes:
        raise ResultTooLarge(f"the result has {size} bytes as JSON, and this worker may send {limit_bytes}")
    return value


def _fault_of(value: Any) -> str | None:
    """Where the first thing stands that JSON cannot carry: `result["rows"][3]: set cannot be JSON`."""
    try:
        return next(_faults(value, "result", []), None)
    except Exception:  # an object that cannot even be looked at
        return None


def _faults(value: Any, place: str, around: list[int]) -> Iterator[str]:
    if isinstance(value, float) and not math.isfinite(value):
        yield f"{place}: {value!r} cannot be JSON"
    elif isinstance(value, dict | list | tuple):
        if id(value) in around:
            yield f"{place}: {_name(value)} that contains itself cannot be JSON"
            return
        if len(around) > _DEPTH:
            yield f"result: nested more than {_DEPTH} levels deep"
            return
        around.append(id(value))
        for key, member in value.items() if isinstance(value, dict) else enumerate(value):
            if not isinstance(key, _KEY_TYPES):
                yield f"{place}: a key that is {_name(key)} cannot be JSON"
            yield from _faults(member, f"{place}[{json.dumps(key)[:_SHOWN]}]", around)
        around.pop()
    elif not isinstance(value, str | int | float | None):
        try:
            carried: Any = JSONEncoder().default(value)  # type: ignore[no-untyped-call]
        except TypeError:
            yield f"{place}: {_name(value)} cannot be JSON"
        except Exception as error:
            yield f"{place}: {_name(value)} cannot be JSON: {type(error).__name__}: {error}"
        else:
            yield from _faults(carried, place, [*around, id(value)])


def _name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
