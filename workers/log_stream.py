"""Carries what attempts write into their Redis streams; one thread per process, made late.

A body only appends to memory. What Redis cannot take waits there, the first `LOG_HEAD` bytes of an attempt and the
newest `LOG_TAIL`; what falls out between is a jump of the offsets.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import OutOfMemoryError
from redis.retry import Retry

from workers.keeper import AWAY
from workers.log import log
from workers.protocol import LOG_HEAD, LOG_TAIL, LOGS_KEY

#: How long a line waits at most, and how many bytes of one attempt go at once.
FLUSH_S: Final = 0.25
ENTRY_BYTES: Final = 64 * 1024
#: How long the end of a body waits until all of it is in Redis.
END_S: Final = 1.0
#: So long after a second failed try is Redis left alone.
_PAUSE_S: Final = 0.5
#: How long a stream lives that nobody reads, after its last entry.
_EXPIRE_S: Final = 2 * 24 * 3600
#: Entries of one attempt in one round.
_ENTRIES: Final = 4
#: How many ended attempts wait for Redis; the oldest are given up.
_ENDED: Final = 64
#: How many entries of an earlier delivery are looked at, for those beyond the head.
_EARLIER: Final = 256
#: Until a body ends. Making one of its own for each body would be half of what a silent one costs.
_NOBODY_WAITS: Final = threading.Event()


@dataclass(slots=True)
class Entry:
    """One entry of the stream: bytes from an offset on, and whether they are the body's last."""

    offset: int
    text: bytes
    last: bool


class AttemptLog:
    """What one delivery of an attempt writes and has not sent yet. `append` and `close` are the body's, the rest the
    stream's."""

    def __init__(self, stream: "LogStream", key: str, member: str) -> None:
        self.key = key
        self.member = member
        #: Set when everything is in Redis, or given up, after `close`.
        self.done = _NOBODY_WAITS
        #: What is on its way, oldest first.
        self.flight: list[Entry] = []
        #: Whether the end of the stream in Redis is known, and at which offset this delivery began.
        self.placed = False
        self._base: int | None = None
        self._stream = stream
        # A handler of a signal may log while its thread appends.
        self._lock = threading.RLock()
        self._head = bytearray()
        self._head_start = 0
        self._head_limit = LOG_HEAD
        #: Offset and bytes of the newest beyond the head; offsets in here count from this delivery's first byte.
        self._tail: deque[tuple[int, bytes]] = deque()
        self._tail_bytes = 0
        self._written = 0
        self._closed = False
        self._waiting = False
        #: Ids and sizes of the entries beyond the head that are in Redis.
        self._sent_tail: deque[tuple[bytes, int]] = deque()

    @property
    def closed(self) -> bool:
        """Whether the body has ended: what comes now is nobody's."""
        return self._closed

    def append(self, text: bytes) -> None:
        """Add whole lines."""
        with self._lock:
            if self._closed:
                return
            offset = self._written
            self._written = offset + len(text)
            if offset < self._head_limit:
                self._head += text
                hurry = len(self._head) >= ENTRY_BYTES > len(self._head) - len(text)
            else:
                hurry = False
                self._tail.append((offset, text))
                self._tail_bytes += len(text)
                while self._tail_bytes - len(self._tail[0][1]) >= LOG_TAIL:
                    self._tail_bytes -= len(self._tail.popleft()[1])
            first, self._waiting = not self._waiting, True
        if first or hurry:
            self._stream.note(self, hurry=hurry)

    def close(self) -> bool:
        """The body has ended; whether there is anything to be sent."""
        with self._lock:
            if not self._written:
                self._closed = True
                return False
            if not self._closed:
                self.done = threading.Event()
            self._closed = True
            self._waiting = True
        self._stream.note(self, hurry=True)
        return True

    def place(self, earlier: list[tuple[bytes, int, int]]) -> None:
        """Learn what is in the stream, newest first: id, offset and size of each entry."""
        end = max((offset + size for _, offset, size in earlier), default=0)
        with self._lock:
            self.placed = True
            if self._base is None:
                self._base = end
                self._head_limit = max(LOG_HEAD - end, 0)
                self._sent_tail.extend((id_, size) for id_, offset, size in reversed(earlier) if offset >= LOG_HEAD)
                self._move_overflow()
            else:
                # Without what was sent before an answer was lost.
                last = any(entry.last for entry in self.flight)
                self.flight = [entry for entry in self.flight if entry.offset + len(entry.text) > end]
                if last and not self.flight:
                    self.flight = [Entry(end, b"", last=True)]

    def take(self) -> list[Entry]:
        """What is to be sent now: what was not sent the last time, else the next entries."""
        with self._lock:
            self._waiting = False
            if not self.flight:
                while self._head and len(self.flight) < _ENTRIES:
                    size = len(self._head)
                    if size > ENTRY_BYTES:
                        size = self._head.rfind(b"\n", 0, ENTRY_BYTES) + 1
                    self._take(self._head_start, bytes(self._head[:size]))
                    del self._head[:size]
                    self._head_start += size
                if not self._head and self._tail:
                    self._take(self._tail[0][0], b"".join(text for _, text in self._tail))
                    self._tail.clear()
                    self._tail_bytes = 0
                if self._closed and not self._head:
                    if not self.flight:
                        self._take(self._written, b"")
                    self.flight[-1].last = True
            return self.flight

    def to_delete(self) -> list[bytes]:
        """The entries beyond the head that nobody needs once the flight has arrived."""
        gone = []
        held = sum(size for _, size in self._sent_tail)
        held += sum(len(entry.text) for entry in self.flight if entry.offset >= LOG_HEAD)
        while self._sent_tail and held - self._sent_tail[0][1] >= LOG_TAIL:
            id_, size = self._sent_tail.popleft()
            held -= size
            gone.append(id_)
        return gone

    def arrived(self, ids: Iterable[Any]) -> bool:
        """The flight is over: an id for each entry, or the error that Redis dropped it with; whether there is more."""
        last = False
        for entry, id_ in zip(self.flight, ids, strict=True):
            last = last or entry.last
            if entry.offset >= LOG_HEAD and entry.text and isinstance(id_, bytes):
                self._sent_tail.append((id_, len(entry.text)))
        self.flight = []
        if last:
            self.done.set()
        with self._lock:
            return not last and bool(self._head or self._tail or self._closed)

    def _take(self, offset: int, text: bytes) -> None:
        self.flight.append(Entry((self._base or 0) + offset, text, last=False))

    def _move_overflow(self) -> None:
        """An earlier delivery wrote so much that part of our head lies beyond the attempt's."""
        if len(self._head) <= self._head_limit:
            return
        kept = self._head.find(b"\n", self._head_limit - 1) + 1 if self._head_limit else 0
        beyond = bytes(self._head[kept:])
        del self._head[kept:]
        cut = max(len(beyond) - max(LOG_TAIL - self._tail_bytes, 0), 0)
        if cut:
            cut = beyond.find(b"\n", cut - 1) + 1
        if beyond[cut:]:
            self._tail.appendleft((kept + cut, beyond[cut:]))
            self._tail_bytes += len(beyond) - cut


class LogStream:
    """Sends what the attempts of this process write. `run_once` is one round over all of them."""

    def __init__(self, url: str) -> None:
        # An entry that is sent twice stands there twice: never again by itself.
        self._redis: Redis = Redis.from_url(
            url, socket_timeout=5, socket_connect_timeout=2, socket_keepalive=True, retry=Retry(NoBackoff(), 0)
        )
        self._lock = threading.RLock()
        self._logs: dict[AttemptLog, None] = {}
        self._something = threading.Event()
        self._hurry = threading.Event()
        self._thread: threading.Thread | None = None
        self._away = False

    def note(self, attempt: AttemptLog, *, hurry: bool) -> None:
        """The attempt has something to send, soon or now."""
        with self._lock:
            self._logs[attempt] = None
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="jobplane-logs", daemon=True)
                self._thread.start()
        self._something.set()
        if hurry:
            self._hurry.set()

    def run_once(self) -> bool:
        """Send what waits; whether there may be more at once. Raises what Redis being away raises."""
        with self._lock:
            self._something.clear()
            logs, self._logs = list(self._logs), {}
        try:
            return self._send(logs)
        except BaseException:
            self._again(logs)
            raise

    def _send(self, logs: list[AttemptLog]) -> bool:
        self._look([each for each in logs if not each.placed])
        now = time.time()
        with self._redis.pipeline(transaction=False) as pipe:
            for each in logs:
                flight = each.take()
                for entry in flight:
                    pipe.xadd(each.key, {"o": entry.offset, "t": entry.text, **({"e": "1"} if entry.last else {})})
                gone = each.to_delete()
                if gone:
                    pipe.xdel(each.key, *gone)
                if flight:
                    pipe.expire(each.key, _EXPIRE_S)
                    pipe.zadd(LOGS_KEY, {each.member: now})
            counts = [len(each.flight) for each in logs]
            plan = [command[0][0] for command in pipe.command_stack]
            answers = pipe.execute(raise_on_error=False) if plan else []
        added = [answer for command, answer in zip(plan, answers, strict=True) if command == "XADD"]
        for error in answers:
            if isinstance(error, AWAY) and not isinstance(error, OutOfMemoryError):
                raise error
        dropped = next((answer for answer in added if isinstance(answer, Exception)), None)
        self._note_away(dropped)
        more = False
        for each, count in zip(logs, counts, strict=True):
            ids, added = added[:count], added[count:]
            if each.arrived(ids):
                more = True
                self._again([each])
        return more

    def _look(self, logs: list[AttemptLog]) -> None:
        """Learn where the streams of these end."""
        if not logs:
            return
        with self._redis.pipeline(transaction=False) as pipe:
            for each in logs:
                pipe.xrevrange(each.key, count=1)
            lasts = pipe.execute(raise_on_error=False)
        for each, last in zip(logs, lasts, strict=True):
            if isinstance(last, Exception):
                raise last
            found = _places(last)
            if found and found[0][1] >= LOG_HEAD:
                found = _places(self._redis.xrevrange(each.key, count=_EARLIER))
            each.place(found)

    def _again(self, logs: list[AttemptLog]) -> None:
        with self._lock:
            self._logs = dict.fromkeys([*logs, *self._logs])
            ended = [each for each in self._logs if each.closed]
            for each in ended[:-_ENDED]:
                del self._logs[each]
                each.done.set()
            self._something.set()

    def _note_away(self, error: BaseException | None) -> None:
        if error is not None and not self._away:
            log.warning("logs_not_sent", error=f"{type(error).__name__}: {error}")
        self._away = error is not None

    def _run(self) -> None:
        failed = False
        while True:
            self._something.wait()
            self._hurry.wait(FLUSH_S)
            self._hurry.clear()
            try:
                if self.run_once():
                    self._hurry.set()
                failed = False
            except AWAY as error:
                # What was sent is looked up before anything is sent again.
                with self._lock:
                    for each in self._logs:
                        each.placed = False
                if failed:
                    self._note_away(error)
                    time.sleep(_PAUSE_S)
                else:
                    self._hurry.set()  # perhaps a connection that Redis has closed meanwhile
                failed = True
            except Exception:
                # Whatever it is, it would come again: these logs are lost, the next ones are not.
                log.exception("sending_logs_failed")
                with self._lock:
                    lost, self._logs = list(self._logs), {}
                for each in lost:
                    each.done.set()


def _places(entries: Any) -> list[tuple[bytes, int, int]]:
    return [(id_, int(fields.get(b"o", 0)), len(fields.get(b"t", b""))) for id_, fields in entries]


_streams: dict[str, LogStream] = {}
_making = threading.Lock()


def stream(url: str) -> LogStream:
    """This process's way into that Redis."""
    with _making:
        if url not in _streams:
            _streams[url] = LogStream(url)
        return _streams[url]


def _forget() -> None:
    global _making
    _making = threading.Lock()
    _streams.clear()


# A child has neither its parent's threads nor a right to its sockets.
os.register_at_fork(after_in_child=_forget)
