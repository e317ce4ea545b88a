"""How fast a run advances, and how long it may still take: out of what is heard of it, and when. Pure.

The first seconds count as their mean, later ones ever less the older they are. What was measured from is kept beside
the progress that it belongs to (`PACE`: `[attempt, retries, first time, last time, last current]`, Unix times), so
that it costs no column and no write of its own; it is nobody else's.
"""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from app.states import PENDING, RETRY, TERMINAL

#: Member of a run's progress that `shown` leaves out.
PACE: Final = "pace"
#: What happened so long ago counts for a third of what happens now.
_MEMORY_S: Final = 20.0
#: News closer together than this are measured as one.
_SHORTEST_S: Final = 0.05
#: Nobody waits for longer, and no clock shows it.
_LONGEST_S: Final = 10 * 365 * 86_400.0


def paced(
    progress: dict[str, Any], before: Mapping[str, Any] | None, now: datetime, attempt: int, retries: int
) -> dict[str, Any]:
    """The progress with `rate` (per second) and `left_s` (seconds), null where they cannot be known.

    `before` is the progress that was known until now, which counts if it is of the same try of the same attempt.
    """
    current, total, time = progress["current"], progress["total"], now.timestamp()
    known = before.get(PACE) if before else None
    same_try = known is not None and known[:2] == [attempt, retries]
    rate: float | None = None
    if before and (same_try or current is None) and all(before.get(name) == value for name, value in progress.items()):
        return dict(before)  # the same word again is no news
    if current is None:
        return {**progress, "rate": None, "left_s": None}
    pace = [attempt, retries, time, time, current]
    if before and known and same_try and current >= known[4]:
        rate, first_time, last_time = before.get("rate"), known[2], known[3]
        span = time - last_time
        if span < _SHORTEST_S:
            pace = known
        else:
            weight = max(1 - math.exp(-span / _MEMORY_S), span / (time - first_time))
            rate = _finite((rate or 0.0) + weight * ((current - known[4]) / span - (rate or 0.0)))
            pace = [attempt, retries, first_time, time, current]
    return {**progress, "rate": rate, "left_s": _left_s(current, total, rate), PACE: pace}


def shown(progress: dict[str, Any] | None, state: str) -> dict[str, Any] | None:
    """The progress as others see it: a run that does not run at this moment has no rate and no time left."""
    if progress is None:
        return None
    seen = {"rate": None, "left_s": None} | {name: value for name, value in progress.items() if name != PACE}
    if state in TERMINAL or state in {PENDING, RETRY}:
        seen["rate"] = seen["left_s"] = None
    return seen


def halted(progress: dict[str, Any] | None) -> dict[str, Any] | None:
    """The progress of a body that begins anew."""
    if progress is None or PACE not in progress:
        return progress
    return {**{name: value for name, value in progress.items() if name != PACE}, "rate": None, "left_s": None}


def _left_s(current: float, total: float | None, rate: float | None) -> float | None:
    if total is None:
        return None
    if current >= total:
        return 0.0
    if not rate:
        return None
    left_s = (total - current) / rate
    return round(left_s, 1) if left_s <= _LONGEST_S else None


def _finite(rate: float) -> float | None:
    return max(0.0, float(f"{rate:.6g}")) if math.isfinite(rate) else None
