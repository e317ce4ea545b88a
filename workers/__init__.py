"""What runs in a worker. `from workers import progress` is all that a task body needs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.task import progress

__all__ = ["progress"]


def __getattr__(name: str) -> Any:
    # Late, for the plane loads `workers.protocol` and should not pay for Celery with it.
    if name == "progress":
        from workers.task import progress

        return progress
    raise AttributeError(f"module 'workers' has no attribute {name!r}")
