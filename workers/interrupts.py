"""Stops a body from another thread of its process, at its next step or out of a blocking call.

Prefork and solo run bodies in the main thread, where a signal breaks into a sleep or a read. Elsewhere Python raises
at the body's next step.

And keeps the signal that ends a child of a prefork pool from breaking into what follows a body: one that has returned
and is not recorded would run again.
"""

import ctypes
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol

from billiard import current_process
from billiard.common import TERM_SIGNAL

#: How long a stop waits until what a body ended with is recorded.
HOLD_S: Final = 3.0


class Stoppable(Protocol):
    """What the main thread is at."""

    #: The body has ended, and what it ended with is about to be recorded.
    over: bool

    def stop_here(self) -> None:
        """Raise if it is to stop."""


_in_main_thread: Stoppable | None = None
_hold: "_Hold | None" = None


def prepare(work: Stoppable) -> None:
    """The calling thread begins with this work."""
    global _in_main_thread
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGURG"):
        return
    present = signal.getsignal(signal.SIGURG)
    if present in {signal.SIG_DFL, signal.SIG_IGN}:
        signal.signal(signal.SIGURG, _handle)
    elif present is not _handle:
        return  # the signal is somebody else's: the interrupt waits for the next step of the body
    _in_main_thread = work


def forget(work: Stoppable) -> None:
    """The work is over."""
    global _in_main_thread
    if _in_main_thread is work:
        _in_main_thread = None


def send(ident: int, work: Stoppable, kind: type[BaseException]) -> None:
    """Stop the work that the thread `ident` is at, by `kind` where no signal can."""
    if work is _in_main_thread:
        signal.pthread_kill(ident, signal.SIGURG)
    else:
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), ctypes.py_object(kind))


def clear(ident: int) -> None:
    """Take back what has been sent to the thread and has not come yet."""
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(ident), None)


def hold(work: Stoppable) -> None:
    """Until `release`, the signal that ends this child of a pool waits while the work is over; for `HOLD_S` at most.

    In any other process, or thread, it does nothing.
    """
    global _hold
    if threading.current_thread() is not threading.main_thread() or current_process().name == "MainProcess":
        return
    heard_by = signal.getsignal(TERM_SIGNAL)
    if callable(heard_by):  # else the signal has come already
        _hold = _Hold(work, heard_by)
        signal.signal(TERM_SIGNAL, _hold.hear)


def release(work: Stoppable) -> None:
    """The work is recorded, or handed back: if the signal has come meanwhile, it is heard now."""
    if _hold is not None and _hold.work is work:
        _hold.release()


class _Hold:
    """Stands before the one who hears the signal that ends this process."""

    def __init__(self, work: Stoppable, heard_by: Callable[[int, Any], Any]) -> None:
        self.work = work
        self._heard_by = heard_by
        self._timer: threading.Timer | None = None
        self._late = False

    def hear(self, signum: int, frame: Any) -> None:
        if not self.work.over or self._late:
            self._give_way()
            self._heard_by(signum, frame)
        elif self._timer is None:
            self._timer = threading.Timer(HOLD_S, self._end)
            self._timer.daemon = True
            self._timer.start()

    def release(self) -> None:
        self._give_way()
        if self._timer is not None:
            self._timer.cancel()
            self._heard_by(TERM_SIGNAL, None)

    def _give_way(self) -> None:
        global _hold
        _hold = None
        if signal.getsignal(TERM_SIGNAL) == self.hear:
            signal.signal(TERM_SIGNAL, self._heard_by)

    def _end(self) -> None:
        self._late = True
        if _hold is self:
            signal.pthread_kill(threading.main_thread().ident or 0, TERM_SIGNAL)


def _handle(_signum: int, _frame: Any) -> None:
    if _in_main_thread is not None:
        _in_main_thread.stop_here()


def _after_fork() -> None:
    global _in_main_thread, _hold
    _in_main_thread = _hold = None


os.register_at_fork(after_in_child=_after_fork)
