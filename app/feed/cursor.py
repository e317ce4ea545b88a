"""Where a reader of the feed stands: the text that clients hand back as `since`.

A position is the lowest transaction that was still open when a read began (`pg_snapshot_xmin`): every state change
that the read did not see carries that id or a greater one. So a later read from there misses nothing, whatever the
order of commits; some rows come twice, and a run's version drops those.
"""

import re
from dataclasses import dataclass
from typing import Self

_TEXT = re.compile(r"([0-9a-f]{8})\.([0-9]{1,18})\.([0-9]{1,11})")


@dataclass(frozen=True, slots=True)
class Position:
    """`epoch` names this life of the database, `xid` counts its transactions, `time_s` is when it was taken."""

    epoch: str
    xid: int
    time_s: int

    def __str__(self) -> str:
        return f"{self.epoch}.{self.xid}.{self.time_s}"

    @classmethod
    def parse(cls, text: str) -> Self | None:
        """The position that a client hands back; None if we never wrote such a text."""
        match = _TEXT.fullmatch(text)
        return cls(match[1], int(match[2]), int(match[3])) if match else None
