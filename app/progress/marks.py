"""What stands in `runs.result` where the result itself does not, and how a result that looks so is told apart. Pure.

{"jobplane": "result stored", "bytes": n, "path": "file:///..."}    in the log store, as JSON of n bytes
{"jobplane": "result too large", "bytes": n, "limit_bytes": m}      over the limit, and nowhere
{"jobplane": "result lost", "bytes": n, "why": "..."}               it could not be kept
{"jobplane": "result", "value": {...}}                              the task's own, which has a member like these
"""

from typing import Any, Final

_NAME: Final = "jobplane"
_STORED: Final = "result stored"
_TOO_LARGE: Final = "result too large"
_LOST: Final = "result lost"
_GIVEN: Final = "result"


def stored(size: int, path: str) -> dict[str, Any]:
    return {_NAME: _STORED, "bytes": size, "path": path}


def too_large(size: int, limit: int) -> dict[str, Any]:
    return {_NAME: _TOO_LARGE, "bytes": size, "limit_bytes": limit}


def lost(size: int, why: str) -> dict[str, Any]:
    return {_NAME: _LOST, "bytes": size, "why": why}


def given(result: Any) -> Any:
    """A task's result as it is recorded: itself, or wrapped where it could be taken for one of ours."""
    return {_NAME: _GIVEN, "value": result} if _is_marked(result) else result


def as_given(result: Any) -> Any:
    """The task's result out of a recorded one that is none of the other marks."""
    return result["value"] if _is_marked(result) and result[_NAME] == _GIVEN else result


def path_of(result: Any) -> str | None:
    """Where the result is kept, if it is in the log store."""
    return str(result["path"]) if _is_marked(result) and result[_NAME] == _STORED else None


def absence_of(result: Any) -> str | None:
    """Why the result is nowhere, as a sentence; None if it is somewhere."""
    if not _is_marked(result):
        return None
    if result[_NAME] == _LOST:
        return f"the result was lost ({result['bytes']} bytes): {result['why']}"
    if result[_NAME] == _TOO_LARGE:
        # Versions before the limit could be set said no limit.
        limit = f"{result['limit_bytes']} bytes" if "limit_bytes" in result else "what was kept then"
        return f"the result had {result['bytes']} bytes, more than {limit}"
    return None


def _is_marked(result: Any) -> bool:
    return isinstance(result, dict) and isinstance(word := result.get(_NAME), str) and word.startswith(_GIVEN)
