import os

from celery import Celery

app = Celery("service_a")
app.config_from_object("celeryconfig")


@app.task(bind=True, name="apps.tasks.scheduled_job.calc_post_score")
def calc_post_score(self, post):
    for step in (1, 2):
        self.update_state(state="PROGRESS", meta={"current": step, "total": 2})
    return {"service": "A", "post": post, "score": post * 2, "pid": os.getpid()}


@app.task(name="apps.tasks.only_in_a")
def only_in_a():
    return "A"
