"""Requests to a plane's REST API."""

import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import httpx

from app.jobfiles.refusals import WRONG, Refused, one_line

_NEAR: Final = frozenset({"127.0.0.1", "::1", "localhost"})
#: A plane that is busy, or whose database restarts, is asked again so often, a second apart.
_TRIES: Final = 5


class Problem(Exception):
    """What the plane does not take: its problem document."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        super().__init__(body.get("detail") or f"status {status}")
        self.status = status
        self.errors: list[Mapping[str, str]] = list(body.get("errors") or [])


def call(url_base: str, method: str, path: str, **options: Any) -> Any:
    """The JSON that the plane answers. Problem; Refused if there is no plane at this address."""
    parts = urlsplit(url_base)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise Refused(f"{one_line(url_base)}: must be the address of a plane, as http://127.0.0.1:8000", status=WRONG)
    url = f"{url_base.rstrip('/')}/api/v1{path}"
    # A proxy named by the environment cannot reach this machine's own loopback.
    with httpx.Client(timeout=120, trust_env=parts.hostname not in _NEAR) as client:
        for left in reversed(range(_TRIES)):
            try:
                answer = client.request(method, url, **options)
            except httpx.HTTPError as error:
                raise Refused(f"no plane at {url_base}: {one_line(error)}", status=WRONG) from None
            if answer.status_code != 503 or not left:
                break
            time.sleep(1)
    try:
        body = answer.json()
    except ValueError:
        raise Refused(f"no plane at {url_base}: it answers {answer.status_code} without JSON", status=WRONG) from None
    if not answer.is_success:
        raise Problem(answer.status_code, body if isinstance(body, dict) else {})
    return body
