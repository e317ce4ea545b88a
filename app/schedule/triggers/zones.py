"""Time zones as stretches of constant UTC offset. Instants and walls are whole seconds since 1970.

A wall is what a clock on the wall shows, counted as if it were UTC: `wall = instant + offset`. Zones come from the
`tzdata` wheel and never from the machine, so that all schedulers agree.
"""

import difflib
import zoneinfo
from bisect import bisect_right
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata, resources
from time import gmtime
from typing import Final

zoneinfo.reset_tzpath(to=())
zoneinfo.ZoneInfo.clear_cache()

TZDATA_VERSION: Final = metadata.version("tzdata")
ZONES: Final = frozenset((resources.files("tzdata") / "zones").read_text(encoding="utf-8").split())

DAY: Final = 86_400
#: No zone has changed twice within less than 6.95 days since 1970, so samples this far apart see every change.
_SAMPLE: Final = 4 * DAY


@dataclass(frozen=True, slots=True)
class Stretch:
    """Instants from `start` up to but without `end` share `offset`; `before` is the offset that ended at `start`.

    A stretch may end where its year ends although the offset goes on; where it starts is always a change, or nothing
    changed for a year.
    """

    start: int
    end: int
    offset: int
    before: int

    @property
    def gap(self) -> bool:
        """Whether the clock was put forward at `start`: the walls from `start + before` on were left out."""
        return self.before < self.offset

    def repeats(self, instant: int) -> bool:
        """Whether `instant`, in this stretch, shows a wall that was shown before the clock was put back."""
        return instant < self.start + self.before - self.offset


def stretch(zone: str, instant: int) -> Stretch:
    """The stretch of `zone`, a name in `ZONES`, that holds `instant`."""
    starts, stretches = _year(zone, gmtime(instant).tm_year)
    return stretches[bisect_right(starts, instant) - 1]


def instant_of(zone: str, wall: int) -> int:
    """The first instant that shows `wall`; for a wall that was left out, the first instant after the gap.

    Never decreases as `wall` grows, and never asks `zoneinfo` for a wall, because it answers a gap in silence.
    """
    here = stretch(zone, wall - DAY)
    while wall - here.offset >= here.end:
        here = stretch(zone, here.end)
    return max(wall - here.offset, here.start)


def latest_wall(zone: str, instant: int) -> int:
    """The greatest wall whose `instant_of` is not after `instant`."""
    here = stretch(zone, instant)
    return here.start + here.before - 1 if here.repeats(instant) else instant + here.offset


def nearest(name: str) -> str | None:
    """The zone that somebody who wrote `name` may have meant."""
    folded = {zone.casefold(): zone for zone in ZONES}
    close = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.8)
    return folded[close[0]] if close else None


@lru_cache(maxsize=8192)
def _year(zone: str, year: int) -> tuple[list[int], list[Stretch]]:
    """The stretches that reach into a year (UTC), and from where in the year each of them holds."""
    first, end = _new_year(year), _new_year(year + 1)
    changes = _changes(zone, year)
    holds_from = changes if changes and changes[0] == first else [first, *changes]
    starts = list(holds_from)
    if holds_from is not changes:
        starts[0] = next(reversed(_changes(zone, year - 1)), _new_year(year - 1))
    ends = [*holds_from[1:], end]
    stretches = [
        Stretch(start, stop, _offset(zone, stop - 1), _offset(zone, start - 1))
        for start, stop in zip(starts, ends, strict=True)
    ]
    return holds_from, stretches


@lru_cache(maxsize=8192)
def _changes(zone: str, year: int) -> list[int]:
    """The first instants of every new offset within a year."""
    changes = []
    last = _new_year(year + 1) - 1
    left = _new_year(year) - 1
    while left < last:
        right = min(left + _SAMPLE, last)
        old = _offset(zone, left)
        if _offset(zone, right) != old:
            low, high = left, right
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _offset(zone, middle) == old else (low, middle)
            changes.append(high)
        left = right
    return changes


def _new_year(year: int) -> int:
    return int(datetime(year, 1, 1, tzinfo=UTC).timestamp())


def _offset(zone: str, instant: int) -> int:
    offset = datetime.fromtimestamp(instant, zoneinfo.ZoneInfo(zone)).utcoffset()
    assert offset is not None
    return int(offset.total_seconds())
