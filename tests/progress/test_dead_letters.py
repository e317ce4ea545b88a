"""What a dead letter means for its run, by where the run stands."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from app.progress import moves
from app.progress.dead_letters import DeadLetter, ends, read, settle
from app.progress.standing import Standing
from tests.progress.standings import NEW, NOW, RUN, SENT, policy
from workers.protocol import TaskId

STARTED = replace(SENT, state="STARTED", start_time=NOW, worker="w@h")
CLAIMED = replace(NEW, claim_time=NOW, claimed_by="one")
LEASED = replace(STARTED, leased=True)
WAITING = replace(SENT, state="RETRY", start_time=NOW, retries=1)
CANCEL = {"time": "2026-11-22T11:59:00Z", "by": "me", "terminate": False, "grace_s": None}


def letter(reason: str, n: int = 1) -> DeadLetter:
    return DeadLetter(TaskId(RUN, n), reason, "q")


@pytest.mark.parametrize("standing", [SENT, CLAIMED, WAITING])
def test_a_message_that_a_worker_refused_goes_out_again(standing: Standing) -> None:
    moved = settle(NOW, letter("rejected"))(standing)
    assert moved is not None
    assert not ends(standing, letter("rejected"))
    assert (moved.state, moved.attempt, moved.not_registered) == ("PENDING", 1, 1)
    assert moved.reason == "rejected by a worker of q: it does not know the task, or cannot read the message"
    assert (moved.dispatches, moved.first_dispatch, moved.claim_time, moved.dispatch_time) == (1, 2, None, None)
    assert moved.due_time > NOW
    assert settle(NOW, letter("rejected"))(moved) is None, "it comes twice"


@pytest.mark.parametrize("standing", [SENT, CLAIMED, WAITING])
@pytest.mark.parametrize(
    ("reason", "words"), [("expired", "expired in the queue q"), ("maxlen", "was pushed out of the queue q")]
)
def test_a_message_that_no_worker_had_goes_out_again(standing: Standing, reason: str, words: str) -> None:
    moved = settle(NOW, letter(reason))(standing)
    assert moved is not None
    assert (moved.state, moved.attempt, moved.reason) == ("PENDING", 1, f"its message {words}: sent again")
    assert (moved.dispatches, moved.claim_time, moved.dispatch_time) == (1, None, None)
    assert moved.due_time == NOW + timedelta(seconds=30)
    assert settle(NOW, letter(reason))(moved) is None, "it comes twice"


@pytest.mark.parametrize("standing", [SENT, CLAIMED, STARTED, WAITING])
def test_a_message_that_was_delivered_too_often_ends_its_attempt(standing: Standing) -> None:
    assert ends(standing, letter("delivery_limit"))
    moved = settle(NOW, letter("delivery_limit"))(standing)
    assert moved is not None
    assert moved.error is not None
    assert (moved.state, moved.error["type"], moved.end_time) == ("FAILURE", "DeadLettered", NOW)
    again = settle(NOW, letter("delivery_limit"))(replace(standing, retry=policy(max_attempts=2)))
    assert again is not None
    assert (again.state, again.attempt, again.first_dispatch) == ("PENDING", 2, 2)
    assert again.attempts[0]["error"]["type"] == "DeadLettered"
    assert settle(NOW, letter("delivery_limit"))(again) is None, "it comes twice"


def test_a_message_that_is_rejected_after_its_start_ends_its_attempt() -> None:
    assert ends(STARTED, letter("rejected"))
    moved = settle(NOW, letter("rejected"))(STARTED)
    assert moved is not None
    assert moved.error is not None
    assert (moved.state, moved.error["type"]) == ("FAILURE", "DeadLettered")


def test_a_message_that_goes_while_its_body_runs_is_said() -> None:
    moved = settle(NOW, letter("expired"))(STARTED)
    assert moved == replace(STARTED, reason="a worker has started it, and its message expired in the queue q")


@pytest.mark.parametrize("reason", ["rejected", "expired", "maxlen", "delivery_limit"])
@pytest.mark.parametrize(
    ("standing", "n"),
    [
        (NEW, 1),
        (LEASED, 1),
        (replace(SENT, dispatches=2), 1),
        (replace(SENT, dispatches=2, first_dispatch=2), 1),
        (SENT, 2),
        (SENT, 9),
        (replace(SENT, state="SUCCESS", end_time=NOW), 1),
        (replace(SENT, dispatch_time=None), 1),
    ],
)
def test_a_letter_of_another_dispatch_or_of_a_lease_says_nothing(standing: Standing, n: int, reason: str) -> None:
    assert settle(NOW, letter(reason, n))(standing) is None
    assert not ends(standing, letter(reason, n))


@pytest.mark.parametrize("reason", ["rejected", "expired"])
def test_what_is_revoked_or_cancelled_does_not_go_out_again(reason: str) -> None:
    assert settle(NOW, letter(reason))(replace(SENT, reason=moves.REVOKED_OUTSIDE)) is None
    moved = settle(NOW, letter(reason))(replace(SENT, cancel=CANCEL))
    assert moved is not None
    assert (moved.state, moved.reason) == ("REVOKED", "cancelled by me")


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({"x-death": [{"reason": "rejected", "queue": "q"}, {"reason": "expired", "queue": "r"}]}, "rejected"),
        ({"x-death": [{"reason": "a\0b\ud800", "queue": "q"}]}, "a\ufffdb\ufffd"),
        ({}, None),
        ({"x-death": []}, None),
        ({"x-death": "rejected"}, None),
        ({"x-death": ["rejected"]}, None),
        ({"x-death": [{"reason": 7}]}, None),
    ],
)
def test_the_last_death_counts(headers: dict[str, Any], reason: str | None) -> None:
    read_ = read(TaskId(RUN, 1), headers)
    assert read_ == (None if reason is None else DeadLetter(TaskId(RUN, 1), reason, "q"))
