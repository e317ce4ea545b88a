"""What is known of a queue's consumers, by the workers that live and by the broker's count."""

import pytest

from app.catalogue.sight import Live, lacking, sighting

A = Live("a", frozenset({"q"}), frozenset({"add", "mul"}), True)
B = Live("b", frozenset({"q", "r"}), frozenset({"add"}), True)
OLD = Live("old", frozenset({"q"}), frozenset({"old"}), False)
ELSEWHERE = Live("else", frozenset({"r"}), frozenset({"far"}), True)

BOTH = (("a", "b"), ("add", "mul"), ("add",))
UNKNOWN = (None, None)


@pytest.mark.parametrize(
    ("live", "counted", "expected"),
    [
        ([], 0, ((), *UNKNOWN)),
        ([ELSEWHERE], 0, ((), *UNKNOWN)),
        ([A], 1, (("a",), ("add", "mul"), ("add", "mul"))),
        ([A, B, ELSEWHERE], 2, BOTH),
        ([A], 2, (("a",), *UNKNOWN)),  # somebody whom we do not know
        ([], 1, ((), *UNKNOWN)),
        ([A], None, (("a",), *UNKNOWN)),  # the broker knows no such queue
        ([A, OLD], 1, (("a",), ("add", "mul"), ("add", "mul"))),  # the silent one has gone
        ([OLD], 1, (("old",), ("old",), ("old",))),  # busy: it does not answer
        ([OLD], 0, ((), *UNKNOWN)),  # stopped
        ([A, B], 1, BOTH),  # one of them is just stopping
        ([A, B], 0, ((), *UNKNOWN)),
    ],
)
def test_where_the_broker_counts(live: list[Live], counted: int | None, expected: tuple[object, ...]) -> None:
    seen = sighting("q", live, ready=3, counted=counted, blind=False, all_asked=True)
    assert (seen.workers, seen.known_tasks, seen.common_tasks) == expected
    assert (seen.ready, seen.consumers) == (3, counted)


@pytest.mark.parametrize(
    ("live", "all_asked", "expected"),
    [
        ([], True, (0, (), *UNKNOWN)),
        ([A, B], True, (2, *BOTH)),
        ([A, OLD], True, (2, ("a", "old"), ("add", "mul", "old"), ())),
        ([A, B], False, (None, ("a", "b"), *UNKNOWN)),  # there may be others
    ],
)
def test_where_the_broker_cannot_count(live: list[Live], all_asked: bool, expected: tuple[object, ...]) -> None:
    seen = sighting("q", live, ready=0, counted=None, blind=True, all_asked=all_asked)
    assert (seen.consumers, seen.workers, seen.known_tasks, seen.common_tasks) == expected


def test_who_lacks_what_is_needed() -> None:
    assert lacking([A, B, OLD], ["a", "b"], ["add", "mul", "div"]) == {"a": ["div"], "b": ["div", "mul"]}
    assert lacking([A, B], ["a", "b"], ["add"]) == {}
    assert lacking([A, B], ["a", "b"], []) == {}
    assert lacking([A, B], ["a", "b"], ["celery.backend_cleanup"]) == {}, "everybody has it"
