"""Jobs and queues as the API shows them: their rows, in the order and shape of the contract."""

from collections.abc import Mapping
from typing import Any, Final

from app.models import DEFINITION
from app.schedule.definitions import RETRY_DEFAULTS
from app.schedule.triggers import describe, load

# jsonb forgets the order of members.
_TRIGGER: Final = (
    "type",
    "of",
    "exclude",
    "expression",
    "rrule",
    "every_s",
    "run_time",
    "event",
    "latitude",
    "longitude",
    "timezone",
    "start_time",
    "end_time",
    "jitter_s",
    "from",
    "to",
)
_FINISHED: Final = {"code": "finished", "detail": "the trigger has no time from now on, so the job never fires"}
_RETRY: Final = ("max_attempts", "max_lost", "backoff_s", "backoff_factor", "max_backoff_s", *RETRY_DEFAULTS)
_QUEUE: Final = (
    "name",
    "namespace",
    "exchange",
    "exchange_type",
    "routing_key",
    "type",
    "max_priority",
    "delivery_limit",
    "dead_letter",
    "max_message_kib",
    "consumer_timeout_s",
    "result_db",
    "result_prefix",
    "max_active",
    "rate_limit",
    "shared_with",
    "paused",
    "description",
    "declare_time",
    "adopted",
    "problem",
    "author",
    "version",
    "create_time",
    "update_time",
)


def job_view(row: Mapping[str, Any], warnings: list[dict[str, str]] | None = None) -> dict[str, Any]:
    """A job out of a row with its newest run (`app.schedule.queries.job_with_last_run`)."""
    pause = last_run = None
    halted = not row["enabled"] or row["pause_time"] is not None or row["problem"] is not None
    finished = row["next_run_time"] is None and not halted
    if row["pause_time"] is not None:
        pause = {"time": row["pause_time"], "reason": row["pause_reason"], "by": row["pause_by"]}
    if row["last_run_id"] is not None:
        last_run = {name: row[f"last_run_{name}"] for name in ("id", "state", "result", "log_path", "end_time")}
    return {
        **{name: row[name] for name in ("id", *DEFINITION)},
        "trigger": _ordered_trigger(row["trigger"]),
        "retry": _ordered({**RETRY_DEFAULTS, **row["retry"]}, _RETRY),
        "pause": pause,
        "problem": row["problem"],
        "contract_problem": row["contract_problem"],
        "warnings": warnings if warnings is None or not finished else [*warnings, _FINISHED],
        "schedule": describe(load(row["trigger"])) if row["problem"] is None else None,
        "finished": finished,
        "next_run_time": row["next_run_time"],
        "last_run_time": row["last_run_time"],
        "last_run": last_run,
        "author": row["author"],
        "version": row["version"],
        "create_time": row["create_time"],
        "update_time": row["update_time"],
    }


def version_view(row: Mapping[str, Any]) -> dict[str, Any]:
    """A definition that a job had, out of its row; members that came later are not in it."""
    stored = row["definition"]
    definition = {
        **_ordered(stored, DEFINITION),
        "trigger": _ordered_trigger(stored["trigger"]),
        "retry": _ordered({**RETRY_DEFAULTS, **stored["retry"]}, _RETRY),
    }
    return {
        "version": row["version"],
        "author": row["author"],
        "create_time": row["create_time"],
        "definition": definition,
    }


def _ordered_trigger(value: Any) -> Any:
    """A trigger, or a member of one; a day stays as it is."""
    if not isinstance(value, Mapping):
        return value
    made = _ordered(value, _TRIGGER)
    members = {name: [_ordered_trigger(one) for one in made[name]] for name in ("of", "exclude") if name in made}
    return {**made, **members}


def _ordered(value: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value[name] for name in names if name in value}


def queue_view(row: Mapping[str, Any], backlog: dict[str, Any] | None = None) -> dict[str, Any]:
    """A queue out of its row, with what waits for it where that was looked at."""
    return {**{name: row[name] for name in _QUEUE}, "backlog": backlog}
