"""Celery's worker events, sent once each: for a worker must end, and serve on, while the broker is away."""

from typing import Any

from celery.app.events import Events as CeleryEvents
from celery.events.dispatcher import EventDispatcher


class Dispatcher(EventDispatcher):
    """Keeps what cannot be sent until the broker is back.

    Celery's own retries a heartbeat without end, with a lock held that its shutdown needs.
    """

    def _publish(self, event: Any, producer: Any, routing_key: str, retry: bool = False, **options: Any) -> None:
        super()._publish(event, producer, routing_key, retry=False, **options)


class Events(CeleryEvents):
    """Celery's events with our dispatcher."""

    dispatcher_cls = "workers.events:Dispatcher"
