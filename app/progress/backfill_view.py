"""A backfill as the REST API and the feed show it: made here and nowhere else."""

from collections.abc import Mapping
from typing import Any


def backfill_view(row: Mapping[str, Any]) -> dict[str, Any]:
    """A backfill out of its row. `progress` counts scheduled times: those without a run of it, and runs that ended."""
    ends = {name: row[name] for name in ("succeeded", "failed", "revoked")}
    ended, active, total = sum(ends.values()), len(row["live"]), row["total"]
    current = ended + row["skipped"]
    return {
        **{name: row[name] for name in ("id", "job_id", "job_version")},
        "from": row["from_time"],
        "to": row["to_time"],
        **{name: row[name] for name in ("mode", "overlap", "max_active", "state", "reason")},
        "progress": {"current": current, "total": total, "percent": _percent(current, total)},
        "counts": {"made": ended + active, "active": active, **ends, "skipped": row["skipped"]},
        **{name: row[name] for name in ("author", "create_time", "end_time", "update_time", "version")},
    }


def settled(view: Mapping[str, Any]) -> bool:
    """Whether nothing of this backfill changes any more: it has ended, and all of its runs have."""
    return view["end_time"] is not None and view["counts"]["active"] == 0


def _percent(current: int, total: int) -> float:
    return 100.0 if current >= total else round(100 * current / total, 1)
