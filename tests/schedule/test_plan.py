"""What changes between two definitions, and whose a job is."""

import pytest

from app.schedule.plan import OWNER, Change, changes, stranger


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ({}, {}, []),
        ({"a": 1}, {"a": 1.0}, []),
        ({"a": 1}, {"a": None}, [Change("/a", 1, None)]),
        ({"labels": {"x/y": "1", "b": "2"}}, {"labels": {"x/y": "3"}}, [Change("/labels/x~1y", "1", "3"), Change("/labels/b", "2", None)]),  # noqa: E501
        ({"args": [1, 2]}, {"args": [1]}, [Change("/args", [1, 2], [1])]),
        (
            {"trigger": {"type": "interval", "every_s": 60, "jitter_s": 0}},
            {"trigger": {"type": "interval", "every_s": 90, "jitter_s": 0}},
            [Change("/trigger/every_s", 60, 90)],
        ),
        (
            {"trigger": {"type": "interval", "every_s": 60}},
            {"trigger": {"type": "once"}},
            [Change("/trigger", {"type": "interval", "every_s": 60}, {"type": "once"})],
        ),
        ({"kwargs": {"a": None}}, {"kwargs": {}}, [Change("/kwargs/a", None, None)]),
    ],
)  # fmt: skip
def test_changes(old: dict[str, object], new: dict[str, object], expected: list[Change]) -> None:
    assert changes(old, new) == expected
    assert changes(new, new) == []


def test_a_job_of_nobody_is_free_to_take_and_one_of_another_is_not() -> None:
    assert stranger({}, "a") is None
    assert stranger({}, None) is None
    assert stranger({OWNER: "a"}, "a") is None
    assert stranger({OWNER: "b"}, "a") == "b"
    assert stranger({OWNER: "b"}, None) == "b"
