"""Bounds a cold shutdown: Celery does it inside a signal's handler, where it can hang for ever.

A worker that hangs keeps its messages and leases for as long. One that ends is known to be gone, and its work is begun
again.
"""

import os
import threading
from typing import Final

from celery.apps.worker import Worker as CeleryWorker

from workers.log import log

#: How long what follows the soft part of a shutdown may take.
PATIENCE_S: Final = 10.0


class Worker(CeleryWorker):
    """Celery's worker, which ends within the soft shutdown's time and ten seconds after it was told to."""

    def wait_for_soft_shutdown(self) -> None:
        patience_s = self.app.conf.worker_soft_shutdown_timeout + PATIENCE_S
        threading.Thread(target=_end_late, args=(patience_s,), name="jobplane-watchdog", daemon=True).start()
        super().wait_for_soft_shutdown()


def _end_late(patience_s: float) -> None:
    threading.Event().wait(patience_s)
    log.critical("shutdown_hangs", after_s=patience_s)
    os._exit(os.EX_SOFTWARE)
