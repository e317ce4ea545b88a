"""The tasks of the overhead benchmark, the same for both workers."""

import os
import time

from celery import shared_task
from redis import Redis

from workers import progress, track


def _redis() -> Redis:
    return Redis.from_url(os.environ["JOBPLANE_WORKER_REDIS_URL"], socket_timeout=None)


@shared_task(name="bench.hold", ignore_result=True)
def hold(name: str) -> None:
    """Wait until the round begins."""
    with _redis() as redis:
        redis.blpop([f"{name}:go"], timeout=60)


@shared_task(name="bench.nothing")
def nothing() -> None:
    """Nothing."""


@shared_task(name="bench.mark", ignore_result=True)
def mark(name: str) -> None:
    """The round is over."""
    with _redis() as redis:
        redis.rpush(f"{name}:end", "end")


@shared_task(name="bench.million")
def million(count: int) -> tuple[float, float]:
    """Seconds that so many calls of `progress` take, and so many turns of `track`."""
    begin = time.perf_counter()
    for n in range(count):
        progress(n, count)
    told = time.perf_counter()
    for _ in track(range(count)):
        pass
    return told - begin, time.perf_counter() - told
