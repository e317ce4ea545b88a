"""The fold and the other steps: tables for what each word does, properties for what must never happen."""

from dataclasses import replace
from datetime import timedelta
from functools import reduce
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.progress import late, moves
from app.progress.fold import Report, fold, progress_of
from app.progress.standing import Move, Standing
from app.states import TERMINAL
from tests.progress.standings import NEW, NOW, RUN, SENT, policy, report
from workers.protocol import LEASE_REPORT, TaskId

BOOM = {"exc_type": "ValueError", "exc_message": ["boom"], "exc_module": "builtins"}


def after(standing: Standing, *reports: Report) -> Standing:
    """The standing after these reports; those that are refused change nothing."""
    return reduce(lambda now, said: fold(said, NOW)(now) or now, reports, standing)


def test_a_run_from_start_to_success() -> None:
    started = after(SENT, report("STARTED", {"pid": 1, LEASE_REPORT: {"token": "t"}}, worker="w@h"))
    assert (started.state, started.worker, started.leased, started.start_time) == ("STARTED", "w@h", True, NOW)
    moving = after(started, report("PROGRESS", {"current": 3, "total": 10}))
    assert moving.state == "PROGRESS"
    assert moving.progress == {
        "current": 3,
        "total": 10,
        "percent": 30.0,
        "rate": None,
        "left_s": None,
        "message": None,
        "meta": {"current": 3, "total": 10},
        "pace": [1, 0, NOW.timestamp(), NOW.timestamp(), 3],
    }
    ended = after(moving, report("SUCCESS", 42))
    assert (ended.state, ended.result, ended.end_time, ended.error) == ("SUCCESS", 42, NOW, None)


def test_a_stock_worker_that_says_started_holds_no_lease() -> None:
    assert not after(SENT, report("STARTED", {"pid": 1, "hostname": "h"})).leased


def test_a_custom_word_counts_as_progress() -> None:
    moving = after(SENT, report("UPLOADING", {"file": "a.txt"}))
    assert (moving.state, moving.start_time) == ("UPLOADING", NOW)
    assert moving.progress is not None
    assert moving.progress["meta"] == {"file": "a.txt"}


@pytest.mark.parametrize("word", ["started", "", "A" * 41, "WITH SPACE", "RECEIVED", "PENDING", "REJECTED"])
def test_words_that_are_no_state_are_refused(word: str) -> None:
    assert fold(report(word), NOW)(SENT) is None


@pytest.mark.parametrize(
    ("meta", "percent"),
    [
        ({"current": 1, "total": 3}, 33.33),
        ({"current": 5, "total": 0}, None),
        ({"current": 12, "total": 10}, 100.0),
        ({"current": -1, "total": 10}, 0.0),
        ({"current": True, "total": 10}, None),
        ({"current": "1", "total": 10}, None),
        ("half way", None),
        (None, None),
    ],
)
def test_percent_is_read_where_it_can_be_read(meta: Any, percent: float | None) -> None:
    assert progress_of(meta)["percent"] == percent
    assert progress_of(meta)["meta"] == meta


def test_the_first_end_wins() -> None:
    ended = after(SENT, report("FAILURE", BOOM, traceback="Traceback"))
    assert ended.error == {"type": "ValueError", "message": "boom", "traceback": "Traceback"}
    for word in ("SUCCESS", "STARTED", "PROGRESS", "REVOKED"):
        moved = fold(report(word), NOW)(ended) or ended
        assert replace(moved, late=[]) == ended, "an end that comes late is kept beside the run, and nothing more"


def test_equal_news_is_no_news() -> None:
    moving = after(SENT, report("STARTED"), report("PROGRESS", {"current": 1}))
    assert fold(report("PROGRESS", {"current": 1}), NOW)(moving) is None
    assert fold(report("STARTED"), NOW)(moving) is None, "a second start of the same attempt is old news"


def test_a_report_may_outrun_the_mark_of_its_dispatch() -> None:
    started = after(replace(NEW, claim_time=NOW, claimed_by="a"), report("STARTED"))
    assert (started.dispatches, started.dispatch_time, started.claim_time) == (1, NOW, None)


def test_a_report_of_an_older_attempt_is_refused() -> None:
    second = after(replace(SENT, retry=policy(max_attempts=2)), report("FAILURE", BOOM))
    assert (second.state, second.attempt, second.first_dispatch) == ("PENDING", 2, 2)
    for word in ("STARTED", "PROGRESS", "RETRY", "SUCCESS", "REVOKED"):
        assert replace(fold(report(word, n=1), NOW)(second) or second, late=[]) == second
    assert after(second, report("SUCCESS", 1, n=2)).state == "SUCCESS"


def test_a_failed_attempt_waits_for_its_backoff() -> None:
    standing = replace(SENT, retry=policy(max_attempts=4, backoff_s=10, backoff_factor=3, max_backoff_s=60))
    waits = []
    for n in range(1, 4):
        standing = replace(after(standing, report("FAILURE", BOOM, n=n)), dispatches=n + 1, dispatch_time=NOW)
        waits.append((standing.due_time - NOW).total_seconds())
    assert waits == [10, 30, 60]
    assert after(standing, report("FAILURE", BOOM, n=4)).state == "FAILURE"
    assert [ended["attempt"] for ended in standing.attempts] == [1, 2, 3]


@pytest.mark.parametrize("factor", [1, 2])
def test_full_jitter_is_any_part_of_the_backoff_and_always_the_same(factor: int) -> None:
    full = policy(backoff_s=10, backoff_factor=factor, max_backoff_s=60, jitter="full")
    most = moves.backoff_s(policy(backoff_s=10, backoff_factor=factor, max_backoff_s=60), 3, RUN, 3)
    waits = [moves.backoff_s(full, 3, UUID(int=n), 3) for n in range(200)]
    assert waits == [moves.backoff_s(full, 3, UUID(int=n), 3) for n in range(200)]
    assert most == 10 * factor**2
    assert all(0 <= wait <= most for wait in waits)
    assert min(waits) < most / 10
    assert max(waits) > most * 9 / 10
    assert len({moves.backoff_s(full, 3, RUN, attempt) for attempt in range(1, 50)}) == 49


@pytest.mark.parametrize(
    ("retry_on", "kind", "again"),
    [
        (None, "ValueError", True),
        ([], "ValueError", False),
        (["ValueError"], "ValueError", True),
        (["KeyError", "builtins.ValueError"], "ValueError", True),
        (["ConnectionError"], "requests.exceptions.ConnectionError", True),
        (["Error"], "ValueError", False),
        (["ValueError"], "TimeLimitExceeded", False),
        (["TimeLimitExceeded"], "TimeLimitExceeded", True),
    ],
)
def test_only_errors_of_the_named_types_are_worth_another_attempt(
    retry_on: list[str] | None, kind: str, again: bool
) -> None:
    standing = replace(SENT, retry=policy(max_attempts=2, retry_on=retry_on))
    moved = moves.after_error(NOW, standing, {"type": kind, "message": "", "traceback": None})
    assert moved.state == ("PENDING" if again else "FAILURE")


def test_a_lost_worker_is_no_matter_of_retry_on() -> None:
    moved = moves.lose(NOW, 1, "gone")(replace(SENT, retry=policy(retry_on=["KeyError"])))
    assert moved is not None
    assert (moved.state, moved.attempt) == ("PENDING", 2)


def test_a_lost_worker_is_counted_apart() -> None:
    lost = {"exc_type": "WorkerLostError", "exc_message": ["signal 9"], "exc_module": "billiard.exceptions"}
    standing = replace(SENT, retry=policy(max_attempts=1, max_lost=1))
    again = after(standing, report("FAILURE", lost))
    assert (again.state, again.attempt, again.lost, again.due_time) == ("PENDING", 2, 1, NOW)
    ended = after(replace(again, dispatches=2, dispatch_time=NOW), report("FAILURE", lost, n=2))
    assert ended.state == "FAILURE"
    assert ended.error is not None
    assert ended.error["type"] == "WorkerLost"


def test_at_most_once_never_runs_again() -> None:
    standing = replace(SENT, retry=policy(max_lost=0))
    assert (moves.lose(NOW, 1, "gone")(standing) or standing).state == "FAILURE"


UNKNOWN = {"exc_type": "NotRegistered", "exc_message": ["t"], "exc_module": "celery.exceptions"}


def test_not_registered_never_ends_a_run() -> None:
    again = after(SENT, report("FAILURE", UNKNOWN))
    assert (again.state, again.attempt, again.dispatch_time, again.not_registered) == ("PENDING", 1, None, 1)
    assert again.reason == "not registered: a worker without t took it"
    assert fold(report("FAILURE", UNKNOWN), NOW)(again) is None, "the same answer, read again, counts once"


@pytest.mark.parametrize("before", [0, 3])
def test_a_second_copy_of_what_one_worker_gave_up_is_run_by_another(before: int) -> None:
    """A message that nobody confirmed is sent again: one copy to a worker without the task, one to a worker with it."""
    n = before + 1
    put_away = [{"attempt": 1, "dispatch": before, "state": "FAILURE", "error": None}] if before else []
    sent = replace(SENT, attempts=put_away, attempt=1 + len(put_away), dispatches=n, first_dispatch=n)
    given_up = after(sent, report("FAILURE", UNKNOWN, n=n))
    lease = {"jobplane_lease": {"token": "x", "lease_s": 30}}
    begun = after(given_up, report("STARTED", lease, n=n, worker="good@h"))
    assert (begun.state, begun.leased, begun.worker, begun.dispatch_time) == ("STARTED", True, "good@h", NOW)
    assert fold(report("FAILURE", UNKNOWN, n=n), NOW)(begun) is None
    for standing in (begun, given_up, replace(given_up, dispatches=n + 1, dispatch_time=NOW)):
        ended = after(standing, report("SUCCESS", 42, n=n))
        assert (ended.state, ended.result, ended.late) == ("SUCCESS", 42, [])
    for other in (report("REVOKED", n=n), report("FAILURE", UNKNOWN, n=n)):
        assert after(given_up, other).dispatch_time is None, "that says nothing of the next message"
    old = after(given_up, report("SUCCESS", 1, n=before)) if before else given_up
    assert old.state == "PENDING", "an attempt that is over stays over"


def test_not_registered_waits_longer_each_time_and_then_for_every_worker() -> None:
    standing, waits = SENT, []
    for n in range(1, 10):
        standing = after(replace(standing, dispatches=n, dispatch_time=NOW), report("FAILURE", UNKNOWN, n=n))
        waits.append((standing.due_time - NOW).total_seconds())
        for_all = "every live worker" in (standing.reason or "")
        assert for_all == (standing.not_registered >= moves.NOT_REGISTERED_MOST)
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]
    assert (standing.attempt, standing.attempts) == (1, [])
    lost = moves.lose(NOW, 1, "gone")(replace(standing, dispatches=10, state="STARTED"))
    assert lost is not None
    assert (lost.attempt, lost.not_registered) == (2, 0)


@pytest.mark.parametrize(
    ("standing", "dispatch", "counts"),
    [
        (SENT, 1, True),
        (SENT, 2, True),
        (SENT, 3, False),
        (replace(SENT, dispatches=2, first_dispatch=2), 1, False),
        (replace(SENT, state="STARTED", start_time=NOW), 1, False),
        (replace(SENT, state="UPLOADING", start_time=NOW), 1, False),
        (replace(SENT, state="RETRY", retries=2), 1, True),
        (replace(SENT, state="SUCCESS", end_time=NOW), 1, False),
    ],
)
def test_not_registered_counts_only_where_nobody_has_the_attempt(
    standing: Standing, dispatch: int, counts: bool
) -> None:
    moved = moves.not_registered(NOW, standing, dispatch, "thief@h")
    assert (moved is not None) == counts
    if moved is not None:
        assert (moved.state, moved.first_dispatch, moved.retries) == ("PENDING", dispatch + 1, standing.retries)
        assert moved.dispatches >= dispatch
        assert moved.reason == "not registered: worker thief@h without t took it"


def test_a_soft_time_limit_is_told_from_a_hard_one_and_may_be_named_in_the_policy() -> None:
    hard, soft = {"exc_type": "TimeLimitExceeded", "exc_message": [2]}, {"exc_type": "SoftTimeLimitExceeded"}
    errors = [after(SENT, report("FAILURE", meta)).error for meta in (hard, soft)]
    assert [error and (error["type"], error["message"]) for error in errors] == [
        ("TimeLimitExceeded", "2"),
        ("TimeLimitExceeded", "soft: true"),
    ]
    only_soft = replace(SENT, retry=policy(max_attempts=2, retry_on=["SoftTimeLimitExceeded"]))
    assert [after(only_soft, report("FAILURE", meta)).attempt for meta in (hard, soft)] == [1, 2]


def test_an_exception_that_bears_a_name_of_ours_is_the_tasks_own() -> None:
    standing = replace(SENT, retry=policy(max_attempts=2))
    for name in ("WorkerLost", "OutcomeUnknown"):
        again = after(standing, report("FAILURE", {"exc_type": name}, traceback="Traceback"))
        assert (again.attempt, again.lost) == (2, 0)


def test_an_ended_attempt_says_how_it_went() -> None:
    standing = replace(SENT, retry=policy(max_attempts=2))
    again = after(standing, report("STARTED", worker="w@h"), report("RETRY", BOOM), report("FAILURE", BOOM))
    assert again.attempts == [
        {
            "attempt": 1,
            "dispatch": 1,
            "state": "FAILURE",
            "reason": "failed: run again after 10 s",
            "worker": "w@h",
            "retries": 1,
            "start_time": NOW,
            "end_time": NOW,
            "error": {"type": "ValueError", "message": "boom", "traceback": None},
        }
    ]


def test_a_task_that_asks_for_an_unknown_one_fails_by_its_own_error() -> None:
    ended = after(SENT, report("STARTED"), report("FAILURE", UNKNOWN, traceback="Traceback"))
    assert (ended.state, ended.error) == (
        "FAILURE",
        {"type": "NotRegistered", "message": "t", "traceback": "Traceback"},
    )


def test_an_exception_of_the_transport_is_an_unknown_outcome_and_never_runs_again() -> None:
    lost = {"exc_type": "OperationalError", "exc_message": ["refused"], "exc_module": "kombu.exceptions"}
    ended = after(replace(SENT, retry=policy(max_attempts=5)), report("FAILURE", lost))
    assert ended.state == "FAILURE"
    assert ended.error is not None
    assert ended.error["type"] == "OutcomeUnknown"


def test_what_cannot_be_encoded_is_an_error_of_the_task_though_the_transport_says_it() -> None:
    said = {"exc_type": "EncodeError", "exc_message": ["Object of type set is not JSON serializable"]}
    ended = after(SENT, report("FAILURE", {**said, "exc_module": "kombu.exceptions"}))
    assert ended.state == "FAILURE"
    assert ended.error is not None
    assert (ended.error["type"], ended.error["message"]) == ("EncodeError", said["exc_message"][0])


def test_celerys_own_retry_is_the_same_attempt() -> None:
    started = after(SENT, report("STARTED", {LEASE_REPORT: {"token": "t"}}))
    waiting = after(started, report("RETRY", BOOM))
    assert (waiting.state, waiting.attempt, waiting.retries, waiting.leased) == ("RETRY", 1, 1, False)
    assert fold(report("RETRY", BOOM), NOW)(waiting) is None, "the same word, read again, is not the next retry"
    again = after(waiting, report("STARTED"), report("RETRY", BOOM))
    assert (again.state, again.retries) == ("RETRY", 2)
    assert after(waiting, report("PROGRESS", 1, retries=3)).retries == 3


def test_a_strangers_revoke_of_a_started_run_is_only_a_rumour() -> None:
    revoked = {"exc_type": "TaskRevokedError", "exc_message": ["revoked"], "exc_module": "celery.exceptions"}
    assert fold(report("REVOKED", revoked), NOW)(after(SENT, report("STARTED"))) is None
    waiting = after(SENT, report("REVOKED", revoked))
    assert (waiting.state, waiting.reason) == ("PENDING", moves.REVOKED_OUTSIDE)
    assert after(waiting, report("STARTED")).reason is None
    terminated = {**revoked, "exc_message": ["terminated"]}
    assert after(SENT, report("STARTED"), report("REVOKED", terminated)).state == "REVOKED"


def test_a_start_deadline_counts_until_the_first_start() -> None:
    late = replace(SENT, start_deadline_time=NOW - timedelta(seconds=1))
    ended = moves.expire(NOW)(late)
    assert ended is not None
    assert (ended.state, ended.reason) == ("REVOKED", "start deadline")
    assert moves.expire(NOW)(after(late, report("STARTED"))) is None
    assert moves.expire(NOW)(replace(late, start_deadline_time=NOW + timedelta(seconds=1))) is None
    assert moves.expire(NOW)(replace(late, attempt=2)) is None


def test_a_message_that_a_worker_gave_up_as_expired_was_too_late_for_its_start() -> None:
    expired = {"exc_type": "TaskRevokedError", "exc_message": ["expired"], "exc_module": "celery.exceptions"}
    timed = replace(SENT, start_deadline_time=NOW + timedelta(seconds=1))
    ended = after(timed, report("REVOKED", expired))
    assert (ended.state, ended.reason) == ("REVOKED", "start deadline"), "the clock of the worker may go before ours"
    begun = after(timed, report("STARTED"))
    assert fold(report("REVOKED", expired), NOW)(begun) is None, "a second copy of the message, too late"
    # A stock worker hands the expiry on to the task's own retry.
    again = after(begun, report("RETRY", BOOM), report("REVOKED", expired))
    assert (again.state, again.attempt, again.lost) == ("PENDING", 2, 1)
    # An expiry that is none of ours.
    assert after(SENT, report("REVOKED", expired)).reason == moves.REVOKED_OUTSIDE


WORDS = st.sampled_from(["STARTED", "PROGRESS", "UPLOADING", "RETRY", "SUCCESS", "FAILURE", "REVOKED", "PENDING", "x"])
METAS = st.sampled_from(
    [
        None,
        BOOM,
        {"current": 1, "total": 2},
        {"exc_type": "WorkerLostError", "exc_message": ["x"]},
        {"exc_type": "NotRegistered", "exc_message": ["t"]},
        {"exc_type": "TaskRevokedError", "exc_message": ["terminated"]},
    ]
)
REPORTS = st.builds(
    lambda n, word, meta: fold(Report(TaskId(RUN, n), word, meta), NOW), st.integers(1, 4), WORDS, METAS
)
STEPS = st.one_of(
    REPORTS,
    st.just(moves.cancel(NOW, "asked")),
    st.builds(lambda attempt: moves.lose(NOW, attempt, "gone"), st.integers(1, 3)),
    st.builds(lambda n: moves.redispatch(NOW, n, "lost on the way"), st.integers(1, 4)),
    st.just(moves.expire(NOW)),
    st.just(moves.exceed(NOW, moves.DEADLINE_EXCEEDED, "late")),
    st.just(moves.explain(moves.UNHEARD)),
)


@settings(max_examples=500, derandomize=True, deadline=None)
@given(steps=st.lists(STEPS, max_size=25), attempts=st.integers(1, 3), lost=st.integers(0, 2))
def test_any_history_keeps_the_tables_rules(steps: list[Move], attempts: int, lost: int) -> None:
    deadline_time = NOW if attempts == 2 else None
    standing = replace(NEW, retry=policy(max_attempts=attempts, max_lost=lost), deadline_time=deadline_time)
    for step in steps:
        if standing.state == "PENDING" and standing.dispatch_time is None:
            standing = replace(standing, dispatches=standing.dispatches + 1, dispatch_time=NOW)
        moved = step(standing)
        if moved is None:
            continue
        assert moved.version == standing.version, "the version is raised by whoever writes"
        assert len(moved.late) <= late.MOST
        assert len({(kept["dispatch"], kept["state"]) for kept in moved.late}) == len(moved.late)
        if standing.state in TERMINAL or moved.late != standing.late:
            assert replace(moved, late=standing.late) == standing, "a late end is kept beside the run, and nothing more"
        assert (moved.end_time is not None) == (moved.state in TERMINAL)
        assert (moved.error is not None) == (moved.state == "FAILURE")
        assert moved.attempt in {standing.attempt, standing.attempt + 1}
        assert 1 <= moved.first_dispatch <= moved.dispatches + 1
        assert len(moved.attempts) == moved.attempt - 1
        assert moved.lost <= lost
        assert moved.attempt - moved.lost <= attempts
        assert moved.attempts[: len(standing.attempts)] == standing.attempts
        assert [ended["attempt"] for ended in moved.attempts] == list(range(1, moved.attempt))
        assert all(first["dispatch"] < second["dispatch"] for first, second in pairwise(moved.attempts))
        standing = moved
