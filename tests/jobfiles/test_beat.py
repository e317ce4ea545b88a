"""A `beat_schedule` as jobs: the page's own schedule becomes the page's own jobs, and what differs is said."""

import re
from datetime import UTC, datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import yaml
from celery import Celery
from celery.beat import BeatLazyFunc
from celery.schedules import crontab, schedule, solar

from app.api.schemas.jobs import JobIn
from app.jobfiles import beat
from app.jobfiles.beat import convert
from app.schedule import triggers
from tests.acceptance.test_from_beat import AFTER, Beat, celery_app

PAGE = (Path(__file__).parents[2] / "docs" / "from-beat.md").read_text()


def page_app() -> Celery:
    (python,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.DOTALL)[:1]
    app = celery_app()
    exec(python, {"app": app, "crontab": crontab, "timedelta": timedelta})
    return app


def told(made: beat.Import, name: str) -> str:
    return " / ".join(text for one, text in made.differs if one == name)


def one(entry: dict[str, Any], zone: str = "UTC") -> tuple[dict[str, Any], str]:
    made = convert({"entry": {"task": "x.y", **entry}}, zone, "celery")
    (job,) = made.jobs
    JobIn.model_validate(job)
    return job, told(made, "entry")


def left_out(entry: dict[str, Any]) -> str:
    made = convert({"entry": entry}, "UTC", "celery")
    assert made.jobs == []
    return made.left_out[0][1]


def test_the_pages_schedule_becomes_the_pages_jobs() -> None:
    app = page_app()
    made = convert(app.conf.beat_schedule, "Asia/Shanghai", app.conf.task_default_queue)
    assert made.left_out == []
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)[:1]
    page = yaml.safe_load(text)
    document = made.document("forum", None)
    assert [one["name"] for one in document["queues"]] == [one["name"] for one in page["queues"]]

    def whole(job: dict[str, Any]) -> dict[str, Any]:
        found = JobIn.model_validate({"namespace": "forum", **job}).definition().document()
        found["trigger"]["expression"] = _canonical(found["trigger"].get("expression", ""))
        return found

    assert [whole(job) for job in document["jobs"]] == [whole(job) for job in page["jobs"]]
    assert "MON#1" in told(made, "invoices")
    assert "`22-4` is written 0-4,22-23" in told(made, "night-watch")
    assert "multiples since 1970" in told(made, "counts")
    assert told(made, "post-score").startswith("`expires` counts from the sending")
    assert beat.ROUTES in told(made, "digest")


def _canonical(expression: str) -> str:
    """Two ways to write the same set of a field are one."""
    same = {"22-23,0-4": "0-4,22-23", "sat,sun": "0,6"}
    return " ".join(same.get(part, part) for part in expression.split())


@pytest.mark.parametrize(
    "fields",
    [
        {"minute": 5},
        {"minute": "*/7", "hour": "1-20/3"},
        {"minute": [0, 15, 30], "hour": {3, 4}},
        {"hour": "22-4", "minute": "0"},
        {"hour": 0, "minute": 0, "day_of_week": "sat-sun"},
        {"hour": 0, "minute": 0, "day_of_week": "mon#1"},
        {"hour": 0, "minute": 0, "day_of_week": "0,3"},
        {"hour": 0, "minute": 0, "day_of_week": "friday,monday"},
        {"hour": 9, "minute": 0, "day_of_month": "8-14", "day_of_week": "tue"},
        {"hour": 9, "minute": 0, "day_of_month": "*/10"},
        {"hour": 9, "minute": 0, "day_of_month": 1, "month_of_year": "*/3"},
        {"minute": "50-10/5"},
    ],
    ids=str,
)
def test_crontabs_fire_as_beat_does(fields: dict[str, Any]) -> None:
    job, _ = one({"schedule": crontab(**fields)})
    trigger = triggers.parse(job["trigger"])
    ours = list(islice(triggers.times(trigger, AFTER, AFTER + timedelta(days=4000)), 20))
    assert ours == list(islice(Beat(celery_app(), AFTER, crontab(**fields)).times(), 20))


def test_pain_10_and_7_days_of_the_week_and_clock_changes_are_told() -> None:
    job, said = one({"schedule": crontab(minute=0, hour=9, day_of_week=1)}, "Europe/Paris")
    assert job["trigger"] == {"type": "cron", "expression": "0 9 * * 1", "timezone": "Europe/Paris"}
    assert "0 is Sunday in both" in said
    assert beat.CLOCK in said
    assert beat.CLOCK not in one({"schedule": crontab(minute=0, hour=9)}, "Asia/Shanghai")[1]
    _, said = one({"schedule": crontab(minute=0, hour=9, day_of_week="mon#1")})
    assert "beat takes `mon#1` for every such day" in said


def test_intervals() -> None:
    app = celery_app()
    for when in (600, 600.0, timedelta(minutes=10), schedule(timedelta(minutes=10), app=app)):
        job, said = one({"schedule": when})
        assert job["trigger"] == {"type": "interval", "every_s": 600}
        assert beat.INTERVAL in said
    job, said = one({"schedule": timedelta(days=1), "relative": True}, "Asia/Shanghai")
    assert job["trigger"]["expression"] == "@daily"
    assert beat.INTERVAL not in said
    job, said = one({"schedule": schedule(7200, relative=True, app=app)})
    assert job["trigger"]["every_s"] == 7200
    assert beat.RELATIVE in said
    for seconds in (0.5, 1.5, 0, -5):
        assert "whole seconds" in left_out({"task": "x", "schedule": seconds})


def test_events_of_the_sun() -> None:
    job, _ = one({"schedule": solar("sunset", 48.8, 2.3, app=celery_app())})
    assert job["trigger"] == {"type": "solar", "event": "sunset", "latitude": 48.8, "longitude": 2.3}


def test_options() -> None:
    options = {"queue": "q", "priority": 3, "time_limit": 900, "soft_time_limit": None, "expires": 1.5}
    job, said = one({"schedule": 60, "args": (1, (2,)), "kwargs": {"a": None}, "options": options})
    assert job == {
        "name": "entry",
        "task": "x.y",
        "args": [1, [2]],
        "kwargs": {"a": None},
        "queue": "q",
        "priority": 3,
        "time_limit_s": 900,
        "start_deadline_s": 2,
        "trigger": {"type": "interval", "every_s": 60},
        "enabled": False,
    }
    assert beat.ROUTES not in said
    until = datetime(2090, 1, 1, tzinfo=UTC)
    more = {"expires": until, "countdown": 3, "headers": {}, "ignore_result": True, "routing_key": "r"}
    job, said = one({"schedule": 60, "options": more})
    assert datetime.fromisoformat(job["trigger"]["end_time"]) == until
    for part in (
        "`end_time`",
        "nothing for countdown, headers",
        "`ignore_result`",
        "exchange and routing key",
        beat.ROUTES,
    ):
        assert part in said
    local, _ = one({"schedule": 60, "options": {"expires": datetime(2090, 1, 1)}}, "Asia/Shanghai")  # noqa: DTZ001
    assert local["trigger"]["end_time"] == "2090-01-01T00:00:00+08:00"
    assert one({"schedule": 60, "options": {"expires": timedelta(hours=1)}})[0]["start_deadline_s"] == 3600
    assert "left out" in one({"schedule": 60, "options": {"expires": "soon"}})[1]


def test_what_can_be_no_job_is_left_out_and_told() -> None:
    both = crontab(minute=0, hour=9, day_of_month="1-5", day_of_week="mon")
    assert left_out({"task": "x", "schedule": both}) == beat.BOTH_DAYS
    assert "BeatLazyFunc" in left_out({"task": "x", "schedule": 60, "args": [BeatLazyFunc(datetime.now)]})
    assert "names no task" in left_out({"schedule": 60})
    assert "is a str" in left_out({"task": "x", "schedule": "hourly"})


def test_names_become_names_of_ours() -> None:
    entry = {"task": "x", "schedule": 60}
    names = ("every 10 s", "every-10-s", "äöü", "_x", "fine.name", "y" * 200)
    made = convert(dict.fromkeys(names, entry), "UTC", "celery")
    assert [job["name"] for job in made.jobs] == ["every-10-s", "every-10-s-2", "job", "x", "fine.name", "y" * 128]
    assert "its name is 'every-10-s-2' here" in told(made, "every-10-s-2")
    assert "its name" not in told(made, "fine.name")
    for job in made.jobs:
        JobIn.model_validate(job)
