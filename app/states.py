"""The states of a run and the moves between them. Pure: no clock, no database.

Celery's words stay Celery's. A task may also report custom words; they count as PROGRESS does.
"""

import re
from typing import Final

PENDING: Final = "PENDING"
"""Recorded; dispatch moves it to the broker (`dispatch_time`), then the worker moves it on."""
STARTED: Final = "STARTED"
"""A worker has it; the worker moves it on."""
PROGRESS: Final = "PROGRESS"
"""STARTED, with news; the worker moves it on. Every custom word is treated alike."""
RETRY: Final = "RETRY"
"""Celery's own in-task retry: the same attempt will run again; the worker moves it on."""
SUCCESS: Final = "SUCCESS"
"""Ended by the work. Nobody moves it on."""
FAILURE: Final = "FAILURE"
"""Ended by an error. Nobody moves it on."""
REVOKED: Final = "REVOKED"
"""Ended by a cancel or a start deadline (`reason`). Nobody moves it on."""

TERMINAL: Final = frozenset({SUCCESS, FAILURE, REVOKED})
NAMED: Final = frozenset({PENDING, STARTED, PROGRESS, RETRY}) | TERMINAL

CUSTOM_PATTERN: Final = r"^[A-Z][A-Z0-9_]{0,39}$"
_CUSTOM = re.compile(CUSTOM_PATTERN)

#: Celery words that are not a state of a run: what the broker or the worker does, not what the work does.
_IGNORED: Final = frozenset({"RECEIVED", "REJECTED", "IGNORED"})


def is_state(word: str) -> bool:
    """Whether a run can be in a state of this name."""
    return _CUSTOM.fullmatch(word) is not None and word not in _IGNORED


def is_running(word: str) -> bool:
    """Whether a worker has the run: STARTED, PROGRESS or a custom word."""
    return word not in TERMINAL and word not in {PENDING, RETRY}


def may_move(old: str, new: str) -> bool:
    """Whether a worker's report may take a run from `old` to `new`.

    A terminal state never changes. STARTED after PROGRESS is a second start of the same attempt, and old news.
    PENDING is never reported: only a new attempt goes back to it.
    """
    if old in TERMINAL or new == PENDING or not is_state(new):
        return False
    if new == STARTED:
        return old in {PENDING, RETRY}
    return True
