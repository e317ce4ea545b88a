"""Every reason has its code and its sentence, and the most telling one stands first."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from app.progress.moves import NO_WORKER, REVOKED_OUTSIDE, UNHEARD
from app.progress.standing import Standing
from app.progress.why import CODES, MOST_AHEAD, Item, Limits, Surroundings, why_job, why_run
from app.progress.words import counted, duration, few, instant
from tests.progress.standings import NEW, NOW, RUN, SENT

QUEUE: dict[str, Any] = {
    "name": "q",
    "paused": False,
    "problem": None,
    "declare_time": NOW,
    "author": "ann",
    "update_time": NOW - timedelta(hours=3),
}
SEEN: dict[str, Any] = {
    "ready": 7,
    "consumers": 1,
    "workers": ["celery@a"],
    "known_tasks": ["t"],
    "common_tasks": ["t"],
    "look_time": NOW - timedelta(seconds=4),
}
WORKER: dict[str, Any] = {
    "node": "celery@a",
    "tasks": ["t"],
    "pool": "prefork",
    "concurrency": 8,
    "active": 8,
    "seen_time": NOW - timedelta(seconds=2),
    "consumes": True,
}
CALM = Surroundings(QUEUE, SEEN, [WORKER], 2, NOW - timedelta(seconds=2))
AGO = NOW - timedelta(minutes=8)
SOON = NOW + timedelta(seconds=9)
STARTED = replace(SENT, state="STARTED", worker="celery@a", start_time=AGO)
ENDED = replace(STARTED, end_time=NOW)
ERROR = {"type": "ValueError", "message": "no such file\nreally", "traceback": None}
ATTEMPT = {"attempt": 1, "state": "FAILURE", "worker": "celery@a", "error": ERROR}
CANCEL = {"time": "2026-11-22T11:59:00Z", "by": "bob", "terminate": False, "grace_s": 0}
THIEF = "not registered: worker thief@b without t took it"


def run_of(standing: Standing, **columns: Any) -> dict[str, Any]:
    update = NOW - timedelta(seconds=3)
    return {**asdict(standing), "queue": "q", "task": "t", "create_time": AGO, "update_time": update, **columns}


def around(**changes: Any) -> Surroundings:
    return replace(CALM, **changes)


def queue(**changes: Any) -> Surroundings:
    return around(queue={**QUEUE, **changes})


def seen(**changes: Any) -> Surroundings:
    return around(sighting={**SEEN, **changes})


def one_of(items: Sequence[Item], code: str) -> Item:
    return next(item for item in items if item.code == code)


RUNS: list[tuple[Standing, Surroundings, list[str], str]] = [
    (
        replace(ENDED, state="SUCCESS"),
        CALM,
        ["ended"],
        "The run ended with SUCCESS at 2026-11-22T12:00:00Z, 8 minutes after its start.",
    ),
    (
        replace(ENDED, state="FAILURE", error=ERROR, start_time=None),
        CALM,
        ["ended"],
        "The run ended with FAILURE at 2026-11-22T12:00:00Z: ValueError: no such file.",
    ),
    (
        replace(ENDED, state="REVOKED", reason="cancelled by bob", start_time=None),
        CALM,
        ["ended"],
        "The run ended with REVOKED at 2026-11-22T12:00:00Z: cancelled by bob.",
    ),
    (
        replace(STARTED, cancel=CANCEL),
        CALM,
        ["cancel_asked", "running"],
        "A cancel was asked for by bob at 2026-11-22T11:59:00Z: it is being pursued.",
    ),
    (
        replace(SENT, cancel=CANCEL, reason="cancel asked by bob: waits for Redis"),
        CALM,
        ["cancel_asked", "dispatched_waiting"],
        "A cancel was asked for by bob at 2026-11-22T11:59:00Z: waits for Redis.",
    ),
    (
        replace(STARTED, reason="a worker has started it, and its message was given up"),
        CALM,
        ["running"],
        "The worker celery@a has had it for 8 minutes; its last news came 3 seconds ago; a worker has started it, and "
        "its message was given up.",
    ),
    (
        STARTED,
        CALM,
        ["running"],
        "The worker celery@a has had it for 8 minutes; its last news came 3 seconds ago.",
    ),
    (
        replace(STARTED, state="CRUNCHING", worker=None, progress={"percent": 30.0}),
        CALM,
        ["running"],
        "The worker (which did not say its name) has had it for 8 minutes and is at 30%; its last news came 3 seconds "
        "ago.",
    ),
    (
        STARTED,
        around(workers=[{**WORKER, "seen_time": AGO}]),
        ["worker_gone", "running"],
        "The worker celery@a was last seen at 2026-11-22T11:52:00Z, 8 minutes ago.",
    ),
    (
        STARTED,
        around(workers=[{**WORKER, "seen_time": AGO, "pool": "solo"}]),
        ["worker_gone", "running"],
        "The worker celery@a was last seen at 2026-11-22T11:52:00Z, 8 minutes ago; one whose pool is solo does not "
        "answer while it works.",
    ),
    (
        STARTED,
        around(workers=[]),
        ["worker_gone", "running"],
        "The worker celery@a has not been seen in the last hour.",
    ),
    (
        replace(STARTED, reason="worker celery@a was started anew and does not say that it has it"),
        CALM,
        ["worker_gone", "running"],
        "The worker celery@a was started anew and does not say that it has it.",
    ),
    # A catalogue that is dead says nothing about any worker.
    (STARTED, around(workers=[], catalogue_time=AGO), ["running"], ""),
    (STARTED, around(workers=[], catalogue_time=None), ["running"], ""),
    (
        replace(STARTED, state="RETRY", retries=2, reason="the task retries itself: OSError"),
        CALM,
        ["worker_retry"],
        "The task asked Celery for another try (retry 2), which the broker keeps; the task retries itself: OSError.",
    ),
    (
        replace(STARTED, reason=REVOKED_OUTSIDE),
        CALM,
        ["running", "revoked_outside"],
        "",
    ),
    (
        replace(STARTED, deadline_time=NOW),
        CALM,
        ["deadline", "running"],
        "Its deadline 2026-11-22T12:00:00Z has passed; it is about to be FAILURE.",
    ),
    (
        replace(NEW, start_deadline_time=NOW),
        CALM,
        ["start_deadline", "sending"],
        "No worker started it by its start deadline 2026-11-22T12:00:00Z; it is about to be REVOKED.",
    ),
    (replace(NEW, start_deadline_time=SOON, deadline_time=SOON), CALM, ["sending", "start_deadline", "deadline"], ""),
    # A start deadline holds for the first attempt, until a worker starts it.
    (replace(STARTED, start_deadline_time=NOW), CALM, ["running"], ""),
    (NEW, CALM, ["sending"], "It is about to be sent to the queue q; it has been due for less than a second."),
    (
        NEW,
        around(schedulers=0),
        ["no_scheduler"],
        "No scheduler lives, so nothing is fired, sent, recorded or ended.",
    ),
    (NEW, around(queue=None), ["queue_missing"], "There is no queue q."),
    (
        NEW,
        queue(paused=True),
        ["queue_paused"],
        "The queue q is paused (last changed by ann at 2026-11-22T09:00:00Z).",
    ),
    (
        NEW,
        queue(problem="it has a cold", declare_time=None),
        ["queue_problem"],
        "The queue q is in trouble: it has a cold.",
    ),
    (
        NEW,
        queue(declare_time=None),
        ["queue_not_declared"],
        "The queue q was not yet found or made on the broker.",
    ),
    (
        replace(NEW, reason="broker away since 2026-11-22T11:52:00Z"),
        CALM,
        ["broker_away"],
        "The broker has been away since 2026-11-22T11:52:00Z, for 8 minutes.",
    ),
    (
        NEW,
        around(limits=Limits(max_active=3, taken=3, holders=[{"id": RUN, "worker": "celery@a"}])),
        ["queue_limit"],
        f"At most 3 runs are active in the queue q, and 3 have a place: {RUN} on celery@a and 2 more.",
    ),
    (
        NEW,
        around(limits=Limits(max_active=1, taken=1, holders=[{"id": RUN, "worker": None}])),
        ["queue_limit"],
        f"At most 1 run is active in the queue q, and 1 has a place: {RUN}.",
    ),
    (
        NEW,
        around(limits=Limits(max_active=4, taken=3, rate="100/m", next_time=SOON)),
        ["queue_rate"],
        "The queue q takes 100/m; the next run goes out at about 2026-11-22T12:00:09Z, in 9 seconds.",
    ),
    # There is room; it is not due; it is on its way; something else keeps it.
    (NEW, around(limits=Limits(max_active=4, taken=3, rate="100/m", next_time=NOW)), ["sending"], ""),
    (
        replace(NEW, attempt=2, attempts=[ATTEMPT], due_time=SOON, reason="retry backoff after ValueError"),
        around(limits=Limits(max_active=1, taken=1)),
        ["retry_backoff"],
        "",
    ),
    (replace(NEW, claim_time=NOW, claimed_by="s"), around(limits=Limits(max_active=1, taken=1)), ["sending"], ""),
    (
        NEW,
        replace(queue(paused=True), limits=Limits(max_active=1, taken=1)),
        ["queue_paused"],
        "",
    ),
    (
        NEW,
        seen(known_tasks=["x"], workers=["a", "b", "c", "d"]),
        ["task_not_registered"],
        "No worker on the queue q registers the task t (a, b, c and 1 more consume it).",
    ),
    (NEW, seen(known_tasks=["x"], look_time=AGO), ["sending"], ""),
    (NEW, seen(known_tasks=None), ["sending"], ""),
    (
        replace(NEW, not_registered=2, reason=THIEF, due_time=SOON),
        around(workers=[WORKER, {**WORKER, "node": "thief@b", "tasks": []}]),
        ["not_registered_taken"],
        "The worker thief@b, which does not register t, took it and gave it up (2 times so far); of the live workers "
        "on the queue, thief@b does not register it; it goes out again at 2026-11-22T12:00:09Z, in 9 seconds.",
    ),
    (
        replace(NEW, not_registered=2, due_time=SOON),
        seen(known_tasks=["x"], common_tasks=["x"]),
        ["task_not_registered", "not_registered_taken"],
        "No worker on the queue q registers the task t (celery@a consumes it).",
    ),
    (
        replace(NEW, not_registered=5, due_time=SOON),
        seen(common_tasks=[]),
        ["not_registered_taken"],
        "A worker that does not register t took it and gave it up (5 times so far); it waits until every live "
        "worker on the queue does.",
    ),
    (
        replace(NEW, waits_for=RUN, most_active=1),
        around(schedulers=0),
        ["no_scheduler", "waits_for_run"],
        "",
    ),
    (
        replace(NEW, attempt=2, attempts=[ATTEMPT], due_time=SOON, reason="retry backoff after ValueError"),
        CALM,
        ["retry_backoff"],
        "Attempt 1 failed with ValueError: no such file; attempt 2 goes out at 2026-11-22T12:00:09Z, in 9 seconds.",
    ),
    (
        replace(NEW, attempt=2, attempts=[ATTEMPT], reason="worker lost: runs again"),
        CALM,
        ["worker_lost"],
        "The worker of attempt 1 was lost; attempt 2 is about to be sent.",
    ),
    (
        replace(NEW, dispatches=1, reason="lost on the way: sent again"),
        CALM,
        ["lost_resent"],
        "Its message is about to be sent again: lost on the way.",
    ),
    (
        replace(NEW, dispatches=1, reason="its message was given up by the queue q: sent again", due_time=SOON),
        CALM,
        ["lost_resent"],
        "Its message goes out again at 2026-11-22T12:00:09Z, in 9 seconds: its message was given up by the queue q.",
    ),
    (
        replace(NEW, reason="unroutable", due_time=SOON),
        CALM,
        ["unroutable"],
        "The broker gave its message back, for no queue is bound for its route; it is sent again at "
        "2026-11-22T12:00:09Z, in 9 seconds.",
    ),
    (
        replace(NEW, reason="no message can be made of it: x", due_time=SOON, attempts=[ATTEMPT]),
        CALM,
        ["refused"],
        "It is tried again at 2026-11-22T12:00:09Z, in 9 seconds: no message can be made of it: x.",
    ),
    (
        replace(SENT, dispatch_time=AGO),
        CALM,
        ["dispatched_waiting"],
        "It has been in the queue q for 8 minutes, behind 3 other runs; 7 messages waited there 4 seconds ago; "
        "celery@a works at 8 of 8.",
    ),
    (
        SENT,
        seen(consumers=0, known_tasks=None, workers=[]),
        ["no_worker", "dispatched_waiting"],
        "No worker consumes the queue q.",
    ),
    (
        replace(SENT, reason=NO_WORKER),
        around(sighting=None, workers=[{**WORKER, "active": None}]),
        ["no_worker", "dispatched_waiting"],
        "When it was sent, no worker consumed q.",
    ),
    (
        replace(SENT, reason=UNHEARD, dispatch_time=AGO),
        CALM,
        ["unheard", "dispatched_waiting"],
        "It was sent 8 minutes ago and no worker has said that it started; it is not sent again as long as a worker "
        "may have it.",
    ),
    (
        replace(SENT, reason=REVOKED_OUTSIDE),
        CALM,
        ["revoked_outside", "dispatched_waiting"],
        "A worker says that somebody revoked it outside jobplane; without other news it is REVOKED soon.",
    ),
    (
        replace(SENT, dispatches=3),
        around(schedulers=0),
        ["dispatched_waiting", "lost_resent", "no_scheduler"],
        "",
    ),
]


@pytest.mark.parametrize(("standing", "surroundings", "codes", "detail"), RUNS)
def test_a_run(standing: Standing, surroundings: Surroundings, codes: list[str], detail: str) -> None:
    items = why_run(NOW, run_of(standing), surroundings, ahead=3)
    assert [item.code for item in items] == codes
    if detail:
        assert items[0].detail == detail


@pytest.mark.parametrize(
    ("most", "before", "detail"),
    [
        (1, STARTED, "one run of its job at a time is active, and the run {} is before it (STARTED on the worker"),
        (3, SENT, "3 runs of its job at a time are active, and the run {} is before it (PENDING since 2026-11-22T11:"),
        (
            1,
            replace(NEW, waits_for=RUN),
            "one run of its job at a time is active, and the run {} is before it (waits as",
        ),
        (1, ENDED, "one run of its job at a time is active, and the run {} is before it; that one has ended, so it"),
        (1, None, "one run of its job at a time is active, and the run {} is before it; that one has ended, so it"),
    ],
)
def test_a_run_that_waits_for_another(most: int, before: Standing | None, detail: str) -> None:
    run = run_of(replace(NEW, waits_for=RUN, most_active=most))
    (item,) = why_run(NOW, run, CALM, 0, None if before is None else run_of(before))
    assert (item.code, item.run_id) == ("waits_for_run", RUN)
    assert item.detail.startswith(f"At most {detail.format(RUN)}")


def test_a_worker_that_the_queue_has_lost_since_is_not_named() -> None:
    gone = {**WORKER, "node": "celery@gone", "seen_time": NOW - timedelta(seconds=9)}
    new = {**WORKER, "node": "celery@new", "seen_time": NOW}
    (item,) = why_run(NOW, run_of(SENT), around(workers=[WORKER, gone, new]), ahead=0)
    assert item.workers == ["celery@a", "celery@new"]


def test_a_run_that_is_held_is_not_said_to_go_out_again() -> None:
    run = run_of(replace(NEW, not_registered=2, due_time=SOON))
    told = {
        known: one_of(why_run(NOW, run, seen(known_tasks=[known]), 0), "not_registered_taken").detail for known in "xt"
    }
    assert "goes out again" in told["t"]
    assert "goes out again" not in told["x"]


def test_what_else_waits_for_the_queue_is_counted_up_to_a_bound() -> None:
    (alone,) = why_run(NOW, run_of(SENT), CALM, ahead=0)
    assert "behind no other run;" in alone.detail
    (item,) = why_run(NOW, run_of(SENT), CALM, ahead=MOST_AHEAD)
    assert f"behind at least {MOST_AHEAD} other runs" in item.detail


JOB: dict[str, Any] = {
    "queue": "q",
    "task": "t",
    "enabled": True,
    "overlap": "skip",
    "max_active": None,
    "pause_time": None,
    "pause_by": None,
    "pause_reason": None,
    "problem": None,
    "contract_problem": None,
    "next_run_time": SOON,
    "last_run_time": None,
}
LIVE = run_of(STARTED)
SKIP: dict[str, Any] = {
    "reason": "overlap",
    "run_id": RUN,
    "first_time": AGO,
    "last_time": NOW,
    "count": 9,
    "exact": True,
}
PAUSED = {"pause_time": AGO, "pause_by": "ann", "next_run_time": None}

BACKFILL: dict[str, Any] = {
    "id": RUN,
    "from": AGO,
    "to": NOW,
    "state": "ACTIVE",
    "reason": None,
    "overlap": "allow",
    "progress": {"current": 3, "total": 8, "percent": 37.5},
    "counts": {"active": 1},
    "author": "ann",
    "create_time": NOW,
}

JOBS: list[tuple[dict[str, Any], dict[str, Any], list[str], str]] = [
    ({}, {}, ["next_time"], "It is due next at 2026-11-22T12:00:09Z, in 9 seconds."),
    ({"next_run_time": NOW}, {}, ["next_time"], "It is due next at 2026-11-22T12:00:00Z, now."),
    (
        {"next_run_time": AGO},
        {},
        ["overdue"],
        "It was due at 2026-11-22T11:52:00Z, 8 minutes ago, and the schedulers have not come to it.",
    ),
    ({"next_run_time": AGO}, {"around": around(schedulers=0)}, ["no_scheduler", "overdue"], ""),
    ({"next_run_time": None}, {}, ["finished"], "Its trigger names no further time."),
    ({"enabled": False, "next_run_time": None}, {}, ["disabled"], "The job is disabled by its definition."),
    (PAUSED, {}, ["paused"], "The job was paused by ann at 2026-11-22T11:52:00Z."),
    (
        {**PAUSED, "pause_reason": "full disk", "enabled": False},
        {},
        ["disabled", "paused"],
        "The job is disabled by its definition.",
    ),
    (
        {"problem": "no such zone", "next_run_time": None},
        {},
        ["parked"],
        "The job is parked until its next edit: no such zone.",
    ),
    (
        {"contract_problem": "y is missing"},
        {},
        ["contract_problem", "next_time"],
        "Its arguments do not fit the task as live workers register it: y is missing.",
    ),
    (
        {},
        {"live": [LIVE]},
        ["overlap", "next_time"],
        f"The run {RUN} has not ended (STARTED on the worker celery@a for 8 minutes), and the times until then are "
        "skipped.",
    ),
    (
        {"overlap": "allow"},
        {"live": [run_of(NEW)]},
        ["live_runs", "next_time"],
        f"1 run has not ended; the oldest is {RUN} (PENDING since 2026-11-22T11:52:00Z).",
    ),
    (
        {"overlap": "cancel_other"},
        {"live": [run_of(NEW)]},
        ["live_runs", "next_time"],
        f"1 run has not ended; the oldest is {RUN} (PENDING since 2026-11-22T11:52:00Z); the next time asks for its "
        "cancel and waits for its end.",
    ),
    (
        {"overlap": "allow", "max_active": 2},
        {"live": [run_of(NEW)]},
        ["live_runs", "next_time"],
        f"1 run has not ended; the oldest is {RUN} (PENDING since 2026-11-22T11:52:00Z). At most 2 runs are active at "
        "once; further ones wait.",
    ),
    (
        {},
        {"skip": SKIP},
        ["next_time", "last_skip"],
        "",
    ),
    (
        {"next_run_time": None},
        {"backfill": BACKFILL},
        ["finished", "backfill"],
        "",
    ),
    ({}, {"around": queue(paused=True)}, ["queue_paused", "next_time"], ""),
    ({}, {"around": seen(known_tasks=["x"])}, ["task_not_registered", "next_time"], ""),
    ({}, {"around": seen(consumers=0)}, ["no_worker", "next_time"], ""),
]


@pytest.mark.parametrize(("changes", "facts", "codes", "detail"), JOBS)
def test_a_job(changes: dict[str, Any], facts: dict[str, Any], codes: list[str], detail: str) -> None:
    live = facts.get("live", [])
    surroundings = facts.get("around", CALM)
    of_oldest = why_run(NOW, live[0], CALM, 0) if live else []
    items = why_job(
        NOW, {**JOB, **changes}, surroundings, live, len(live), of_oldest, facts.get("skip"), facts.get("backfill")
    )
    assert [item.code for item in items] == codes
    if detail:
        assert items[0].detail == detail
    if live:
        assert items[0].items == of_oldest
        assert items[0].run_id == RUN


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        (
            {},
            "9 scheduled times from 2026-11-22T11:52:00Z to 2026-11-22T12:00:00Z were skipped: an earlier run had not ",
        ),
        ({"count": 1, "reason": "paused"}, "1 scheduled time at 2026-11-22T12:00:00Z was skipped: the job was paused."),
        ({"exact": False, "reason": "missed"}, "At least 9 scheduled times "),
    ],
)
def test_the_last_skip(changes: dict[str, Any], detail: str) -> None:
    items = why_job(NOW, JOB, CALM, [], 0, [], {**SKIP, **changes})
    assert one_of(items, "last_skip").detail.startswith(detail)


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        (
            {},
            "A backfill from 2026-11-22T11:52:00Z to 2026-11-22T12:00:00Z is active: 3 of 8 times are dealt with, 1 "
            "run of it has not ended, in nobody's way.",
        ),
        ({"overlap": "buffer_all"}, "3 of 8 times are dealt with, 1 run of it has not ended."),
        ({"state": "PAUSED", "reason": "lunch"}, "is paused (lunch): 3 of 8 times"),
        ({"counts": {"active": 0}}, "0 runs of it have not ended."),
    ],
)
def test_a_backfill(changes: dict[str, Any], detail: str) -> None:
    item = one_of(why_job(NOW, JOB, CALM, [], 0, [], None, {**BACKFILL, **changes}), "backfill")
    assert detail in item.detail
    assert (item.backfill_id, item.by) == (RUN, "ann")


def test_only_facts_that_are_there_are_shown() -> None:
    inner = Item("running", "x", worker="w")
    shown = Item("overlap", "y", run_id=UUID(int=7), items=[inner]).view()
    assert shown == {
        "code": "overlap",
        "detail": "y",
        "run_id": UUID(int=7),
        "items": [{"code": "running", "detail": "x", "worker": "w"}],
    }


def test_every_code_is_known_tested_and_documented() -> None:
    tested = {code for *_, codes, _ in (*RUNS, *JOBS) for code in codes}
    assert tested == set(CODES)
    table = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    assert [code for code in CODES if f"| `{code}` |" not in table] == []


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (-5, "less than a second"),
        (0.4, "less than a second"),
        (1, "1 second"),
        (119.9, "119 seconds"),
        (120, "2 minutes"),
        (7199, "119 minutes"),
        (7200, "2 hours"),
        (47.9 * 3600, "47 hours"),
        (48 * 3600, "2 days"),
        (400 * 86400, "400 days"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(timedelta(seconds=seconds)) == words


@pytest.mark.parametrize(
    ("names", "words"), [(["a"], "a"), (["a", "b", "c"], "a, b, c"), (list("abcde"), "a, b, c and 2 more")]
)
def test_a_few_names(names: list[str], words: str) -> None:
    assert few(names) == words


def test_words() -> None:
    assert (counted(1, "run", "runs"), counted(0, "run", "runs")) == ("1 run", "0 runs")
    assert instant(NOW + timedelta(milliseconds=700)) == "2026-11-22T12:00:00Z"
