"""The Celery app of a worker: `celery -A workers.app worker -Q a,b`, which `jobplane worker` runs too.

Importing this module reads the settings; a wrong one ends the process with one line.
"""

import ssl
import sys
from functools import cached_property
from importlib.util import find_spec
from typing import Any

from celery import Celery

from workers.presence import SayPresence
from workers.queues import LookForQueues, existing
from workers.settings import Settings, SettingsError, current
from workers.stopping import Listen, Stop

TASKS = ("workers.tasks.files", "workers.tasks.http")


class App(Celery):
    """Celery with our worker, which stops as we want it."""

    @cached_property
    def Worker(self) -> Any:
        return self.subclass_with_self("workers.stopping:Worker")


def make_app(settings: Settings) -> Celery:
    """The worker's Celery app, current and default, with our tasks and those of the modules in `include`."""
    for module in settings.include:
        _check_module(module)
    app = App("jobplane", amqp="workers.queues:AMQP", events="workers.events:Events", task_cls="workers.task:Task")
    app.conf.update(_configuration(settings))
    app.steps["worker"].update({SayPresence, Listen})
    app.steps["consumer"].update({LookForQueues, Stop})
    app.set_current()
    app.set_default()
    return app


def _configuration(settings: Settings) -> dict[str, Any]:
    broker, redis = settings.broker_url.get_secret_value(), settings.redis_url.get_secret_value()
    return {
        "broker_url": broker,
        "result_backend": redis,
        "include": [*TASKS, *settings.include],
        "task_queues": [existing(name) for name in settings.queues],
        "task_default_queue": settings.queues[0],
        "worker_concurrency": settings.concurrency,
        # JSON alone, both ways.
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        # A killed worker loses nothing; what it was at is decided by the lease, never by a loop of redeliveries.
        "task_acks_late": True,
        "task_reject_on_worker_lost": False,
        "jobplane_fence": settings.fence,
        "jobplane_result_limit_mib": settings.result_limit_mib,
        # The base task reports STARTED itself, once it holds the lease.
        "task_track_started": False,
        "worker_prefetch_multiplier": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_soft_shutdown_timeout": settings.soft_shutdown_s,
        "worker_enable_soft_shutdown_on_idle": False,
        # A child on a busy machine may take its time to start.
        "worker_proc_alive_timeout": 60,
        # An end waits for Redis, however long that takes: the message stays unacknowledged meanwhile.
        "result_extended": True,
        "result_expires": 24 * 3600,
        "result_backend_always_retry": True,
        "result_backend_max_retries": float("inf"),
        "result_backend_max_sleep_between_retries_ms": 1000,
        "result_backend_transport_options": {
            # The inner loop of the backend; the outer one is endless.
            "retry_policy": {"max_retries": 1, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.2},
            "additional_connection_errors": ["redis.exceptions.OutOfMemoryError", "redis.exceptions.ReadOnlyError"],
        },
        "redis_socket_timeout": 5,
        "redis_socket_connect_timeout": 5,
        "redis_socket_keepalive": True,
        "redis_retry_on_timeout": True,
        "redis_backend_health_check_interval": 25,
        "redis_backend_use_ssl": _tls(redis, "rediss"),
        # The broker may go and come as it likes.
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,
        "broker_heartbeat": 30,
        "broker_use_ssl": _tls(broker, "rediss", "amqps"),
        "broker_transport_options": _transport_options(broker, settings),
    }


def _transport_options(broker: str, settings: Settings) -> dict[str, Any]:
    if broker.startswith("amqp"):
        return {"confirm_publish": True}
    return {
        "visibility_timeout": settings.visibility_timeout_s,
        "unacked_restore_throttle": 1,
        "socket_timeout": 30,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 25,
    }


def _tls(url: str, *schemes: str) -> dict[str, Any] | None:
    if url.partition("://")[0] not in schemes:
        return None
    return {"ssl_cert_reqs" if url.startswith("redis") else "cert_reqs": ssl.CERT_REQUIRED}


def _check_module(name: str) -> None:
    try:
        found = find_spec(name) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise SettingsError(f"JOBPLANE_WORKER_INCLUDE: no module {name!r} on this worker's path")


def _made() -> Celery:
    try:
        return make_app(current())
    except SettingsError as error:
        sys.stderr.write(f"jobplane: {error}\n")
        raise SystemExit(2) from None


app = _made()
