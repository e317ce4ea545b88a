"""A worker of ours says every few seconds that it lives, what it consumes and which tasks it registers."""

import os
import threading
from datetime import UTC, datetime
from typing import Any

import orjson
from celery.signals import worker_ready, worker_shutdown
from redis import Redis
from redis.exceptions import RedisError

from workers.log import log
from workers.protocol import PRESENCE_S, PRESENCE_TTL_S, PROTOCOL_VERSION, presence_key


class Presence:
    """Writes the presence key of one worker until stopped. `run_once` is one write."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self._key = presence_key(consumer.hostname)
        self._start_time = datetime.now(UTC)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="jobplane-presence", daemon=True)
        self._redis: Redis = Redis.from_url(
            consumer.app.conf.result_backend, socket_timeout=2, socket_connect_timeout=2
        )

    def start(self) -> None:
        """Begin to write, in a thread: the pool of a solo worker keeps the main one busy."""
        self._thread.start()

    def stop(self) -> None:
        """Write no more and take the key away, so that nobody waits for its end."""
        self._stop.set()
        self._thread.join(timeout=5)
        try:
            self._redis.delete(self._key)
        except (RedisError, OSError) as error:
            log.warning("presence_not_removed", error=str(error))

    def describe(self) -> dict[str, Any]:
        """What the key holds."""
        consumer = self._consumer
        tasks, pool = consumer.task_consumer, consumer.pool
        return {
            "version": PROTOCOL_VERSION,
            "nodename": consumer.hostname,
            "queues": sorted(tasks.consumed) if tasks is not None else [],
            "tasks": sorted(name for name in list(consumer.app.tasks) if not name.startswith("celery.")),
            "pool": type(pool).__module__.rpartition(".")[2],
            "concurrency": pool.num_processes,
            "pid": os.getpid(),
            "start_time": self._start_time.isoformat().replace("+00:00", "Z"),
        }

    def run_once(self) -> None:
        """Write the key once. Raises what Redis raises."""
        self._redis.set(self._key, orjson.dumps(self.describe()), px=int(PRESENCE_TTL_S * 1000))

    def _run(self) -> None:
        away = False
        while True:
            try:
                self.run_once()
                away = False
            except (RedisError, OSError) as error:
                if not away:
                    log.warning("presence_not_written", error=str(error))
                away = True
            if self._stop.wait(PRESENCE_S):
                return


_presence: Presence | None = None


@worker_ready.connect(weak=False)
def _begin(sender: Any = None, **_: object) -> None:
    global _presence
    if _presence is None:
        _presence = Presence(sender)
        _presence.start()


@worker_shutdown.connect(weak=False)
def _end(**_: object) -> None:
    global _presence
    if _presence is not None:
        _presence.stop()
        _presence = None
