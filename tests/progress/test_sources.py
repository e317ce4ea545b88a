"""A stock service whose results live in another database of Redis, behind a prefix: told per queue, and followed."""

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

from celery import Celery
from redis.asyncio import Redis

from app.database import Database
from app.progress.record import RESULT_KEPT_S, Recorder
from app.progress.sources import Source
from app.settings import Settings
from tests.conftest import VALKEY_DATABASES
from tests.processes import Process, eventually
from tests.progress.live import make_run, reaches, recording, stored_state
from workers.protocol import TaskId

SERVICE = """
from celery import Celery

app = Celery("other_service", broker={broker!r}, backend={backend!r})
app.conf.update(task_track_started=True, result_backend_transport_options={{"global_keyprefix": "svc"}})


@app.task(bind=True, name="svc.work")
def work(self):
    self.update_state(state="PROGRESS", meta={{"current": 1, "total": 2}})
    return "done"
"""


async def name_source(database: Database, queue: str, source: Source) -> None:
    async with database.transaction() as connection:
        await connection.execute(
            """
            INSERT INTO queues (name, namespace, exchange, routing_key, result_db, result_prefix, author)
            VALUES ($1, 'default', $1, $1, $2, $3, 'test')
            """,
            queue,
            source.db,
            source.prefix,
        )


async def test_results_elsewhere_are_heard_read_and_let_go(
    database: Database,
    redis: Redis,
    settings: Settings,
    redis_url: str,
    tmp_path: Path,
    start_process: Callable[..., Process],
) -> None:
    base, _, own = redis_url.rpartition("/")
    source = Source((int(own) + 1) % VALKEY_DATABASES, "svc")
    backend = f"{base}/{source.db}"
    (tmp_path / "other_service.py").write_text(SERVICE.format(broker=redis_url, backend=backend))
    options = ["-Q", "svc", "-P", "solo", "-n", "other@h", "-l", "info", "--without-mingle", "--without-gossip"]
    worker = start_process(
        [sys.executable, "-m", "celery", "-A", "other_service", "worker", *options], name="other", cwd=tmp_path
    )
    worked, silent, unnamed = [TaskId(await make_run(database, queue=name), 1) for name in ("svc", "svc", "later")]

    def send() -> None:
        with Celery(broker=redis_url, set_as_current=False, fixups=[]) as client:
            client.send_task("svc.work", task_id=str(worked), queue="svc", ignore_result=False)

    await name_source(database, "svc", source)
    async with Redis.from_url(backend) as there:
        # Said while nobody listened; Celery's own key for it.
        await there.set(source.key_of(silent), stored_state(silent, "SUCCESS", "read"), ex=86400)
        await there.set(Source(None, "b").key_of(unnamed), stored_state(unnamed, "SUCCESS", "late"), ex=86400)
        async with recording(Recorder(database, redis, settings, "one")) as recorder:
            assert (await reaches(database, silent.run_id, "SUCCESS"))["result"] == "read"
            await asyncio.to_thread(worker.wait_for_line, "ready.")
            await asyncio.to_thread(send)
            row = await reaches(database, worked.run_id, "SUCCESS")
            assert (row["result"], row["progress"]["percent"]) == ("done", 50)
            for task_id in (silent, worked):

                async def shortened(key: str = source.key_of(task_id)) -> bool:
                    return 0 < await there.ttl(key) <= RESULT_KEPT_S

                await eventually(shortened, what="a short life of the stored state")
            # A queue that is told of while the recorder is at work, and that the next reading of the truth finds.
            recorder._truth_every_s = 0.1
            await name_source(database, "later", Source(source.db, "b"))
            assert (await reaches(database, unnamed.run_id, "SUCCESS"))["result"] == "late"
            async with database.reading() as connection:
                events = await connection.fetch(
                    "SELECT state FROM run_events WHERE run_id = $1 ORDER BY version", worked.run_id
                )
            assert [event["state"] for event in events] == ["PENDING", "STARTED", "PROGRESS", "SUCCESS"]
