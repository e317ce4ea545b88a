"""What the plane and its workers agree on: names of keys, headers, lease values, limits.

The one module that `app` imports of `workers`. It imports nothing but the standard library, for both sides load it
in every process. A message carries `PROTOCOL_VERSION`, because a rolling deploy mixes two of them.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

PROTOCOL_VERSION: Final = 1

PREFIX: Final = "jobplane:"

#: Redis channel (with `@` and the number of the database behind it) that carries run frames, as JSON lists of runs, to
#: the API processes.
RUNS_CHANNEL: Final = f"{PREFIX}runs"
#: Redis channel (likewise) that wakes schedulers after a commit. A hint only: the poll each second is the truth.
DOORBELL_CHANNEL: Final = f"{PREFIX}doorbell"

#: Celery's own key and channel for the state of one task.
RESULT_KEY_PREFIX: Final = "celery-task-meta-"

#: Header of every message of ours: `{"version": 1, "run_id": "...", "attempt": 1}`, of a run that is for a time of its
#: schedule with `"scheduled_time": "2026-03-01T23:00:00Z"`.
HEADER: Final = "jobplane"
#: Member of a STARTED report that says "this attempt holds a lease": `{"token": "...", "lease_s": 30}`.
LEASE_REPORT: Final = "jobplane_lease"

#: How long a lease lives without a heartbeat. Long, because a C call that holds the GIL looks dead.
LEASE_S: Final = 30.0
#: How often a worker renews it.
HEARTBEAT_S: Final = 5.0
#: A worker that could not renew a lease for so long ends its body: before the lease ends, and another one may begin.
FENCE_S: Final = 24.0
#: How long the last value of a lease (`done`, `reaped`, `cancelled`) refuses later deliveries.
LEASE_MEMORY_S: Final = 24 * 3600

HELD: Final = "held:"
DONE: Final = "done"
REAPED: Final = "reaped"
CANCELLED: Final = "cancelled"

#: Celery's own tasks begin so: every worker has them, and none tells of them.
BUILT_IN_PREFIX: Final = "celery."

#: A worker of ours says every `PRESENCE_S` that it lives; the key ends after `PRESENCE_TTL_S`.
PRESENCE_PREFIX: Final = f"{PREFIX}worker:"
PRESENCE_S: Final = 5.0
PRESENCE_TTL_S: Final = 15.0
#: What a worker of ours registers, as JSON `{task: {"signature", "schema", "doc"}}`, under the digest that its presence
#: names as `contracts`.
CONTRACTS_PREFIX: Final = f"{PREFIX}contracts:"

#: Redis stream of what an attempt wrote (`log_key`). Entries: `o` is the offset in bytes, among all that it wrote, of
#: `t`, UTF-8 that ends with a line; `e` is `1` on the last entry of a body that has ended. Offsets that jump mean that
#: something was cut: kept are the first `LOG_HEAD` bytes and the newest `LOG_TAIL`.
LOG_PREFIX: Final = f"{PREFIX}log:"
LOG_HEAD: Final = 1024 * 1024
LOG_TAIL: Final = 64 * 1024
#: Sorted set of `<run id>:<attempt>`, by the Unix time of the last entry: the streams that are not empty.
LOGS_KEY: Final = f"{PREFIX}logs"

_TASK_ID = re.compile(r"([0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12})\.([1-9][0-9]{0,8})")


@dataclass(frozen=True, slots=True)
class TaskId:
    """The Celery task id of one dispatch: `<run id>.<n>`, n counting the dispatches of that run from 1."""

    run_id: UUID
    dispatch: int

    def __str__(self) -> str:
        return f"{self.run_id}.{self.dispatch}"


def parse_task_id(text: str) -> TaskId | None:
    """The run and dispatch that a task id names; None for an id of somebody else."""
    match = _TASK_ID.fullmatch(text)
    return TaskId(UUID(match[1]), int(match[2])) if match else None


def lease_key(run_id: UUID | str, attempt: int, retries: int) -> str:
    """The Redis key that decides who may run an attempt; one per attempt and per Celery retry inside it."""
    return f"{PREFIX}lease:{run_id}:{attempt}:{retries}"


def log_key(run_id: UUID | str, attempt: int) -> str:
    """The Redis stream that carries an attempt's log until it is in the log store."""
    return f"{LOG_PREFIX}{run_id}:{attempt}"


def header(run_id: UUID, attempt: int, scheduled_time: datetime | None = None) -> dict[str, Any]:
    """The value of `HEADER` in a message that carries this attempt."""
    made: dict[str, Any] = {"version": PROTOCOL_VERSION, "run_id": str(run_id), "attempt": attempt}
    if scheduled_time is not None:
        made["scheduled_time"] = scheduled_time.astimezone(UTC).isoformat().replace("+00:00", "Z")
    return made


def presence_key(nodename: str) -> str:
    """The Redis key under which a worker of ours says that it lives, as JSON `{"queues": [...], ...}`."""
    return f"{PRESENCE_PREFIX}{nodename}"
