"""Ends that came after the one that counts: what is kept of them, and what is only said again."""

from dataclasses import replace
from typing import Any

import pytest

from app.database import Database, clock
from app.progress import late, moves
from app.progress.fold import fold
from app.progress.transition import apply
from tests.progress.live import make_run, row_of
from tests.progress.standings import NOW, SENT, policy, report
from tests.progress.test_fold import BOOM, UNKNOWN, after
from workers.protocol import TaskId

TERMINATED = {"exc_type": "TaskRevokedError", "exc_message": ["terminated"]}


def ends(standing: Any) -> list[tuple[int, int, str]]:
    return [(kept["attempt"], kept["dispatch"], kept["state"]) for kept in standing.late]


@pytest.mark.parametrize(
    ("end", "said", "kept"),
    [
        (report("SUCCESS", 1), report("SUCCESS", 1), []),
        (report("SUCCESS", 1), report("FAILURE", BOOM, worker="w@h"), [(1, 1, "FAILURE")]),
        (report("SUCCESS", 1), report("REVOKED", TERMINATED), [(1, 1, "REVOKED")]),
        (report("FAILURE", BOOM), report("FAILURE", BOOM), []),
        (report("FAILURE", BOOM), report("FAILURE", {**BOOM, "exc_message": ["other"]}), [(1, 1, "FAILURE")]),
        (report("FAILURE", BOOM), report("SUCCESS", 1), [(1, 1, "SUCCESS")]),
        (report("FAILURE", BOOM), report("FAILURE", UNKNOWN), []),
        (report("FAILURE", BOOM), report("STARTED"), []),
        (report("FAILURE", BOOM), report("PROGRESS", 1), []),
        (report("FAILURE", BOOM), report("RETRY", BOOM), []),
        (report("FAILURE", BOOM), report("SUCCESS", 1, n=7), []),
        (report("REVOKED", TERMINATED), report("REVOKED", TERMINATED), []),
        (report("REVOKED", TERMINATED), report("SUCCESS", 1), [(1, 1, "SUCCESS")]),
    ],
)
def test_an_end_after_the_end(end: Any, said: Any, kept: list[tuple[int, int, str]]) -> None:
    ended = after(SENT, end)
    now = after(ended, said, said)
    assert ends(now) == kept
    assert replace(now, late=[]) == ended
    if kept and said.state == "FAILURE":
        assert now.late[0]["error"]["type"] == "ValueError"
        assert (now.late[0]["worker"], now.late[0]["time"]) == (said.worker, "2026-11-22T12:00:00Z")


def test_two_dispatches_of_one_attempt_that_both_did_the_work_are_seen() -> None:
    sent_twice = replace(SENT, dispatches=2)
    first = after(sent_twice, report("SUCCESS", "one", n=1))
    assert ends(after(first, report("SUCCESS", "one", n=1))) == [], "this is the end that counts, said again"
    assert ends(after(sent_twice, report("SUCCESS", "two", n=2), report("SUCCESS", "one", n=1))) == [(1, 1, "SUCCESS")]


def test_an_end_of_an_older_attempt_is_kept_beside_the_one_that_goes_on() -> None:
    lost = moves.lose(NOW, 1, "its lease ended")(replace(SENT, dispatches=3))
    assert lost is not None
    second = replace(lost, dispatches=4, dispatch_time=NOW)
    assert [late.attempt_of(second, n) for n in range(1, 6)] == [1, 1, 1, 2, 2]
    now = after(second, report("SUCCESS", 1, n=3), report("FAILURE", BOOM, n=2), report("STARTED", n=3))
    assert ends(now) == [(1, 3, "SUCCESS"), (1, 2, "FAILURE")]
    assert replace(now, late=[]) == second


def test_the_error_that_ended_an_older_attempt_said_again_is_no_news() -> None:
    second = after(replace(SENT, retry=policy(max_attempts=2)), report("FAILURE", BOOM))
    assert fold(report("FAILURE", BOOM), NOW)(second) is None


def test_an_attempt_that_an_older_version_put_away() -> None:
    second = after(replace(SENT, retry=policy(max_attempts=2)), report("FAILURE", BOOM))
    old = [{name: value for name, value in second.attempts[0].items() if name != "dispatch"}]
    assert ends(after(replace(second, attempts=old), report("SUCCESS", 1))) == [(1, 1, "SUCCESS")]


def test_only_the_newest_are_kept() -> None:
    ended = after(replace(SENT, dispatches=9), report("FAILURE", BOOM, n=9))
    now = after(ended, *(report("SUCCESS", 1, n=n) for n in range(1, 9)))
    assert [kept["dispatch"] for kept in now.late] == [4, 5, 6, 7, 8]


async def test_a_late_end_raises_the_version_and_is_no_event(database: Database) -> None:
    run_id = await make_run(database)
    said = [replace(report(*words), task_id=TaskId(run_id, 1)) for words in (("SUCCESS", 1), ("FAILURE", BOOM))]
    for one in said:
        async with database.transaction() as connection:
            now = await clock(connection)
            rows = await apply(connection, now, {run_id: [fold(one, now)]})
            assert len(rows) == 1
    row = await row_of(database, run_id)
    assert (row["state"], row["result"], row["version"]) == ("SUCCESS", 1, 3)
    assert [(kept["attempt"], kept["state"], kept["error"]["type"]) for kept in row["late"]] == [
        (1, "FAILURE", "ValueError")
    ]
    async with database.reading() as connection:
        assert await connection.fetchval("SELECT count(*) FROM run_events") == 2
