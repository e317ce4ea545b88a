"""How far a body is: `progress`, `track` and `step`.

All three may be called as often as you like: a call costs about a microsecond, at most ten a second are sent, and the
first and the newest always are. Where no worker runs the code they do nothing. They nest: what runs inside an item of
`track`, or inside a `step`, is the share of the whole that the item or step has, so one bar goes from 0 to 100 once.
"""

import numbers
import operator
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator
from contextvars import ContextVar
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar, overload

T = TypeVar("T")

#: At most this often does the newest progress of one call go out.
NEWS_S: Final = 0.1

_PLAIN: Final = frozenset({int, float})
_JOINT: Final = " · "

#: What is said: made when it is sent, not when it is told.
News = Callable[[], Any]


class Call:
    """One call of a body by a worker, and what `tell` makes of its news; `context` is what the context yielded."""

    __slots__ = ("_level", "_outer", "context", "encode", "tell")

    def __init__(self, tell: Callable[[News], None], encode: Callable[[dict[str, Any]], Any]) -> None:
        self.tell = tell
        self.encode = encode
        self.context: Any = None
        self._level = _Level()
        self._outer: Place | None = None

    def __enter__(self) -> Self:
        self._outer = _here()
        _place.set(Place(self, None, self._level))
        return self

    def __exit__(self, *_: object) -> None:
        self._level.over = True  # also for what the body left behind: a coroutine, a thread
        _place.set(self._outer)


class Voice:
    """Says news where no lease is: through `send`, the first at once, then ten a second, the newest at `finish`."""

    def __init__(self, send: Callable[[Any], None]) -> None:
        self._send = send
        self._next_time = 0.0
        self._waiting: News | None = None

    def tell(self, news: News) -> None:
        now = time.monotonic()
        if now < self._next_time:
            self._waiting = news
            return
        self._waiting, self._next_time = None, now + NEWS_S
        self._send(news())

    def finish(self) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            self._send(waiting())


class _Level:
    """Whether a call, a `track` or a `step` is over; shared by all places in it."""

    __slots__ = ("over",)

    def __init__(self) -> None:
        self.over = False


class Place:
    """Where in a body the running code is; this one is the body as a whole."""

    __slots__ = ("call", "level", "message", "outer", "taken")

    def __init__(self, call: Call, outer: "Place | None", level: _Level, message: str | None = None) -> None:
        self.call = call
        self.outer = outer
        self.level = level
        self.message = message
        #: The share of this place that its steps have so far.
        self.taken = 0.0

    def overall(self, current: float, total: float | None) -> tuple[float, float | None]:
        """A position in this place as one of the whole body."""
        return current, total


class _Item(Place):
    """One item of a `track`; called, the news that the ones before it are done."""

    __slots__ = ("done", "total")

    def __init__(self, outer: Place, level: _Level, done: int, total: float | None, message: str | None) -> None:
        # As the class above does, but in one call, for there may be millions.
        self.call = outer.call
        self.outer = outer
        self.level = level
        self.message = message
        self.taken = 0.0
        self.done = done
        self.total = total

    def __call__(self) -> Any:
        assert self.outer is not None
        return _encoded(self.outer, self.done, self.total, self.message, {})

    def overall(self, current: float, total: float | None) -> tuple[float, float | None]:
        assert self.outer is not None
        share = _share(current, total)
        return self.outer.overall(round(self.done + share, 4) if share else self.done, self.total)


class _Part(Place):
    __slots__ = ("share", "start")

    def __init__(self, outer: Place, message: str, start: float, share: float) -> None:
        super().__init__(outer.call, outer, _Level(), message)
        self.start = start
        self.share = share

    def overall(self, current: float, total: float | None) -> tuple[float, float | None]:
        assert self.outer is not None
        return self.outer.overall(round(100 * (self.start + self.share * _share(current, total)), 2), 100)


_place: ContextVar[Place | None] = ContextVar("jobplane_place", default=None)


def current_call() -> Call | None:
    """The call of a body that the running code belongs to."""
    place = _here()
    return None if place is None else place.call


def progress(current: float, total: float | None = None, message: str | None = None, **extra: Any) -> None:
    """Tell how far the running task is: state PROGRESS with the meta `{"current", "total", "message", **extra}`.

    While Redis is away the newest waits and the body goes on. Raises LeaseLost or Cancelled if the attempt is not
    ours any more, TypeError if `current` or `total` is no number.
    """
    if type(current) not in _PLAIN:
        current = _number("current", current)
    if total is not None and type(total) not in _PLAIN:
        total = _number("total", total)
    place = _here()
    if place is not None:
        place.call.tell(partial(_encoded, place, current, total, message, extra))


@overload
def track(iterable: Iterable[T], total: float | None = None, message: str | None = None) -> Iterator[T]: ...
@overload
def track(iterable: AsyncIterable[T], total: float | None = None, message: str | None = None) -> AsyncIterator[T]: ...
def track(
    iterable: Iterable[T] | AsyncIterable[T], total: float | None = None, message: str | None = None
) -> Iterator[T] | AsyncIterator[T]:
    """The items of `iterable`, and `progress` of how many of them are done.

    `total` is its length where it has one. Takes an asynchronous iterable for `async for` as well.
    """
    if total is None:
        total = _length(iterable)
    elif type(total) not in _PLAIN:
        total = _number("total", total)
    if isinstance(iterable, AsyncIterable):
        return _AsyncTrack(iterable, total, message)
    return _track(iterable, total, message)


class step:
    """`with step("merge", 0.7):` is a part of the task that takes that share of what is around it (1 is all of it).

    Around it is the task, an item of `track`, or another step. Steps follow each other; what runs inside reports its
    own `progress` from 0 to its own total.
    """

    __slots__ = ("_message", "_outer", "_part", "_share")

    def __init__(self, message: str, share: float) -> None:
        if not 0 < _number("share", share) <= 1:
            raise ValueError(f"share: must be more than 0 and at most 1, not {share}")
        self._message = message
        self._share = share
        self._outer: Place | None = None
        self._part: _Part | None = None

    def __enter__(self) -> Self:
        outer = self._outer = _here()
        if outer is not None:
            start = min(outer.taken, 1.0)
            share = min(self._share, 1.0 - start)
            outer.taken = start + share
            part = self._part = _Part(outer, self._message, start, share)
            _place.set(part)
            part.call.tell(partial(_encoded, part, 0, 1, None, {}))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        part = self._part
        if part is not None:
            part.level.over = True
            _place.set(self._outer)
            if kind is None:
                part.call.tell(partial(_encoded, part, 1, 1, None, {}))


def _track(iterable: Iterable[T], total: float | None, message: str | None) -> Iterator[T]:
    outer = _here()
    if outer is None:
        yield from iterable
        return
    level, done, tell = _Level(), 0, outer.call.tell
    try:
        for item in iterable:
            place = _Item(outer, level, done, total, message)
            tell(place)
            _place.set(place)
            yield item
            done += 1
    finally:
        level.over = True  # the body may have left the loop, in which case nobody sets the place back
    _place.set(outer)
    tell(partial(_encoded, outer, done, done, message, {}))


class _AsyncTrack(AsyncIterator[T]):
    """As `_track`. Not an asynchronous generator, for one that is left early is ended late, and in another context."""

    def __init__(self, iterable: AsyncIterable[T], total: float | None, message: str | None) -> None:
        self._items = aiter(iterable)
        self._total = total
        self._message = message
        self._level = _Level()
        self._outer = _here()
        self._done = -1

    async def __anext__(self) -> T:
        outer = self._outer
        self._done += 1
        if outer is None:
            return await anext(self._items)
        try:
            item = await anext(self._items)
        except BaseException as error:
            self._level.over = True
            if isinstance(error, StopAsyncIteration):
                _place.set(outer)
                outer.call.tell(partial(_encoded, outer, self._done, self._done, self._message, {}))
            raise
        place = _Item(outer, self._level, self._done, self._total, self._message)
        outer.call.tell(place)
        _place.set(place)
        return item

    def __del__(self) -> None:
        self._level.over = True


def _here() -> Place | None:
    place = _place.get()
    while place is not None and place.level.over:
        place = place.outer
    return place


def _encoded(place: Place, current: float, total: float | None, message: str | None, extra: dict[str, Any]) -> Any:
    """What the plane hears of a position: the whole body's, and the messages from the outermost to the innermost."""
    if place.outer is not None:
        words = [] if message is None else [message]
        current, total = place.overall(current, total)
        outer: Place | None = place
        while outer is not None:
            if outer.message is not None:
                words.append(outer.message)
            outer = outer.outer
        message = _JOINT.join(reversed(words)) if words else None
    meta: dict[str, Any] = {"current": current}
    if total is not None:
        meta["total"] = total
    if message is not None:
        meta["message"] = message
    meta.update(extra)
    return place.call.encode(meta)


def _share(current: float, total: float | None) -> float:
    return min(max(current / total, 0.0), 1.0) if total is not None and total > 0 else 0.0


def _length(iterable: object) -> float | None:
    try:
        return len(iterable)  # type: ignore[arg-type]
    except (TypeError, NotImplementedError):
        return None


def _number(name: str, value: object) -> float:
    """Any real number as an int or float, for numpy's and others are not JSON."""
    if isinstance(value, bool):
        raise TypeError(f"{name}: must be a number, not bool")
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        if isinstance(value, numbers.Real):
            return float(value)
    raise TypeError(f"{name}: must be a number, not {type(value).__name__}")
