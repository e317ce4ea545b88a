"""Rate and time left, out of what is heard and when."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.progress.fold import fold, progress_of
from app.progress.pace import PACE, halted, paced, shown
from app.progress.standing import Standing
from tests.progress.standings import NOW, SENT, report

START = datetime(2026, 3, 1, tzinfo=UTC)


def heard(*news: tuple[float, Any], attempt: int = 1, retries: int = 0, before: Any = None) -> dict[str, Any]:
    """The progress after metas that were heard at these seconds."""
    known: dict[str, Any] | None = before
    for at, meta in news:
        known = paced(progress_of(meta), known, START + timedelta(seconds=at), attempt, retries)
    assert known is not None
    return known


def of(current: Any, total: Any = 100) -> dict[str, Any]:
    return {"current": current, "total": total}


@pytest.mark.parametrize(
    ("news", "rate", "left_s"),
    [
        ([(0, of(0))], None, None),  # one word says nothing of speed
        ([(0, of(0)), (2, of(10))], 5, 18.0),
        ([(0, of(0)), (2, of(10)), (4, of(20))], 5, 16.0),
        ([(0, of(0)), (1, of(10)), (2, of(10, 90))], 5, 16.0),  # the mean, at first
        ([(0, of(0)), (2, of(10)), (2, of(20)), (2.01, of(30)), (4, of(40))], 10, 6.0),  # one batch, one measure
        ([(0, of(0, None)), (2, of(10, None))], 5, None),
        ([(0, of(0)), (2, of(0, 50))], 0, None),
        ([(0, of(0)), (2, of(100))], 50, 0.0),
        ([(0, of(0)), (2, of(130))], 65, 0.0),
        ([(0, of(50)), (2, of(60)), (3, of(5))], None, None),  # it begins anew
        ([(0, of(50)), (2, of(60)), (3, of(5)), (4, of(10))], 5, 18.0),
        ([(0, of(0)), (-5, of(10))], None, None),  # a clock that went back
        ([(0, of("x")), (2, of("y"))], None, None),
        ([(0, "half way"), (2, None)], None, None),
        ([(0, of(-1e308, 1e308)), (2, of(1e308, 1e308))], None, 0.0),
        ([(0, of(0, 1e300)), (2, of(1e-300, 1e300))], 5e-301, None),
        ([(0, of(0, 2**63)), (1, of(2**62, 2**63))], 4.61169e18, 1.0),
    ],
)
def test_rate_and_time_left(news: list[tuple[float, Any]], rate: float | None, left_s: float | None) -> None:
    told = heard(*news)
    assert told["rate"] == pytest.approx(rate) if rate is not None else told["rate"] is None
    assert told["left_s"] == left_s


def test_what_is_long_ago_counts_less() -> None:
    slow = [(float(at), of(at, 10_000)) for at in range(100)]
    fast = [(100.0 + at, of(100 + 10 * at, 10_000)) for at in range(60)]
    assert heard(*slow)["rate"] == pytest.approx(1)
    assert 8 < heard(*slow, *fast)["rate"] < 10


def test_each_try_is_measured_by_itself() -> None:
    first = heard((0, of(0)), (2, of(40)))
    assert first["rate"] == 20
    assert heard((3, of(41)), before=first, attempt=2)["rate"] is None
    assert heard((3, of(41)), before=first, retries=1)["rate"] is None
    assert heard((3, of(41)), (4, of(43)), before=first, attempt=2)["rate"] == 2


def test_the_same_word_is_no_news() -> None:
    def after(standing: Standing, at: float, meta: Any) -> Standing | None:
        return fold(report("PROGRESS", meta), NOW + timedelta(seconds=at))(standing)

    for meta in (of(1), {"file": ["a"]}, "words"):
        moving = after(SENT, 0, meta)
        assert moving is not None
        assert after(moving, 5, meta) is None


def test_started_again_has_no_rate() -> None:
    known = heard((0, of(0)), (2, of(40)))
    again = halted(known)
    assert again is not None
    assert (again["rate"], again["left_s"], again["current"], PACE in again) == (None, None, 40, False)
    assert halted(again) is again
    assert halted(None) is None


@pytest.mark.parametrize(
    ("state", "rate"), [("PROGRESS", 20), ("MERGING", 20), ("PENDING", None), ("RETRY", None), ("SUCCESS", None)]
)
def test_who_does_not_run_has_no_rate(state: str, rate: float | None) -> None:
    seen = shown(heard((0, of(0)), (2, of(40))), state)
    assert seen is not None
    assert PACE not in seen
    assert seen["rate"] == rate
    assert (seen["left_s"] is None) == (rate is None)
    assert shown({"current": 1}, "PROGRESS") == {"current": 1, "rate": None, "left_s": None}  # of an older version
    assert shown(None, state) is None


numbers = st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**64 - 1))


@given(st.lists(st.tuples(st.floats(0, 1e6), numbers, numbers), max_size=8))
def test_never_negative_or_infinite(news: list[tuple[float, float | None, float | None]]) -> None:
    told = None
    for at, current, total in news:
        told = heard((at, {"current": current, "total": total}), before=told)
        for value in (told["rate"], told["left_s"]):
            assert value is None or 0 <= value < float("inf")
