"""What a schedule would do: the runs and skips of a window, by the same functions that decide in the tick. Pure.

Where this world is simpler than the real one: a run begins at the instant at which it may, and a scheduler looks at the
very instant at which a time is due, or at the end of the outage in which that lies. What ends at the instant of a look
has ended. Only schedulers are away in an outage: runs go on in it, end, and let others go.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Final
from uuid import UUID

from app.due.decide import Decision, decide, rows_of, settle_paused, start_deadline
from app.due.overlap import REPLACING, Others, line_up, most_active, room
from app.due.simulated import Bodies, Pause, Policies, Run, Simulation, Skip
from app.errors import Invalid
from app.schedule.triggers import Trigger, count, due_time, next_due

#: The looks and runs that one simulation is made of, and the scheduled times in its window.
MAX_LOOKS: Final = 1_500
MAX_RUNS: Final = 1_500
MAX_TIMES: Final = 50_000
_NO_JOB: Final = UUID(int=0)
_INSTANT: Final = timedelta(microseconds=1)


def simulate(
    trigger: Trigger,
    policies: Policies,
    bodies: Bodies,
    *,
    begin: datetime,
    end: datetime,
    outages: Sequence[tuple[datetime, datetime]] = (),
    job_id: UUID = _NO_JOB,
) -> Simulation:
    """What becomes of the scheduled times in [begin, end). The last look is before `end`; runs go on to their own.

    No scheduler looks in the half-open spans of `outages`. Jitter is that of the job. Invalid if it is too much work;
    that is seen before it is done.
    """
    before = (begin - _INSTANT).replace(microsecond=0)  # scheduled times are whole seconds
    last = end - _INSTANT
    scheduled, exact = count(trigger, before, last)
    if not exact:
        raise Invalid.field("/to", "more times lie in this window than are counted; make it shorter")
    if scheduled > MAX_TIMES:
        raise Invalid.field("/to", f"more than {MAX_TIMES:,} times lie in this window; make it shorter")
    away = _merged(outages)
    returns = [over for _, over in away if over > begin]
    next_time = next_due(trigger, job_id, before)
    course = _Course(trigger, policies, bodies, end, away, job_id, before, next_time, returns)
    while course.step():
        pass
    events: list[Run | Skip | Pause] = [*course.runs, *course.skips]
    if course.pause is not None:
        events.append(course.pause)
    return Simulation(sorted(events, key=_place), scheduled, count(trigger, course.cursor, last)[0])


def _merged(spans: Sequence[tuple[datetime, datetime]]) -> list[tuple[datetime, datetime]]:
    """The same spans in order, those that meet as one."""
    found: list[tuple[datetime, datetime]] = []
    for begin, end in sorted(spans):
        if found and begin <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((begin, end))
    return found


def _place(event: Run | Skip | Pause) -> tuple[datetime, bool]:
    match event:
        case Run():
            return event.scheduled_time, True
        case Skip():
            return event.first_time, True
        case Pause():
            return event.time, False


@dataclass(slots=True)
class _Course:
    """One history, from one thing that happens to the next."""

    trigger: Trigger
    policies: Policies
    bodies: Bodies
    end: datetime
    outages: Sequence[tuple[datetime, datetime]]
    job_id: UUID
    cursor: datetime
    next_time: datetime | None
    #: The ends of outages that are still to come.
    returns: list[datetime]
    looks: int = 0
    runs: list[Run] = field(default_factory=list)
    #: Those that have not ended, in the order of their making.
    live: list[Run] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    pause: Pause | None = None

    def step(self) -> bool:
        """The next thing that happens; False if there is none."""
        look = self._next_look()
        change = min((time for run in self.live if (time := run.next_time) is not None), default=None)
        if change is not None and (look is None or change <= look):
            self._end_runs(change)
        elif look is not None:
            self._look(look)
        return look is not None or change is not None

    def _next_look(self) -> datetime | None:
        """When a time is due, or a scheduler comes back: it sees failures of runs, whether or not a time is due."""
        due = [] if self.next_time is None else [self._looked_at(self.next_time)]
        look = min([*due, *self.returns], default=self.end)
        return look if look < self.end and self.pause is None else None

    def _looked_at(self, time: datetime) -> datetime:
        """That time, or the end of the outage in which it lies."""
        return next((end for begin, end in self.outages if begin <= time < end), time)

    def _end_runs(self, now: datetime) -> None:
        """What is over ends, and lets go who waits for it."""
        for run in self.live:
            if run.waiting and run.next_time is not None and run.next_time <= now:
                run.finish(now, "start_deadline")
        self.live = [run for run in self.live if run.end_time is None or run.end_time > now]
        active = sum(not run.waiting for run in self.live)
        for place, run in enumerate([run for run in self.live if run.waiting], 1):
            if run.most_active is not None and active + place > run.most_active:
                break
            run.begin(now)
        if now < self.end and self._looked_at(now) == now:
            self._pause_if_failing(now)

    def _pause_if_failing(self, now: datetime) -> bool:
        """As the tick does, within a second: the newest ended runs have failed, as many as it takes."""
        most = self.policies.pause_after_failures
        if most is None or self.pause is not None:
            return self.pause is not None
        ended = (
            run
            for run in reversed(self.runs)
            if run.end_time is not None and run.end_time <= now and run.outcome in {"success", "failure"}
        )
        newest = list(islice(ended, most))
        if len(newest) == most and all(run.outcome == "failure" for run in newest):
            self.pause = Pause(now, most, newest[0].number)
            rest = settle_paused(self.trigger, job_id=self.job_id, cursor=self.cursor, now=self.end - _INSTANT)
            self._write(rest, None, None)
        return self.pause is not None

    def _look(self, now: datetime) -> None:
        self.looks += 1
        if self.looks > MAX_LOOKS:
            raise Invalid.field("/to", f"that is more than {MAX_LOOKS:,} looks of a scheduler; make the window shorter")
        if self._pause_if_failing(now):
            return
        self.returns = [time for time in self.returns if time > now]
        says = self.policies
        active, waiting = ([run for run in self.live if run.waiting is waits] for waits in (False, True))
        others = Others([run.id for run in active], [run.id for run in waiting])
        decision = decide(
            self.trigger,
            job_id=self.job_id,
            cursor=self.cursor,
            now=now,
            misfire=says.misfire,
            overlap=says.overlap,
            max_active=says.max_active,
            catchup_window_s=says.catchup_window_s,
            others=others,
        )
        new = [self._made(time, now) for time in decision.fire]
        self._write(decision, room(says.overlap, others, says.max_active).blocker, new[-1].number if new else None)
        if new and says.overlap in REPLACING:
            for run in waiting:
                run.finish(now, "replaced", new[-1].number)
            self.live = active
            others = Others(others.active)
        places = line_up([run.id for run in new], says.overlap, others, says.max_active)
        for run, place in zip(new, places, strict=True):
            if place is None:
                run.begin(now)
            else:
                run.waits_for, run.most_active = place.int, most_active(says.overlap, says.max_active)
        if new and says.overlap in REPLACING:
            self._make_way(active, new[-1].number, now)
        self.live += new

    def _make_way(self, active: Sequence[Run], by: int, now: datetime) -> None:
        for run in active:
            if self.policies.overlap == "terminate_other":
                run.finish(now, "terminated", by)
            elif self.bodies.cancel is not None:
                run.finish(now + self.bodies.cancel, "cancelled", by)

    def _made(self, scheduled_time: datetime, now: datetime) -> Run:
        number = len(self.runs) + 1
        if number > MAX_RUNS:
            raise Invalid.field("/to", f"that is more than {MAX_RUNS:,} runs; make the window shorter")
        run = Run(
            number,
            scheduled_time,
            now,
            length=self.bodies.lengths[(number - 1) % len(self.bodies.lengths)],
            outcome="failure" if number in self.bodies.failing else "success",
            start_deadline_time=start_deadline(
                due_time(self.trigger, self.job_id, scheduled_time), self.policies.start_deadline_s
            ),
        )
        self.runs.append(run)
        return run

    def _write(self, decision: Decision, blocker: UUID | None, fired: int | None) -> None:
        """Keep the skips of a decision: a row of one cause goes on where it ended."""
        names = {"blocker": None if blocker is None else blocker.int, "fired": fired, None: None}
        for before, skip in rows_of(decision, self.cursor):
            run = names[skip.run_of]
            last = self.skips[-1] if self.skips else None
            if last and (last.last_time, last.reason, last.run) == (before, skip.reason, run):
                last.last_time = skip.last
                last.count += skip.count
            else:
                self.skips.append(Skip(skip.reason, skip.first, skip.last, skip.count, run))
        self.cursor, self.next_time = decision.cursor, decision.next_time
