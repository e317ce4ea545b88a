"""What goes over the wire: changes, encoded once per process, and the frames made of them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import orjson

from app.feed.cursor import Position
from app.progress.view import encode
from app.states import TERMINAL

#: No `runs` frame is larger, unless a single run is.
FRAME_BYTES: Final = 512 * 1024

NORMAL: Final = 1000
INTERNAL: Final = 1011
BAD_REQUEST: Final = 4400
NOT_ALLOWED: Final = 4403
NOT_FOUND: Final = 4404
DRAINING: Final = 4503
TOO_SLOW: Final = 4508


@dataclass(frozen=True, slots=True)
class Close:
    """How a socket ends: a code of the contract and a sentence of at most 123 bytes."""

    code: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Change:
    """A run at one of its versions, as JSON text that every socket shares."""

    run_id: str
    version: int
    attempt: int
    state: str
    namespace: str
    queue: str
    job_id: str | None
    backfill_id: str | None
    text: str
    size: int

    @property
    def ended(self) -> bool:
        return self.state in TERMINAL

    @classmethod
    def of(cls, view: Mapping[str, Any]) -> Self:
        """From a run view, made of a row or read from Redis; KeyError, TypeError or ValueError if it is none."""
        body = encode(view)
        job_id, backfill_id = view["job_id"], view.get("backfill_id")  # an older process does not name the latter
        return cls(
            run_id=str(view["id"]),
            version=int(view["version"]),
            attempt=int(view["attempt"]),
            state=str(view["state"]),
            namespace=str(view["namespace"]),
            queue=str(view["queue"]),
            job_id=None if job_id is None else str(job_id),
            backfill_id=None if backfill_id is None else str(backfill_id),
            text=body.decode(),
            size=len(body),
        )


def run(change: Change) -> str:
    return f'{{"type":"run","run":{change.text}}}'


def runs(changes: Iterable[Change]) -> Iterator[str]:
    """As few `runs` frames as `FRAME_BYTES` allows; none for no changes."""
    texts: list[str] = []
    size = 0
    for change in changes:
        if texts and size + change.size > FRAME_BYTES:
            yield f'{{"type":"runs","runs":[{",".join(texts)}]}}'
            texts, size = [], 0
        texts.append(change.text)
        size += change.size + 1
    if texts:
        yield f'{{"type":"runs","runs":[{",".join(texts)}]}}'


def live(position: Position, *, recovered: bool) -> str:
    return orjson.dumps({"type": "live", "cursor": str(position), "recovered": recovered}).decode()


def bookmark(position: Position) -> str:
    return orjson.dumps({"type": "bookmark", "cursor": str(position)}).decode()


def log(run_id: object, attempt: int, offset: int, following: int, text: str) -> str:
    """A part of an attempt's log; the next one begins at `following`."""
    frame = {"type": "log", "run_id": str(run_id), "attempt": attempt, "offset": offset, "next": following}
    return orjson.dumps({**frame, "text": text}).decode()


def backfill(view: Mapping[str, Any]) -> str:
    return encode({"type": "backfill", "backfill": view}).decode()


def end_of_backfill(view: Mapping[str, Any]) -> str:
    return encode({"type": "end", "backfill_id": view["id"], "state": view["state"]}).decode()


def end(change: Change) -> str:
    return orjson.dumps({"type": "end", "run_id": change.run_id, "state": change.state}).decode()
