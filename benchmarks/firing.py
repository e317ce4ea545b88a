"""Five thousand entries that fall due at once: how fast do their messages reach the broker?

Ours commits a run and its event for each before it publishes, and marks each that the broker confirmed. celery beat
keeps nothing but a file, and sends.
"""

import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from celery import Celery
from celery.beat import PersistentScheduler
from redis import Redis as SyncRedis
from redis.asyncio import Redis

from app.database import Database, clock, new_id
from app.dispatch import broker
from app.dispatch.outbox import Outbox
from app.dispatch.topology import Topology, ensure_default_queues
from app.due.tick import Tick
from app.settings import Settings

ENTRIES = 5_000
#: The peer is stopped after this time; its rate is what it did until then.
LONGEST_S = 20.0


@dataclass(frozen=True)
class Measured:
    who: str
    fires: int
    seconds: float

    @property
    def rate(self) -> float:
        return self.fires / self.seconds


async def ours(settings: Settings) -> Measured:
    database = await Database.connect(settings, "bench")
    redis = Redis.from_url(settings.redis_url.get_secret_value())
    publisher = broker.connect(settings.broker_url.get_secret_value(), 5)
    await ensure_default_queues(database, settings)
    await Topology(settings, database, redis, publisher).run_once()
    async with database.transaction() as connection:
        now = await clock(connection)
        minute = now.replace(second=0, microsecond=0)
        ids = [new_id() for _ in range(ENTRIES)]
        await connection.execute(
            """
            INSERT INTO jobs (id, namespace, name, task, queue, trigger, retry, cursor_time, next_run_time, author)
            SELECT id, 'default', id::text, 'bench', 'default', $2, $3, $4, $5, 'bench' FROM unnest($1::uuid[]) AS id
            """,
            ids,
            {"type": "cron", "expression": "* * * * *", "timezone": "UTC"},
            {"max_attempts": 1, "max_lost": 2, "backoff_s": 10, "backoff_factor": 2, "max_backoff_s": 600},
            minute - timedelta(minutes=1),
            minute,
        )
        await connection.execute(
            "INSERT INTO job_versions (job_id, version, definition, author) "
            "SELECT id, 1, '{}', 'bench' FROM unnest($1::uuid[]) AS id",
            ids,
        )
    tick = Tick(database, redis, settings.tick_batch)
    outbox = Outbox(settings, database, redis, publisher, "bench")
    begin = time.perf_counter()
    while await tick.run_once():
        pass
    while await outbox.run_once():
        pass
    seconds = time.perf_counter() - begin
    sent = await redis.llen("default")
    await redis.flushdb()
    await publisher.close()
    await redis.aclose()
    await database.close()
    return Measured("jobplane (a row and an event for each first)", int(sent), seconds)


def celery_beat(url: str) -> Measured:
    app = Celery("bench", broker=url, set_as_current=False)
    app.conf.task_ignore_result = True
    app.conf.beat_schedule = {
        f"entry-{n}": {"task": "bench", "schedule": 60.0, "options": {"queue": "beat"}} for n in range(ENTRIES)
    }
    with tempfile.TemporaryDirectory() as folder, SyncRedis.from_url(url) as redis:
        scheduler = PersistentScheduler(app, schedule_filename=str(Path(folder) / "beat"), lazy=False)
        for entry in scheduler.schedule.values():
            entry.last_run_at = datetime.now(UTC) - timedelta(minutes=2)
        begin = time.perf_counter()
        while redis.llen("beat") < ENTRIES and time.perf_counter() - begin < LONGEST_S:
            scheduler.tick()
        seconds = time.perf_counter() - begin
        sent = int(redis.llen("beat"))
        scheduler.close()
    return Measured("celery beat", sent, seconds)
