"""The base class of every task in a worker of ours: the lease, STARTED, and progress.

Task bodies stay plain functions. What a body may use: `progress(...)`, Celery's own `self.update_state(...)`, and
`self.fence`.
"""

import os
import sys
from functools import partial
from typing import Any, Final
from uuid import UUID

from celery import Task as CeleryTask
from celery import states
from celery._state import get_current_task
from celery.app.task import get_actual_ignore_result
from celery.backends.redis import RedisBackend
from celery.exceptions import Reject
from celery.signals import task_postrun

from workers.keeper import Keeper, keeper
from workers.lease import Attempt, Cancelled, LeaseLost
from workers.log import log
from workers.logs import keep
from workers.protocol import FENCE_S, HEADER, LEASE_REPORT, LEASE_S, lease_key
from workers.results import LIMIT_MIB, checked

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

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        request = self.request_stack.top
        if request is None or request.called_directly or getattr(request, "jobplane_entered", False):
            return super().__call__(*args, **kwargs)  # a plain call of the function, also from inside a body
        request.jobplane_entered = True
        if request.is_eager or not isinstance(self.backend, RedisBackend):
            return self.run(*args, **kwargs)
        result = self._begin(request).execute(partial(keep, self, request, partial(self.run, *args, **kwargs)))
        return result if get_actual_ignore_result(self, request) else checked(result, self._result_limit)

    @property
    def fence(self) -> str | None:
        """The token of this attempt's lease, to mark what the body writes elsewhere; None without a lease."""
        attempt = self._attempt
        return attempt.token if attempt is not None else None

    def progress(self, current: float, total: float | None = None, message: str | None = None, **extra: Any) -> None:
        """Tell how far the task is: state PROGRESS with the meta `{"current", "total", "message", **extra}`.

        Call it as often as you like: at most ten a second are sent, of which the newest is never lost, and `current`
        equal to `total` goes at once. While Redis is away the newest waits and the body goes on. Raises LeaseLost or
        Cancelled if the attempt is not ours any more. Outside a worker it does nothing.
        """
        meta: dict[str, Any] = {"current": _number("current", current)}
        if total is not None:
            meta["total"] = _number("total", total)
        if message is not None:
            meta["message"] = message
        meta.update(extra)
        request = self.request_stack.top
        if request is None or request.called_directly or request.is_eager:
            return
        attempt = self._attempt
        if attempt is None:
            super().update_state(state=PROGRESS, meta=meta)
        else:
            attempt.tell(partial(self._report, request, PROGRESS, meta), at_once=current == total)

    def update_state(
        self, task_id: str | None = None, state: str | None = None, meta: Any = None, **kwargs: Any
    ) -> None:
        """Celery's own, under the lease: LeaseLost or Cancelled instead of a report that nobody may make any more.

        While Redis is away PROGRESS is kept and the newest sent later; any other state waits for Redis, since each
        is a step that somebody may wait for. Outside a worker it does nothing, unless it names a task.
        """
        request = self.request_stack.top
        attempt = self._attempt
        if request is None or request.called_directly:
            if task_id is not None:
                super().update_state(task_id, state, meta, **kwargs)
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


def progress(current: float, total: float | None = None, message: str | None = None, **extra: Any) -> None:
    """Tell how far the running task is, as `Task.progress`; does nothing where no task runs."""
    task = get_current_task()
    if isinstance(task, Task):
        task.progress(current, total, message, **extra)


def _key_of(request: Any) -> str | None:
    """The lease's key that a message names; None for a message that is not of the plane."""
    value = getattr(request, HEADER, None)
    if value is None:
        return None
    try:
        return lease_key(UUID(value["run_id"]), int(value["attempt"]), int(request.retries))
    except (TypeError, KeyError, ValueError, AttributeError):
        raise ValueError(f"header {HEADER}: must be an object with run_id and attempt") from None


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name}: must be a number, not {type(value).__name__}")
    return value


@task_postrun.connect(weak=False)
def _end(task: Any = None, state: str | None = None, retval: object = None, **_: object) -> None:
    # Celery sends this after it has stored the result. An exception on its way through here means that it could not,
    # or that the process is being stopped: then the attempt is handed back for the next delivery.
    attempt: Attempt | None = getattr(task.request_stack.top, _ATTEMPT, None)
    if attempt is not None:
        requeued = state == states.REJECTED and isinstance(retval, Reject) and bool(retval.requeue)
        attempt.end(finished=state is not None and sys.exc_info()[0] is None and not requeued)
