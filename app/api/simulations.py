"""`/triggers/simulate`: what a schedule would do in a world that is given. Nothing is stored, no clock is read."""

import asyncio
from dataclasses import fields
from datetime import timedelta
from typing import Any, Final

from fastapi import APIRouter, Response

from app.api.bodies import JsonRoute
from app.api.documents import writing
from app.api.schemas.simulations import SimulationIn, SimulationOut
from app.api.writes import json_response
from app.due.simulate import simulate
from app.due.simulated import Bodies, Pause, Policies, Run, Simulation, Skip
from app.errors import Invalid
from app.schedule import triggers

router = APIRouter(prefix="/triggers", tags=["triggers"], route_class=JsonRoute)

_MAX_WINDOW: Final = timedelta(days=366)
_MAX_STEPS: Final = 500_000


@router.post("/simulate", response_model=SimulationOut, responses=writing())
async def simulate_trigger(body: SimulationIn) -> Response:
    """Which times of a trigger would have fired, been skipped and why, under these policies, with runs that take so
    long and schedulers that are away at times; decided by the same functions as in earnest.

    A run begins as soon as it may, and ends when its length is over; retries and manual runs are not in it.
    """
    if body.begin >= body.end:
        raise Invalid.field("/to", "must be after `from`")
    if body.end - body.begin > _MAX_WINDOW:
        raise Invalid.field("/to", "must be within 366 days after `from`")
    for number, outage in enumerate(body.outages):
        if outage.begin >= outage.end:
            raise Invalid.field(f"/outages/{number}/to", "must be after `from`")
    lengths = body.run_s if isinstance(body.run_s, list) else [body.run_s]
    bodies = Bodies(
        [timedelta(seconds=length) for length in lengths],
        frozenset(body.failing),
        None if body.cancel_s is None else timedelta(seconds=body.cancel_s),
    )
    # Some seconds of arithmetic at most; other requests are answered meanwhile.
    with triggers.bounded(_MAX_STEPS):
        found = await asyncio.to_thread(
            simulate,
            body.trigger,
            Policies(**{field.name: getattr(body, field.name) for field in fields(Policies)}),
            bodies,
            begin=body.begin,
            end=body.end,
            outages=[(outage.begin, outage.end) for outage in body.outages],
        )
    return json_response({"from": body.begin, "to": body.end, **_shown(found)})


def _shown(found: Simulation) -> dict[str, Any]:
    return {
        "scheduled": found.scheduled,
        "runs": len(found.runs),
        "skipped": sum(skip.count for skip in found.skips),
        "pending": found.pending,
        "most_at_work": found.most_at_work,
        "events": [_event(event) for event in found.events],
    }


def _event(event: Run | Skip | Pause) -> dict[str, Any]:
    match event:
        case Run():
            kind = "run"
            names = ["number", "scheduled_time", "fire_time", "begin_time", "end_time", "outcome", "waits_for", "by"]
        case Skip():
            kind, names = "skip", ["reason", "first_time", "last_time", "count", "run"]
        case Pause():
            kind, names = "pause", ["time", "failures", "run"]
    return {"event": kind, **{name: getattr(event, name) for name in names}}
