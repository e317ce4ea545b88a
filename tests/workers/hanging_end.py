"""A worker that includes this never ends by itself once it was told to: Celery hangs in its signal's handler."""

import threading
from typing import Any

from celery.apps.worker import Worker

from workers import watchdog


def _hang(_: Any) -> None:
    threading.Event().wait()


Worker.wait_for_soft_shutdown = _hang
watchdog.PATIENCE_S = 0.5
