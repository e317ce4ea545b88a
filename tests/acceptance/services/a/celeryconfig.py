"""Service A: one classic queue with arguments of its own, on a direct exchange."""

import os

from kombu import Exchange, Queue

broker_url = os.environ["SERVICE_BROKER_URL"]
result_backend = os.environ["SERVICE_REDIS_URL"]

task_queues = [
    Queue(
        "service_a",
        Exchange("service_a_exchange", type="direct"),
        routing_key="a.jobs",
        queue_arguments={"x-max-length": 100_000, "x-max-priority": 5},
    )
]
task_default_queue = "service_a"
task_track_started = True
worker_concurrency = 2

# With `-Q` it may be sent to a queue that it does not name: Celery then makes one of its own accord.
if "SERVICE_QUEUE_TYPE" in os.environ:
    task_create_missing_queue_type = os.environ["SERVICE_QUEUE_TYPE"]
