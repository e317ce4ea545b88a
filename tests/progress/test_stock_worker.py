"""A Celery service of another code base, which imports nothing of ours, followed with its own words."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from redis.asyncio import Redis

from app.database import Database
from app.progress.record import Recorder
from app.settings import Settings
from tests.processes import Process
from tests.progress.live import make_run, reaches, recording, row_of
from tests.progress.standings import policy
from workers.protocol import TaskId

SERVICE = """
import time
from celery import Celery

app = Celery("other_service", broker={url!r}, backend={url!r})
app.conf.update(task_track_started=True, result_extended={extended})


@app.task(bind=True, name="apps.tasks.scheduled_job.calc_post_score")
def calc_post_score(self, posts):
    self.update_state(state="DOWNLOADING", meta={{"file": "posts.csv"}})
    time.sleep(0.1)
    for i in range(1, posts + 1):
        self.update_state(state="PROGRESS", meta={{"current": i, "total": posts, "message": f"post {{i}}"}})
        time.sleep(0.02)
    return {{"scored": posts, "mean": float("nan")}}


@app.task(name="apps.tasks.fails")
def fails():
    raise KeyError("no such post")


@app.task(bind=True, name="apps.tasks.retries", max_retries=2)
def retries(self):
    if self.request.retries < 1:
        raise self.retry(countdown=0.1, exc=ValueError("not yet"))
    return self.request.retries
"""


@pytest.mark.parametrize("extended", [False, True])
async def test_a_stock_service_is_followed_to_the_end(
    extended: bool,
    database: Database,
    redis: Redis,
    settings: Settings,
    redis_url: str,
    tmp_path: Path,
    start_process: Callable[..., Process],
) -> None:
    (tmp_path / "other_service.py").write_text(SERVICE.format(url=redis_url, extended=extended))
    options = ["-Q", "game_community", "-c", "1", "-n", "other@h", "-l", "info", "--without-mingle"]
    worker = start_process(
        [sys.executable, "-m", "celery", "-A", "other_service", "worker", *options], name="other", cwd=tmp_path
    )
    scored, failed, retried = [await make_run(database, retry=policy()) for _ in range(3)]
    unknown = await make_run(database, task="apps.tasks.nobody_knows_this")
    worker.wait_for_line("ready.")

    def send(task: str, run_id: Any, *args: Any) -> None:
        with Celery(broker=redis_url, set_as_current=False, fixups=[]) as client:
            client.send_task(task, args, task_id=str(TaskId(run_id, 1)), queue="game_community", ignore_result=False)

    async with recording(Recorder(database, redis, settings, "one")):
        send("apps.tasks.scheduled_job.calc_post_score", scored, 10)
        send("apps.tasks.fails", failed)
        send("apps.tasks.nobody_knows_this", unknown)
        send("apps.tasks.retries", retried)
        row = await reaches(database, scored, "SUCCESS")
        assert row["result"] == {"scored": 10, "mean": "NaN"}
        assert row["progress"]["percent"] == 100
        assert row["progress"]["message"] == "post 10"
        assert row["worker"] == "other@h"
        row = await reaches(database, failed, "FAILURE")
        assert (row["error"]["type"], row["error"]["message"]) == ("KeyError", "no such post")
        assert "no such post" in row["error"]["traceback"]
        row = await reaches(database, retried, "SUCCESS")
        assert row["result"] == 1
    row = await row_of(database, unknown)
    assert row["state"] == "PENDING", "nothing ran: the same attempt goes out again"
    assert row["reason"] == "not registered: a worker without apps.tasks.nobody_knows_this took it"
    assert row["not_registered"] == 1
    async with database.reading() as connection:
        events = await connection.fetch("SELECT run_id, state FROM run_events ORDER BY version")
    states = [event["state"] for event in events if event["run_id"] == scored]
    assert states == ["PENDING", "STARTED", "DOWNLOADING", "PROGRESS", "SUCCESS"]
    states = [event["state"] for event in events if event["run_id"] == retried]
    assert states == ["PENDING", "STARTED", "RETRY", "STARTED", "SUCCESS"]
