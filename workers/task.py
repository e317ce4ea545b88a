"""The base class of every task in a worker of ours: the lease, STARTED, and progress.

Task bodies stay plain functions, `def` or `async def`. What a body may use: `progress`, `track` and `step`, Celery's
own `self.update_state(...)` and `self.retry(...)`, `self.context`, `self.scheduled_time` and `self.fence`.
"""

import contextlib
import inspect
import os
import sys
from collections.abc import Callable
from datetime import datetime
from functools import partial
from types import CoroutineType
from typing import Any, Final
from uuid import UUID

from billiard import current_process
from celery import Task as CeleryTask
from celery import states
from celery._state import _task_stack
from celery.app.autoretry import add_autoretry_behaviour
from celery.app.task import get_actual_ignore_result
from celery.backends.redis import RedisBackend
from celery.exceptions import Reject, Retry
from celery.signals import task_postrun
from kombu.serialization import dumps
from pydantic import BaseModel

from workers import context, coroutines
from workers.coroutines import Elsewhere
from workers.keeper import Keeper, keeper
from workers.lease import Attempt, Cancelled, LeaseLost
from workers.log import log
from workers.logs import keep
from workers.protocol import FENCE_S, HEADER, LEASE_REPORT, LEASE_S, lease_key
from workers.results import LIMIT_MIB, checked
from workers.tracking import Call, Voice, current_call, progress

__all__ = ["PROGRESS", "Cancelled", "LeaseLost", "Task", "progress"]

PROGRESS: Final = "PROGRESS"

#: Where a delivery's `Attempt` hangs on Celery's request.
_ATTEMPT: Final = "jobplane_attempt"


class Task(CeleryTask):
    """A Celery task that runs once per attempt.

    A message of the plane carries the header `jobplane`: its body runs only under the attempt's lease, STARTED is
    reported in the same step as the lease is taken, and a delivery whose attempt is held, ended, reaped or cancelled
    is acknowledged and stores nothing. When the lease goes to somebody else, LeaseLost (or Cancelled) is raised in
    the body within a heartbeat. Any other message runs as in a stock worker.
    """

    abstract = True
    Request = "workers.request:Request"
    #: Whether the body is an `async def`.
    _asynchronous = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        request = self.request_stack.top
        if request is None or request.called_directly or getattr(request, "jobplane_entered", False):
            return super().__call__(*args, **kwargs)  # a plain call of the function, also from inside a body
        request.jobplane_entered = True
        if request.is_eager or not isinstance(self.backend, RedisBackend):
            voice = Voice(partial(self._store, request))
            try:
                return self._execute(Call(voice.tell, self._encodable), args, kwargs)
            finally:
                voice.finish()
        attempt = self._begin(request)
        call = Call(attempt.tell, partial(self._report, request, PROGRESS))
        soft_s = None if self._asynchronous else self._soft_s(request)
        if soft_s is not None:
            attempt.limit(soft_s)
        result = attempt.execute(
            partial(keep, self, request, partial(self._execute, call, args, kwargs, attempt.elsewhere))
        )
        if not attempt.key or get_actual_ignore_result(self, request):
            return result  # what is not the plane's is stored as in a stock worker, or not at all
        return checked(result, self._result_limit)

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Celery's hook: the task has its app."""
        body = cls._decorated_fun if cls._dump_pydantic_arguments is not None else cls.run
        cls._asynchronous = inspect.iscoroutinefunction(body)
        if cls._asynchronous:
            cls._follow_coroutines()

    @property
    def context(self) -> Any:
        """What the worker's context yielded for this call; None without one."""
        call = current_call()
        return None if call is None else call.context

    @property
    def scheduled_time(self) -> datetime | None:
        """The time of its schedule that this run is for, before jitter, aware UTC: also where it comes late, and in a
        backfill. None for a run that was asked for by hand, and outside a worker."""
        of_plane = getattr(self.request_stack.top, HEADER, None)
        text = of_plane.get("scheduled_time") if isinstance(of_plane, dict) else None
        return datetime.fromisoformat(text) if isinstance(text, str) else None

    @property
    def fence(self) -> str | None:
        """The token of this attempt's lease, to mark what the body writes elsewhere; None without a lease."""
        attempt = self._attempt
        return attempt.token if attempt is not None else None

    def progress(self, current: float, total: float | None = None, message: str | None = None, **extra: Any) -> None:
        """As `workers.progress`."""
        progress(current, total, message, **extra)

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Any = None, **kwargs: Any
    ) -> None:
        """Celery's own, under the lease: LeaseLost or Cancelled instead of a report that nobody may make any more.

        While Redis is away PROGRESS is kept and the newest sent later; any other state waits for Redis, since each
        is a step that somebody may wait for. A coroutine waits for neither: its states are sent in order. Outside a
        worker it does nothing, unless it names a task.
        """
        request = self.request_stack.top
        attempt = self._attempt
        if request is None or request.called_directly:
            if task_id is not None:
                super().update_state(task_id, state, meta, **kwargs)
        elif request.is_eager and task_id in {None, request.id} and state is not None:
            self._store(request, self._encodable(meta), state)
        elif (
            attempt is None
            or state is None
            or task_id not in {None, request.id}
            or kwargs
            or state in states.READY_STATES
        ):
            if attempt is not None:
                attempt.check()
            super().update_state(task_id, state, meta, **kwargs)
        elif state == PROGRESS:
            attempt.tell(partial(self._report, request, PROGRESS, meta), at_once=True)
        else:
            attempt.insist(partial(self._report, request, state, meta))

    def retry(
        self,
        args: Any = None,
        kwargs: Any = None,
        exc: BaseException | None = None,
        throw: bool = True,
        eta: Any = None,
        countdown: float | None = None,
        max_retries: int | None = None,
        **options: Any,
    ) -> Any:
        """Celery's own; from a coroutine the message is sent once the coroutine has ended, by the thread that waits."""
        request = self.request
        most = self.max_retries if max_retries is None else max_retries
        send = partial(super().retry, args, kwargs, exc, throw, eta, countdown, max_retries, **options)
        goes_out = not request.called_directly and not request.is_eager and (most is None or request.retries < most)
        if coroutines.on_loop() and throw and goes_out:
            raise _RetryLater(send, exc, eta or countdown)
        attempt = self._attempt
        with contextlib.nullcontext() if attempt is None else attempt.ending():
            return send()

    @property
    def _attempt(self) -> Attempt | None:
        return getattr(self.request_stack.top, _ATTEMPT, None)

    def _begin(self, request: Any) -> Attempt:
        """Take the lease and report STARTED; Ignore if somebody else has or had the attempt."""
        key = _key_of(request)
        leases = self._keeper()
        attempt = Attempt(leases, self.backend.get_key_for_task(request.id).decode(), int(self.backend.expires), key)
        setattr(request, _ATTEMPT, attempt)
        started: dict[str, Any] = {"pid": os.getpid(), "hostname": request.hostname}
        silent = get_actual_ignore_result(self, request)
        if key is None:
            if not silent:
                self.backend.store_result(request.id, started, states.STARTED, request=request)
            leases.watch(attempt)
            return attempt
        started[LEASE_REPORT] = {"token": attempt.token, "lease_s": LEASE_S}
        leases.take(attempt, "" if silent else self._report(request, states.STARTED, started))
        if attempt.lost is not None:
            log.info("delivery_refused", task_id=request.id, task=self.name, lease=key, found=attempt.lost)
            raise attempt.refusal()
        return attempt

    def _execute(self, call: Call, args: Any, kwargs: Any, elsewhere: Elsewhere = coroutines.nowhere_else) -> Any:
        """Run the body, in the worker's context and on the event loop where it is a coroutine."""
        with call:
            if self._asynchronous:
                return self._execute_coroutine(call, elsewhere, args, kwargs)
            factory = context.load(self.app.conf.get("jobplane_context"))
            body = partial(self._execute_function, elsewhere, args, kwargs)
            if factory is None:
                return body()
            self._follow_coroutines()  # an asynchronous context may ask for the request
            return factory.around(self, call, body, elsewhere)

    def _execute_function(self, elsewhere: Elsewhere, args: Any, kwargs: Any) -> Any:
        try:
            result = self.run(*args, **kwargs)
            if not isinstance(result, CoroutineType):
                return result
            self._follow_coroutines()  # of a function that is no coroutine function, but returns one
            return coroutines.run(lambda: result, elsewhere)
        finally:
            self._mark_over()

    def _execute_coroutine(self, call: Call, elsewhere: Elsewhere, args: Any, kwargs: Any) -> Any:
        factory = context.load(self.app.conf.get("jobplane_context"))
        run = partial(coroutines.run, elsewhere=elsewhere, soft_s=self._soft_s(self.request))

        def execute(*args: Any, **kwargs: Any) -> Any:
            async def body() -> Any:
                try:
                    return await (getattr(self, "_orig_run", None) or self.run)(*args, **kwargs)
                finally:
                    self._mark_over()

            return run(body) if factory is None else factory.around_coroutine(self, call, body, run)

        try:
            result = (_Retrying(self, execute).run if hasattr(self, "_orig_run") else execute)(*args, **kwargs)
        except _RetryLater as later:
            return later.send()
        if self._dump_pydantic_arguments is not None and isinstance(result, BaseModel):
            return result.model_dump(mode="json")
        return result

    def _mark_over(self) -> None:
        """The body has returned or raised: from now on a stop waits until that is recorded."""
        attempt = self._attempt
        if attempt is not None:
            attempt.over = True

    def _soft_s(self, request: Any) -> float | None:
        """The soft time limit of a body, where the pool does not keep it."""
        if request.is_eager or current_process().name != "MainProcess":
            return None  # a prefork pool keeps the limits of its children
        limits = request.timelimit or (None, None)
        soft_s: float | None = limits[1] or self.soft_time_limit
        return soft_s

    @classmethod
    def _follow_coroutines(cls) -> None:
        """Let Celery's own stacks be those of the thread that waits, in a coroutine."""
        for stack in (cls.request_stack, _task_stack):
            stack.__ident_func__ = coroutines.ident

    def _encodable(self, meta: Any) -> Any:
        dumps(meta, serializer=self.app.conf.result_serializer)  # type: ignore[no-untyped-call]
        return meta

    def _store(self, request: Any, meta: Any, state: str = PROGRESS) -> None:
        """Store a state that is under no lease; of an eager call only where its result is stored as well."""
        if not request.is_eager or (self.store_eager_result and not get_actual_ignore_result(self, request)):
            self.backend.store_result(request.id, meta, state, request=request)

    @property
    def _result_limit(self) -> int:
        return int(self.app.conf.get("jobplane_result_limit_mib") or LIMIT_MIB) * 1024 * 1024

    def _keeper(self) -> Keeper:
        return keeper(self.app.conf.result_backend, FENCE_S if self.app.conf.jobplane_fence else None)

    def _report(self, request: Any, state: str, meta: Any) -> str:
        """A report as Celery's backend writes it, but without the arguments, which the end brings along."""
        backend = self.backend
        body = backend._get_result_meta(backend.encode_result(meta, state), state, None, request)
        body["task_id"] = request.id
        body.pop("args", None)
        body.pop("kwargs", None)
        encoded: str = backend.encode(body)
        return encoded


class _RetryLater(Retry):
    """Raised in a coroutine that retries itself; `send` sends the message and raises Celery's own."""

    def __init__(self, send: Callable[[], Any], exc: BaseException | None, when: Any) -> None:
        super().__init__(exc=exc, when=when)
        self.send = send


class _Retrying:
    """A task as Celery's autoretry wants it: with a `run` that has ended when it returns."""

    def __init__(self, task: Task, run: Callable[..., Any]) -> None:
        self.__dict__.update(_task=task, run=run)
        add_autoretry_behaviour(self)

    def __getattr__(self, name: str) -> Any:
        if name == "_orig_run":
            raise AttributeError(name)
        return getattr(self._task, name)

    def __delattr__(self, name: str) -> None:
        delattr(self._task, name)


def _key_of(request: Any) -> str | None:
    """The lease's key that a message names; None for a message that is not of the plane."""
    value = getattr(request, HEADER, None)
    if value is None:
        return None
    try:
        return lease_key(UUID(value["run_id"]), int(value["attempt"]), int(request.retries))
    except (TypeError, KeyError, ValueError, AttributeError):
        raise ValueError(f"header {HEADER}: must be an object with run_id and attempt") from None


@task_postrun.connect(weak=False)
def _end(task: Any = None, state: str | None = None, retval: object = None, **_: object) -> None:
    # Celery sends this after it has stored the result. An exception on its way through here means that it could not,
    # or that the process is being stopped: then the attempt is handed back for the next delivery.
    attempt: Attempt | None = getattr(task.request_stack.top, _ATTEMPT, None)
    if attempt is not None:
        requeued = state == states.REJECTED and isinstance(retval, Reject) and bool(retval.requeue)
        attempt.end(finished=state is not None and sys.exc_info()[0] is None and not requeued)
