"""How a worker of ours stops: it takes in nothing more, lets its tasks end, and hands back what has not in time.

SIGTERM, SIGINT and SIGQUIT mean the same; a second one hurries. Celery's own soft shutdown happens inside the signal's
handler, in the middle of whatever the main thread was at: nothing is acknowledged meanwhile, and it can hang for ever.
Here the handler leaves a byte, and the rest is done by the event loop. A stop that hangs all the same is ended: a
worker that lingers keeps its messages and leases for as long, one that ends is known to be gone.
"""

import contextlib
import faulthandler
import os
import select
import signal
import threading
import time
from typing import Any, Final

from celery import bootsteps, platforms
from celery.apps.worker import Worker as CeleryWorker
from celery.worker import state
from celery.worker.consumer.tasks import Tasks

from workers import coroutines, interrupts, keeper
from workers.log import log

#: How long what follows the soft part may take, and how much of that is for handing back.
PATIENCE_S: Final = 10.0
HAND_BACK_S: Final = interrupts.HOLD_S + coroutines.CLEAN_UP_S + 1.0
#: An event loop that has not turned for so long is not there: the broker is away, or a solo worker has a body.
_STILL_S: Final = 2.0
_LOOK_S: Final = 0.25

_SIGNALS: Final = ("SIGTERM", "SIGINT", "SIGQUIT")


class Stopping:
    """Whether this worker was told to stop, and how far that is. Its thread sees to it that it ends."""

    def __init__(self, soft_s: float) -> None:
        self._soft_s = soft_s
        self._pid = os.getpid()
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._told_time: float | None = None
        #: When the event loop last turned, on the monotonic clock.
        self.turned = 0.0
        #: Tasks have had their time: what is not done is handed back.
        self.over = False

    @property
    def told(self) -> bool:
        return self._told_time is not None

    def listen(self) -> None:
        """Take over the signals of this process."""
        for name in _SIGNALS:
            platforms.signals[name] = self._hear
        threading.Thread(target=self._run, name="jobplane-stop", daemon=True).start()

    def _hear(self, signum: int, _frame: Any) -> None:
        # A write to a pipe is all that is safe here. A child that was just forked has this handler for a moment.
        if os.getpid() == self._pid:
            with contextlib.suppress(BlockingIOError):
                os.write(self._write, bytes((signum,)))
        else:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)

    def _run(self) -> None:
        by = signal.Signals(os.read(self._read, 1)[0]).name
        began = self._told_time = time.monotonic()
        log.info("stopping", signal=by, running=len(state.active_requests), soft_s=self._soft_s)
        end_time = began + self._soft_s
        while time.monotonic() < end_time and not self._told_again():
            if not state.reserved_requests and self._still:
                break
        self.over = True
        keeper.give_back_all()
        if self._still:
            time.sleep(min(HAND_BACK_S, _STILL_S))
            if self._still:
                state.should_terminate = True
        # Once more half-way, for a coroutine that does not end is left by its slot when it is told again: CLEAN_UP_S
        # after it was told, and with some room.
        for share in (0.55, 0.45):
            time.sleep(PATIENCE_S * share)
            keeper.give_back_all()
        try:
            log.critical("shutdown_hangs", after_s=round(time.monotonic() - began, 1))
            faulthandler.dump_traceback(2)  # Celery has another object in the place of sys.stderr
            keeper.abandon_all()
        finally:
            os._exit(os.EX_SOFTWARE)

    @property
    def _still(self) -> bool:
        return time.monotonic() - max(self.turned, self._told_time or 0) > _STILL_S

    def _told_again(self) -> bool:
        return bool(select.select([self._read], [], [], 0.1)[0])


class Worker(CeleryWorker):
    """Celery's worker with our way to stop."""

    stopping: Stopping

    def install_platform_tweaks(self, worker: Any) -> None:
        super().install_platform_tweaks(worker)
        self.stopping = Stopping(self.app.conf.worker_soft_shutdown_timeout)


class Listen(bootsteps.StartStopStep):
    """Listens for the signals from when the pool has its children."""

    requires = ("celery.worker.components:Pool",)

    def start(self, worker: Any) -> None:
        worker.stopping.listen()


class Stop(bootsteps.StartStopStep):
    """What the event loop does about it."""

    requires = (Tasks,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self._entry: Any = None
        #: Children that were told to end, and until when they are waited for: since we began to hand back.
        self._ending: set[int] = set()
        self._until: float | None = None

    def start(self, c: Any) -> None:
        self._entry = c.timer.call_repeatedly(_LOOK_S, c.call_soon, (self._look, c))

    def stop(self, c: Any) -> None:
        if self._entry is not None:
            self._entry.cancel()
            self._entry = None

    def _look(self, c: Any) -> None:
        stopping: Stopping = c.controller.stopping
        stopping.turned = time.monotonic()
        if not stopping.told or c.blueprint.state != bootsteps.RUN:
            return
        try:
            c.task_consumer.rest()
        except (*c.connection_errors, *c.channel_errors) as error:
            log.warning("consumers_not_cancelled", error=str(error))
        if not state.reserved_requests and self._until is None:
            state.should_stop = os.EX_OK
        elif stopping.over:
            self._hand_back(c)

    def _hand_back(self, c: Any) -> None:
        if self._until is None:
            self._until = time.monotonic() + HAND_BACK_S
            self._ending = {request.worker_pid for request in state.active_requests} - {os.getpid()}
            log.warning("handing_back", running=len(state.active_requests))
            if self._ending:
                interrupts.stop()
                # So that Celery does not take their end for a failure.
                c.cancel_active_requests()
        # A child that is told twice breaks off what it says at its end, its lease among that.
        if not (self._alive(c) if self._ending else state.active_requests) or time.monotonic() > self._until:
            state.should_terminate = True

    def _alive(self, c: Any) -> bool:
        children = getattr(getattr(c.pool, "_pool", None), "_pool", ())
        return any(child.pid in self._ending and child.exitcode is None for child in list(children))
