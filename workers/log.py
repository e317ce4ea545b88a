"""A worker's log lines: an action and its ids, through Celery's own logging."""

import structlog
from celery.utils.log import get_logger

log: structlog.stdlib.BoundLogger = structlog.wrap_logger(
    get_logger("jobplane.worker"),
    processors=[
        structlog.stdlib.filter_by_level,
        structlog.processors.format_exc_info,
        structlog.processors.KeyValueRenderer(key_order=["event"]),
    ],
    wrapper_class=structlog.stdlib.BoundLogger,
)
