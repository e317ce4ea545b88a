"""What users of other schedulers have met, on a real tick and database. The numbers are rows of the peers' pains."""

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from redis.asyncio import Redis

from app.database import Connection, Database, Record
from app.due import tick
from app.due.tick import Tick
from app.progress import reap
from app.progress.reap import Reaper
from app.schedule import triggers
from app.settings import Settings
from tests.due.test_tick import add_job
from tests.processes import eventually
from tests.progress.standings import policy

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
ZONES = (
    *("Pacific/Kiritimati", "Asia/Kathmandu", "Australia/Lord_Howe", "Asia/Shanghai", "Europe/Paris", "UTC"),
    *("America/St_Johns", "America/Santiago", "Pacific/Pago_Pago"),
)


class Plane:
    """A scheduler on a database in which time is given."""

    def __init__(self, database: Database, redis: Redis, settings: Settings) -> None:
        self.now = datetime(2026, 11, 22, 10, tzinfo=UTC)
        self._database = database
        self._redis = redis
        self._settings = settings
        self._tick = Tick(database, redis, 100)

    async def given(self, _: Connection) -> datetime:
        return self.now

    async def job(self, trigger: dict[str, Any], **changes: Any) -> UUID:
        """A job that was made now."""
        async with self._database.transaction() as connection:
            job_id = await add_job(connection, self.now, trigger=trigger, **{"overlap": "skip", **changes})
            first = triggers.next_due(triggers.load(trigger), job_id, self.now)
            await connection.execute("UPDATE jobs SET next_run_time = $2 WHERE id = $1", job_id, first)
        return job_id

    async def look(self, now: datetime) -> None:
        """A scheduler does what there is to do at that time."""
        self.now = now
        while await self._tick.run_once():
            pass

    async def looks(self, until: datetime, every: timedelta) -> None:
        while self.now + every <= until:
            await self.look(self.now + every)

    async def reap(self) -> None:
        await Reaper(self._database, self._redis, self._settings, None).run_once()

    async def runs(self, job_id: UUID) -> list[Record]:
        return await self.rows("SELECT * FROM runs WHERE job_id = $1 ORDER BY id", job_id)

    async def skips(self, job_id: UUID) -> list[tuple[Any, ...]]:
        """Reason, count and run of each row."""
        rows = await self.rows("SELECT reason, count, run_id FROM skips WHERE job_id = $1 ORDER BY first_time", job_id)
        return [tuple(row) for row in rows]

    async def rows(self, query: str, *values: Any) -> list[Record]:
        async with self._database.reading() as connection:
            return await connection.fetch(query, *values)

    async def change(self, query: str, *values: Any) -> None:
        async with self._database.transaction() as connection:
            await connection.execute(query, *values)


@pytest.fixture
def plane(database: Database, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Plane:
    made = Plane(database, redis, settings)
    monkeypatch.setattr(tick, "clock", made.given)
    monkeypatch.setattr(reap, "clock", made.given)
    return made


async def test_pain_6_each_zone_fires_at_its_hour_and_keeps_its_start_deadline(plane: Plane) -> None:
    jobs = {
        zone: await plane.job(
            {"type": "cron", "expression": "30 9 * * *", "timezone": zone}, start_deadline_s=600, overlap="allow"
        )
        for zone in ZONES
    }
    await plane.looks(plane.now + 48 * HOUR, 15 * MINUTE)
    for zone, job_id in jobs.items():
        runs = await plane.runs(job_id)
        locals_ = [run["scheduled_time"].astimezone(ZoneInfo(zone)) for run in runs]
        assert [(time.hour, time.minute) for time in locals_] == [(9, 30)] * 2, zone
        assert [run["start_deadline_time"] - run["scheduled_time"] for run in runs] == [10 * MINUTE] * 2
    await plane.reap()
    for job_id in jobs.values():
        reasons = [run["reason"] for run in await plane.runs(job_id) if run["start_deadline_time"] <= plane.now]
        assert set(reasons) == {"start deadline"}


@pytest.mark.parametrize(
    ("expression", "day", "times"),
    [
        pytest.param("0 * * * *", "2026-11-01", [f"{hour % 24:02}:00" for hour in range(4, 29)], id="hourly, twice"),
        pytest.param("0 * * * *", "2026-03-08", [f"{hour % 24:02}:00" for hour in range(5, 28)], id="hourly, left out"),
        pytest.param("30 1 * * *", "2026-11-01", ["05:30"], id="daily, in the hour that comes twice"),
        pytest.param("30 2 * * *", "2026-03-08", ["07:00"], id="daily, in the hour that is left out"),
        pytest.param("0 11 * * *", "2026-11-01", ["16:00"], id="daily, later on that day"),
    ],
)
async def test_pains_7_and_8_the_day_on_which_the_clock_changes(
    plane: Plane, expression: str, day: str, times: list[str]
) -> None:
    """In New York, looked at every half hour: each instant once, at the right hour, none made ahead of its time."""
    zone = ZoneInfo("America/New_York")
    midnight = datetime.fromisoformat(day).replace(tzinfo=zone)
    plane.now = midnight.astimezone(UTC) - timedelta(seconds=1)
    job_id = await plane.job(
        {"type": "cron", "expression": expression, "timezone": "America/New_York"}, overlap="allow"
    )
    end = (midnight + timedelta(days=1)).astimezone(UTC)
    while plane.now < end - MINUTE:
        await plane.look(plane.now + 30 * MINUTE)
        runs = await plane.runs(job_id)
        assert all(run["scheduled_time"] <= plane.now for run in runs)
    assert [run["scheduled_time"].strftime("%H:%M") for run in runs] == times


async def test_pain_11_a_time_that_is_looked_at_late_runs_or_is_told(plane: Plane) -> None:
    """Four seconds late it fires, whatever the policies; hours late it is in a row of skips, not only in a log."""
    job_id = await plane.job({"type": "interval", "every_s": 3600}, misfire="none", catchup_window_s=0)
    await plane.look(plane.now + HOUR + timedelta(seconds=4))
    assert len(await plane.runs(job_id)) == 1
    await plane.look(plane.now + 3 * HOUR + 30 * MINUTE)
    assert len(await plane.runs(job_id)) == 1
    assert await plane.skips(job_id) == [("missed", 3, None)]


@pytest.mark.parametrize(("overlap", "copies"), [("skip", 1), ("buffer_one", 2), ("cancel_other", 1)])
async def test_pain_16_no_pile_of_copies_waits_for_workers_that_are_down(
    plane: Plane, overlap: str, copies: int
) -> None:
    job_id = await plane.job({"type": "interval", "every_s": 60}, overlap=overlap)
    await plane.looks(plane.now + HOUR, MINUTE)
    live = [run for run in await plane.runs(job_id) if run["end_time"] is None]
    assert len(live) == copies
    assert sum(run["waits_for"] is None for run in live) == 1
    runs, skipped = len(await plane.runs(job_id)), sum(count for _, count, _ in await plane.skips(job_id))
    assert runs + skipped == 60


async def test_pain_16_what_nobody_started_in_time_does_not_run_when_they_are_back(plane: Plane) -> None:
    job_id = await plane.job({"type": "interval", "every_s": 600}, start_deadline_s=300)
    await plane.look(plane.now + 10 * MINUTE)
    await plane.look(plane.now + 6 * MINUTE)
    await plane.reap()
    await plane.look(plane.now + 4 * MINUTE)
    first, second = await plane.runs(job_id)
    assert (first["state"], first["reason"], second["state"]) == ("REVOKED", "start deadline", "PENDING")


async def test_pain_17_a_ghost_is_named_in_the_skips_and_reaped(
    plane: Plane, database: Database, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run whose worker died is in the way as long as nobody knows, by its name; then it ends and the next fires."""
    job_id = await plane.job({"type": "interval", "every_s": 60}, retry=policy(max_lost=0))
    await plane.look(plane.now + MINUTE)
    (run,) = await plane.runs(job_id)
    await plane.change(
        "UPDATE runs SET state = 'STARTED', start_time = $2, update_time = $2, worker = 'w@h', leased = true,"
        " dispatches = 1, dispatch_time = $2, version = 3 WHERE id = $1",
        run["id"],
        plane.now,
    )
    await plane.looks(plane.now + 3 * MINUTE, MINUTE)
    assert await plane.skips(job_id) == [("overlap", 3, run["id"])]

    reaper = Reaper(database, redis, settings, None, lease_s=0.2, silence_s=0.3)

    async def reaped() -> bool:
        await reaper.run_once()
        return (await plane.runs(job_id))[0]["end_time"] is not None

    await eventually(reaped, what="the end of a run without a lease")
    await plane.look(plane.now + MINUTE)
    ghost, following = await plane.runs(job_id)
    assert (ghost["state"], ghost["error"]["type"], following["state"]) == ("FAILURE", "WorkerLost", "PENDING")
    assert len(await plane.skips(job_id)) == 1


async def test_pain_22_several_crons_of_one_job_catch_up_once(plane: Plane) -> None:
    crons = [{"type": "cron", "expression": f"{minute} * * * *"} for minute in (0, 20, 40)]
    job_id = await plane.job({"type": "any_of", "of": crons})
    await plane.look(plane.now + 5 * HOUR + 30 * MINUTE)
    (run,) = await plane.runs(job_id)
    assert run["scheduled_time"] == plane.now - 10 * MINUTE
    assert await plane.skips(job_id) == [("coalesced", 15, run["id"])]


@pytest.mark.parametrize("misfire", ["latest", "all"])
async def test_pain_36_no_absence_is_too_long(plane: Plane, misfire: str) -> None:
    """Three years of a job each second: dealt with in two looks, counted to the second, and it goes on."""
    begin = plane.now
    job_id = await plane.job(
        {"type": "interval", "every_s": 1}, misfire=misfire, overlap="allow", catchup_window_s=86_400
    )
    await plane.look(plane.now + timedelta(days=3 * 365))
    reasons: Counter[str] = Counter()
    for reason, count, _ in await plane.skips(job_id):
        reasons[reason] += count
    runs = len(await plane.runs(job_id))
    assert runs == (1 if misfire == "latest" else 100)
    assert runs + reasons.total() == (plane.now - begin).total_seconds()
    assert reasons["missed"] == (plane.now - begin).total_seconds() - 86_401
    await plane.look(plane.now + timedelta(seconds=1))
    assert len(await plane.runs(job_id)) == runs + 1


async def test_pain_37_a_skip_says_which_times_and_why(plane: Plane) -> None:
    """Skips are rows; an absence of a day loses nothing, for the window is one by default."""
    job_id = await plane.job({"type": "interval", "every_s": 60}, catchup_window_s=86_400)
    begin = plane.now
    await plane.look(begin + 24 * HOUR)
    (run,) = await plane.runs(job_id)
    await plane.look(begin + 24 * HOUR + 2 * MINUTE)
    assert await plane.skips(job_id) == [("coalesced", 1439, run["id"]), ("overlap", 2, run["id"])]
    rows = await plane.rows("SELECT first_time, last_time FROM skips WHERE job_id = $1 ORDER BY first_time", job_id)
    assert [(row["first_time"] - begin, row["last_time"] - begin) for row in rows] == [
        (MINUTE, 24 * HOUR - MINUTE),
        (24 * HOUR + MINUTE, 24 * HOUR + 2 * MINUTE),
    ]
