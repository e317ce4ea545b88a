"""`celery -A benchmarks.overhead_stock`: a worker of Celery's own with the same tasks, as a careful team sets it up.

Late acknowledgement, one message at a time and reports that a plane can follow, like ours.
"""

import os

from celery import Celery

import benchmarks.overhead_tasks  # noqa: F401

app = Celery("stock", broker=os.environ["JOBPLANE_WORKER_BROKER_URL"], backend=os.environ["JOBPLANE_WORKER_REDIS_URL"])
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    task_track_started=True,
    result_extended=True,
    result_backend_always_retry=True,
)
