"""Entries of a log's stream, read as what they are: a stranger's bytes. Pure."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

#: Of a longer text the rest is cut: no worker of ours writes one.
MOST_TEXT: Final = 256 * 1024
_OFFSET: Final = re.compile(rb"[0-9]{1,15}")
_BROKEN: Final = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True, slots=True)
class Piece:
    """Text at its offset in what was written, in bytes."""

    offset: int
    text: bytes

    @property
    def end(self) -> int:
        return self.offset + len(self.text)

    def behind(self, offset: int) -> "Piece | None":
        """What of it lies at or behind this offset; None if nothing does."""
        if self.end <= offset:
            return None
        return self if self.offset >= offset else Piece(offset, self.text[offset - self.offset :])


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a stream; `piece` is None if it says nothing that can be understood."""

    id: bytes
    piece: Piece | None
    #: The body that wrote it has ended.
    last: bool


def read_entry(entry_id: bytes, fields: Mapping[bytes, bytes]) -> Entry:
    """One entry; whatever is in it."""
    offset, text = fields.get(b"o", b""), fields.get(b"t", b"")
    piece = Piece(int(offset), clean(text[:MOST_TEXT])) if text and _OFFSET.fullmatch(offset) else None
    return Entry(entry_id, piece, fields.get(b"e") == b"1")


def clean(text: bytes) -> bytes:
    """The text with a `?` for each byte that is not UTF-8: as long as before, so that offsets hold."""
    try:
        text.decode()
    except UnicodeDecodeError:
        return _BROKEN.sub("?", text.decode(errors="surrogateescape")).encode()
    return text


def in_order(pieces: Iterable[Piece], position: int) -> list[Piece]:
    """What these say behind a position, with rising offsets: nothing twice, and neighbours joined."""
    joined: list[tuple[int, list[bytes]]] = []
    for piece in pieces:
        news = piece.behind(position)
        if news is None:
            continue
        if joined and news.offset == position:
            joined[-1][1].append(news.text)
        else:
            joined.append((news.offset, [news.text]))
        position = news.end
    return [Piece(offset, b"".join(texts)) for offset, texts in joined]


def id_order(entry_id: bytes | str) -> tuple[int, int]:
    """What ids of a stream are compared by."""
    text = entry_id.decode() if isinstance(entry_id, bytes) else entry_id
    time, _, number = text.partition("-")
    return int(time or 0), int(number or 0)


def cut_at(text: bytes, most: int) -> int:
    """Where to cut a text, at or before `most`: behind a line, else between two characters, never at 0."""
    if len(text) <= most:
        return len(text)
    place = text.rfind(b"\n", 0, most) + 1
    return place or _between_characters(text, most)


def _between_characters(text: bytes, place: int) -> int:
    for back in range(min(4, place)):
        if place - back < len(text) and text[place - back] & 0xC0 != 0x80 and place - back > 0:
            return place - back
    return place
