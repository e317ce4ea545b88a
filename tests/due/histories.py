"""Random histories of one job: downtime, schedulers that die, pauses, edits, ends of runs; and what must hold then.

Time is given: a history of hours takes as long as its statements.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, get_args
from uuid import UUID

from redis.asyncio import Redis

from app import faults
from app.database import Connection, Database
from app.due.overlap import Overlap
from app.due.tick import Tick, settle_job
from app.progress import moves
from app.progress.transition import apply
from app.schedule import definitions, triggers
from app.schedule.definitions import Definition
from app.schedule.triggers import SECOND
from app.settings import Settings

TRIGGERS: list[dict[str, Any]] = [
    {"type": "interval", "every_s": 1},
    {"type": "interval", "every_s": 7, "jitter_s": 3},
    {"type": "interval", "every_s": 61},
    {"type": "cron", "expression": "*/10 * * * * *", "timezone": "Asia/Shanghai", "jitter_s": 5},
    {"type": "cron", "expression": "*/5 * * * *", "timezone": "America/New_York", "jitter_s": 400},
    {"type": "cron", "expression": "59 1 * * *"},
]
POINTS = ("tick.after_select", "tick.before_commit", "tick.after_commit")


def policies(chance: random.Random) -> dict[str, Any]:
    """The part of a definition that histories vary."""
    return {
        "trigger": triggers.parse(chance.choice(TRIGGERS)).model_dump(mode="json"),
        "enabled": chance.random() < 0.85,
        "overlap": chance.choice(get_args(Overlap)),
        "max_active": chance.choice([None, None, 1, 3]),
        "pause_after_failures": chance.choice([None, None, 1, 2]),
        "misfire": chance.choice(["latest", "earliest", "all", "none"]),
        "catchup_window_s": chance.choice([0, 30, 600, 86_400]),
    }


def definition(chance: random.Random) -> Definition:
    """A definition of the job."""
    return Definition(
        **{"namespace": "n", "name": "job", "description": "", "task": "t", "args": [], "kwargs": {}, "queue": "q"},
        **{"priority": None, "start_deadline_s": None, "deadline_s": None, "time_limit_s": None},
        **{"soft_time_limit_s": None, "labels": {}, "retry": {**definitions.RETRY_DEFAULTS}},
        **policies(chance),
    )


class History:
    """One job, three schedulers that look at `now` (each a little apart), and the hand that a seed guides."""

    def __init__(self, database: Database, redis: Redis, settings: Settings, seed: int, begin: datetime) -> None:
        self.now = begin
        self.chance = random.Random(seed)
        self._database = database
        self._settings = settings
        self._ticks = [Tick(database, redis, 10) for _ in range(3)]
        self.job = UUID(int=0)

    def clock(self) -> datetime:
        """What the database says to whoever asks: not the same to all who come at once."""
        return self.now + timedelta(seconds=self.chance.uniform(0, 1.5))

    async def begin(self) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(
                "INSERT INTO queues (name, namespace, exchange, routing_key, author) VALUES ('q', 'n', 'q', 'q', 'a')"
                " ON CONFLICT DO NOTHING"
            )
            job = await definitions.create(connection, self.now, self._settings, definition(self.chance), "a")
            self.job = UUID(int=job["id"].int)

    async def step(self) -> None:
        """Some time goes by, and then something happens; often two things at once."""
        self.now += timedelta(seconds=self.chance.choice([0, 0.3, 1, 2, 11, 60, 400, 4_000]))
        deeds = [self.ticks, self.edit, self.pause, self.resume, self.end_runs]
        chosen = self.chance.choices(deeds, weights=[6, 2, 1, 2, 2], k=self.chance.choice([1, 1, 2]))
        faults.arm(self.chance.choice(["", "", f"{self.chance.choice(POINTS)}=raise*{self.chance.randint(1, 3)}"]))
        await asyncio.gather(*(deed() for deed in chosen))
        faults.arm("")

    async def ticks(self) -> None:
        """Three schedulers at once, of which one may die."""
        ended = await asyncio.gather(*(tick.run_once() for tick in self._ticks), return_exceptions=True)
        broken = [end for end in ended if isinstance(end, BaseException) and not isinstance(end, faults.InjectedFault)]
        assert not broken, broken

    async def edit(self) -> None:
        now = self.clock()
        async with self._database.transaction() as connection:
            job, _ = await settle_job(connection, now, self.job)
            assert job is not None
            changed = replace(Definition.of(job), **policies(self.chance))
            await definitions.edit(connection, now, self._settings, job, changed, "a")

    async def pause(self) -> None:
        now = self.clock()
        async with self._database.transaction() as connection:
            job, _ = await settle_job(connection, now, self.job)
            assert job is not None
            await definitions.pause(connection, now, job, None, "a")

    async def resume(self) -> None:
        """From now, or from some time since the pause."""
        now = self.clock()
        async with self._database.transaction() as connection:
            row = await connection.fetchrow("SELECT * FROM jobs WHERE id = $1 FOR NO KEY UPDATE", self.job)
            assert row is not None
            until = now
            if row["pause_time"] is not None and self.chance.random() < 0.4:
                until = max(row["cursor_time"], now - timedelta(seconds=self.chance.choice([3, 300])))
            job, _ = await settle_job(connection, until, self.job)
            assert job is not None
            await definitions.resume(connection, now, job)

    async def end_runs(self) -> None:
        now = self.clock()
        async with self._database.transaction() as connection:
            live = await connection.fetch("SELECT id FROM runs WHERE end_time IS NULL")
            await apply(connection, now, {row["id"]: [moves.cancel(now, "asked")] for row in live})


async def exact(connection: Connection, job_id: UUID) -> int:
    """Assert that each scheduled time up to the job's cursor is a run or in a row of skips, once; how many there are.

    The times are walked one by one here, as nothing in the plane does.
    """
    cursor = await connection.fetchval("SELECT cursor_time FROM jobs WHERE id = $1", job_id)
    versions = await connection.fetch("SELECT * FROM job_versions WHERE job_id = $1 ORDER BY version", job_id)
    ends = [*(row["cursor_time"] for row in versions[1:]), cursor]

    def walk() -> Iterator[datetime]:
        for version, end in zip(versions, ends, strict=True):
            if version["definition"]["enabled"]:
                yield from triggers.times(triggers.load(version["definition"]["trigger"]), version["cursor_time"], end)

    expected = list(walk())
    assert expected == sorted(set(expected))
    runs = await connection.fetch(
        "SELECT scheduled_time FROM runs WHERE job_id = $1 AND kind = 'schedule' ORDER BY scheduled_time", job_id
    )
    found = Counter(row["scheduled_time"] for row in runs)
    for row in await connection.fetch("SELECT * FROM skips WHERE job_id = $1 ORDER BY first_time", job_id):
        inside = [time for time in expected if row["first_time"] <= time <= row["last_time"]]
        assert (len(inside), row["exact"]) == (row["count"], True), dict(row)
        assert (inside[0], inside[-1]) == (row["first_time"], row["last_time"])
        found.update(inside)
    assert found == Counter(expected), {
        "without": sorted((Counter(expected) - found).elements())[:5],
        "twice or never due": sorted((found - Counter(expected)).elements())[:5],
    }
    assert all(time <= cursor < time + timedelta(days=400) for time in expected[-1:])
    return len(expected)


def window(begin: datetime, end: datetime) -> dict[str, str]:
    """The query of a ledger from a second before to a second after."""
    return {"from": (begin - SECOND).isoformat(), "to": (end + SECOND).isoformat()}
