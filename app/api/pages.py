"""Keyset pages: `{"items": [...], "next_cursor": ...}`.

A cursor is opaque to callers: base64url of (list, hash of the filters, last key). It fits the list and filters that it
came from and nothing else, so that a page can never be the continuation of another question.
"""

import base64
import binascii
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import UUID

import orjson
from pydantic import BaseModel, ConfigDict, Field

from app.errors import BadRequest, CursorMismatch

T = TypeVar("T")

DEFAULT_LIMIT: Final = 50
MAX_LIMIT: Final = 200


class PageQuery(BaseModel):
    """The query parameters of every list; a list's own filters are added by subclassing."""

    model_config = ConfigDict(extra="forbid")

    limit: int = Field(DEFAULT_LIMIT, ge=1, le=MAX_LIMIT, description="most items of this page")
    cursor: str | None = Field(
        None, max_length=1024, description="`next_cursor` of the page before, with the same filters"
    )

    def filters(self) -> dict[str, Any]:
        """What the caller asked for, without where the page begins."""
        return self.model_dump(mode="json", exclude={"limit", "cursor"}, exclude_none=True)


@dataclass(frozen=True, slots=True)
class Place:
    """Which page of which list: at most `limit` items behind the key `after` (None: from the beginning)."""

    limit: int
    after: str | None
    list_name: str
    filter_hash: str

    def cut(self, items: Sequence[T]) -> tuple[Sequence[T], bool]:
        """The page out of `limit + 1` items that were asked for, and whether there are more."""
        return items[: self.limit], len(items) > self.limit

    def cursor(self, last: Any) -> str:
        """The cursor of the page behind the item with this key."""
        text = orjson.dumps([self.list_name, self.filter_hash, str(last)])
        return base64.urlsafe_b64encode(text).decode().rstrip("=")


def place(list_name: str, query: PageQuery, **scope: Any) -> Place:
    """Where the page begins. `scope` is what else makes this list this list (a job's id).

    Raises BadRequest for what is no cursor, CursorMismatch for one of another list or other filters.
    """
    asked = orjson.dumps([query.filters(), scope], option=orjson.OPT_SORT_KEYS, default=str)
    filter_hash = hashlib.blake2b(asked, digest_size=8).hexdigest()
    after = None
    if query.cursor is not None:
        name, of_filters, after = _read(query.cursor)
        if name != list_name:
            raise CursorMismatch(f"the cursor belongs to another list ({name})")
        if of_filters != filter_hash:
            raise CursorMismatch("the cursor belongs to a list with other filters; keep them the same on every page")
    return Place(query.limit, after, list_name, filter_hash)


def page(where: Place, items: Sequence[Any], more: bool, key: Any) -> dict[str, Any]:
    """The body of a page; `key` is that of its last item."""
    return {"items": items, "next_cursor": where.cursor(key) if more else None}


def as_id(after: str | None) -> UUID | None:
    """The key of a cursor of a list in the order of ids."""
    return _not_a_cursor() if after is not None and not _is_uuid(after) else None if after is None else UUID(after)


def _is_uuid(text: str) -> bool:
    try:
        UUID(text)
    except ValueError:
        return False
    return True


def _not_a_cursor() -> Any:
    raise BadRequest("?cursor is not a cursor of this API; take `next_cursor` of a page as it is")


def _read(cursor: str) -> tuple[str, str, str]:
    try:
        parts = orjson.loads(base64.b64decode(cursor + "=" * (-len(cursor) % 4), b"-_", validate=True))
    except (binascii.Error, ValueError):
        _not_a_cursor()
    if not (isinstance(parts, list) and len(parts) == 3 and all(isinstance(part, str) for part in parts)):
        _not_a_cursor()
    if "\0" in parts[2]:  # PostgreSQL has no text with U+0000
        _not_a_cursor()
    return parts[0], parts[1], parts[2]
