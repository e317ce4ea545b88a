"""Ends that came after the one that counts: kept beside the run, and nothing more. Pure.

A worker may say an end of a run that has ended (a second delivery, a lease that was lost), or of an attempt that was
over. Neither touches where the run stands.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from app.progress.standing import Standing
from app.states import FAILURE, SUCCESS, TERMINAL

#: So many are kept, the newest.
MOST: Final = 5
#: Texts of an end that does not count are cut to this many characters.
_TEXT: Final = 4096


def keep(
    now: datetime,
    standing: Standing,
    dispatch: int,
    state: str,
    *,
    worker: str | None,
    error: Mapping[str, Any] | None,
    result: Any,
) -> Standing | None:
    """The run with this end of an old dispatch put beside it; None where it is no end, or the one that counted."""
    if state not in TERMINAL or dispatch > standing.dispatches + 1:
        return None
    if any((kept["dispatch"], kept["state"]) == (dispatch, state) for kept in standing.late):
        return None
    attempt = attempt_of(standing, dispatch)
    if _counted(standing, attempt, dispatch, state, error, result):
        return None
    entry = {
        "state": state,
        "attempt": attempt,
        "dispatch": dispatch,
        "worker": worker,
        "time": now.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "error": cut(error) if state == FAILURE and error is not None else None,
    }
    return replace(standing, late=[*standing.late, entry][-MOST:])


def attempt_of(standing: Standing, dispatch: int) -> int:
    """The attempt that went out under this number."""
    for ended in standing.attempts:
        # An attempt that was put away by an older version does not say its last dispatch; nearly all have just one.
        if dispatch <= ended.get("dispatch", ended["attempt"]):
            return int(ended["attempt"])
    return standing.attempt


def cut(error: Mapping[str, Any]) -> dict[str, Any]:
    """An error with short texts; of the traceback the end is kept."""
    return {
        "type": error["type"][:_TEXT],
        "message": error["message"][:_TEXT],
        "traceback": (error.get("traceback") or "")[-_TEXT:] or None,
    }


def _counted(
    standing: Standing, attempt: int, dispatch: int, state: str, error: Mapping[str, Any] | None, result: Any
) -> bool:
    """Whether this is the end of that attempt that we know, said again."""
    if attempt == standing.attempt:
        own_state, own_error = standing.state, standing.error
    else:
        ended = next(ended for ended in standing.attempts if ended["attempt"] == attempt)
        own_state, own_error = ended["state"], ended["error"]
    if state != own_state:
        return False
    if state == FAILURE:
        return _same(own_error, error)
    # Two dispatches of one attempt may both have done the work.
    return state != SUCCESS or dispatch == standing.dispatches or result == standing.result


def _same(own: Mapping[str, Any] | None, said: Mapping[str, Any] | None) -> bool:
    if own is None or said is None:
        return own is said
    return (own["type"][:_TEXT], own["message"][:_TEXT]) == (said["type"][:_TEXT], said["message"][:_TEXT])
