"""Stops a body from another thread of its process, at its next step or out of a blocking call.

Prefork and solo run bodies in the main thread, where a signal breaks into a sleep or a read. Elsewhere Python raises
at the body's next step.

And lets a stop of the worker, which ends the children of a prefork pool by a signal, not break into what follows a
body: one that has returned and is not recorded would run again.
"""

import ctypes
import mmap
import os
import signal
import threading
from collections.abc import Callable
from typing import Any, Final, Protocol

from billiard import current_process
from billiard.common import TERM_SIGNAL

#: How long a stop waits until what a body ended with is recorded.
HOLD_S: Final = 2.0


class Stoppable(Protocol):
    """What the main thread is at."""

    #: The body has ended, and what it ended with is about to be recorded.
    over: bool
    #: What ends this process, once it is raised; a body or a context may keep it to itself.
    ends_by: SystemExit | None

    def stop_here(self) -> None:
        """Raise if it is to stop."""


_in_main_thread: Stoppable | None = None
_hold: "_Hold | None" = None
#: Whether the worker is being stopped; shared with the children of its pool.
_stopped: Final = mmap.mmap(-1, 1)


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


def stop() -> None:
    """The worker is being stopped: what ends the children of its pool from now on waits for what is over."""
    _stopped[0] = 1


def hold(work: Stoppable) -> None:
    """Until `release`, a stop of the worker that ends this child of its pool waits while the work is over.

    It waits for `HOLD_S` at most. In any other process, or thread, this does nothing.
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
    held = _hold
    if held is not None and held.work is work:
        held.release()


def later(act: Callable[[], None]) -> threading.Timer | None:
    """Do it in `HOLD_S`, in a thread; None if none can be started."""
    timer = threading.Timer(HOLD_S, act)
    timer.daemon = True
    try:
        timer.start()
    except RuntimeError:
        return None
    return timer


class _Hold:
    """Stands before the one who hears the signal that ends this process."""

    def __init__(self, work: Stoppable, heard_by: Callable[[int, Any], Any]) -> None:
        self.work = work
        self._heard_by = heard_by
        self._timer: threading.Timer | None = None
        self._is_late = False

    def hear(self, signum: int, frame: Any) -> None:
        # Somebody may have kept this handler and call it when the work is long done.
        if _hold is self and self.work.over and _stopped[0] and not self._is_late:
            self._timer = self._timer or later(self._end)
            if self._timer is not None:
                return
        self._give_way()
        try:
            self._heard_by(signum, frame)
        except SystemExit as exit_:
            self.work.ends_by = exit_
            raise

    def release(self) -> None:
        self._give_way()
        if self._timer is not None:
            self._timer.cancel()
            self._heard_by(TERM_SIGNAL, None)

    def _give_way(self) -> None:
        global _hold
        if _hold is self:
            _hold = None
        if signal.getsignal(TERM_SIGNAL) == self.hear:
            signal.signal(TERM_SIGNAL, self._heard_by)

    def _end(self) -> None:
        self._is_late = True
        if _hold is self:
            signal.pthread_kill(threading.main_thread().ident or 0, TERM_SIGNAL)


def _handle(_signum: int, _frame: Any) -> None:
    if _in_main_thread is not None:
        _in_main_thread.stop_here()


def _after_fork() -> None:
    global _in_main_thread, _hold
    _in_main_thread = _hold = None


os.register_at_fork(after_in_child=_after_fork)
