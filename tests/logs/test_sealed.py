"""What an object looks like: head, mark, tail; whatever the entries and whenever somebody stopped half-way."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.logs import sealed
from app.logs.entries import Entry, Piece, clean, cut_at, id_order, in_order, read_entry
from app.logs.sealed import end_of, head_of, mark, seal, tail_in

SMALL_HEAD, SMALL_TAIL = 400, 60


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed, "LOG_HEAD", SMALL_HEAD)
    monkeypatch.setattr(sealed, "LOG_TAIL", SMALL_TAIL)


def written(size: int) -> bytes:
    """What a body wrote: lines that tell their own offset, so that each byte has one place."""
    text = b""
    while len(text) < size:
        text += f"{len(text):06} é line\n".encode()
    return text


SOURCE = written(3000)


def lines_from(offset: int, end: int) -> bytes:
    return SOURCE[offset:end]


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({b"o": b"5", b"t": b"a\n"}, Entry(b"1-0", Piece(5, b"a\n"), False)),
        ({b"o": b"5", b"t": b"a\n", b"e": b"1"}, Entry(b"1-0", Piece(5, b"a\n"), True)),
        ({b"e": b"1"}, Entry(b"1-0", None, True)),
        ({b"o": b"7", b"t": b"", b"e": b"1"}, Entry(b"1-0", None, True)),
        ({b"t": b"a\n"}, Entry(b"1-0", None, False)),
        ({b"o": b"-5", b"t": b"a\n"}, Entry(b"1-0", None, False)),
        ({b"o": b"9" * 40, b"t": b"a\n"}, Entry(b"1-0", None, False)),
        ({b"o": "٣".encode(), b"t": b"a\n"}, Entry(b"1-0", None, False)),
        ({b"o": b"0", b"t": b"a\xff\xfeb\xc3"}, Entry(b"1-0", Piece(0, b"a??b?"), False)),
        ({b"x": b"\0"}, Entry(b"1-0", None, False)),
    ],
)
def test_an_entry_is_read_whatever_is_in_it(fields: dict[bytes, bytes], expected: Entry) -> None:
    assert read_entry(b"1-0", fields) == expected


def test_a_huge_entry_is_cut() -> None:
    piece = read_entry(b"1-0", {b"o": b"0", b"t": b"x" * 10_000_000}).piece
    assert piece is not None
    assert len(piece.text) == 256 * 1024


@given(st.binary(max_size=200))
def test_cleaning_keeps_the_length(text: bytes) -> None:
    assert len(clean(text)) == len(text)
    clean(text).decode()


@given(st.text(alphabet="aé€😀\n", min_size=1, max_size=40), st.integers(4, 60))
def test_a_cut_splits_no_character(text: str, most: int) -> None:
    raw = text.encode()
    place = cut_at(raw, most)
    assert 0 < place <= max(most, 1)
    raw[:place].decode()


def test_pieces_say_nothing_twice() -> None:
    pieces = [Piece(0, b"abc"), Piece(1, b"bcde"), Piece(3, b"de"), Piece(9, b"jk"), Piece(5, b"fg"), Piece(11, b"l")]
    assert in_order(pieces, 0) == [Piece(0, b"abcde"), Piece(9, b"jkl")]
    assert in_order(pieces, 4) == [Piece(4, b"e"), Piece(9, b"jkl")]
    assert in_order(pieces, 99) == []


def test_ids_are_compared_as_numbers() -> None:
    assert id_order(b"9-10") < id_order("10-2") < id_order(b"10-11")


def test_a_short_log_is_its_text() -> None:
    body, segments = seal([], b"", [Piece(0, b"one\n")])
    assert (body, segments) == (b"one\n", [(0, 4, 0)])
    body, segments = seal(segments, body, [Piece(4, b"two\n")])
    assert (body, segments) == (b"one\ntwo\n", [(0, 8, 0)])


def test_a_gap_in_the_head_is_marked() -> None:
    body, segments = seal([], b"", [Piece(0, b"no end of line"), Piece(20, b"b\n")])
    assert body == b"no end of line\n[jobplane: 6 bytes cut here]\nb\n"
    assert [body[at : at + size] for _, size, at in segments] == [b"no end of line", b"b\n"]


def test_head_mark_and_newest_tail() -> None:
    body, segments = seal([], b"", [Piece(0, SOURCE)])
    head = head_of(segments)
    assert SMALL_HEAD <= head.end < SMALL_HEAD + 20
    assert body.startswith(SOURCE[: head.end])
    tail = tail_in(body[head.place :], head)
    assert tail is not None
    assert body == SOURCE[: head.end] + mark(tail.offset - head.end) + tail.text
    assert SMALL_TAIL - 20 < len(tail.text) <= SMALL_TAIL
    assert tail.text == SOURCE[tail.offset :]
    assert tail.text.startswith(b"%06d" % tail.offset)


def test_lines_without_end_do_not_grow_the_object() -> None:
    body, segments = b"", []
    for offset in range(0, 5000, 100):
        body, segments = seal(segments, body, [Piece(offset, b"x" * 100)])
    assert len(body) <= SMALL_HEAD + 2 * SMALL_TAIL + 100
    assert end_of(segments) == 5000


def test_very_many_gaps_do_not_grow_the_row() -> None:
    pieces = [Piece(2 * n, b"x") for n in range(SMALL_HEAD // 2)]
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(sealed, "MOST_SEGMENTS", 10)
        body, segments = seal([], b"", [*pieces, Piece(SMALL_HEAD + 50, b"end\n")])
    assert len(segments) == 11
    assert body.endswith(b"end\n")


def test_an_object_that_is_gone_is_a_cut() -> None:
    body, segments = seal([], b"", [Piece(0, SOURCE[:100])])
    body, segments = seal(segments, b"", [Piece(100, SOURCE[100:120])])
    assert body == mark(100) + SOURCE[100:120]
    assert segments == [(100, 20, len(mark(100)))]


STEP = st.tuples(st.integers(0, 40), st.integers(1, 300), st.sampled_from(["good", "good", "crash", "again"]))


@given(st.lists(STEP, max_size=30))
def test_whoever_stops_half_way_the_object_tells_the_truth(steps: list[tuple[int, int, str]]) -> None:
    """An object is written, then its row; a crash between leaves the row behind, and the news are put again."""
    row: list[Any] = []
    body, position, news = b"", 0, []
    for gap, size, how in steps:
        begin = position + gap * (gap > 30)
        text = SOURCE[begin : begin + size]
        if text:  # a gap with nothing behind it is none
            news.append(Piece(begin, text))
            position = begin + len(text)
        body, segments = seal(row, body, in_order(news, 0))
        if how != "crash":
            row = segments
        if how == "good":
            news = []
    body, segments = seal(row, body, in_order(news, 0))
    offset = 0
    for one, length, at in segments:
        assert one >= offset
        assert body[at : at + length] == SOURCE[one : one + length]
        offset = one + length
    assert end_of(segments) == position
    assert len(body) < SMALL_HEAD + 2 * SMALL_TAIL + 60 * len(segments)
    head = head_of(segments)
    tail = tail_in(body[head.place :], head)
    assert (tail is not None) == (len(segments) > len(head.segments))
