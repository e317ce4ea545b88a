"""Moves of the reaper, refused where a run has gone on since it was read. Pure.

A `Maker` makes a move of the database's time, which is known only inside the transaction that applies it.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeAlias

from app.progress import moves
from app.progress.standing import Move, Standing
from app.states import PENDING, is_running
from workers import protocol

Maker: TypeAlias = Callable[[datetime], Move]


def guarded(holds: Callable[[Standing], bool], make: Maker) -> Maker:
    """The move, where the run stands so."""

    def made(now: datetime) -> Move:
        move = make(now)
        return lambda standing: move(standing) if holds(standing) else None

    return made


def if_unsent(make: Maker) -> Maker:
    return guarded(lambda now: now.claim_time is None and now.dispatches < now.first_dispatch, make)


def if_same(row: Mapping[str, Any], make: Maker) -> Maker:
    """Where the attempt, and Celery's retry in it, are the ones that were read."""
    return guarded(lambda now: (now.attempt, now.retries) == (row["attempt"], row["retries"]), make)


def if_running(row: Mapping[str, Any], make: Maker) -> Maker:
    return if_same(row, guarded(lambda now: is_running(now.state), make))


def revoked_outside() -> Maker:
    return guarded(
        lambda now: now.reason == moves.REVOKED_OUTSIDE, lambda now: moves.cancel(now, moves.REVOKED_OUTSIDE)
    )


def sent_again(row: Mapping[str, Any]) -> Maker:
    return guarded(
        lambda now: now.reason != moves.REVOKED_OUTSIDE,
        lambda now: moves.redispatch(now, row["dispatches"], "lost on the way: sent again"),
    )


def lost_between_retries(row: Mapping[str, Any]) -> Maker:
    detail = f"the task was to be retried by {row['worker'] or 'its worker'}, and no worker has the message of it"
    return if_same(row, lambda now: moves.lose(now, row["attempt"], detail))


def leased_with(retries: int) -> Maker:
    """Learn of a lease whose STARTED never reached us."""
    return lambda _: lambda standing: replace(standing, leased=True, retries=retries)


def ended_with(row: Mapping[str, Any], value: str) -> Maker:
    """What the last value of an attempt's lease means for its run, where no result came."""
    worker, attempt = row["worker"] or "its worker", row["attempt"]
    match value:
        case protocol.CANCELLED:
            return lambda now: moves.cancel(now, "cancelled")
        case protocol.DONE:
            detail = f"{worker} was done with it, and its result is not to be found (or the task raised Ignore)"
            return lambda now: moves.lose_sight(now, attempt, detail)
        case _:
            return lambda now: moves.lose(now, attempt, f"the lease of {worker} ended and no result came")


def never_given(row: Mapping[str, Any]) -> Maker:
    """The deadline of a run of which no message of this attempt is out."""
    waited = f" ({row['reason']})" if row["reason"] else ""
    detail = f"the deadline was {_clock(row['deadline_time'])}, and attempt {row['attempt']} was not sent yet{waited}"
    return if_unsent(lambda now: moves.exceed(now, moves.DEADLINE_EXCEEDED, detail))


def taken_back(row: Mapping[str, Any]) -> Maker:
    """The deadline of a run that no worker of ours begins or goes on with any more."""
    begun = "was not begun" if row["state"] == PENDING else f"had not ended on {row['worker'] or 'its worker'}"
    detail = f"the deadline was {_clock(row['deadline_time'])}, and attempt {row['attempt']} {begun}"
    return if_same(row, lambda now: moves.exceed(now, moves.DEADLINE_EXCEEDED, detail))


def out_of_reach(row: Mapping[str, Any]) -> Maker:
    """The deadline of a run that a worker without a lease has, or may still take."""
    if row["state"] == PENDING:
        sent_time = row["sent_time"] or row["update_time"]
        what = f"it was sent, and nothing was heard of it since {_clock(sent_time)}; a worker may still take it"
    else:
        who = row["worker"] or "a worker without a lease of the plane"
        what = f"{who} had it, was last heard of at {_clock(row['update_time'])}, and may still be at it"
    detail = f"the deadline was {_clock(row['deadline_time'])}: {what}"
    return if_same(row, lambda now: moves.exceed(now, moves.OUTCOME_UNKNOWN, detail))


def _clock(time: datetime | None) -> str:
    return "?" if time is None else time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


def told(row: Mapping[str, Any], reason: str | None) -> Maker:
    """Another reason, or none, where the run says what it said."""
    return guarded(
        lambda now: (now.attempt, now.retries, now.reason) == (row["attempt"], row["retries"], row["reason"]),
        lambda _: moves.explain(reason),
    )


def nobody(_: datetime) -> Move:
    return moves.explain(moves.NO_WORKER)


def unheard(_: datetime) -> Move:
    return moves.explain(moves.UNHEARD)
