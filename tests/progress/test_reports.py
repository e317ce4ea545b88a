"""A stranger's bytes: what counts, what is replaced, what is refused."""

import json
from typing import Any
from uuid import UUID

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.progress import marks, reports
from app.progress.fold import Report
from app.progress.reports import DEEP, Refusal, read, task_of
from workers.protocol import TaskId

TASK = TaskId(UUID("01890000-0000-7000-8000-000000000000"), 1)


def report(body: bytes) -> Report:
    found = read(TASK, body)
    assert isinstance(found, Report), found
    return found


def refusal(body: bytes) -> str:
    found = read(TASK, body)
    assert isinstance(found, Refusal), found
    return found.problem


@pytest.mark.parametrize(
    ("result", "kept"),
    [
        (b'"a\\u0000b"', "a\ufffdb"),
        (b'{"\\u0000": 1}', {"\ufffd": 1}),
        (b'"\\ud800 and \\udfff"', "\ufffd and \ufffd"),
        (b'"\\ud83d\\ude00"', "\U0001f600"),
        (b'"\xff\xfe"', "\ufffd\ufffd"),
        (b'"\x01"', "\x01"),
        (b"[NaN, Infinity, -Infinity]", ["NaN", "Infinity", "-Infinity"]),
        (b"[1e999, 1e308]", ["1e999", 1e308]),
        (b"123456789012345678901234567890", "123456789012345678901234567890"),
        (b"[18446744073709551615, 18446744073709551616]", [2**64 - 1, "18446744073709551616"]),
        (b"[-9223372036854775808, -9223372036854775809]", [-(2**63), "-9223372036854775809"]),
        (b"9" * 5000, "9" * 5000),
        (b'{"__type__": "datetime", "__value__": "2026"}', {"__type__": "datetime", "__value__": "2026"}),
        (b"null", None),
    ],
)
def test_a_report_counts_and_what_jsonb_cannot_take_is_replaced(result: bytes, kept: Any) -> None:
    assert report(b'{"status": "SUCCESS", "result": ' + result + b"}").meta == kept


@pytest.mark.parametrize("depth", [101, 1000, 5000, 100_000])
def test_what_is_nested_too_deeply_is_cut_there(depth: int) -> None:
    said = report(b'{"status": "SUCCESS", "result": [' + b"[" * depth + b"]" * depth + b', "after"]}').meta
    assert said[1] == "after"
    for _ in range(99):
        said = said[0]
    assert said == DEEP
    assert report(b'{"status": "SUCCESS", "result": ' + b"[" * 90 + b"]" * 90 + b"}").meta is not None
    wide = b"[" + b",".join([b"[]"] * 500) + b"]"
    assert report(b'{"status": "SUCCESS", "result": ' + wide + b"}").meta == [[]] * 500


def test_what_is_too_large_is_replaced_and_the_state_counts() -> None:
    large = "x" * 70_000
    lost = report(orjson.dumps({"status": "SUCCESS", "result": large})).meta
    assert (lost["jobplane"], lost["bytes"]) == ("result lost", 70_002)
    meta = {"current": 3, "total": 9, "message": "m" * 300, "rows": large}
    kept = report(orjson.dumps({"status": "PROGRESS", "result": meta})).meta
    assert kept == {"truncated": True, "bytes": len(orjson.dumps(meta)), "current": 3, "total": 9, "message": "m" * 200}
    failed = report(
        orjson.dumps(
            {
                "status": "FAILURE",
                "result": {"exc_type": "KeyError", "exc_message": [large], "exc_module": "builtins"},
                "traceback": "first" + large + "last",
            }
        )
    )
    assert failed.meta["exc_type"] == "KeyError"
    assert len(failed.meta["exc_message"]) < 5000
    assert failed.traceback is not None
    assert len(failed.traceback) <= 64 * 1024
    assert failed.traceback.startswith("first")
    assert failed.traceback.endswith("last")


def test_a_huge_message_is_not_parsed_but_its_state_counts() -> None:
    body = b'{"status": "SUCCESS", "result": "' + b"x" * 10_000_000 + b'"}'
    assert report(body).meta["bytes"] == len(body)
    assert report(body.replace(b"SUCCESS", b"FAILURE", 1)).meta["exc_type"] == "Error"
    assert "no state at their head" in refusal(b'{"result": "' + b"x" * 10_000_000 + b'", "status": "SUCCESS"}')


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "not JSON"),
        (b"\x80\x04\x95 a pickle", "not JSON"),
        (b'{"status": "SUCCESS", "result": ' + b"[" * 3000, "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b'{"status": "SUCCESS", "result": "' + b'\\"' * 400_000, "not JSON"),
        (b"[]", "not a JSON object but list"),
        (b"null", "not a JSON object but NoneType"),
        (b"{}", "names no state"),
        (b'{"status": 5}', "names no state"),
        (b'{"status": "success"}', "no state of a run"),
        (b'{"status": "STARTED\\n"}', "no state of a run"),
        (b'{"status": "RECEIVED"}', "no state of a run"),
        (b'{"status": "' + b"A" * 41 + b'"}', "no state of a run"),
    ],
)
def test_what_cannot_count_is_refused_with_a_sentence(body: bytes, problem: str) -> None:
    assert problem in refusal(body)


def test_worker_and_retries_are_read_where_they_can_be() -> None:
    started = report(b'{"status": "STARTED", "result": {"pid": 5, "hostname": "a@h"}}')
    assert (started.worker, started.retries) == ("a@h", None)
    extended = report(b'{"status": "RETRY", "result": null, "worker": "b@h", "retries": 2}')
    assert (extended.worker, extended.retries) == ("b@h", 2)
    wrong = report(b'{"status": "RETRY", "worker": 5, "retries": true, "traceback": []}')
    assert (wrong.worker, wrong.retries, wrong.traceback) == (None, None, None)
    assert len(report(b'{"status": "STARTED", "worker": "' + b"w" * 5000 + b'"}').worker or "") == 200


def test_only_names_of_our_tasks_are_ours() -> None:
    assert task_of(b"celery-task-meta-" + str(TASK).encode()) == TASK
    for other in (b"", b"celery-task-meta-", b"celery-task-meta-f61bdecf-0000-4000-8000-000000000000", b"\xff" * 60):
        assert task_of(other) is None
    assert task_of(b"celery-task-meta-" + str(TASK).encode() + b"0000000000") is None
    assert task_of(b"celery-task-mete-" + str(TASK).encode()) is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
)


@given(JSON, st.sampled_from(["PROGRESS", "SUCCESS", "FAILURE", "RETRY", "STARTED", "STEP_2"]))
def test_any_json_counts_and_can_be_written(result: Any, state: str) -> None:
    found = report(json.dumps({"status": state, "result": result}).encode())
    assert found.state == state
    assert orjson.loads(orjson.dumps(found.meta)) == found.meta


@given(st.binary(max_size=300))
def test_no_bytes_raise(body: bytes) -> None:
    read(TASK, body)
    read(TASK, b'{"status": "PROGRESS", "result": ' + body + b"}")
    reports.state_at_head(body)


def test_a_large_result_is_taken_out_of_its_report_as_json() -> None:
    rows = [{"id": number, "text": "\u00e9\u0000"} for number in range(10_000)]
    body = json.dumps({"status": "SUCCESS", "result": rows, "worker": "w@h", "retries": 2, "task_id": "x"}).encode()
    assert reports.is_large_end(body, len(body))
    said, result = reports.read_whole(TASK, body)
    assert said == Report(TASK, "SUCCESS", None, None, "w@h", 2)
    assert result is not None
    assert json.loads(result) == rows


@pytest.mark.parametrize(
    ("result", "kept"),
    [
        (b'["' + b"x" * 70_000 + b'", NaN, 123456789012345678901234567890]', ["NaN", "123456789012345678901234567890"]),
        (b'["' + b"x" * 70_000 + b'", ' + b"[" * 150 + b"]" * 150 + b"]", None),
        (b'["' + b"x" * 70_000 + b'", ' + b"[" * 5000 + b"]" * 5000 + b", 1]", [1]),
    ],
)
def test_a_large_result_that_is_hardly_json_becomes_json(result: bytes, kept: list[Any] | None) -> None:
    said, encoded = reports.read_whole(TASK, b'{"status": "SUCCESS", "result": ' + result + b"}")
    assert isinstance(said, Report)
    assert encoded is not None
    assert kept is None or orjson.loads(encoded)[-len(kept) :] == kept


@pytest.mark.parametrize("depth", [250, 255, 300, 1000, 1025, 5000])
def test_a_large_result_counts_however_deep_it_is(depth: int) -> None:
    """Deeper than can be read or written again, it is cut as a small one is."""
    result = b"[" * depth + b"1" + b"]" * depth
    body = b'{"status": "SUCCESS", "result": [%b, "%b"]}' % (result, b"x" * 70_000)
    said, encoded = reports.read_whole(TASK, body)
    assert isinstance(said, Report)
    assert encoded is not None
    assert orjson.loads(encoded)[1] == "x" * 70_000
    assert (DEEP in encoded.decode()) == (depth > 250)


def test_a_small_result_in_a_large_message_stays_in_it_and_any_other_state_too() -> None:
    large = "x" * 2_000_000
    said, result = reports.read_whole(TASK, orjson.dumps({"status": "SUCCESS", "result": [1], "args": [large]}))
    assert isinstance(said, Report)
    assert (said.meta, result) == ([1], None)
    said, result = reports.read_whole(TASK, orjson.dumps({"status": "FAILURE", "result": {"exc_type": "E"}}))
    assert isinstance(said, Report)
    assert (said.state, result) == ("FAILURE", None)
    assert isinstance(reports.read_whole(TASK, b'{"status": "SUCCESS", "result": "' + b"x" * 70_000)[0], Refusal)
    assert isinstance(reports.read_whole(TASK, b"[1]")[0], Refusal)


def test_a_result_that_looks_like_a_mark_of_ours_is_told_apart() -> None:
    for mark in (
        marks.stored(5, "file:///etc/passwd"),
        marks.lost(5, "x"),
        marks.given({"a": 1}),
        {"jobplane": "result"},
    ):
        kept = report(orjson.dumps({"status": "SUCCESS", "result": mark})).meta
        assert marks.path_of(kept) is None
        assert marks.absence_of(kept) is None
        assert marks.as_given(kept) == mark
    for plain in ({"jobplane": 1}, {"jobplane": "1.0"}, {"a": 1}, [1], None, "result stored"):
        assert report(orjson.dumps({"status": "SUCCESS", "result": plain})).meta == plain
