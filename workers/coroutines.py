"""Runs coroutines on one event loop per process, while the thread of a pool's slot waits for each.

The loop has a thread of its own, made late: in the child, after the fork. It is asyncio's own, for uvloop and the
children of a prefork pool both want the process's signals. What a coroutine and its own tasks see as "this thread"
through `ident` is the slot that waits for them, and so Celery's request and current task are theirs.
"""

import asyncio
import contextlib
import contextvars
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent import futures
from typing import Any, Final, TypeVar

from celery.exceptions import SoftTimeLimitExceeded
from celery.utils.threads import get_ident

from workers.log import log

T = TypeVar("T")

#: How long a coroutine that is stopped may clean up before its slot goes on without it.
CLEAN_UP_S: Final = 5.0

#: How a slot tells others to stop what it waits for: Attempt.elsewhere.
Elsewhere = Callable[[Callable[[], None]], contextlib.AbstractContextManager[None]]


class CoroutineCancelled(Exception):
    """The body's coroutine was cancelled, and not by the worker."""


class _Slot:
    """The thread that waits for a coroutine; nobody's once it has gone on."""

    __slots__ = ("ident",)

    def __init__(self) -> None:
        self.ident: Any = ident()


_slot: contextvars.ContextVar[_Slot | None] = contextvars.ContextVar("jobplane_slot", default=None)


def ident() -> Any:
    """What Celery knows this thread by; in a coroutine, what it knows the thread by that waits for it."""
    slot = _slot.get()
    return get_ident() if slot is None else slot.ident


def brought_here(context: contextvars.Context) -> contextvars.Context:
    """A copy of a coroutine's context variables for code that runs in this thread, which is this one again."""
    copied, slot = context.copy(), _slot.get()
    copied.run(_slot.set, slot)
    return copied


def on_loop() -> bool:
    """Whether this thread runs an event loop of ours, so that nothing may wait here."""
    return getattr(_thread, "loop", None) is not None


def nowhere_else(_stop: Callable[[], None]) -> contextlib.AbstractContextManager[None]:
    """The `Elsewhere` of a body that nobody stops."""
    return contextlib.nullcontext()


def run(body: Callable[[], Awaitable[T]], elsewhere: Elsewhere = nowhere_else, soft_s: float | None = None) -> T:
    """Run the body on the event loop and wait for it; what it returns or raises.

    An exception that comes to this thread meanwhile (the soft time limit, say) cancels the body, which then has
    `CLEAN_UP_S` to end, and is raised here. With the soft time limit, a body that takes its cancellation and returns
    has returned. `soft_s` keeps that limit where the pool does not.
    """
    with _loop() as loop:
        running = _Running(loop, body)
        with elsewhere(running.stop):
            value: T = running.wait(soft_s)
            return value


@contextlib.contextmanager
def held(
    manager: contextlib.AbstractAsyncContextManager[T, bool | None], elsewhere: Elsewhere = nowhere_else
) -> Iterator[tuple[T, contextvars.Context]]:
    """Keep an asynchronous context manager open around code in this thread.

    Yields what it yields, and the context variables as they are inside. One coroutine enters and leaves it, as
    cancel scopes and time-outs want it.
    """
    with _loop() as loop:
        entered: futures.Future[tuple[T, contextvars.Context]] = futures.Future()
        outcome: asyncio.Future[None] = loop.create_future()

        async def hold() -> None:
            async with manager as value:
                entered.set_result((value, contextvars.copy_context()))
                await outcome

        running = _Running(loop, hold)
        either: futures.Future[None] = futures.Future()
        for each in (entered, running.future):
            each.add_done_callback(lambda _: None if either.done() else either.set_result(None))
        try:
            with elsewhere(running.stop):
                running.wait_for(either)
            if not entered.done():
                running.wait(None)  # raises why
            value, context = entered.result(0)
        except BaseException:
            running.end()
            raise
        try:
            yield value, context
        except BaseException as error:
            loop.call_soon_threadsafe(_settle, outcome, error)
            running.wait(None)  # raises it again, unless the manager keeps it to itself
        else:
            loop.call_soon_threadsafe(_settle, outcome, None)
            running.wait(None)


class _Running:
    """A coroutine on a loop, and the slot's side of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, body: Callable[[], Awaitable[Any]]) -> None:
        self.future: futures.Future[Any] = futures.Future()
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None
        self._stop_time: float | None = None
        self._slot = _Slot()
        context = contextvars.copy_context()
        context.run(_slot.set, self._slot)
        loop.call_soon_threadsafe(self._begin, body, context=context)

    def stop(self) -> None:
        """Cancel the coroutine; called again after `CLEAN_UP_S`, let its slot go on without it."""
        now = time.monotonic()
        if self._stop_time is None:
            self._stop_time = now
            self._cancel()
        elif now - self._stop_time >= CLEAN_UP_S:
            self._leave()

    def end(self) -> None:
        """Cancel the coroutine and wait for it for `CLEAN_UP_S`."""
        self._cancel()
        if not futures.wait([self.future], CLEAN_UP_S).done:
            self._leave()
        self._slot.ident = object()

    def wait(self, soft_s: float | None) -> Any:
        """What the coroutine returns or raises."""
        try:
            self.wait_for(self.future, soft_s)
        except SoftTimeLimitExceeded:
            self.end()
            if isinstance(self.future.exception(), asyncio.CancelledError):
                raise
        except BaseException:
            self.end()
            raise
        self._slot.ident = object()
        if isinstance(self.future.exception(), asyncio.CancelledError):
            raise CoroutineCancelled("the coroutine was cancelled") from self.future.exception()
        return self.future.result()

    def wait_for(self, future: "futures.Future[Any]", soft_s: float | None = None) -> None:
        """Wait until the future is done, or raise what comes to this thread meanwhile."""
        if not futures.wait([future], soft_s).done:
            raise SoftTimeLimitExceeded

    def _begin(self, body: Callable[[], Awaitable[Any]]) -> None:
        self._task = self._loop.create_task(_guarded(body))
        self._task.add_done_callback(self._ended)
        if self._stop_time is not None or self.future.done():
            self._task.cancel()

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        error: BaseException | None
        value = None
        if task.cancelled():
            error = asyncio.CancelledError()
        else:
            error = task.exception()
            if error is None:
                value, error = task.result()
        with contextlib.suppress(futures.InvalidStateError):  # its slot has gone on
            if error is None:
                self.future.set_result(value)
            else:
                self.future.set_exception(error)

    def _cancel(self) -> None:
        def cancel() -> None:
            if self._task is not None:
                self._task.cancel()

        self._loop.call_soon_threadsafe(cancel)

    def _leave(self) -> None:
        with contextlib.suppress(futures.InvalidStateError):
            self.future.set_exception(asyncio.CancelledError())
            log.warning("coroutine_left", after_s=CLEAN_UP_S, coroutine=repr(self._task))
            self._cancel()


async def _guarded(body: Callable[[], Awaitable[T]]) -> tuple[T | None, BaseException | None]:
    # These two would end the loop, and every other coroutine with it.
    try:
        return await body(), None
    except (SystemExit, KeyboardInterrupt) as error:
        return None, error


def _settle(outcome: "asyncio.Future[None]", error: BaseException | None) -> None:
    if not outcome.done():
        if error is None:
            outcome.set_result(None)
        else:
            outcome.set_exception(RuntimeError(repr(error)) if isinstance(error, StopIteration) else error)


_thread = threading.local()
_making = threading.Lock()
_of_process: asyncio.AbstractEventLoop | None = None


@contextlib.contextmanager
def _loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The process's event loop; in its own thread (a task called eagerly by a coroutine) another, for this once."""
    global _of_process
    if on_loop():
        loop = _new_loop()
        try:
            yield loop
        finally:
            loop.call_soon_threadsafe(loop.stop)
        return
    with _making:
        if _of_process is None:
            _of_process = _new_loop()
    yield _of_process


def _new_loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=_turn, args=(loop,), name="jobplane-loop", daemon=True).start()
    return loop


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    _thread.loop = loop
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _forget() -> None:
    global _making, _of_process
    _making = threading.Lock()
    _of_process = None


# A child has not its parent's threads.
os.register_at_fork(after_in_child=_forget)
