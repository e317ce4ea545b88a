"""What Redis, or Valkey, is set to. Pure."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from app.doctor.facts import Facts, RedisServer
from app.doctor.finding import Finding

#: Used memory, as a part of what there may be, from which on it is told, and from which on it is an error.
FULL: Final = 0.85
VERY_FULL: Final = 0.95
OLDEST: Final = (6, 2)


def eviction(facts: Facts) -> Iterator[Finding]:
    for server in facts.redis:
        policy = server.info.get("maxmemory_policy", "noeviction")
        if policy == "noeviction":
            continue
        bounded = _number(server.info, "maxmemory") > 0
        once = "When its memory is full, it" if bounded else "It has no limit of memory now; with one, it"
        lost = "leases, so that an attempt runs twice, and results"
        lost += " and messages that wait" if "broker" in server.uses else ""
        yield Finding(
            "redis_evicts",
            "error" if bounded else "note",
            f"redis {server.where}",
            f"{once} throws keys away (maxmemory-policy {policy}): {lost}.",
            "Set maxmemory-policy to noeviction.",
        )


def persistence(facts: Facts) -> Iterator[Finding]:
    for server in facts.redis:
        broker = "broker" in server.uses
        subject = f"redis {server.where}"
        failed = [
            what
            for what, member in (("append-only file", "aof_last_write_status"), ("snapshot", "rdb_last_bgsave_status"))
            if server.info.get(member, "ok") != "ok"
        ]
        if failed:
            yield Finding(
                "redis_not_kept",
                "error",
                subject,
                f"It could not write its last {' nor its last '.join(failed)}: a restart loses what came since.",
                "Look at its log and its disk.",
            )
        if _number(server.info, "aof_enabled"):
            continue
        if server.save == "":
            lost = "messages that wait, leases and results" if broker else "leases and results that nobody has read"
            yield Finding(
                "redis_not_kept",
                "error" if broker else "warning",
                subject,
                f"It keeps nothing on disk (no append-only file, no snapshots): a restart loses {lost}.",
                "Set appendonly yes and appendfsync everysec.",
            )
        elif broker:
            rule = f" ({server.save})" if server.save else ""
            yield Finding(
                "redis_not_kept",
                "warning",
                subject,
                f"The broker keeps snapshots only{rule}: a crash loses the messages of the minutes since the last one.",
                "Set appendonly yes and appendfsync everysec.",
            )


def memory(facts: Facts) -> Iterator[Finding]:
    for server in facts.redis:
        limit, name = _number(server.info, "maxmemory"), "maxmemory"
        if not limit:
            limit, name = _number(server.info, "total_system_memory"), "all memory of its machine"
        used = _number(server.info, "used_memory")
        if limit and used >= FULL * limit:
            yield Finding(
                "redis_memory",
                "error" if used >= VERY_FULL * limit else "warning",
                f"redis {server.where}",
                f"It uses {used / limit:.0%} of {name} ({limit / 2**20:.0f} MiB). Once that is full, it refuses writes:"
                " workers can store no result and take no lease.",
                "Give it more memory, or let stock services set a shorter result_expires.",
            )


def replica(facts: Facts) -> Iterator[Finding]:
    for server in facts.redis:
        if server.info.get("role", "master") != "master":
            yield Finding(
                "redis_replica",
                "error",
                f"redis {server.where}",
                "It is a replica: it refuses every write.",
                f"Let {' and '.join(_settings(server))} name the primary.",
            )


def version(facts: Facts) -> Iterator[Finding]:
    for server in facts.redis:
        told = str(server.info.get("redis_version", ""))
        numbers = tuple(int(part) for part in told.split(".")[:2] if part.isdigit())
        if len(numbers) == len(OLDEST) and numbers < OLDEST:
            yield Finding(
                "redis_old",
                "error",
                f"redis {server.where}",
                f"It is {told}; commands that the plane and Celery use came with 6.2.",
                "Upgrade it to Redis 6.2 or newer, or to Valkey.",
            )


def _number(info: Mapping[str, Any], member: str) -> float:
    value = info.get(member, 0)
    return float(value) if isinstance(value, int | float) else 0.0


def _settings(server: RedisServer) -> list[str]:
    names = {"results": "JOBPLANE_REDIS_URL", "broker": "JOBPLANE_BROKER_URL"}
    return [name for use, name in names.items() if use in server.uses]


CHECKS: Final[tuple[Callable[[Facts], Iterator[Finding]], ...]] = (eviction, persistence, memory, replica, version)
