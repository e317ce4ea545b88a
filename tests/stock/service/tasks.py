"""A stock Celery service of another team: nothing of ours is imported here, and Celery 5.4 and 5.7 both run it.

Bodies write a line each time they begin and end, so that a test knows what ran; some wait until a file is there.
"""

import json
import os
import signal
import time
from pathlib import Path

from celery import Celery
from celery.exceptions import SoftTimeLimitExceeded
from kombu import Queue

QUEUE = os.environ["STOCK_QUEUE"]
WITNESS = Path(os.environ["STOCK_WITNESS"])
LONGEST_WAIT_S = 60

app = Celery("stock", broker=os.environ["STOCK_BROKER_URL"], backend=os.environ["STOCK_RESULT_BACKEND"])
app.conf.update(
    task_queues=[Queue(QUEUE)],
    task_default_queue=QUEUE,
    task_track_started=True,
    task_acks_late=True,
    result_extended=True,
    result_persistent=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
)
if "STOCK_VISIBILITY_TIMEOUT_S" in os.environ:
    app.conf.broker_transport_options = {"visibility_timeout": float(os.environ["STOCK_VISIBILITY_TIMEOUT_S"])}


def say(task, what):
    with WITNESS.open("a") as file:
        line = {"run": task.request.id.partition(".")[0], "task_id": task.request.id, "what": what, "pid": os.getpid()}
        file.write(json.dumps({**line, "worker": task.request.hostname, "at": time.time()}) + "\n")


def await_file(path):
    deadline = time.monotonic() + LONGEST_WAIT_S
    while not Path(path).exists():
        if time.monotonic() > deadline:
            raise TimeoutError(path)
        time.sleep(0.02)


@app.task(bind=True, name="stock.add")
def add(self, a, b):
    say(self, "begin")
    return a + b


@app.task(bind=True, name="stock.words")
def words(self, go):
    """A word of its own, PROGRESS that stands until it is let go, and then the rest."""
    self.update_state(state="DOWNLOADING", meta={"file": "posts.csv"})
    self.update_state(state="PROGRESS", meta={"current": 3, "total": 10, "message": "post 3"})
    await_file(go)
    self.update_state(state="PROGRESS", meta={"current": 10, "total": 10})
    return {"posts": 10}


@app.task(bind=True, name="stock.retries", max_retries=3)
def retries(self, times, countdown):
    say(self, "begin")
    if self.request.retries < times:
        raise self.retry(countdown=countdown, exc=ConnectionError("not yet"))
    return self.request.retries


@app.task(bind=True, name="stock.fails")
def fails(self):
    say(self, "begin")
    raise KeyError("no such post")


@app.task(bind=True, name="stock.waits")
def waits(self, go):
    say(self, "begin")
    await_file(go)
    say(self, "end")
    return "waited"


@app.task(bind=True, name="stock.hears_its_limit")
def hears_its_limit(self, go):
    say(self, "begin")
    try:
        await_file(go)
    except SoftTimeLimitExceeded:
        say(self, "limit")
        raise


@app.task(bind=True, name="stock.dies")
def dies(self, times):
    """Its process is killed so many times, as by the kernel when memory runs out."""
    say(self, "begin")
    begun = [json.loads(line) for line in WITNESS.read_text().splitlines()]
    run = self.request.id.partition(".")[0]
    if sum(line["run"] == run and line["what"] == "begin" for line in begun) <= times:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"
