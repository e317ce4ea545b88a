"""A stock worker that comes back after the start deadline: it gives the message up, whoever ended the run before."""

import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

from redis.asyncio import Redis

from app.database import Database, clock
from app.progress import moves
from app.progress.record import Recorder
from app.progress.transition import apply
from app.settings import Settings
from tests.dispatch.parts import Rig
from tests.processes import Process, eventually
from tests.progress.live import reaches, recording, row_of
from workers.protocol import RESULT_KEY_PREFIX

SERVICE = """
from celery import Celery

app = Celery("svc", broker={url!r}, backend={url!r})


@app.task(name="svc.add")
def add(x, y):
    return x + y
"""


async def test_a_stock_worker_that_was_stopped_meanwhile_starts_nothing_too_late(
    redis_rig: Rig,
    redis: Redis,
    redis_url: str,
    settings: Settings,
    database: Database,
    tmp_path: Path,
    start_process: Callable[..., Process],
) -> None:
    await redis_rig.ready_queue("svc")
    (tmp_path / "svc.py").write_text(SERVICE.format(url=redis_url))
    options = ["-Q", "svc", "-P", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "info"]
    command = [sys.executable, "-m", "celery", "-A", "svc", "worker", *options]
    worker = start_process(command, name="worker", cwd=tmp_path)
    worker.wait_for_line("ready.", timeout=40)
    worker.pause()
    outbox = redis_rig.outbox()

    async def sent() -> tuple[datetime, list[UUID]] | None:
        async with database.reading() as connection:
            deadline = await clock(connection) + timedelta(seconds=1)
        runs = await redis_rig.runs("svc", 2, start_deadline_time=deadline)
        runs += await redis_rig.runs("svc", start_deadline_time=deadline + timedelta(hours=1))
        while await outbox.run_once():
            pass
        out = all(row["dispatch_time"] for row in await redis_rig.rows(runs))
        return (deadline, runs) if out else None  # on a busy machine it may have been too late for that

    found = await eventually(sent, 60, "runs that are out before their deadline")
    assert found is not None
    deadline, (heard, reaped, patient) = found

    async def passed() -> bool:
        async with database.transaction() as connection:
            now = await clock(connection)
            if now > deadline:
                await apply(connection, now, {reaped: [moves.expire(now)]})  # as the reaper does
            return now > deadline

    await eventually(passed, 30, "the deadline has passed")
    assert (await row_of(database, reaped))["state"] == "REVOKED"
    async with recording(Recorder(database, redis, settings, "one")):
        worker.resume()
        row = await reaches(database, heard, "REVOKED", 60)
        assert (row["reason"], row["attempt"], row["start_time"]) == ("start deadline", 1, None)
        assert (await reaches(database, patient, "SUCCESS", 60))["result"] == 3

        async def given_up() -> bytes | None:
            return await redis.get(f"{RESULT_KEY_PREFIX}{reaped}.1")

        said = await eventually(given_up, 30, "the worker's word on the other one")
        assert said is not None
        assert b"expired" in said
    row = await row_of(database, reaped)
    assert (row["state"], row["reason"], row["late"]) == ("REVOKED", "start deadline", [])
