"""A worker of ours says every few seconds that it lives, what it consumes and which tasks it registers."""

import os
import threading
import time
from collections.abc import Set
from datetime import UTC, datetime
from typing import Any, Final

import celery
import orjson
from celery import bootsteps
from celery.worker import state
from redis import Redis
from redis.exceptions import RedisError

from workers import health
from workers.contracts import contracts_of
from workers.log import log
from workers.protocol import CONTRACTS_PREFIX, PRESENCE_S, PRESENCE_TTL_S, PROTOCOL_VERSION, presence_key

#: How often it is said as long as no queue is consumed (at the start, and while the broker is away) or Redis is away.
_FIRST_S: Final = 1.0
#: How long the contracts of a worker that is gone are kept.
CONTRACTS_TTL_S: Final = 24 * 3600


class Presence:
    """Writes the presence key of one worker until stopped. `run_once` is one write."""

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._key = presence_key(worker.hostname)
        self._start_time = datetime.now(UTC)
        self._told_queues = False
        self._began = time.monotonic()
        self._born = health.born(os.getpid())
        #: Since when nothing is consumed, on the monotonic clock.
        self._hungry_since: float | None = None
        #: Since when Redis has not answered, on the monotonic clock.
        self._away_time: float | None = None
        #: The tasks whose contracts these are.
        self._contracted: Set[str] = frozenset()
        self._digest, self._contracts = contracts_of(())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobplane-presence", daemon=True)
        self._redis: Redis = Redis.from_url(worker.app.conf.result_backend, socket_timeout=2, socket_connect_timeout=2)

    def start(self) -> None:
        """Begin to write, in a thread: the pool of a solo worker keeps the main one busy."""
        self._thread.start()

    def stop(self) -> None:
        """Write no more and take the key away, so that nobody waits for its end."""
        self._stop.set()
        self._thread.join(timeout=5)
        health.path_of(os.getpid()).unlink(missing_ok=True)
        try:
            self._redis.delete(self._key)
        except (RedisError, OSError) as error:
            log.warning("presence_not_removed", error=str(error))

    @property
    def away_s(self) -> float:
        """For how long Redis has not answered; 0 if it did at the last try."""
        away_time = self._away_time
        return time.monotonic() - away_time if away_time is not None else 0.0

    def describe(self) -> dict[str, Any]:
        """What the key holds."""
        worker, pool = self._worker, self._worker.pool
        return {
            "version": PROTOCOL_VERSION,
            "nodename": worker.hostname,
            "queues": self._consumed(),
            "tasks": sorted(name for name in list(worker.app.tasks) if not name.startswith("celery.")),
            "pool": type(pool).__module__.rpartition(".")[2],
            "concurrency": getattr(pool, "num_processes", 0),  # a pool that is being stopped has none
            "pid": os.getpid(),
            "software": f"py-celery {celery.__version__}",
            "active": len(state.active_requests),
            "reserved": max(len(state.reserved_requests) - len(state.active_requests), 0),
            "start_time": self._start_time.isoformat().replace("+00:00", "Z"),
        }

    def say_here(self) -> None:
        """Write this worker's file, for `jobplane worker-health`."""
        now, consumed = time.monotonic(), self._consumed()
        if consumed:
            self._hungry_since = None
        elif self._hungry_since is None:
            self._hungry_since = now
        turned = max(self._worker.stopping.turned, self._began)
        try:
            health.write(
                health.Status(
                    os.getpid(),
                    self._born,
                    self._worker.hostname,
                    now,
                    consumed,
                    self._hungry_since,
                    len(state.active_requests),
                    turned,
                )
            )
        except OSError as error:
            log.debug("health_not_written", error=str(error))

    def _consumed(self) -> list[str]:
        consumer = getattr(self._worker.consumer, "task_consumer", None)
        return sorted(consumer.consumed) if consumer is not None else []

    def run_once(self) -> None:
        """Write the key once. Raises what Redis raises."""
        said = {**self.describe(), "contracts": self._say_contracts()}
        self._redis.set(self._key, orjson.dumps(said), px=int(PRESENCE_TTL_S * 1000))
        self._told_queues = bool(said["queues"])

    def _say_contracts(self) -> str:
        """Write the contracts of our tasks, unless they are there, and name them."""
        tasks = {name: task for name, task in list(self._worker.app.tasks.items()) if not name.startswith("celery.")}
        if tasks.keys() != self._contracted:
            self._digest, self._contracts = contracts_of(tasks.values())
            self._contracted = tasks.keys()
        key = f"{CONTRACTS_PREFIX}{self._digest}"
        if not self._redis.expire(key, CONTRACTS_TTL_S):
            self._redis.set(key, self._contracts, ex=CONTRACTS_TTL_S)
        return self._digest

    def _run(self) -> None:
        while True:
            self.say_here()
            try:
                self.run_once()
                self._away_time = None
            except (RedisError, OSError) as error:
                if self._away_time is None:
                    log.warning("presence_not_written", error=str(error))
                    self._away_time = time.monotonic()
                self._told_queues = False
            except Exception:
                log.exception("presence_failed")
            if self._stop.wait(PRESENCE_S if self._told_queues else _FIRST_S):
                return


class SayPresence(bootsteps.StartStopStep):
    """Writes the key from the start of a worker, also while it waits for the broker, to its end, warm or cold."""

    # After the pool, so that no child is forked while our thread runs.
    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **kwargs: Any) -> None:
        super().__init__(worker, **kwargs)
        worker.presence = None

    def start(self, worker: Any) -> None:
        worker.presence = Presence(worker)
        worker.presence.start()

    def stop(self, worker: Any) -> None:
        if worker.presence is not None:
            worker.presence.stop()

    def terminate(self, worker: Any) -> None:
        self.stop(worker)
