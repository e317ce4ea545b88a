"""What runs in a worker. `from workers import progress, track, step` is all that a task body needs."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from workers.tracking import progress, step, track

__all__ = ["progress", "step", "track"]


def __getattr__(name: str) -> Any:
    # Late, for the plane loads `workers.protocol` and should not pay for more with it.
    if name in __all__:
        from workers import tracking

        return getattr(tracking, name)
    raise AttributeError(f"module 'workers' has no attribute {name!r}")
