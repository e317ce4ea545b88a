"""What `jobplane doctor` says, and the status that it ends with. Pure."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final, Literal

Level = Literal["error", "warning", "note"]

#: Nothing of level error or warning; something of it; a part could not be looked at.
SOUND: Final = 0
FOUND: Final = 1
BLIND: Final = 2

LEVELS: Final[tuple[Level, ...]] = ("error", "warning", "note")

#: Every code, in the order of the documentation.
CODES: Final = (
    "database_away",
    "redis_away",
    "broker_away",
    "workers_not_asked",
    "migrations",
    "no_scheduler",
    "schedulers_differ",
    "loop_in_trouble",
    "connections_short",
    "clocks_differ",
    "log_store",
    "redis_evicts",
    "redis_not_kept",
    "redis_memory",
    "redis_replica",
    "redis_old",
    "node_twice",
    "worker_silent",
    "worker_elsewhere",
    "queue_not_consumed",
    "queue_in_trouble",
    "job_parked",
    "consumer_unknown",
    "task_not_registered",
    "thief_waiting",
    "visibility_short",
    "consumer_timeout_short",
    "prefetch_long",
    "acks_early",
    "rejects_lost",
    "limit_not_kept",
    "track_started_off",
    "results_unreadable",
    "results_elsewhere",
    "results_expire",
    "results_not_json",
    "result_extended_off",
    "results_not_retried",
)

#: With one of these the rest is less than the whole truth.
_BLINDING: Final = frozenset({"database_away", "redis_away", "broker_away", "workers_not_asked"})


@dataclass(frozen=True, slots=True)
class Finding:
    """What will bite and what to do. `code` is stable; `subject` names whom it is about, as `queue orders`.

    error: work is lost, runs twice or does not run; warning: so it will be once something else happens; note: worth
    knowing.
    """

    code: str
    level: Level
    subject: str
    says: str
    do: str


def status(findings: Collection[Finding]) -> int:
    """The exit status: `BLIND` before `FOUND` before `SOUND`."""
    if any(finding.code in _BLINDING for finding in findings):
        return BLIND
    return FOUND if any(finding.level != "note" for finding in findings) else SOUND


def in_order(findings: Collection[Finding]) -> list[Finding]:
    """The worst first; what is of one level in the order of the documentation."""
    return sorted(findings, key=lambda one: (LEVELS.index(one.level), CODES.index(one.code), one.subject))
