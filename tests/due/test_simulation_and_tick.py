"""The simulation tells what the plane does: the same histories through a real tick on a database, event by event."""

import random
from datetime import UTC, datetime, timedelta
from typing import Any, get_args

import pytest
from redis.asyncio import Redis

from app.database import Connection, Database, Record
from app.due import tick
from app.due.overlap import Overlap
from app.due.simulate import simulate
from app.due.simulated import Bodies, Policies, Run, Simulation
from app.due.tick import Tick
from app.progress import moves
from app.progress.standing import Move, Standing
from app.progress.transition import apply
from app.schedule import triggers
from app.schedule.triggers import SECOND
from app.states import FAILURE, REVOKED, SUCCESS
from tests.due.test_tick import add_job

BEGIN = datetime(2026, 11, 22, 10, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
TRIGGERS: list[dict[str, Any]] = [
    {"type": "cron", "expression": "*/10 * * * *"},
    {"type": "cron", "expression": "*/7 * * * *", "jitter_s": 240},
    {"type": "interval", "every_s": 240},
]


class World:
    """A database in which time is given, and bodies that take as long as they are told to."""

    def __init__(
        self,
        database: Database,
        redis: Redis,
        bodies: Bodies,
        end: datetime,
        outages: list[tuple[datetime, datetime]],
    ) -> None:
        self.now = BEGIN
        self._database = database
        self._redis = redis
        self._bodies = bodies
        self._end = end
        self._outages = outages
        #: By run, when its body began.
        self._begun: dict[Any, datetime] = {}

    async def given(self, _: Connection) -> datetime:
        return self.now

    async def pass_by(self) -> None:
        """All that happens, in order: what ends at an instant has ended before a scheduler looks."""
        while True:
            async with self._database.reading() as connection:
                runs = await connection.fetch("SELECT * FROM runs ORDER BY id")
                due = await connection.fetchval("SELECT next_run_time FROM jobs")
            live = {run["id"]: self._planned(n, run) for n, run in enumerate(runs, 1) if run["end_time"] is None}
            changes = [planned[0] for planned in live.values() if planned is not None]
            looks = [self._present(time) for time in (due, *(over for _, over in self._outages)) if time is not None]
            looks = [time for time in looks if time < self._end and (time > self.now or time == self._present(due))]
            if not changes and not looks:
                return
            self.now = max(min([*changes, *looks]), self.now)
            if changes and min(changes) <= self.now:
                await self._end_runs(live)
                if self.now >= self._end or self._present(self.now) > self.now:
                    continue
            await Tick(self._database, self._redis, 10).run_once()
            await self._begin()

    def _present(self, time: datetime | None) -> datetime | None:
        while time is not None and (ends := [over for begin, over in self._outages if begin <= time < over]):
            time = max(ends)
        return time

    def _planned(self, number: int, run: Record) -> tuple[datetime, Move] | None:
        """When a run ends by itself, and how; None: it waits for others."""
        begun = self._begun.get(run["id"])
        if begun is None:
            late = run["start_deadline_time"]
            return late and (max(late, run["create_time"]), moves.expire(max(late, run["create_time"])))
        end = begun + self._bodies.lengths[(number - 1) % len(self._bodies.lengths)]
        state = FAILURE if number in self._bodies.failing else SUCCESS
        if (cancel := run["cancel"]) is not None:
            patience = timedelta() if cancel["terminate"] else self._bodies.cancel
            asked = datetime.fromisoformat(cancel["time"])
            if patience is not None and asked + patience < end:
                return asked + patience, moves.cancel(asked + patience, "told to")
        error = {"type": "E", "message": "", "traceback": None} if state == FAILURE else None

        def over(standing: Standing) -> Standing:
            return moves.end(end, standing, state, start_time=begun, error=error)

        return end, over

    async def _end_runs(self, live: dict[Any, tuple[datetime, Move] | None]) -> None:
        over = {run: [planned[1]] for run, planned in live.items() if planned and planned[0] <= self.now}
        async with self._database.transaction() as connection:
            await apply(connection, self.now, over)
        await self._begin()

    async def _begin(self) -> None:
        """A message of each run that may begin goes out, and a worker is there for it."""
        async with self._database.transaction() as connection:
            rows = await connection.fetch(
                """
                UPDATE runs SET dispatches = 1, dispatch_time = $1, version = version + 1
                WHERE end_time IS NULL AND waits_for IS NULL AND dispatches = 0
                    AND (start_deadline_time IS NULL OR start_deadline_time > $1)
                RETURNING id
                """,
                self.now,
            )
        self._begun |= {row["id"]: self.now for row in rows}

    async def told(self) -> list[tuple[Any, ...]]:
        async with self._database.reading() as connection:
            runs = await connection.fetch("SELECT * FROM runs ORDER BY id")
            skips = await connection.fetch("SELECT * FROM skips ORDER BY first_time")
            job = await connection.fetchrow("SELECT * FROM jobs")
        assert job is not None
        number = {run["id"]: n for n, run in enumerate(runs, 1)} | {None: None}
        found: list[tuple[Any, ...]] = [
            (
                *(number[run["id"]], run["scheduled_time"], run["create_time"], self._begun.get(run["id"])),
                *(run["end_time"], outcome(run)),
            )
            for run in runs
        ]
        found += [
            (skip["reason"], skip["first_time"], skip["last_time"], skip["count"], number[skip["run_id"]])
            for skip in skips
            if skip["reason"] != "paused"
        ]
        return [*found, ("paused", job["pause_time"])]


def outcome(run: Record) -> str:
    if run["state"] != REVOKED:
        return str(run["state"]).lower()
    if run["reason"] == moves.START_DEADLINE:
        return "start_deadline"
    if run["reason"].startswith(moves.REPLACED):
        return "replaced"
    return "terminated" if run["cancel"]["terminate"] else "cancelled"


def same(found: Simulation) -> list[tuple[Any, ...]]:
    """A simulation in the form of `World.told`. What is skipped in a pause is told when somebody resumes."""
    runs = sorted(found.runs, key=lambda run: run.number)
    told: list[tuple[Any, ...]] = [
        (run.number, run.scheduled_time, run.fire_time, run.begin_time, run.end_time, run.outcome) for run in runs
    ]
    told += [
        (skip.reason, skip.first_time, skip.last_time, skip.count, skip.run)
        for skip in found.skips
        if skip.reason != "paused"
    ]
    paused = [event.time for event in found.events if not isinstance(event, Run) and hasattr(event, "failures")]
    return [*told, ("paused", paused[0] if paused else None)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("overlap", get_args(Overlap))
async def test_the_same_history_in_a_simulation_and_on_a_database(
    database: Database, redis: Redis, monkeypatch: pytest.MonkeyPatch, overlap: Overlap, seed: int
) -> None:
    chance = random.Random(f"{overlap} {seed}")
    trigger = triggers.parse(chance.choice(TRIGGERS))
    policies = Policies(
        overlap,
        max_active=chance.choice([None, None, 1, 2]),
        misfire=chance.choice(["latest", "earliest", "all", "none"]),
        catchup_window_s=chance.choice([600, 1800, 86_400]),
        start_deadline_s=chance.choice([None, None, 400, 1200]),
        pause_after_failures=chance.choice([None, 1, 2]),
    )
    bodies = Bodies(
        [timedelta(seconds=chance.choice([61, 300, 600, 901, 1500])) for _ in range(3)],
        failing={chance.randint(2, 12) for _ in range(3)},
        cancel=chance.choice([None, timedelta(), 2 * MINUTE]),
    )
    end = BEGIN + 90 * MINUTE
    outages = [(BEGIN + 25 * MINUTE, BEGIN + chance.choice([26, 52, 60]) * MINUTE)]
    async with database.transaction() as connection:
        fields = {name: getattr(policies, name) for name in Policies.__slots__}
        job_id = await add_job(
            connection,
            BEGIN - SECOND,
            BEGIN,
            trigger=trigger.model_dump(mode="json"),
            **fields,
        )
        first = triggers.next_due(trigger, job_id, BEGIN - SECOND)
        await connection.execute("UPDATE jobs SET next_run_time = $1", first)
    world = World(database, redis, bodies, end, outages)
    monkeypatch.setattr(tick, "clock", world.given)
    await world.pass_by()
    found = simulate(trigger, policies, bodies, begin=BEGIN, end=end, outages=outages, job_id=job_id)
    assert await world.told() == same(found)
    assert len(found.runs) > 1
