"""What the overlap policies leave room for, and who waits for whom: as tables."""

from typing import Any, get_args
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.due.overlap import Others, Overlap, Room, line_up, most_active, room
from app.progress.waiting import WAITING_MOST

A, B, C, D, E = (UUID(int=n) for n in range(1, 6))
IDLE, BUSY, LINE = Others(), Others((A,)), Others((A,), (B, C))


@pytest.mark.parametrize(
    ("overlap", "max_active", "others", "found"),
    [
        ("skip", None, IDLE, Room(1)),
        ("skip", None, BUSY, Room(0, blocker=A)),
        ("skip", 5, BUSY, Room(0, blocker=A)),
        ("skip", None, Others((), (B,)), Room(0, blocker=B)),
        ("buffer_one", None, IDLE, Room(2)),
        ("buffer_one", None, BUSY, Room(1)),
        ("buffer_one", None, Others((A, B)), Room(1)),
        ("buffer_one", None, LINE, Room(0, blocker=B)),
        ("buffer_all", None, IDLE, Room(WAITING_MOST + 1, reason="limit")),
        ("buffer_all", None, LINE, Room(WAITING_MOST - 2, reason="limit")),
        ("buffer_all", None, Others((A,), [B] * WAITING_MOST), Room(0, reason="limit", blocker=A)),
        ("cancel_other", None, LINE, Room(1, newest=True)),
        ("terminate_other", None, LINE, Room(1, newest=True)),
        ("allow", None, LINE, Room(WAITING_MOST)),
        ("allow", 2, BUSY, Room(WAITING_MOST + 1, reason="limit")),
        ("allow", 2, LINE, Room(WAITING_MOST - 2, reason="limit")),
        ("allow", 1, Others((A,), [B] * WAITING_MOST), Room(0, reason="limit", blocker=A)),
    ],
)
def test_room(overlap: Overlap, max_active: int | None, others: Others, found: Room) -> None:
    assert room(overlap, others, max_active) == found


@pytest.mark.parametrize(
    ("overlap", "max_active", "others", "places"),
    [
        pytest.param("allow", None, LINE, [None, None], id="allow minds nobody"),
        pytest.param("terminate_other", None, BUSY, [None, None], id="what is terminated is not waited for"),
        pytest.param("skip", None, IDLE, [None, D], id="one after the other"),
        pytest.param("buffer_one", None, IDLE, [None, D], id="the second waits for the first"),
        pytest.param("buffer_one", None, BUSY, [A, D], id="behind the active one"),
        pytest.param("buffer_all", None, LINE, [C, D], id="behind the last that waits"),
        pytest.param("cancel_other", None, Others((A, B)), [A, D], id="behind the oldest active one"),
        pytest.param("allow", 2, BUSY, [None, A], id="two at once, the next waits"),
        pytest.param("allow", 3, LINE, [C, D], id="nobody overtakes those that wait"),
        pytest.param("terminate_other", 1, BUSY, [A, D], id="a limit holds for every policy"),
        pytest.param("buffer_all", 7, IDLE, [None, D], id="a limit takes nothing back"),
    ],
)
def test_line(overlap: Overlap, max_active: int | None, others: Others, places: list[UUID | None]) -> None:
    assert line_up([D, E], overlap, others, max_active) == places


@settings(derandomize=True, deadline=None)
@given(
    st.sampled_from(get_args(Overlap)),
    st.none() | st.integers(1, 4),
    st.integers(0, 5),
    st.integers(0, 3),
    st.integers(1, 6),
)
def test_a_line_has_no_fork_and_no_ring(
    overlap: Any, max_active: int | None, active: int, waiting: int, number: int
) -> None:
    ids = [UUID(int=n) for n in range(1, active + waiting + number + 1)]
    others = Others(ids[:active], ids[active : active + waiting])
    new = ids[active + waiting :]
    places = line_up(new, overlap, others, max_active)
    most = most_active(overlap, max_active)
    begun = places.count(None)
    if most is None:
        assert begun == number
        return
    assert begun == (0 if waiting else min(max(most - active, 0), number))
    assert places[:begun] == [None] * begun
    waits = [run for run, place in zip(new, places, strict=True) if place is not None]
    # Only the head of the line waits for somebody active; each other for the one before it.
    line = [*others.waiting, *waits]
    assert [place for place in places if place is not None][1:] == line[len(line) - len(waits) :][:-1]
    if waits and not waiting:
        assert places[begun] in {*others.active, *new[:begun]}
