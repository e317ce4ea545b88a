"""One report of a worker, folded into the standing of its run. Pure.

Celery's word is not law here: its terminal states are not terminal, a second delivery starts a task again, a stranger's
REVOKED may be wrong. The first accepted end wins.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from app.progress import late, moves, pace
from app.progress.moves import REVOKED_OUTSIDE, after_error, after_loss, end
from app.progress.standing import Move, Standing
from app.states import FAILURE, PENDING, RETRY, REVOKED, STARTED, SUCCESS, TERMINAL, may_move
from workers.protocol import LEASE_REPORT, TaskId

#: Where an exception comes from that says nothing about the work: the worker could not store or send its result.
_TRANSPORTS = ("kombu.", "redis.", "amqp.")
_SOFT = "SoftTimeLimitExceeded"


@dataclass(frozen=True, slots=True)
class Report:
    """What a worker said of one task, decoded and cleaned: every value here fits into jsonb."""

    task_id: TaskId
    state: str
    #: PROGRESS and custom: what the task gave. SUCCESS: the result. FAILURE, RETRY: `{exc_type, exc_message, ...}`.
    meta: Any = None
    traceback: str | None = None
    worker: str | None = None
    retries: int | None = None


def progress_of(meta: Any) -> dict[str, Any]:
    """`{current, total, percent, message, meta}` of a PROGRESS meta, read where it can be read; `pace` adds to it."""
    given = meta if isinstance(meta, dict) else {}
    current, total, message = _number(given.get("current")), _number(given.get("total")), given.get("message")
    percent = None
    if current is not None and total is not None and total > 0:
        percent = round(min(max(100 * current / total, 0.0), 100.0), 2)
    return {
        "current": current,
        "total": total,
        "percent": percent,
        "message": message if isinstance(message, str) else None,
        "meta": meta,
    }


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def error_of(meta: Any, traceback: str | None) -> dict[str, Any]:
    """`{type, message, traceback}` of Celery's stored exception."""
    given = meta if isinstance(meta, dict) else {"exc_type": "Error", "exc_message": meta}
    words = given.get("exc_message")
    if isinstance(words, list | tuple):
        words = ", ".join(str(word) for word in words)
    return {
        "type": str(given.get("exc_type") or "Error"),
        "message": "" if words is None else str(words),
        "traceback": traceback,
    }


def _lease_of(meta: Any) -> bool:
    return isinstance(meta, dict) and isinstance(meta.get(LEASE_REPORT), dict)


def _failure_of(report: Report) -> dict[str, Any]:
    """The error of a FAILURE, in the plane's own words where it is not the task's."""
    error = error_of(report.meta, report.traceback)
    kind, module = error["type"], report.meta.get("exc_module") if isinstance(report.meta, dict) else None
    if kind == "WorkerLostError":
        return {**error, "type": "WorkerLost"}
    if kind == "TimeLimitExceeded":
        return error
    if kind == _SOFT:
        return {**error, "type": "TimeLimitExceeded", "message": f"soft: true {error['message']}".rstrip()}
    if kind == "EncodeError":
        return error  # the body returned, or sent, what cannot be encoded: that is certain, though kombu says it
    if f"{module}.".startswith(_TRANSPORTS):
        return {**error, "type": "OutcomeUnknown", "message": f"{kind}: {error['message']}"}
    return error


def _is_not_registered(report: Report) -> bool:
    # With a traceback the task itself asked for one that its worker does not know.
    return report.state == FAILURE and not report.traceback and error_of(report.meta, None)["type"] == "NotRegistered"


def _of_second_copy(standing: Standing, report: Report) -> bool:
    """Whether somebody runs the attempt by a second copy of a message of which another worker gave up the first.

    One message may be twice on the broker; who did not know the task spoke only for the copy that it took.
    """
    n, before = report.task_id.dispatch, standing.attempts[-1].get("dispatch") if standing.attempts else 0
    if not standing.not_registered or before is None or not before < n < standing.first_dispatch:
        return False
    return report.state != REVOKED and not _is_not_registered(report)


def _failed(now: datetime, standing: Standing, report: Report) -> Standing | None:
    if _is_not_registered(report):
        return moves.not_registered(now, standing, report.task_id.dispatch, report.worker)
    error, said = _failure_of(report), error_of(report.meta, None)["type"]
    if error["type"] != said:
        # Our word; a task may well have an exception of such a name.
        if error["type"] == "WorkerLost":
            return after_loss(now, standing, error)
        if error["type"] == "OutcomeUnknown":
            return end(now, standing, FAILURE, error=error)
    return after_error(now, standing, error, said)


def _late(now: datetime, standing: Standing, report: Report) -> Standing | None:
    if _is_not_registered(report):
        return None  # nothing ran
    return late.keep(
        now,
        standing,
        report.task_id.dispatch,
        report.state,
        worker=report.worker,
        error=_failure_of(report) if report.state == FAILURE else None,
        result=report.meta if report.state == SUCCESS else None,
    )


def _revoked(now: datetime, standing: Standing, report: Report) -> Standing | None:
    asked = moves.cancelled_by(standing)
    error = error_of(report.meta, None)
    if error["message"] == "terminated":
        return end(now, standing, REVOKED, reason=asked or REVOKED_OUTSIDE)
    if asked and standing.start_time is None:
        return end(now, standing, REVOKED, reason=asked)
    if error["message"] == "expired" and standing.start_deadline_time is not None and standing.attempt == 1:
        if standing.state == PENDING:
            return end(now, standing, REVOKED, reason=moves.START_DEADLINE)
        if standing.state == RETRY:
            # Celery hands the expiry of a message on to the task's own retry of it; this attempt did start in time.
            detail = "the task was to be retried, and its worker took the start deadline for that of the retry"
            return after_loss(now, standing, {"type": "WorkerLost", "message": detail, "traceback": None})
    # Another worker may have seen a running task as PENDING: only silence makes this the end (the reaper decides).
    if standing.start_time is not None or standing.reason == REVOKED_OUTSIDE:
        return None
    return replace(standing, reason=REVOKED_OUTSIDE)


def _retries_itself(now: datetime, standing: Standing, heard: Standing, report: Report) -> Standing | None:
    # A stock worker does not say which retry it is; the same word read again is not the next one.
    known = standing.retries + (standing.state != RETRY) if report.retries is None else report.retries + 1
    if known <= standing.retries:
        return None
    reason = "the task retries itself: " + error_of(report.meta, None)["type"][:100]
    # Between two tries a cancel can have what it could not while the first one ran.
    look_time = now if standing.cancel else None
    return replace(heard, state=RETRY, leased=False, retries=known, reason=reason, cancel_next_time=look_time)


def fold(report: Report, now: datetime) -> Move:
    """The step that this report makes of its run; None where it is no news.

    Of a run that has ended, and of an attempt that was over, only an end is news, and it is only kept beside the run.
    """

    def move(standing: Standing) -> Standing | None:
        n = report.task_id.dispatch
        if standing.state not in TERMINAL and _of_second_copy(standing, report):
            standing = replace(standing, first_dispatch=n)
        if standing.state in TERMINAL or n < standing.first_dispatch:
            return _late(now, standing, report)
        if n > standing.dispatches + 1:
            return None
        if not may_move(standing.state, report.state):
            return None
        # A report outruns the mark of its own dispatch: then it is the proof that the message arrived. Whatever sent
        # a run that was to wait (a scheduler of an older version), it waits no more.
        heard = replace(
            standing,
            waits_for=None,
            most_active=None,
            dispatches=max(standing.dispatches, n),
            dispatch_time=standing.dispatch_time or now,
            claim_time=None,
            claimed_by=None,
            worker=report.worker or standing.worker,
        )
        if report.state == REVOKED:
            return _revoked(now, heard, report)
        heard = replace(heard, reason=standing.reason if standing.cancel else None)
        if report.state == SUCCESS:
            return end(now, heard, SUCCESS, result=report.meta)
        if report.state == FAILURE:
            return _failed(now, heard, report)
        if report.state == RETRY:
            return _retries_itself(now, standing, heard, report)
        retries = max(standing.retries, report.retries or 0)
        started = replace(heard, state=report.state, start_time=heard.start_time or now, retries=retries)
        if report.state == STARTED:
            return replace(started, leased=_lease_of(report.meta), progress=pace.halted(started.progress))
        said = pace.paced(progress_of(report.meta), standing.progress, now, started.attempt, retries)
        news = replace(started, progress=said)
        return None if news == standing else news

    return move
