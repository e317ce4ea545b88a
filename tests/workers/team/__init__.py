"""A package of a team, whose tasks are found by themselves."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def wrapped() -> Iterator[str]:
    """What the team wants around every call."""
    yield "wrapped"
