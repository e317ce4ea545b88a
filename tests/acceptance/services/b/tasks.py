import os

from celery import Celery

app = Celery("service_b", config_source="celeryconfig")


@app.task(name="apps.tasks.scheduled_job.calc_post_score")
def calc_post_score(post):
    return {"service": "B", "post": post, "score": post * 3, "pid": os.getpid()}


@app.task(name="apps.tasks.only_in_b")
def only_in_b():
    return "B"
