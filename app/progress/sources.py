"""Where workers keep results on the plane's Redis: in its own database, in another one, or behind a prefix."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

from workers.protocol import RESULT_KEY_PREFIX, TaskId

#: After one of these Celery puts no underscore between `global_keyprefix` and its own prefix.
_SEPARATORS: Final = ":_-."
_GLOB = re.compile(r"([*?\[\]\\^])")


@dataclass(frozen=True, slots=True)
class Source:
    """A database of the plane's Redis (None: the one of `JOBPLANE_REDIS_URL`) and Celery's `global_keyprefix` there."""

    db: int | None = None
    prefix: str = ""

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Self:
        """Of a row with `result_db` and `result_prefix` of its queue; both may be null."""
        return cls(row["result_db"], row["result_prefix"] or "")

    def key_of(self, task_id: TaskId) -> str:
        """The key and channel of a task's state."""
        return f"{_with_separator(self.prefix)}{RESULT_KEY_PREFIX}{task_id}"


#: Where our own workers keep results, and stock ones of which nobody has said otherwise.
OWN: Final = Source()


def pattern_of(prefix: str) -> str:
    """What to subscribe to in order to hear all tasks behind this prefix. Channels know no databases."""
    return _GLOB.sub(r"\\\1", _with_separator(prefix)) + f"{RESULT_KEY_PREFIX}*"


def behind(prefix: str, channel: bytes) -> bytes:
    """The channel without this prefix."""
    return channel.removeprefix(_with_separator(prefix).encode())


def _with_separator(prefix: str) -> str:
    return prefix if not prefix or prefix[-1] in _SEPARATORS else f"{prefix}_"
