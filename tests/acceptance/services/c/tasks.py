"""Service C: names no queue anywhere; `-Q` alone says where it works."""

import os

from celery import Celery

app = Celery("service_c", broker=os.environ["SERVICE_BROKER_URL"], backend=os.environ["SERVICE_REDIS_URL"])
app.conf.task_create_missing_queue_type = os.environ.get("SERVICE_QUEUE_TYPE", "classic")


@app.task(name="apps.tasks.where")
def where():
    return "C"
