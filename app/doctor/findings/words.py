"""Numbers and lists as they stand in a sentence. Pure."""

from collections.abc import Iterable

_MOST = 5


def span(seconds: float) -> str:
    """A duration, as `90 s`, `30 min`, `12 h`."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size or (seconds == size and unit != "days"):
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def listed(names: Iterable[str]) -> str:
    """Names in order, the first few of many: `a, b and 3 more`."""
    known = sorted(names)
    more = len(known) - _MOST
    return ", ".join(known) if more <= 0 else f"{', '.join(known[:_MOST])} and {more} more"


def counted(count: int, one: str, many: str) -> str:
    return f"{count} {one if count == 1 else many}"
