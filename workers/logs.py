"""What a task says while it runs is kept with its run: log records of any logger, what it prints, warnings, and the
traceback of what it raises.

`capture` is entered around a body. Who speaks is told by a context variable, which coroutines inherit by themselves;
so that threads inherit it too, and a line is found whatever handlers its logger has, three methods of the standard
library are wrapped once a process captures: `Logger.callHandlers`, `Thread.start`, `ThreadPoolExecutor.submit`. Beside
them stand a `sys.stdout` and `sys.stderr` that pass on what they get. All lines also go where they always went.
"""

import logging
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, Token
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar
from uuid import UUID
from weakref import WeakKeyDictionary

from celery.exceptions import Ignore, Reject, Retry, SoftTimeLimitExceeded

from workers.log_stream import END_S, AttemptLog, stream
from workers.masks import Masker
from workers.protocol import HEADER, log_key

T = TypeVar("T")

#: The longest line that is kept whole, in bytes, and how much of a longer one is looked at for secrets.
LINE_LIMIT: Final = 16 * 1024
_LOOKED_AT: Final = LINE_LIMIT + 4 * 1024
#: How many printed lines of one body may be begun and not ended.
_PARTIALS: Final = 64

#: Colours and movements of a terminal, and what else cannot be shown.
_TERMINAL: Final = re.compile(r"\x1b\[[0-9;?]{0,32}[ -/]{0,4}[@-~]")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f]")
#: Loggers whose lines are about this worker and not about the task.
_OURS: Final = "jobplane.worker"
_PRINTED: Final = "celery.redirected"
_THREADS: Final = "jobplane-"

_formatter: Final = logging.Formatter()


class _Thread(threading.local):
    #: Whether this thread is inside a capture, whose own lines are nobody's.
    busy = False
    #: Whether it hands work to an executor, whose threads serve anybody.
    submitting = False


_thread = _Thread()


class _Partial:
    """A printed line that has not ended yet."""

    __slots__ = ("cut", "pieces", "size", "stamp")

    def __init__(self) -> None:
        self.stamp = _stamp(time.time())
        self.pieces: list[str] = []
        self.size = 0
        self.cut = 0

    def add(self, text: str) -> None:
        if "\r" in text or (self.pieces and self.pieces[-1].endswith("\r")):
            # As on a terminal: what is written after it covers what stood before.
            text = "".join([*self.pieces, text])
            shown = text.rstrip("\r")
            self.pieces, self.size = [], 0
            text = shown[shown.rfind("\r") + 1 :] + text[len(shown) : len(shown) + 1]
        room = _LOOKED_AT - self.size
        if len(text) > room:
            self.cut += len(text[room:].encode("utf-8", "backslashreplace"))
            text = text[:room]
        if text:
            self.pieces.append(text)
            self.size += len(text)


class TaskLog:
    """Makes whole, clean, masked lines of what one body says and appends them to its log."""

    def __init__(self, out: AttemptLog, level: int, masker: Masker) -> None:
        self.level = level
        self.out = out
        self._masker = masker
        self._lock = threading.RLock()
        #: By stream and thread.
        self._partials: dict[tuple[int, int], _Partial] = {}

    def record(self, record: logging.LogRecord) -> None:
        """A log record."""
        try:
            message = record.getMessage()
        except SoftTimeLimitExceeded:
            raise  # came by a signal, and is the body's
        except Exception:  # arguments that do not fit: logging itself complains about them on stderr
            message = f"{record.msg!r:.1000} % {record.args!r:.1000}"
        if record.name == _PRINTED:
            self.say(_stamp(record.created), "", message)
            return
        if record.exc_info and record.exc_info[0] is not None:
            message = f"{message}\n{record.exc_text or _formatter.formatException(record.exc_info)}"
        elif record.exc_text:
            message = f"{message}\n{record.exc_text}"
        if record.stack_info:
            message = f"{message}\n{record.stack_info}"
        self.say(_stamp(record.created), f"{record.levelname} {record.name}: ", message, once=True)

    def printed(self, key: int, text: str) -> None:
        """A piece of what is printed on one stream; whole lines of it go on."""
        place = (key, threading.get_ident())
        *whole, rest = text.split("\n")
        with self._lock:
            for line in whole:
                partial_line = self._partials.pop(place, None)
                if partial_line is None and "\r" not in line:
                    self.say(_stamp(time.time()), "", line)
                else:
                    partial_line = partial_line or _Partial()
                    partial_line.add(line)
                    self._end_line(partial_line)
            if rest:
                if place not in self._partials:
                    if len(self._partials) >= _PARTIALS:
                        self.end()
                    self._partials[place] = _Partial()
                self._partials[place].add(rest)

    def raised(self, name: str, error: BaseException) -> None:
        """What a body ended with, if that is not an answer."""
        if isinstance(error, Exception) and not isinstance(error, Retry | Ignore | Reject):
            text = "".join(traceback.format_exception(type(error), error, _of_the_task(error.__traceback__)))
            self.say(_stamp(time.time()), f"ERROR {name}: ", text, once=True)
        elif not isinstance(error, Ignore | Reject):
            self.say(_stamp(time.time()), f"WARNING {name}: ", f"{type(error).__name__}: {error}", once=True)

    def say(self, stamp: str, head: str, message: str, *, once: bool = False) -> None:
        """Lines of one message; with `once` time and head stand before the first alone."""
        if "\n" not in message:
            self.out.append(self._line(f"{stamp} ", f"{head}{message}"))
            return
        first, *lines = message.rstrip("\n").split("\n")
        made = [self._line(f"{stamp} ", f"{head}{first}")]
        size = len(made[0])
        for line in lines:
            if size > LINE_LIMIT:
                self.out.append(b"".join(made))
                made, size = [], 0
            made.append(self._line("" if once else f"{stamp} ", line))
            size += len(made[-1])
        self.out.append(b"".join(made))

    def end(self) -> None:
        """Lines that were not ended end now."""
        with self._lock:
            while self._partials:
                self._end_line(self._partials.pop(next(iter(self._partials))))

    def _end_line(self, line: _Partial) -> None:
        text = "".join(line.pieces)
        if text.endswith("\r"):
            text = text.rstrip("\r")
        self.out.append(self._line(f"{line.stamp} ", text, line.cut))

    def _line(self, stamp: str, text: str, cut: int = 0) -> bytes:
        if len(text) > _LOOKED_AT:
            cut += len(text[_LOOKED_AT:].encode("utf-8", "backslashreplace"))
            text = text[:_LOOKED_AT]
        if not text.isprintable():
            text = _CONTROL.sub(_escaped, _TERMINAL.sub("", text.removesuffix("\r")))
        data = self._masker.line(text).encode("utf-8", "backslashreplace")
        if cut or len(data) > LINE_LIMIT:
            kept = data[:LINE_LIMIT].decode("utf-8", "ignore").encode()
            data = b"%b [\xe2\x80\xa6 %d bytes cut]" % (kept, cut + len(data) - len(kept))
        return b"%b%b\n" % (stamp.encode(), data)


@dataclass(frozen=True, slots=True)
class How:
    """Into which Redis, from which level on, and what is masked beside the known secrets."""

    url: str
    level: int
    masks: tuple[re.Pattern[str], ...]


class capture:
    """Keep what the calling context says until it is left, as the log of an attempt; never an error of the body's.

    Leaving waits at most `END_S` until all of it is in Redis, and not at all if nothing was said.
    """

    def __init__(self, how: How, run_id: str, attempt: int, name: str) -> None:
        out = AttemptLog(stream(how.url), log_key(run_id, attempt), f"{run_id}:{attempt}")
        self._log = TaskLog(out, how.level, Masker(how.masks))
        self._name = name
        self._token: Token[TaskLog | None] | None = None

    def __enter__(self) -> Self:
        _install()
        self._token = _current.set(self._log)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._token is not None:
            _current.reset(self._token)
            self._token = None
        try:
            self._end(error)
        except BaseException:
            # An interrupt of the body that comes late. What was said goes all the same.
            self._log.out.close()
            raise

    def _end(self, error: BaseException | None) -> None:
        try:
            self._log.end()
            if error is not None:
                self._log.raised(self._name, error)
        except Exception:
            logging.getLogger(_OURS).exception("end_of_log_failed")
        if self._log.out.close():
            self._log.out.done.wait(END_S)


def keep(task: Any, request: Any, body: Callable[[], T]) -> T:
    """Run the body of a task and keep what it says with its run, if it is one of the plane and logs are on."""
    header = getattr(request, HEADER, None)
    if header is None:
        return body()
    how = _how.get(task.app, _UNKNOWN)
    if how is _UNKNOWN:
        how = _how[task.app] = _configured(task.app.conf)
    if how is None:
        return body()
    with capture(how, str(UUID(header["run_id"])), int(header["attempt"]), task.name):
        return body()


def _configured(conf: Any) -> How | None:
    level = conf.get("jobplane_log_level")
    if level is None:
        return None
    levels = logging.getLevelNamesMapping()
    return How(conf.result_backend, levels[level], tuple(map(re.compile, conf.jobplane_log_masks)))


_UNKNOWN: Final[Any] = object()
#: Read once for each app, for Celery's configuration takes its time.
_how: WeakKeyDictionary[Any, How | None] = WeakKeyDictionary()

_current: ContextVar[TaskLog | None] = ContextVar("jobplane_log", default=None)


def _speaking() -> TaskLog | None:
    """Whose words the calling thread or coroutine says."""
    found = _current.get()
    if found is None:
        found = getattr(threading.current_thread(), "_jobplane_log", None)
    return found if found is None or not found.out.closed else None


class _Stream:
    """Standard output or error, which passes on what it gets and keeps what a task says."""

    def __init__(self, stream_: Any) -> None:
        self._stream = stream_

    def write(self, text: Any) -> int:
        if not _thread.busy:
            speaking = _speaking()
            if speaking is not None:
                _thread.busy = True
                try:
                    try:
                        raw = isinstance(text, bytes | bytearray)
                        speaking.printed(id(self), text.decode("utf-8", "backslashreplace") if raw else str(text))
                    except SoftTimeLimitExceeded:
                        raise  # came by a signal, and is the body's
                    except Exception:  # noqa: S110 - what it cannot take is the stream's to complain about
                        pass
                    # Celery's own redirection makes a record of it, and handlers write that here again.
                    return self._pass_on(text)
                finally:
                    _thread.busy = False
        return self._pass_on(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def _pass_on(self, text: Any) -> int:
        try:
            return int(self._stream.write(text) or 0)
        except UnicodeEncodeError:
            if _speaking() is None:
                raise
            encoding = getattr(self._stream, "encoding", None) or "ascii"
            return int(self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding)) or 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __iter__(self) -> Any:
        return iter(self._stream)


_installing = threading.Lock()
_installed = False


def _install() -> None:
    global _installed
    if not isinstance(sys.stdout, _Stream) and sys.stdout is not None:
        sys.stdout = _Stream(sys.stdout)
    if not isinstance(sys.stderr, _Stream) and sys.stderr is not None:
        sys.stderr = _Stream(sys.stderr)
    if _installed:
        return
    with _installing:
        if not _installed:
            _installed = True
            setattr(logging.Logger, "callHandlers", _call_handlers(logging.Logger.callHandlers))  # noqa: B010
            setattr(threading.Thread, "start", _start(threading.Thread.start))  # noqa: B010
            setattr(ThreadPoolExecutor, "submit", _submit(ThreadPoolExecutor.submit))  # noqa: B010


def _call_handlers(inner: Callable[..., None]) -> Callable[..., None]:
    def call_handlers(self: logging.Logger, record: logging.LogRecord) -> None:
        if _thread.busy:
            return inner(self, record)
        speaking = _speaking()
        if speaking is None:
            return inner(self, record)
        _thread.busy = True  # for a handler may write to standard error
        try:
            if record.levelno >= speaking.level and record.name != _OURS:
                try:
                    speaking.record(record)
                except SoftTimeLimitExceeded:
                    raise  # came by a signal, and is the body's
                except Exception as error:
                    speaking.say(_stamp(time.time()), "WARNING jobplane: ", f"a line was lost: {type(error).__name__}")
            return inner(self, record)
        finally:
            _thread.busy = False

    return call_handlers


def _start(inner: Callable[..., None]) -> Callable[..., None]:
    def start(self: threading.Thread) -> None:
        speaking = _speaking()
        if speaking is not None and not _thread.submitting and not self.name.startswith(_THREADS):
            setattr(self, "_jobplane_log", speaking)  # noqa: B010
        inner(self)

    return start


def _submit(inner: Callable[..., Future[Any]]) -> Callable[..., Future[Any]]:
    def submit(self: ThreadPoolExecutor, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        speaking = _speaking()
        if speaking is None:
            return inner(self, fn, *args, **kwargs)
        _thread.submitting = True
        try:
            return inner(self, partial(_said_by, speaking, fn), *args, **kwargs)
        finally:
            _thread.submitting = False

    return submit


def _said_by(speaking: TaskLog, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    token = _current.set(speaking)
    try:
        return call(*args, **kwargs)
    finally:
        _current.reset(token)


_second = (0, "")


def _stamp(at: float) -> str:
    """A Unix time as `2026-11-22T21:01:42.578Z`."""
    global _second
    whole = int(at)
    known, text = _second
    if known != whole:
        text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole))
        _second = (whole, text)
    return f"{text}.{int((at - whole) * 1000):03d}Z"


def _escaped(found: re.Match[str]) -> str:
    return f"\\x{ord(found[0]):02x}"


def _of_the_task(trace: TracebackType | None) -> TracebackType | None:
    """The part of a traceback that begins at the task's own code."""
    found = trace
    while found is not None:
        name = found.tb_frame.f_globals.get("__name__", "")
        if name.partition(".")[0] != "workers" or name.startswith("workers.tasks"):
            return found
        found = found.tb_next
    return trace


def _forget() -> None:
    # A child that a body forks has nobody who sends what it says.
    global _installing
    _installing = threading.Lock()
    _current.set(None)
    _thread.busy = False
    threading.current_thread().__dict__.pop("_jobplane_log", None)


os.register_at_fork(after_in_child=_forget)
