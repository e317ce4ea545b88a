"""Secrets in what a task writes become `***`, before anything of it leaves the process.

Known by their shape: passwords in URLs, `Authorization` and bearer tokens, values of `password`, `token`, `secret`,
`api_key` and their like (`key=value`, `key: value`, JSON, also JSON inside a string), AWS key ids and private keys. A
team adds patterns of its own. It is a net and no promise: what has no known shape passes.

Ours take time linear in the length of a line: each part of a pattern either excludes what ends it or is bounded.
"""

import re
from collections.abc import Iterable
from typing import Final

MASK: Final = "***"

_URL: Final = re.compile(r"""(://[^\s/?#:@"'<>]{0,256}:)[^\s/?#"'<>]{1,512}@""")
_AUTHORIZATION: Final = re.compile(
    r"""(?i)(authorization(?:\\{0,3}["'])?\s{0,4}[:=]\s{0,4}(?:\\{0,3}["'])?(?:[a-z][a-z0-9-]{0,20}\s{1,4})?)"""
    r"""[^\s"'\\,;]{2,}"""
)
_BEARER: Final = re.compile(r"(?i)(\bbearer\s{1,4})[a-z0-9._~+/=-]{12,}")
_VALUE: Final = re.compile(
    r"""(?i)((?:passw(?:or)?d|passphrase|pwd|secret|token|api[_-]?key|access[_-]?key|private[_-]?key)"""
    r"""(?:[_-](?:access[_-])?key)?(?:\\{0,3}["'])?\s{0,4}[:=]\s{0,4}(?:[bru](?=\\{0,3}["']))?)"""
    r"""(?:(")(?:[^"\\]|\\.)+|(')(?:[^'\\]|\\.)+|(\\{1,3}["'])(?:[^"'\\]|\\+[^"'\\])+|(?!\*\*\*)[^\s"'\\,;&<>(){}\[\]]+)"""
)
_AWS: Final = re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b")
_KEY_BEGIN: Final = re.compile(r"(-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY(?: BLOCK)?-----)(?:.*?(?=-----END )|.*)")
#: What stands in a private key between its first and its last line.
_KEY_LINE: Final = re.compile(r"\s*(?:[A-Za-z0-9+/=]*|[A-Za-z-]{1,40}: .{0,200})\s*")

#: A line without any of these, in lower case, is not worth that pattern.
_VALUE_HINTS: Final = ("passw", "passphrase", "pwd", "secret", "token", "key")


class Masker:
    """Masks line after line of one text; knows when it is inside a private key that goes over many lines."""

    def __init__(self, own: Iterable[re.Pattern[str]] = ()) -> None:
        self._own = tuple(own)
        self._in_key = False

    def line(self, text: str) -> str:
        """One line, without its end, with the secrets in it masked."""
        if self._in_key:
            if "-----" not in text and _KEY_LINE.fullmatch(text):
                return MASK
            self._in_key = False
        if "://" in text and "@" in text:
            text = _URL.sub(rf"\1{MASK}@", text)
        # Before the values, for in `token: Bearer x` the first word is not the secret.
        if "earer" in text or "EARER" in text:
            text = _BEARER.sub(rf"\1{MASK}", text)
        if ":" in text or "=" in text:
            lower = text.lower()
            if "authorization" in lower:
                text = _AUTHORIZATION.sub(rf"\1{MASK}", text)
            if any(hint in lower for hint in _VALUE_HINTS):
                text = _VALUE.sub(_masked, text)
        if "AKIA" in text or "ASIA" in text:
            text = _AWS.sub(MASK, text)
        if "-----BEGIN " in text:
            text = _KEY_BEGIN.sub(rf"\1{MASK}", text)
            self._in_key = text.endswith(f"PRIVATE KEY-----{MASK}") or text.endswith(f"KEY BLOCK-----{MASK}")
        for pattern in self._own:
            text = pattern.sub(MASK, text)
        return text


def _masked(found: re.Match[str]) -> str:
    return f"{found[1]}{found[2] or found[3] or found[4] or ''}{MASK}"


def compiled(text: str) -> tuple[re.Pattern[str], ...]:
    """Patterns of a team's own, one a line, or separated by commas if it is one line; ValueError names a wrong one.

    A comma inside `{2,5}` separates nothing.
    """
    parts = text.splitlines() if "\n" in text.strip() else re.split(r",(?!\d*\})", text)
    patterns = []
    for part in filter(None, map(str.strip, parts)):
        try:
            pattern = re.compile(part)
        except re.error as error:
            raise ValueError(f"not a regular expression: {part!r:.200}: {error}") from None
        if pattern.match(""):
            raise ValueError(f"matches the empty text: {part!r:.200}")
        patterns.append(pattern)
    return tuple(patterns)
