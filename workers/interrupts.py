"""Stops a body from another thread of its process, at its next step or out of a blocking call.

Prefork and solo run bodies in the main thread, where a signal breaks into a sleep or a read. Elsewhere Python raises
at the body's next step.
"""

import ctypes
import os
import signal
import threading
from typing import Any, Protocol


class Stoppable(Protocol):
    """What the main thread is at."""

    def stop_here(self) -> None:
        """Raise if it is to stop."""


_in_main_thread: Stoppable | None = None


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


def _handle(_signum: int, _frame: Any) -> None:
    if _in_main_thread is not None:
        _in_main_thread.stop_here()


def _after_fork() -> None:
    global _in_main_thread
    _in_main_thread = None


os.register_at_fork(after_in_child=_after_fork)
