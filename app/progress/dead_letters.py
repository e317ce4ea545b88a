"""What it means for a run that the broker gave its message up. Pure.

RabbitMQ writes into the header `x-death` why a message left its queue: `rejected` by a worker, `expired` or pushed out
(`maxlen`) while it waited, or delivered too often (`delivery_limit`). One of an earlier dispatch says nothing,
and one of an attempt that holds a lease neither: then the lease decides.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from app.progress import moves
from app.progress.standing import Move, Standing
from app.states import PENDING, TERMINAL, is_running
from workers.protocol import TaskId

REJECTED: Final = "rejected"
DELIVERY_LIMIT: Final = "delivery_limit"
#: The message left the queue before any worker had it.
_UNREAD: Final = {"expired": "expired in", "maxlen": "was pushed out of"}
#: A queue that throws messages away does so with the next one too: it gets time.
_UNREAD_DELAY_S: Final = 30


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """The message of one dispatch, given up by the broker: why, and in which queue."""

    task_id: TaskId
    reason: str
    queue: str


def read(task_id: TaskId, headers: Mapping[str, Any]) -> DeadLetter | None:
    """The last death of a message; None if it never died but was put here by somebody."""
    deaths = headers.get("x-death")
    last = deaths[0] if isinstance(deaths, list) and deaths else None
    if not isinstance(last, Mapping) or not isinstance(last.get("reason"), str):
        return None
    return DeadLetter(task_id, _clean(last["reason"][:50]), _clean(str(last.get("queue") or "")[:255]))


def _clean(text: str) -> str:
    """Only what the database can keep: the header is a stranger's."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


def concerns(standing: Standing, letter: DeadLetter) -> bool:
    """Whether the letter is of the newest dispatch of a live attempt without a lease, and that is not out again."""
    n = letter.task_id.dispatch
    if standing.state in TERMINAL or standing.leased or n < standing.first_dispatch:
        return False
    if n == standing.dispatches + 1:
        # It died before its dispatch was marked.
        return standing.claim_time is not None and standing.dispatch_time is None
    return n == standing.dispatches and standing.dispatch_time is not None


def ends(standing: Standing, letter: DeadLetter) -> bool:
    """Whether the letter ends the attempt, because a body may have begun; whoever applies it takes the lease first."""
    return concerns(standing, letter) and (
        letter.reason == DELIVERY_LIMIT or (letter.reason == REJECTED and is_running(standing.state))
    )


def settle(now: datetime, letter: DeadLetter) -> Move:
    """The step that a dead letter makes of its run."""

    def move(standing: Standing) -> Standing | None:
        if not concerns(standing, letter):
            return None
        n = letter.task_id.dispatch
        if ends(standing, letter):
            return moves.after_error(now, replace(standing, dispatches=n), _error(letter))
        if is_running(standing.state):
            return moves.explain(f"a worker has started it, and its message {_how(letter)}")(standing)
        if standing.reason == moves.REVOKED_OUTSIDE:
            return None
        if letter.reason == REJECTED:
            again = moves.not_registered(now, standing, n, None)
            reason = f"rejected by a worker of {letter.queue}: it does not know the task, or cannot read the message"
            return replace(again, reason=reason) if again and again.state not in TERMINAL else again
        waiting = replace(
            standing,
            state=PENDING,
            reason=f"its message {_how(letter)}: sent again",
            due_time=now + timedelta(seconds=_UNREAD_DELAY_S),
            dispatches=n,
            dispatch_time=None,
            claim_time=None,
            claimed_by=None,
        )
        return moves.unless_cancelled(now, waiting)

    return move


def _how(letter: DeadLetter) -> str:
    return f"{_UNREAD.get(letter.reason, 'was given up by')} the queue {letter.queue}"


def _error(letter: DeadLetter) -> dict[str, Any]:
    if letter.reason == REJECTED:
        message = f"a worker of {letter.queue} rejected it after it had started it"
    else:
        message = f"{letter.queue} delivered it as often as it may, and no worker kept it alive (delivery limit)"
    return {"type": "DeadLettered", "message": message, "traceback": None}
