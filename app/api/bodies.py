"""JSON bodies: read once, strictly, and refused where a database or a worker could not keep them.

Python's parser takes NaN, lone surrogates and integers of any size; jsonb and orjson do not. So a body is parsed here,
and each such value is named by its pointer before any model looks at it.
"""

import json
import math
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from app.api.problems import BrokenJson, UnsupportedMediaType
from app.errors import FieldError, Invalid

MERGE_PATCH = "application/merge-patch+json"
_JSON = "application/json"
#: Deeper than this nobody nests on purpose, and parsers of other languages give up not much later.
_MAX_DEPTH = 64
_MAX_FAULTS = 20


class JsonRequest(Request):
    """A request whose `json()` is `read_json` of its body."""

    async def json(self) -> Any:
        if not hasattr(self, "_read"):
            self._read = read_json(await self.body())
        return self._read


class JsonRoute(APIRoute):
    """A route that reads its body as strict JSON, or says in a problem why it cannot."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            if request.method in {"POST", "PUT", "PATCH"}:
                request = JsonRequest(request.scope, request.receive)
                if await request.body():
                    _check_type(request)
                    await request.json()
            return await handle(request)

        return handle_json


def _check_type(request: Request) -> None:
    given = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    takes = [MERGE_PATCH, _JSON] if request.method == "PATCH" else [_JSON]
    if given not in takes:
        raise UnsupportedMediaType(f"send the body as {' or '.join(takes)}, not as {given or 'nothing'}")


def read_json(body: bytes) -> Any:
    """The value of a JSON text. Raises BrokenJson, or Invalid for values that cannot be kept."""
    try:
        value = json.loads(body)
    except json.JSONDecodeError as error:
        raise BrokenJson(f"the body is not JSON: {error.msg}, line {error.lineno} column {error.colno}") from None
    except UnicodeDecodeError:
        raise BrokenJson("the body is not UTF-8") from None
    except RecursionError:
        raise BrokenJson("the body is nested too deeply") from None
    except ValueError:  # more digits than Python turns into a number
        raise BrokenJson("the body holds a number with too many digits") from None
    faults = [fault for fault, _ in zip(_faults(value, "", 0), range(_MAX_FAULTS), strict=False)]
    if faults:
        raise Invalid(*faults)
    return value


def _faults(value: Any, pointer: str, depth: int) -> Iterator[FieldError]:
    if isinstance(value, str):
        if (reason := _text_fault(value)) is not None:
            yield FieldError(pointer, reason)
    elif isinstance(value, float):
        if not math.isfinite(value):
            yield FieldError(pointer, "is not a finite number")
    elif isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            yield FieldError(pointer, "is an integer of more than 64 bits; send it as a string")
    elif isinstance(value, dict | list):
        if depth == _MAX_DEPTH:
            yield FieldError(pointer, f"is nested more than {_MAX_DEPTH} levels deep")
            return
        for key, member in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(key, str) and (reason := _text_fault(key)) is not None:
                yield FieldError(pointer, f"has a name that {reason}")
                continue
            escaped = str(key).replace("~", "~0").replace("/", "~1")
            yield from _faults(member, f"{pointer}/{escaped}", depth + 1)


def _text_fault(text: str) -> str | None:
    if "\0" in text:
        return "contains the character U+0000"
    try:
        text.encode()
    except UnicodeEncodeError:
        return "contains half of a surrogate pair"
    return None


def merge(target: Any, patch: Any) -> Any:
    """A JSON merge patch (RFC 7396) applied: null removes a member, an object goes deeper, all else replaces."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge(result.get(name), value)
    return result
