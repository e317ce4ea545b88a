"""`celery -A benchmarks.overhead_ours`: our worker with the tasks of the benchmark."""

import benchmarks.overhead_tasks  # noqa: F401
from workers.app import app

__all__ = ["app"]
