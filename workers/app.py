"""The Celery app of a worker: `celery -A workers.app worker -Q a,b`, which `jobplane worker` runs too.

`make_app` makes one; the attribute `app` of this module is the one that the environment describes, made when it is
first asked for. A wrong setting ends the process with one line.
"""

import os
import ssl
import sys
from collections.abc import Callable, Sequence
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


def make_app(
    settings: Settings | None = None,
    *,
    include: Sequence[str] = (),
    autodiscover: Sequence[str] = (),
    context: Callable[..., Any] | str | None = None,
    **configuration: Any,
) -> Celery:
    """A Celery app with what a sound worker needs; current and default, so that `@shared_task` finds it.

    Its tasks are ours, those of the modules in `include`, and those of the modules named `tasks` in the packages in
    `autodiscover`, besides what the settings name. `context` is entered around every call (`workers/context.py`).
    Further names are Celery's own settings and win over ours. Without `settings` the environment is read.
    Raises SettingsError.
    """
    settings = settings or current()
    modules = [*settings.include, *include]
    packages = [*settings.autodiscover, *autodiscover]
    for setting, names in (("INCLUDE", modules), ("AUTODISCOVER", packages)):
        for name in names:
            _check_module(setting, name)
    app = App("jobplane", amqp="workers.queues:AMQP", events="workers.events:Events", task_cls="workers.task:Task")
    app.conf.update(_configuration(settings))
    app.conf.update(include=[*TASKS, *modules], jobplane_context=context or settings.context, **configuration)
    if packages:
        app.autodiscover_tasks(packages)
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
        "task_queues": [existing(name) for name in settings.queues],
        "task_default_queue": settings.queues[0],
        "worker_concurrency": settings.concurrency,
        # In a team's own tests bodies run where they are called, and say what they say in a worker.
        "task_always_eager": settings.eager,
        "task_store_eager_result": settings.eager,
        "task_eager_propagates": settings.eager,
        # What leaks in a task ends with its process. Children only: other pools have none.
        "worker_max_tasks_per_child": settings.max_tasks_per_child,
        "worker_max_memory_per_child": settings.max_memory_per_child_mib * 1024,
        # JSON alone, both ways.
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        # A killed worker loses nothing; what it was at is decided by the lease, never by a loop of redeliveries.
        "task_acks_late": True,
        "task_reject_on_worker_lost": False,
        "jobplane_fence": settings.fence,
        "jobplane_result_limit_mib": settings.result_limit_mib,
        "jobplane_log_level": settings.log_level if settings.logs else None,
        "jobplane_log_masks": tuple(mask.pattern for mask in settings.log_masks),
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


def _check_module(setting: str, name: str) -> None:
    try:
        found = find_spec(name) is not None
    except (ImportError, ValueError):
        found = False
    if not found:
        raise SettingsError(f"JOBPLANE_WORKER_{setting}: no module {name!r} on this worker's path")


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Teams keep their modules in the folder where the worker is started. Celery has it on the path only while it
    # imports a module, so what is looked for now, and what bodies import later, would not be found.
    if (here := os.getcwd()) not in sys.path:  # noqa: PTH109 - a string, as the path holds
        sys.path.insert(0, here)
    try:
        made = globals()["app"] = make_app()
    except SettingsError as error:
        sys.stderr.write(f"jobplane: {error}\n")
        raise SystemExit(2) from None
    return made
