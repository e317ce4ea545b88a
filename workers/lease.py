"""Who may run an attempt, and may therefore speak for it: one Redis key, held while the body runs.

The key lives where the results live, so one script (`workers/keeper.py`) can look at the lease and store a report in
the same instant: what a body says after its lease went to somebody else is never stored, and no PROGRESS ever covers
an end.
"""

import contextlib
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final, TypeVar

from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded
from kombu.exceptions import EncodeError

from workers import interrupts
from workers.keeper import AWAY, HANDED_BACK, PAUSE_S, STOPPED, Keeper
from workers.log import log
from workers.protocol import CANCELLED, DONE, HELD
from workers.tracking import NEWS_S

T = TypeVar("T")

_NEVER: Final = float("inf")

#: Most states of its own that a coroutine may have waiting for Redis; then the oldest is left out.
_STATES_KEPT: Final = 100


class LeaseLost(BaseException):
    """Raised inside a task's body: this attempt is somebody else's now, and nothing more of it is recorded.

    Not an `Exception`, so that a body's `except Exception` does not keep it running.
    """


class Cancelled(LeaseLost):
    """Raised inside a task's body whose run was cancelled."""


class Attempt:
    """One delivery that this process executes; with a `key`, its lease.

    `lost` is None while it may speak, else the value that was found in its place.
    """

    def __init__(self, keeper: Keeper, result_key: str, expires_s: int, key: str | None = None) -> None:
        self.keeper = keeper
        self.result_key = result_key
        self.expires_s = expires_s
        #: Empty for a message that is not of the plane: then there is nothing to hold.
        self.key = key or ""
        self.token = secrets.token_hex(12) if key else None
        self.held = f"{HELD}{self.token}" if key else ""
        self.lost: str | None = None
        #: When the last word that renewed the lease was sent, on the monotonic clock.
        self.renewed_at = time.monotonic()
        #: The body has ended, so that a stop lets it be recorded (`interrupts.HOLD_S`).
        self.over = False
        #: The end of this process, which was raised inside.
        self.ends_by: SystemExit | None = None
        self._ident = threading.get_ident()
        self._inside = False
        self._ended = False
        self._gate = threading.Lock()
        self._voice = threading.Lock()
        self._news: Callable[[], str] | None = None
        #: Stops a body that runs on an event loop, for which this attempt's thread waits.
        self._stop_elsewhere: Callable[[], None] | None = None
        #: What such a body said besides news, and its first, for nothing on that loop may wait for Redis.
        self._states: deque[str] = deque(maxlen=_STATES_KEPT)
        self._next_time = 0.0
        #: When the body's soft time limit ends, where no pool keeps it; whether that is to be told, and whether it was.
        self._soft_time = _NEVER
        self._is_late = self._was_late = False
        #: Set while Redis is away: then only the heartbeat thread tries to say news, and not before this time.
        self._retry_time: float | None = None

    def stop_here(self) -> None:
        """What an interrupt by signal does, but only while the body runs: `check`, or the soft time limit."""
        if self._inside:
            self.check()
            if self._is_late:
                self._is_late = False
                raise SoftTimeLimitExceeded

    def limit(self, soft_s: float) -> None:
        """Raise SoftTimeLimitExceeded in the body after so long, in the way of `interrupt`."""
        self._soft_time = time.monotonic() + soft_s
        self.keeper.wake()

    def check(self) -> None:
        """Raise LeaseLost or Cancelled if this attempt may not speak any more. Costs nothing."""
        if self.lost is not None:
            raise self._loss()

    def lose(self, value: str) -> None:
        """Another value than ours stands in the lease."""
        if self.lost is None:
            self.lost = value
            log.warning("lease_lost", lease=self.key, found=value)

    def tell(self, encode: Callable[[], str], *, at_once: bool = False) -> None:
        """Say the newest progress: now, or by the heartbeat thread as soon as the throttle or Redis allows.

        Older news that is still waiting is replaced. Waits for one command's time-out in each outage, and no longer;
        on an event loop not at all.
        """
        if self.lost is not None:
            raise self._loss()
        now = time.monotonic()
        due = now >= self._next_time or at_once
        if not due or self._retry_time is not None or self._stop_elsewhere is not None:
            if due and self._stop_elsewhere is not None:
                said = encode()  # what cannot be encoded is the body's to hear
                if not self._next_time:
                    # The first is said, also if another one is told before the heartbeat thread has turned.
                    self._next_time = now + NEWS_S
                    with self._gate:
                        self._states.append(said)
                    self.keeper.wake()
                    return
                waiting, self._news = self._news, lambda: said
            else:
                waiting, self._news = self._news, encode
            if waiting is None:
                self.keeper.wake()
            return
        with self._voice:
            self._say_news(encode, now)
        self.check()

    def insist(self, encode: Callable[[], str]) -> None:
        """Say a state of the task's own, in order with its progress; waits while Redis is away.

        On an event loop it waits for nothing: then the heartbeat thread says it.
        """
        report = encode()
        if self._stop_elsewhere is None:
            self._insist(report)
            return
        self.check()
        with self._gate:
            self._news = None
            self._states.append(report)
        self.keeper.wake()

    def _insist(self, report: str) -> None:
        delay_s = 0.1
        while True:
            self.check()
            try:
                with self._voice:
                    self._news = None
                    self._hear(self.keeper.say(self, report))
                break
            except AWAY as error:
                self.keeper.note(error)
            time.sleep(delay_s)
            delay_s = min(delay_s * 2, PAUSE_S)
        self.check()

    def flush(self) -> None:
        """Say what waits, if its time has come; likewise for the soft time limit."""
        if time.monotonic() >= self._soft_time:
            self._soft_time = _NEVER
            self._exceed()
        with self._voice:
            now = time.monotonic()
            if self.lost is not None or (self._retry_time is not None and now < self._retry_time):
                return
            while self._states and self._say_state(self._states[0]):
                self._states.popleft()
            if self._news is not None and not self._states and now >= self._next_time:
                try:
                    self._say_news(self._news, now)
                except (EncodeError, TypeError, ValueError) as error:
                    log.warning("progress_refused", lease=self.key, error=f"{type(error).__name__}: {error}")

    @property
    def news_time(self) -> float:
        """When `flush` has something to do, on the monotonic clock; infinity if there is nothing."""
        if self.lost is not None:
            return _NEVER
        if self._news is None and not self._states:
            return self._soft_time
        if self._retry_time is not None:
            return min(self._retry_time, self._soft_time)
        return min(0.0 if self._states else self._next_time, self._soft_time)

    @contextlib.contextmanager
    def elsewhere(self, stop: Callable[[], None]) -> Iterator[None]:
        """The body runs on an event loop meanwhile, where `stop` stops it; this thread waits for it.

        However it ended there: LeaseLost or Cancelled if the attempt is not ours any more.
        """
        self._stop_elsewhere = stop
        try:
            yield
        finally:
            self._stop_elsewhere = None
            with self._voice:
                states, news = list(self._states), self._news
                self._states.clear()
            for report in states:
                self._insist(report)
            self._news = news  # what was told before a state has been replaced by it already
            self.check()

    def execute(self, body: Callable[[], T]) -> T:
        """Run the body; `refusal()` if the lease was lost meanwhile.

        If the end of this process was raised inside, it is raised again, whatever the body and its context made of it:
        then this attempt is handed back.
        """
        try:
            try:
                self._enter()
                try:
                    result = body()
                finally:
                    self._finish()
            finally:
                self._leave()
        except LeaseLost:
            self._leave()
        except Exception:
            if self.lost is None and self.ends_by is None:
                raise
        else:
            if self.lost is None and self.ends_by is None:
                return result
        raise self.refusal() if self.ends_by is None else self.ends_by

    def refusal(self) -> Ignore | Reject:
        """What tells Celery to store nothing of an attempt that is `lost`.

        Ignore, for somebody else has it; Reject, so that the message comes again, where we hand it back.
        """
        if self.lost in HANDED_BACK:
            return Reject(f"the lease was lost: {self.lost}", requeue=True)
        return Ignore(f"the attempt is not to be run: its lease says {self.lost}")

    def interrupt(self) -> None:
        """Stop the body with LeaseLost: at its next step, and out of a sleep or a read where signals reach it."""
        with self._gate:
            if not self._inside or self.lost is None:
                return
            if self._stop_elsewhere is not None:
                self._stop_elsewhere()
            else:
                interrupts.send(self._ident, self, type(self._loss()))

    @contextlib.contextmanager
    def ending(self) -> Iterator[None]:
        """The body does what ends it, if that raises Retry."""
        before, self.over = self.over, True
        try:
            yield
        except Retry:
            before = True
            raise
        finally:
            self.over = before

    def give_back(self) -> None:
        """The worker is being stopped: end the body, so that its message comes again.

        One that has ended is given `HOLD_S` to be recorded.
        """
        if not self.over or interrupts.later(self._give_back) is None:
            self._give_back()

    def _give_back(self) -> None:
        if not self._ended:
            self.lose(STOPPED)
            self.interrupt()

    def end(self, *, finished: bool) -> None:
        """The delivery is over: its result is stored (the lease says `done`), or it is handed back."""
        self._ended = True
        try:
            self.keeper.drop(self)
            if self.key and (self.lost is None or self.lost in HANDED_BACK):
                # What is handed back comes again, and must not find a lease of ours that nobody renews.
                self.keeper.close(self, DONE if finished else "")
        finally:
            interrupts.release(self)

    def _say_news(self, encode: Callable[[], str], now: float) -> None:
        try:
            self._next_time = now + NEWS_S
            self._news = None
            self._hear(self.keeper.say(self, encode()))
            self._retry_time = None
        except AWAY as error:
            self.keeper.note(error)
            self._retry_time = time.monotonic() + PAUSE_S
            self._news = self._news or encode
            self.keeper.wake()

    def _say_state(self, report: str) -> bool:
        try:
            self._hear(self.keeper.say(self, report))
            self._retry_time = None
        except AWAY as error:
            self.keeper.note(error)
            self._retry_time = time.monotonic() + PAUSE_S
        return self._retry_time is None

    def _exceed(self) -> None:
        with self._gate:
            if self._inside and self.lost is None:
                self._is_late = self._was_late = True
                interrupts.send(self._ident, self, SoftTimeLimitExceeded)

    def _finish(self) -> None:
        # The last news of a body, unless Redis is away: its end is what waits for that.
        if self._news is not None and self.lost is None and self._retry_time is None:
            self._next_time = 0.0
            try:
                self.flush()
            except Exception:
                log.exception("progress_not_said", lease=self.key)

    def _hear(self, answer: str) -> None:
        if self.key and answer != self.held:
            self.lose(answer)

    def _loss(self) -> LeaseLost:
        if self.lost == CANCELLED:
            return Cancelled("the run was cancelled")
        return LeaseLost(f"the lease was lost: {self.lost}")

    def _enter(self) -> None:
        if self.key:
            interrupts.hold(self)
            interrupts.prepare(self)
            self._inside = True
            self.check()

    def _leave(self) -> None:
        # An interrupt may still be on its way, so it may land in here; after the gate none can.
        left = False
        while not left:
            with contextlib.suppress(LeaseLost, SoftTimeLimitExceeded):
                with self._gate:
                    self._inside = False
                    if self.lost is not None or self._was_late:
                        interrupts.clear(self._ident)
                interrupts.forget(self)
                self._news = None
                left = True
