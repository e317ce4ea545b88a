"""Who may run an attempt, and may therefore speak for it: one Redis key, kept alive while the body runs.

The key lives where the results live, so one script can look at the lease and store a report in the same instant:
what a body says after its lease went to somebody else is never stored, and no PROGRESS ever covers an end.
A heartbeat thread per process renews every lease the process holds; it is made late, in the child after the fork.
"""

import contextlib
import ctypes
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Final, TypeVar

from celery.exceptions import Ignore
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from workers.log import log
from workers.protocol import CANCELLED, DONE, HEARTBEAT_S, HELD, LEASE_MEMORY_S, LEASE_S

T = TypeVar("T")

#: What "Redis is away" looks like. Anything else that it answers is an error of ours.
AWAY: Final = (RedisConnectionError, RedisTimeoutError, OutOfMemoryError, ReadOnlyError, OSError)

#: At most this often does the newest progress of one attempt go out.
NEWS_S: Final = 0.1
#: So long after a failed try is Redis left alone, at most.
_PAUSE_S: Final = 1.0
#: Longest that one command may hold up a body.
_COMMAND_S: Final = 2.0

# KEYS lease, result; ARGV held:<token> or '', lease ms, report or '', expiry s.
# Answers ARGV[1] if it was said, else the lease's foreign value, or `ended` if the result is final already.
_SAY = """
if ARGV[1] ~= '' then
  local holder = redis.call('GET', KEYS[1])
  if holder and holder ~= ARGV[1] then return holder end
end
local old = redis.call('GET', KEYS[2])
if old then
  local ok, report = pcall(cjson.decode, old)
  if ok and type(report) == 'table' then
    local status = report['status']
    if status == 'SUCCESS' or status == 'FAILURE' or status == 'REVOKED' then return 'ended' end
  end
end
if ARGV[1] ~= '' then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
if ARGV[3] ~= '' then
  redis.call('SET', KEYS[2], ARGV[3], 'EX', ARGV[4])
  redis.call('PUBLISH', KEYS[2], ARGV[3])
end
return ARGV[1]
"""

# KEYS leases; ARGV lease ms, then held:<token> of each. A lease that is gone (Redis lost it, or we slept and nobody
# took it) is taken again. Answers the value of each.
_RENEW = """
local values = {}
for i, key in ipairs(KEYS) do
  local value = redis.call('GET', key) or ARGV[i + 1]
  if value == ARGV[i + 1] then redis.call('SET', key, value, 'PX', ARGV[1]) end
  values[i] = value
end
return values
"""

# KEYS lease; ARGV held:<token>, last value or '' to give it back, memory ms.
_CLOSE = """
local value = redis.call('GET', KEYS[1])
if value and value ~= ARGV[1] then return value end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
return ARGV[1]
"""


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

    def __init__(self, keeper: "Keeper", result_key: str, expires_s: int, key: str | None = None) -> None:
        self.keeper = keeper
        self.result_key = result_key
        self.expires_s = expires_s
        #: Empty for a message that is not of the plane: then there is nothing to hold.
        self.key = key or ""
        self.token = secrets.token_hex(12) if key else None
        self.held = f"{HELD}{self.token}" if key else ""
        self.lost: str | None = None
        self._ident = threading.get_ident()
        self._inside = False
        self._gate = threading.Lock()
        self._voice = threading.Lock()
        self._news: Callable[[], str] | None = None
        self._next_time = 0.0
        #: Set while Redis is away: then only the heartbeat thread tries to say news, and not before this time.
        self._retry_time: float | None = None

    def check(self) -> None:
        """Raise LeaseLost or Cancelled if this attempt may not speak any more. Costs nothing."""
        if self.lost is not None:
            raise self._loss()

    def lose(self, value: str) -> None:
        """Another value than ours stands in the lease."""
        if self.lost is None:
            self.lost = value
            log.warning("lease_lost", lease=self.key, found=value)

    def tell(self, encode: Callable[[], str], *, at_once: bool) -> None:
        """Say the newest progress: now, or by the heartbeat thread as soon as the throttle or Redis allows.

        Older news that is still waiting is replaced. Waits for one command's time-out in each outage, and no longer.
        """
        self.check()
        now = time.monotonic()
        if self._retry_time is not None or (now < self._next_time and not at_once):
            waiting, self._news = self._news, encode
            if waiting is None:
                self.keeper.wake()
            return
        with self._voice:
            self._say_news(encode, now)
        self.check()

    def insist(self, encode: Callable[[], str]) -> None:
        """Say a state of the task's own, in order with its progress; waits while Redis is away."""
        delay_s = 0.1
        report = encode()
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
            delay_s = min(delay_s * 2, _PAUSE_S)
        self.check()

    def flush(self) -> None:
        """Say the news that waits, if its time has come."""
        with self._voice:
            now = time.monotonic()
            if self._news is not None and now >= self.news_time:
                self._say_news(self._news, now)

    @property
    def news_time(self) -> float:
        """When waiting news may go out, on the monotonic clock; infinity if there is nothing to say."""
        if self._news is None or self.lost is not None:
            return float("inf")
        return self._next_time if self._retry_time is None else self._retry_time

    def execute(self, body: Callable[[], T]) -> T:
        """Run the body; Ignore, so that Celery stores nothing, if the lease was lost meanwhile."""
        try:
            try:
                self._enter()
                result = body()
            finally:
                self._leave()
        except LeaseLost:
            self._leave()
        except Exception:
            if self.lost is None:
                raise
        else:
            if self.lost is None:
                return result
        raise Ignore(f"the lease was lost: {self.lost}")

    def interrupt(self) -> None:
        """Stop the body with LeaseLost: at its next step, and out of a sleep or a read where signals reach it."""
        with self._gate:
            if not self._inside or self.lost is None:
                return
            if self is _signals.attempt:
                signal.pthread_kill(self._ident, signal.SIGURG)
            else:
                _raise_in(self._ident, type(self._loss()))

    def end(self, *, finished: bool) -> None:
        """The delivery is over: its result is stored (the lease says `done`), or it is handed back."""
        self.keeper.drop(self)
        if self.key and self.lost is None:
            self.keeper.close(self, DONE if finished else "")

    def _say_news(self, encode: Callable[[], str], now: float) -> None:
        try:
            self._next_time = now + NEWS_S
            self._news = None
            self._hear(self.keeper.say(self, encode()))
            self._retry_time = None
        except AWAY as error:
            self.keeper.note(error)
            self._retry_time = time.monotonic() + _PAUSE_S
            self._news = self._news or encode
            self.keeper.wake()

    def _hear(self, answer: str) -> None:
        if self.key and answer != self.held:
            self.lose(answer)

    def _loss(self) -> LeaseLost:
        if self.lost == CANCELLED:
            return Cancelled("the run was cancelled")
        return LeaseLost(f"the lease was lost: {self.lost}")

    def _enter(self) -> None:
        if self.key:
            _signals.install(self)
            self._inside = True
            self.check()

    def _leave(self) -> None:
        # An interrupt may still be on its way, so it may land in here; after the gate none can.
        left = False
        while not left:
            with contextlib.suppress(LeaseLost):
                with self._gate:
                    self._inside = False
                    if self.lost is not None:
                        _raise_in(self._ident, None)
                _signals.remove(self)
                self._news = None
                left = True


class Keeper:
    """Renews the leases of this process and says news that waited. `run_once` is one heartbeat."""

    def __init__(self, url: str) -> None:
        self.redis: Redis = Redis.from_url(
            url,
            decode_responses=True,
            socket_timeout=_COMMAND_S,
            socket_connect_timeout=_COMMAND_S,
            socket_keepalive=True,
            # Once more at once, for a connection that a restart of Redis has left stale; never after a time-out.
            retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
        )
        self._say = self.redis.register_script(_SAY)
        self._renew = self.redis.register_script(_RENEW)
        self._close = self.redis.register_script(_CLOSE)
        self._lock = threading.Lock()
        self._attempts: set[Attempt] = set()
        self._closing: list[tuple[Attempt, str]] = []
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None
        self._away = False

    def take(self, attempt: Attempt, report: str) -> None:
        """Take the attempt's lease and say that it has started, in one step; waits while Redis is away.

        The attempt is `lost` afterwards if somebody else holds it, or if it has ended.
        """
        delay_s = 0.1
        while True:
            try:
                answer = self.say(attempt, report)
                break
            except AWAY as error:
                self.note(error)
            time.sleep(delay_s)
            delay_s = min(delay_s * 2, _PAUSE_S)
        if answer != attempt.held:
            attempt.lost = answer
            return
        self.watch(attempt)

    def watch(self, attempt: Attempt) -> None:
        """Renew the attempt's lease, if it has one, and carry its news from now on."""
        with self._lock:
            self._attempts.add(attempt)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="jobplane-leases", daemon=True)
                self._thread.start()

    def drop(self, attempt: Attempt) -> None:
        """Leave the attempt alone from now on."""
        with self._lock:
            self._attempts.discard(attempt)

    def close(self, attempt: Attempt, value: str) -> None:
        """Write the lease's last value, or give it back if that is empty; later, if Redis is away."""
        try:
            self._close(keys=[attempt.key], args=[attempt.held, value, int(LEASE_MEMORY_S * 1000)])
        except RedisError as error:
            self.note(error)
            with self._lock:
                self._closing.append((attempt, value))

    def say(self, attempt: Attempt, report: str) -> str:
        """Store and publish a report if the attempt may speak; the script's answer."""
        answer: str = self._say(
            keys=[attempt.key or attempt.result_key, attempt.result_key],
            args=[attempt.held, int(LEASE_S * 1000), report, attempt.expires_s],
        )
        self._away = False
        return answer

    def wake(self) -> None:
        """There is news that waits."""
        self._wake.set()

    def note(self, error: BaseException) -> None:
        """Redis did not answer; logged once until it does."""
        if not self._away:
            self._away = True
            log.warning("redis_away", error=f"{type(error).__name__}: {error}")

    def run_once(self) -> None:
        """One heartbeat: renew, notice what was lost, stop the bodies of the lost. Raises what Redis raises."""
        with self._lock:
            closing, self._closing = self._closing, []
        for attempt, value in closing:
            self.close(attempt, value)
        # Under the lock, so that a lease which is dropped now is not made again by us.
        with self._lock:
            leased = [attempt for attempt in self._attempts if attempt.key and attempt.lost is None]
            values: list[str] = (
                self._renew(
                    keys=[attempt.key for attempt in leased],
                    args=[int(LEASE_S * 1000), *(attempt.held for attempt in leased)],
                )
                if leased
                else []
            )
            everyone = list(self._attempts)
        self._away = False
        for attempt, value in zip(leased, values, strict=True):
            if value != attempt.held:
                attempt.lose(value)
        for attempt in everyone:
            attempt.interrupt()

    def _run(self) -> None:
        beat_time = time.monotonic() + HEARTBEAT_S
        while True:
            with self._lock:
                waiting = list(self._attempts)
            self._wake.wait(max(0.0, min([beat_time, *(each.news_time for each in waiting)]) - time.monotonic()))
            self._wake.clear()
            try:
                for attempt in waiting:
                    attempt.flush()
                if time.monotonic() >= beat_time:
                    beat_time = time.monotonic() + _PAUSE_S
                    self.run_once()
                    beat_time = time.monotonic() + HEARTBEAT_S
            except AWAY as error:
                self.note(error)
            except Exception:
                # Whatever it is, the other leases of this process must not end by it.
                log.exception("heartbeat_failed")


class _Signals:
    """Lets the heartbeat thread break into a blocking call of the main thread, where prefork and solo run bodies."""

    def __init__(self) -> None:
        self.attempt: Attempt | None = None

    def install(self, attempt: Attempt) -> None:
        if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGURG"):
            return
        present = signal.getsignal(signal.SIGURG)
        if present in {signal.SIG_DFL, signal.SIG_IGN}:
            signal.signal(signal.SIGURG, self._handle)
        elif present != self._handle:
            return  # the signal is somebody else's: the interrupt waits for the next step of the body
        self.attempt = attempt

    def remove(self, attempt: Attempt) -> None:
        if self.attempt is attempt:
            self.attempt = None

    def _handle(self, _signum: int, _frame: Any) -> None:
        attempt = self.attempt
        if attempt is not None and attempt._inside:
            attempt.check()


def _raise_in(ident: int, kind: type[BaseException] | None) -> None:
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(kind) if kind else None)


_signals = _Signals()
_keepers: dict[str, Keeper] = {}
_making = threading.Lock()


def keeper(url: str) -> Keeper:
    """This process's keeper of the leases in that Redis."""
    with _making:
        if url not in _keepers:
            _keepers[url] = Keeper(url)
        return _keepers[url]


def _forget() -> None:
    global _making
    _making = threading.Lock()
    _keepers.clear()
    _signals.attempt = None


# A child has neither its parent's threads nor a right to its sockets.
os.register_at_fork(after_in_child=_forget)
