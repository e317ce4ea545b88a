"""What a sealed log looks like: the head, and behind a mark the newest of what came later. Pure.

The head is what was written before `LOG_HEAD`, to the end of its line; it only grows. Behind it stands, once there is
more, `[jobplane: N bytes cut here]` and the tail, which is written anew each time. Since the mark tells the tail's
offset, an object that is newer than its row is understood all the same. Segments are `[offset, bytes, place]`.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from app.logs.entries import Piece
from workers.protocol import LOG_HEAD, LOG_TAIL

#: More cuts in one head are not kept apart: what lies between them is cut as well.
MOST_SEGMENTS: Final = 200
_MARK: Final = re.compile(rb"\n?\[jobplane: ([0-9]{1,15}) bytes cut here\]\n")

Segment = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Head:
    """The part of an object that only grows."""

    segments: tuple[Segment, ...] = ()

    @property
    def end(self) -> int:
        """The offset at which it ends."""
        return self.segments[-1][0] + self.segments[-1][1] if self.segments else 0

    @property
    def place(self) -> int:
        """Its length in the object."""
        return self.segments[-1][2] + self.segments[-1][1] if self.segments else 0


def mark(missing: int) -> bytes:
    """The line that stands where something was cut."""
    return b"[jobplane: %d bytes cut here]\n" % missing


def head_of(segments: Iterable[Sequence[int]]) -> Head:
    """The head among the segments of a row."""
    return Head(tuple((one[0], one[1], one[2]) for one in segments if one[0] < LOG_HEAD))


def end_of(segments: Sequence[Sequence[int]]) -> int:
    """The offset up to which a row's segments tell."""
    return segments[-1][0] + segments[-1][1] if segments else 0


def tail_in(rest: bytes, head: Head) -> Piece | None:
    """The tail in what follows the head in an object."""
    found = _MARK.match(rest)
    offset = head.end + int(found[1]) if found else 0
    return Piece(offset, rest[found.end() :]) if found and offset >= LOG_HEAD else None


def seal(segments: Sequence[Sequence[int]], old: bytes, news: Iterable[Piece]) -> tuple[bytes, list[Segment]]:
    """The object and its segments with the news in it, out of the object as it was.

    What the row tells and the object does not have is cut. News that is there already changes nothing.
    """
    head = Head(tuple(one for one in head_of(segments).segments if one[2] + one[1] <= len(old)))
    tail = tail_in(old[head.place :], head)
    body = bytearray(old[: head.place])
    kept = list(head.segments)
    end = head.end
    for piece in news:
        news_piece = piece.behind(tail.end if tail else end)
        if news_piece is not None and tail is None and news_piece.offset < LOG_HEAD:
            for_head, news_piece = _split(news_piece)
            if for_head.offset == end and kept:
                kept[-1] = (kept[-1][0], kept[-1][1] + len(for_head.text), kept[-1][2])
            elif len(kept) < MOST_SEGMENTS:
                if for_head.offset > end:
                    body += _on_its_own_line(body, mark(for_head.offset - end))
                kept.append((for_head.offset, len(for_head.text), len(body)))
            else:
                continue
            body += for_head.text
            end = for_head.end
        if news_piece is not None:
            joins = tail is not None and news_piece.offset == tail.end
            tail = _newest(Piece(tail.offset, tail.text + news_piece.text) if tail and joins else news_piece)
    if tail is not None:
        body += _on_its_own_line(body, mark(tail.offset - end))
        kept.append((tail.offset, len(tail.text), len(body)))
        body += tail.text
    return bytes(body), kept


def _on_its_own_line(body: bytearray, line: bytes) -> bytes:
    return line if not body or body.endswith(b"\n") else b"\n" + line


def _split(piece: Piece) -> tuple[Piece, Piece | None]:
    """What of a piece belongs to the head, to the end of the line that reaches `LOG_HEAD`, and the rest."""
    room = LOG_HEAD - piece.offset
    if len(piece.text) <= room:
        return piece, None
    place = piece.text.find(b"\n", room - 1, room + LOG_TAIL) + 1 or _next_character(piece.text, room)
    rest = piece.text[place:]
    return Piece(piece.offset, piece.text[:place]), Piece(piece.offset + place, rest) if rest else None


def _newest(piece: Piece) -> Piece:
    """The last `LOG_TAIL` bytes of a piece, from the beginning of a line where there is one."""
    if len(piece.text) <= LOG_TAIL:
        return piece
    place = len(piece.text) - LOG_TAIL
    line = piece.text.find(b"\n", place - 1) + 1
    place = line if 0 < line < len(piece.text) else _next_character(piece.text, place)
    return Piece(piece.offset + place, piece.text[place:])


def _next_character(text: bytes, place: int) -> int:
    while place < len(text) and text[place] & 0xC0 == 0x80:
        place += 1
    return place
