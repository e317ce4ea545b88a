"""`progress`, `track` and `step`, without a worker: what would be said, and that nothing is where nobody asks."""

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Iterator
from fractions import Fraction
from typing import Any

import pytest

from workers import progress, step, track
from workers.tracking import Call, Voice, current_call


class Bar:
    """A call whose every word is kept."""

    def __init__(self) -> None:
        self.said: list[dict[str, Any]] = []

    def run(self, body: Callable[[], Any]) -> list[Any]:
        """What the body says: (current, total, message)."""
        with Call(lambda news: self.said.append(news()), lambda meta: meta):
            body()
        return [(meta["current"], meta.get("total"), meta.get("message")) for meta in self.said]


def said(body: Callable[[], Any]) -> list[Any]:
    return Bar().run(body)


def flat() -> None:
    for _ in track("ab", message="letters"):
        pass


def of_unknown_length() -> None:
    for _ in track(iter("ab")):
        pass


def nested() -> None:
    for _ in track(range(2), message="files"):
        for _ in track(range(2)):
            pass


def steps() -> None:
    with step("read", 0.25):
        for _ in track(range(2)):
            pass
    with step("write", 0.75):
        progress(1, 3, "chapter")
        with step("close", 0.5):
            pass


def steps_in_items() -> None:
    for _ in track(range(2)):
        with step("half", 0.5):
            progress(1, 2)


def too_many_steps() -> None:
    with step("all", 1):
        pass
    with step("more", 0.5):
        progress(1, 2)


def left_early() -> None:
    for _ in track(range(4)):
        break
    progress(3, 4)


def failed_inside() -> None:
    try:
        with step("a", 0.5):
            for _ in track(range(4)):
                raise ValueError
    except ValueError:
        progress(3, 4, "after all")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (flat, [(0, 2, "letters"), (1, 2, "letters"), (2, 2, "letters")]),
        (of_unknown_length, [(0, None, None), (1, None, None), (2, 2, None)]),
        (
            nested,
            [(0, 2, "files")] * 2
            + [(0.5, 2, "files"), (1, 2, "files")]
            + [(1, 2, "files")] * 2
            + [(1.5, 2, "files"), (2, 2, "files"), (2, 2, "files")],
        ),
        (
            steps,
            [
                *((0, 100, "read"), (0, 100, "read"), (12.5, 100, "read"), (25, 100, "read"), (25, 100, "read")),
                *((25, 100, "write"), (50, 100, "write · chapter"), (25, 100, "write · close")),
                *((62.5, 100, "write · close"), (100, 100, "write")),
            ],
        ),
        (
            steps_in_items,
            [
                *((0, 2, None), (0, 2, "half"), (0.25, 2, "half"), (0.5, 2, "half")),
                *((1, 2, None), (1, 2, "half"), (1.25, 2, "half"), (1.5, 2, "half"), (2, 2, None)),
            ],
        ),
        (too_many_steps, [(0, 100, "all"), (100, 100, "all"), (100, 100, "more")] + [(100, 100, "more")] * 2),
        (left_early, [(0, 4, None), (3, 4, None)]),
        (failed_inside, [(0, 100, "a"), (0, 100, "a"), (3, 4, "after all")]),
    ],
)
def test_what_is_said(body: Callable[[], Any], expected: list[Any]) -> None:
    assert said(body) == expected


async def _letters() -> AsyncIterator[str]:
    for letter in "abc":
        await asyncio.sleep(0)
        yield letter


def test_asynchronous_iterables() -> None:
    async def whole() -> None:
        assert [letter async for letter in track(_letters(), 3)] == ["a", "b", "c"]

    async def left() -> None:
        async for _ in track(_letters(), 3):
            break
        progress(1, 2)

    assert said(lambda: asyncio.run(whole())) == [(n, 3, None) for n in range(4)]
    assert said(lambda: asyncio.run(left())) == [(0, 3, None), (1, 2, None)]


def test_what_the_body_left_behind_says_nothing() -> None:
    items: list[Iterator[int]] = []

    def body() -> None:
        items.append(iter(track(range(3))))
        next(items[0])

    assert said(body) == [(0, 3, None)]
    assert current_call() is None
    assert list(items[0]) == [1, 2]


def test_numbers_of_other_libraries_are_numbers() -> None:
    def body() -> None:
        progress(Fraction(1, 4), Fraction(1, 2))
        progress(math.inf)

    assert said(body) == [(0.25, 0.5, None), (math.inf, None, None)]


@pytest.mark.parametrize("share", [0, -1, 1.01, math.nan])
def test_share_of_a_step(share: float) -> None:
    with pytest.raises(ValueError, match=r"^share: "):
        step("x", share)


def test_outside_a_worker_nothing_is_said() -> None:
    progress(1, 2)
    assert list(track([1, 2])) == [1, 2]
    with step("x", 0.5):
        progress(1, 2)
    with pytest.raises(TypeError, match=r"^current: must be a number, not str"):
        progress("1")  # type: ignore[arg-type]


def test_a_voice_says_the_first_and_the_last() -> None:
    heard: list[int] = []
    voice = Voice(heard.append)
    for n in range(1000):
        voice.tell(lambda n=n: n)
    voice.finish()
    voice.finish()
    assert heard[0] == 0
    assert heard[-1] == 999
    assert heard == sorted(set(heard))
