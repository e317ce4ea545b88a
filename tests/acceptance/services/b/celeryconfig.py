"""Service B: a quorum queue on a topic exchange, with a route for everything it sends itself."""

import os

from kombu import Exchange, Queue

broker_url = os.environ["SERVICE_BROKER_URL"]
result_backend = os.environ["SERVICE_REDIS_URL"]

_topic = Exchange("service_b_topic", type="topic")

task_queues = [
    Queue("service_b_jobs", _topic, routing_key="b.#", queue_arguments={"x-queue-type": "quorum"}),
    Queue("service_b_mail", _topic, routing_key="mail.#", queue_arguments={"x-queue-type": "quorum"}),
]
task_default_queue = "service_b_jobs"
task_default_exchange = "service_b_topic"
task_default_exchange_type = "topic"
task_default_routing_key = "b.default"
task_routes = {"apps.tasks.*": {"queue": "service_b_jobs", "routing_key": "b.work"}}
task_acks_late = True
result_extended = True
worker_concurrency = 2
