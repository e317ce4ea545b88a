"""A worker that includes this never ends by itself once it was told to."""

import threading

from celery.signals import worker_shutdown

from workers import stopping

stopping.PATIENCE_S = 0.5


@worker_shutdown.connect(weak=False)
def _hang(**_: object) -> None:
    threading.Event().wait()
