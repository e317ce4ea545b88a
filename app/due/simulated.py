"""What a simulation is given and what it tells (`app.due.simulate`). Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal
from uuid import UUID

from app.due.decide import Misfire, SkipReason
from app.due.overlap import Overlap

Outcome = Literal["success", "failure", "cancelled", "terminated", "replaced", "start_deadline"]


@dataclass(frozen=True, slots=True)
class Policies:
    """What a job says of its times; each means what it means there."""

    overlap: Overlap = "skip"
    max_active: int | None = None
    misfire: Misfire = "latest"
    catchup_window_s: int = 86_400
    start_deadline_s: int | None = None
    pause_after_failures: int | None = None


@dataclass(frozen=True, slots=True)
class Bodies:
    """How runs behave: the lengths are used in turn, `failing` are the numbers of the runs that fail.

    `cancel` is how long a body goes on after it was asked to end; None: it does not heed that.
    """

    lengths: Sequence[timedelta]
    failing: Collection[int] = ()
    cancel: timedelta | None = timedelta()


@dataclass(slots=True)
class Run:
    """A run, numbered from 1 in the order in which they are made.

    `waits_for` is the run that it was put behind; `begin_time` is None while it waits, and if it never began; `by` is
    the run for which it was cancelled, terminated or replaced. While it is at work, `end_time` and `outcome` are what
    will be if nobody interferes.
    """

    number: int
    scheduled_time: datetime
    fire_time: datetime
    length: timedelta
    outcome: Outcome
    waits_for: int | None = None
    most_active: int | None = None
    start_deadline_time: datetime | None = None
    begin_time: datetime | None = None
    end_time: datetime | None = None
    by: int | None = None
    #: The number, as the functions of the tick want it.
    id: UUID = field(init=False)

    def __post_init__(self) -> None:
        self.id = UUID(int=self.number)

    @property
    def waiting(self) -> bool:
        return self.end_time is None

    @property
    def next_time(self) -> datetime | None:
        """When something happens to it by itself."""
        if not self.waiting or self.start_deadline_time is None:
            return self.end_time
        return max(self.start_deadline_time, self.fire_time)

    def begin(self, now: datetime) -> None:
        if self.start_deadline_time is not None and self.start_deadline_time <= now:
            self.finish(now, "start_deadline")
        else:
            self.begin_time, self.end_time = now, now + self.length

    def finish(self, time: datetime, outcome: Outcome, by: int | None = None) -> None:
        """It ends then, if it does not end by itself before."""
        if self.end_time is None or time < self.end_time:
            self.end_time, self.outcome, self.by = time, outcome, by


@dataclass(slots=True)
class Skip:
    """Scheduled times in a row that did not run, for one reason; `run` is the one that they name."""

    reason: SkipReason
    first_time: datetime
    last_time: datetime
    count: int
    run: int | None


@dataclass(frozen=True, slots=True)
class Pause:
    """From here on the job is paused: its newest runs failed, so many, the last of them `run`."""

    time: datetime
    failures: int
    run: int


@dataclass(frozen=True, slots=True)
class Simulation:
    """What happened, in the order of scheduled times; `pending` are those that no scheduler looked at."""

    events: Sequence[Run | Skip | Pause]
    scheduled: int
    pending: int

    @property
    def runs(self) -> list[Run]:
        return [event for event in self.events if isinstance(event, Run)]

    @property
    def skips(self) -> list[Skip]:
        return [event for event in self.events if isinstance(event, Skip)]

    @property
    def most_at_work(self) -> int:
        """How many runs were at work at once, at most; one that ends as another begins is not beside it."""
        changes = []
        for run in self.runs:
            if run.begin_time is not None and run.end_time is not None and run.begin_time < run.end_time:
                changes += [(run.begin_time, 1), (run.end_time, -1)]
        most = now = 0
        for _, change in sorted(changes):
            now += change
            most = max(most, now)
        return most
