"""A message on its way to a task of ours, before any body begins."""

from datetime import UTC, datetime
from uuid import UUID

from celery.backends.redis import RedisBackend
from celery.worker.request import Request as CeleryRequest
from redis.exceptions import RedisError

from workers.protocol import HEADER, lease_key


class Request(CeleryRequest):
    """Celery's own, but of the plane's messages only one whose attempt nobody has begun is given up as expired.

    By the header alone, a delivery that comes back after its worker has died would be given up although it had begun in
    time, so would the task's own retry, and a second copy would say REVOKED of an attempt that is at work.
    """

    def maybe_expire(self) -> bool | None:
        if self.expires is None or datetime.now(UTC) <= self.expires or self._was_begun():
            return None
        expired: bool | None = super().maybe_expire()
        return expired

    def _was_begun(self) -> bool:
        """Whether a lease or a report of the attempt is there, or might be: then its lease decides."""
        of_plane, backend = self._request_dict.get(HEADER), self.task.backend
        if of_plane is None or not isinstance(backend, RedisBackend):
            return False
        if self._request_dict.get("retries"):
            return True
        try:
            lease = lease_key(UUID(of_plane["run_id"]), int(of_plane["attempt"]), 0)
            return bool(backend.client.exists(lease, backend.get_key_for_task(self.id)))
        except (RedisError, TypeError, KeyError, ValueError):
            return True
