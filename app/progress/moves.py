"""What may happen to a run besides a worker's report: pure steps from one standing to the next.

Each function here returns a `Move`. A run that has ended refuses every one of them.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Any, Final
from uuid import UUID

from app.progress import late
from app.progress.standing import Move, Standing
from app.states import FAILURE, PENDING, REVOKED, TERMINAL, is_running

#: Types of errors that the plane itself says.
DEADLINE_EXCEEDED = "DeadlineExceeded"
OUTCOME_UNKNOWN = "OutcomeUnknown"
#: Reasons that other passes recognise.
REVOKED_OUTSIDE = "revoked outside jobplane"
#: The reason of a run that no worker started in time, whoever saw it first.
START_DEADLINE = "start deadline"
UNHEARD = "unheard: dispatched, and no worker has said that it started"
NO_WORKER = "no worker consumes the queue"
#: How the reason begins.
NOT_REGISTERED = "not registered"
REPLACED = "replaced"

#: So often a message is given up by workers that do not know its task before it waits for all of them to register it.
NOT_REGISTERED_MOST: Final = 5
_NOT_REGISTERED_FIRST_S = 5.0
_NOT_REGISTERED_LAST_S = 300.0


def backoff_s(retry: Mapping[str, Any], failures: int, run_id: UUID, attempt: int) -> float:
    """Seconds to wait after the n-th failure in a row: `backoff_s * backoff_factor ** (n - 1)`, capped.

    With full jitter any part of it; which one hangs on run and attempt alone, so that it is told twice alike.
    """
    wait = float(retry["backoff_s"]) * float(retry["backoff_factor"]) ** min(failures - 1, 64)
    wait = min(wait, float(retry["max_backoff_s"]))
    if retry.get("jitter", "none") == "full":
        draw = blake2b(f"{run_id}:{attempt}".encode(), digest_size=8).digest()
        wait *= int.from_bytes(draw, "big") / 2**64
    return wait


def is_worth_a_retry(retry: Mapping[str, Any], kinds: Collection[str]) -> bool:
    """Whether the policy gives another attempt to an error of one of these types; the last part of a name counts."""
    wanted = retry.get("retry_on")
    return wanted is None or not {_last(kind) for kind in kinds}.isdisjoint(_last(name) for name in wanted)


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def next_attempt(now: datetime, standing: Standing, error: dict[str, Any], delay_s: float, *, lost: bool) -> Standing:
    """The run with this attempt put away under `attempts` and the next one waiting for dispatch."""
    ended = {
        "attempt": standing.attempt,
        "dispatch": standing.dispatches,
        "state": FAILURE,
        "reason": "lost: run again" if lost else f"failed: run again after {delay_s:.3g} s",
        "worker": standing.worker,
        "retries": standing.retries,
        "start_time": standing.start_time,
        "end_time": now,
        "error": late.cut(error),
    }
    waiting = replace(
        standing,
        state=PENDING,
        reason="worker lost: runs again" if lost else f"retry backoff after {error['type'][:100]}",
        attempt=standing.attempt + 1,
        lost=standing.lost + lost,
        attempts=[*standing.attempts, ended],
        progress=None,
        worker=None,
        leased=False,
        retries=0,
        not_registered=0,
        due_time=now + timedelta(seconds=delay_s),
        claim_time=None,
        claimed_by=None,
        first_dispatch=standing.dispatches + 1,
        dispatch_time=None,
        start_time=None,
    )
    return unless_cancelled(now, waiting)


def end(now: datetime, standing: Standing, state: str, **changes: Any) -> Standing:
    """The run, ended."""
    changes = {"reason": None, "cancel_next_time": None, "waits_for": None, "most_active": None, **changes}
    return replace(standing, state=state, end_time=now, claim_time=None, claimed_by=None, **changes)


def cancelled_by(standing: Standing) -> str | None:
    """The reason of a run that ends because a cancel was asked for; None where nobody asked."""
    return f"cancelled by {standing.cancel['by']}" if standing.cancel else None


def unless_cancelled(now: datetime, waiting: Standing) -> Standing:
    """A run that is to be published again, or its end if a cancel was asked for."""
    reason = cancelled_by(waiting)
    return waiting if reason is None else end(now, waiting, REVOKED, reason=reason)


def after_error(now: datetime, standing: Standing, error: dict[str, Any], said: str | None = None) -> Standing:
    """The task's own error: the next attempt after a backoff while the policy allows one, else FAILURE.

    `said` is the error's type by the worker's word, where the plane has its own for it.
    """
    failures = standing.attempt - standing.lost
    worth = is_worth_a_retry(standing.retry, {error["type"], said or error["type"]})
    if failures < int(standing.retry["max_attempts"]) and worth:
        delay_s = backoff_s(standing.retry, failures, standing.id, standing.attempt)
        return next_attempt(now, standing, error, delay_s, lost=False)
    return end(now, standing, FAILURE, error=error)


def after_loss(now: datetime, standing: Standing, error: dict[str, Any]) -> Standing:
    """A lost worker: run again at once while `max_lost` allows it, else FAILURE."""
    if standing.lost < int(standing.retry["max_lost"]):
        return next_attempt(now, standing, error, 0, lost=True)
    return end(now, standing, FAILURE, error=error)


def not_registered(now: datetime, standing: Standing, dispatch: int, worker: str | None) -> Standing | None:
    """A worker that does not know the task took this dispatch and gave it up: the same attempt goes out again later.

    Nothing ran, so it counts neither as an error nor as a loss. None where the dispatch is not of this attempt, and
    where a worker has the attempt: then it was a second delivery of a message that somebody knows.
    """
    of_attempt = standing.first_dispatch <= dispatch <= standing.dispatches + 1
    if standing.state in TERMINAL or is_running(standing.state) or not of_attempt:
        return None
    times = standing.not_registered + 1
    reason = f"{NOT_REGISTERED}: {'worker ' + worker if worker else 'a worker'} without {standing.task} took it"
    if times >= NOT_REGISTERED_MOST:
        reason += "; waits until every live worker of the queue registers it"
    delay_s = min(_NOT_REGISTERED_FIRST_S * 2 ** min(times - 1, 16), _NOT_REGISTERED_LAST_S)
    waiting = replace(
        standing,
        state=PENDING,
        reason=reason,
        not_registered=times,
        due_time=now + timedelta(seconds=delay_s),
        claim_time=None,
        claimed_by=None,
        dispatches=max(standing.dispatches, dispatch),
        first_dispatch=dispatch + 1,
        dispatch_time=None,
        start_time=None,
        worker=None,
        progress=None,
        leased=False,
    )
    return unless_cancelled(now, waiting)


def cancel(now: datetime, reason: str) -> Move:
    """End the run as REVOKED, for this reason if nobody asked the plane for it.

    Whoever applies it holds the run's lease, or knows that nothing was ever sent.
    """

    def move(standing: Standing) -> Standing | None:
        if standing.state in TERMINAL:
            return None
        return end(now, standing, REVOKED, reason=cancelled_by(standing) or reason)

    return move


def replaced(now: datetime, by: UUID) -> Move:
    """End a run that waits for others of its job and was never sent, for a newer one takes its place."""

    def move(standing: Standing) -> Standing | None:
        if standing.state in TERMINAL or standing.waits_for is None:
            return None
        return end(now, standing, REVOKED, reason=f"{REPLACED} by run {by}")

    return move


def expire(now: datetime) -> Move:
    """End a run that no worker has started by its start deadline."""

    def move(standing: Standing) -> Standing | None:
        late = standing.start_deadline_time is not None and standing.start_deadline_time <= now
        if standing.state != PENDING or standing.attempt > 1 or not late:
            return None
        return end(now, standing, REVOKED, reason=START_DEADLINE)

    return move


def exceed(now: datetime, kind: str, detail: str) -> Move:
    """End a run that has not ended by its deadline: FAILURE with an error of this type, never run again."""

    def move(standing: Standing) -> Standing | None:
        due = standing.deadline_time is not None and standing.deadline_time <= now
        if standing.state in TERMINAL or not due:
            return None
        return end(now, standing, FAILURE, error={"type": kind, "message": detail, "traceback": None})

    return move


def lose(now: datetime, attempt: int, detail: str) -> Move:
    """The worker of this attempt is gone; whoever says so holds its lease. `detail` is a sentence."""

    def move(standing: Standing) -> Standing | None:
        if standing.state in TERMINAL or standing.attempt != attempt:
            return None
        return after_loss(now, standing, {"type": "WorkerLost", "message": detail, "traceback": None})

    return move


def lose_sight(now: datetime, attempt: int, detail: str) -> Move:
    """The work of this attempt is over and its end unknown: FAILURE, never run again by itself."""

    def move(standing: Standing) -> Standing | None:
        if standing.state in TERMINAL or standing.attempt != attempt:
            return None
        return end(now, standing, FAILURE, error={"type": OUTCOME_UNKNOWN, "message": detail, "traceback": None})

    return move


def redispatch(now: datetime, dispatch: int, reason: str, delay_s: float = 0) -> Move:
    """Publish the same attempt again under the next number, if `dispatch` is still the last one and unheard of."""

    def move(standing: Standing) -> Standing | None:
        if standing.state != PENDING or standing.dispatch_time is None or standing.dispatches != dispatch:
            return None
        return replace(
            standing,
            reason=reason,
            due_time=now + timedelta(seconds=delay_s),
            dispatch_time=None,
            claim_time=None,
            claimed_by=None,
        )

    return move


def explain(reason: str | None) -> Move:
    """Say why a live run stands still; one whose cancel is pursued says that already."""

    def move(standing: Standing) -> Standing | None:
        if standing.state in TERMINAL or standing.cancel or standing.reason == reason:
            return None
        return replace(standing, reason=reason)

    return move
