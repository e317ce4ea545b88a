"""Which queues a route reaches."""

import pytest

from app.errors import Invalid
from app.schedule.routes import Binding, check_route, has_wildcard, topic_matches

TOPICS = [
    ("a.b", "a.b", True),
    ("a.b", "a.c", False),
    ("a.b", "a", False),
    ("a", "a.b", False),
    ("*", "a", True),
    ("*", "", False),
    ("*", "a.b", False),
    ("a.*", "a.b", True),
    ("a.*", "a", False),
    ("a.*", "a.b.c", False),
    ("*.b", "a.b", True),
    ("*.*", "a.b", True),
    ("a.*.c", "a.b.c", True),
    ("a.*.c", "a..c", True),
    ("#", "", True),
    ("#", "a", True),
    ("#", "a.b.c", True),
    ("a.#", "a", True),
    ("a.#", "a.b.c", True),
    ("a.#", "b.a", False),
    ("#.c", "c", True),
    ("#.c", "a.b.c", True),
    ("#.c", "a.c.b", False),
    ("a.#.z", "a.z", True),
    ("a.#.z", "a.b.c.z", True),
    ("a.#.z", "a.b", False),
    ("#.b.#", "a.b.c", True),
    ("#.b.#", "b", True),
    ("#.b.#", "a.c", False),
    ("*.#", "a", True),
    ("*.#.*", "a", False),
    ("#.*.#", "a", True),
    ("#.#", "a", True),
    ("a*", "ab", False),
    ("a*", "a*", True),
    ("A", "a", False),
]


@pytest.mark.parametrize(("pattern", "key", "matches"), TOPICS)
def test_topics(pattern: str, key: str, matches: bool) -> None:
    assert topic_matches(pattern, key) is matches


@pytest.mark.parametrize(
    ("pattern", "has"),
    [("a.b", False), ("a*b.c#", False), ("*", True), ("#", True), ("a.*.b", True), ("a.#", True), ("", False)],
)
def test_wildcards_are_whole_words(pattern: str, has: bool) -> None:
    assert has_wildcard(pattern) is has


def bound(name: str, kind: str, key: str, exchange: str = "x") -> Binding:
    return Binding(name, exchange, kind, key)


@pytest.mark.parametrize(
    ("new", "others", "says"),
    [
        (bound("q", "direct", "q"), [], None),
        (bound("q", "direct", "q"), [bound("a", "direct", "a")], None),
        (bound("q", "direct", "q"), [bound("a", "direct", "q")], ("/routing_key", "the queue 'a'")),
        (bound("q", "direct", "q"), [bound("q", "direct", "q")], None),
        (bound("q", "direct", "q.#"), [bound("a", "direct", "q.a")], None),
        (bound("q", "direct", "q", ""), [bound("a", "direct", "a", "")], None),
        (bound("q", "topic", "q"), [bound("a", "direct", "a")], ("/exchange_type", "direct for the queue 'a'")),
        (bound("q", "topic", "q.*"), [], ("/routing_key", "no * and no #")),
        (bound("q", "topic", "shop.q"), [bound("a", "topic", "shop.a")], None),
        (bound("q", "topic", "shop.q"), [bound("a", "topic", "shop.*")], ("/routing_key", "the queue 'a'")),
        (
            bound("q", "topic", "s.q"),
            [bound(name, "topic", "s.#") for name in "abcdefg"],
            ("/routing_key", "the queues 'a', 'b', 'c', 'd', 'e' and 2 more"),
        ),
        (bound("q", "fanout", "q"), [bound("a", "fanout", "a")], ("/exchange", "the queue 'a'")),
        (bound("q", "fanout", "q"), [], None),
    ],
)
def test_a_route_reaches_one_queue(new: Binding, others: list[Binding], says: tuple[str, str] | None) -> None:
    if says is None:
        check_route(new, others)
        return
    with pytest.raises(Invalid) as refused:
        check_route(new, others)
    (error,) = refused.value.errors
    assert error.pointer == says[0]
    assert says[1] in error.detail
