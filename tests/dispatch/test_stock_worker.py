"""A stock Celery worker of another code base, which knows nothing of jobplane, runs what we publish."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

from redis.asyncio import Redis

from tests.dispatch.parts import Rig
from tests.processes import Process, eventually
from workers.protocol import RESULT_KEY_PREFIX

SERVICE = """
from celery import Celery

app = Celery("svc", broker={broker!r}, backend={backend!r})


@app.task(name="svc.add", bind=True, ignore_result=True)
def add(self, x, y):
    told = self.request.headers["jobplane"] if self.request.headers else None
    return {{"sum": x + y, "timelimit": self.request.timelimit, "argsrepr": self.request.argsrepr, "jobplane": told}}
"""


async def test_a_stock_worker_runs_our_messages_and_declares_its_queue_after_us(
    rig: Rig, redis: Redis, redis_url: str, tmp_path: Path, start_process: Callable[..., Process]
) -> None:
    await rig.ready_queue("svc")
    ids = await rig.runs("svc", 20, args=[1], kwargs={"y": 2}, time_limit_s=60.0)
    outbox = rig.outbox()
    while await outbox.run_once():
        pass
    (tmp_path / "svc.py").write_text(SERVICE.format(broker=rig.url, backend=redis_url))
    # `-Q svc` makes Celery declare the queue, its exchange and its binding in its own way: no 406 may come of it.
    options = ["-Q", "svc", "-P", "solo", "--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "info"]
    command = [sys.executable, "-m", "celery", "-A", "svc", "worker", *options]
    start_process(command, name="worker", cwd=tmp_path)
    keys = [f"{RESULT_KEY_PREFIX}{run}.1" for run in ids]

    async def ended() -> list[bytes] | None:
        found = await redis.mget(keys)
        return found if all(found) else None

    for raw, run in zip(await eventually(ended, 60, "every result") or [], ids, strict=True):
        report = json.loads(raw)
        assert (report["status"], report["task_id"]) == ("SUCCESS", f"{run}.1")
        assert report["result"]["sum"] == 3
        assert report["result"]["timelimit"] == [60.0, None]
        assert report["result"]["argsrepr"] == "<hidden>"
        assert report["result"]["jobplane"] == {"version": 1, "run_id": str(run), "attempt": 1}
