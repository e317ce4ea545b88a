"""Instants, durations and names as they stand in sentences. Pure."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

_MOST_NAMES: Final = 3
#: Each unit is used until it would say two of the next one.
_UNITS: Final = (("second", 1, 120), ("minute", 60, 7200), ("hour", 3600, 172_800), ("day", 86_400, None))


def instant(time: datetime) -> str:
    """RFC 3339 in UTC, whole seconds: `2026-11-22T18:00:00Z`."""
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def duration(span: timedelta) -> str:
    """A span in its best unit: `8 minutes`; a negative one counts as none."""
    seconds = max(span.total_seconds(), 0)
    if seconds < 1:
        return "less than a second"
    for name, size, bound in _UNITS:
        if bound is None or seconds < bound:
            count = int(seconds // size)
            return f"{count} {name}{'' if count == 1 else 's'}"
    raise AssertionError


def few(names: Sequence[str]) -> str:
    """Names for a sentence, the first three of them."""
    more = len(names) - _MOST_NAMES
    shown = ", ".join(names[:_MOST_NAMES])
    return f"{shown} and {more} more" if more > 0 else shown


def counted(count: int, singular: str, plural: str) -> str:
    """`1 run`, `3 runs`."""
    return f"{count} {singular if count == 1 else plural}"
