"""What `docs/from-beat.md` says is so: beat's own classes beside ours, and its jobs through the real API."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from celery import Celery
from celery.beat import PersistentScheduler, ScheduleEntry
from celery.schedules import crontab, schedule
from pydantic import ValidationError

from app.schedule import triggers
from examples.community import load
from tests.acceptance.plane import Api, Plane

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs" / "from-beat.md").read_text()
PYTHON, YAML = (re.findall(rf"```{kind}\n(.*?)```", PAGE, flags=re.DOTALL) for kind in ("python", "yaml"))
#: No clock changes in the months after it.
AFTER = datetime(2026, 6, 1, 0, 30, tzinfo=UTC)


def celery_app(zone: str = "UTC") -> Celery:
    app = Celery("beat", broker="memory://", set_as_current=False)
    app.conf.timezone = zone
    return app


@pytest.fixture
def app() -> Celery:
    """The page's service: its schedule as it stands there."""
    app = celery_app()
    exec(PYTHON[0], {"app": app, "crontab": crontab, "timedelta": timedelta})
    return app


@pytest.fixture
def api(plane: Plane) -> Api:
    return plane.api()


@pytest.fixture
def jobs(api: Api, tmp_path: Path) -> dict[str, dict[str, Any]]:
    """The page's jobs, made by the loader that it names."""
    file = tmp_path / "jobs.yaml"
    file.write_text(YAML[0])
    with load.client(api.url) as client:
        load.load_queues(client, file)
        load.load_jobs(client, file)
        assert {load.load_job(client, body) for body in load.read(file)["jobs"]} == {"unchanged"}
    return {job["name"]: job for job in api.every("/jobs")}


class Beat:
    """Beat's loop over one entry, with a clock that stands still but for the waits that beat asks for."""

    def __init__(self, app: Celery, start: datetime, timing: Any, *, relative: bool = False) -> None:
        self.now = start
        self._zone = ZoneInfo(app.conf.timezone)
        self._entry = ScheduleEntry("entry", "task", schedule=timing, relative=relative, app=app)
        self._entry.schedule.nowfun = lambda: self.now.astimezone(self._zone)
        self._entry.last_run_at = self._entry.default_now()

    def times(self) -> Iterator[datetime]:
        """When it sends, to the second."""
        while True:
            due, wait_s = self._entry.is_due()
            if due:
                self._entry = next(self._entry)
                yield self.now.replace(microsecond=0)
                wait_s = 0.5
            self.now += timedelta(seconds=max(wait_s, 0.5))


def first(times: Iterator[datetime], count: int) -> list[datetime]:
    return list(islice(times, count))


def ours(trigger: dict[str, Any], after: datetime, count: int) -> list[datetime]:
    return list(islice(triggers.times(triggers.parse(trigger), after, after + timedelta(days=2000)), count))


def test_each_entry_has_a_job_that_says_the_same(app: Celery, api: Api, jobs: dict[str, dict[str, Any]]) -> None:
    assert list(jobs) == list(app.conf.beat_schedule)
    for name, entry in app.conf.beat_schedule.items():
        job, options = jobs[name], entry.get("options", {})
        assert (job["task"], job["args"], job["kwargs"]) == (
            entry["task"],
            entry.get("args", []),
            entry.get("kwargs", {}),
        )
        assert job["queue"] == options.get("queue", app.conf.task_default_queue)
        assert job["start_deadline_s"] == options.get("expires")
        for option, member in (
            ("priority", "priority"),
            ("time_limit", "time_limit_s"),
            ("soft_time_limit", "soft_time_limit_s"),
        ):
            assert job[member] == options.get(option), name

        # Nothing fires yet, but the times can be looked at, and a run asked for.
        assert (job["enabled"], job["next_run_time"]) == (False, None)
        assert api.get(f"/jobs/{job['id']}/next", count=3)["times"]
        assert api.post(f"/jobs/{job['id']}/trigger", status=201)["state"] == "PENDING"

        beat = Beat(app, AFTER, entry["schedule"], relative=entry.get("relative", False)).times()
        fired = ours(job["trigger"], AFTER, 50)
        if job["trigger"]["type"] == "cron":
            assert fired == first(beat, 50), name
        else:
            assert {later - earlier for earlier, later in pairwise(fired)} == {entry["schedule"]}
            assert {time.minute % 10 for time in fired} == {0}
    _enabling_means_from_now_or_from_a_start_time(api, f"/jobs/{jobs['counts']['id']}")


def _enabling_means_from_now_or_from_a_start_time(api: Api, job: str) -> None:
    now = datetime.now(UTC)
    on = api.call("PATCH", job, {"enabled": True})
    assert now < datetime.fromisoformat(on["next_run_time"]) <= now + timedelta(minutes=11)
    start = (now + timedelta(days=3)).replace(microsecond=0)
    later = api.call("PATCH", job, {"trigger": {"start_time": start.isoformat()}})
    assert datetime.fromisoformat(later["next_run_time"]) == start
    off = api.call("PATCH", job, {"enabled": False})
    assert off["next_run_time"] is None


def test_the_schedule_that_beat_has_holds_what_was_added() -> None:
    app = celery_app()

    @app.on_after_finalize.connect
    def add(sender: Celery, **_: object) -> None:
        sender.add_periodic_task(20.0, task.s(), name="added")

    @app.task
    def task() -> None: ...

    app.finalize()
    assert list(app.conf.beat_schedule) == ["added"]


def _rows() -> list[tuple[str, ...]]:
    found = re.findall(r"^\| `(crontab\(.*?\))` \| (\S+) (\S+) \| (.+?) \| (.+?) \|$", PAGE, flags=re.MULTILINE)
    assert len(found) == PAGE.count("| `crontab(")
    return found


def _on(day: str, times: list[datetime], zone: ZoneInfo) -> str:
    shown = [local for time in times if (local := time.astimezone(zone)).date().isoformat() == day]
    return f"at {shown[0]:%H:%M}" if len(shown) == 1 else f"{len(shown)} times"


@pytest.mark.parametrize(("entry", "place", "day", "beat_does", "we_do"), _rows())
def test_clock_changes(entry: str, place: str, day: str, beat_does: str, we_do: str) -> None:
    zone = ZoneInfo(place)
    begin = datetime.fromisoformat(f"{day}T00:00").replace(tzinfo=zone).astimezone(UTC) - timedelta(minutes=1)
    fields = {name: value.strip('"') for name, value in re.findall(r'(\w+)=("[^"]*"|\d+)', entry)}
    timing = crontab(**fields)
    assert _on(day, first(Beat(celery_app(place), begin, timing).times(), 30), zone) == beat_does
    trigger = {"type": "cron", **fields, "timezone": place}
    assert _on(day, ours(trigger, begin, 30), zone) == we_do


def test_what_is_refused_and_what_beat_takes_instead() -> None:
    def refused(**fields: Any) -> str:
        with pytest.raises(ValidationError) as refusal:
            triggers.parse({"type": "cron", **fields})
        return str(refusal.value)

    assert "both match" in refused(day_of_month="1-7", day_of_week="mon")
    assert "runs backwards" in refused(hour="22-4")
    assert "runs backwards" in refused(day_of_week="sat-sun")
    with pytest.raises(ValueError, match="0-6"):
        crontab(day_of_week=7)
    sunday = {"type": "cron", "minute": 0, "hour": 0, "day_of_week": 7}
    assert {time.isoweekday() for time in ours(sunday, AFTER, 5)} == {7}
    assert crontab(day_of_week="mon#1") == crontab(day_of_week="mon")


def test_intervals_of_beat_begin_with_its_start_and_drift() -> None:
    app, every = celery_app(), timedelta(minutes=10)
    beat = Beat(app, AFTER + timedelta(seconds=7), every).times()
    assert next(beat) == AFTER + timedelta(minutes=10, seconds=7)
    counted = schedule(every, app=app)
    late = AFTER + timedelta(seconds=40)
    counted.nowfun = lambda: late
    assert counted.is_due(late).next == every.total_seconds(), "from the sending, not from when it should have been"
    two_hours = first(Beat(app, AFTER, timedelta(hours=2), relative=True).times(), 3)
    assert [(time.hour, time.minute) for time in two_hours] == [(2, 0), (4, 0), (6, 0)]
    odd = first(Beat(app, AFTER + timedelta(hours=1), timedelta(hours=2), relative=True).times(), 2)
    assert [time.hour for time in odd] == [3, 5]


def test_what_beat_missed_it_sends_once() -> None:
    app = celery_app()
    timing = crontab(minute=0, hour=9, app=app)
    now = datetime(2026, 6, 10, 12, tzinfo=UTC)
    timing.nowfun = lambda: now
    assert timing.is_due(now - timedelta(days=3)).is_due
    app.conf.beat_cron_starting_deadline = 3600
    assert not timing.is_due(now - timedelta(days=3)).is_due


def test_an_entry_that_was_gone_begins_anew_and_one_that_was_kept_does_not(tmp_path: Path) -> None:
    file = str(tmp_path / "celerybeat-schedule")
    long_ago = datetime.now(UTC) - timedelta(days=2)

    def beat(*names: str) -> PersistentScheduler:
        app = celery_app()
        app.conf.beat_schedule = {name: {"task": "task", "schedule": crontab(minute=0)} for name in names}
        return PersistentScheduler(app, schedule_filename=file)

    scheduler = beat("moved", "kept")
    for entry in scheduler.schedule.values():
        entry.last_run_at = long_ago
    scheduler.close()
    scheduler = beat("kept")
    assert "moved" not in scheduler.schedule
    scheduler.close()
    scheduler = beat("moved", "kept")
    try:
        assert scheduler.schedule["kept"].is_due().is_due, "at once, for what has come due since"
        assert scheduler.schedule["moved"].last_run_at > long_ago + timedelta(days=1)
    finally:
        scheduler.close()
