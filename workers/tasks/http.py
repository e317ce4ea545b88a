"""`http.request`: one HTTP request, with progress by the bytes of its answer."""

import base64
import hashlib
import re
import time
from collections.abc import Callable
from typing import Any, Final

import httpx
from celery import shared_task

from workers import egress
from workers.settings import Settings, current
from workers.task import progress

#: So much of an answer's body comes back with the result; `bytes` and `sha256` are those of all of it.
BODY_BYTES: Final = 32 * 1024
_HEADERS_BYTES: Final = 8 * 1024

_METHOD = re.compile(r"[A-Z]{1,20}")
_HEADER_NAME = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
#: Headers that follow from the URL and the body; another value would make the request ambiguous.
_OURS: Final = frozenset({"host", "content-length", "transfer-encoding", "connection", "expect", "upgrade"})

Report = Callable[[int, int | None], None]


class RequestFailed(Exception):
    """No answer came, or with `raise_for_status` one that says that it failed."""


@shared_task(name="http.request")
def request(
    method: str,
    url: str,
    headers: dict[str, str] | None = None,
    body: str | None = None,
    timeout_s: float = 30,
    raise_for_status: bool = False,
) -> dict[str, Any]:
    """Send one HTTP request; redirects are not followed, an error status is a result like any other.

    Returns `{"status", "headers", "body", "body_encoding", "truncated", "bytes", "sha256", "elapsed_s"}`: the first
    32 KiB of the body as text, or base64 if it is none (`body_encoding`); `bytes` and `sha256` of all of it, as sent.
    Progress counts the bytes of the answer. `timeout_s` bounds the whole exchange.

    ValueError or TypeError name a wrong argument, such as a `url` that leads to a private address; TimeoutError and
    RequestFailed tell that no whole answer came, or with `raise_for_status` that it was a 4xx or 5xx.
    """
    settings = current()
    return exchange(
        method, url, headers, body, timeout_s, raise_for_status, settings=settings, report=lambda *at: progress(*at)
    )


def exchange(
    method: str,
    url: str,
    headers: dict[str, str] | None,
    body: str | None,
    timeout_s: float,
    raise_for_status: bool,
    *,
    settings: Settings,
    report: Report,
) -> dict[str, Any]:
    """What the task does, with its bounds from `settings`."""
    method, target, sent = _method(method), _url(url), _headers(headers)
    if body is not None and not isinstance(body, str):
        raise TypeError(f"body: must be a string, not {type(body).__name__}")
    timeout = _timeout_s(timeout_s, settings.http_max_timeout_s)
    if not isinstance(raise_for_status, bool):
        raise TypeError(f"raise_for_status: must be true or false, not {type(raise_for_status).__name__}")
    start = time.monotonic()
    transport = egress.transport(allow_private=settings.http_allow_private, deadline=start + timeout)
    try:
        with (
            httpx.Client(transport=transport, trust_env=False, follow_redirects=False, timeout=timeout) as client,
            client.stream(method, target, headers=sent, content=body) as answer,
        ):
            result = _read(answer, settings.http_max_bytes, report)
    except (egress.TimeUp, httpx.TimeoutException):
        raise TimeoutError(f"timeout_s: no whole answer from {target.host} within {timeout:g} s") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RequestFailed(f"{method} {target.host}: {error or type(error).__name__}") from None
    if raise_for_status and result["status"] >= httpx.codes.BAD_REQUEST:
        raise RequestFailed(f"{method} {target.host}: status {result['status']}")
    return {**result, "elapsed_s": round(time.monotonic() - start, 3)}


def _read(answer: httpx.Response, max_bytes: int, report: Report) -> dict[str, Any]:
    length = answer.headers.get("content-length", "")
    total = int(length) if length.isascii() and length.isdigit() else None
    if total is not None and total > max_bytes:
        raise ValueError(f"url: the answer has {total} bytes, more than the {max_bytes} that this worker reads")
    digest, kept, count = hashlib.sha256(), bytearray(), 0
    for block in answer.iter_raw():
        count += len(block)
        if count > max_bytes:
            raise ValueError(f"url: the answer has more than the {max_bytes} bytes that this worker reads")
        digest.update(block)
        kept += block[: BODY_BYTES - len(kept)]
        report(count, total)
    report(count, count)
    text, encoding = _text(bytes(kept), answer.charset_encoding, cut=count > len(kept))
    return {
        "status": answer.status_code,
        "headers": _kept_headers(answer.headers),
        "body": text,
        "body_encoding": encoding,
        "truncated": count > len(kept),
        "bytes": count,
        "sha256": digest.hexdigest(),
    }


def _text(body: bytes, charset: str | None, *, cut: bool) -> tuple[str, str]:
    for encoding in dict.fromkeys((charset or "utf-8", "utf-8")):
        # A cut may fall inside a character, which has at most four bytes.
        for end in range(len(body), max(len(body) - (4 if cut else 1), -1), -1):
            try:
                text = body[:end].decode(encoding)
            except (UnicodeDecodeError, LookupError):
                continue
            if "\x00" not in text:
                return text, "text"
    return base64.b64encode(body).decode(), "base64"


def _kept_headers(headers: httpx.Headers) -> dict[str, str]:
    kept: dict[str, str] = {}
    size = 0
    for name, value in headers.items():
        size += len(name) + len(value)
        if size > _HEADERS_BYTES:
            break
        kept[name] = value
    return kept


def _method(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"method: must be a string, not {type(value).__name__}")
    if not _METHOD.fullmatch(value.upper()) or value.upper() == "CONNECT":
        raise ValueError(f"method: not an HTTP method: {value!r:.60}")
    return value.upper()


def _url(value: object) -> httpx.URL:
    if not isinstance(value, str):
        raise TypeError(f"url: must be a string, not {type(value).__name__}")
    try:
        url = httpx.URL(value)
    except httpx.InvalidURL as error:
        raise ValueError(f"url: {error}") from None
    if url.scheme not in {"http", "https"}:
        raise ValueError("url: must begin with http:// or https://")
    if not url.host:
        raise ValueError("url: names no host")
    if url.port is not None and not 0 < url.port < 65536:
        raise ValueError(f"url: no such port: {url.port}")
    if url.userinfo:
        raise ValueError("url: must not hold a user name or password; send them in a header")
    return url


def _headers(value: object) -> dict[str, str]:
    # Identity, so that the bytes counted are the bytes meant.
    headers = {"accept": "*/*", "accept-encoding": "identity", "user-agent": "jobplane"}
    if value is None:
        return headers
    if not isinstance(value, dict):
        raise TypeError(f"headers: must be an object of strings, not {type(value).__name__}")
    for name, text in value.items():
        if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
            raise ValueError(f"headers: not a header's name: {name!r:.60}")
        if not isinstance(text, str):
            raise TypeError(f"headers: {name} must be a string, not {type(text).__name__}")
        if any(ord(character) < 0x20 and character != "\t" for character in text) or not text.isascii():
            raise ValueError(f"headers: {name} holds a character that no header may hold")
        if name.lower() in _OURS:
            raise ValueError(f"headers: {name} follows from the URL and the body and cannot be set")
        headers[name.lower()] = text
    return headers


def _timeout_s(value: object, longest: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"timeout_s: must be a number, not {type(value).__name__}")
    if not 0 < value <= longest:
        raise ValueError(f"timeout_s: must be more than 0 and at most {longest:g}")
    return float(value)
