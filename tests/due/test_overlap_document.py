"""`docs/schedules.md`, "Overlap": each timeline of it is drawn here again, out of a simulation."""

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, get_args

import pytest

from app.due.overlap import Overlap
from app.due.simulate import simulate
from app.due.simulated import Bodies, Pause, Policies, Run, Simulation, Skip
from app.schedule.triggers import parse

TEXT: Final = (Path(__file__).parents[2] / "docs" / "schedules.md").read_text()
BEGIN: Final = datetime(2026, 11, 22, 10, tzinfo=UTC)
MINUTE: Final = timedelta(minutes=1)
MARGIN: Final = 26
MINUTES_HEED: Final = {"cancel": 3 * MINUTE}

#: By the name of a timeline, what it is drawn of: how long runs take, how many times there are, policies and bodies.
DRAWN: Final[dict[str, tuple[int, int, dict[str, Any], dict[str, Any]]]] = {
    "skip": (25, 4, {}, {}),
    "buffer_one": (25, 4, {"overlap": "buffer_one"}, {}),
    "buffer_all": (25, 3, {"overlap": "buffer_all"}, {}),
    "cancel_other": (25, 4, {"overlap": "cancel_other"}, MINUTES_HEED),
    "cancel_other, not heeded": (25, 4, {"overlap": "cancel_other"}, {"cancel": None}),
    "terminate_other": (25, 4, {"overlap": "terminate_other"}, {}),
    "allow": (25, 4, {"overlap": "allow"}, {}),
    "allow, max_active 2": (25, 4, {"overlap": "allow", "max_active": 2}, {}),
    "start_deadline_s 900": (25, 3, {"overlap": "buffer_all", "start_deadline_s": 900}, {}),
    "pause_after_failures 2": (5, 6, {"pause_after_failures": 2}, {"failing": {2, 3}}),
}


def drawn(name: str) -> str:
    """One character a minute: `.` waits, `=` is at work, `x` is where somebody ended it."""
    length, number, policies, bodies = DRAWN[name]
    found = simulate(
        parse({"type": "cron", "expression": "*/10 * * * *"}),
        Policies(**policies),
        Bodies([length * MINUTE], **bodies),
        begin=BEGIN,
        end=BEGIN + 10 * MINUTE * number,
    )
    last = max(run.end_time for run in found.runs if run.end_time is not None)
    hours = "".join(f"{clock(BEGIN + 10 * n * MINUTE):10}" for n in range((last - BEGIN) // (10 * MINUTE) + 1))
    return "\n".join([f"{name:{MARGIN}}{hours}".rstrip(), *(line(found, event) for event in found.events)])


def line(found: Simulation, event: Run | Skip | Pause) -> str:
    def run_of(number: int | None) -> str:
        (run,) = (run for run in found.runs if run.number == number)
        return f"the run of {clock(run.scheduled_time)}"

    match event:
        case Run(end_time=datetime() as end):
            label, time = clock(event.scheduled_time), event.fire_time
            drawing = "." * (((event.begin_time or end) - time) // MINUTE)
            if event.begin_time is not None:
                drawing += "=" * ((end - event.begin_time) // MINUTE)
            if event.outcome in {"cancelled", "terminated"}:
                drawing = drawing[:-1] + "x"
            elif event.outcome == "replaced":
                drawing += f" replaced by {run_of(event.by)}"
            elif event.outcome != "success":
                drawing += f" {event.outcome.replace('_', ' ')}"
        case Skip():
            label, time = clock(event.first_time), event.first_time
            if event.count > 1:
                label += f" - {clock(event.last_time)}"
            drawing = event.reason if event.run is None else f"{event.reason} with {run_of(event.run)}"
        case Pause():
            label, time = clock(event.time), event.time
            drawing = f"paused: {event.failures} runs in a row failed, the last of them {run_of(event.run)}"
    return f"{label:{MARGIN}}{' ' * ((time - BEGIN) // MINUTE)}{drawing}"


def clock(time: datetime) -> str:
    return time.strftime("%H:%M")


def timelines() -> dict[str, str]:
    """By its name, each timeline of the document that is drawn in minutes."""
    section = TEXT.partition("\n## Overlap\n")[2].partition("\n## Ledger\n")[0]
    blocks = re.findall(r"```text\n(.*?)\n```", section, flags=re.DOTALL)
    parts = [part for block in blocks for part in block.split("\n\n")]
    return {part[:MARGIN].strip(): part for part in parts}


@pytest.mark.parametrize("name", DRAWN)
def test_the_timeline_of_the_document_is_so(name: str) -> None:
    assert timelines()[name] == drawn(name)


def test_every_timeline_is_drawn_and_every_policy_has_one() -> None:
    assert timelines().keys() == DRAWN.keys()
    assert set(get_args(Overlap)) <= DRAWN.keys()
