"""A stranger's bytes, made into a `Report` that fits into jsonb, or refused with a sentence. Pure.

Celery's stored value is `{"status": ..., "result": ..., "traceback": ..., "worker": ..., "retries": ...}`. A report
that can be read at all counts with its state; only what cannot be kept of it is replaced:

- NUL and lone surrogates become U+FFFD; bytes that are not UTF-8 too
- NaN, Infinity, numbers out of a double's range and integers of more than 64 bits become strings, exact
- what lies deeper than 100 levels becomes the string `DEEP`; in a result over 64 KiB only if that is deeper than 254
- a progress meta over 16 KiB becomes `{"truncated": true, "bytes": n, "current", "total", "message"}`
- a result over 64 KiB is kept elsewhere (`read_whole`); a traceback loses its middle
- a message over 1 MiB is not parsed at all: its first bytes say the state

Kombu's typed values (`{"__type__": "datetime", "__value__": ...}`) stay as they are.
"""

import json
import math
import re
from dataclasses import dataclass
from typing import Any, Final

import orjson

from app.progress import marks
from app.progress.fold import Report
from app.states import FAILURE, RETRY, REVOKED, STARTED, SUCCESS, is_state
from workers.protocol import RESULT_KEY_PREFIX, TaskId, parse_task_id

#: Nothing longer is parsed; of what is longer only this much is kept.
MESSAGE_LIMIT: Final = 1024 * 1024
HEAD: Final = 4096
META_LIMIT: Final = 16 * 1024
RESULT_LIMIT: Final = 64 * 1024
TRACEBACK_LIMIT: Final = 64 * 1024
DEPTH_LIMIT: Final = 100
DEEP: Final = "jobplane: nested too deeply"

_NAME_LIMIT: Final = 200
_NOT_WAITED_FOR: Final = "the run was ended before its result was in the log store"
_PREFIX: Final = RESULT_KEY_PREFIX.encode()
#: `celery-task-meta-`, a UUID, a dot, up to nine digits.
_NAME_LENGTHS: Final = range(len(_PREFIX) + 38, len(_PREFIX) + 47)

#: Through `rpc://` the versions before 5.5 name the task first.
_STATUS = re.compile(rb'\s*\{\s*(?:"task_id"\s*:\s*"[^"\\]{0,60}"\s*,\s*)?"status"\s*:\s*"([A-Z][A-Z0-9_]{0,39})"')
#: Only these make orjson's reading differ from what may be kept: NUL, and integers that it would round.
_SUSPECT = re.compile(rb"\\u0000|\d{19}")
_LONG_NUMBER = re.compile(rb"[0-9][0-9]{18}")
_WINDOW: Final = 1024 * 1024
_UNKEEPABLE = re.compile("[\x00\ud800-\udfff]")
#: A string (an unended one runs to the end, so that this stays linear) or a bracket.
_TOKEN = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[\[\]{}]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A report that cannot count, and why."""

    task_id: TaskId
    problem: str


def task_of(name: bytes) -> TaskId | None:
    """The task that a channel or key speaks of; None, by one look at its length, for almost all that are not ours."""
    if len(name) not in _NAME_LENGTHS or not name.startswith(_PREFIX):
        return None
    return parse_task_id(name[len(_PREFIX) :].decode("ascii", "replace"))


def key_of(task_id: TaskId) -> str:
    """The key and channel of a task's state."""
    return f"{RESULT_KEY_PREFIX}{task_id}"


def state_at_head(body: bytes) -> str | None:
    """The state that a message names first, as Celery writes it, without parsing the rest."""
    match = _STATUS.match(body[:HEAD])
    return match[1].decode() if match else None


def read(task_id: TaskId, body: bytes, size: int | None = None) -> Report | Refusal:
    """What a message says. `size` is its whole length where `body` is only the head of a longer one."""
    size = len(body) if size is None else size
    if size > MESSAGE_LIMIT:
        return _unparsed(task_id, body, size)
    try:
        said = _decode(body)
    except (ValueError, RecursionError) as error:
        return Refusal(task_id, f"not JSON: {str(error)[:_NAME_LIMIT]}")
    return _understood(task_id, said)


def is_large_end(body: bytes, size: int) -> bool:
    """Whether this message (or the head of one with `size` bytes) may bring a result that goes by reference."""
    return size > RESULT_LIMIT and state_at_head(body) == SUCCESS


def read_whole(task_id: TaskId, body: bytes) -> tuple[Report | Refusal, bytes | None]:
    """What a message of any length says; with a result over 64 KiB, that as JSON, and a report without it.

    Takes up to seconds for many megabytes: not for an event loop.
    """
    try:
        said = _decode_large(body)
        try:
            encoded = _encoded_result(said)
        except TypeError:  # nested deeper than can be written
            said = _decode(body)
            encoded = _encoded_result(said)
        if len(encoded) > RESULT_LIMIT:
            return _understood(task_id, {**said, "result": None}), encoded
        return _understood(task_id, _decode(body)), None
    except (ValueError, TypeError, RecursionError) as error:
        return Refusal(task_id, f"not JSON: {str(error)[:_NAME_LIMIT]}"), None


def _encoded_result(said: Any) -> bytes:
    result = said.get("result") if isinstance(said, dict) and said.get("status") == SUCCESS else None
    return orjson.dumps(result) if isinstance(result, dict | list | str) else b""


def _understood(task_id: TaskId, said: Any) -> Report | Refusal:
    if not isinstance(said, dict):
        return Refusal(task_id, f"not a JSON object but {type(said).__name__}")
    state = said.get("status")
    if not isinstance(state, str):
        return Refusal(task_id, "names no state")
    if not is_state(state):
        return Refusal(task_id, f"no state of a run: {state[:_NAME_LIMIT]!r}")
    meta = said.get("result")
    worker = said.get("worker")
    if worker is None and state == STARTED and isinstance(meta, dict):
        worker = meta.get("hostname")
    retries = said.get("retries")
    traceback = said.get("traceback")
    return Report(
        task_id=task_id,
        state=state,
        meta=_bounded(state, meta),
        traceback=_middle_cut(traceback) if isinstance(traceback, str) else None,
        worker=worker[:_NAME_LIMIT] if isinstance(worker, str) else None,
        retries=retries if type(retries) is int and 0 <= retries <= 1_000_000 else None,
    )


def _unparsed(task_id: TaskId, head: bytes, size: int) -> Report | Refusal:
    state = state_at_head(head)
    if state is None or not is_state(state):
        return Refusal(task_id, f"{size} bytes, and no state at their head")
    return Report(task_id=task_id, state=state, meta=_stand_in(state, None, size))


def _stand_in(state: str, meta: Any, size: int) -> Any:
    """What is kept of a meta that is too large."""
    if state == SUCCESS:
        return marks.lost(size, _NOT_WAITED_FOR)
    given = meta if isinstance(meta, dict) else {}
    if state in {FAILURE, RETRY, REVOKED}:
        words = given.get("exc_message")
        text = ", ".join(map(str, words)) if isinstance(words, list) else str(words or "")
        return {
            "exc_type": str(given.get("exc_type") or "Error")[:_NAME_LIMIT],
            "exc_module": str(given.get("exc_module") or "")[:_NAME_LIMIT],
            "exc_message": text[: META_LIMIT // 4] + f" (cut: the report had {size} bytes)",
        }
    kept: dict[str, Any] = {"truncated": True, "bytes": size}
    for name in ("current", "total"):
        if isinstance(given.get(name), int | float):
            kept[name] = given[name]
    if isinstance(given.get("message"), str):
        kept["message"] = given["message"][:_NAME_LIMIT]
    return kept


def _bounded(state: str, meta: Any) -> Any:
    size = len(orjson.dumps(meta)) if isinstance(meta, dict | list | str) else 0
    limit = RESULT_LIMIT if state in {SUCCESS, FAILURE, RETRY, REVOKED} else META_LIMIT
    if size > limit:
        return _stand_in(state, meta, size)
    if state == SUCCESS:
        return marks.given(meta)
    if state in {FAILURE, RETRY, REVOKED} and isinstance(meta, dict) and len(str(meta.get("exc_type"))) > _NAME_LIMIT:
        return {**meta, "exc_type": str(meta["exc_type"])[:_NAME_LIMIT]}
    return meta


def _middle_cut(text: str) -> str:
    """At most 64 KiB as UTF-8: the first and the last of it, for the cause is at either end."""
    encoded = text.encode()
    if len(encoded) <= TRACEBACK_LIMIT:
        return text
    part = TRACEBACK_LIMIT // 2 - 64
    mark = f"\n... {len(encoded) - 2 * part} bytes cut ...\n"
    return encoded[:part].decode(errors="ignore") + mark + encoded[-part:].decode(errors="ignore")


def _decode_large(body: bytes) -> Any:
    # What is not to go into jsonb may hold NUL and any depth that the parser takes.
    # In windows, for a search lets no other thread go on.
    starts = range(0, len(body), _WINDOW)
    if not any(_LONG_NUMBER.search(body, start, start + _WINDOW + 18) for start in starts):
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            pass
    return _decode(body)


def _decode(body: bytes) -> Any:
    body = _pruned(body)
    if not _SUSPECT.search(body):
        try:
            return orjson.loads(body)
        except orjson.JSONDecodeError:
            pass
    text = body.decode("utf-8", "replace")
    return _kept(
        json.loads(text, strict=False, parse_int=_integer, parse_float=_fraction, parse_constant=lambda name: name)
    )


def _pruned(body: bytes) -> bytes:
    """The same JSON with what lies deeper than `DEPTH_LIMIT` replaced by `DEEP`."""
    if body.count(b"[") + body.count(b"{") <= DEPTH_LIMIT:
        return body
    parts: list[bytes] = []
    depth = kept_to = 0
    for token in _TOKEN.finditer(body):
        first = body[token.start()]
        if first in b"[{":
            depth += 1
            if depth == DEPTH_LIMIT + 1:
                parts.append(body[kept_to : token.start()])
                kept_to = len(body)
        elif first in b"]}":
            depth -= 1
            if depth == DEPTH_LIMIT:
                parts.append(orjson.dumps(DEEP))
                kept_to = token.end()
    return b"".join([*parts, body[kept_to:]]) if parts else body


def _integer(text: str) -> int | str:
    value = int(text) if len(text) <= 20 else None
    return value if value is not None and -(2**63) <= value < 2**64 else text


def _fraction(text: str) -> float | str:
    value = float(text)
    return value if math.isfinite(value) else text


def _kept(value: Any) -> Any:
    """The same value with every string fit for the database; recursion is bounded, for it was pruned."""
    if isinstance(value, str):
        return _UNKEEPABLE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_kept(item) for item in value]
    if isinstance(value, dict):
        return {_kept(name): _kept(item) for name, item in value.items()}
    return value
