"""What Prometheus reads: the requests of this process, and the figures of the plane out of the database."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from prometheus_client import CollectorRegistry, Counter, GCCollector, Histogram, PlatformCollector, ProcessCollector
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from app.api import queries
from app.database import AWAY, Database

#: Several scrapers share one read of the database.
CACHE_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Figures:
    """The plane as the database tells it; `up` is false if it could not be asked."""

    up: bool = False
    live: dict[str, int] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)


async def read_figures(database: Database) -> Figures:
    """The figures of now; never raises for a database that is away."""
    try:
        async with database.reading() as connection:
            live = await queries.live_runs_by_state(connection)
            return Figures(
                True, live, {name: float(value) for name, value in (await queries.plane_figures(connection)).items()}
            )
    except AWAY:
        return Figures()


class PlaneCollector(Collector):
    """The newest figures as metrics; `refresh` before a scrape."""

    _GAUGES: Final = {
        "waiting": ("jobplane_runs_waiting", "runs that are due and not yet with the broker"),
        "waiting_age_s": ("jobplane_runs_waiting_age_seconds", "how long the oldest of them has been due"),
        "due_jobs": ("jobplane_jobs_due", "jobs whose time has come and that no tick has dealt with"),
        "due_lateness_s": ("jobplane_jobs_due_lateness_seconds", "how late the latest of them is"),
        "schedulers": ("jobplane_schedulers", "schedulers that live"),
    }

    def __init__(self) -> None:
        self._figures = Figures()
        self._read_at = -CACHE_S
        self._reading = asyncio.Lock()

    async def refresh(self, database: Database) -> None:
        """Read the figures again if they are older than `CACHE_S`."""
        async with self._reading:
            if time.monotonic() - self._read_at >= CACHE_S:
                self._figures = await read_figures(database)
                self._read_at = time.monotonic()

    def collect(self) -> Iterable[Metric]:
        figures = self._figures
        yield GaugeMetricFamily("jobplane_database_up", "whether the database answers", value=float(figures.up))
        if not figures.up:
            return
        live = GaugeMetricFamily("jobplane_runs_live", "runs that have not ended", labels=["state"])
        for state, count in figures.live.items():
            live.add_metric([state], count)
        yield live
        for name, (metric, meaning) in self._GAUGES.items():
            yield GaugeMetricFamily(metric, meaning, value=figures.values[name])


class Requests:
    """Counts and times the requests of this process, by route."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._count = Counter(
            "jobplane_http_requests", "requests answered", ["method", "route", "status"], registry=registry
        )
        self._took = Histogram(
            "jobplane_http_request_seconds", "time to the end of the answer", ["method", "route"], registry=registry
        )

    def count(self, method: str, route: str, status: int, took_s: float) -> None:
        """One request that has ended; `status` 0 if nothing was answered."""
        if method not in {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}:
            method = "other"  # a caller must not be able to make new time series
        self._count.labels(method, route, str(status)).inc()
        self._took.labels(method, route).observe(took_s)


def registry_of(collector: PlaneCollector) -> CollectorRegistry:
    """A registry of its own for each application, so that two can live in one process."""
    registry = CollectorRegistry()
    for one in (ProcessCollector, PlatformCollector, GCCollector):
        one(registry=registry)
    registry.register(collector)
    return registry
