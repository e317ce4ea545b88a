"""How our worker consumes: it declares no queue, waits for one that does not exist yet, and rests without Redis.

Queues belong to the plane or to the service that made them; a declaration with other arguments would be refused by
RabbitMQ. So a queue may be classic or quorum, with any arguments, bound to any exchange. Prefetch is set per
consumer, which every kind of queue allows (a quorum queue refuses the other).

A worker that cannot reach Redis can begin nothing, for it cannot take a lease: what it took in would be kept from
those who can.
"""

from typing import Any, Final

from celery import bootsteps
from celery.app.amqp import AMQP as CeleryAMQP
from celery.app.amqp import Connection as KombuConnection
from celery.app.amqp import Consumer as KombuConsumer
from celery.app.amqp import Exchange, Queue
from celery.app.amqp import Queues as CeleryQueues
from celery.worker.consumer.tasks import Tasks

from workers.log import log

#: How often a queue that does not exist is looked for.
LOOK_S: Final = 1.0
#: Longest pause before a broker that is away is tried again. Celery's own grows to 30 s, in which work that the plane
#: sends as soon as the broker is back would lie there.
RECONNECT_S: Final = 5.0
#: So long may Redis be away before nothing more is taken in: longer than its restart.
REST_AFTER_S: Final = 3.0

_NOT_FOUND: Final = 404


def existing(name: str) -> Queue:
    """A queue that somebody else makes. Messages to it go by the default exchange, which reaches every queue."""
    return Queue(name, Exchange("", type="direct", no_declare=True), routing_key=name, no_declare=True)


class Queues(CeleryQueues):
    """The queues of `-Q`, none of which we declare."""

    def new_missing(self, name: str) -> Queue:
        return existing(name)


class Connection(KombuConnection):
    """A broker connection whose consumers each have their own prefetch, and which is soon there again."""

    def ensure_connection(self, *args: Any, **options: Any) -> Any:
        return super().ensure_connection(*args, **{"interval_max": RECONNECT_S, **options})

    @property
    def qos_semantics_matches_spec(self) -> bool:
        # What Celery asks before it would set the prefetch of the whole channel.
        return True


class Consumer(KombuConsumer):
    """Consumes from those of its queues that exist; `consume()` may be called again for the rest."""

    def consume(self, no_ack: bool | None = None) -> None:
        for queue in list(self._queues.values()):
            if self.consuming_from(queue):
                continue
            if not self._exists(queue.name):
                self._note_missing(queue.name)
                continue
            tag = self._add_tag(queue)
            self._active_queue_no_ack[queue.name] = no_ack
            queue.consume(
                tag,
                self._receive_callback,
                no_ack=self.no_ack if no_ack is None else no_ack,
                nowait=False,
                on_cancel=lambda _tag, name=queue.name: self._cancelled(name),
            )
            self._missing.discard(queue.name)
            log.info("queue_consumed", queue=queue.name)

    def rest(self) -> None:
        """Take in nothing more until `consume()` is called again."""
        for name in self.consumed:
            self._active_queue_no_ack.pop(name, None)
            self.channel.basic_cancel(self._active_tags.pop(name))

    @property
    def consumed(self) -> list[str]:
        """The queues that messages really come from now."""
        return [name for name in list(self._active_tags) if name in self._queues]

    @property
    def complete(self) -> bool:
        """Whether every queue that was asked for is consumed."""
        return all(self.consuming_from(queue) for queue in list(self._queues.values()))

    @property
    def _missing(self) -> set[str]:
        missing: set[str] = self.__dict__.setdefault("_missing_queues", set())
        return missing

    def _note_missing(self, name: str) -> None:
        if name not in self._missing:
            self._missing.add(name)
            log.warning("queue_missing", queue=name, hint="it is consumed as soon as it exists")

    def _cancelled(self, name: str) -> None:
        # The queue was deleted under us. Without this Celery would reconnect, and every running message come again.
        self._active_tags.pop(name, None)
        self._active_queue_no_ack.pop(name, None)
        log.warning("queue_gone", queue=name)

    def _exists(self, name: str) -> bool:
        client = self.channel.connection.client
        if client.transport.driver_type != "amqp":
            return True
        # On a channel of its own, for a queue that is not there closes the channel.
        channel = client.channel()
        try:
            channel.queue_declare(queue=name, passive=True)
        except client.channel_errors as error:
            if getattr(error, "reply_code", None) != _NOT_FOUND:
                self._note_missing(name)
                log.warning("queue_refused", queue=name, error=str(error))
            return False
        finally:
            if channel.is_open:
                channel.close()
        return True


class AMQP(CeleryAMQP):
    """Celery's broker side with the classes of this module."""

    Connection = Connection
    Consumer = Consumer
    queues_cls = Queues


class LookForQueues(bootsteps.StartStopStep):
    """Consumes from a queue as soon as it exists, and from none while Redis is away."""

    requires = (Tasks,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        super().__init__(c, **kwargs)
        self._entry: Any = None
        self._resting = False

    def start(self, c: Any) -> None:
        self._resting = False
        self._entry = c.timer.call_repeatedly(LOOK_S, c.call_soon, (self._look, c))

    def stop(self, c: Any) -> None:
        if self._entry is not None:
            self._entry.cancel()
            self._entry = None

    def _look(self, c: Any) -> None:
        consumer, presence = c.task_consumer, c.controller.presence
        if consumer is None or presence is None or c.blueprint.state != bootsteps.RUN or c.controller.stopping.told:
            return
        try:
            if presence.away_s > REST_AFTER_S:
                if not self._resting:
                    self._resting = True
                    log.warning("resting", away_s=round(presence.away_s, 1), hint="Redis is away: nothing is taken in")
                consumer.rest()
            elif not consumer.complete:
                self._resting = False
                consumer.consume()
        except (*c.connection_errors, *c.channel_errors) as error:
            log.warning("queue_look_failed", error=str(error))
