"""Who waits for news of runs: a socket on many runs, a socket on one, a long-poll. None of them holds a connection."""

import asyncio
from typing import Protocol

from app.feed.cursor import Position
from app.feed.frames import TOO_SLOW, Change, Close
from app.feed.queries import Filter


class Listener(Protocol):
    """What the hub needs of them all."""

    def offer(self, change: Change) -> None:
        """Take note of a change; called for a greater version of a run only, and must not block."""

    def end(self, close: Close) -> None:
        """Stop: the hub has no more for you."""


class Verdict:
    """A socket's end, decided by somebody else than its sender (which may be stuck in a send)."""

    def __init__(self) -> None:
        self.verdict: asyncio.Future[Close] = asyncio.get_running_loop().create_future()

    def end(self, close: Close) -> None:
        if not self.verdict.done():
            self.verdict.set_result(close)


class ManyRuns(Verdict):
    """The newest value of each run that matches and was not sent yet: progress is replaced in place.

    A client that asked for states gets a run that leaves them once more, in its new state, and then no more of it.
    """

    def __init__(self, wanted: Filter, *, most: int, crowd: int) -> None:
        super().__init__()
        self.news = asyncio.Event()
        #: Set when so much is waiting that a frame should go before its interval ends.
        self.crowded = asyncio.Event()
        #: The last whole reconcile read whose changes have all been offered.
        self.offered: Position | None = None
        self._most = most
        self._crowd = crowd
        self._waiting: dict[str, Change] = {}
        self._namespaces = frozenset(wanted.namespaces)
        self._job_ids = frozenset(map(str, wanted.job_ids))
        self._backfill_ids = frozenset(map(str, wanted.backfill_ids))
        self._queues = frozenset(wanted.queues)
        self._states = frozenset(wanted.states)
        #: With states asked for: the runs that the client holds in one of them and that may leave it.
        self._shown: set[str] = set()

    def offer(self, change: Change) -> None:
        if (
            (self._namespaces and change.namespace not in self._namespaces)
            or (self._job_ids and change.job_id not in self._job_ids)
            or (self._backfill_ids and change.backfill_id not in self._backfill_ids)
            or (self._queues and change.queue not in self._queues)
        ):
            return
        if self._states:
            if change.state in self._states:
                if change.ended:
                    self._shown.discard(change.run_id)
                else:
                    self._shown.add(change.run_id)
            elif change.run_id in self._shown:
                self._shown.remove(change.run_id)
            else:
                return
        self.take(change)

    def take(self, change: Change) -> None:
        """Keep a change whether it matches or not."""
        waiting = self._waiting.get(change.run_id)
        if waiting is not None and waiting.version >= change.version:
            return
        self._waiting[change.run_id] = change
        if len(self._waiting) > self._most:
            self.end(Close(TOO_SLOW, f"more than {self._most} runs are waiting to be sent"))
        if len(self._waiting) >= self._crowd:
            self.crowded.set()
        self.news.set()

    def drain(self) -> tuple[list[Change], Position | None]:
        """All that waits, and the position that a client has reached once it has these."""
        changes = list(self._waiting.values())
        self._waiting = {}
        self.news.clear()
        self.crowded.clear()
        return changes, self.offered


class OneRun(Verdict):
    """Every change of a run in order; if the client is so slow that they pile up, only the newest."""

    def __init__(self, most: int = 64) -> None:
        super().__init__()
        self.news = asyncio.Event()
        self._most = most
        self._version = 0
        self._waiting: list[Change] = []

    def offer(self, change: Change) -> None:
        if change.version <= self._version:
            return
        self._version = change.version
        if len(self._waiting) >= self._most:
            self._waiting.clear()
        self._waiting.append(change)
        self.news.set()

    def drain(self) -> list[Change]:
        changes, self._waiting = self._waiting, []
        self.news.clear()
        return changes


class LongPoll:
    """The first change that is news: greater than `after` and, if the end is asked for, an end."""

    def __init__(self, after: int | None, *, until_end: bool) -> None:
        self.answer: asyncio.Future[Change | None] = asyncio.get_running_loop().create_future()
        self._after = after
        self._until_end = until_end
        self._begun = False
        self._early: Change | None = None

    def begin(self, change: Change) -> None:
        """What the row says, read after the registration; without a version to compare with, that one is known."""
        self._begun = True
        if self._after is None:
            self._after = change.version
        self.offer(change)
        if self._early is not None:
            self.offer(self._early)

    def offer(self, change: Change) -> None:
        if not self._begun:
            self._early = change
        elif not self.answer.done() and (change.ended or (not self._until_end and change.version > (self._after or 0))):
            self.answer.set_result(change)

    def end(self, close: Close) -> None:
        if not self.answer.done():
            self.answer.set_result(None)
