"""Keeps the leases of a process alive, and carries what waits to be said.

One thread per process, made late: in the child after the fork, with a Redis client of its own.
"""

import os
import threading
import time
from typing import TYPE_CHECKING, Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from workers.log import log
from workers.protocol import FENCE_S, HEARTBEAT_S, LEASE_MEMORY_S, LEASE_S

if TYPE_CHECKING:
    from workers.lease import Attempt

#: What "Redis is away" looks like. Anything else that it answers is an error of ours.
AWAY: Final = (RedisConnectionError, RedisTimeoutError, OutOfMemoryError, ReadOnlyError, OSError)
#: So long after a failed try is Redis left alone, at most.
PAUSE_S: Final = 1.0
#: Longest that one command may hold up a body.
_COMMAND_S: Final = 2.0
#: How long a body waits for its lease before its message is given back: by then this worker takes in no other.
BEGIN_S: Final = 15.0
#: What an attempt lost its lease to, if nobody else has it: then its message comes again.
UNRENEWED: Final = "not renewed in time"
STOPPED: Final = "the worker is being stopped"
HANDED_BACK: Final = frozenset({UNRENEWED, STOPPED})

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


class Keeper:
    """Renews the leases of this process and says news that waited. `run_once` is one heartbeat.

    With `fence_s`, a lease that could not be renewed for so long is given up: its body ends.
    """

    def __init__(self, url: str, fence_s: float | None = FENCE_S) -> None:
        self._fence_s = fence_s
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

    def take(self, attempt: "Attempt", report: str) -> None:
        """Take the attempt's lease and say that it has started, in one step; waits a while if Redis is away.

        The attempt is `lost` afterwards if somebody else holds it, if it has ended, if Redis was away for too long, or
        if the worker is being stopped.
        """
        delay_s = 0.1
        give_up_time = time.monotonic() + BEGIN_S
        while True:
            if _given_back.is_set():
                attempt.lose(STOPPED)
                return
            try:
                answer = self.say(attempt, report)
                break
            except AWAY as error:
                self.note(error)
                if time.monotonic() > give_up_time:
                    attempt.lose(UNRENEWED)
                    return
            time.sleep(delay_s)
            delay_s = min(delay_s * 2, PAUSE_S)
        if answer != attempt.held:
            attempt.lost = answer
            return
        self.watch(attempt)
        if _given_back.is_set():
            attempt.lose(STOPPED)

    def watch(self, attempt: "Attempt") -> None:
        """Renew the attempt's lease, if it has one, and carry its news from now on."""
        with self._lock:
            self._attempts.add(attempt)
            self._start()

    def drop(self, attempt: "Attempt") -> None:
        """Leave the attempt alone from now on."""
        with self._lock:
            self._attempts.discard(attempt)

    def close(self, attempt: "Attempt", value: str) -> None:
        """Write the lease's last value, or give it back if that is empty; later, if Redis is away."""
        try:
            self._close(keys=[attempt.key], args=[attempt.held, value, int(LEASE_MEMORY_S * 1000)])
        except RedisError as error:
            self.note(error)
            with self._lock:
                self._closing.append((attempt, value))
                self._start()

    def say(self, attempt: "Attempt", report: str) -> str:
        """Store and publish a report if the attempt may speak; the script's answer."""
        sent_at = time.monotonic()
        answer: str = self._say(
            keys=[attempt.key or attempt.result_key, attempt.result_key],
            args=[attempt.held, int(LEASE_S * 1000), report, attempt.expires_s],
        )
        self._away = False
        if answer == attempt.held:
            attempt.renewed_at = sent_at
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
            sent_at = time.monotonic()
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
            if value == attempt.held:
                attempt.renewed_at = sent_at
            else:
                attempt.lose(value)
        for attempt in everyone:
            attempt.interrupt()

    def give_back(self) -> None:
        """End every body that holds a lease: the worker is being stopped."""
        for attempt in self._leased():
            attempt.give_back()

    def abandon(self) -> None:
        """Give the leases of the bodies back that did not end. The process must end with this."""
        for attempt in self._leased():
            attempt.end(finished=False)

    def fence(self) -> None:
        """End the bodies whose lease could not be renewed in time: it may be somebody else's soon."""
        if self._fence_s is None:
            return
        for attempt in self._leased():
            if time.monotonic() - attempt.renewed_at >= self._fence_s:
                attempt.lose(UNRENEWED)
            attempt.interrupt()

    def _leased(self) -> list["Attempt"]:
        with self._lock:
            return [attempt for attempt in self._attempts if attempt.key]

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="jobplane-leases", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        beat_time = time.monotonic() + HEARTBEAT_S
        while True:
            with self._lock:
                waiting = sorted(self._attempts, key=lambda each: each.news_time)
            self._wake.wait(max(0.0, min([beat_time, *(each.news_time for each in waiting)]) - time.monotonic()))
            self._wake.clear()
            try:
                for attempt in waiting:
                    attempt.flush()
                    if time.monotonic() >= beat_time:
                        break  # each may wait for a time-out, and the leases for one of them at most
                if time.monotonic() >= beat_time:
                    beat_time = time.monotonic() + PAUSE_S
                    self.run_once()
                    beat_time = time.monotonic() + HEARTBEAT_S
            except AWAY as error:
                self.note(error)
                self.fence()
            except Exception:
                # Whatever it is, the other leases of this process must not end by it.
                log.exception("heartbeat_failed")


_keepers: dict[str, Keeper] = {}
_making = threading.Lock()
_given_back = threading.Event()


def keeper(url: str, fence_s: float | None = FENCE_S) -> Keeper:
    """This process's keeper of the leases in that Redis."""
    with _making:
        if url not in _keepers:
            _keepers[url] = Keeper(url, fence_s)
        return _keepers[url]


def give_back_all() -> None:
    """End every body of this process that holds a lease, and let its message come again; and begin none from now on.

    What is handed back may come to this worker again, before its event loop has turned.
    """
    _given_back.set()
    for each in list(_keepers.values()):
        each.give_back()


def abandon_all() -> None:
    """Give back what bodies hold that did not end. The process must end with this."""
    for each in list(_keepers.values()):
        each.abandon()


def _forget() -> None:
    global _making
    _making = threading.Lock()
    _keepers.clear()


# A child has neither its parent's threads nor a right to its sockets.
os.register_at_fork(after_in_child=_forget)
